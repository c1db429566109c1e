// Every operator that PyTorch has on CUDA, computed by its CPU kernel on the same memory.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/CUDAContext.h>
#include <torch/library.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "runtime.h"

namespace fake_gpu {
namespace {

using c10::IValue;
using torch::jit::Stack;
using MaybeTensor = const std::optional<at::Tensor>&;

void each_tensor(const IValue& value, const std::function<void(const at::Tensor&)>& action) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) action(value.toTensor());
  } else if (value.isList()) {
    for (const IValue& item : value.toListRef()) each_tensor(item, action);
  }
}

at::Tensor on_cpu(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor;
  const auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  const at::Tensor same =
      at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), options);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) same.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (tensor.is_neg()) same._set_neg(true);
  if (tensor.is_conj()) same._set_conj(true);
  return same;
}

IValue on_cpu(const IValue& value) {
  if (value.isTensor()) return on_cpu(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorList()) list.push_back(on_cpu(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const IValue& item : value.toListRef())
      list.push_back(item.isNone() ? std::nullopt : std::optional(on_cpu(item.toTensor())));
    return list;
  }
  if (value.isDevice()) return c10::Device(at::kCPU);
  if (value.isGenerator()) return IValue();  // numbers are drawn by the CPU's own
  return value;
}

// One operator on CUDA tensors.
class Call {
 public:
  Call(const c10::OperatorHandle& operation, std::vector<IValue> given)
      : operation_(operation), given_(std::move(given)) {
    for (const IValue& value : given_) on_cpu_.push_back(on_cpu(value));
    check_devices();
    stream_ = at::cuda::getCurrentCUDAStream(device_.index()).stream();
    captured_ = is_capturing(stream_);
  }

  void run(Stack& stack) {
    const auto& arguments = operation_.schema().arguments();
    bool writes = false, of_new_size = false;
    for (size_t i = 0; i < arguments.size(); ++i) {
      // batch normalisation writes its running statistics without saying so
      const bool unsaid = name() == "aten::native_batch_norm" && (i == 3 || i == 4);
      if (!is_written(arguments[i]) && !unsaid) continue;
      if (captured_) put_back(on_cpu_[i]);
      writes |= !unsaid;
      each_tensor(given_[i], [&](const at::Tensor& tensor) { of_new_size |= tensor.numel() == 0; });
    }
    if (captured_ && draws()) {
      at::Generator generator = at::detail::getDefaultCPUGenerator();
      put_back_after_the_capture(stream_,
                                 [generator, state = generator.get_state()]() mutable { generator.set_state(state); });
    }
    Stack results = compute();
    if (of_new_size)
      resize_outputs();
    else if (captured_ && writes)
      keep_for_the_graph(stream_, [call = by_address()] { call.compute(); });
    hand_over(results, stack);
  }

 private:
  const std::string& name() const { return operation_.schema().name(); }
  static bool is_written(const c10::Argument& argument) {
    return argument.alias_info() && argument.alias_info()->isWrite();
  }

  bool draws() const {
    if (name() == "aten::native_dropout") return true;
    for (const c10::Argument& argument : operation_.schema().arguments())
      if (argument.name() == "generator") return true;
    return false;
  }

  // Numbers of no dimension and indices may be on the CPU; what copies takes both, and without waiting where the CPU's
  // memory is pinned.
  void check_devices() {
    bool cpu = false, cuda = false, mixed = false, pinned = true;
    for (const IValue& value : given_)
      each_tensor(value, [&](const at::Tensor& tensor) {
        if (!tensor.is_cuda()) {
          cpu |= tensor.dim() > 0;
          pinned &= tensor.is_pinned();
        } else {
          mixed |= cuda && tensor.dim() > 0 && tensor.device() != device_;
          if (!cuda) device_ = tensor.device();
          cuda = true;
        }
      });
    for (const IValue& value : given_)
      if (!cuda && value.isDevice() && value.toDevice().is_cuda()) device_ = value.toDevice();
    if (!device_.has_index()) device_ = c10::Device(at::kCUDA, c10::cuda::current_device());
    const bool copies = name() == "aten::copy_", takes_indices = name().find("index") != std::string::npos;
    TORCH_CHECK(copies || takes_indices || !(mixed || (cuda && cpu)), name(), " on tensors of different devices");
    const bool captured = is_capturing(at::cuda::getCurrentCUDAStream(device_.index()).stream());
    const bool waits = (copies && cpu && !(pinned && given_[2].toBool())) || name() == "aten::_local_scalar_dense" ||
                       name() == "aten::equal" || name() == "aten::nonzero";
    TORCH_CHECK(!captured || !waits, name(), " waits for the GPU, and a stream is being captured");
  }

  Stack compute() const {
    const at::AutoDispatchBelowAutograd below;
    Stack stack = on_cpu_;
    operation_.callBoxed(stack);
    return stack;
  }

  // For a graph, which knows addresses, and keeps no tensor alive.
  Call by_address() const {
    Call call = *this;
    call.given_.clear();
    return call;
  }

  void put_back(const IValue& value) const {
    each_tensor(value, [&](const at::Tensor& tensor) {
      if (tensor.numel()) put_back_after_the_capture(stream_, [tensor, old = tensor.clone()] { tensor.copy_(old); });
    });
  }

  // Where a result was given without its size, the CPU's kernel gave its stand-in one.
  void resize_outputs() {
    std::vector<at::Tensor> given, computed;
    for (size_t i = 0; i < given_.size(); ++i) {
      if (!is_written(operation_.schema().arguments()[i])) continue;
      each_tensor(given_[i], [&](const at::Tensor& tensor) { given.push_back(tensor); });
      each_tensor(on_cpu_[i], [&](const at::Tensor& tensor) { computed.push_back(tensor); });
    }
    for (size_t i = 0; i < given.size(); ++i) {
      if (given[i].sizes() == computed[i].sizes()) continue;
      given[i].resize_(computed[i].sizes());
      fake_gpu::run(stream_, [to = on_cpu(given[i]), from = computed[i]] { to.copy_(from); });
    }
    if (captured_) keep_for_the_graph(stream_, [call = by_address()] { call.compute(); });
  }

  // Results that are arguments are those given; others are new, and a graph computes them again where they lie now.
  void hand_over(const Stack& results, Stack& stack) const {
    const auto& schema = operation_.schema();
    std::vector<std::pair<at::Tensor, size_t>> made;  // and the how many-th of all results it is
    size_t number = 0;
    const auto on_gpu = [&](const at::Tensor& tensor) {
      if (!tensor.defined()) return tensor;
      const size_t own = number++;
      at::Tensor result = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device_));
      if (tensor.numel()) {
        made.emplace_back(on_cpu(result), own);
        made.back().first.copy_(tensor);
      }
      return result;
    };
    for (size_t r = 0; r < schema.returns().size(); ++r) {
      const auto* const alias = schema.returns()[r].alias_info();
      if (alias) {
        for (size_t i = 0; i < given_.size(); ++i) {
          const auto* const own = schema.arguments()[i].alias_info();
          if (own && own->beforeSets() == alias->beforeSets()) stack.push_back(given_[i]);
        }
        each_tensor(results[r], [&](const at::Tensor&) { ++number; });
      } else if (results[r].isTensor()) {
        stack.push_back(on_gpu(results[r].toTensor()));
      } else if (results[r].isTensorList()) {
        c10::List<at::Tensor> list;
        for (const at::Tensor& tensor : results[r].toTensorList()) list.push_back(on_gpu(tensor));
        stack.push_back(list);
      } else {
        stack.push_back(results[r]);
      }
    }
    if (captured_ && !made.empty())
      keep_for_the_graph(stream_, [call = by_address(), made] {
        std::vector<at::Tensor> again;
        for (const IValue& value : call.compute())
          each_tensor(value, [&](const at::Tensor& tensor) { again.push_back(tensor); });
        for (const auto& [to, which] : made) to.copy_(again[which]);
      });
  }

  const c10::OperatorHandle operation_;
  std::vector<IValue> given_;
  Stack on_cpu_;
  c10::Device device_ = c10::Device(at::kCUDA);
  cudaStream_t stream_ = nullptr;
  bool captured_ = false;
};

void compute_on_cpu(const c10::OperatorHandle& operation, Stack* stack) {
  const auto count = ptrdiff_t(operation.schema().arguments().size());
  std::vector<IValue> given(stack->end() - count, stack->end());
  stack->erase(stack->end() - count, stack->end());
  Call(operation, std::move(given)).run(*stack);
}

// cuDNN's have no twin on the CPU.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm(const at::Tensor& input, const at::Tensor& weight,
                                                                      MaybeTensor bias, MaybeTensor mean,
                                                                      MaybeTensor variance, bool training,
                                                                      double momentum, double eps) {
  const auto [output, own_mean, scale] =
      at::native_batch_norm(input, weight, bias, mean, variance, training, momentum, eps);
  return {output, own_mean, scale, at::empty({0}, input.options().dtype(at::kByte))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_backward(const at::Tensor& input, const at::Tensor& gradient,
                                                                   const at::Tensor& weight, MaybeTensor mean,
                                                                   MaybeTensor variance, MaybeTensor own_mean,
                                                                   MaybeTensor scale, double eps, const at::Tensor&) {
  return at::native_batch_norm_backward(gradient, input, weight, mean, variance, own_mean, scale, true, eps,
                                        {true, true, true});
}

// Those that make and shape memory do on a GPU what they do anywhere.
const std::set<std::string> of_memory{"empty.memory_format",
                                      "empty_strided",
                                      "resize_",
                                      "set_",
                                      "set_.source_Storage",
                                      "set_.source_Storage_storage_offset",
                                      "set_.source_Tensor",
                                      "record_stream",
                                      "_pin_memory",
                                      "is_pinned",
                                      "is_set_to"};
const std::set<std::string> of_all_devices{"copy_", "convolution", "convolution_backward"};

bool is_replaced(const c10::OperatorHandle& operation, const std::string& name) {
  for (const auto& result : operation.schema().returns())
    if (result.alias_info() && !result.alias_info()->isWrite()) return false;  // a view
  if (of_all_devices.count(name)) return true;
  return !of_memory.count(name) && operation.hasKernelForDispatchKey(c10::DispatchKey::CUDA) &&
         (operation.hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
          operation.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd));
}

struct : c10::WarningHandler {
  void process(const c10::Warning&) override {}
} quiet;  // every one of them replaces another

// For the rest of the process.
void install() {
  static torch::Library aten(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  static torch::Library own(torch::Library::IMPL, "l2t_fast", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  for (const c10::OperatorName& full : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto operation = c10::Dispatcher::singleton().findOp(full);
    const auto begin = full.name.find("::") + 2;
    const std::string space = full.name.substr(0, begin - 2);
    const std::string name = full.name.substr(begin) + (full.overload_name.empty() ? "" : "." + full.overload_name);
    // the emulator has all of our kernels but those of batch normalisation, which run where compiled code does
    const bool is_own = space == "l2t_fast" && name.find("batch_norm") == 0 && !std::getenv("FAKE_GPU_PTX");
    if (!operation || !(space == "aten" || is_own) || !is_replaced(*operation, name)) continue;
    (is_own ? own : aten).impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
  }
  aten.impl("cudnn_batch_norm", TORCH_FN(batch_norm));
  aten.impl("cudnn_batch_norm_backward", TORCH_FN(batch_norm_backward));
}

const bool installed = (install(), true);

}  // namespace
}  // namespace fake_gpu
