"""CuPy where there is no GPU: what can be checked with the real module and nothing launched.

The folder is not called `cuda`: NVIDIA's packages share that name, and would be hidden by it.
"""
