"""Downloads, from a server on this machine that may break off, redirect or lie. Plain http stands in for https."""

import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from daps_robot.data import download as module
from daps_robot.data.download import download, hub_file
from daps_robot.errors import DataError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole ignores ranges; /ranges does not; /broken stops in the middle; /elsewhere redirects to another scheme."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked[6:-1]) if asked and self.path == "/ranges" else 0
        body = CONTENT[start:]
        if self.path in ("/elsewhere", "/here"):
            self.send_response(302)
            self.send_header("Location", "https://127.0.0.1/" if self.path == "/elsewhere" else "/ranges")
        elif self.path == "/none":
            self.send_response(404)
        elif not body:
            self.send_response(416)
        else:
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if self.path in ("/whole", "/ranges"):
            self.wfile.write(body)
        elif self.path == "/broken":
            self.wfile.write(body[:3000])

    def do_HEAD(self):
        """The hub's answers: /resolve/main/… redirects to a storage service, and states checksum and commit itself."""
        self.send_response({"big": 200, "private": 401}.get(self.path.rpartition("/")[2], 302))
        size = {"big": 5 * 2**30, "many": "9" * 99}.get(self.path.rpartition("/")[2], len(CONTENT))
        stated = {"X-Repo-Commit": "c" * 40, "X-Linked-ETag": f'"{SHA256}"', "X-Linked-Size": str(size)}
        for key, value in stated.items() if not self.path.endswith("small") else ():
            self.send_header(key, value)
        self.send_header("Location", "https://127.0.0.1:9/storage")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_SCHEME", "http://")
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.url = [], f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "file.bin"


def left(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_a_file_is_there_when_it_is_right(server, path):
    download(f"{server.url}/whole", path, SHA256, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert left(path) == ["file.bin"]
    assert server.ranges == [None]


def test_an_interrupted_download_goes_on(server, path):
    with pytest.raises(DataError, match="try again"):
        download(f"{server.url}/broken", path, SHA256, len(CONTENT))
    assert left(path) == ["file.bin.part"]
    assert (path.parent / "file.bin.part").read_bytes() == CONTENT[:3000]
    download(f"{server.url}/here", path, SHA256, len(CONTENT))
    assert (path.read_bytes(), left(path)) == (CONTENT, ["file.bin"])
    assert server.ranges[-1] == "bytes=3000-"  # after the redirect


@pytest.mark.parametrize("place", ["/whole", "/ranges"])
@pytest.mark.parametrize("already", [b"", CONTENT[:500], CONTENT])
def test_what_is_there_already_is_used_where_the_server_allows_it(server, path, place, already):
    path.parent.mkdir()
    (path.parent / "file.bin.part").write_bytes(already)
    download(server.url + place, path, SHA256, len(CONTENT))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("already", [b"", b"other", CONTENT + b"more"])
def test_wrong_bytes_are_deleted(server, path, already):
    path.parent.mkdir()
    (path.parent / "file.bin.part").write_bytes(already)
    with pytest.raises(DataError, match=f"other bytes than expected.*put it at {path}"):
        download(f"{server.url}/ranges", path, SHA256 if already else "0" * 64, 2 * len(CONTENT))
    assert left(path) == []


def test_more_than_expected_is_not_taken(server, path):
    with pytest.raises(DataError, match="more than the 5000 bytes"):
        download(f"{server.url}/whole", path, SHA256, 5000)
    assert (path.parent / "file.bin.part").stat().st_size == 0


def test_only_the_expected_scheme(server, path, monkeypatch):
    with pytest.raises(DataError, match=r"https://127.0.0.1/ is not an http:// address"):
        download(f"{server.url}/elsewhere", path, SHA256, 5000)
    monkeypatch.undo()
    for url in (f"{server.url}/whole", "ftp://127.0.0.1/x", "file:///etc/passwd"):
        with pytest.raises(DataError, match="is not an https:// address"):
            download(url, path, SHA256, 5000)


def test_no_network_no_page_no_space_no_second_download(server, path, monkeypatch):
    with pytest.raises(DataError, match=r"HTTP Error 404.*try again"):
        download(f"{server.url}/none", path, SHA256, 5000)
    with pytest.raises(DataError, match=r"cannot download http://127.0.0.1:9/x .*refused.*or fetch"):
        download("http://127.0.0.1:9/x", path, SHA256, 5000)

    def second(url, file, size):
        download(f"{server.url}/whole", path, SHA256, 2**20)

    monkeypatch.setattr(module, "_receive", second)
    with pytest.raises(DataError, match="another process"):
        download(f"{server.url}/whole", path, SHA256, 2**20)

    def full(url, file, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(DataError, match=r"no space left .* free 1 MiB"):
        download(f"{server.url}/whole", path, SHA256, 2**20)


def test_the_hub_is_asked_for_checksum_and_commit(server):
    found = hub_file(f"{server.url}/datasets/a/b", "v1/low_dim.hdf5")
    assert found == (f"{server.url}/datasets/a/b/resolve/{'c' * 40}/v1/low_dim.hdf5", SHA256, len(CONTENT))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small", "states no commit, checksum and size"),  # not in its store of large files
        ("big", "below 4 GiB"),
        ("many", "below 4 GiB"),
        ("private", "HTTP Error 401"),
    ],
)
def test_without_a_checksum_from_the_hub_nothing_is_fetched(server, name, message):
    with pytest.raises(DataError, match=f"{message}.*pass its path as --dataset"):
        hub_file(f"{server.url}/datasets/a/b", name)


def test_no_hub_in_reach(server):
    with pytest.raises(DataError, match=r"cannot ask for http://127.0.0.1:9/a/resolve/main/b .*by other means"):
        hub_file("http://127.0.0.1:9/a", "b")
    with pytest.raises(DataError, match="is not an http:// address"):
        hub_file("ftp://127.0.0.1/a", "b")
