// What Triton's host (l2t_fast/ops/triton/launching.py) asks of all tensors of a call: one by one, in Python, that
// takes as long as the launches do. Lists of tensors, None for one that is not there.
#pragma once

#include <pybind11/pybind11.h>

namespace l2t_fast::triton_host {

// Bytes that are equal where the tensors are to a plan: sizes, strides, types, devices, and whether an address is a
// multiple of 16.
pybind11::object facts(pybind11::handle tensors);

// An int64 each; 0 for None.
pybind11::object addresses(pybind11::handle tensors);

// Memory for the results, one a slot, None where there is no need: as empty_gradient (matching.h) makes it for the
// first `maps` of the slots, which are maps, and contiguous for the others.
pybind11::object empty_results(pybind11::handle slots, pybind11::handle needs, size_t maps);

}  // namespace l2t_fast::triton_host
