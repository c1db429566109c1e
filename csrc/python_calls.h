// Short ways from Python's objects to the operators, for calls of l2t_fast.feature_matching_loss with ordinary tensors:
// to look at every argument in Python, and to hand lists of them to torch.ops, takes longer than a small call does.
#pragma once

#include <ATen/ATen.h>
#include <pybind11/pybind11.h>

#include <vector>

namespace l2t_fast::python_calls {

// (weights, biases) of the projections, if one look at all arguments finds nothing that Python has to ask further
// about; else None. Weights that are not given are None.
pybind11::object checked(pybind11::handle sources, pybind11::handle targets, pybind11::handle projections,
                         pybind11::handle pairs, pybind11::handle channel_weights, pybind11::handle pair_weights);

// alpha, of lists of weights or None, float64 or else float32; one of the numbers a pair.
pybind11::object coefficients(pybind11::handle channel_weights, pybind11::handle pair_weights,
                              const std::vector<int64_t>& channels, const std::vector<double>& scales, int64_t batch,
                              bool is_double);

// The operator of the same name, by Triton's kernels or our own, with the needs of a backward pass; arguments as
// `checked` has found them to be.
pybind11::object matching_loss(pybind11::handle sources, pybind11::handle targets, pybind11::handle weights,
                               pybind11::handle biases, pybind11::handle alpha, pybind11::handle pairs, bool by_triton);

}  // namespace l2t_fast::python_calls
