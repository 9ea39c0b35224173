"""A function computed anew by the calls that its first runs made, without Python between them.

A step of a small net is mostly Python: layers that look for their arguments, shapes that are
checked, a tape that is written and read. All of it comes out the same every time. `capture` notes
what calls of the backend a function of arrays makes, forward and backward, and then makes those.
That is what `torch.cuda.make_graphed_callables` does with CUDA graphs, here on any backend.
"""

from ..backend.calls import CaptureError
from .function import Captured, capture

__all__ = ["CaptureError", "Captured", "capture"]
