#include "matching.cuh"

namespace l2t_fast::cuda {

cudaError_t launch_bfloat16(bool second, const Problem& problem, const Launch& launch, cudaStream_t stream) {
  return launch_matching<Bfloat16>(second, problem, launch, stream);
}

}  // namespace l2t_fast::cuda
