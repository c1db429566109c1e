"""A GPU that is not there, for tests: `python -m tests.fake_gpu pytest tests/...`, or another module than pytest.

In such a process PyTorch sees CUDA devices of 4 GiB. Their memory is the host's, our kernels run in their emulator
(csrc/cuda/emulator.h), Triton's in its interpreter, and PyTorch's operators are those of the CPU. So everything around
the kernels is the real thing: the host's code in the CUDA library, launches and their parameters, autograd's threads,
streams, PyTorch's allocator, CUDA graphs, copies, devices. Tensors of different devices in one operator and waiting in
a capture are errors, as on a GPU.

With FAKE_GPU_CODE=compiled what the compilers made of the kernels runs instead: nvcc's PTX, which the extension holds,
and Triton's, compiled for the GPU that FAKE_GPU_ARCHITECTURE names (90, or 80, 86, 120), both in a machine for PTX
(ptx/). Every address is looked up among what is allocated: with PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is a block
of its own.
FAKE_GPU_COUNTS names a file for what launches executed, by opcode (and by line, where nvcc was asked for -lineinfo);
FAKE_GPU_LISTING one for how often each instruction ran, and bank conflicts; FAKE_GPU_PTX another file of cuobjdump's,
or nvcc's, to run; FAKE_GPU_REVERSED=1 runs blocks and warps in the opposite order, FAKE_GPU_TIMED=1 says where warps
wait (benchmarks.gpu_waiting).

What it cannot show: time, races between streams or threads (all work is done when it is launched), what ptxas
makes of PTX, PyTorch's own kernels, and CUDA's generator of random numbers (they come from the CPU's).
FAKE_GPUS and FAKE_GPU_PROCESSORS say how many GPUs (1), of how many processors (2).
"""
