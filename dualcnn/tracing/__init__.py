"""A tiny network's forward and backward pass as on a blackboard: every number, named.

`dualcnn.trace` runs it; the result prints as text and saves as an HTML page.
"""

from .result import Link, Marks, Section, Step, Trace
from .run import trace

__all__ = ["Link", "Marks", "Section", "Step", "Trace", "trace"]
