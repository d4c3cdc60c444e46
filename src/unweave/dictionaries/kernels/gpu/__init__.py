"""Triton kernels for CUDA: imported only where a tensor is there and Triton is installed."""
