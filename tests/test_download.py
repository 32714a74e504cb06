"""download.py as a user runs it, over a server on this machine that can resume, cut connections, and redirect."""
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import download

ROOT = Path(download.__file__).parent
NOISE = random.Random(0).randbytes(3 * 2 ** 20)  # three blocks of download.py's
DIT = "DiT-XL-2-512x512.pt"
HUB = "/stabilityai/sd-vae-ft-{}/resolve/main/"


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("archive/data/0", data)
    return buffer.getvalue()


ZIP = zipped(NOISE)  # like what torch.save writes, large enough to be cut


def safetensors(data):
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


class Server(ThreadingHTTPServer):
    """Serves `files` {path: bytes}, and records every request as (path, Range header)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = {}
        self.seen = []
        self.cuts = []       # one a response: bytes of the body after which the connection is closed
        self.statuses = []   # one a response: answered instead of the file
        self.ranges = True
        self.size = None     # announced instead of the true one
        self.sha256 = {}     # {path: stated as the hub states it, in a redirect to storage}

    def add(self, files):
        self.files.update(files)
        self.sha256 = {p: hashlib.sha256(data).hexdigest() for p, data in self.files.items() if p.endswith(".safetensors")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        path = self.path.removeprefix("/storage")
        server.seen.append((self.path, asked))
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if path not in server.files:
            return self.send_error(404)
        if self.path in server.sha256:
            return self.answer(302, b"", Location=f"/storage{path}", X_Linked_Etag=f'"{server.sha256[path]}"')
        data = server.files[path]
        if not asked or not server.ranges:
            return self.answer(200, data)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(data):
            return self.answer(416, b"", Content_Range=f"bytes */{len(data)}")
        self.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": self.server.size or len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body[:self.server.cuts.pop(0)] if self.server.cuts and body else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture
def run(server, tmp_path):
    """Runs the command in an empty folder; `patch` is code that goes before it, for what only a test would change."""
    def run(*args, patch="", **env):
        env = {**os.environ, "HF_ENDPOINT": server.url, "MOSAICDIT_MIRROR": server.url + "/", "NO_PROXY": "127.0.0.1",
               "PYTHONPATH": str(ROOT), **env}
        script = ["-c", f"import download; {patch}; download.run(download.main)"] if patch else [str(ROOT / "download.py")]
        return subprocess.run([sys.executable, *script, *args], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=60)
    return run


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def refused(result, *words):
    """The one line in which a command ends that refused; everything before it is progress."""
    *before, line = result.stderr.splitlines()
    assert result.returncode == 2
    assert line.startswith(("download.py: error: ", "-c: error: ")) and "Traceback" not in result.stderr
    assert all("MiB: " in other for other in before)
    for word in words:
        assert str(word) in line
    return line


def test_all_then_nothing_left_to_do(server, run, tmp_path):
    vae = {name: {HUB.format(name) + "config.json": b'{"scaling_factor": 0.18215}',
                  HUB.format(name) + download.VAE: safetensors(name.encode())} for name in ("ema", "mse")}
    server.add({f"/{DIT}": ZIP, f"/{download.INCEPTION}": NOISE, **vae["ema"], **vae["mse"]})
    sums = {download.MSE: server.sha256[HUB.format("mse") + download.VAE], "inception": hashlib.sha256(NOISE).hexdigest()[:8]}
    patch = (f"sums = {sums}; [files.update({{file: (files[file][0], sums[name])}}) for name, files in download.FILES.items() "
             "for file in files if name in sums and not file.endswith('json')]")
    first = run("all", patch=patch)
    assert first.returncode == 0, first.stderr
    expected = {DIT: ZIP, download.INCEPTION: NOISE,
                **{f"sd-vae-ft-{name}/{path.rsplit('/', 1)[1]}": data for name in vae for path, data in vae[name].items()}}
    assert files_in(tmp_path / "weights") == expected
    said = {line.split(": ")[0].removeprefix("weights/"): line for line in first.stdout.splitlines() if " -> " not in line}
    assert "no published checksum" in said[DIT] and hashlib.sha256(ZIP).hexdigest() in said[DIT]
    assert "beginning with" in said[download.INCEPTION]
    assert all("as published" in said[f"sd-vae-ft-{name}/{download.VAE}"] for name in vae)

    server.seen.clear()
    second = run("all", patch=patch)
    assert second.returncode == 0 and second.stdout.count("is there already") == 6
    assert not server.seen
    assert files_in(tmp_path / "weights") == expected


def test_a_dropped_connection_is_resumed(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.cuts = [len(ZIP) // 2]
    result = run("dit-xl-2-512", "--output", "elsewhere/w")
    assert result.returncode == 0, result.stderr
    (_, first), (_, second) = server.seen
    assert first is None and 0 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) <= len(ZIP) // 2
    assert files_in(tmp_path) == {f"elsewhere/w/{DIT}": ZIP}


@pytest.mark.parametrize("have", [1000, len(ZIP), len(ZIP) + 1], ids=["half", "whole", "too much"])
def test_a_later_run_goes_on_from_the_part(have, server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{DIT}.part").write_bytes((ZIP + b"more")[:have])
    assert run("dit-xl-2-512").returncode == 0
    assert server.seen[0] == (f"/{DIT}", f"bytes={have}-")
    assert server.seen[1:] == ([(f"/{DIT}", None)] if have > len(ZIP) else [])
    assert files_in(tmp_path / "weights") == {DIT: ZIP}


def test_the_hub_is_resumed_through_its_redirect(server, run, tmp_path):
    path, data = HUB.format("ema") + download.VAE, safetensors(NOISE)
    server.add({HUB.format("ema") + "config.json": b"{}", path: data})
    (tmp_path / "sd-vae-ft-ema").mkdir()
    (tmp_path / "sd-vae-ft-ema" / f"{download.VAE}.part").write_bytes(data[:1000])
    assert run("sd-vae-ft-ema", "--output", ".").returncode == 0
    assert server.seen[-1] == ("/storage" + path, "bytes=1000-")
    assert (tmp_path / "sd-vae-ft-ema" / download.VAE).read_bytes() == data


def test_a_server_that_cannot_resume_starts_over(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.ranges = False
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{DIT}.part").write_bytes(b"of another file")
    result = run("dit-xl-2-512")
    assert result.returncode == 0 and "starts over" in result.stdout
    assert files_in(tmp_path / "weights") == {DIT: ZIP}


def test_gives_up_when_nothing_more_comes_and_keeps_the_part(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.ranges, server.cuts = False, [2 ** 21] * 9
    refused(run("dit-xl-2-512", patch="download.RETRIES = 1"), DIT, server.url)
    assert len(server.seen) == 2
    assert files_in(tmp_path / "weights") == {f"{DIT}.part": ZIP[:2 ** 21]}


def test_an_overloaded_server_is_asked_again(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.statuses = [503]
    assert run("dit-xl-2-512").returncode == 0
    assert files_in(tmp_path / "weights") == {DIT: ZIP}


@pytest.mark.parametrize("what, file, data, stated, words", [
    ("inception", download.INCEPTION, NOISE, None, "published is 6726825d"),
    (download.MSE, f"{download.MSE}/{download.VAE}", safetensors(b"w"), "", "published is a1d993488569"),
    (download.EMA, f"{download.EMA}/{download.VAE}", safetensors(b"w"), "0" * 64, "published is 0000"),
    (download.EMA, f"{download.EMA}/{download.VAE}", safetensors(b"w")[:-1], "", "not a whole .safetensors file"),
    ("dit-xl-2-512", DIT, ZIP[:-1], None, "not a whole .pt file"),
    ("dit-xl-2-512", DIT, ZIP.replace(NOISE[:9], bytes(9)), None, "not a whole .pt file"),
], ids=["inception", "mse", "hub's", "safetensors cut", "zip cut", "zip CRC"])
def test_a_damaged_download_is_removed(what, file, data, stated, words, server, run, tmp_path):
    path = f"/{file}"
    if stated is not None:
        path = f"/stabilityai/{what}/resolve/main/{download.VAE}"
        server.add({f"/stabilityai/{what}/resolve/main/config.json": b"{}"})
    server.add({path: data})
    if stated is not None:
        server.sha256 = {path: stated} if stated else {}
    refused(run(what), f"weights/{file}", words)
    assert files_in(tmp_path / "weights").keys() <= {f"{what}/config.json"}


def test_a_damaged_copy_is_named_and_left(run, server, tmp_path):
    (tmp_path / DIT).write_bytes(ZIP[:1000])
    refused(run("dit-xl-2-512", "--output", "."), DIT, "remove it")
    assert files_in(tmp_path) == {DIT: ZIP[:1000]} and not server.seen


def test_not_found(server, run, tmp_path):
    line = refused(run(download.EMA), f"weights/{download.EMA}/config.json", "404", "login node")
    assert server.url + HUB.format("ema") + "config.json" in line and server.url + HUB.format("ema") + download.VAE in line
    assert not files_in(tmp_path)


def test_no_server(server, run, tmp_path):
    nowhere = "http://127.0.0.1:9"
    line = refused(run("dit-xl-2-512", "--output", "w", MOSAICDIT_MIRROR=nowhere), f"{nowhere}/{DIT}", f"w/{DIT}", "login node")
    assert "(Connection refused)" in re.sub(r"\[.*?\] ", "", line)
    assert not files_in(tmp_path) and not server.seen


def test_a_disk_too_small_is_told_before_the_download(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.size = 10 ** 18
    refused(run("dit-xl-2-512"), DIT, "needs 1e+09 GB", "--output")
    assert not files_in(tmp_path)


def test_two_at_once_keep_out_of_each_others_way(server, run, tmp_path):
    import fcntl
    (tmp_path / "weights").mkdir()
    with open(tmp_path / "weights" / f"{DIT}.part", "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        refused(run("dit-xl-2-512"), f"{DIT}.part", "another")
    assert not server.seen


def test_insecure_mirrors_are_refused(run, tmp_path):
    refused(run("all", HF_ENDPOINT="http://example.org"), "HF_ENDPOINT=http://example.org", "https")
    assert not files_in(tmp_path)
    for url in ("https://example.org", "http://localhost", "http://127.0.0.1:8000/x"):
        assert download.SECURE.match(url)
    for url in ("http://localhost.example.org", "http://localhost:80@example.org/", "ftp://localhost/", "file:///etc"):
        assert not download.SECURE.match(url)


def test_without_a_mirror_the_addresses_are_the_public_ones(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("MOSAICDIT_MIRROR", raising=False)
    urls = {file: download.address(url) for files in download.FILES.values() for file, (url, _) in files.items()}
    assert len(urls) == 6
    assert urls["sd-vae-ft-mse/config.json"] == "https://huggingface.co/stabilityai/sd-vae-ft-mse/resolve/main/config.json"
    assert all(url.startswith("https://") and url.endswith("/" + Path(file).name) for file, url in urls.items())
