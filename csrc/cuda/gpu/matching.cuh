// A kernel for each derivative, and its launch.
#pragma once

#include "../kernel.h"
#include "device.h"
#include "kernels.h"

namespace l2t_fast::cuda {

template <class Mode, bool second>
__global__ void __launch_bounds__(threads) matching_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  matching<Mode, second>(device, *problem, launch);
}

template <class Mode, bool second>
cudaError_t launch_matching(const Problem* problem, const Launch& launch, cudaStream_t stream) {
  const auto kernel = matching_kernel<Mode, second>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(launch.shared_bytes));
  if (error != cudaSuccess) return error;
  kernel<<<launch.blocks, threads, launch.shared_bytes, stream>>>(problem, launch);
  return cudaPeekAtLastError();
}

template <class Mode>
cudaError_t launch_matching(bool second, const Problem* problem, const Launch& launch, cudaStream_t stream) {
  return second ? launch_matching<Mode, true>(problem, launch, stream)
                : launch_matching<Mode, false>(problem, launch, stream);
}

}  // namespace l2t_fast::cuda
