"""Proof for your own code: gradients by differences, layers against the library's.

`gradcheck` compares the gradients of anything on the tape with central differences. `layer` grades
a forward and a backward in plain NumPy, and names the likely mistake. `lockstep` runs a model on
two backends, operation by operation, and names the one at which they part.
"""

from .drift import Lockstep
from .gradcheck import GradcheckError, gradcheck
from .grade import layer
from .lockstep import LockstepError, lockstep
from .report import Example, Finding, Report
from .side import Side

__all__ = [
    "Example",
    "Finding",
    "GradcheckError",
    "Lockstep",
    "LockstepError",
    "Report",
    "Side",
    "gradcheck",
    "layer",
    "lockstep",
]
