"""download.py, with a server on this machine that can resume, cut connections, and redirect."""
import fcntl
import hashlib
import io
import json
import random
import re
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import SHARED, script

import download
from metrics.inception import WEIGHTS_FILE
from utils.errors import UserError

NOISE = random.Random(0).randbytes(3 * 2 ** 20)  # three blocks of download.py's
DIT = "DiT-XL-2-512x512.pt"
EMA = "sd-vae-ft-ema"
MSE = "sd-vae-ft-mse"
VAE = "diffusion_pytorch_model.safetensors"


def on_hub(name, file):
    return f"/stabilityai/{name}/resolve/main/{file}"


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data/0", data)
    return buffer.getvalue()


ZIP = zipped(NOISE)  # like what torch.save writes, large enough to be cut


def safetensors(data):
    tensor = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": {}, "w": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + data


class Server(ThreadingHTTPServer):
    """Serves `files` {path: bytes}, and records every request as (path, Range header)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = {}
        self.seen = []
        self.cuts = []       # for each response: bytes of the body before the connection is closed
        self.statuses = []   # for each response: answered instead of the file
        self.ranges = True
        self.size = None     # announced instead of the true one
        self.sha256 = {}     # {path: stated as the hub states it, in a redirect to storage}

    def add(self, files):
        self.files.update(files)
        self.sha256 = {path: hashlib.sha256(data).hexdigest()
                       for path, data in self.files.items() if path.endswith(".safetensors")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        path = self.path.removeprefix("/storage")
        server.seen.append((self.path, asked))
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if path not in server.files:
            return self.send_error(404)
        if self.path in server.sha256:
            etag = f'"{server.sha256[path]}"'
            return self.answer(302, b"", Location=f"/storage{path}", X_Linked_Etag=etag)
        data = server.files[path]
        size = len(data)
        if not asked or not server.ranges:
            return self.answer(200, data)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= size:
            return self.answer(416, b"", Content_Range=f"bytes */{size}")
        self.answer(206, data[start:], Content_Range=f"bytes {start}-{size - 1}/{size}")

    def answer(self, status, body, **headers):
        self.send_response(status)
        headers = {"Content_Length": self.server.size or len(body), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if body and self.server.cuts:
            body = body[:self.server.cuts.pop(0)]
        self.wfile.write(body)

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
def environment(server):
    return {"HF_ENDPOINT": server.url, "MOSAICDIT_MIRROR": server.url + "/",
            "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def run(environment, tmp_path):
    """Runs the command in an empty folder, as a user does."""
    def run(*args, expect=0, **env):
        return script("download.py", *args, cwd=tmp_path, expect=expect, env=environment | env)
    return run


@pytest.fixture
def run_here(environment, tmp_path, monkeypatch):
    """Runs the command in this process, where a test can change what it does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["download.py", *args])
        download.main()
    return run


def files_in(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(result, *words):
    """The last line of a command that refused; all lines before it are progress."""
    *before, line = result.stderr.splitlines()
    assert result.returncode == 2
    assert line.startswith("download.py: error: ") and "Traceback" not in result.stderr
    assert all("MiB: " in other for other in before)
    for word in words:
        assert str(word) in line
    return line


def test_all_then_nothing_left_to_do(server, run_here, tmp_path, monkeypatch, capsys):
    config = b'{"scaling_factor": 0.18215}'
    vaes = {name: {"config.json": config, VAE: safetensors(name.encode())} for name in (EMA, MSE)}
    for name, files in vaes.items():
        server.add({on_hub(name, file): data for file, data in files.items()})
    inception = "weights-inception-2015-12-05-" + hashlib.sha256(NOISE).hexdigest()[:8] + ".pth"
    monkeypatch.setattr("metrics.inception.WEIGHTS_FILE", inception)
    server.add({f"/{DIT}": ZIP, f"/{inception}": NOISE})
    mse_files = download.vae_files(MSE, server.sha256[on_hub(MSE, VAE)])
    monkeypatch.setitem(download.PUBLIC_WEIGHTS, MSE, lambda: mse_files)
    meshnets = serve_meshnets(server, monkeypatch)
    run_here("all")
    expected = {DIT: ZIP, inception: NOISE, **meshnets}
    for name, files in vaes.items():
        expected.update({f"{name}/{file}": data for file, data in files.items()})
    assert files_in(tmp_path / "weights") == expected
    lines = [line for line in capsys.readouterr().out.splitlines() if " -> " not in line]
    said = {line.split(": ")[0].removeprefix("weights/"): line for line in lines}
    assert "no published checksum" in said[DIT] and hashlib.sha256(ZIP).hexdigest() in said[DIT]
    assert "beginning with" in said[inception]
    assert all("as published" in said[f"{name}/{VAE}"] for name in vaes)
    assert all("as published" in said[path] for path in meshnets)

    server.seen.clear()
    run_here("all")
    assert capsys.readouterr().out.count("exists already") == 12
    assert not server.seen
    assert files_in(tmp_path / "weights") == expected


def serve_meshnets(server, monkeypatch):
    """Puts small files in the place of the networks; {path in weights/: bytes}."""
    contents = {path: json.dumps(path).encode() for path in download.MESHNET_SHA256}
    monkeypatch.setattr(download, "MESHNET_SHA256",
                        {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()})
    files = {f"meshnet/{path}": data for path, data in contents.items()}
    server.add({f"/{path}": data for path, data in files.items()})
    return files


def test_files_of_one_name_are_told_apart_on_a_mirror(server, run_here, tmp_path, monkeypatch):
    files = serve_meshnets(server, monkeypatch)
    run_here("meshnet", "--output", "w")
    assert files_in(tmp_path / "w") == files
    assert {name.split("/")[1] for name in files} == {"mindgrab", "model18cls"}


def test_a_network_of_another_checksum_is_refused(server, run, tmp_path):
    server.add({f"/meshnet/{path}": b"{}" for path in download.MESHNET_SHA256})
    refused(run("meshnet", expect=2), "weights/meshnet/mindgrab/colormap.json",
            "published is b29809105747")
    assert not files_in(tmp_path)


@pytest.mark.skipif(not (SHARED / "meshnet").is_dir(), reason=f"needs {SHARED / 'meshnet'}")
def test_the_checksums_are_those_of_the_networks():
    for path, sha256 in download.MESHNET_SHA256.items():
        assert hashlib.sha256((SHARED / "meshnet" / path).read_bytes()).hexdigest() == sha256, path


def test_a_dropped_connection_is_resumed(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.cuts = [len(ZIP) // 2]
    run("dit-xl-2-512", "--output", "elsewhere/w")
    (_, first), (_, second) = server.seen
    assert first is None
    assert 0 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) <= len(ZIP) // 2
    assert files_in(tmp_path) == {f"elsewhere/w/{DIT}": ZIP}


@pytest.mark.parametrize("have", [1000, len(ZIP), len(ZIP) + 1], ids=["half", "whole", "too much"])
def test_a_later_run_resumes_from_the_part(have, server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{DIT}.part").write_bytes((ZIP + b"more")[:have])
    run("dit-xl-2-512")
    assert server.seen[0] == (f"/{DIT}", f"bytes={have}-")
    assert server.seen[1:] == ([(f"/{DIT}", None)] if have > len(ZIP) else [])
    assert files_in(tmp_path / "weights") == {DIT: ZIP}


def test_the_hub_is_resumed_through_its_redirect(server, run, tmp_path):
    data = safetensors(NOISE)
    server.add({on_hub(EMA, "config.json"): b"{}", on_hub(EMA, VAE): data})
    (tmp_path / EMA).mkdir()
    (tmp_path / EMA / f"{VAE}.part").write_bytes(data[:1000])
    run(EMA, "--output", ".")
    assert server.seen[-1] == ("/storage" + on_hub(EMA, VAE), "bytes=1000-")
    assert (tmp_path / EMA / VAE).read_bytes() == data


def test_a_server_that_cannot_resume_starts_over(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.ranges = False
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{DIT}.part").write_bytes(b"of another file")
    assert "starts over" in run("dit-xl-2-512").stdout
    assert files_in(tmp_path / "weights") == {DIT: ZIP}


def test_gives_up_when_nothing_more_comes_and_keeps_the_part(server, run_here, tmp_path,
                                                             monkeypatch):
    server.add({f"/{DIT}": ZIP})
    server.ranges = False
    server.cuts = [2 ** 21] * 9
    monkeypatch.setattr(download, "RETRIES", 1)
    with pytest.raises(UserError) as error:
        run_here("dit-xl-2-512")
    assert DIT in str(error.value) and server.url in str(error.value)
    assert len(server.seen) == 2
    assert files_in(tmp_path / "weights") == {f"{DIT}.part": ZIP[:2 ** 21]}


def test_an_overloaded_server_is_asked_again(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.statuses = [503]
    run("dit-xl-2-512")
    assert files_in(tmp_path / "weights") == {DIT: ZIP}


@pytest.mark.parametrize("what, file, data, stated, words", [
    ("inception", WEIGHTS_FILE, NOISE, None, "published is 6726825d"),
    (MSE, f"{MSE}/{VAE}", safetensors(b"w"), "", "published is a1d993488569"),
    (EMA, f"{EMA}/{VAE}", safetensors(b"w"), "0" * 64, "published is 0000"),
    (EMA, f"{EMA}/{VAE}", safetensors(b"w")[:-1], "", "not a complete .safetensors file"),
    ("dit-xl-2-512", DIT, ZIP[:-1], None, "not a complete .pt file"),
    ("dit-xl-2-512", DIT, ZIP.replace(NOISE[:9], bytes(9)), None, "not a complete .pt file"),
], ids=["inception", "mse", "hub's", "safetensors cut", "zip cut", "zip CRC"])
def test_a_damaged_download_is_removed(what, file, data, stated, words, server, run, tmp_path):
    if stated is None:
        server.add({f"/{file}": data})
    else:
        server.add({on_hub(what, "config.json"): b"{}", on_hub(what, VAE): data})
        server.sha256 = {on_hub(what, VAE): stated} if stated else {}
    refused(run(what, expect=2), f"weights/{file}", words)
    assert files_in(tmp_path / "weights").keys() <= {f"{what}/config.json"}


def test_a_damaged_copy_is_named_and_left(run, server, tmp_path):
    (tmp_path / DIT).write_bytes(ZIP[:1000])
    refused(run("dit-xl-2-512", "--output", ".", expect=2), DIT, "remove it")
    assert files_in(tmp_path) == {DIT: ZIP[:1000]} and not server.seen


def test_not_found(server, run, tmp_path):
    line = refused(run(EMA, expect=2), f"weights/{EMA}/config.json", "404", "login node")
    assert server.url + on_hub(EMA, "config.json") in line
    assert server.url + on_hub(EMA, VAE) in line
    assert not files_in(tmp_path)


def test_no_server(server, run, tmp_path):
    nowhere = "http://127.0.0.1:9"
    result = run("dit-xl-2-512", "--output", "w", expect=2, MOSAICDIT_MIRROR=nowhere)
    line = refused(result, f"{nowhere}/{DIT}", f"w/{DIT}", "login node")
    assert "(Connection refused)" in re.sub(r"\[.*?\] ", "", line)
    assert not files_in(tmp_path) and not server.seen


def test_too_small_a_disk_is_reported_before_the_download(server, run, tmp_path):
    server.add({f"/{DIT}": ZIP})
    server.size = 10 ** 18
    refused(run("dit-xl-2-512", expect=2), DIT, "needs 1e+09 GB", "--output")
    assert not files_in(tmp_path)


def test_two_at_once_do_not_write_the_same_file(server, run, tmp_path):
    (tmp_path / "weights").mkdir()
    with open(tmp_path / "weights" / f"{DIT}.part", "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        refused(run("dit-xl-2-512", expect=2), f"{DIT}.part", "another")
    assert not server.seen


def test_insecure_mirrors_are_refused(run, tmp_path):
    result = run("all", expect=2, HF_ENDPOINT="http://example.org")
    refused(result, "HF_ENDPOINT=http://example.org", "https")
    assert not files_in(tmp_path)
    for url in ("https://example.org", "http://localhost", "http://127.0.0.1:8000/x"):
        assert download.SECURE_URL.match(url)
    for url in ("http://localhost.example.org", "http://localhost:80@example.org/",
                "ftp://localhost/", "file:///etc"):
        assert not download.SECURE_URL.match(url)


def test_without_a_mirror_the_addresses_are_the_public_ones(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("MOSAICDIT_MIRROR", raising=False)
    files = [file for list_files in download.PUBLIC_WEIGHTS.values() for file in list_files()]
    urls = {file.path: download.mirrored(file) for file in files}
    assert len(urls) == 12
    assert urls[f"{MSE}/config.json"] == f"https://huggingface.co{on_hub(MSE, 'config.json')}"
    assert urls["meshnet/mindgrab/model.bin"] == (
        "https://raw.githubusercontent.com/neuroneural/brainchop/"
        "4c87885f3a2a8835e260d521dcec922b58d91d41/public/models/mindgrab/model.bin")
    assert all(url.startswith("https://") for url in urls.values())
    assert all(url.endswith("/" + Path(path).name) for path, url in urls.items())
