"""The command `dualcnn`: train a network, evaluate it, use it, show its numbers, and say what this
machine offers.
"""

from .main import main

__all__ = ["main"]
