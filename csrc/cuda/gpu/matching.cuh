// A kernel for each derivative, and its launch.
#pragma once

#include "../differences.h"
#include "../gradients.h"
#include "../sums.h"
#include "device.h"
#include "kernels.h"

namespace l2t_fast::cuda {

// Two blocks a processor, so that one computes while the other waits for memory: where shared memory is enough for
// two, and not for three products of tf32, which take too many registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class Mode>
inline constexpr int blocks_at_once = 1;
#else
template <class Mode>
inline constexpr int blocks_at_once = 2;
template <>
inline constexpr int blocks_at_once<Tf32x3> = 1;
#endif

template <class Mode>
__global__ void __launch_bounds__(threads) pack_kernel(const Problem* problem, Launch launch) {
  Device device(nullptr);
  pack<Mode>(device, *problem, launch);
}

template <class Mode, bool second>
__global__ void __launch_bounds__(threads, blocks_at_once<Mode>)
    differences_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  differences<Mode, second>(device, *problem, launch);
}

template <class Mode>
__global__ void __launch_bounds__(threads, blocks_at_once<Mode>)
    gradients_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gradients<Mode>(device, *problem, launch);
}

static __global__ void __launch_bounds__(threads) finish_kernel(const Problem* problem, Launch launch) {
  __shared__ __align__(16) unsigned char shared[threads * sizeof(float)];
  Device device(shared);
  finish(device, *problem, launch);
}

template <class Mode>
cudaError_t launch_matching(bool second, const Problem* problem, const Launch& launch, cudaStream_t stream) {
  using Function = void (*)(const Problem*, Launch);
  const bool multiplies = launch.kernel == Kernel::differences || launch.kernel == Kernel::gradients;
  const Function function = launch.kernel == Kernel::pack        ? Function(pack_kernel<Mode>)
                            : launch.kernel == Kernel::finish    ? Function(finish_kernel)
                            : launch.kernel == Kernel::gradients ? Function(gradients_kernel<Mode>)
                            : second                             ? Function(differences_kernel<Mode, true>)
                                                                 : Function(differences_kernel<Mode, false>);
  const int shared = multiplies ? int(shared_bytes) : 0;
  if (multiplies) {
    const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
  }
  function<<<launch.blocks, threads, shared, stream>>>(problem, launch);
  return cudaPeekAtLastError();
}

}  // namespace l2t_fast::cuda
