// The Python module l2t_fast._C: what does not fit a torch.ops operator. Operators register themselves, each in its own
// file, with TORCH_LIBRARY_FRAGMENT(l2t_fast, ...); importing this module loads them.

#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/layers.h"
#include "cpu/planning.h"
#include "cuda/emulation.h"
#include "cuda/plan.h"
#include "python_calls.h"
#include "triton_host.h"
#ifdef L2T_FAST_WITH_CUDA
#include "cuda/gpu/kernel_image.h"
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

using Shapes = std::vector<std::vector<int64_t>>;

py::list plan_dicts(const Shapes& sources, const Shapes& targets, const std::vector<std::pair<int64_t, int64_t>>& pairs,
                    int64_t element_size, bool hessian_vector) {
  const at::ScalarType dtype = element_size == 8 ? at::kDouble : element_size == 4 ? at::kFloat : at::kBFloat16;
  const auto work = hessian_vector ? plan::Work::hessian_vector : plan::Work::gradient;
  py::list plans;
  for (const plan::LayerPlan& layer : cpu::plan_layers(sources, targets, pairs, dtype, work)) {
    py::dict dict;
    dict["target"] = layer.target;
    dict["pairs"] = layer.pairs;
    dict["algorithm"] = layer.algorithm == plan::Algorithm::gram ? "gram" : "direct";
    dict["flops"] = layer.flops;
    dict["bytes"] = layer.bytes;
    dict["workspace"] = layer.workspace;
    plans.append(dict);
  }
  return plans;
}

void force_algorithm(const std::string& name) {
  std::optional<plan::Algorithm> algorithm;
  if (name == "direct") algorithm = plan::Algorithm::direct;
  if (name == "gram") algorithm = plan::Algorithm::gram;
  cpu::force_algorithm(algorithm);
  cuda::force_gram(algorithm ? std::optional(*algorithm == plan::Algorithm::gram) : std::nullopt);
}

void emulate_cuda(int processors, bool reversed, bool host_alone) {
  using cuda::Emulation;
  const cuda::Chip chip{processors, host_alone ? processors * cuda::operations_of_launch : 0};
  cuda::emulate_on_cpu(processors > 0 ? &chip : nullptr, host_alone ? Emulation::host_alone
                                                         : reversed ? Emulation::reversed
                                                                    : Emulation::in_order);
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
  m.def("checked", &l2t_fast::python_calls::checked, py::arg("sources"), py::arg("targets"), py::arg("projections"),
        py::arg("pairs"), py::arg("channel_weights"), py::arg("pair_weights"),
        "(weights, biases) of the projections where all arguments of the loss are usual ones, else None.");
  m.def("coefficients", &l2t_fast::python_calls::coefficients, py::arg("channel_weights"), py::arg("pair_weights"),
        py::arg("channels"), py::arg("scales"), py::arg("batch"), py::arg("is_double"),
        "The coefficients of lists of ordinary tensors, or None, as alpha.");
  m.def("matching_loss", &l2t_fast::python_calls::matching_loss, py::arg("sources"), py::arg("targets"),
        py::arg("weights"), py::arg("biases"), py::arg("alpha"), py::arg("pairs"), py::arg("by_triton") = false,
        "The operator's loss of ordinary tensors, of Triton's operators or our own.");
  m.def("facts", &l2t_fast::triton_host::facts, py::arg("tensors"),
        "Bytes that are equal where the tensors (or None) are to a plan of Triton's.");
  m.def("addresses", &l2t_fast::triton_host::addresses, py::arg("tensors"),
        "The tensors' addresses, as bytes of an int64 each; 0 for None.");
  m.def("empty_results", &l2t_fast::triton_host::empty_results, py::arg("slots"), py::arg("needs"), py::arg("maps"),
        "Memory for the results of Triton's operators, one a slot; None where there is no need.");
  m.def("parallel_threads", &l2t_fast::parallel_threads,
        "The number of threads that a native parallel loop uses under torch's current settings.");
  m.def("plan", &l2t_fast::plan_dicts, py::arg("sources"), py::arg("targets"), py::arg("pairs"),
        py::arg("element_size"), py::arg("hessian_vector"),
        "The CPU planner's choices, a dict a target layer; l2t_fast.plan checks the arguments.");
  m.def("force_chunks", &l2t_fast::cpu::force_chunks, py::arg("always"),
        "For tests: every CPU layer is cut into a chunk a thread, however small it is.");
  m.def("force_algorithm", &l2t_fast::force_algorithm, py::arg("name"),
        "For tests: every layer that can takes \"direct\" or \"gram\"; \"auto\" hands the choice back to the planner.");
  m.def(
      "emulate_cuda", &l2t_fast::emulate_cuda, py::arg("processors"), py::arg("reversed") = false,
      py::arg("host_alone") = false,
      "For tests: the operators of CPU tensors are computed by the CUDA kernels, thread by thread, as on a chip of so "
      "many processors; with no processors, by the CPU's own again. \"reversed\" runs threads and blocks in the "
      "opposite order. \"host_alone\" leaves the kernels out, and results without a value: what the host does for "
      "them can be measured so.");
#ifdef L2T_FAST_WITH_CUDA
  m.attr("cuda_shared_bytes") = l2t_fast::cuda::shared_bytes;
  m.def("kernel_image", &l2t_fast::kernel_image_dict, py::arg("device"),
        "Which of the compiled CUDA kernels a device would run, as a dict; \"error\" says why none can.");
#endif
}
