// The functions of libcudart that are not needed: those that have nothing to do here, and those nobody should call.
// Without its header, which would ask for their parameters.

#define NOTHING_TO_DO(name) \
  int name() { return 0; }
#define NOT_SUPPORTED(name) \
  int name() { return 801; }

extern "C" {

NOTHING_TO_DO(cudaDeviceEnablePeerAccess)
NOTHING_TO_DO(cudaFuncSetAttribute)
NOTHING_TO_DO(cudaGraphRetainUserObject)
NOTHING_TO_DO(cudaHostRegister)
NOTHING_TO_DO(cudaHostUnregister)
NOTHING_TO_DO(cudaKernelSetAttributeForDevice)
NOTHING_TO_DO(cudaLibraryUnload)
NOTHING_TO_DO(cudaMemcpyToSymbol)
NOTHING_TO_DO(cudaProfilerStart)
NOTHING_TO_DO(cudaProfilerStop)
NOTHING_TO_DO(cudaStreamUpdateCaptureDependencies)
NOTHING_TO_DO(cudaThreadExchangeStreamCaptureMode)
NOTHING_TO_DO(cudaUserObjectCreate)
NOTHING_TO_DO(cudaUserObjectRelease)

NOT_SUPPORTED(cudaDeviceGetDefaultMemPool)
NOT_SUPPORTED(cudaDeviceGetGraphMemAttribute)
NOT_SUPPORTED(cudaDeviceSetGraphMemAttribute)
NOT_SUPPORTED(cudaFreeAsync)
NOT_SUPPORTED(cudaGraphAddNode)
NOT_SUPPORTED(cudaGraphConditionalHandleCreate)
NOT_SUPPORTED(cudaGraphNodeGetDependencies)
NOT_SUPPORTED(cudaIpcCloseMemHandle)
NOT_SUPPORTED(cudaIpcGetEventHandle)
NOT_SUPPORTED(cudaIpcGetMemHandle)
NOT_SUPPORTED(cudaIpcOpenEventHandle)
NOT_SUPPORTED(cudaIpcOpenMemHandle)
NOT_SUPPORTED(cudaLibraryGetKernel)
NOT_SUPPORTED(cudaLibraryLoadData)
NOT_SUPPORTED(cudaMallocAsync)
NOT_SUPPORTED(cudaMemPoolGetAttribute)
NOT_SUPPORTED(cudaMemPoolSetAccess)
NOT_SUPPORTED(cudaMemPoolSetAttribute)
NOT_SUPPORTED(cudaMemPoolTrimTo)
NOT_SUPPORTED(cudaStreamAddCallback)
NOT_SUPPORTED(cudaStreamBeginCaptureToGraph)

}  // extern "C"
