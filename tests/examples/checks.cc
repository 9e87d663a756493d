// What tests ask of septune.hpp and photo.hpp: `checks WHAT ARGUMENTS...`. Results go to stdout.
//
//     ports LIBRARY                    name, dtype, sizes and bytes of each input and output
//     batch LIBRARY COUNT              logits of COUNT images on stdin, float32
//     wrong LIBRARY                    what is said of wrong names, memory and types, line by line
//     threads LIBRARY COUNT            threads of the process after an inference, and the cores that
//                                      the calling thread may use, before and after
//     together LIBRARY COUNT           differing logits of COUNT clones and of one network, all from
//                                      threads of their own at once
//     halves narrow                    float16 of the floats on stdin
//     halves wide                      floats of the float16 on stdin
//     square PHOTO SIZE                bytes of what a network of that size looks at
#define SEPTUNE_IMPLEMENTATION
#include "septune.hpp"

#include "photo.hpp"

#include <atomic>
#include <cstdio>
#include <functional>
#include <iostream>
#include <sched.h>
#include <thread>

namespace {

void describe(const std::vector<septune::Port> &ports)
{
    for (const septune::Port &port : ports) {
        std::cout << port.name << ' ' << port.dtype;
        for (std::int64_t size : port.shape)
            std::cout << ' ' << size;
        std::cout << " = " << port.bytes() << '\n';
    }
}

void batch(septune::Network &network, std::size_t count)
{
    const septune::Port &in = network.inputs()[0];
    std::vector<float> images(in.values() / static_cast<std::size_t>(network.batch()) * count);
    std::cin.read(reinterpret_cast<char *>(images.data()),
                  static_cast<std::streamsize>(images.size() * sizeof(float)));
    const std::vector<float> logits = network.run(images.data(), count);
    std::cout.write(reinterpret_cast<const char *>(logits.data()),
                    static_cast<std::streamsize>(logits.size() * sizeof(float)));
}

void told(const std::function<void()> &work)
{
    try {
        work();
        std::cout << "nothing\n";
    } catch (const septune::Error &error) {
        std::cout << error.what() << '\n';
    }
}

void wrong(septune::Network &network)
{
    std::vector<float> x(network.inputs()[0].values()), y(network.outputs()[0].values());
    told([&] { network.run({{"picture", x.data()}}, {{"logits", y.data()}}); });
    told([&] { network.run({}, {{"logits", y.data()}}); });
    told([&] { network.run({{"image", x.data()}}, {{"logits", nullptr}}); });
    told([&] { network.run({{"image", x.data()}, {"more", x.data()}}, {{"logits", y.data()}}); });
    told([&] { network.run(reinterpret_cast<const std::uint8_t *>(x.data()), 1); });
    told([&] { network.run({{"image", x.data()}}, {{"logits", y.data()}}); });
}

long line_of_status(const char *name)
{
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.rfind(name, 0) == 0)
            return std::stol(line.substr(line.find(':') + 1));
    return -1;
}

int cores()
{
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    return CPU_COUNT(&set);
}

void threads(const std::string &library, int count)
{
    const int before = cores();
    septune::Options options;
    options.threads = count;
    septune::Network network(library, options);
    std::vector<float> x(network.inputs()[0].values());
    network.run(x.data(), static_cast<std::size_t>(network.batch()));
    std::cout << line_of_status("Threads:") << ' ' << before << ' ' << cores() << '\n';
}

void together(septune::Network &network, int count)
{
    const std::size_t batch = static_cast<std::size_t>(network.batch());
    std::vector<float> x(network.inputs()[0].values());
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = static_cast<float>(i % 255) / 127.5f - 1;
    const std::vector<float> y = network.run(x.data(), batch);
    std::atomic<int> differing{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
        auto clone = std::make_shared<septune::Network>(network.clone());
        for (septune::Network *one : {clone.get(), &network})
            threads.emplace_back([&, clone, one] {
                for (int turn = 0; turn < 10; ++turn)
                    differing += one->run(x.data(), batch) != y;
            });
    }
    for (std::thread &thread : threads)
        thread.join();
    std::cout << differing << " of " << threads.size() << '\n';
}

template <typename From, typename To> void converted(To (*convert)(From))
{
    for (From value; std::cin.read(reinterpret_cast<char *>(&value), sizeof value);) {
        const To other = convert(value);
        std::cout.write(reinterpret_cast<const char *>(&other), sizeof other);
    }
}

} // namespace

int main(int count, char **words)
{
    if (count < 3)
        return 2;
    const std::string what = words[1], path = words[2];
    const int number = count > 3 ? std::atoi(words[3]) : 0;
    try {
        if (what == "square") {
            const Photo square = central_square(read_photo(path), number);
            std::cout.write(reinterpret_cast<const char *>(square.rgb.data()),
                            static_cast<std::streamsize>(square.rgb.size()));
            return 0;
        }
        if (what == "halves") {
            if (path == "narrow")
                converted(septune::to_float16);
            else
                converted(septune::from_float16);
            return 0;
        }
        if (what == "threads") {
            threads(path, number);
            return 0;
        }
        septune::Network network(path);
        if (what == "ports") {
            describe(network.inputs());
            describe(network.outputs());
        } else if (what == "batch") {
            batch(network, static_cast<std::size_t>(number));
        } else if (what == "wrong") {
            wrong(network);
        } else if (what == "together") {
            together(network, number);
        }
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
