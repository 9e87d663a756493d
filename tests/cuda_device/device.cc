// A CUDA device made of host memory: the driver library that TVM's CUDA runtime is linked against,
// and what the runtime library beside it is made of.
//
// A module's image is either `HOST:<path>`, a library of kernels compiled for this CPU, which are
// run, or anything else, such as a cubin: its launches are recorded, and handed to a stand-in where
// one was named. Nothing here is asynchronous: a stream has always ended. While one is captured, what
// a real device does not permit fails and spoils the capture; copies are not captured.
#include "device.h"

#include <dlfcn.h>
#include <elf.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <string>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_FOUND = 500, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801 };
enum { CAPTURING = 900, SPOILT = 901, DEFAULT_STREAM = 906 };  // what a capture does not permit
constexpr unsigned MOST_THREADS = 1024, SHARED = 49152, SHARED_OPT_IN = 232448;
constexpr unsigned char POISON = 0xff;  // a NaN in every float type
constexpr size_t ALIGNMENT = 256, STACK = 256 << 10;
constexpr size_t FENCE = 64 << 10;  // around an allocation: the rows that a block may overrun by
constexpr size_t SHARED_FENCE = 256;

std::string failure;  // why the last call failed

int failed(int code, const std::string &why) {
  failure = why;
  return code;
}

// ---- memory -----------------------------------------------------------------------------------

std::map<unsigned char *, size_t> allocations;

const char *broken_fence() {
  static const std::vector<unsigned char> whole(FENCE, POISON);
  for (auto &[start, size] : allocations) {
    if (memcmp(start - FENCE, whole.data(), FENCE)) return "wrote before the start of an allocation";
    if (memcmp(start + size, whole.data(), FENCE)) return "wrote behind the end of an allocation";
  }
  return nullptr;
}

// ---- threads ----------------------------------------------------------------------------------

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool started;
  State state;
  Index index;
};

std::vector<Fiber> fibers;
std::vector<unsigned char *> stacks;
jmp_buf scheduler;
unsigned current;
uint64_t given[MOST_THREADS];
std::vector<std::vector<std::pair<const char *, const void *>>> said;  // by warp, in this phase
std::vector<unsigned> position;                                       // by thread: how much it said
Thread view;
void (*body)(const Thread *, void **);
void **body_arguments;

void pause(State state) {
  Fiber &fiber = fibers[current];
  fiber.state = state;
  if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}

void block_barrier() { pause(AT_BLOCK_BARRIER); }
void warp_barrier() { pause(AT_WARP_BARRIER); }

uint64_t exchange(uint64_t value, int source) {
  unsigned me = current;
  given[me] = value;
  warp_barrier();
  unsigned from = (me & ~31u) + (source & 31);
  uint64_t got = from < fibers.size() ? given[from] : value;
  warp_barrier();
  return got;
}

void fault(const char *message) {
  if (failure.empty()) failure = message;
  _longjmp(scheduler, 1);
}

void agree(const char *what, const void *pointer) {
  auto &warp = said[current / 32];
  unsigned at = position[current]++;
  if (at == warp.size()) warp.emplace_back(what, pointer);
  if (strcmp(warp[at].first, what) || warp[at].second != pointer)
    fault("lanes of a warp that ask for different matrix instructions");
}

void live() {
  for (;;) {
    body(&view, body_arguments);
    pause(DONE);
  }
}

// Whether the fiber came back by itself, and not by a fault.
void resume(unsigned t) {
  current = t;
  Fiber &fiber = fibers[t];
  view.thread = fiber.index;
  fiber.state = READY;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void make_fibers(unsigned count) {
  while (stacks.size() < count) {
    void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stacks.push_back((unsigned char *)stack);
  }
  fibers.assign(count, Fiber{});
  for (unsigned t = 0; t < count; t++) {
    ucontext_t &context = fibers[t].context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[t];
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
  }
}

// Let those go on that all others have caught up with. False when none can.
bool release() {
  bool any = false;
  auto let_go = [&](size_t from, size_t to, State barrier) {
    bool waiting = false;
    for (size_t t = from; t < to; t++) {
      if (fibers[t].state == DONE) continue;
      if (fibers[t].state != barrier) return;
      waiting = true;
    }
    for (size_t t = from; t < to && waiting; t++)
      if (fibers[t].state == barrier) fibers[t].state = READY, any = true;
  };
  for (size_t warp = 0; warp < fibers.size(); warp += 32)
    let_go(warp, warp + 32 < fibers.size() ? warp + 32 : fibers.size(), AT_WARP_BARRIER);
  let_go(0, fibers.size(), AT_BLOCK_BARRIER);
  return any;
}

// Every other phase runs backwards, so that a missing barrier shows in one of them.
void run_block(bool backwards) {
  unsigned count = fibers.size();
  for (Fiber &fiber : fibers) fiber.state = READY;
  for (;; backwards = !backwards) {
    said.assign((count + 31) / 32, {});
    position.assign(count, 0);
    for (unsigned i = 0; i < count && failure.empty(); i++) {
      unsigned t = backwards ? count - 1 - i : i;
      if (fibers[t].state == READY) resume(t);
    }
    if (!failure.empty() || release()) {
      if (!failure.empty()) return;
      continue;
    }
    for (Fiber &fiber : fibers)
      if (fiber.state != DONE) failure = "threads that wait at barriers which others never reach";
    return;
  }
}

// ---- modules and launches ---------------------------------------------------------------------

typedef int (*StandIn)(const char *record);  // 0 when it has computed

struct Module {
  void *library;
  std::map<std::string, std::vector<unsigned>> sizes;  // of each kernel's arguments, from a cubin
};

struct Function {
  std::string name;
  const HostKernel *host;
  std::vector<unsigned> sizes;
  unsigned shared_allowed = SHARED;
};

struct Launch {
  Function *function;
  unsigned grid[3], block[3], shared;
  bool dependent;
  std::vector<uint64_t> values;
};

struct Graph {
  std::vector<Launch> launches;
};

std::map<std::string, StandIn> stand_ins;
std::vector<std::string> records;
std::string printed;

struct Capture {
  Graph *graph;  // none when nothing is captured
  const bool *stream;
  bool relaxed, spoilt;
} capture;

int spoil(int code, const std::string &why) {
  capture.spoilt = true;
  return failed(code, why);
}

std::string listed(const unsigned *numbers) {
  return "[" + std::to_string(numbers[0]) + ", " + std::to_string(numbers[1]) + ", " +
         std::to_string(numbers[2]) + "]";
}

void record(const Launch &launch, unsigned graph, const char *by) {
  std::string arguments, sizes;
  for (size_t i = 0; i < launch.values.size(); i++) {
    arguments += (i ? ", " : "") + std::to_string(launch.values[i]);
    sizes += (i ? ", " : "") + std::to_string(launch.function->sizes[i]);
  }
  records.push_back("{\"kernel\": \"" + launch.function->name + "\", \"grid\": " +
                    listed(launch.grid) + ", \"block\": " + listed(launch.block) +
                    ", \"shared\": " + std::to_string(launch.shared) +
                    ", \"dependent\": " + (launch.dependent ? "true" : "false") +
                    ", \"arguments\": [" + arguments + "], \"sizes\": [" + sizes +
                    "], \"by\": \"" + by + "\", \"graph\": " + std::to_string(graph) + "}");
}

int run_host(const Launch &launch, void **arguments) {
  static std::vector<unsigned char> memory(SHARED_OPT_IN + SHARED_FENCE + 1024);
  unsigned char *shared = memory.data() + (-(uintptr_t)memory.data() & 1023);
  const unsigned *g = launch.grid, *b = launch.block;
  view = Thread{{}, {}, {b[0], b[1], b[2]}, {g[0], g[1], g[2]}, shared,
                block_barrier, warp_barrier, exchange, agree, fault};
  body = launch.function->host->run;
  body_arguments = arguments;
  make_fibers(b[0] * b[1] * b[2]);
  for (unsigned t = 0; t < fibers.size(); t++)
    fibers[t].index = {t % b[0], t / b[0] % b[1], t / (b[0] * b[1])};
  failure.clear();
  bool backwards = false;
  for (unsigned z = 0; z < g[2]; z++)
    for (unsigned y = 0; y < g[1]; y++)
      for (unsigned x = 0; x < g[0]; x++, backwards = !backwards) {
        view.block = {x, y, z};
        memset(shared, POISON, launch.shared + SHARED_FENCE);
        run_block(backwards);
        for (size_t i = 0; i < SHARED_FENCE && failure.empty(); i++)
          if (shared[launch.shared + i] != POISON)
            failure = "wrote behind the end of its shared memory";
        if (!failure.empty()) return LAUNCH_FAILED;
      }
  return SUCCESS;
}

int perform(const Launch &launch, unsigned graph) {
  std::vector<void *> pointers;
  for (const uint64_t &value : launch.values) pointers.push_back((void *)&value);
  auto stand_in = stand_ins.find(launch.function->name);
  int code = SUCCESS;
  if (launch.function->host) {
    record(launch, graph, "host");
    code = run_host(launch, pointers.data());
  } else if (stand_in != stand_ins.end()) {
    record(launch, graph, "stand-in");
    if (stand_in->second(records.back().c_str()))
      code = failed(LAUNCH_FAILED, "its stand-in failed");
  } else {
    record(launch, graph, "nothing");
  }
  if (code == SUCCESS)
    if (const char *why = broken_fence()) code = failed(LAUNCH_FAILED, why);
  if (code) failure = launch.function->name + ": " + failure;
  return code;
}

// The sizes of every kernel's arguments, as the compiler noted them in the cubin.
void read_sizes(const unsigned char *image, Module *module) {
  constexpr unsigned char SIZED = 4, PARAMETER = 0x17;
  auto *header = (const Elf64_Ehdr *)image;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64) return;
  auto *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  const char *names = (const char *)image + sections[header->e_shstrndx].sh_offset;
  for (unsigned i = 0; i < header->e_shnum; i++) {
    std::string name = names + sections[i].sh_name;
    if (name.rfind(".nv.info.", 0)) continue;
    std::map<unsigned, unsigned> sizes;
    const unsigned char *at = image + sections[i].sh_offset, *end = at + sections[i].sh_size;
    while (at + 4 <= end) {  // format, attribute, then a value or its length
      uint16_t length;
      memcpy(&length, at + 2, 2);
      if (at[0] == SIZED && at[1] == PARAMETER) {
        uint16_t ordinal;
        uint32_t word;
        memcpy(&ordinal, at + 8, 2);
        memcpy(&word, at + 12, 4);
        sizes[ordinal] = word >> 18;
      }
      at += 4 + (at[0] == SIZED ? length : 0);
    }
    for (auto &[ordinal, size] : sizes) module->sizes[name.substr(9)].push_back(size);
  }
}

}  // namespace

extern "C" {

// ---- for the tests ----------------------------------------------------------------------------

// All launches since the last call, one JSON object a line.
const char *device_launches() {
  printed.clear();
  for (auto &line : records) printed += line + "\n";
  records.clear();
  return printed.c_str();
}

void device_stand_in(const char *kernel, StandIn function) { stand_ins[kernel] = function; }

// ---- for the runtime library ------------------------------------------------------------------

int device_allocate(void **pointer, size_t size) {
  if (capture.graph && !capture.relaxed)
    return spoil(CAPTURING, "memory is allocated during a capture");
  size_t whole = (size + 2 * FENCE + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  auto *start = (unsigned char *)aligned_alloc(ALIGNMENT, whole) + FENCE;
  memset(start - FENCE, POISON, whole);
  allocations[start] = size;
  *pointer = start;
  return SUCCESS;
}

int device_release(void *pointer) {
  auto found = allocations.find((unsigned char *)pointer);
  if (!pointer) return SUCCESS;
  if (capture.graph && !capture.relaxed)
    return spoil(CAPTURING, "memory is freed during a capture");
  if (found == allocations.end()) return failed(INVALID_VALUE, "frees what was not allocated");
  free(found->first - FENCE);
  allocations.erase(found);
  return SUCCESS;
}

// Whether so many bytes from `pointer` on lie in one allocation.
int device_holds(const void *pointer, size_t size) {
  auto found = allocations.upper_bound((unsigned char *)pointer);
  if (found == allocations.begin()) return 0;
  --found;
  return (unsigned char *)pointer + size <= found->first + found->second;
}

const char *device_failure() { return failure.c_str(); }

// Whether `stream` takes what is done at once. A stream is whether the default one waits for it.
int device_enter(const bool *stream) {
  if (!capture.graph) return SUCCESS;
  if (stream == capture.stream)
    return spoil(CAPTURING, "not permitted on a stream that is captured");
  if (!stream && *capture.stream)
    return spoil(DEFAULT_STREAM, "the default stream would wait for one that is captured");
  return SUCCESS;
}

int device_begin_capture(const bool *stream, bool relaxed) {
  if (!stream || capture.graph)
    return failed(CAPTURING, "captures one stream at a time, and never the default one");
  capture = {new Graph, stream, relaxed, false};
  return SUCCESS;
}

int device_end_capture(const bool *stream, void **graph) {
  *graph = nullptr;
  if (!capture.graph || stream != capture.stream)
    return failed(INVALID_VALUE, "the stream is not captured");
  Capture ended = capture;
  capture = {};
  if (ended.spoilt) return failed(SPOILT, "the capture has met what is not permitted");
  *graph = ended.graph;
  return SUCCESS;
}

int device_launch_graph(void *graph) {
  static unsigned count = 0;
  ++count;
  for (const Launch &launch : ((Graph *)graph)->launches)
    if (int code = perform(launch, count)) return code;
  return SUCCESS;
}

// ---- the driver's own -------------------------------------------------------------------------

int cuInit(unsigned) { return SUCCESS; }

int cuDriverGetVersion(int *version) {
  *version = 13000;
  return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int) {
  strncpy(name, "host memory", length);
  return SUCCESS;
}

int cuGetErrorName(int, const char **name) {
  *name = failure.c_str();  // TVM prints it and no more
  return SUCCESS;
}

int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

int cuTensorMapEncodeTiled() { return failed(NOT_SUPPORTED, "no tensor maps here"); }

int cuModuleLoadData(void **module, const void *image) {
  auto *made = new Module{};
  if (!strncmp((const char *)image, "HOST:", 5)) {
    made->library = dlopen((const char *)image + 5, RTLD_NOW | RTLD_LOCAL);
    if (!made->library) return failed(INVALID_VALUE, dlerror());
  } else {
    read_sizes((const unsigned char *)image, made);
  }
  *module = made;
  return SUCCESS;
}

int cuModuleUnload(void *) { return SUCCESS; }

int cuModuleGetFunction(void **function, void *module, const char *name) {
  auto *from = (Module *)module;
  auto *made = new Function{name, nullptr, from->sizes[name]};
  if (from->library) {
    made->host = (const HostKernel *)dlsym(from->library, ("host_" + made->name).c_str());
    if (!made->host) return failed(NOT_FOUND, "no kernel " + made->name + " in the library");
    for (const unsigned *size = made->host->sizes; *size; size++) made->sizes.push_back(*size);
  }
  *function = made;
  return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  constexpr int MOST_SHARED = 8;
  if (attribute == MOST_SHARED) {
    if (value < 0 || (unsigned)value > SHARED_OPT_IN)
      return failed(INVALID_VALUE, "more shared memory than a block can have");
    ((Function *)function)->shared_allowed = value;
  }
  return SUCCESS;
}

struct LaunchAttribute {
  int kind, padding;
  union {
    int value;
    char space[64];
  };
};

struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  const bool *stream;
  const LaunchAttribute *attributes;
  unsigned attribute_count;
};

// Whether a launch may come ahead of the end of the one before.
static bool is_dependent(const LaunchConfig *config) {
  constexpr int PROGRAMMATIC_STREAM_SERIALIZATION = 6;
  bool dependent = false;
  for (unsigned i = 0; i < config->attribute_count; i++)
    if (config->attributes[i].kind == PROGRAMMATIC_STREAM_SERIALIZATION)
      dependent = config->attributes[i].value;
  return dependent;
}

int cuLaunchKernelEx(const LaunchConfig *config, void *function, void **arguments, void **) {
  auto *kernel = (Function *)function;
  Launch launch{kernel, {}, {}, config->shared, is_dependent(config), {}};
  memcpy(launch.grid, config->grid, sizeof launch.grid);
  memcpy(launch.block, config->block, sizeof launch.block);
  const unsigned *g = launch.grid, *b = launch.block;
  if (!g[0] || g[0] > 0x7fffffff || !g[1] || g[1] > 65535 || !g[2] || g[2] > 65535)
    return failed(INVALID_VALUE, kernel->name + ": a grid of " + listed(g));
  if (!b[0] || !b[1] || !b[2] || (uint64_t)b[0] * b[1] * b[2] > MOST_THREADS || b[2] > 64)
    return failed(INVALID_VALUE, kernel->name + ": a block of " + listed(b));
  if (launch.shared > kernel->shared_allowed)
    return failed(INVALID_VALUE, kernel->name + ": shared memory that was not asked for before");
  for (size_t i = 0; i < kernel->sizes.size(); i++) {
    uint64_t value = 0;
    if (kernel->sizes[i] > sizeof value)
      return failed(INVALID_VALUE, kernel->name + ": an argument of more than 8 bytes");
    memcpy(&value, arguments[i], kernel->sizes[i]);
    launch.values.push_back(value);
  }
  if (capture.graph && config->stream == capture.stream) {
    capture.graph->launches.push_back(launch);
    return SUCCESS;
  }
  if (int code = device_enter(config->stream)) return code;
  return perform(launch, false);
}

}  // extern "C"
