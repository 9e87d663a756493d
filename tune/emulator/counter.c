/* A QEMU plugin: how many instructions the emulated program has executed, at each of its marks.
 *
 * A mark is the system call getpriority(MARK, …), which the kernel refuses. At each one the running
 * total is written, in decimal on a line of its own, to the file named by the option `out`. A system
 * call ends a translated block, so differences between marks are exact.
 *
 * QEMU's header is not packaged; this declares what is used of its documented interface.
 * MARK and QEMU_PLUGIN_VERSION are the compiler's to define.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define GETPRIORITY 141 /* aarch64's number of the system call */

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*tb_translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*tb_executed)(unsigned int vcpu, void *data);
typedef void (*syscall_made)(qemu_plugin_id_t, unsigned int vcpu, int64_t number, uint64_t, uint64_t,
                             uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_translated);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, tb_executed,
                                          enum qemu_plugin_cb_flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_made);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

static _Atomic uint64_t executed;
static FILE *out;

static void add(unsigned int vcpu, void *instructions)
{
    atomic_fetch_add_explicit(&executed, (uintptr_t)instructions, memory_order_relaxed);
}

static void count_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    void *instructions = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, add, QEMU_PLUGIN_CB_NO_REGS, instructions);
}

static void report_mark(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t which,
                        uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                        uint64_t a8)
{
    if (number == GETPRIORITY && which == MARK) {
        fprintf(out, "%" PRIu64 "\n", atomic_load(&executed));
        fflush(out);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0) {
        fprintf(stderr, "counter: expected the option out=FILE\n");
        return 1;
    }
    out = fopen(argv[0] + 4, "w");
    if (out == NULL) {
        perror(argv[0]);
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
    qemu_plugin_register_vcpu_syscall_cb(id, report_mark);
    return 0;
}
