"""Layers as learners write them: loops over pixels, NumPy and nothing of dualcnn.

`convolution`, `pooling` and `dense` hold right ones; a test spoils one line of them.
"""
