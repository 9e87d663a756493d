/* libcuda.so.1 for a machine without a driver: what TVM's CUDA runtime is linked against, so that
   it loads and TVM can compile for a GPU that is elsewhere. Every call says that there is none. */

enum { CUDA_ERROR_NO_DEVICE = 100 };

#define ABSENT(name) \
    int name(void) { return CUDA_ERROR_NO_DEVICE; }

/* libtvm_runtime_cuda.so */
ABSENT(cuDeviceGetName)
ABSENT(cuFuncSetAttribute)
ABSENT(cuGetErrorName)
ABSENT(cuGetErrorString)
ABSENT(cuLaunchKernelEx)
ABSENT(cuModuleGetFunction)
ABSENT(cuModuleLoadData)
ABSENT(cuModuleUnload)
ABSENT(cuTensorMapEncodeTiled)

/* libcudart.so.13, and others that ask before they give up */
ABSENT(cuInit)
ABSENT(cuDriverGetVersion)
ABSENT(cuGetProcAddress)
ABSENT(cuGetProcAddress_v2)

/* How we tell it from a driver. */
const int septune_no_driver = 1;
