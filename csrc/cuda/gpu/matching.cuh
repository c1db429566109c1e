// The kernels of the direct form, and their launch.
#pragma once

#include "../differences.h"
#include "../gradients.h"
#include "../sums.h"
#include "launch.cuh"

namespace l2t_fast::cuda {

template <class Mode>
__global__ void __launch_bounds__(threads)
    pack_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  Device device(nullptr);
  pack<Mode>(device, problem, launch);
}

template <class Mode, bool second>
__global__ void __launch_bounds__(threads, blocks_at_once<Mode>)
    differences_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  differences<Mode, second>(device, problem, launch);
}

template <class Mode>
__global__ void __launch_bounds__(threads, blocks_at_once<Mode>)
    gradients_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gradients<Mode>(device, problem, launch);
}

// Without a number of blocks ptxas makes do with 40 registers, and spills.
static __global__ void __launch_bounds__(threads, 4)
    finish_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  __shared__ __align__(16) unsigned char shared[threads * sizeof(float)];
  Device device(shared);
  finish(device, problem, launch);
}

template <class Mode>
cudaError_t launch_matching(bool second, const Problem& problem, const Launch& launch, cudaStream_t stream) {
  const bool multiplies = launch.kernel == Kernel::differences || launch.kernel == Kernel::gradients;
  const Function function = launch.kernel == Kernel::pack        ? Function(pack_kernel<Mode>)
                            : launch.kernel == Kernel::finish    ? Function(finish_kernel)
                            : launch.kernel == Kernel::gradients ? Function(gradients_kernel<Mode>)
                            : second                             ? Function(differences_kernel<Mode, true>)
                                                                 : Function(differences_kernel<Mode, false>);
  return start(function, multiplies ? int(shared_bytes) : 0, problem, launch, stream);
}

}  // namespace l2t_fast::cuda
