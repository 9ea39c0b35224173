"""What the source of the library says of fused functions and of kernels in CUDA C."""

from __future__ import annotations

import ast
import importlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from .recording import LIBRARY, Site

KERNEL_MAKERS = ("ElementwiseKernel", "ReductionKernel", "RawKernel", "RawModule")
NOT_FOR_CUPY = ("backend/numpy.py", "check/", "ops/taps.py")
"""What these fuse runs on the host alone."""


def modules() -> Iterator[tuple[pathlib.Path, str, ast.Module]]:
    """Path, name and syntax of each module that may run on CuPy."""
    for path in sorted(LIBRARY.rglob("*.py")):
        relative = path.relative_to(LIBRARY).as_posix()
        if not relative.startswith(NOT_FOR_CUPY):
            parts = ("dualcnn", *path.relative_to(LIBRARY).with_suffix("").parts)
            yield path, ".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text())


def fuse_sites() -> dict[Site, int]:
    """Where a backend's `.fuse(...)` is called: file and first line, to the last line."""
    return {
        (str(path), node.lineno): node.end_lineno or node.lineno
        for path, _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "fuse"
        and getattr(node.func.value, "id", "") != "cp"
    }


def fusible_functions() -> dict[str, set[str]]:
    """Functions whose first argument is `xp`, by full name, to the names that each one calls."""
    found = {}
    for _, module, tree in modules():
        for node in tree.body:
            arguments = isinstance(node, ast.FunctionDef) and node.args.args
            if isinstance(node, ast.FunctionDef) and arguments and arguments[0].arg == "xp":
                calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
                names = {f"{module}.{f.id}" for f in calls if isinstance(f, ast.Name)}
                found[f"{module}.{node.name}"] = names
    return found


class KernelSite(NamedTuple):
    """A kernel in CUDA C that the library makes."""

    where: str
    maker: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]


def kernel_sites(text: str, where: str, names: dict[str, Any]) -> Iterator[KernelSite]:
    """The kernels made in that source, their arguments found among the module's `names`.

    Raises `ValueError` for one whose arguments are known only while the program runs.
    """
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        maker = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if maker not in KERNEL_MAKERS:
            continue
        place = f"{where}:{node.lineno}"
        try:
            given = tuple(_value(argument, names) for argument in node.args)
            named = {str(k.arg): _value(k.value, names) for k in node.keywords}
        except NameError as error:
            raise ValueError(
                f"{place}: expected a {maker} made of constants and of what the module defines, "
                f"so that it can be compiled here: {error}"
            ) from error
        yield KernelSite(place, maker, given, named)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<kernel>", "eval"), dict(names))


def library_kernels() -> list[KernelSite]:
    found = []
    for path, module, _ in modules():
        if any(maker in path.read_text() for maker in KERNEL_MAKERS):
            names = vars(importlib.import_module(module))
            where = path.relative_to(LIBRARY.parent).as_posix()
            found += kernel_sites(path.read_text(), where, names)
    return found
