// What every function has that Python calls with its own objects, where pybind11's conversions would take too long.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>

#include <optional>
#include <span>

namespace l2t_fast {

// Errors as torch.ops raises them.
template <typename Compute>
pybind11::object translated(const Compute& compute) {
  HANDLE_TH_ERRORS
  return compute();
  END_HANDLE_TH_ERRORS_PYBIND
}

using Items = std::span<PyObject* const>;

// Of a list or tuple; a subclass might do anything when it is asked.
inline std::optional<Items> items(pybind11::handle object) {
  if (!PyList_CheckExact(object.ptr()) && !PyTuple_CheckExact(object.ptr())) return std::nullopt;
  return Items(PySequence_Fast_ITEMS(object.ptr()), static_cast<size_t>(PySequence_Fast_GET_SIZE(object.ptr())));
}

}  // namespace l2t_fast
