// The CUDA runtime library of the device made of host memory: what TVM's CUDA runtime calls of it.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cstddef>

extern "C" {

int device_allocate(void **, size_t);
int device_release(void *);
int device_holds(const void *, size_t);
const char *device_failure();
int device_enter(const bool *);
int device_begin_capture(const bool *, bool);
int device_end_capture(const bool *, void **);
int device_launch_graph(void *);

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100 };
enum { TO_DEVICE = 1, TO_HOST = 2, WITHIN_DEVICE = 3 };

int cudaGetDeviceCount(int *count) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  *count = !visible || *visible;
  return *count ? SUCCESS : NO_DEVICE;
}
int cudaSetDevice(int) { return SUCCESS; }
int cudaGetDevice(int *device) {
  *device = 0;
  return SUCCESS;
}

// A Hopper card, by the numbers of cudaDeviceAttr, or of another capability: 86 is 8.6.
int cudaDeviceGetAttribute(int *value, int attribute, int) {
  const char *said = getenv("DEVICE_CAPABILITY");
  int capability = said ? atoi(said) : 90;
  switch (attribute) {
    case 1: *value = 1024; break;         // threads a block
    case 2: *value = 1024; break;         // of them in x
    case 3: *value = 1024; break;         // in y
    case 4: *value = 64; break;           // in z
    case 5: *value = 0x7fffffff; break;   // blocks in x
    case 6: *value = 65535; break;        // in y
    case 7: *value = 65535; break;        // in z
    case 8: *value = 49152; break;        // shared memory a block, unless asked for more
    case 10: *value = 32; break;          // threads a warp
    case 12: *value = 65536; break;       // registers a block
    case 13: *value = 1980000; break;     // clock in kHz
    case 16: *value = 132; break;         // multiprocessors
    case 38: *value = 50 << 20; break;    // second-level cache
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 97: *value = 232448; break;      // shared memory a block, when asked for
    default: *value = 0;
  }
  return SUCCESS;
}

int cudaGetDeviceProperties(void *properties, int) {
  strcpy((char *)properties, "host memory");  // the name goes first
  return SUCCESS;
}

int cudaMemGetInfo(size_t *available, size_t *total) {
  *total = (size_t)8 << 30;
  *available = (size_t)6 << 30;
  return SUCCESS;
}

int cudaMalloc(void **pointer, size_t size) { return device_allocate(pointer, size); }
int cudaFree(void *pointer) { return device_release(pointer); }
int cudaMallocHost(void **pointer, size_t size) {
  *pointer = malloc(size);
  return SUCCESS;
}
int cudaFreeHost(void *pointer) {
  free(pointer);
  return SUCCESS;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, const bool *stream) {
  if (int code = device_enter(stream)) return code;
  bool reads = kind == TO_HOST || kind == WITHIN_DEVICE;
  bool writes = kind == TO_DEVICE || kind == WITHIN_DEVICE;
  if ((reads && !device_holds(from, size)) || (writes && !device_holds(to, size)))
    return INVALID_VALUE;
  memcpy(to, from, size);
  return SUCCESS;
}
int cudaMemsetAsync(void *to, int byte, size_t size, const bool *stream) {
  if (int code = device_enter(stream)) return code;
  if (!device_holds(to, size)) return INVALID_VALUE;
  memset(to, byte, size);
  return SUCCESS;
}
int cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t size,
                        const bool *stream) {
  return cudaMemcpyAsync(to, from, size, WITHIN_DEVICE, stream);
}

// A stream is whether the default one waits for it.
int cudaStreamCreateWithFlags(bool **stream, unsigned apart) {
  *stream = (bool *)malloc(sizeof(bool));
  **stream = !apart;
  return SUCCESS;
}
int cudaStreamCreate(bool **stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(bool *stream) {
  free(stream);
  return SUCCESS;
}
int cudaStreamSynchronize(const bool *stream) { return device_enter(stream); }
int cudaStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }

int cudaEventCreate(timespec **event) {
  *event = (timespec *)calloc(1, sizeof(timespec));
  return SUCCESS;
}
int cudaEventDestroy(timespec *event) {
  free(event);
  return SUCCESS;
}
int cudaEventRecord(timespec *event, void *) {
  clock_gettime(CLOCK_MONOTONIC, event);
  return SUCCESS;
}
int cudaEventSynchronize(void *) { return SUCCESS; }
int cudaEventElapsedTime(float *milliseconds, const timespec *from, const timespec *to) {
  *milliseconds = (to->tv_sec - from->tv_sec) * 1e3f + (to->tv_nsec - from->tv_nsec) * 1e-6f;
  return SUCCESS;
}

const char *cudaGetErrorName(int code) { return code ? "cudaError" : "cudaSuccess"; }
const char *cudaGetErrorString(int code) {
  if (code == NO_DEVICE) return "no device is visible";
  return *device_failure() ? device_failure() : "outside what was allocated";
}
int cudaGetLastError() { return SUCCESS; }
int cudaPeekAtLastError() { return SUCCESS; }

int cudaStreamBeginCapture(const bool *stream, int mode) {
  constexpr int RELAXED = 2;
  return device_begin_capture(stream, mode == RELAXED);
}
int cudaStreamEndCapture(const bool *stream, void **graph) {
  return device_end_capture(stream, graph);
}
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long) {
  *executable = graph;
  return graph ? SUCCESS : INVALID_VALUE;
}
int cudaGraphLaunch(void *executable, const bool *stream) {
  int code = device_enter(stream);
  return code ? code : device_launch_graph(executable);
}
int cudaGraphDestroy(void *) { return SUCCESS; }
int cudaGraphExecDestroy(void *) { return SUCCESS; }

}  // extern "C"
