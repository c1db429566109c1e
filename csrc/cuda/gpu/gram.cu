// The kernels of the Gram form, and their launch.
#include "../gram_planes.h"
#include "../gram_products.h"
#include "../gram_projections.h"
#include "launch.cuh"

namespace l2t_fast::cuda {
namespace {

__global__ void __launch_bounds__(threads) gram_planes_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_planes(device, *problem, launch);
}

__global__ void __launch_bounds__(threads, blocks_at_once<Tf32x3>)
    gram_products_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_products(device, *problem, launch);
}

__global__ void __launch_bounds__(threads, blocks_at_once<Tf32x3>)
    gram_projections_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_projections(device, *problem, launch);
}

__global__ void __launch_bounds__(threads, blocks_at_once<Tf32>)
    gram_targets_kernel(const Problem* problem, Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_targets(device, *problem, launch);
}

}  // namespace

cudaError_t launch_gram(bool /*second*/, const Problem* problem, const Launch& launch, cudaStream_t stream) {
  const Function function = launch.kernel == Kernel::gram_planes        ? gram_planes_kernel
                            : launch.kernel == Kernel::gram_products    ? gram_products_kernel
                            : launch.kernel == Kernel::gram_projections ? gram_projections_kernel
                                                                        : gram_targets_kernel;
  const int shared = launch.kernel == Kernel::gram_planes ? planes_bytes : int(shared_bytes);
  return start(function, shared, problem, launch, stream);
}

}  // namespace l2t_fast::cuda
