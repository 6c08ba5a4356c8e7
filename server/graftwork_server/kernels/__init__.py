"""Kernels for the CPU in C++ and for CUDA in Triton, each beside a plain torch reference.

`build.load_kernels()` compiles those in C++ once and registers `torch.ops.graftwork.*`. Functions
here use them when they are registered and the tensors are on the CPU; on CUDA the low-rank pairs
have a Triton kernel (`triton_low_rank.py`) and all else its reference.
"""
