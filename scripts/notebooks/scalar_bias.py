"""A layer that only one of the notebooks has."""

from __future__ import annotations

from typing import Any

from dualcnn import backend, nn


class ScalarBias(nn.Module):
    """One number, learned, added to all outputs of a layer; it starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        be = backend.current()
        self.bias = nn.Parameter(be.zeros((1,), be.dtype("float32")))

    def forward(self, input: Any) -> Any:
        return input + self.bias
