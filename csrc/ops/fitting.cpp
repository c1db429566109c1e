// The operator arguments_fit: one look at the arguments of l2t_fast.feature_matching_loss. Python asks further, pair by
// pair, only where the answer is no: the checks that name what is wrong would take longer than a small call does.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "arguments.h"

namespace l2t_fast {
namespace {

// What all tensors of a call have in common.
struct Common {
  at::Device device;
  bool is_double;

  bool has(const at::Tensor& tensor) const {
    using c10::DispatchKey;
    constexpr c10::DispatchKeySet transformed{DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper,
                                              DispatchKey::Functionalize, DispatchKey::NestedTensor};
    const auto type = tensor.scalar_type();
    return tensor.layout() == at::kStrided && !tensor.key_set().has_any(transformed) && tensor.device() == device &&
           (is_double ? type == at::kDouble : type == at::kFloat || type == at::kBFloat16 || type == at::kHalf);
  }
};

bool maps_fit(at::TensorList maps, const Common& common, int64_t batch) {
  return std::all_of(maps.begin(), maps.end(), [&](const at::Tensor& map) {
    return common.has(map) && map.dim() == 4 && map.size(0) == batch && map.size(1) * map.size(2) * map.size(3) > 0;
  });
}

bool pair_weight_fits(at::IntArrayRef shape, int64_t batch) {
  return shape == at::IntArrayRef{batch} || shape == at::IntArrayRef{batch, 1} || shape == at::IntArrayRef{1, 1};
}

// No channel weights, or no pair weights, is an empty list.
bool arguments_fit(at::TensorList sources, at::TensorList targets, at::TensorList weights,
                   const OptionalTensorList& biases, at::TensorList channel_weights, at::TensorList pair_weights,
                   at::IntArrayRef pairs) {
  const size_t count = weights.size();
  const auto one_a_pair = [count](const auto& list) { return list.size() == count; };
  if (sources.empty() || targets.empty() || pairs.size() != 2 * count || !one_a_pair(biases) ||
      !(channel_weights.empty() || one_a_pair(channel_weights)) || !(pair_weights.empty() || one_a_pair(pair_weights)))
    return false;
  const Common common{sources[0].device(), sources[0].scalar_type() == at::kDouble};
  if (!common.has(sources[0]) || sources[0].dim() != 4) return false;
  const int64_t batch = sources[0].size(0);
  if (!maps_fit(sources, common, batch) || !maps_fit(targets, common, batch)) return false;

  const auto has_shape = [&common](const at::Tensor& tensor, at::IntArrayRef shape) {
    return common.has(tensor) && tensor.sizes() == shape;
  };
  for (size_t p = 0; p < count; ++p) {
    const int64_t m = pairs[2 * p], n = pairs[2 * p + 1];
    if (m < 0 || n < 0 || m >= static_cast<int64_t>(sources.size()) || n >= static_cast<int64_t>(targets.size()))
      return false;
    const int64_t rows = sources[m].size(1), columns = targets[n].size(1);
    const std::optional<at::Tensor> bias = biases.get(p);
    if (!(has_shape(weights[p], {rows, columns}) || has_shape(weights[p], {rows, columns, 1, 1})) ||
        (bias.has_value() && !has_shape(*bias, {rows})) ||
        (!channel_weights.empty() && !has_shape(channel_weights[p], {batch, rows})) ||
        (!pair_weights.empty() && !(common.has(pair_weights[p]) && pair_weight_fits(pair_weights[p].sizes(), batch))))
      return false;
  }
  return true;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(l2t_fast, library) {
  library.def(
      "arguments_fit(Tensor[] sources, Tensor[] targets, Tensor[] weights, Tensor?[] biases, "
      "Tensor[] channel_weights, Tensor[] pair_weights, int[] pairs) -> bool",
      arguments_fit);
}

}  // namespace l2t_fast
