#include "layers.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>
#include <utility>

#include "memory.h"

namespace l2t_fast::cpu {
namespace {

// Pairs are stacked up to this many rows; beyond, a block's panels would leave the cache.
constexpr int64_t group_rows = 1024;
// Below this a thread costs more than it brings.
constexpr double flops_per_chunk = 4e6;
constexpr int64_t numbers_per_task = 1 << 15;

std::optional<plan::Algorithm> forced_algorithm;
bool forced_chunks = false;

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

// Inputs are asked for their memory as const: that of a lazy clone would be copied otherwise.
Feature feature_of(const at::Tensor& tensor, bool written = false) {
  return {written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr()),
          element_of(tensor),
          tensor.size(1),
          tensor.size(2),
          tensor.size(3),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3)};
}

Matrix matrix_of(const at::Tensor& tensor, bool written = false) {
  return {written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr()),
          element_of(tensor),
          tensor.size(0),
          tensor.size(1),
          tensor.stride(0),
          tensor.stride(1)};
}

// Pairs for a thread at least, of a matrix of so many numbers.
int64_t grain_of(int64_t pairs, int64_t numbers) {
  return std::max<int64_t>(1, numbers_per_task * pairs / std::max<int64_t>(1, numbers));
}

// function(data) with a float* or double*, as the tensor has it.
template <class Function>
void with_numbers(const at::Tensor& tensor, const Function& function) {
  if (tensor.scalar_type() == at::kDouble)
    function(tensor.mutable_data_ptr<double>());
  else
    function(tensor.mutable_data_ptr<float>());
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
void force_chunks(bool always) { forced_chunks = always; }

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

StackedLayer::StackedLayer(const MatchingProblem& problem, const Direction* direction, const Needs& needs,
                           int64_t target, std::vector<int64_t> pairs)
    : kernels_(kernels()),
      problem_(problem),
      direction_(direction),
      needs_(needs),
      target_(target),
      pair_indices_(std::move(pairs)) {
  const at::Tensor& features = problem.targets[target];
  const bool float64 = problem.alpha.scalar_type() == at::kDouble;
  shape_ = {.batch = features.size(0),
            .channels = features.size(1),
            .height = features.size(2),
            .width = features.size(3),
            .sources = source_sizes(problem, pair_indices_),
            .needs_target = needs.targets[target],
            .needs_weights = needs_any_weight()};
  work_ = direction ? plan::Work::hessian_vector : plan::Work::gradient;
  algorithm_ = forced_algorithm ? *forced_algorithm : plan::choose(shape_, work_, float64, at::get_num_threads());
  type_ = float64 || algorithm_ == plan::Algorithm::gram ? at::kDouble : at::kFloat;
  unit_ = type_ == at::kDouble ? kernels_.unit_double : kernels_.unit_float;
  panel_ = type_ == at::kDouble ? kernels_.panel_double : kernels_.panel_float;

  layer_.batch = shape_.batch;
  layer_.channels = shape_.channels;
  layer_.pixels = shape_.height * shape_.width;
  layer_.width = shape_.width;
  layer_.target = feature_of(features);
  stack();
  const bool direct = algorithm_ == plan::Algorithm::direct;
  layer_.weight_rows = packed(problem.weights, /*transposed=*/false);
  if (direct) layer_.weight_columns = packed(problem.weights, /*transposed=*/true);
  layer_.bias = stacked_bias(problem.biases);
  layer_.alpha = stacked_alpha(problem.alpha);
  if (!direction) return;
  if (direction->targets[target].defined()) layer_.target_direction = feature_of(direction->targets[target]);
  if (any_defined(direction->weights)) {
    layer_.weight_direction_rows = packed(direction->weights, /*transposed=*/false);
    if (direct) layer_.weight_direction_columns = packed(direction->weights, /*transposed=*/true);
  }
  if (any_defined(direction->biases)) layer_.bias_direction = stacked_bias(direction->biases);
  if (direction->alpha.defined()) layer_.alpha_direction = stacked_alpha(direction->alpha);
  layer_.single_product =
      !float64 && (layer_.target_direction.data || layer_.weight_direction_rows || layer_.bias_direction);
}

bool StackedLayer::any_defined(const std::vector<at::Tensor>& tensors) const {
  return std::any_of(pair_indices_.begin(), pair_indices_.end(), [&](int64_t p) { return tensors[p].defined(); });
}

bool StackedLayer::needs_any_weight() const {
  return std::any_of(pair_indices_.begin(), pair_indices_.end(), [&](int64_t p) { return needs_.weights[p]; });
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
  at::Tensor panels = pooled_zeros({round_up(columns, panel_) * rows}, type_);
  const auto pack = type_ == at::kDouble ? kernels_.pack_double : kernels_.pack_float;
  at::parallel_for(0, layer_.pair_count, grain_of(layer_.pair_count, rows * columns), [&](int64_t begin, int64_t end) {
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

// Biases and coefficients go to and from their stacks in loops: a PyTorch operator or three for each pair would take a
// small call's time.
const void* StackedLayer::stacked_bias(const std::vector<at::Tensor>& biases) {
  at::Tensor stacked = at::zeros({layer_.rows}, at::TensorOptions().dtype(type_));
  with_numbers(stacked, [&](auto* to) {
    for (int64_t i = 0; i < layer_.pair_count; ++i) {
      const at::Tensor& bias = biases[pair_indices_[i]];
      if (!bias.defined()) continue;
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, bias.scalar_type(), "bias", [&] {
        const auto* const from = bias.const_data_ptr<scalar_t>();
        for (int64_t c = 0; c < bias.size(0); ++c)
          to[pairs_[i].row + c] = c10::convert<std::remove_pointer_t<decltype(to)>>(from[c * bias.stride(0)]);
      });
    }
  });
  storage_.push_back(stacked);
  return stacked.const_data_ptr();
}

const void* StackedLayer::stacked_alpha(const at::Tensor& alpha) {
  at::Tensor stacked = at::zeros({layer_.batch, layer_.rows}, at::TensorOptions().dtype(type_));
  with_numbers(stacked, [&](auto* to) {
    AT_DISPATCH_FLOATING_TYPES(alpha.scalar_type(), "alpha", [&] {
      const auto* const from = alpha.const_data_ptr<scalar_t>();
      const int64_t by_sample = alpha.stride(0), by_column = alpha.stride(1);
      for (int64_t b = 0; b < layer_.batch; ++b)
        for (int64_t i = 0; i < layer_.pair_count; ++i) {
          const auto* const columns = from + b * by_sample + problem_.pairs[pair_indices_[i]].alpha_begin * by_column;
          auto* const row = to + b * layer_.rows + pairs_[i].row;
          for (int64_t c = 0; c < pairs_[i].source.channels; ++c) row[c] = 2 * columns[c * by_column];
        }
    });
  });
  storage_.push_back(stacked);
  return stacked.const_data_ptr();
}

StackedLayer::Schedule StackedLayer::schedule() const {
  const bool gram = algorithm_ == plan::Algorithm::gram, float64 = type_ == at::kDouble;
  const bool hvp = work_ == plan::Work::hessian_vector;
  Schedule schedule{};
  Layer layer = layer_;
  if (shape_.needs_target) layer.target_gradient = layer.target;  // only whether there is one counts here
  size_t scratch;
  if (gram) {
    scratch = kernels_.gram_scratch(layer);
    schedule.kernel = hvp ? kernels_.gram_hvp : kernels_.gram_forward;
  } else if (float64) {
    scratch = kernels_.direct_scratch_double(layer, hvp);
    schedule.kernel = hvp ? kernels_.direct_hvp_double : kernels_.direct_forward_double;
  } else {
    scratch = kernels_.direct_scratch_float(layer, hvp);
    schedule.kernel = hvp ? kernels_.direct_hvp_float : kernels_.direct_forward_float;
  }
  schedule.scratch_bytes = int64_t(scratch);
  const double flops = 2.0 * double(layer_.batch * layer_.pixels) * double(layer_.rows * layer_.channels);
  const int64_t items = gram ? layer_.batch : layer_.batch * layer_.pixels;
  const int64_t worthwhile = forced_chunks ? items : int64_t(flops / flops_per_chunk);
  schedule.chunks = std::max<int64_t>(1, std::min({int64_t(at::get_num_threads()), items, worthwhile}));
  schedule.weight_size = shape_.needs_weights ? layer_.rows * round_up(layer_.channels, panel_) : 0;
  return schedule;
}

plan::LayerPlan StackedLayer::plan() const {
  const Schedule cut = schedule();
  const plan::Cost cost = plan::cost(shape_, algorithm_, work_, problem_.targets[target_].element_size());
  int64_t workspace = 0;
  for (const at::Tensor& tensor : storage_) workspace += int64_t(tensor.nbytes());
  const int64_t element = type_ == at::kDouble ? 8 : 4, sums = layer_.rows * 8;
  workspace += cut.chunks * (cut.scratch_bytes + cut.weight_size * element + sums);
  workspace += 2 * (layer_.batch + cut.chunks) * sums;
  return {.target = target_,
          .pairs = pair_indices_,
          .algorithm = algorithm_,
          .flops = cost.flops,
          .bytes = cost.bytes,
          .workspace = workspace};
}

double StackedLayer::run(const Tangents& result) {
  const int64_t batch = layer_.batch, rows = layer_.rows;
  const bool hvp = work_ == plan::Work::hessian_vector;
  if (needs_.targets[target_]) layer_.target_gradient = feature_of(result.targets[target_], /*written=*/true);
  const auto [kernel, chunks, scratch_size, weight_size] = schedule();
  const int64_t pixels_per_sample = algorithm_ == plan::Algorithm::gram ? 1 : layer_.pixels;
  const int64_t items = batch * pixels_per_sample;
  const auto doubles = at::TensorOptions().dtype(at::kDouble);
  at::Tensor weight_sums = pooled_empty({chunks, weight_size}, type_);
  at::Tensor bias_sums = at::zeros({chunks, rows}, doubles);
  at::Tensor scratch = pooled_empty({chunks, scratch_size}, at::kByte);
  // A chunk's part of Q has a row for each sample it touches; two chunks may share a sample.
  std::vector<at::Tensor> alpha_sums(chunks);
  std::vector<int64_t> bounds(chunks + 1);
  for (int64_t k = 0; k <= chunks; ++k) bounds[k] = items * k / chunks;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t samples = (bounds[k + 1] - 1) / pixels_per_sample - bounds[k] / pixels_per_sample + 1;
      alpha_sums[k] = at::zeros({samples, rows}, doubles);
      if (weight_size) weight_sums[k].zero_();
      const ChunkResult chunk{weight_size ? weight_sums[k].data_ptr() : nullptr, bias_sums[k].data_ptr(),
                              alpha_sums[k].data_ptr<double>()};
      kernel(layer_, bounds[k], bounds[k + 1], chunk, scratch[k].data_ptr());
    }
  });

  at::Tensor alpha_sum = at::zeros({batch, rows}, doubles);
  for (int64_t k = 0; k < chunks; ++k)
    alpha_sum.narrow(0, bounds[k] / pixels_per_sample, alpha_sums[k].size(0)).add_(alpha_sums[k]);
  if (needs_.alpha) write_alpha(alpha_sum, hvp ? 2 : 1, result.alpha);
  if (weight_size) write_weights(weight_sums, result.weights);
  write_biases(bias_sums.sum(0), result.biases);
  return hvp ? 0 : loss(alpha_sum);
}

void StackedLayer::write_alpha(const at::Tensor& sums, double factor, const at::Tensor& result) const {
  AT_DISPATCH_FLOATING_TYPES(result.scalar_type(), "alpha", [&] {
    const double* const from = sums.const_data_ptr<double>();
    auto* const to = result.mutable_data_ptr<scalar_t>();
    for (int64_t b = 0; b < layer_.batch; ++b)
      for (int64_t i = 0; i < layer_.pair_count; ++i) {
        const int64_t first = problem_.pairs[pair_indices_[i]].alpha_begin;
        const double* const row = from + b * layer_.rows + pairs_[i].row;
        for (int64_t c = 0; c < pairs_[i].source.channels; ++c)
          to[b * result.stride(0) + (first + c) * result.stride(1)] = scalar_t(factor * row[c]);
      }
  });
}

void StackedLayer::write_biases(const at::Tensor& sums, const std::vector<at::Tensor>& results) const {
  const double* const from = sums.const_data_ptr<double>();
  for (int64_t i = 0; i < layer_.pair_count; ++i) {
    if (!needs_.biases[pair_indices_[i]]) continue;
    const at::Tensor& result = results[pair_indices_[i]];
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, result.scalar_type(), "bias", [&] {
      auto* const to = result.mutable_data_ptr<scalar_t>();
      for (int64_t c = 0; c < pairs_[i].source.channels; ++c)
        to[c * result.stride(0)] = c10::convert<scalar_t>(from[pairs_[i].row + c]);
    });
  }
}

// Adds the chunks up in order, into the first, and writes each wanted pair's rows.
void StackedLayer::write_weights(const at::Tensor& chunks, const std::vector<at::Tensor>& result) const {
  const auto unpack = type_ == at::kDouble ? kernels_.unpack_double : kernels_.unpack_float;
  at::Tensor sum = chunks[0];
  for (int64_t k = 1; k < chunks.size(0); ++k) sum.add_(chunks[k]);
  const int64_t grain = grain_of(layer_.pair_count, layer_.rows * layer_.channels);
  at::parallel_for(0, layer_.pair_count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = pair_indices_[i];
      if (needs_.weights[p])
        unpack(matrix_of(result[p], /*written=*/true), sum.const_data_ptr(), layer_.rows, pairs_[i].row);
    }
  });
}

double StackedLayer::loss(const at::Tensor& squares) const {
  const double* q = squares.const_data_ptr<double>();
  double twice = 0;
  // Rows of the padding are left out: zeros, but for an infinite target, of which they make NaN.
  const auto add = [&](const auto* alpha) {
    for (int64_t b = 0; b < layer_.batch; ++b)
      for (const PairView& pair : pairs_)
        for (int64_t i = b * layer_.rows + pair.row, end = i + pair.source.channels; i < end; ++i)
          twice += q[i] * double(alpha[i]);
  };
  if (type_ == at::kDouble)
    add(static_cast<const double*>(layer_.alpha));
  else
    add(static_cast<const float*>(layer_.alpha));
  return twice / 2;
}

}  // namespace l2t_fast::cpu
