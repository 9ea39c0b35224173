"""Files from public mirrors, accepted by the SHA-256 of what they hold and by nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .files import write_file
from .idx import DataFormatError, Source, open_content, source_name

__all__ = ["DownloadError", "RemoteFile", "cache_dir", "download", "read_verified"]

_CHUNK = 2**16
_TIMEOUT = 30.0


class DownloadError(OSError):
    """No mirror gave the file; says what each one answered and what to do."""


class RemoteFile(NamedTuple):
    """A file under gzip that mirrors offer: its name, its unpacked size, and its SHA-256.

    The hash is of the unpacked content: mirrors compress the same content differently.
    """

    name: str
    size: int
    sha256: str


def cache_dir() -> Path:
    """The folder for downloads: $DUALCNN_CACHE, else dualcnn in the user's cache folder (XDG)."""
    if own := os.environ.get("DUALCNN_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dualcnn"


def read_verified(source: Source, file: RemoteFile, name: str | None = None) -> bytes:
    """The content of `source` (a path or bytes, plain or under gzip), if it is `file`'s.

    Raises DataFormatError where it isn't. No more than file.size + 1 bytes are unpacked.
    """
    import hashlib

    label = source_name(source, name)
    with open_content(source, label) as (stream, _):
        content = stream.read(file.size + 1)
    expected = f"{label}: expected the {file.size} bytes of {file.name}"
    if len(content) != file.size:
        found = f"more than {file.size}" if len(content) > file.size else len(content)
        raise DataFormatError(f"{expected}, found {found}")
    if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise DataFormatError(f"{expected}, SHA-256 {file.sha256}, found other content, {found}")
    return content


def download(file: RemoteFile, folder: Path, mirrors: Iterable[str]) -> bytes:
    """Fetch `file` from the first mirror that has it whole into `folder`; return its content.

    mirrors: the addresses of folders. The file takes its name in `folder` only when it is complete
    and verified, so processes may download the same file at once. Raises DownloadError when no
    mirror has it.
    """
    import logging
    from http.client import HTTPException

    answers = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}"
        logging.getLogger("dualcnn").info("downloading %s", url)
        try:
            archive = _get(url, limit=file.size + 2**16)
            content = read_verified(archive, file, name=url)
        except (OSError, HTTPException, DataFormatError) as error:
            answers.append(f"  {url}: {str(error).removeprefix(f'{url}: ') or repr(error)}")
            continue
        _write(folder / file.name, archive)
        return content
    raise DownloadError(
        "\n".join([f"could not download {file.name}; the mirrors said:", *answers])
        + f"\nWithout a network: copy {file.name} from another machine into a folder named mnist, "
        "and set DUALCNN_DATA to the folder above it, or give that folder as root (the command "
        "dualcnn: as --data-dir). The digits of mnist5k need no download."
    )


def _get(url: str, limit: int) -> bytes:
    from urllib.request import Request, urlopen

    with urlopen(Request(url, headers={"User-Agent": "dualcnn"}), timeout=_TIMEOUT) as response:
        declared = response.headers.get("Content-Length", "")
        parts, size = [], 0
        while size <= limit and (part := response.read(_CHUNK)):
            parts.append(part)
            size += len(part)
    body = b"".join(parts)
    if size > limit:
        raise DataFormatError(f"expected at most {limit} bytes, found more")
    if declared.isdigit() and size < int(declared):
        raise DataFormatError(
            f"expected {declared} bytes, found {size}: the transfer was cut short"
        )
    if body[:512].lstrip().startswith(b"<"):
        raise DataFormatError("expected a file under gzip, found a web page (HTML or XML)")
    return body


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, data)
    except OSError as error:
        raise DownloadError(
            f"could not write {target}: {error}; set DUALCNN_CACHE, or root (the command dualcnn: "
            "--data-dir), to a folder that can be written"
        ) from error
