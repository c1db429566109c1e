#include "python_calls.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "coefficients.h"
#include "ops/arguments.h"
#include "python_objects.h"

namespace l2t_fast::python_calls {
namespace {

namespace py = pybind11;
using at::Tensor;

template <typename Compute>
py::object computed(const Compute& compute) {
  const Tensor result = [&] {
    const py::gil_scoped_release others_may_run;
    return compute();
  }();
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(result));
}

// ---- Python's objects -----------------------------------------------------------------------------------------------

std::optional<Items> two(py::handle object) {
  const auto found = items(object);
  return found && found->size() == 2 ? found : std::nullopt;
}

// Not copied: what counts the references to so many tensors would take as long as all else here.
using Tensors = std::vector<std::reference_wrapper<const Tensor>>;

// A tensor and no subclass of it; None is an undefined one.
bool add_tensor(Tensors& list, PyObject* object, bool or_none = false) {
  static const Tensor undefined;
  const bool is_none = or_none && object == Py_None;
  if (!is_none && !THPVariable_CheckExact(object)) return false;
  list.push_back(is_none ? undefined : THPVariable_Unpack(object));
  return true;
}

std::optional<Tensors> tensors(py::handle object, bool or_none = false) {
  const auto given = items(object);
  if (!given) return std::nullopt;
  Tensors list;
  list.reserve(given->size());
  for (PyObject* const item : *given)
    if (!add_tensor(list, item, or_none)) return std::nullopt;
  return list;
}

// m0, n0, m1, n1, ...
std::optional<std::vector<int64_t>> indices(py::handle pairs) {
  const auto given = items(pairs);
  if (!given) return std::nullopt;
  std::vector<int64_t> list;
  list.reserve(2 * given->size());
  for (PyObject* const pair : *given) {
    const auto both = two(pair);
    if (!both) return std::nullopt;
    for (PyObject* const index : *both) {
      int overflow = 0;
      if (!PyLong_CheckExact(index)) return std::nullopt;
      list.push_back(PyLong_AsLongLongAndOverflow(index, &overflow));
      if (overflow) return std::nullopt;
    }
  }
  return list;
}

template <typename Value>
Value known(std::optional<Value> found) {
  TORCH_CHECK_TYPE(found, "lists of tensors and of pairs of indices are needed");
  return *std::move(found);
}

std::vector<Tensor> copied(const Tensors& list) { return {list.begin(), list.end()}; }

// ---- whether they fit -----------------------------------------------------------------------------------------------

// What all tensors of a call have in common.
struct Common {
  at::Device device;
  bool is_double;

  bool has(const Tensor& tensor) const {
    using c10::DispatchKey;
    constexpr c10::DispatchKeySet transformed{DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper,
                                              DispatchKey::Functionalize, DispatchKey::NestedTensor};
    const auto type = tensor.scalar_type();
    return tensor.layout() == at::kStrided && !tensor.key_set().has_any(transformed) && tensor.device() == device &&
           (is_double ? type == at::kDouble : type == at::kFloat || type == at::kBFloat16 || type == at::kHalf);
  }
};

bool maps_fit(const Tensors& maps, const Common& common, int64_t batch) {
  return std::all_of(maps.begin(), maps.end(), [&](const Tensor& map) {
    return common.has(map) && map.dim() == 4 && map.size(0) == batch && map.size(1) * map.size(2) * map.size(3) > 0;
  });
}

bool pair_weight_fits(at::IntArrayRef shape, int64_t batch) {
  return shape == at::IntArrayRef{batch} || shape == at::IntArrayRef{batch, 1} || shape == at::IntArrayRef{1, 1};
}

// One weight and one bias, undefined for none, a pair. No channel weights, or no pair weights, is an empty list.
bool fit(const Tensors& sources, const Tensors& targets, const Tensors& weights, const Tensors& biases,
         const Tensors& channel_weights, const Tensors& pair_weights, at::IntArrayRef pairs) {
  if (sources.empty() || targets.empty()) return false;
  const Tensor& first = sources[0];
  const Common common{first.device(), first.scalar_type() == at::kDouble};
  if (!common.has(first) || first.dim() != 4) return false;
  const int64_t batch = first.size(0);
  if (!maps_fit(sources, common, batch) || !maps_fit(targets, common, batch)) return false;

  const auto has_shape = [&common](const Tensor& tensor, at::IntArrayRef shape) {
    return common.has(tensor) && tensor.sizes() == shape;
  };
  for (size_t p = 0; p < weights.size(); ++p) {
    const int64_t m = pairs[2 * p], n = pairs[2 * p + 1];
    if (m < 0 || n < 0 || m >= static_cast<int64_t>(sources.size()) || n >= static_cast<int64_t>(targets.size()))
      return false;
    const int64_t rows = sources[m].get().size(1), columns = targets[n].get().size(1);
    if (!(has_shape(weights[p], {rows, columns}) || has_shape(weights[p], {rows, columns, 1, 1})) ||
        (biases[p].get().defined() && !has_shape(biases[p], {rows})) ||
        (!channel_weights.empty() && !has_shape(channel_weights[p], {batch, rows})) ||
        (!pair_weights.empty() &&
         !(common.has(pair_weights[p]) && pair_weight_fits(pair_weights[p].get().sizes(), batch))))
      return false;
  }
  return true;
}

// ---- weights --------------------------------------------------------------------------------------------------------

Tensor joined(at::TensorList tensors, at::ScalarType type) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("l2t_fast::joined", "").typed<Tensor(at::TensorList)>();
  return op.call(tensors).to(type);
}

// (B, pairs), or (1, pairs) where every pair weight is (1, 1).
Tensor joined_pair_weights(std::vector<Tensor> weights, int64_t batch, at::ScalarType type) {
  const auto is_like_first = [&](const Tensor& weight) { return weight.sizes() == weights[0].sizes(); };
  if (!std::all_of(weights.begin(), weights.end(), is_like_first))  // the only case of operators of each pair's own
    for (Tensor& weight : weights) weight = weight.reshape({-1, 1}).to(type).expand({batch, 1});
  return joined(weights, type);
}

}  // namespace

py::object checked(py::handle sources, py::handle targets, py::handle projections, py::handle pairs,
                   py::handle channel_weights, py::handle pair_weights) {
  return translated([&]() -> py::object {
    const auto given = items(projections);
    const auto numbers = indices(pairs);
    const auto source_maps = tensors(sources), target_maps = tensors(targets);
    const auto what = channel_weights.is_none() ? Tensors() : tensors(channel_weights);
    const auto where = pair_weights.is_none() ? Tensors() : tensors(pair_weights);
    if (!given || given->empty() || !numbers || !source_maps || !target_maps || !what || !where) return py::none();
    const size_t count = given->size();
    const auto one_a_pair = [count](py::handle list, size_t size) { return list.is_none() || size == count; };
    if (numbers->size() != 2 * count || !one_a_pair(channel_weights, what->size()) ||
        !one_a_pair(pair_weights, where->size()))
      return py::none();

    Tensors weights, biases;
    py::tuple weight_objects(count), bias_objects(count);
    for (size_t p = 0; p < count; ++p) {
      const auto both = two((*given)[p]);
      if (!both || !add_tensor(weights, (*both)[0]) || !add_tensor(biases, (*both)[1], /*or_none=*/true))
        return py::none();
      weight_objects[p] = py::handle((*both)[0]);
      bias_objects[p] = py::handle((*both)[1]);
    }
    if (!fit(*source_maps, *target_maps, weights, biases, *what, *where, *numbers)) return py::none();
    return py::make_tuple(weight_objects, bias_objects);
  });
}

py::object coefficients(py::handle channel_weights, py::handle pair_weights, const std::vector<int64_t>& channels,
                        const std::vector<double>& scales, int64_t batch, bool is_double) {
  return translated([&] {
    const auto type = is_double ? at::kDouble : at::kFloat;
    std::vector<Tensor> what, where;
    if (!channel_weights.is_none()) what = copied(known(tensors(channel_weights)));
    if (!pair_weights.is_none()) where = copied(known(tensors(pair_weights)));
    return computed([&] {
      const Term term{what.empty() ? Tensor() : joined(what, type),
                      where.empty() ? Tensor() : joined_pair_weights(std::move(where), batch, type)};
      return call_coefficients({term}, {channels, scales, batch});
    });
  });
}

py::object matching_loss(py::handle sources, py::handle targets, py::handle weights, py::handle biases,
                         py::handle alpha, py::handle pairs, bool by_triton) {
  return translated([&] {
    Arguments arguments;
    arguments.family = by_triton ? Family::triton : Family::native;
    arguments.sources = copied(known(tensors(sources)));
    arguments.targets = copied(known(tensors(targets)));
    arguments.weights = copied(known(tensors(weights)));
    arguments.pairs = known(indices(pairs));
    for (const Tensor& bias : known(tensors(biases, /*or_none=*/true)))
      arguments.biases.push_back(bias.defined() ? std::optional(bias) : std::nullopt);
    TORCH_CHECK_TYPE(THPVariable_Check(alpha.ptr()), "alpha must be a tensor");
    arguments.alpha = THPVariable_Unpack(alpha.ptr());
    for (const Tensor& input : arguments.inputs())
      arguments.needs.push_back(at::GradMode::is_enabled() && input.defined() && input.requires_grad());
    return computed([&] { return call_matching_loss(arguments); });
  });
}

}  // namespace l2t_fast::python_calls
