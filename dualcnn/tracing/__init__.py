"""A tiny network's forward and backward pass as on a blackboard: every number, named.

`dualcnn.trace` runs it; the result prints as text and saves as an HTML page.
"""

from .result import LIMIT, Link, Marks, Section, Step, Total, Trace
from .run import trace

__all__ = ["LIMIT", "Link", "Marks", "Section", "Step", "Total", "Trace", "trace"]
