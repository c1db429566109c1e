// What PyTorch and the extension ask of libcudart, whose place this library takes when it is loaded first.
#include "runtime.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

namespace fake_gpu {
namespace {

constexpr size_t memory_bytes = size_t(4) << 30;

struct Capture {
  unsigned long long number;
  std::vector<Work> kept, to_put_back;
};

struct Stream {
  std::shared_ptr<Capture> capture;  // that it takes part in
  int priority;
};

struct Event {
  double milliseconds;
  std::shared_ptr<Capture> capture;  // that its stream took part in
};

std::recursive_mutex mutex;
std::map<const void*, std::string> kernels;  // by the host function that stands for one
std::map<char*, size_t> memory, pinned;      // sizes, by where they begin
size_t taken = 0;
std::set<Stream*> streams;
unsigned long long captures = 0;
std::set<int> contexts;  // of devices, which hold hundreds of MB on a real one
thread_local int device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration;

int devices() { return setting("FAKE_GPUS", 1); }

cudaError_t failed(cudaError_t error) { return last_error = error; }

Stream& of(cudaStream_t stream) {
  static std::map<int, Stream> defaults;
  const bool is_default = !stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
  return is_default ? defaults[device] : *reinterpret_cast<Stream*>(stream);
}

Event& of(cudaEvent_t event) { return *reinterpret_cast<Event*>(event); }
std::shared_ptr<Capture>& of(cudaGraph_t graph) { return *reinterpret_cast<std::shared_ptr<Capture>*>(graph); }
std::shared_ptr<Capture>& of(cudaGraphExec_t graph) { return *reinterpret_cast<std::shared_ptr<Capture>*>(graph); }

// To wait for something that is being captured would be to wait for what has not run.
cudaError_t waited(bool in_capture) { return in_capture ? failed(cudaErrorStreamCaptureUnsupported) : cudaSuccess; }

bool is_any_captured() {
  for (const Stream* stream : streams)
    if (stream->capture) return true;
  return false;
}

// The one of the blocks that the address lies in.
Found found_in(const std::map<char*, size_t>& blocks, const void* address) {
  auto block = blocks.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  if (block == blocks.begin() || address >= std::prev(block)->first + std::prev(block)->second) return {};
  return {std::prev(block)->first, std::prev(block)->second};
}

void save(cudaStream_t stream, void* to, size_t bytes) {
  if (!is_capturing(stream)) return;
  const std::vector<char> old(static_cast<char*>(to), static_cast<char*>(to) + bytes);
  put_back_after_the_capture(stream, [=] { std::memcpy(to, old.data(), bytes); });
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  save(stream, to, bytes);
  run(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}

int no_driver() { return cudaErrorNotSupported; }

}  // namespace

int setting(const char* variable, int otherwise) {
  const char* const found = std::getenv(variable);
  return found ? std::atoi(found) : otherwise;
}

Found memory_at(const void* address) {
  const std::lock_guard lock(mutex);
  const Found found = found_in(memory, address);
  return found.begin ? found : found_in(pinned, address);
}

bool is_capturing(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  return of(stream).capture != nullptr;
}

void keep_for_the_graph(cudaStream_t stream, Work work) {
  const std::lock_guard lock(mutex);
  of(stream).capture->kept.push_back(std::move(work));
}

void put_back_after_the_capture(cudaStream_t stream, Work work) {
  const std::lock_guard lock(mutex);
  of(stream).capture->to_put_back.push_back(std::move(work));
}

void run(cudaStream_t stream, const Work& work) {
  if (is_capturing(stream)) keep_for_the_graph(stream, work);
  work();
}

}  // namespace fake_gpu

using namespace fake_gpu;

extern "C" {

// Kernels

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const std::lock_guard lock(mutex);
  kernels[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  const std::string* name = nullptr;
  {
    const std::lock_guard lock(mutex);
    const auto found = kernels.find(function);
    if (found == kernels.end()) return failed(cudaErrorInvalidDeviceFunction);
    name = &found->second;
  }
  launch(*name, grid, block, shared, arguments, stream);
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* function, void** arguments) {
  return cudaLaunchKernel(function, how->gridDim, how->blockDim, arguments, how->dynamicSmemBytes, how->stream);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  run(stream, [=] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static char symbol[1 << 12];
  *address = symbol;
  return cudaSuccess;
}

// Devices

cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* current) {
  *current = device;
  return cudaSuccess;
}

// As since CUDA 12, it makes a context.
cudaError_t cudaSetDevice(int wanted) {
  if (wanted < 0 || wanted >= devices()) return failed(cudaErrorInvalidDevice);
  const std::lock_guard lock(mutex);
  contexts.insert(device = wanted);
  return cudaSuccess;
}

int fake_gpu_has_context(int number) {
  const std::lock_guard lock(mutex);
  return contexts.count(number);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int number) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "fake GPU");
  properties->uuid.bytes[0] = char(number + 1);
  const int architecture = setting("FAKE_GPU_ARCHITECTURE", 90);
  properties->major = architecture / 10;
  properties->minor = architecture % 10;
  properties->multiProcessorCount = setting("FAKE_GPU_PROCESSORS", 2);
  properties->totalGlobalMem = memory_bytes;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 1 << 16;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = (architecture == 80 ? 163 : architecture == 90 ? 227 : 99) << 10;
  properties->sharedMemPerMultiprocessor = properties->sharedMemPerBlockOptin + (1 << 10);
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, number);
  *value = attribute == cudaDevAttrComputeCapabilityMajor         ? properties.major
           : attribute == cudaDevAttrComputeCapabilityMinor       ? properties.minor
           : attribute == cudaDevAttrMultiProcessorCount          ? properties.multiProcessorCount
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? int(properties.sharedMemPerBlockOptin)
                                                                  : 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int number) {
  std::snprintf(text, size_t(length), "0000:%02x:00.0", number + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(&no_driver);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
  static thread_local char text[40];
  std::snprintf(text, sizeof text, "error %d of the fake GPU", int(error));
  return text;
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

// Memory

cudaError_t cudaMalloc(void** address, size_t bytes) {
  const std::lock_guard lock(mutex);
  if (taken + bytes > memory_bytes) return failed(cudaErrorMemoryAllocation);
  contexts.insert(device);
  auto* const made = static_cast<char*>(std::aligned_alloc(512, (bytes + 511) / 512 * 512));
  std::memset(made, 0xff, bytes);  // no number, in every type
  memory[made] = bytes;
  taken += bytes;
  *address = made;
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  const std::lock_guard lock(mutex);
  const auto found = memory.find(static_cast<char*>(address));
  if (found == memory.end()) return address ? failed(cudaErrorInvalidValue) : cudaSuccess;
  taken -= found->second;
  memory.erase(found);
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  const std::lock_guard lock(mutex);
  *address = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  pinned[static_cast<char*>(*address)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) {
  const std::lock_guard lock(mutex);
  pinned.erase(static_cast<char*>(address));
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  const std::lock_guard lock(mutex);
  *all = memory_bytes;
  *free = memory_bytes - taken;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::lock_guard lock(mutex);
  auto* const address = static_cast<char*>(const_cast<void*>(pointer));
  *attributes = {};
  attributes->type = found_in(memory, address).begin   ? cudaMemoryTypeDevice
                     : found_in(pinned, address).begin ? cudaMemoryTypeHost
                                                       : cudaMemoryTypeUnregistered;
  attributes->devicePointer = attributes->hostPointer = address;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  save(stream, to, bytes);
  run(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

// Streams and events

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* made, unsigned, int priority) {
  const std::lock_guard lock(mutex);
  auto* const stream = new Stream{nullptr, priority};
  streams.insert(stream);
  *made = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned) { return cudaStreamCreateWithPriority(made, 0, 0); }
cudaError_t cudaStreamCreate(cudaStream_t* made) { return cudaStreamCreateWithPriority(made, 0, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  streams.erase(&of(stream));
  delete &of(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = of(stream).priority;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited(is_capturing(stream)); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return waited(is_capturing(stream)); }

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard lock(mutex);
  return waited(is_any_captured());
}

// To wait for a stream that is captured is to take part in the capture.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard lock(mutex);
  if (of(event).capture && !of(stream).capture) of(stream).capture = of(event).capture;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event{});
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &of(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  of(event) = {std::chrono::duration<double, std::milli>(now).count(), of(stream).capture};
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard lock(mutex);
  return waited(of(event).capture && is_any_captured());
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = float(of(end).milliseconds - of(begin).milliseconds);
  return cudaSuccess;
}

// Graphs

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* number,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  const std::lock_guard lock(mutex);
  const auto capture = of(stream).capture;
  cudaStreamIsCapturing(stream, status);
  if (number && capture) *number = capture->number;
  if (graph) *graph = nullptr;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  if (!stream || of(stream).capture) return failed(cudaErrorStreamCaptureUnsupported);
  of(stream).capture = std::make_shared<Capture>(Capture{++captures, {}, {}});
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(mutex);
  const auto capture = of(stream).capture;
  if (!capture) return failed(cudaErrorIllegalState);
  for (Stream* other : streams)
    if (other->capture == capture) other->capture.reset();
  if (of(cudaStream_t{}).capture == capture) of(cudaStream_t{}).capture.reset();
  while (!capture->to_put_back.empty()) {
    capture->to_put_back.back()();
    capture->to_put_back.pop_back();
  }
  *graph = reinterpret_cast<cudaGraph_t>(new std::shared_ptr<Capture>(capture));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = reinterpret_cast<cudaGraphExec_t>(new std::shared_ptr<Capture>(of(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const Work& work : of(graph)->kept) work();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete &of(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete &of(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = of(graph)->kept.size();
  return cudaSuccess;
}

}  // extern "C"
