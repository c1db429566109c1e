// The double backward of batch normalisation in CUDA C++: what the host gives the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace l2t_fast::cuda {

// Three maps of (samples, channels, pixels), all of one layout, and what batch_norm.h says of one value a channel; a
// null pointer stands for 1, 0 and 0.
struct BatchNorm {
  const float *adjoint, *gradient, *input, *mean, *scale, *weight, *weight_adjoint, *bias_adjoint;
  uint32_t samples, channels, pixels;
  bool rows;     // channels are neighbours in memory, not pixels
  bool vectors;  // four pixels lie at a multiple of 16 bytes each time
};

// Into how many chunks the values of a channel are cut: a number of the sizes alone, so that sums are always the same.
uint32_t batch_norm_chunks(const BatchNorm& problem);

// `sums` holds 5 * channels * chunks numbers.
cudaError_t launch_batch_norm(const BatchNorm& problem, float* sums, float* gradient_bar, float* input_bar,
                              float* weight_bar, cudaStream_t stream);

}  // namespace l2t_fast::cuda
