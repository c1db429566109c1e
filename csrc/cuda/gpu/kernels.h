// The kernels on a GPU. Raw CUDA only, no torch type; every function returns what the launch reports.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "../coefficients.h"
#include "../runner.h"
#include "../scaling.h"

namespace l2t_fast::cuda {

// One file a way of computing products, so that they are compiled side by side.
cudaError_t launch_tf32(bool second, const Problem& problem, const Launch& launch, cudaStream_t stream);
cudaError_t launch_tf32x3(bool second, const Problem& problem, const Launch& launch, cudaStream_t stream);
cudaError_t launch_bfloat16(bool second, const Problem& problem, const Launch& launch, cudaStream_t stream);

// Those of the Gram form.
cudaError_t launch_gram(Products products, const Problem& problem, const Launch& launch, cudaStream_t stream);

// The coefficients, in as many launches as their pairs take.
cudaError_t launch_coefficients(const PairColumns* pairs, const CoefficientCall& call, cudaStream_t stream);

// What the driver makes, on the current device, of a kernel compiled as all others.
cudaError_t ask_witness(cudaFuncAttributes& attributes);

// What is listed, times a factor.
cudaError_t launch_scaling(const SomeScaled& some, int blocks, cudaStream_t stream);

// Copies bytes (a multiple of 16) into device memory. They travel as parameters of a kernel: nothing has to be pinned
// or kept alive, and a captured CUDA graph holds its own copy.
cudaError_t launch_upload(void* to, const void* from, size_t bytes, cudaStream_t stream);

}  // namespace l2t_fast::cuda
