// How kernels are started.
#pragma once

#include "device.h"
#include "kernels.h"

namespace l2t_fast::cuda {

// Two blocks a processor, so that one computes while the other waits for memory: where shared memory is enough for
// two, and not for the direct form's three products of tf32, which take too many registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class Mode>
inline constexpr int blocks_at_once = 1;
#else
template <class Mode>
inline constexpr int blocks_at_once = 2;
template <>
inline constexpr int blocks_at_once<Tf32x3> = 1;
#endif

using Function = void (*)(Problem, Launch);

inline cudaError_t start(Function function, int shared, const Problem& problem, const Launch& launch,
                         cudaStream_t stream) {
  if (shared) {  // the most that any launch asks for: another thread may set it between here and the launch
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  function<<<launch.blocks, threads, shared, stream>>>(problem, launch);
  return cudaPeekAtLastError();
}

}  // namespace l2t_fast::cuda
