"""A headless Chromium that tests drive over its debugging pipe (Chrome DevTools Protocol)."""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
            "--remote-debugging-pipe")
PATIENCE = 30   # seconds


def find_chromium():
    """Path of a Chromium; skips the test if there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(NAMES)}): apt-get install chromium")
    return path


class Browser:
    """One page of a headless Chromium. Errors of the page are in `errors`."""

    def __init__(self, width=1280, height=1000, dark=False):
        self.path = find_chromium()
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        self.errors = []
        self._count = 0
        self._start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _start(self):
        """Starts Chromium, which reads commands from file descriptor 3 and answers on 4."""
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        line = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", line, "bash", str(commands), str(answers), self.path, *SWITCHES,
             f"--user-data-dir={self.profile}"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self.buffer = b""
        self.session = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends Chromium and removes its profile."""
        self.session = None
        self.call("Browser.close")
        self.process.wait(PATIENCE)
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        """Sends a command and returns its result; notes errors of the page on the way."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            assert ready, f"Chromium did not answer in {PATIENCE} s"
            block = os.read(self.answers, 2 ** 20)
            assert block, "Chromium ended"
            self.buffer += block
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(params["args"])

    def open(self, path):
        """Opens a file and waits until its scripts have run."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for(f"document.readyState === 'complete' && location.pathname.endsWith("
                      f"{json.dumps(path.name)})")

    def run(self, expression):
        """The value of an expression in the page; promises are awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                         awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, expression):
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, f"not true in {PATIENCE} s: {expression}"
            time.sleep(0.02)

    def center_of(self, selector):
        """Where an element's center is in the window, after scrolling to it."""
        return self.run(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center"}});
            const box = element.getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2];
        }})()""")

    def click(self, selector, dx=0, dy=0):
        """Clicks on an element, so many pixels beside its center."""
        x, y = self.center_of(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x + dx, y=y + dy, button="left",
                      buttons=1, clickCount=1)

    def wheel(self, selector, delta):
        """Turns the wheel over an element."""
        x, y = self.center_of(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def press(self, key, code=0):
        """Presses a key, as `KeyboardEvent.key` names it."""
        typed = "\r" if key == "Enter" else key
        text = {"text": typed} if len(typed) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code,
                  **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path):
        """Writes a PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def print_to(self, path):
        """Writes the page as PDF."""
        done = self.call("Page.printToPDF", printBackground=True)
        path.write_bytes(base64.b64decode(done["data"]))
