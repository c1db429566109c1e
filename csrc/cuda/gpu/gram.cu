// The kernels of the Gram form, and their launch.
#include "../gram_planes.h"
#include "../gram_products.h"
#include "../gram_projections.h"
#include "launch.cuh"

namespace l2t_fast::cuda {
namespace {

// Without a number of blocks ptxas makes do with 64 registers, and spills.
__global__ void __launch_bounds__(threads, 3)
    gram_planes_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_planes(device, problem, launch);
}

// Its three products of tf32 leave registers for a second block.
template <class Mode>
__global__ void __launch_bounds__(threads, blocks_at_once<Tf32>)
    gram_products_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_products<Mode>(device, problem, launch);
}

__global__ void __launch_bounds__(threads, 2)
    gram_projections_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_projections(device, problem, launch);
}

template <class Mode>
__global__ void __launch_bounds__(threads, blocks_at_once<Mode>)
    gram_targets_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) unsigned char shared[];
  Device device(shared);
  gram_targets<Mode>(device, problem, launch);
}

template <class OfMaps, class OfTargets>
Function function_of(Kernel kernel) {
  return kernel == Kernel::gram_planes        ? Function(gram_planes_kernel)
         : kernel == Kernel::gram_products    ? Function(gram_products_kernel<OfMaps>)
         : kernel == Kernel::gram_projections ? Function(gram_projections_kernel)
                                              : Function(gram_targets_kernel<OfTargets>);
}

}  // namespace

static_assert(planes_bytes(most_side) <= int(shared_bytes), "launches ask for no more than that");

cudaError_t launch_gram(Products products, const Problem& problem, const Launch& launch, cudaStream_t stream) {
  const Function function = products == Products::bfloat16 ? function_of<Bfloat16, Bfloat16>(launch.kernel)
                                                           : function_of<Tf32x3, Tf32>(launch.kernel);
  const int shared = launch.kernel == Kernel::gram_planes ? planes_bytes(launch.side) : int(shared_bytes);
  return start(function, shared, problem, launch, stream);
}

}  // namespace l2t_fast::cuda
