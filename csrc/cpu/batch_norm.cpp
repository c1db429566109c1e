// Host side of the double backward of batch normalisation: threads, the coefficients of a channel, the outputs.
#include "../batch_norm.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layers.h"

namespace l2t_fast {
namespace {

constexpr int64_t sums_count = 5, coefficients_count = 7;
constexpr int64_t most_chunks = 64;  // of rows; a number of its own, so that threads do not change the order of a sum

// The seven coefficients of one channel from its five sums, and the adjoint of its weight.
template <class T>
void coefficients_of(const double* sums, int64_t channels, double count, double scale, double weight, double p,
                     double q, T* coefficients, T* weight_bar) {
  const double a = sums[0] / count, g = sums[channels] / count, ax = sums[2 * channels] / count,
               gx = sums[3 * channels] / count, ag = sums[4 * channels] / count;
  const double u = weight * scale, r = ag - a * g - ax * gx;
  const double mean_k = p * g - u * (a * gx + g * ax), mean_kx = p * gx - 2 * u * ax * gx;
  const double values[coefficients_count] = {
      u, p - u * ax, q - u * a, -scale * u * gx, scale * (p - u * ax), -scale * (mean_kx + u * r), -scale * mean_k,
  };
  for (int64_t k = 0; k < coefficients_count; ++k) coefficients[k * channels] = T(values[k]);
  *weight_bar = T(scale * count * r);
}

template <class T>
void run(const cpu::BatchNormMaps& maps, bool rows, cpu::Kernels::Sums sums_kernel, cpu::Kernels::Apply apply_kernel,
         const T* weight, const T* p, const T* q, T* gradient_bar, T* input_bar, T* weight_bar) {
  const int64_t channels = maps.channels, count = maps.samples * maps.pixels;
  const int64_t size = rows ? count : channels;  // of what is cut into pieces
  const int64_t chunks = rows ? std::clamp<int64_t>(count / 256, 1, most_chunks) : 1;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, rows ? channels : count));

  std::vector<double> sums(chunks * sums_count * channels, 0.0);
  if (rows)
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk)
        sums_kernel(maps, chunk * count / chunks, (chunk + 1) * count / chunks,
                    sums.data() + chunk * sums_count * channels);
    });
  else
    at::parallel_for(0, channels, grain,
                     [&](int64_t begin, int64_t end) { sums_kernel(maps, begin, end, sums.data()); });
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < sums_count * channels; ++i) sums[i] += sums[chunk * sums_count * channels + i];

  std::vector<T> coefficients(coefficients_count * channels);
  const T* scale = static_cast<const T*>(maps.scale);
  for (int64_t c = 0; c < channels; ++c)
    coefficients_of(sums.data() + c, channels, double(count), double(scale[c]), weight ? double(weight[c]) : 1.0,
                    p ? double(p[c]) : 0.0, q ? double(q[c]) : 0.0, coefficients.data() + c, weight_bar + c);
  at::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
    apply_kernel(maps, coefficients.data(), begin, end, gradient_bar, input_bar);
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_double_backward_cpu(
    const at::Tensor& adjoint, const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& weight_adjoint, const at::Tensor& bias_adjoint) {
  at::Tensor gradient_bar = at::empty_like(input), input_bar = at::empty_like(input), weight_bar = at::empty_like(mean);
  const int64_t channels = input.size(1);
  if (input.numel() == 0) return {gradient_bar, input_bar, weight_bar.zero_()};
  const cpu::BatchNormMaps maps{adjoint.const_data_ptr(),
                                gradient.const_data_ptr(),
                                input.const_data_ptr(),
                                mean.const_data_ptr(),
                                scale.const_data_ptr(),
                                input.size(0),
                                channels,
                                input.numel() / (input.size(0) * channels)};
  const bool rows = input.stride(1) == 1 && channels > 1;
  const cpu::Kernels& kernels = cpu::kernels();
  const auto start = [&](auto* type, auto sums_kernel, auto apply_kernel) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto values = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; };
    run<T>(maps, rows, sums_kernel, apply_kernel, values(weight), values(weight_adjoint), values(bias_adjoint),
           gradient_bar.data_ptr<T>(), input_bar.data_ptr<T>(), weight_bar.data_ptr<T>());
  };
  if (input.scalar_type() == at::kFloat)
    start(static_cast<float*>(nullptr),
          rows ? kernels.batch_norm_sums_rows_float : kernels.batch_norm_sums_planes_float,
          rows ? kernels.batch_norm_apply_rows_float : kernels.batch_norm_apply_planes_float);
  else
    start(static_cast<double*>(nullptr),
          rows ? kernels.batch_norm_sums_rows_double : kernels.batch_norm_sums_planes_double,
          rows ? kernels.batch_norm_apply_rows_double : kernels.batch_norm_apply_planes_double);
  return {gradient_bar, input_bar, weight_bar};
}

}  // namespace l2t_fast
