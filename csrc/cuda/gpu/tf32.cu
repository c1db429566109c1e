#include "matching.cuh"

namespace l2t_fast::cuda {

cudaError_t launch_tf32(bool second, const Problem& problem, const Launch& launch, cudaStream_t stream) {
  return launch_matching<Tf32>(second, problem, launch, stream);
}

}  // namespace l2t_fast::cuda
