"""Public checkpoints, fetched once.

A transfer that was cut goes on where it stopped. Where the publisher gives a checksum the file
must have it; otherwise the one of the first transfer is recorded beside the file, and what lies
in the cache must agree with it ever after.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from fmi_jax import atomic
from fmi_jax.errors import UserError
from fmi_jax.models.base import WeightsSource

_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 20


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/fmi_jax`, by default `~/.cache/fmi_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmi_jax"


def download(
    source: WeightsSource,
    cache: Path,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Path:
    """The file of `source` below the folder `cache`, fetched unless it is there.

    It lies under host and path of its address: many publishers call it `model.safetensors`.

    Args:
      source: checkpoint to fetch.
      cache: folder of fetched files; made if it is not there.
      progress: called with the bytes that are there and, where known, all there will be.

    Raises:
      UserError: the host cannot be reached, refuses, or breaks off; or the file does not have
        its checksum.
    """
    address = urlsplit(source.url)
    path = cache / address.netloc / address.path.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        part = path.with_name(path.name + ".part")
        _transfer(source.url, part, progress)
        _verify(source, part, cache)
        os.replace(part, path)
    else:
        _verify(source, path, cache)
    return path


def _transfer(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    """Bring `part` to its full length."""
    version = part.with_name(part.name + ".etag")  # which version of the file `part` is of
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    if done and version.exists():
        # Another version by now: If-Range makes the host send it from the start.
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", version.read_text())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            if response.status != 206:
                done = 0
            length = response.headers.get("Content-Length")
            total = None if length is None else done + int(length)
            if etag := response.headers.get("ETag") or response.headers.get("Last-Modified"):
                version.write_text(etag)
            else:
                version.unlink(missing_ok=True)
            with part.open("ab" if done else "wb") as file:
                progress(done, total)
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is left to send
            version.unlink(missing_ok=True)
            return
        raise UserError(
            f"{url}: the host answered {error.code} {error.reason}. If the file has moved or"
            " needs a licence click, fetch it with a browser and pass --checkpoint FILE."
        ) from error
    except urllib.error.URLError as error:
        raise UserError(
            f"{url}: cannot reach {urlsplit(url).hostname} ({error.reason}). Without a"
            " network, fetch the file elsewhere and pass --checkpoint FILE."
        ) from error
    except (HTTPException, OSError) as error:
        raise _cut(url, done, None, str(error)) from error
    if total is not None and done != total:
        raise _cut(url, done, total, "the connection closed")
    version.unlink(missing_ok=True)


def _cut(url: str, done: int, total: int | None, reason: str) -> UserError:
    of = "" if total is None else f" of {total}"
    return UserError(
        f"{url}: cut after {done}{of} bytes ({reason}). Run the same command again: it goes on"
        " from there."
    )


def _verify(source: WeightsSource, path: Path, cache: Path) -> None:
    """Check `path` against the published checksum, or the recorded one; or record it."""
    records = cache / "checksums.json"
    known = _recorded(records)
    sha256 = atomic.sha256(path)
    expected = source.sha256 or known.get(source.url, sha256)
    if not sha256.startswith(expected):
        path.unlink()
        origin, way_out = "published", ""
        if source.sha256 is None:
            origin, way_out = (
                f"recorded in {records}",
                (
                    " If it is the same again, the publisher has replaced the file: remove its line"
                    " from that record only if you trust the new one."
                ),
            )
        raise UserError(
            f"{source.url}: its sha256 is {sha256}, but the {origin} one is {expected}."
            f" Removed {path.name}; run the same command again to fetch it anew.{way_out}"
        )
    if source.url not in known:
        known[source.url] = sha256
        atomic.write_json(records, known, indent=1, sort_keys=True)


def _recorded(records: Path) -> dict[str, str]:
    """Read the checksums of first transfers, by address."""
    if not records.exists():
        return {}
    try:
        known = json.loads(records.read_bytes())
        if not isinstance(known, dict) or not all(isinstance(x, str) for x in known.values()):
            raise ValueError("expected one checksum for each address")
    except ValueError as error:
        raise UserError(
            f"{records} is damaged ({error}): it says what was fetched here before. Mend it, or"
            " remove it to have the checksums recorded anew."
        ) from error
    return known
