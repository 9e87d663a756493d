// The seam between a kernel that was compiled for this CPU and the device that runs it.
#pragma once
#include <cstddef>
#include <cstdint>

struct Index {
  unsigned x, y, z;
};

// What the code of the thread that runs now can ask for.
struct Thread {
  Index thread, block, block_size, grid;
  unsigned char *shared;
  void (*block_barrier)();
  void (*warp_barrier)();
  // The value that lane `source` of the warp gives, once all of its lanes have given theirs.
  uint64_t (*exchange)(uint64_t value, int source);
  // Every lane of a warp says the same in the same order, or the launch fails.
  void (*agree)(const char *what, const void *pointer);
  void (*fault)(const char *message);
};

// A kernel, as its library exports it under the name host_<kernel>.
struct HostKernel {
  void (*run)(const Thread *thread, void **arguments);
  const unsigned *sizes;  // of the arguments in bytes, ended by 0
};
