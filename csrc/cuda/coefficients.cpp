// The host side of the coefficients, the same for a GPU and for the emulator.
#include "../coefficients.h"

#include "coefficients.h"
#include "matching.h"

namespace l2t_fast::cuda {
namespace {

class Call {
 public:
  Call(const std::vector<Term>& terms, const Columns& columns, const at::TensorOptions& options) {
    const at::ScalarType type = c10::typeMetaToScalarType(options.dtype());
    TORCH_CHECK_TYPE(type == at::kFloat, "the weights are ", type, ", use float32 on a GPU");
    for (size_t p = 0; p < columns.channels.size(); ++p) {
      pairs_.push_back({call.columns, int32_t(columns.channels[p]), float(columns.scales[p])});
      call.columns += columns.channels[p];
    }
    call.pairs = int32_t(pairs_.size());
    call.batch = columns.batch;
    for (const Term& term : terms)
      call.terms[call.term_count++] = {data_of(term.what), data_of(term.where), term.where_stride()};
  }

  void run(Runner& runner) const {
    if (call.batch * call.columns > 0) runner.run(pairs_.data(), call);
  }

  CoefficientCall call{};

 private:
  static const float* data_of(const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
  }

  std::vector<PairColumns> pairs_;
};

float* written(const at::Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr<float>() : nullptr; }

}  // namespace

at::Tensor coefficients(Runner& runner, const std::vector<Term>& terms, const Columns& columns,
                        const at::TensorOptions& options) {
  Call call(terms, columns, options);
  at::Tensor result = at::empty({columns.batch, columns.count()}, options);
  call.call.result = written(result);
  call.run(runner);
  return result;
}

Adjoints coefficients_backward(Runner& runner, const at::Tensor& adjoint, const Term& term, const Columns& columns,
                               bool what, bool where) {
  Call call({term}, columns, adjoint.options());
  Adjoints results = empty_adjoints(adjoint, columns, what, where);
  call.call.adjoint = adjoint.const_data_ptr<float>();
  call.call.of_what = written(results.first);
  call.call.of_where = written(results.second);
  call.run(runner);
  return results;
}

}  // namespace l2t_fast::cuda
