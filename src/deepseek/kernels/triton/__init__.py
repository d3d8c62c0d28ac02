"""Triton kernels for NVIDIA GPUs. Importing this package imports no Triton; its modules do."""
