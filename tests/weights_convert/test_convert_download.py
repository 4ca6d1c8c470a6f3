"""Fetching public files, from a host of our own that behaves well and badly."""

import functools
import hashlib
import http.server
import json
import re
import threading

import numpy as np
import pytest

from fmi_jax.errors import UserError
from fmi_jax.models.base import WeightsSource
from fmi_jax.models.registry import BACKBONES
from weights_convert.download import download

CONTENT = np.random.default_rng(29).bytes(3_000_017)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Host(http.server.BaseHTTPRequestHandler):
    """Serves one file with ranges; `state` says how it behaves and what it was asked."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        state = self.state
        state["asked"].append(self.headers.get("Range"))
        if status := state.get("status"):
            self.send_error(status)
            return
        content, start = state["content"], 0
        tag = hashlib.sha256(content).hexdigest()
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content[start:][: state.get("cut")])

    def log_message(self, *args):
        pass


@pytest.fixture
def host():
    state = {"content": CONTENT, "asked": []}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Host, state))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state["url"] = f"http://127.0.0.1:{server.server_port}/files/model.pth"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def source(host, sha256=None):
    return WeightsSource(
        tag="t", url=host["url"], sha256=sha256, layout="deit", licence="Apache-2.0"
    )


def files(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256[:8]])
def test_fetched_once(host, tmp_path, sha256):
    seen = []
    path = download(source(host, sha256), tmp_path / "cache", lambda *now: seen.append(now))
    assert path == tmp_path / "cache" / host["url"].removeprefix("http://")
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert download(source(host, sha256), tmp_path / "cache") == path
    assert host["asked"] == [None]
    assert files(tmp_path) == ["checksums.json", "model.pth"]
    records = tmp_path / "cache" / "checksums.json"
    assert json.loads(records.read_text()) == {host["url"]: SHA256}


def test_files_of_one_name_are_kept_apart(host, tmp_path):
    first = download(source(host), tmp_path)
    host |= {"content": CONTENT[::-1], "url": host["url"].replace("files", "others")}
    assert download(source(host), tmp_path).read_bytes() == CONTENT[::-1]
    assert first.read_bytes() == CONTENT


def test_a_cut_transfer_goes_on_where_it_stopped(host, tmp_path):
    for sent in (1_000_003, 1_000_003):
        host["cut"] = sent
        with pytest.raises(UserError, match=r"cut after \d+ of 3000017 bytes.*same command again"):
            download(source(host, SHA256), tmp_path)
        assert "model.pth" not in files(tmp_path)
    host["cut"] = None
    assert download(source(host, SHA256), tmp_path).read_bytes() == CONTENT
    assert host["asked"] == [None, "bytes=1000003-", "bytes=2000006-"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(host, tmp_path):
    host["cut"] = 1_000_003
    with pytest.raises(UserError, match="cut after"):
        download(source(host), tmp_path)
    host |= {"cut": None, "content": CONTENT[::-1]}
    assert download(source(host), tmp_path).read_bytes() == CONTENT[::-1]


def test_a_wrong_checksum_leaves_nothing(host, tmp_path):
    with pytest.raises(UserError, match="the published one is 00000000"):
        download(source(host, "00000000"), tmp_path)
    assert files(tmp_path) == []


def test_what_was_recorded_first_holds(host, tmp_path):
    path = download(source(host), tmp_path)
    path.write_bytes(CONTENT[:-1])  # damaged on disk
    with pytest.raises(UserError, match=r"recorded in .*checksums\.json"):
        download(source(host), tmp_path)
    assert download(source(host), tmp_path).read_bytes() == CONTENT
    path.unlink()
    host["content"] = CONTENT[::-1]  # another file under the same address
    for _ in range(2):
        with pytest.raises(UserError, match=r"recorded in .*checksums\.json.*only if you trust"):
            download(source(host), tmp_path)
        assert files(tmp_path) == ["checksums.json"]


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"a": 1}', b"{\xff"])
def test_a_damaged_record_is_no_reason_to_trust(host, tmp_path, damage):
    path = download(source(host), tmp_path)
    (tmp_path / "checksums.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"checksums\.json is damaged .*remove it"):
        download(source(host), tmp_path)
    assert path.read_bytes() == CONTENT


def test_published_files_come_by_a_sealed_channel():
    sources = [source for spec in BACKBONES.values() for source in spec.sources]
    assert sources
    assert not [source.url for source in sources if not source.url.startswith("https://")]
    for each in sources:
        assert each.sha256 is None or re.fullmatch("[0-9a-f]{8,64}", each.sha256), each.url


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_host_that_refuses_is_quoted(host, tmp_path, status):
    host["status"] = status
    with pytest.raises(UserError, match=f"the host answered {status} .*--checkpoint FILE"):
        download(source(host), tmp_path)
    assert files(tmp_path) == []


def test_no_network_is_said_clearly(tmp_path):
    nowhere = WeightsSource(
        tag="t",
        url="http://127.0.0.1:9/model.pth",
        sha256=None,
        layout="deit",
        licence="Apache-2.0",
    )
    with pytest.raises(UserError, match=r"cannot reach 127\.0\.0\.1 .*--checkpoint FILE"):
        download(nowhere, tmp_path)
