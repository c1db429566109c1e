// The few functions of libcuda that PyTorch calls by itself: there is a context, and nothing else.
extern "C" {

int cuInit(unsigned) { return 0; }

int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}

}  // extern "C"
