"""Downloads that a user asked for: over https, resumable, checked before they appear under their name."""

from __future__ import annotations

import errno
import fcntl
import http.client
import re
import sys
from email.message import Message
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from tqdm import tqdm

from daps_robot.atomic import rename_whole
from daps_robot.data.demos import file_sha256
from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError

_SCHEME = "https://"
_BLOCK = 2**20
_HUB_BYTES = 4 * 2**30


class HubFile(NamedTuple):
    """A file of a Hugging Face repository at a commit, with the SHA-256 and the size that the hub states for it."""

    url: str
    sha256: str
    size: int


def hub_file(repository: str, name: str) -> HubFile:
    """Asks the hub for a file's present version, without fetching it.

    The hub files large objects under their SHA-256, and names it in its own answer; the bytes then come from a storage service.
    So the checksum tells whether these are the bytes that the repository holds. It is no promise that those never change.

    Args:
        repository: its https address.
        name: path of the file in it.

    Raises:
        DataError: no network, no such file, or one for which no checksum is stated.
    """
    url = f"{repository}/resolve/main/{name}"
    by_hand = f"try again when there is a network, or fetch {url} by other means and pass its path as --dataset"
    try:
        headers = _head(url)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"cannot ask for {url} ({short(error)}): {by_hand}.") from error
    commit, sha256, size = (headers.get(key, "").strip('"') for key in ("X-Repo-Commit", "X-Linked-ETag", "X-Linked-Size"))
    stated = re.fullmatch("[0-9a-f]{40}", commit) and re.fullmatch("[0-9a-f]{64}", sha256) and re.fullmatch(r"\d{1,10}", size)
    if not stated or int(size) > _HUB_BYTES:
        raise DataError(f"{url}: the hub states no commit, checksum and size (below 4 GiB) for it: {by_hand}.")
    return HubFile(f"{repository}/resolve/{commit}/{name}", sha256, int(size))


def _head(url: str) -> Message:
    """The headers of an address itself, wherever it redirects to."""
    try:
        with build_opener(_NoRedirect).open(Request(_allowed(url), method="HEAD"), timeout=30) as response:
            return response.headers
    except HTTPError as error:
        if error.code in (301, 302, 303, 307, 308):
            return error.headers
        raise


def download(url: str, path: Path, sha256: str, size: int) -> None:
    """Fetches a file to `<name>.part`, going on where an earlier attempt stopped, and gives it its name when it is right.

    Args:
        url: an https address; redirects to anything else are not followed.
        path: of the file to be.
        sha256: of its content, in hexadecimal.
        size: bytes that it has at most.

    Raises:
        DataError: no network or disk space (what has come is kept for the next attempt), or other bytes than expected (then
            not), or another process is downloading the same.
    """
    part = path.with_name(f"{path.name}.part")
    by_hand = f"or fetch {url} by other means and put it at {path}"
    print(f"downloading {url} to {path}", flush=True)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _receive(url, file, size)
            if (found := file_sha256(part)) != sha256:
                part.unlink()
                raise DataError(f"{url} gave other bytes than expected (SHA-256 {found}, not {sha256}): try again, {by_hand}.")
            rename_whole(part, path)
    except BlockingIOError as error:
        raise DataError(f"{part}: another process is downloading it; wait for that.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"no space left for {part}: free {size / 2**20:.0f} MiB and try again.") from error
        raise DataError(f"cannot download {url} ({short(error)}): try again when there is a network, {by_hand}.") from error


def _receive(url: str, file: IO[bytes], size: int) -> None:
    """Appends what is still missing."""
    before = file.tell()
    try:
        response = _opener().open(Request(_allowed(url), headers={"Range": f"bytes={before}-"} if before else {}), timeout=30)
    except HTTPError as error:
        if error.code == 416:  # nothing is missing, or nothing fits: the checksum will tell
            return
        raise
    with response:
        if before and not response.headers.get("Content-Range", "").startswith(f"bytes {before}-"):
            file.truncate(before := 0)  # this server sends all of it again
        expected = before + int(response.headers.get("Content-Length", 0))
        with tqdm(total=expected or None, initial=before, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            while block := response.read(_BLOCK):
                before += len(block)
                if before > size:
                    file.truncate(0)
                    raise DataError(f"{url} sends more than the {size} bytes expected; is it still the right address?")
                file.write(block)
                bar.update(len(block))
    file.flush()
    if before < expected:
        raise ConnectionError(f"broke off after {before} of {expected} bytes")


class _SameScheme(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        return super().redirect_request(req, fp, code, msg, headers, _allowed(newurl))


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _opener() -> OpenerDirector:
    return build_opener(_SameScheme)


def _allowed(url: str) -> str:
    if not url.startswith(_SCHEME):
        raise DataError(f"{url} is not an {_SCHEME} address; nothing is downloaded from it.")
    return url
