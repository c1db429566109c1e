#include "triton_host.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/python_variable.h>

#include <vector>

#include "matching.h"
#include "python_objects.h"

namespace l2t_fast::triton_host {
namespace {

namespace py = pybind11;
using at::Tensor;

Items known(py::handle list) {
  const auto found = items(list);
  TORCH_CHECK_TYPE(found, "a list of tensors or None is needed");
  return *found;
}

// An undefined tensor for None.
const Tensor& tensor(PyObject* object) {
  static const Tensor undefined;
  if (object == Py_None) return undefined;
  TORCH_CHECK_TYPE(THPVariable_Check(object), "a tensor or None is needed, not ", Py_TYPE(object)->tp_name);
  return THPVariable_Unpack(object);
}

// A kernel writes to results alone, which are new: so an input that is a lazy copy stays one.
int64_t address(const Tensor& of) { return of.defined() ? reinterpret_cast<int64_t>(of.const_data_ptr()) : 0; }

py::object bytes(const std::vector<int64_t>& numbers) {
  return py::bytes(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t));
}

}  // namespace

py::object facts(py::handle tensors) {
  return translated([&] {
    std::vector<int64_t> numbers;
    for (PyObject* const object : known(tensors)) {
      const Tensor& of = tensor(object);
      if (!of.defined()) {
        numbers.push_back(-1);
        continue;
      }
      const bool is_strided = of.layout() == at::kStrided;
      numbers.insert(numbers.end(),
                     {of.dim(), int64_t(of.scalar_type()), int64_t(of.layout()), int64_t(of.device().type()),
                      of.device().index(), is_strided && address(of) % 16 == 0});
      numbers.insert(numbers.end(), of.sizes().begin(), of.sizes().end());
      if (is_strided) numbers.insert(numbers.end(), of.strides().begin(), of.strides().end());
    }
    return bytes(numbers);
  });
}

py::object addresses(py::handle tensors) {
  return translated([&] {
    std::vector<int64_t> numbers;
    for (PyObject* const object : known(tensors)) numbers.push_back(address(tensor(object)));
    return bytes(numbers);
  });
}

py::object empty_results(py::handle slots, py::handle needs, size_t maps) {
  return translated([&]() -> py::object {
    const Items inputs = known(slots), wanted = known(needs);
    TORCH_CHECK_VALUE(wanted.size() == inputs.size(), "got ", wanted.size(), " needs; ", inputs.size(), " are needed");
    py::list results(inputs.size());
    for (size_t slot = 0; slot < inputs.size(); ++slot) {
      if (wanted[slot] != Py_True) {
        results[slot] = py::none();
        continue;
      }
      const Tensor& input = tensor(inputs[slot]);
      TORCH_CHECK_VALUE(input.defined(), "need ", slot, " asks for the gradient of a bias that is None");
      const Tensor result = slot < maps
                                ? empty_gradient(input)
                                : at::empty(input.sizes(), input.options().dtype(gradient_type(input.scalar_type())));
      results[slot] = py::reinterpret_steal<py::object>(THPVariable_Wrap(result));
    }
    return results;
  });
}

}  // namespace l2t_fast::triton_host
