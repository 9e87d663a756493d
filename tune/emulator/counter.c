/* A QEMU plugin: how many instructions the emulated program has executed, at each of its marks.
 *
 * A mark is the system call getpriority(MARK, ...), which the kernel refuses. At each one the total
 * since the mark before is written, in decimal on a line of its own, to the file named by the option
 * `out`. A system call ends a translated block, so the totals are exact. With the option `blocks`,
 * the file that it names holds the blocks executed between the last two marks, one a line: how often,
 * and the code in hexadecimal, instruction by instruction.
 *
 * QEMU's header is not packaged; this declares what is used of its documented interface.
 * MARK and QEMU_PLUGIN_VERSION are the compiler's to define.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GETPRIORITY 141 /* aarch64's number of the system call */

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
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
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

/* A block of code as QEMU has translated it. */
struct block {
    struct block *next;
    _Atomic uint64_t executions;
    size_t length;
    uint32_t code[];
};

static _Atomic(struct block *) blocks;
static FILE *out, *listing;

static void count_execution(unsigned int vcpu, void *block)
{
    atomic_fetch_add_explicit(&((struct block *)block)->executions, 1, memory_order_relaxed);
}

static void add_block(qemu_plugin_id_t id, struct qemu_plugin_tb *translated)
{
    size_t length = qemu_plugin_tb_n_insns(translated);
    struct block *block = calloc(1, sizeof *block + length * sizeof block->code[0]);
    if (block == NULL)
        abort();
    block->length = length;
    for (size_t i = 0; i < length; ++i) {
        const void *code = qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(translated, i));
        memcpy(&block->code[i], code, sizeof block->code[i]);
    }
    block->next = atomic_load(&blocks);
    while (!atomic_compare_exchange_weak(&blocks, &block->next, block))
        ;
    qemu_plugin_register_vcpu_tb_exec_cb(translated, count_execution, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void list(const struct block *block, uint64_t executions)
{
    fprintf(listing, "%" PRIu64, executions);
    for (size_t i = 0; i < block->length; ++i)
        fprintf(listing, " %08" PRIx32, block->code[i]);
    fputc('\n', listing);
}

static void report_mark(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t which,
                        uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                        uint64_t a8)
{
    if (number != GETPRIORITY || which != MARK)
        return;
    if (listing != NULL && ftruncate(fileno(listing), 0) == 0)
        rewind(listing);
    uint64_t total = 0;
    for (struct block *block = atomic_load(&blocks); block != NULL; block = block->next) {
        uint64_t executions = atomic_exchange(&block->executions, 0);
        total += executions * block->length;
        if (listing != NULL && executions > 0)
            list(block, executions);
    }
    fprintf(out, "%" PRIu64 "\n", total);
    fflush(out);
    if (listing != NULL)
        fflush(listing);
}

/* Opens the file of an option `name=FILE`; false when that fails. */
static bool open_option(const char *option, const char *name, FILE **file)
{
    size_t length = strlen(name);
    if (strncmp(option, name, length) != 0 || option[length] != '=')
        return true;
    *file = fopen(option + length + 1, "w");
    return *file != NULL;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    for (int i = 0; i < argc; ++i) {
        if (!open_option(argv[i], "out", &out) || !open_option(argv[i], "blocks", &listing)) {
            perror(argv[i]);
            return 1;
        }
    }
    if (out == NULL) {
        fprintf(stderr, "counter: expected the option out=FILE\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, add_block);
    qemu_plugin_register_vcpu_syscall_cb(id, report_mark);
    return 0;
}
