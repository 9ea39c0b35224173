"""Files that are whole or absent, whenever the writer is killed."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Put `content` at `path` in one step; a file that was there stays whole until then.

    The content is written beside the target and flushed to the disk before it takes the name.
    Raises OSError, which names `path`, where that can't be done; nothing is left behind then.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        try:
            with open(part, "xb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise type(error)(
            error.errno, f"could not write it, {error.strerror}", str(target)
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut; Windows offers no way and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
