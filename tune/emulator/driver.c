/* Calls what TVM has compiled, with a mark for counter.c before and after each call.
 *
 *     driver kernel  LIBRARY CALLS FILE:SHAPE...   main(tensors...); each FILE is a tensor's memory,
 *                                                  so that outputs are found in theirs
 *     driver network LIBRARY CALLS FILE:SHAPE OUT  main(image) of a Relax VM; its logits go to OUT
 *
 * FILE ends in .f32 or .f16, by its values; SHAPE is sizes joined by x. Ends with status 1 and a line on stderr when a call fails. MARK is the
 * compiler's to define.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <tvm/ffi/c_api.h>

#define MOST_ARGUMENTS 8
#define MOST_DIMS 8
#define POOLED_ALLOCATOR 2

typedef TVMFFIObjectHandle Handle;

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(int status, const char *what)
{
    if (status == 0)
        return;
    Handle error;
    TVMFFIErrorMoveFromRaised(&error);
    TVMFFIErrorCell *cell = (TVMFFIErrorCell *)((TVMFFIObject *)error + 1);
    fprintf(stderr, "%s: %.*s\n", what, (int)cell->message.size, cell->message.data);
    exit(1);
}

static TVMFFIAny call(Handle function, TVMFFIAny *arguments, int count)
{
    TVMFFIAny result = {.type_index = kTVMFFINone};
    check(TVMFFIFunctionCall(function, arguments, count, &result), "call");
    return result;
}

static TVMFFIAny text(const char *value)
{
    return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = value};
}

static TVMFFIAny integer(int64_t value)
{
    return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value};
}

static Handle global(const char *name)
{
    Handle function = NULL;
    TVMFFIByteArray bytes = {name, strlen(name)};
    check(TVMFFIFunctionGetGlobal(&bytes, &function), name);
    return function;
}

static Handle method(TVMFFIAny module, const char *name)
{
    TVMFFIAny arguments[] = {module, text(name), {.type_index = kTVMFFIBool, .v_int64 = 1}};
    TVMFFIAny found = call(global("ffi.ModuleGetFunction"), arguments, 3);
    if (found.type_index == kTVMFFINone)
        fail(name, "the library has no such function");
    return found.v_obj;
}

static TVMFFIAny load(const char *library)
{
    TVMFFIAny path = text(library);
    return call(global("ffi.ModuleLoadFromFile"), &path, 1);
}

/* The tensor that FILE:SHAPE names, in the file's own memory. */
static DLTensor *mapped(char *argument)
{
    char *shape = strrchr(argument, ':');
    if (shape == NULL)
        fail(argument, "expected FILE:SHAPE");
    *shape++ = '\0';
    int64_t *sizes = calloc(MOST_DIMS, sizeof *sizes);
    int ndim = 0;
    char *ending = strrchr(argument, '.');
    uint8_t bits = ending && strcmp(ending, ".f16") == 0 ? 16 : 32;
    int64_t bytes = bits / 8;
    for (char *end = shape; *shape && ndim < MOST_DIMS; shape = *end ? end + 1 : end)
        bytes *= sizes[ndim++] = strtoll(shape, &end, 10);

    struct stat status;
    int file = open(argument, O_RDWR);
    if (file < 0 || fstat(file, &status) != 0 || status.st_size != bytes)
        fail(argument, "expected a file of the shape's size");
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (data == MAP_FAILED)
        fail(argument, "cannot be mapped");
    DLTensor *tensor = malloc(sizeof *tensor);
    *tensor = (DLTensor){
        .data = data,
        .device = {kDLCPU, 0},
        .ndim = ndim,
        .dtype = {kDLFloat, bits, 1},
        .shape = sizes,
    };
    return tensor;
}

/* Calls `function` so often, marking; the last result. */
static TVMFFIAny marked_calls(Handle function, TVMFFIAny *arguments, int count, int calls)
{
    TVMFFIAny result = {.type_index = kTVMFFINone};
    getpriority(MARK, 0);
    while (calls-- > 0) {
        if (result.type_index >= kTVMFFIStaticObjectBegin)
            TVMFFIObjectDecRef(result.v_obj);
        result = call(function, arguments, count);
        getpriority(MARK, 0);
    }
    return result;
}

static void run_kernel(const char *library, int calls, char **files, int count)
{
    TVMFFIAny arguments[MOST_ARGUMENTS];
    for (int i = 0; i < count; ++i)
        arguments[i] =
            (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr, .v_ptr = mapped(files[i])};
    marked_calls(method(load(library), "main"), arguments, count, calls);
}

static void run_network(const char *library, int calls, char *image, const char *out)
{
    TVMFFIAny machine = call(method(load(library), "vm_load_executable"), NULL, 0);
    TVMFFIAny where[] = {integer(kDLCPU), integer(0), integer(POOLED_ALLOCATOR),
                         integer(kDLCPU), integer(0), integer(POOLED_ALLOCATOR)};
    call(method(machine, "vm_initialization"), where, 6);

    DLManagedTensor managed = {.dl_tensor = *mapped(image)};
    TVMFFIAny x = {.type_index = kTVMFFITensor};
    check(TVMFFITensorFromDLPack(&managed, 0, 0, (Handle *)&x.v_obj), "image");
    TVMFFIAny logits = marked_calls(method(machine, "main"), &x, 1, calls);

    DLTensor *y = (DLTensor *)(logits.v_obj + 1);
    size_t size = y->dtype.bits / 8;
    for (int i = 0; i < y->ndim; ++i)
        size *= y->shape[i];
    FILE *file = fopen(out, "wb");
    if (file == NULL || fwrite(y->data, 1, size, file) != size || fclose(file) != 0)
        fail(out, "cannot be written");
}

int main(int argc, char **argv)
{
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); /* candidates may crash; nobody reads the dumps */
    if (argc >= 5 && argc - 4 <= MOST_ARGUMENTS && strcmp(argv[1], "kernel") == 0)
        run_kernel(argv[2], atoi(argv[3]), argv + 4, argc - 4);
    else if (argc == 6 && strcmp(argv[1], "network") == 0)
        run_network(argv[2], atoi(argv[3]), argv[4], argv[5]);
    else
        fail(argv[0], "expected kernel or network, LIBRARY CALLS FILE:SHAPE...");
    return 0;
}
