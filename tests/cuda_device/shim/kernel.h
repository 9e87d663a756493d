// CUDA C as C++ for this CPU: read before every line of a generated kernel.
#pragma once
#include <cmath>
#include <cstring>

#include "../device.h"

static const Thread *the_thread;  // of this library; the device sets it before it runs a kernel

#define threadIdx (the_thread->thread)
#define blockIdx (the_thread->block)
#define blockDim (the_thread->block_size)
#define gridDim (the_thread->grid)

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// What -fsanitize=alignment calls, here without its library.
extern "C" __attribute__((visibility("hidden"), used)) void __ubsan_handle_type_mismatch_v1(
    void *, void *) {
  the_thread->fault("an access that is not aligned to its vector");
}

static inline void __syncthreads() { the_thread->block_barrier(); }
static inline void __syncwarp(unsigned = ~0u) { the_thread->warp_barrier(); }
static inline unsigned __activemask() { return ~0u; }

static inline int lane() {
  const Thread *t = the_thread;
  return ((t->thread.z * t->block_size.y + t->thread.y) * t->block_size.x + t->thread.x) & 31;
}

template <class T>
T exchanged(T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one register at most, or a pair");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = the_thread->exchange(bits, source);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
  return exchanged(value, (lane() & -width) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  int within = (lane() & (width - 1)) + (int)delta;
  return exchanged(value, within < width ? lane() + (int)delta : lane());
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  int within = (lane() & (width - 1)) - (int)delta;
  return exchanged(value, within >= 0 ? lane() - (int)delta : lane());
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
  int source = lane() ^ mask;
  return exchanged(value, (source & -width) <= (lane() & -width) ? source : lane());
}

template <class T>
T __ldg(const T *pointer) {
  return *pointer;
}

// Not as in CUDA, where a NaN loses against a number: no activation hides what was never written.
static inline float max(float a, float b) { return a > b || a != a ? a : b; }
static inline float min(float a, float b) { return a < b || a != a ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }

#define VECTOR2(name, element, bytes)             \
  struct __align__(bytes) name {                  \
    element x, y;                                 \
  };                                              \
  static inline name make_##name(element x, element y) { return {x, y}; }
#define VECTOR4(name, element, bytes)             \
  struct __align__(bytes) name {                  \
    element x, y, z, w;                           \
  };                                              \
  static inline name make_##name(element x, element y, element z, element w) { return {x, y, z, w}; }
VECTOR2(int2, int, 8)
VECTOR4(int4, int, 16)
VECTOR2(uint2, unsigned, 8)
VECTOR4(uint4, unsigned, 16)
VECTOR2(float2, float, 8)
VECTOR4(float4, float, 16)
#undef VECTOR2
#undef VECTOR4
