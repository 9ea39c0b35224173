"""Proof for your own code: gradients by differences, layers against the library's.

`gradcheck` compares the gradients of anything on the tape with central differences. `layer` grades
a forward and a backward in plain NumPy, `optimizer` an update rule, and each names the likely
mistake. `parameters` looks at initial weights, `evaluation` at a network's answers. `lockstep` runs
a model on two backends, operation by operation, and names the one at which they part.
"""

from .drift import Lockstep
from .evaluation import evaluation
from .gradcheck import GradcheckError, gradcheck
from .grade import layer
from .lockstep import LockstepError, lockstep
from .parameters import parameters
from .report import Example, Finding, Report
from .side import Side
from .style import Style
from .update import optimizer

__all__ = [
    "Example",
    "Finding",
    "GradcheckError",
    "Lockstep",
    "LockstepError",
    "Report",
    "Side",
    "Style",
    "evaluation",
    "gradcheck",
    "layer",
    "lockstep",
    "optimizer",
    "parameters",
]
