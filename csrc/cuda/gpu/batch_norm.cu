// Two kernels: five sums a channel, in chunks; then both maps, for which every block adds up the chunks of its
// channels. They read each map twice and write two, which is all their time.
#include <algorithm>

#include "batch_norm.h"

namespace l2t_fast::cuda {
namespace {

constexpr uint32_t threads = 256, warps = threads / 32, sums_count = 5, most_chunks = 64, wanted_blocks = 2048;

struct Sums {
  float a = 0, g = 0, ax = 0, gx = 0, ag = 0;

  __device__ void add(float a_value, float g_value, float xh) {
    a += a_value;
    g += g_value;
    ax += a_value * xh;
    gx += g_value * xh;
    ag += a_value * g_value;
  }
};

// What both maps of one channel are made with.
struct Coefficients {
  float mean, scale, g_a, g_x, g_1, x_a, x_g, x_x, x_1;

  __device__ float gradient_bar(float a, float xh) const { return a * g_a + xh * g_x + g_1; }
  __device__ float input_bar(float a, float g, float xh) const { return a * x_a + g * x_g + xh * x_x + x_1; }
};

// From the means of the five sums; as in csrc/cpu/batch_norm.cpp.
__device__ __forceinline__ Coefficients coefficients_of(const BatchNorm& problem, uint32_t channel, const double* sums,
                                                        float* weight_bar) {
  const double count = double(problem.samples) * problem.pixels, scale = problem.scale[channel];
  const double a = sums[0] / count, g = sums[1] / count, ax = sums[2] / count, gx = sums[3] / count,
               ag = sums[4] / count;
  const double w = problem.weight ? problem.weight[channel] : 1.0;
  const double p = problem.weight_adjoint ? problem.weight_adjoint[channel] : 0.0;
  const double q = problem.bias_adjoint ? problem.bias_adjoint[channel] : 0.0;
  const double u = w * scale, r = ag - a * g - ax * gx;
  const double mean_k = p * g - u * (a * gx + g * ax), mean_kx = p * gx - 2 * u * ax * gx;
  if (weight_bar) weight_bar[channel] = float(scale * count * r);
  return {problem.mean[channel],
          float(scale),
          float(u),
          float(p - u * ax),
          float(q - u * a),
          float(-scale * u * gx),
          float(scale * (p - u * ax)),
          float(-scale * (mean_kx + u * r)),
          float(-scale * mean_k)};
}

// The values of chunk `blockIdx.y` of a channel, `width` neighbours at a time: function(offset of the first).
template <uint32_t width, class Function>
__device__ void for_planar(const BatchNorm& problem, uint32_t channel, Function function) {
  const uint32_t pieces = problem.pixels / width, all = problem.samples * pieces;
  const uint32_t chunk = (all + gridDim.y - 1) / gridDim.y;
  const uint32_t begin = min(blockIdx.y * chunk, all), end = min(begin + chunk, all);
  for (uint32_t i = begin + threadIdx.x; i < end; i += threads) {
    const uint32_t sample = i / pieces;
    function((int64_t(sample) * problem.channels + channel) * problem.pixels + (i - sample * pieces) * width);
  }
}

template <uint32_t width>
struct Values {
  float of[width];

  __device__ void read(const float* from) {
    if constexpr (width == 4)
      *reinterpret_cast<float4*>(of) = *reinterpret_cast<const float4*>(from);
    else
      of[0] = *from;
  }

  __device__ void write(float* to) const {
    if constexpr (width == 4)
      *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(of);
    else
      *to = of[0];
  }
};

template <uint32_t width>
__global__ void __launch_bounds__(threads) planar_sums(const BatchNorm problem, float* partial) {
  const uint32_t channel = blockIdx.x;
  const float mean = problem.mean[channel], scale = problem.scale[channel];
  Sums sums;
  for_planar<width>(problem, channel, [&](int64_t offset) {
    alignas(16) Values<width> a, g, x;
    a.read(problem.adjoint + offset);
    g.read(problem.gradient + offset);
    x.read(problem.input + offset);
#pragma unroll
    for (uint32_t k = 0; k < width; ++k) sums.add(a.of[k], g.of[k], (x.of[k] - mean) * scale);
  });
  __shared__ float of_warps[sums_count][warps];
  float values[sums_count] = {sums.a, sums.g, sums.ax, sums.gx, sums.ag};
#pragma unroll
  for (uint32_t s = 0; s < sums_count; ++s) {
    for (uint32_t step = 16; step > 0; step /= 2) values[s] += __shfl_xor_sync(~0u, values[s], step);
    if (threadIdx.x % 32 == 0) of_warps[s][threadIdx.x / 32] = values[s];
  }
  __syncthreads();
  if (threadIdx.x < sums_count) {
    float sum = 0;
    for (uint32_t warp = 0; warp < warps; ++warp) sum += of_warps[threadIdx.x][warp];
    partial[(threadIdx.x * problem.channels + channel) * gridDim.y + blockIdx.y] = sum;
  }
}

template <uint32_t width>
__global__ void __launch_bounds__(threads) planar_maps(const BatchNorm problem, const float* partial,
                                                       float* gradient_bar, float* input_bar, float* weight_bar) {
  const uint32_t channel = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __shared__ double sums[sums_count];
  __shared__ Coefficients shared;
  if (warp < sums_count) {
    double sum = 0;
    for (uint32_t chunk = lane; chunk < gridDim.y; chunk += 32)
      sum += partial[(warp * problem.channels + channel) * gridDim.y + chunk];
    for (uint32_t step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) sums[warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) shared = coefficients_of(problem, channel, sums, blockIdx.y == 0 ? weight_bar : nullptr);
  __syncthreads();
  const Coefficients c = shared;
  for_planar<width>(problem, channel, [&](int64_t offset) {
    alignas(16) Values<width> a, g, x, of_gradient, of_input;
    a.read(problem.adjoint + offset);
    g.read(problem.gradient + offset);
    x.read(problem.input + offset);
#pragma unroll
    for (uint32_t k = 0; k < width; ++k) {
      const float xh = (x.of[k] - c.mean) * c.scale;
      of_gradient.of[k] = c.gradient_bar(a.of[k], xh);
      of_input.of[k] = c.input_bar(a.of[k], g.of[k], xh);
    }
    of_gradient.write(gradient_bar + offset);
    of_input.write(input_bar + offset);
  });
}

// Where channels are neighbours, a block has 32 of them, a lane each, and a warp every eighth row of its chunk.
template <class Function>
__device__ void for_rows(const BatchNorm& problem, uint32_t channel, Function function) {
  const uint32_t all = problem.samples * problem.pixels, chunk = (all + gridDim.y - 1) / gridDim.y;
  const uint32_t begin = min(blockIdx.y * chunk, all), end = min(begin + chunk, all);
#pragma unroll 4
  for (uint32_t row = begin + threadIdx.x / 32; row < end; row += warps)
    function(int64_t(row) * problem.channels + channel);
}

__global__ void __launch_bounds__(threads) row_sums(const BatchNorm problem, float* partial) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel = blockIdx.x * 32 + lane;
  __shared__ float of_warps[sums_count][warps][32];
  Sums sums;
  if (channel < problem.channels) {
    const float mean = problem.mean[channel], scale = problem.scale[channel];
    for_rows(problem, channel, [&](int64_t offset) {
      sums.add(problem.adjoint[offset], problem.gradient[offset], (problem.input[offset] - mean) * scale);
    });
  }
  const float values[sums_count] = {sums.a, sums.g, sums.ax, sums.gx, sums.ag};
#pragma unroll
  for (uint32_t s = 0; s < sums_count; ++s) of_warps[s][warp][lane] = values[s];
  __syncthreads();
  if (warp < sums_count && channel < problem.channels) {
    float sum = 0;
    for (uint32_t other = 0; other < warps; ++other) sum += of_warps[warp][other][lane];
    partial[(warp * problem.channels + channel) * gridDim.y + blockIdx.y] = sum;
  }
}

__global__ void __launch_bounds__(threads)
    row_maps(const BatchNorm problem, const float* partial, float* gradient_bar, float* input_bar, float* weight_bar) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel = blockIdx.x * 32 + lane;
  __shared__ double sums[32][sums_count];
  __shared__ Coefficients shared[32];
  const bool exists = channel < problem.channels;
  if (warp < sums_count && exists) {
    double sum = 0;
    for (uint32_t chunk = 0; chunk < gridDim.y; ++chunk)
      sum += partial[(warp * problem.channels + channel) * gridDim.y + chunk];
    sums[lane][warp] = sum;
  }
  __syncthreads();
  if (warp == 0 && exists)
    shared[lane] = coefficients_of(problem, channel, sums[lane], blockIdx.y == 0 ? weight_bar : nullptr);
  __syncthreads();
  if (!exists) return;
  const Coefficients c = shared[lane];
  for_rows(problem, channel, [&](int64_t offset) {
    const float a = problem.adjoint[offset], g = problem.gradient[offset],
                xh = (problem.input[offset] - c.mean) * c.scale;
    gradient_bar[offset] = c.gradient_bar(a, xh);
    input_bar[offset] = c.input_bar(a, g, xh);
  });
}

}  // namespace

uint32_t batch_norm_chunks(const BatchNorm& problem) {
  const uint32_t blocks = problem.rows ? (problem.channels + 31) / 32 : problem.channels;
  const uint32_t count = problem.samples * problem.pixels, a_block = problem.rows ? 16 * warps : 8 * threads;
  const uint32_t most = std::clamp<uint32_t>(count / a_block, 1, most_chunks);
  return std::clamp<uint32_t>(wanted_blocks / blocks, 1, most);
}

cudaError_t launch_batch_norm(const BatchNorm& problem, float* sums, float* gradient_bar, float* input_bar,
                              float* weight_bar, cudaStream_t stream) {
  const dim3 grid(problem.rows ? (problem.channels + 31) / 32 : problem.channels, batch_norm_chunks(problem));
  const auto first = problem.rows ? row_sums : problem.vectors ? planar_sums<4> : planar_sums<1>;
  const auto second = problem.rows ? row_maps : problem.vectors ? planar_maps<4> : planar_maps<1>;
  first<<<grid, threads, 0, stream>>>(problem, sums);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  second<<<grid, threads, 0, stream>>>(problem, sums, gradient_bar, input_bar, weight_bar);
  return cudaGetLastError();
}

}  // namespace l2t_fast::cuda
