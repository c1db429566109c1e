// alpha, the coefficients of the matching loss: the boundary between the operators (csrc/ops) and the code that
// computes them on a device (csrc/cpu, csrc/cuda).
//
// A pair's columns of alpha (B, sum over pairs of C_m) are scale * where * what, with `what` (B, columns) the pairs'
// channel weights side by side, and `where` (B, pairs) or (1, pairs) their pair weights.
#pragma once

#include <ATen/ATen.h>

#include <utility>
#include <vector>

namespace l2t_fast {

// Of such products only one is alpha itself; a second one is there where alpha moves by both of its factors. An
// undefined tensor stands for ones; not both are. All tensors are contiguous and have one device and one dtype, float32
// or float64 (on a GPU float32), which are the results' too.
struct Term {
  at::Tensor what, where;

  // From sample to sample of `where`: 0 where all have the same.
  int64_t where_stride() const { return where.defined() && where.size(0) > 1 ? where.size(1) : 0; }
};

struct Columns {
  std::vector<int64_t> channels;  // C_m, one a pair
  std::vector<double> scales;     // one a pair
  int64_t batch;

  int64_t count() const {
    int64_t sum = 0;
    for (const int64_t own : channels) sum += own;
    return sum;
  }
};

// The sum of one or two terms, (B, columns).
at::Tensor coefficients_cpu(const std::vector<Term>& terms, const Columns& columns, const at::TensorOptions& options);
at::Tensor coefficients_cuda(const std::vector<Term>& terms, const Columns& columns, const at::TensorOptions& options);

// A term's derivatives along an adjoint (B, columns), contiguous, each if it is wanted: that of `what` (B, columns),
// and that of `where`, (B, pairs) also where all samples have the same. The same bits from run to run.
using Adjoints = std::pair<at::Tensor, at::Tensor>;
Adjoints coefficients_backward_cpu(const at::Tensor& adjoint, const Term& term, const Columns& columns, bool what,
                                   bool where);
Adjoints coefficients_backward_cuda(const at::Tensor& adjoint, const Term& term, const Columns& columns, bool what,
                                    bool where);

// What a device makes of a term's derivatives.
inline Adjoints empty_adjoints(const at::Tensor& adjoint, const Columns& columns, bool what, bool where) {
  Adjoints results;
  if (what) results.first = at::empty_like(adjoint);
  if (where) results.second = at::empty({columns.batch, int64_t(columns.channels.size())}, adjoint.options());
  return results;
}

// The operator, by the dispatcher: differentiable.
at::Tensor call_coefficients(const std::vector<Term>& terms, const Columns& columns);

}  // namespace l2t_fast
