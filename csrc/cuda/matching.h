// K1 and K2 by the kernels of kernel.h: the host side, the same for a GPU and for the emulator.
#pragma once

#include "../matching.h"
#include "runner.h"

namespace l2t_fast::cuda {

LossAndGradient matching_forward(Runner& runner, const MatchingProblem& problem, const Needs& needs);
HessianVector matching_hvp(Runner& runner, const MatchingProblem& problem, const Direction& direction,
                           const Needs& needs);

}  // namespace l2t_fast::cuda
