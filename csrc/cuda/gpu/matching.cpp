// The CUDA implementation of the matching operators' functions.
#include "../matching.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "kernels.h"

namespace l2t_fast::cuda {
namespace {

// On the current device and stream. Nothing here waits for the GPU or reads its memory.
class GpuRunner : public Runner {
 public:
  GpuRunner() : stream_(at::cuda::getCurrentCUDAStream()) {
    const cudaDeviceProp& device = *at::cuda::getCurrentDeviceProperties();
    TORCH_CHECK(int64_t(device.sharedMemPerBlockOptin) >= shared_bytes, device.name, " has ",
                device.sharedMemPerBlockOptin, " bytes of shared memory a block, the cuda backend needs ",
                shared_bytes);
  }

  Chip chip() const override {
    const int processors = at::cuda::getCurrentDeviceProperties()->multiProcessorCount;
    return {processors, processors * operations_of_launch};
  }

  void upload(void* to, const void* from, size_t bytes) override {
    C10_CUDA_CHECK(launch_upload(to, from, bytes, stream_));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  void run(Products products, bool second, const Problem& problem, const Launch& launch) override {
    const auto direct = products == Products::tf32     ? launch_tf32
                        : products == Products::tf32x3 ? launch_tf32x3
                                                       : launch_bfloat16;
    C10_CUDA_CHECK(is_gram(launch.kernel) ? launch_gram(products, problem, launch, stream_)
                                          : direct(second, problem, launch, stream_));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  void run(const PairColumns* pairs, const CoefficientCall& call) override {
    C10_CUDA_CHECK(launch_coefficients(pairs, call, stream_));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  const at::cuda::CUDAStream stream_;
};

}  // namespace
}  // namespace l2t_fast::cuda

namespace l2t_fast {

LossAndGradient matching_forward_cuda(const MatchingProblem& problem, const Needs& needs) {
  const c10::cuda::CUDAGuard device(problem.alpha.device());
  cuda::GpuRunner runner;
  return cuda::matching_forward(runner, problem, needs);
}

HessianVector matching_hvp_cuda(const MatchingProblem& problem, const Direction& direction, const Needs& needs) {
  const c10::cuda::CUDAGuard device(problem.alpha.device());
  cuda::GpuRunner runner;
  return cuda::matching_hvp(runner, problem, direction, needs);
}

at::Tensor coefficients_cuda(const std::vector<Term>& terms, const Columns& columns, const at::TensorOptions& options) {
  const c10::cuda::CUDAGuard device(options.device());
  cuda::GpuRunner runner;
  return cuda::coefficients(runner, terms, columns, options);
}

Adjoints coefficients_backward_cuda(const at::Tensor& adjoint, const Term& term, const Columns& columns, bool what,
                                    bool where) {
  const c10::cuda::CUDAGuard device(adjoint.device());
  cuda::GpuRunner runner;
  return cuda::coefficients_backward(runner, adjoint, term, columns, what, where);
}

}  // namespace l2t_fast
