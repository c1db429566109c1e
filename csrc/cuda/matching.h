// K1, K2 and the coefficients: the host side, the same for a GPU and for the emulator.
#pragma once

#include "../coefficients.h"
#include "../matching.h"
#include "runner.h"

namespace l2t_fast::cuda {

LossAndGradient matching_forward(Runner& runner, const MatchingProblem& problem, const Needs& needs);
HessianVector matching_hvp(Runner& runner, const MatchingProblem& problem, const Direction& direction,
                           const Needs& needs);

at::Tensor coefficients(Runner& runner, const std::vector<Term>& terms, const Columns& columns,
                        const at::TensorOptions& options);
Adjoints coefficients_backward(Runner& runner, const at::Tensor& adjoint, const Term& term, const Columns& columns,
                               bool what, bool where);

}  // namespace l2t_fast::cuda
