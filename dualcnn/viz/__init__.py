"""Pictures of what a network learned and where it errs, as matplotlib Figures.

Nothing is shown: save a Figure by `figure.savefig("name.png")`, or make it the last line of a
notebook's cell, after `%matplotlib inline`. pyplot is not used, and no setting of matplotlib is
changed. Arrays may be of any backend, Tensors, or lists. Figures take matplotlib
(`pip install matplotlib`); the functions that return arrays do without.
"""

from .confusion import confusion_counts, confusion_matrix
from .curves import training_curves
from .explain import grad_cam_map, layer_output, saliency_map
from .heat import grad_cam, saliency
from .maps import feature_maps, filters
from .worst import worst_indices, worst_predictions

__all__ = [
    "filters",
    "feature_maps",
    "training_curves",
    "confusion_matrix",
    "worst_predictions",
    "grad_cam",
    "saliency",
    "confusion_counts",
    "grad_cam_map",
    "layer_output",
    "saliency_map",
    "worst_indices",
]
