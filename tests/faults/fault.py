"""A mistake that can be put into the library's source."""

from __future__ import annotations

import ast
import pathlib
from dataclasses import dataclass


class CatalogueError(Exception):
    """A fault that does not fit the library as it is now."""


@dataclass(frozen=True)
class Fault:
    """A human mistake: in `file`, below dualcnn/, the text `right` reads `wrong`.

    `tests` are the files, or `file::test`, below tests/ that should notice, divided by spaces.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: str
    backend: str = "numpy"

    def source(self, package: pathlib.Path) -> str:
        """The file with the mistake in it; raises `CatalogueError` where there is no one place."""
        text = (package / self.file).read_text(encoding="utf-8")
        if text.count(self.right) != 1:
            raise CatalogueError(
                f"{self.name}: expected its text once in dualcnn/{self.file}, found it "
                f"{text.count(self.right)} times: {self.right!r}"
            )
        return text.replace(self.right, self.wrong)

    def targets(self) -> list[str]:
        """What pytest is to run first."""
        return [f"tests/{target}" for target in self.tests.split()]

    def where(self, package: pathlib.Path) -> str:
        """The dotted name of the module, class or function that the mistake is in."""
        text = (package / self.file).read_text(encoding="utf-8")
        start = text.index(self.right)
        line = text.count("\n", 0, start + len(self.right) - len(self.right.lstrip())) + 1
        name = self.file.removesuffix(".py").replace("/", ".")
        node: ast.AST = ast.parse(text)
        while True:
            inner = next((n for n in ast.walk(node) if n is not node and _holds(n, line)), None)
            if inner is None:
                return name
            node, name = inner, f"{name}.{inner.name}"


def _holds(node: ast.AST, line: int) -> bool:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return isinstance(node, kinds) and node.lineno <= line <= (node.end_lineno or 0)
