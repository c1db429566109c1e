// The coefficients of the matching loss and their derivatives on a CPU: every sample by itself.
#include "../coefficients.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

namespace l2t_fast {
namespace {

constexpr int64_t elements_of_task = 1 << 15;
constexpr int chains = 8;  // of a sum over channels: in one alone, every addition would wait for the last

// function(sample, pair, first of its columns, channels, scale)
template <class T, class Function>
void for_each_pair(const Columns& columns, const Function& function) {
  const int64_t count = columns.count(), samples = std::max<int64_t>(1, elements_of_task / std::max<int64_t>(1, count));
  at::parallel_for(0, columns.batch, samples, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t first = b * count;
      for (size_t p = 0; p < columns.channels.size(); first += columns.channels[p++])
        function(b, int64_t(p), first, columns.channels[p], T(columns.scales[p]));
    }
  });
}

// A term's numbers; null stands for ones.
template <class T>
struct Numbers {
  const T *what, *where;
  int64_t where_stride;

  explicit Numbers(const Term& term)
      : what(term.what.defined() ? term.what.const_data_ptr<T>() : nullptr),
        where(term.where.defined() ? term.where.const_data_ptr<T>() : nullptr),
        where_stride(term.where_stride()) {}

  T where_at(int64_t b, int64_t p) const { return where ? where[b * where_stride + p] : T(1); }
};

}  // namespace

at::Tensor coefficients_cpu(const std::vector<Term>& terms, const Columns& columns, const at::TensorOptions& options) {
  at::Tensor result = at::empty({columns.batch, columns.count()}, options);
  AT_DISPATCH_FLOATING_TYPES(result.scalar_type(), "coefficients", [&] {
    auto* const data = result.mutable_data_ptr<scalar_t>();
    bool adds = false;
    for (const Term& each : terms) {
      const Numbers<scalar_t> term(each);
      for_each_pair<scalar_t>(columns,
                              [&, adds](int64_t b, int64_t p, int64_t first, int64_t channels, scalar_t scale) {
                                const scalar_t where = term.where_at(b, p) * scale;
                                scalar_t* const to = data + first;
                                for (int64_t c = 0; c < channels; ++c) {
                                  const scalar_t product = term.what ? where * term.what[first + c] : where;
                                  to[c] = adds ? to[c] + product : product;
                                }
                              });
      adds = true;
    }
  });
  return result;
}

Adjoints coefficients_backward_cpu(const at::Tensor& adjoint, const Term& term, const Columns& columns, bool what,
                                   bool where) {
  Adjoints results = empty_adjoints(adjoint, columns, what, where);
  AT_DISPATCH_FLOATING_TYPES(adjoint.scalar_type(), "coefficients_backward", [&] {
    const Numbers<scalar_t> own(term);
    const auto* const data = adjoint.const_data_ptr<scalar_t>();
    auto* const of_what = what ? results.first.mutable_data_ptr<scalar_t>() : nullptr;
    auto* const of_where = where ? results.second.mutable_data_ptr<scalar_t>() : nullptr;
    for_each_pair<scalar_t>(columns, [&](int64_t b, int64_t p, int64_t first, int64_t channels, scalar_t scale) {
      const auto* const from = data + first;
      if (of_what) {
        const scalar_t factor = own.where_at(b, p) * scale;
        for (int64_t c = 0; c < channels; ++c) of_what[first + c] = factor * from[c];
      }
      if (!of_where) return;
      scalar_t sums[chains] = {};
      const auto product = [&](int64_t c) { return own.what ? from[c] * own.what[first + c] : from[c]; };
      int64_t c = 0;
      for (; c + chains <= channels; c += chains)
        for (int k = 0; k < chains; ++k) sums[k] += product(c + k);
      for (int k = 0; c < channels; ++c, ++k) sums[k] += product(c);
      scalar_t sum = 0;
      for (const scalar_t part : sums) sum += part;
      of_where[b * int64_t(columns.channels.size()) + p] = sum * scale;
    });
  });
  return results;
}

}  // namespace l2t_fast
