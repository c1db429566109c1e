#include "build_info.h"

#include "build_config.h"  // written by CMake

namespace l2t_fast {

// l2t_fast/_native.py looks for this text in the file before it loads it: a library built against another PyTorch can
// crash while it is being loaded, so the version must be readable without loading.
extern const char torch_mark[];
[[gnu::used]] const char torch_mark[] = "l2t_fast was built against torch==" L2T_FAST_TORCH_VERSION;

BuildInfo build_info() {
  BuildInfo info;
  info.version = L2T_FAST_VERSION;
  info.commit = L2T_FAST_COMMIT;
  info.torch = L2T_FAST_TORCH_VERSION;
  info.compiler = L2T_FAST_COMPILER;
  info.cxx_flags = L2T_FAST_CXX_FLAGS;
#ifdef L2T_FAST_AVX2
  info.instruction_sets.push_back("avx2");
#endif
#ifdef L2T_FAST_AVX512
  info.instruction_sets.push_back("avx512");
#endif
  info.cuda = L2T_FAST_CUDA_VERSION;
  info.cuda_architectures = L2T_FAST_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace l2t_fast
