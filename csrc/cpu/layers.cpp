#include "layers.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>
#include <utility>

namespace l2t_fast::cpu {
namespace {

// Pairs are stacked up to this many rows; beyond, a block's panels would leave the cache.
constexpr int64_t group_rows = 1024;
// Below this a thread costs more than it brings.
constexpr double flops_per_chunk = 4e6;

std::optional<plan::Algorithm> forced_algorithm;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

Element element_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Element::float64;
    case at::kFloat:
      return Element::float32;
    case at::kBFloat16:
      return Element::bfloat16;
    case at::kHalf:
      return Element::float16;
    default:
      TORCH_CHECK(false, "matching on the CPU takes floating-point tensors, not ", tensor.scalar_type());
  }
}

Feature feature_of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), element_of(tensor), tensor.size(1),   tensor.size(2),  tensor.size(3),
          tensor.stride(0),  tensor.stride(1),   tensor.stride(2), tensor.stride(3)};
}

Matrix matrix_of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), element_of(tensor), tensor.size(0), tensor.size(1), tensor.stride(0), tensor.stride(1)};
}

std::vector<plan::Source> source_sizes(const MatchingProblem& problem, const std::vector<int64_t>& pairs) {
  std::vector<plan::Source> sizes;
  for (const int64_t p : pairs) {
    const at::Tensor& source = problem.sources[problem.pairs[p].source];
    sizes.push_back({source.size(1), source.size(2), source.size(3)});
  }
  return sizes;
}

}  // namespace

const Kernels& kernels() {
  const std::string capability = at::get_cpu_capability();
#ifdef L2T_FAST_AVX512
  if (capability == "AVX512") return avx512_kernels;
#endif
#ifdef L2T_FAST_AVX2
  if (capability == "AVX512" || capability == "AVX2") return avx2_kernels;
#endif
  return portable_kernels;
}

void force_algorithm(std::optional<plan::Algorithm> algorithm) { forced_algorithm = algorithm; }

ResizeAxis::ResizeAxis(int64_t input, int64_t output)
    : low(output), high(output), weight(output), sum(input), square(input), product(input) {
  // Half-pixel centres, as torch.nn.functional.interpolate(align_corners=False).
  const double scale = double(input) / double(output);
  for (int64_t i = 0; i < output; ++i) {
    const double position = std::max(0.0, scale * (double(i) + 0.5) - 0.5);
    low[i] = std::min(int64_t(position), input - 1);
    high[i] = std::min(low[i] + 1, input - 1);
    weight[i] = std::min(std::max(position - double(low[i]), 0.0), 1.0);
    const double at_low = high[i] == low[i] ? 1 : 1 - weight[i], at_high = 1 - at_low;
    sum[low[i]] += at_low;
    square[low[i]] += at_low * at_low;
    if (high[i] == low[i]) continue;
    sum[high[i]] += at_high;
    square[high[i]] += at_high * at_high;
    product[high[i]] += at_low * at_high;
  }
  view = {input, output, low.data(), high.data(), weight.data(), sum.data(), square.data(), product.data()};
}

StackedLayer::StackedLayer(const MatchingProblem& problem, const Needs& needs, int64_t target,
                           std::vector<int64_t> pairs, plan::Work work)
    : kernels_(kernels()), problem_(problem), needs_(needs), target_(target), pair_indices_(std::move(pairs)) {
  const at::Tensor& features = problem.targets[target];
  const bool float64 = problem.alpha.scalar_type() == at::kDouble;
  layer_.batch = features.size(0);
  layer_.channels = features.size(1);
  layer_.pixels = features.size(2) * features.size(3);
  layer_.width = features.size(3);
  layer_.needs_weights = false;
  for (const int64_t p : pair_indices_) layer_.needs_weights |= needs.weights[p];
  const plan::LayerShape shape{layer_.batch,
                               layer_.channels,
                               features.size(2),
                               features.size(3),
                               source_sizes(problem, pair_indices_),
                               needs.targets[target],
                               layer_.needs_weights};
  algorithm_ = forced_algorithm ? *forced_algorithm : plan::choose(shape, work, float64, at::get_num_threads());
  type_ = float64 || algorithm_ == plan::Algorithm::gram ? at::kDouble : at::kFloat;
  unit_ = type_ == at::kDouble ? kernels_.unit_double : kernels_.unit_float;
  panel_ = type_ == at::kDouble ? kernels_.panel_double : kernels_.panel_float;
  layer_.target = feature_of(features);
  stack();
  layer_.weight_rows = packed(problem.weights, /*transposed=*/false);
  if (algorithm_ == plan::Algorithm::direct) layer_.weight_columns = packed(problem.weights, /*transposed=*/true);
  layer_.bias = stacked_bias(problem.biases);
  layer_.alpha = stacked_alpha(problem.alpha);
}

void StackedLayer::stack() {
  int64_t row = 0, group_start = 0;
  std::vector<std::pair<int64_t, int64_t>> sizes;  // of up-sized sources
  const int64_t height = layer_.target.height, width = layer_.target.width;
  for (const int64_t p : pair_indices_) {
    PairView pair{};
    pair.source = feature_of(problem_.sources[problem_.pairs[p].source]);
    pair.needs_weight = needs_.weights[p];
    const int64_t padded = round_up(pair.source.channels, unit_);
    if (groups_.empty() || row - group_start + padded > group_rows) {
      row = group_start = round_up(row, panel_);
      groups_.push_back(int64_t(pairs_.size()));
    }
    pair.row = row;
    row += padded;
    const std::pair<int64_t, int64_t> size{pair.source.height, pair.source.width};
    if (size.first * size.second == 0) {
      pair.resize = Resize::empty;
    } else if (size != std::pair{height, width}) {
      pair.resize = size.first * size.second < layer_.pixels ? Resize::up : Resize::down;
      pair.vertical = axis(size.first, height);
      pair.horizontal = axis(size.second, width);
      if (pair.resize == Resize::up) {
        const auto found = std::find(sizes.begin(), sizes.end(), size);
        pair.size_index = found - sizes.begin();
        if (found == sizes.end()) sizes.push_back(size);
      }
    }
    pairs_.push_back(pair);
  }
  groups_.push_back(int64_t(pairs_.size()));
  layer_.pair_count = int64_t(pairs_.size());
  layer_.pairs = pairs_.data();
  layer_.group_count = int64_t(groups_.size()) - 1;
  layer_.groups = groups_.data();
  layer_.rows = row;
  layer_.up_sizes = int64_t(sizes.size());
}

const Axis* StackedLayer::axis(int64_t input, int64_t output) {
  axes_.push_back(std::make_unique<ResizeAxis>(input, output));
  return &axes_.back()->view;
}

const void* StackedLayer::packed(const std::vector<at::Tensor>& weights, bool transposed) {
  const int64_t rows = transposed ? layer_.channels : layer_.rows, columns = transposed ? layer_.rows : layer_.channels;
  at::Tensor panels = at::zeros({round_up(columns, panel_) * rows}, at::TensorOptions().dtype(type_));
  const auto pack = type_ == at::kDouble ? kernels_.pack_double : kernels_.pack_float;
  at::parallel_for(0, layer_.pair_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const at::Tensor& weight = weights[pair_indices_[i]];
      if (weight.defined() && weight.numel() > 0)
        pack(matrix_of(weight), transposed, panels.data_ptr(), rows, transposed ? 0 : pairs_[i].row,
             transposed ? pairs_[i].row : 0);
    }
  });
  storage_.push_back(panels);
  return panels.const_data_ptr();
}

const void* StackedLayer::stacked_bias(const std::vector<at::Tensor>& biases) {
  at::Tensor stacked = at::zeros({layer_.rows}, at::TensorOptions().dtype(type_));
  for (int64_t i = 0; i < layer_.pair_count; ++i) {
    const at::Tensor& bias = biases[pair_indices_[i]];
    if (bias.defined()) stacked.narrow(0, pairs_[i].row, bias.size(0)).copy_(bias);
  }
  storage_.push_back(stacked);
  return stacked.const_data_ptr();
}

const void* StackedLayer::stacked_alpha(const at::Tensor& alpha) {
  at::Tensor stacked = at::zeros({layer_.batch, layer_.rows}, at::TensorOptions().dtype(type_));
  for (int64_t i = 0; i < layer_.pair_count; ++i) {
    const int64_t channels = pairs_[i].source.channels;
    at::Tensor columns = stacked.narrow(1, pairs_[i].row, channels);
    columns.copy_(alpha.narrow(1, problem_.pairs[pair_indices_[i]].alpha_begin, channels)).mul_(2);
  }
  storage_.push_back(stacked);
  return stacked.const_data_ptr();
}

double StackedLayer::forward(LossAndGradient& result) {
  const bool gram = algorithm_ == plan::Algorithm::gram, float64 = type_ == at::kDouble;
  const int64_t batch = layer_.batch, rows = layer_.rows;
  at::Tensor& target_gradient = result.gradient.targets[target_];
  if (target_gradient.defined()) layer_.target_gradient = feature_of(target_gradient);

  const double flops = 2.0 * double(batch * layer_.pixels) * double(rows * layer_.channels);
  const int64_t items = gram ? batch : batch * layer_.pixels, samples_of_pixels = gram ? 1 : layer_.pixels;
  const int64_t chunks =
      std::max<int64_t>(1, std::min({int64_t(at::get_num_threads()), items, int64_t(flops / flops_per_chunk)}));
  const size_t scratch_size =
      gram ? kernels_.gram_scratch(layer_)
           : (float64 ? kernels_.direct_scratch_double(layer_) : kernels_.direct_scratch_float(layer_));
  const auto run =
      gram ? kernels_.gram_forward : (float64 ? kernels_.direct_forward_double : kernels_.direct_forward_float);

  const int64_t weight_size = layer_.needs_weights ? rows * round_up(layer_.channels, panel_) : 0;
  at::Tensor weight_sums = at::empty({chunks, weight_size}, at::TensorOptions().dtype(type_));
  at::Tensor bias_sums = at::zeros({chunks, rows}, at::TensorOptions().dtype(at::kDouble));
  at::Tensor scratch = at::empty({chunks, int64_t(scratch_size)}, at::TensorOptions().dtype(at::kByte));
  // A sample that two chunks share has a row of Q in each.
  std::vector<at::Tensor> squares(chunks);
  std::vector<int64_t> bounds(chunks + 1);
  for (int64_t k = 0; k <= chunks; ++k) bounds[k] = items * k / chunks;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t samples = (bounds[k + 1] - 1) / samples_of_pixels - bounds[k] / samples_of_pixels + 1;
      squares[k] = at::zeros({samples, rows}, at::TensorOptions().dtype(at::kDouble));
      if (weight_size) weight_sums[k].zero_();
      const ChunkResult chunk{weight_size ? weight_sums[k].data_ptr() : nullptr, bias_sums[k].data_ptr(),
                              squares[k].data_ptr<double>()};
      run(layer_, bounds[k], bounds[k + 1], chunk, scratch[k].data_ptr());
    }
  });

  at::Tensor total = at::zeros({batch, rows}, at::TensorOptions().dtype(at::kDouble));
  for (int64_t k = 0; k < chunks; ++k)
    total.narrow(0, bounds[k] / samples_of_pixels, squares[k].size(0)).add_(squares[k]);
  if (layer_.needs_weights) sum_chunks(weight_sums, result.gradient);
  const at::Tensor bias_total = bias_sums.sum(0);
  for (int64_t i = 0; i < layer_.pair_count; ++i) {
    const int64_t p = pair_indices_[i], channels = pairs_[i].source.channels;
    if (needs_.biases[p]) result.gradient.biases[p].copy_(bias_total.narrow(0, pairs_[i].row, channels));
    if (needs_.alpha)
      result.gradient.alpha.narrow(1, problem_.pairs[p].alpha_begin, channels)
          .copy_(total.narrow(1, pairs_[i].row, channels));
  }
  const auto* alpha = layer_.alpha;
  const double* q = total.const_data_ptr<double>();
  double loss = 0;
  for (int64_t i = 0; i < batch * rows; ++i)
    loss += q[i] * (float64 ? static_cast<const double*>(alpha)[i] : double(static_cast<const float*>(alpha)[i]));
  return loss / 2;
}

// Adds the chunks up in order, into the first, and writes each wanted pair's rows to its gradient.
void StackedLayer::sum_chunks(const at::Tensor& chunks, const Gradient& gradient) {
  const auto unpack = type_ == at::kDouble ? kernels_.unpack_double : kernels_.unpack_float;
  at::Tensor total = chunks[0];
  const int64_t size = total.numel();
  at::parallel_for(0, size, 1 << 15, [&](int64_t begin, int64_t end) {
    at::Tensor part = total.narrow(0, begin, end - begin);
    for (int64_t k = 1; k < chunks.size(0); ++k) part.add_(chunks[k].narrow(0, begin, end - begin));
  });
  at::parallel_for(0, layer_.pair_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = pair_indices_[i];
      if (needs_.weights[p]) unpack(matrix_of(gradient.weights[p]), total.const_data_ptr(), layer_.rows, pairs_[i].row);
    }
  });
}

}  // namespace l2t_fast::cpu
