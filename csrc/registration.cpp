// The Python module l2t_fast._C: what does not fit a torch.ops operator. Operators register themselves, each in its own
// file, with TORCH_LIBRARY_FRAGMENT(l2t_fast, ...); importing this module loads them.

#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>
#include <vector>

#include "build_info.h"
#ifdef L2T_FAST_WITH_CUDA
#include "cuda/kernel_image.h"
#endif

namespace py = pybind11;

namespace l2t_fast {
namespace {

py::object text_or_none(const std::string& text) { return text.empty() ? py::none() : py::object(py::str(text)); }

py::dict build_info_dict() {
  const BuildInfo info = build_info();
  py::dict dict;
  dict["version"] = info.version;
  dict["commit"] = text_or_none(info.commit);
  dict["torch"] = info.torch;
  dict["compiler"] = info.compiler;
  dict["cxx_flags"] = info.cxx_flags;
  dict["instruction_sets"] = info.instruction_sets;
  dict["cuda"] = text_or_none(info.cuda);
  dict["cuda_architectures"] = text_or_none(info.cuda_architectures);
  return dict;
}

// How many threads at::parallel_for really runs here: it is serial without a word where OpenMP is missing from the
// build.
int64_t parallel_threads() {
  const int64_t tasks = at::get_num_threads();
  std::vector<int64_t> thread(tasks, 0);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      thread[i] = at::get_thread_num();
    }
  });
  return static_cast<int64_t>(std::set<int64_t>(thread.begin(), thread.end()).size());
}

#ifdef L2T_FAST_WITH_CUDA
py::dict kernel_image_dict(int device) {
  const cuda::KernelImage image = cuda::kernel_image(device);
  py::dict dict;
  dict["runtime"] = image.runtime;
  dict["driver"] = image.driver;
  dict["binary"] = image.binary;
  dict["ptx"] = image.ptx;
  dict["error"] = text_or_none(image.error);
  return dict;
}
#endif

}  // namespace
}  // namespace l2t_fast

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native part of l2t_fast; its operators are torch.ops.l2t_fast.*";
  m.def("build_info", &l2t_fast::build_info_dict, "What the library was built from and with, as a dict.");
  m.def("parallel_threads", &l2t_fast::parallel_threads,
        "The number of threads that a native parallel loop uses under torch's current settings.");
#ifdef L2T_FAST_WITH_CUDA
  m.def("kernel_image", &l2t_fast::kernel_image_dict, py::arg("device"),
        "Which of the compiled CUDA kernels a device would run, as a dict; \"error\" says why none can.");
#endif
}
