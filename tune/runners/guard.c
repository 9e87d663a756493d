/* Runs on the board, in the process that serves one RPC session; `trace` and `calls` also here.
 *
 * A TVM 0.27 server whose session process ends with a status other than 0 never accepts another
 * connection, and one whose session hangs waits for ever. So a crash or an overdue alarm of the
 * candidate ends the process with status 0, and the server lives on.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
#include <unistd.h>

#include <tvm/ffi/c_api.h>

#define EXPORT(name) \
  int __tvm_ffi_##name(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result)

/* A tensor arrives as a view, or as an object that holds one behind its header. */
static const DLTensor *tensor_of(const TVMFFIAny *value) {
  const size_t header = value->type_index == kTVMFFIDLTensorPtr ? 0 : sizeof(TVMFFIObject);
  return (const DLTensor *)((const char *)value->v_ptr + header);
}

static void end_session(int signal_number) {
  (void)signal_number;
  _exit(0);
}

/* protect(threads): survive candidates; let TVM's pool, made at its first use, have that many. */
EXPORT(protect) {
  static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGALRM};
  static char stack[1 << 16]; /* a handler cannot run on a stack that has overflowed */
  stack_t alternative = {.ss_sp = stack, .ss_size = sizeof stack};
  struct sigaction action;
  char threads[16];
  (void)self, (void)count, (void)result;

  sigaltstack(&alternative, NULL);
  memset(&action, 0, sizeof action);
  action.sa_handler = end_session;
  action.sa_flags = SA_ONSTACK;
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) sigaction(fatal[i], &action, NULL);
  snprintf(threads, sizeof threads, "%d", (int)args[0].v_int64);
  setenv("TVM_NUM_THREADS", threads, 1);
  return 0;
}

/* limit(seconds): end the session unless called again before; 0 takes the limit away. */
EXPORT(limit) {
  (void)self, (void)count, (void)result;
  alarm((unsigned)args[0].v_int64);
  return 0;
}

#ifdef __aarch64__
/* What the kernel would list, for an emulator that shows another machine's /proc/cpuinfo. */
static size_t own_cpuinfo(char *text, size_t size) {
  static const struct {
    int word, bit;
    const char *name;
  } features[] = {
      {0, 0, "fp"},       {0, 1, "asimd"},    {0, 3, "aes"},      {0, 4, "pmull"},
      {0, 5, "sha1"},     {0, 6, "sha2"},     {0, 7, "crc32"},    {0, 8, "atomics"},
      {0, 9, "fphp"},     {0, 10, "asimdhp"}, {0, 12, "asimdrdm"}, {0, 13, "jscvt"},
      {0, 14, "fcma"},    {0, 15, "lrcpc"},   {0, 16, "dcpop"},   {0, 20, "asimddp"},
      {0, 22, "sve"},     {0, 23, "asimdfhm"}, {0, 24, "dit"},    {0, 25, "uscat"},
      {0, 26, "ilrcpc"},  {0, 27, "flagm"},   {1, 1, "sve2"},     {1, 13, "i8mm"},
      {1, 14, "bf16"},
  };
  const unsigned long words[] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  const long processors = sysconf(_SC_NPROCESSORS_ONLN);
  const unsigned long has_cpuid = words[0] & 1ul << 11; /* the registers below may be read */
  unsigned long id = 0;
  size_t used = 0;

  if (has_cpuid) __asm__("mrs %0, midr_el1" : "=r"(id));
  for (long p = 0; p < processors && used + 512 < size; p++) {
    used += sprintf(text + used, "processor\t: %ld\nFeatures\t:", p);
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
      if (words[features[i].word] >> features[i].bit & 1)
        used += sprintf(text + used, " %s", features[i].name);
    used += sprintf(text + used, "\nCPU implementer\t: 0x%02lx\nCPU part\t: 0x%03lx\n\n",
                    id >> 24 & 0xff, id >> 4 & 0xfff);
  }
  return used;
}
#endif

/* cores(): how many this process may use. */
EXPORT(cores) {
  cpu_set_t usable;
  (void)self, (void)args, (void)count;
  result->type_index = kTVMFFIInt;
  result->v_int64 = sched_getaffinity(0, sizeof usable, &usable) ? 1 : CPU_COUNT(&usable);
  return 0;
}

/* Which kernels TVM's virtual machine has called since it was asked, a line each: name and ns. */
static char calls_text[1 << 16];
static size_t calls_used;

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* trace(function, name, before, ...): the machine's instrument, around each call that it makes. */
EXPORT(trace) {
  static const char own[] = "vm.builtin.";
  static int64_t start;
  const int64_t now = now_ns();
  const char *name = args[1].v_c_str;
  (void)self, (void)count, (void)result;

  if (!args[2].v_int64 && strncmp(name, own, sizeof own - 1)) {
    const size_t left = sizeof calls_text - calls_used;
    const int used =
        snprintf(calls_text + calls_used, left, "%s %lld\n", name, (long long)(now - start));
    if (used > 0 && (size_t)used < left) calls_used += (size_t)used;
  }
  start = now_ns();
  return 0;
}

/* calls(buffer): fill a tensor of bytes with those lines, and forget them; how many it took. */
EXPORT(calls) {
  const DLTensor *buffer = tensor_of(&args[0]);
  const size_t size = (size_t)buffer->shape[0];
  const size_t used = calls_used < size ? calls_used : size;
  (void)self, (void)count;

  memcpy((char *)buffer->data + buffer->byte_offset, calls_text, used);
  calls_used = 0;
  result->type_index = kTVMFFIInt;
  result->v_int64 = (int64_t)used;
  return 0;
}

/* cpuinfo(buffer): fill a tensor of bytes; how many it took. */
EXPORT(cpuinfo) {
  const DLTensor *buffer = tensor_of(&args[0]);
  char *text = (char *)buffer->data + buffer->byte_offset;
  const size_t size = (size_t)buffer->shape[0];
  FILE *file = fopen("/proc/cpuinfo", "r");
  size_t used = 0;
  (void)self, (void)count;

  if (file) {
    used = fread(text, 1, size - 1, file);
    fclose(file);
  }
  text[used] = 0;
#ifdef __aarch64__
  if (!strstr(text, "CPU part")) used = own_cpuinfo(text, size);
#endif
  result->type_index = kTVMFFIInt;
  result->v_int64 = (int64_t)used;
  return 0;
}
