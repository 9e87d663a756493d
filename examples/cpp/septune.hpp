// Runs a network that septune has built. C++17; one header, to copy into your own code.
//
//     septune::Network network("mobilenet.so");
//     std::vector<float> logits = network.run(images, count);
//
// Build    One source file of the program defines SEPTUNE_IMPLEMENTATION before it includes this. No
//          header of TVM's is needed. Link libtvm_ffi.so and, although no symbol of it is named,
//          libtvm_runtime.so, hence -Wl,--no-as-needed before both; and -ldl.
// Threads  A Network may be called from any thread, one call at a time: others wait. What is to run
//          at once needs a Network each: clone() makes one that shares code and weights. Each
//          calling thread gets workers of its own, threads() with itself, which stay until it ends.
//          They are bound to cores only where threads() are all that the machine has: TVM counts
//          cores from the first, and networks that run at once would meet there. Set
//          TVM_BIND_THREADS=1 to have the fastest cores, where they differ, or 0 for never.
//          Threads sleep some thousandths of a second after their last work; a higher
//          TVM_THREAD_POOL_SPIN_COUNT than 10000 keeps them awake for longer.
//          Loading sets these variables and TVM_NUM_THREADS: load before other threads read any.
// GPUs     What was built for CUDA computes on the first GPU that CUDA_VISIBLE_DEVICES leaves, on its
//          default stream; memory that is given to it is the host's all the same. Loading needs
//          NVIDIA's driver and, where libtvm_runtime.so is found, libtvm_runtime_cuda.so and
//          libcudart.so.13. Networks on it wait for each other. The first inference of each records
//          what the later ones launch: let nothing else in the process use the GPU meanwhile.
// Errors   septune::Error, whose text says what was wrong, what was expected and what to do. After
//          one, a Network can be used further.
#ifndef SEPTUNE_HPP
#define SEPTUNE_HPP

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace septune {

class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// An input or output: dtype is float32, float16 or uint8; the first of its sizes is the batch.
struct Port {
    std::string name;
    std::string dtype;
    std::vector<std::int64_t> shape;

    std::size_t values() const; // elements
    std::size_t bytes() const;
};

struct Options {
    int threads = 0;    // that one inference computes on; 0 is as many as it was built for
    bool verify = true; // compare the library's hash with the manifest's: reads the whole file
};

class Network {
public:
    // The library at `path`, its manifest beside it: `.json` for `.so`.
    explicit Network(const std::string &path, Options options = {});
    Network(Network &&) noexcept;
    Network &operator=(Network &&) noexcept;
    ~Network();

    // Another for another thread; it shares the library and its weights.
    Network clone() const;

    const std::vector<Port> &inputs() const;
    const std::vector<Port> &outputs() const;
    std::int64_t batch() const; // images of one inference
    int threads() const;

    // One inference. By name, memory of the port's bytes(): read, and written.
    void run(const std::map<std::string, const void *> &inputs,
             const std::map<std::string, void *> &outputs);

    // The output of `count` images, any number: batches follow each other, the last one filled up.
    // For a network with one input and one output, of this type or, with floats, float16.
    std::vector<float> run(const float *images, std::size_t count);
    std::vector<float> run(const std::uint8_t *images, std::size_t count);

private:
    struct State;
    explicit Network(std::unique_ptr<State>);
    std::vector<float> run_all(const void *images, std::size_t count, const char *dtype);
    std::unique_ptr<State> state_;
};

// The 16 bits of the nearest float16, and the value that such bits stand for.
std::uint16_t to_float16(float value);
float from_float16(std::uint16_t bits);

} // namespace septune

#endif // SEPTUNE_HPP

#if defined(SEPTUNE_IMPLEMENTATION) && !defined(SEPTUNE_IMPLEMENTED)
#define SEPTUNE_IMPLEMENTED

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace septune {
namespace detail {

// What is used of TVM's C interface, under names of our own: no other declaration is in its way.
namespace abi {

struct Version {
    std::uint32_t major, minor, patch;
};
constexpr Version VERSION{0, 1, 15}; // as the library counts, of apache-tvm-ffi 0.1.14.post1

using Handle = void *;
enum Type : std::int32_t {
    NONE = 0,
    INT = 1,
    BOOL = 2,
    POINTER = 4,
    RAW_STR = 8,
    SMALL_STR = 11,
    FIRST_COUNTED = 64, // all from here on are objects that are counted
    STR = 65,
    FUNCTION = 68,
    TENSOR = 70
};
struct Object {
    std::uint64_t counts;
    std::int32_t type;
    std::uint32_t padding;
    void (*deleter)(void *, int);
};
struct Bytes {
    const char *data;
    std::size_t size;
};
struct Any {
    std::int32_t type;
    std::uint32_t small_size;
    union {
        std::int64_t number;
        const char *text;
        const void *pointer;
        Object *object;
        char letters[8];
    };
};
struct Raised { // what an error object holds behind its head
    Bytes kind, message;
};
struct Device {
    std::int32_t kind, number;
};
constexpr std::int32_t CPU = 1, CUDA = 2;
struct Dtype {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
constexpr std::uint8_t UINT = 1, FLOAT = 2;
struct Tensor {
    void *data;
    Device device;
    std::int32_t ndim;
    Dtype dtype;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void *context;
    void (*deleter)(Managed *);
};

extern "C" {
void septune_version(Version *) __asm__("TVMFFIGetVersion");
int septune_keep(Handle) __asm__("TVMFFIObjectIncRef");
int septune_release(Handle) __asm__("TVMFFIObjectDecRef");
int septune_global(const Bytes *, Handle *) __asm__("TVMFFIFunctionGetGlobal");
int septune_call(Handle, Any *, std::int32_t, Any *) __asm__("TVMFFIFunctionCall");
void septune_raised(Handle *) __asm__("TVMFFIErrorMoveFromRaised");
int septune_tensor(Managed *, std::int32_t, std::int32_t,
                   Handle *) __asm__("TVMFFITensorFromDLPack");
}

} // namespace abi

constexpr std::size_t ALIGNMENT = 64; // bytes; compiled code loads whole vectors
constexpr int POOLED_ALLOCATOR = 2;   // of TVM's: memory of an inference is kept for the next
constexpr int BIG_CORES = 1;          // TVM's affinity mode: the cores of highest frequency first
enum Attribute { EXISTS = 0, CAPABILITY = 4, NAME = 5 }; // of a device, as TVM numbers them

inline std::string text_of(const abi::Bytes &bytes) { return {bytes.data, bytes.size}; }

// Throws what the last call of the C interface raised.
[[noreturn]] inline void rethrow(const std::string &what)
{
    abi::Handle error = nullptr;
    abi::septune_raised(&error);
    std::string why = "no reason given";
    if (error) {
        auto *cell = reinterpret_cast<abi::Raised *>(static_cast<abi::Object *>(error) + 1);
        why = text_of(cell->kind) + ": " + text_of(cell->message);
        abi::septune_release(error);
    }
    throw Error(what + ": " + why);
}

// A value of TVM's, held as long as this lives.
class Value {
public:
    Value() : any_{} {}
    explicit Value(abi::Any owned) : any_(owned) {}
    explicit Value(abi::Handle owned, std::int32_t type) : any_{}
    {
        any_.type = type;
        any_.object = static_cast<abi::Object *>(owned);
    }
    Value(const Value &other) : any_(other.any_)
    {
        if (is_object())
            abi::septune_keep(any_.object);
    }
    Value(Value &&other) noexcept : any_(std::exchange(other.any_, abi::Any{})) {}
    Value &operator=(Value other) noexcept
    {
        std::swap(any_, other.any_);
        return *this;
    }
    ~Value()
    {
        if (is_object())
            abi::septune_release(any_.object);
    }

    const abi::Any &any() const { return any_; }
    bool is(std::int32_t type) const { return any_.type == type; }

    std::string text() const
    {
        if (is(abi::SMALL_STR))
            return {any_.letters, any_.small_size};
        if (is(abi::STR))
            return text_of(*reinterpret_cast<abi::Bytes *>(any_.object + 1));
        throw Error("not a text");
    }
    std::int64_t number() const
    {
        if (!is(abi::INT))
            throw Error("not a whole number");
        return any_.number;
    }
    const abi::Tensor &tensor() const { return *reinterpret_cast<abi::Tensor *>(any_.object + 1); }

private:
    bool is_object() const { return any_.type >= abi::FIRST_COUNTED; }
    abi::Any any_;
};

inline abi::Any borrowed(const char *text)
{
    abi::Any any{};
    any.type = abi::RAW_STR;
    any.text = text;
    return any;
}

inline abi::Any borrowed(std::int64_t number)
{
    abi::Any any{};
    any.type = abi::INT;
    any.number = number;
    return any;
}

inline abi::Any borrowed(const void *memory)
{
    abi::Any any{};
    any.type = abi::POINTER;
    any.pointer = memory;
    return any;
}

inline Value call(const Value &function, std::vector<abi::Any> arguments, const std::string &what)
{
    abi::Any result{};
    auto count = static_cast<std::int32_t>(arguments.size());
    if (abi::septune_call(function.any().object, arguments.data(), count, &result) != 0)
        rethrow(what);
    return Value(result);
}

inline Value global(const char *name)
{
    abi::Handle function = nullptr;
    abi::Bytes bytes{name, std::strlen(name)};
    if (abi::septune_global(&bytes, &function) != 0 || !function)
        throw Error(std::string("TVM's runtime has no ") + name +
                    "; expected libtvm_runtime.so to be linked; link it with "
                    "-Wl,--no-as-needed before -ltvm_runtime");
    return Value(function, abi::FUNCTION);
}

inline Value method(const Value &module, const char *name)
{
    abi::Any inner{};
    inner.type = abi::BOOL;
    inner.number = 1; // look in imported modules, too
    Value found = call(global("ffi.ModuleGetFunction"), {module.any(), borrowed(name), inner}, name);
    if (!found.is(abi::FUNCTION))
        throw Error(std::string("the library has no function ") + name +
                    "; expected one that `septune build` has written; build it again");
    return found;
}

// Members of the manifest, a JSON document that TVM reads.
inline Value member(const Value &map, const char *key)
{
    return call(global("ffi.MapGetItem"), {map.any(), borrowed(key)}, key);
}

inline std::vector<Value> items(const Value &array)
{
    std::vector<Value> found;
    std::int64_t size = call(global("ffi.ArraySize"), {array.any()}, "array").number();
    for (std::int64_t i = 0; i < size; ++i)
        found.push_back(call(global("ffi.ArrayGetItem"), {array.any(), borrowed(i)}, "array"));
    return found;
}

inline Port port(const Value &map)
{
    Port port{member(map, "name").text(), member(map, "dtype").text(), {}};
    for (const Value &size : items(member(map, "shape")))
        port.shape.push_back(size.number());
    if (port.shape.empty())
        throw Error(port.name + " has no sizes");
    return port;
}

inline abi::Dtype dl_type(const std::string &dtype)
{
    if (dtype == "float32")
        return {abi::FLOAT, 32, 1};
    if (dtype == "float16")
        return {abi::FLOAT, 16, 1};
    if (dtype == "uint8")
        return {abi::UINT, 8, 1};
    throw Error("dtype " + dtype + " is not known; expected float32, float16 or uint8; "
                "copy a newer septune.hpp");
}

// The hash of what a stream holds from its present position on, in hexadecimal digits.
class Sha256 {
public:
    static std::string of(std::istream &stream)
    {
        Sha256 hash;
        std::vector<unsigned char> part(1 << 16);
        std::uint64_t size = 0;
        std::size_t held = 0;
        do {
            stream.read(reinterpret_cast<char *>(part.data()),
                        static_cast<std::streamsize>(part.size()));
            held = static_cast<std::size_t>(stream.gcount());
            size += held;
            if (held == part.size())
                hash.blocks(part.data(), held);
        } while (held == part.size());
        part.resize(held);
        part.push_back(0x80);
        part.resize((held + 9 + 63) / 64 * 64); // a bit, zeros, and the size in bits
        for (std::size_t i = 0; i < 8; ++i)
            part[part.size() - 1 - i] = static_cast<unsigned char>(size * 8 >> 8 * i);
        hash.blocks(part.data(), part.size());
        std::string digits;
        for (std::uint32_t word : hash.state_)
            for (int shift = 28; shift >= 0; shift -= 4)
                digits += "0123456789abcdef"[word >> shift & 15];
        return digits;
    }

private:
    static std::uint32_t turned(std::uint32_t x, int n) { return x >> n | x << (32 - n); }

    void blocks(const unsigned char *data, std::size_t size)
    {
        for (std::size_t at = 0; at < size; at += 64)
            block(data + at);
    }

    void block(const unsigned char *p)
    {
        std::uint32_t w[64];
        for (int i = 0; i < 16; ++i, p += 4)
            w[i] = std::uint32_t(p[0]) << 24 | std::uint32_t(p[1]) << 16 |
                   std::uint32_t(p[2]) << 8 | std::uint32_t(p[3]);
        for (int i = 16; i < 64; ++i)
            w[i] = w[i - 16] + w[i - 7] +
                   (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) +
                   (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
        std::array<std::uint32_t, 8> s = state_;
        for (int i = 0; i < 64; ++i) {
            const std::uint32_t one =
                s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) +
                ((s[4] & s[5]) ^ (~s[4] & s[6])) + ROOTS[i] + w[i];
            const std::uint32_t two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) +
                                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            std::copy_backward(s.begin(), s.end() - 1, s.end());
            s[4] += one;
            s[0] = one + two;
        }
        for (std::size_t i = 0; i < 8; ++i)
            state_[i] += s[i];
    }

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    static constexpr std::uint32_t ROOTS[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
};

// What the artifact is, loaded once and shared by clones.
struct Artifact {
    std::vector<Port> inputs, outputs;
    int threads = 0;
    bool on_gpu = false;
    std::string made_with; // versions of TVM's two halves
    Value library;
};

inline std::string content_of(const std::string &path, const char *expected)
{
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw Error("cannot read " + path + "; expected " + expected + "; check the path");
    return {std::istreambuf_iterator<char>(file), {}};
}

// Instructions that this CPU has, as Linux names them; none where it does not tell.
inline std::set<std::string> cpu_features()
{
    std::set<std::string> found;
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) {
            std::istringstream words(line.substr(line.find(':') + 1));
            found.insert(std::istream_iterator<std::string>(words), {});
        }
#ifdef __x86_64__
    // Linux has the tile unit asked for, by a process, and may refuse: ARCH_REQ_XCOMP_PERM, 18.
    if (found.count("amx_tile") && syscall(SYS_arch_prctl, 0x1023, 18) != 0)
        for (const char *feature : {"amx_tile", "amx_bf16"})
            found.erase(feature);
#endif
    return found;
}

// TVM's side of a GPU, which a program is not linked with, to run without one. What is loaded serves
// whatever asks for it by its name.
inline void load_cuda()
{
    const char *const needed[][2] = {
        {"libcuda.so.1", "NVIDIA's driver; run this on a machine with a GPU"},
        {"libcudart.so.13", "CUDA 13's; put it beside libtvm_runtime.so"},
        {"libtvm_runtime_cuda.so", "that of apache-tvm's wheel; put it beside libtvm_runtime.so"}};
    for (const auto &[name, expected] : needed)
        if (!dlopen(name, RTLD_NOW))
            throw Error(std::string("cannot load ") + dlerror() + "; expected " + expected);
}

inline Value gpu(Attribute attribute)
{
    std::vector<abi::Any> arguments;
    for (std::int64_t number : {int(abi::CUDA), 0, int(attribute)})
        arguments.push_back(borrowed(number));
    return call(global("runtime.GetDeviceAttr"), arguments, "GPU");
}

// Code for Ampere and Ada runs on later minor versions, all other on its own architecture alone.
inline void check_gpu(const Value &target, const std::string &path)
{
    load_cuda();
    if (gpu(EXISTS).number() == 0)
        throw Error("CUDA finds no GPU; expected one, and a driver of version 580 or newer; see what "
                    "nvidia-smi says and CUDA_VISIBLE_DEVICES leaves");
    const std::string wanted = member(target, "mcpu").text();
    std::string found = "sm_" + gpu(CAPABILITY).text();
    found.erase(found.find('.'), 1);
    auto eight = [](const std::string &arch) { return arch.size() == 5 && arch[3] == '8'; };
    if (found != wanted && !(eight(found) && eight(wanted) && found > wanted))
        throw Error(path + " was built for " + wanted + ", whose code this GPU, " +
                    gpu(NAME).text() + " of " + found + ", cannot run; expected a build for it; "
                    "build it with --device " + found);
}

inline void check_machine(const Value &manifest, const std::string &path)
{
#if defined(__x86_64__)
    const std::string here = "x86";
#elif defined(__aarch64__)
    const std::string here = "arm64";
#else
    const std::string here = "another kind of machine";
#endif
    Value target = member(manifest, "target");
    const std::string kind = member(target, "kind").text(), device = member(target, "device").text();
    if ((kind == "cuda" ? "x86" : kind) != here) // a GPU's host
        throw Error(path + " was built for " + kind + ", this program for " + here +
                    "; expected the same; build it with --target " + here);
    std::set<std::string> features = cpu_features();
    for (const Value &feature : items(member(target, "features")))
        if (!features.empty() && !features.count(feature.text()))
            throw Error(path + " was built for " + device + " and needs " + feature.text() +
                        ", which this CPU lacks; expected a build for this machine; "
                        "build it with its --device");
    if (kind == "cuda")
        check_gpu(target, path);
}

// The linked library has the interface that is declared above.
inline void check_interface()
{
    abi::Version here;
    abi::septune_version(&here);
    auto spelt = [](const abi::Version &version) {
        return std::to_string(version.major) + '.' + std::to_string(version.minor) + '.' +
               std::to_string(version.patch);
    };
    const std::string found = spelt(here), compiled = spelt(abi::VERSION);
    if (found != compiled)
        throw Error("libtvm_ffi.so calls itself " + found + "; expected " + compiled +
                    ", which septune.hpp was written for; link that, or copy a newer septune.hpp");
}

inline void check_library(const Value &manifest, const std::string &path, bool verify)
{
    const std::string expected = "the library that its manifest describes";
    const std::string remedy = "; build it again, or copy both files";
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file)
        throw Error("cannot read " + path + "; expected a .so that `septune build` has written; "
                    "check the path");
    std::int64_t size = file.tellg(), described = member(manifest, "library_bytes").number();
    if (size != described) // to map a file that was cut short may end the process
        throw Error(path + " has " + std::to_string(size) + " bytes; expected " + expected +
                    ", of " + std::to_string(described) + remedy);
    file.seekg(0);
    if (verify && Sha256::of(file) != member(manifest, "library_sha256").text())
        throw Error(path + " has another hash; expected " + expected + remedy);
}

// TVM's byte code is read by the version that has written it, and no other.
inline Error unloadable(const Error &error, const std::string &made_with)
{
    return Error(std::string("cannot load ") + error.what() + "; expected to be linked with " +
                 made_with + ", which it was built with; link those, or build it again");
}

inline std::shared_ptr<const Artifact> load(const std::string &path, const Options &options)
{
    auto artifact = std::make_shared<Artifact>();
    std::size_t dot = path.size() > 3 ? path.size() - 3 : 0;
    if (path.substr(dot) != ".so")
        throw Error(path + " is no .so; expected a library that `septune build` has written; "
                    "check the path");
    const std::string beside = path.substr(0, dot) + ".json";
    const std::string document = content_of(beside, "the manifest beside the library");
    check_interface();
    Value manifest;
    try {
        manifest = call(global("ffi.json.Parse"), {borrowed(document.c_str())}, "JSON");
        artifact->inputs = {port(member(manifest, "input"))};
        artifact->outputs = {port(member(manifest, "output"))};
        artifact->threads = static_cast<int>(member(manifest, "threads").number());
        artifact->on_gpu = member(member(manifest, "target"), "kind").text() == "cuda";
        artifact->made_with = "TVM " + member(manifest, "tvm").text() + " and apache-tvm-ffi " +
                              member(manifest, "tvm_ffi").text();
        member(manifest, "library_sha256").text();
    } catch (const Error &error) {
        throw Error("no manifest can be read at " + beside + ": " + error.what() +
                    "; expected the .json that `septune build` writes; build it again");
    }
    check_machine(manifest, path);
    check_library(manifest, path, options.verify);
    if (options.threads < 0)
        throw Error("threads are " + std::to_string(options.threads) +
                    "; expected 1 or more, or 0 for as many as it was built for; pass another");
    if (options.threads > 0)
        artifact->threads = options.threads;
    // It takes both: the variable sizes a thread's pool, the call sets how much of it is used.
    setenv("TVM_NUM_THREADS", std::to_string(artifact->threads).c_str(), 1);
    setenv("TVM_THREAD_POOL_SPIN_COUNT", "10000", 0);  // some thousandths of a second
    setenv("TVM_BIND_THREADS", artifact->threads >= sysconf(_SC_NPROCESSORS_ONLN) ? "1" : "0", 0);
    global("runtime.config_threadpool"); // says what to do when the runtime is not linked
    // Without a slash, the loader would search its own folders.
    const std::string named = path.find('/') == std::string::npos ? "./" + path : path;
    try {
        artifact->library = call(global("ffi.ModuleLoadFromFile"), {borrowed(named.c_str())}, path);
    } catch (const Error &error) {
        throw unloadable(error, artifact->made_with);
    }
    return artifact;
}

// TVM has a pool for each calling thread.
inline void use_threads(int count)
{
    thread_local int used = 0;
    if (used != count) {
        call(global("runtime.config_threadpool"), {borrowed(BIG_CORES), borrowed(count)}, "threads");
        used = count;
    }
}

// A tensor of TVM's on memory of somebody else's, who keeps it until the inference has ended.
inline Value view(const Port &port, const void *data)
{
    struct Owner {
        abi::Managed managed{};
        std::vector<std::int64_t> shape;
    };
    auto owner = std::make_unique<Owner>();
    owner->shape = port.shape;
    abi::Tensor &tensor = owner->managed.tensor;
    tensor.data = const_cast<void *>(data);
    tensor.device = {abi::CPU, 0};
    tensor.ndim = static_cast<std::int32_t>(port.shape.size());
    tensor.dtype = dl_type(port.dtype);
    tensor.shape = owner->shape.data();
    owner->managed.context = owner.get();
    owner->managed.deleter = [](abi::Managed *self) { delete static_cast<Owner *>(self->context); };
    abi::Handle handle = nullptr;
    if (abi::septune_tensor(&owner->managed, ALIGNMENT, 1, &handle) != 0)
        rethrow(port.name);
    owner.release();
    return Value(handle, abi::TENSOR);
}

// A tensor in the GPU's memory.
inline Value gpu_tensor(const Port &port)
{
    std::vector<abi::Any> sizes;
    for (std::int64_t size : port.shape)
        sizes.push_back(borrowed(size));
    const Value shape = call(global("ffi.Shape"), sizes, port.name);
    return call(global("runtime.TVMTensorAllocWithScope"),
                {shape.any(), borrowed(port.dtype.c_str()), borrowed("cuda"), abi::Any{}},
                port.name);
}

// Copies between such a tensor and memory of the host, and waits until it is done.
inline void copy(const char *function, const Value &tensor, const void *memory, const Port &port)
{
    const auto bytes = static_cast<std::int64_t>(port.bytes());
    call(global(function), {tensor.any(), borrowed(memory), borrowed(bytes)}, port.name);
}

struct Freed {
    void operator()(void *memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Freed>;

inline Memory aligned(std::size_t bytes)
{
    std::size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    Memory memory(std::aligned_alloc(ALIGNMENT, whole));
    if (!memory)
        throw std::bad_alloc();
    return memory;
}

template <typename Pointer>
Pointer named(const std::map<std::string, Pointer> &given, const std::vector<Port> &ports,
              std::size_t index, const char *what)
{
    auto found = given.find(ports[index].name);
    if (found == given.end() || !found->second || given.size() != ports.size()) {
        std::string names, wanted;
        for (const auto &one : given)
            names += ' ' + one.first + (one.second ? "" : " (null)");
        for (const Port &port : ports)
            wanted += ' ' + port.name;
        throw Error(std::string(what) + (names.empty() ? " none" : names) + "; expected" + wanted +
                    "; pass memory for each by that name");
    }
    return found->second;
}

} // namespace detail

std::uint16_t to_float16(float value)
{
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) // no number
        return sign | 0x7e00;
    if (bits >= 0x477ff000) // rounds to more than the largest
        return sign | 0x7c00;
    if (bits < 0x38800000) { // a denormal: its unit is 2**-24, added and taken away by the FPU
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof bits);
        magnitude += 0.5f; // whose own unit that is
        std::memcpy(&bits, &magnitude, sizeof bits);
        return static_cast<std::uint16_t>(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1); // to nearest, ties to even
    return static_cast<std::uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

float from_float16(std::uint16_t half)
{
    const bool negative = half & 0x8000;
    const std::uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(fraction) / (1 << 24);
    } else {
        std::uint32_t bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
        std::memcpy(&value, &bits, sizeof bits);
    }
    return negative ? -value : value;
}

std::size_t Port::values() const
{
    std::size_t product = 1;
    for (std::int64_t size : shape)
        product *= static_cast<std::size_t>(size);
    return product;
}

std::size_t Port::bytes() const { return values() * detail::dl_type(dtype).bits / 8; }

struct Network::State {
    explicit State(std::shared_ptr<const detail::Artifact> from) : artifact(std::move(from))
    {
        std::lock_guard<std::mutex> lock(turn());
        try {
            machine = call(method(artifact->library, "vm_load_executable"), {}, "byte code");
        } catch (const Error &error) {
            throw detail::unloadable(error, artifact->made_with);
        }
        std::vector<detail::abi::Any> where; // it computes, and where its host is
        for (std::int32_t device : {artifact->on_gpu ? detail::abi::CUDA : detail::abi::CPU,
                                    detail::abi::CPU})
            for (std::int64_t value : {int(device), 0, detail::POOLED_ALLOCATOR})
                where.push_back(detail::borrowed(value));
        call(method(machine, "vm_initialization"), where, "vm_initialization");
        main = method(machine, "main");
        if (artifact->on_gpu)
            for (const auto *ports : {&artifact->inputs, &artifact->outputs})
                for (const Port &port : *ports)
                    fixed.push_back(detail::gpu_tensor(port));
        else
            for (const Port &port : artifact->inputs)
                copies.push_back(detail::aligned(port.bytes()));
    }

    ~State()
    {
        std::lock_guard<std::mutex> lock(turn());
        fixed.clear();
        main = machine = {};
        artifact.reset();
    }

    void run(const std::map<std::string, const void *> &given,
             const std::map<std::string, void *> &taken)
    {
        std::lock_guard<std::mutex> lock(turn());
        const auto &inputs = artifact->inputs, &outputs = artifact->outputs;
        std::vector<detail::Value> tensors = fixed;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            const void *data = detail::named(given, inputs, i, "inputs are");
            if (artifact->on_gpu) {
                detail::copy("runtime.TVMTensorCopyFromBytes", fixed[i], data, inputs[i]);
                continue;
            }
            if (reinterpret_cast<std::uintptr_t>(data) % detail::ALIGNMENT != 0)
                data = std::memcpy(copies[i].get(), data, inputs[i].bytes());
            tensors.push_back(detail::view(inputs[i], data));
        }
        void *out = detail::named(taken, outputs, 0, "outputs are");
        detail::use_threads(artifact->threads);
        std::vector<detail::abi::Any> arguments;
        for (const detail::Value &tensor : tensors)
            arguments.push_back(tensor.any());
        detail::Value result = call(main, arguments, "inference");
        if (!result.is(detail::abi::TENSOR))
            throw Error("the network returned no tensor; expected one; build it again");
        if (artifact->on_gpu)
            detail::copy("runtime.TVMTensorCopyToBytes", result, out, outputs[0]);
        else
            std::memcpy(out, result.tensor().data, outputs[0].bytes());
    }

    // Whoever holds it computes. On a GPU all networks have one: while one of them records its
    // launches, CUDA lets no other allocate, free or launch.
    std::mutex &turn()
    {
        static std::mutex of_gpu;
        return artifact->on_gpu ? of_gpu : own_turn;
    }

    std::shared_ptr<const detail::Artifact> artifact;
    detail::Value machine, main;
    std::vector<detail::Value> fixed;   // on a GPU, inputs and outputs, where its launches have them
    std::vector<detail::Memory> copies; // on a CPU, of inputs that are not aligned
    std::mutex own_turn;
};

Network::Network(const std::string &path, Options options)
    : state_(new State(detail::load(path, options)))
{
}
Network::Network(std::unique_ptr<State> state) : state_(std::move(state)) {}
Network::Network(Network &&) noexcept = default;
Network &Network::operator=(Network &&) noexcept = default;
Network::~Network() = default;

Network Network::clone() const { return Network(std::make_unique<State>(state_->artifact)); }
const std::vector<Port> &Network::inputs() const { return state_->artifact->inputs; }
const std::vector<Port> &Network::outputs() const { return state_->artifact->outputs; }
std::int64_t Network::batch() const { return inputs()[0].shape[0]; }
int Network::threads() const { return state_->artifact->threads; }

void Network::run(const std::map<std::string, const void *> &inputs,
                         const std::map<std::string, void *> &outputs)
{
    state_->run(inputs, outputs);
}

std::vector<float> Network::run(const float *images, std::size_t count)
{
    return run_all(images, count, "float32");
}

std::vector<float> Network::run(const std::uint8_t *images, std::size_t count)
{
    return run_all(images, count, "uint8");
}

std::vector<float> Network::run_all(const void *images, std::size_t count, const char *dtype)
{
    const Port &in = inputs()[0], &out = outputs()[0];
    const bool narrowed = in.dtype == "float16" && std::string(dtype) == "float32";
    if (in.dtype != dtype && !narrowed)
        throw Error(std::string("images are ") + dtype + "; expected " + in.dtype +
                    "; convert them, or build with --input " + dtype);
    const auto batch = static_cast<std::size_t>(this->batch());
    const std::size_t values = in.values() / batch, answers = out.values() / batch;
    const std::size_t size = in.bytes() / in.values();
    const detail::Memory filled = detail::aligned(in.bytes()), result = detail::aligned(out.bytes());
    std::vector<float> all;
    all.reserve(count * answers);
    for (std::size_t done = 0; done < count; done += batch) {
        const std::size_t held = std::min(batch, count - done);
        const void *data = static_cast<const char *>(images) + done * values * size;
        if (narrowed) {
            const float *wide = static_cast<const float *>(images) + done * values;
            if (held < batch)
                std::memset(filled.get(), 0, in.bytes());
            std::transform(wide, wide + held * values, static_cast<std::uint16_t *>(filled.get()),
                           to_float16);
            data = filled.get();
        } else if (held < batch) {
            std::memset(filled.get(), 0, in.bytes());
            data = std::memcpy(filled.get(), data, held * values * size);
        }
        run({{in.name, data}}, {{out.name, result.get()}});
        for (std::size_t i = 0; i < held * answers; ++i)
            all.push_back(out.dtype == "float16"
                              ? from_float16(static_cast<std::uint16_t *>(result.get())[i])
                              : static_cast<float *>(result.get())[i]);
    }
    return all;
}

} // namespace septune

#endif // SEPTUNE_IMPLEMENTATION
