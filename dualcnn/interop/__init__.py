"""Other systems' formats: weights as safetensors files."""

from ..data.files import write_file
from .safetensors import WeightsError, load, read, save

__all__ = ["WeightsError", "load", "read", "save", "write_file"]
