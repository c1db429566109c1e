// The kernel that scales results, and its launch.
#include "../scaling.h"
#include "device.h"
#include "kernels.h"

namespace l2t_fast::cuda {
namespace {

__global__ void __launch_bounds__(threads) scaling_kernel(const __grid_constant__ SomeScaled some) {
  Device device(nullptr);
  scale(device, some);
}

}  // namespace

cudaError_t launch_scaling(const SomeScaled& some, int blocks, cudaStream_t stream) {
  scaling_kernel<<<blocks, threads, 0, stream>>>(some);
  return cudaPeekAtLastError();
}

}  // namespace l2t_fast::cuda
