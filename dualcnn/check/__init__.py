"""Proof for your own code: gradients by differences, layers against the library's.

`gradcheck` compares the gradients of anything on the tape with central differences. `layer` grades
a forward and a backward in plain NumPy, and names the likely mistake.
"""

from .gradcheck import GradcheckError, gradcheck
from .grade import layer
from .report import Example, Finding, Report

__all__ = ["Example", "Finding", "GradcheckError", "Report", "gradcheck", "layer"]
