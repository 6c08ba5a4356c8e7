"""C++ kernels for the CPU, each beside a plain torch reference that is also the CUDA path.

`build.load_kernels()` compiles them once and registers `torch.ops.graftwork.*`. Functions here use
an op when it is registered and the tensors are on the CPU, and their reference otherwise.
"""
