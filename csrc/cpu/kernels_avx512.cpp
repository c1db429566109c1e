#define L2T_ISA avx512
#define L2T_VECTOR_BYTES 64
#include "kernels_impl.h"

namespace l2t_fast::cpu {

extern constexpr Kernels avx512_kernels = avx512::table("avx512");

}  // namespace l2t_fast::cpu
