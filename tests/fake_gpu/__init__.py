"""A GPU that is not there, for tests: `python -m tests.fake_gpu pytest tests/...`, or another module than pytest.

In such a process PyTorch sees CUDA devices of 4 GiB. Their memory is the host's, our kernels run in their emulator
(csrc/cuda/emulator.h), Triton's in its interpreter, and PyTorch's operators are those of the CPU. So everything around
the kernels is the real thing: the host's code in the CUDA library, launches and their parameters, autograd's threads,
streams, PyTorch's allocator, CUDA graphs, copies, devices. Tensors of different devices in one operator and waiting in
a capture are errors, as on a GPU.

What it cannot show: time, races between streams or threads (all work is done when it is launched), what the compiler
made of a kernel, PyTorch's own kernels, and CUDA's generator of random numbers (they come from the CPU's).
FAKE_GPUS and FAKE_GPU_PROCESSORS say how many GPUs (1), of how many processors (2).
"""
