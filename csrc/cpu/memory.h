// Memory for results and workspaces of the CPU kernels, kept for the next call.
#pragma once

#include <ATen/ATen.h>

namespace l2t_fast::cpu {

// As at::empty and as empty_gradient (matching.h), but a large block comes from a pool and returns to it when the
// tensor dies. PyTorch's own allocator hands large blocks back to the system, which has to clear them again for every
// call: a tenth of a Hessian-vector product. The pool keeps at most a quarter more than was ever in use at once.
at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType type);
at::Tensor pooled_zeros(at::IntArrayRef sizes, at::ScalarType type);
at::Tensor pooled_gradient(const at::Tensor& input);

}  // namespace l2t_fast::cpu
