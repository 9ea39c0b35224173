"""The library held to PyTorch: its sample inputs, its modules and optimizers, and following it."""
