#define L2T_ISA avx2
#define L2T_VECTOR_BYTES 32
#include "kernels_impl.h"

namespace l2t_fast::cpu {

extern constexpr Kernels avx2_kernels = avx2::table("avx2");

}  // namespace l2t_fast::cpu
