"""Downloads that a user asked for: over https, resumable, checked before they appear under their name."""

from __future__ import annotations

import errno
import fcntl
import http.client
import sys
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from tqdm import tqdm

from daps_robot.data.demos import file_sha256
from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError

_SCHEME = "https://"
_BLOCK = 2**20


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
            part.replace(path)
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


def _opener() -> OpenerDirector:
    return build_opener(_SameScheme)


def _allowed(url: str) -> str:
    if not url.startswith(_SCHEME):
        raise DataError(f"{url} is not an {_SCHEME} address; nothing is downloaded from it.")
    return url
