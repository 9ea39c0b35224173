"""`dualcnn info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from .. import __version__, backend
from ..data.download import cache_dir
from ..data.mnist import find_mnist
from .errors import UserError
from .resources import choose_backend, thread_count

__all__ = ["info"]


def info() -> int:
    """Show versions, backends, threads, memory and data."""
    print(f"dualcnn {__version__}, Python {platform.python_version()}, {platform.platform()}")
    packages = ("numpy", "array-api-compat", "safetensors", "threadpoolctl")
    optional = ("Pillow", "matplotlib", "tqdm")
    print("packages: " + ", ".join(f"{name} {_version(name)}" for name in (*packages, *optional)))
    try:
        be = choose_backend(None)
    except UserError as error:
        be = backend.get("cpu")
        print(error)
    print(f"backend in use: {be.name} on {be.device}")
    for status in backend.available().values():
        print(f"  {status}")
    setting = os.environ.get("DUALCNN_THREADS")
    source = f"DUALCNN_THREADS={setting}" if setting else "the cores this process may use"
    print(f"threads: {thread_count()} ({source}) of {os.cpu_count()} cores")
    for library in _blas():
        print(f"  BLAS: {library}")
    print(f"memory: {_memory()}")
    print("data:")
    print("  mnist5k: comes with dualcnn")
    print(f"  mnist: {_mnist()}")
    print(f"  DUALCNN_DATA: {os.environ.get('DUALCNN_DATA') or 'not set'}; cache: {cache_dir()}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    return [
        f"{found['internal_api']} {found['version']} ({found.get('architecture', 'unknown')}), "
        f"{found['num_threads']} thread(s)"
        for found in threadpool_info()
        if found["user_api"] == "blas"
    ]


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "unknown on this system"
    return f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"


def _mnist() -> str:
    files = find_mnist()
    found = [path for path in files.values() if path is not None]
    if not found:
        return "not found in DUALCNN_DATA or the cache; --data mnist downloads it"
    folders = ", ".join(sorted({str(path.parent) for path in found}))
    if len(found) < len(files):
        return (
            f"{len(found)} of {len(files)} files found in {folders}; "
            "--data mnist downloads the others"
        )
    return f"found in {folders}"
