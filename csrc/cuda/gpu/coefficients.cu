// The kernel of the coefficients, and its launch.
#include "../coefficients.h"
#include "device.h"
#include "kernels.h"

namespace l2t_fast::cuda {
namespace {

template <int capacity>
__global__ void __launch_bounds__(threads) coefficients_kernel(const __grid_constant__ SomePairs<capacity> pairs,
                                                               const __grid_constant__ CoefficientCall call) {
  Device device(nullptr);
  coefficients(device, pairs, call);
}

}  // namespace

cudaError_t launch_coefficients(const PairColumns* pairs, const CoefficientCall& call, cudaStream_t stream) {
  for_some_pairs_at_a_time(pairs, call, [&]<int capacity>(const SomePairs<capacity>& some, int blocks) {
    coefficients_kernel<<<blocks, threads, 0, stream>>>(some, call);
  });
  return cudaPeekAtLastError();
}

}  // namespace l2t_fast::cuda
