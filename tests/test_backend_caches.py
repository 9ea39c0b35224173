"""What Linux tells of the caches, and what parts make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualcnn.backend import caches
from dualcnn.backend.numpy import block_bytes


def described(core: Path, *found: tuple[str, str]) -> Path:
    for number, (level, size) in enumerate(found):
        cache = core / f"index{number}"
        cache.mkdir()
        (cache / "level").write_text(f"{level}\n")
        (cache / "size").write_text(f"{size}\n")
    return core


def test_the_second_level_counts(tmp_path: Path) -> None:
    core = described(tmp_path, ("1", "32K"), ("1", "32K"), ("2", "512K"), ("3", "32768K"))
    assert caches.private_cache(core) == 512 * 1024


def test_megabytes(tmp_path: Path) -> None:
    assert caches.private_cache(described(tmp_path, ("2", "2M"))) == 2 * 1024 * 1024


@pytest.mark.parametrize("found", [(), (("1", "32K"),), (("2", ""),), (("2", "unknown"),)])
def test_what_is_not_told(tmp_path: Path, found: tuple[tuple[str, str], ...]) -> None:
    assert caches.private_cache(described(tmp_path, *found)) is None


def test_an_entry_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "index0").mkdir()
    (tmp_path / "index1").mkdir()
    (tmp_path / "index1" / "level").write_text("2")
    (tmp_path / "index1" / "size").write_text("1024K")
    assert caches.private_cache(tmp_path) == 1024 * 1024


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert caches.private_cache(tmp_path / "nowhere") is None


def test_parts_that_leave_a_small_cache_anyway_are_larger() -> None:
    assert block_bytes(512 * 1024) == 2 * 1024 * 1024
    assert block_bytes(1024 * 1024) == block_bytes(2048 * 1024) == 1024 * 1024
    assert block_bytes(None) == 1024 * 1024
