// What is on photos, and how long a network takes to tell.
//
//     classify MODEL.so [--threads N] [--labels FILE] [--repeat N] [--json] [PHOTO...]
//
// Without photos it only measures. --json prints one object instead of lines for people.
#define SEPTUNE_IMPLEMENTATION
#include "septune.hpp"

#include "photo.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>

namespace {

constexpr int WARMUP = 5; // calls at most that fill caches, before those that count

struct Request {
    std::string library, labels;
    int threads = 0, repeat = 50;
    bool json = false;
    std::vector<std::string> photos;
};

struct Guess {
    double probability;
    std::string label;
};

int whole_number(const std::string &name, const std::string &text)
{
    char *end = nullptr;
    const long number = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || number < 0 || number > 1000000)
        throw std::runtime_error(name + " is " + text + "; expected a whole number from 0 up");
    return static_cast<int>(number);
}

Request parse(int count, char **words)
{
    Request request;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        auto value = [&]() -> std::string {
            if (++i == count)
                throw std::runtime_error(word + " has no value; expected one after it");
            return words[i];
        };
        if (word == "--threads")
            request.threads = whole_number(word, value());
        else if (word == "--repeat")
            request.repeat = std::max(whole_number(word, value()), 1);
        else if (word == "--labels")
            request.labels = value();
        else if (word == "--json")
            request.json = true;
        else if (word.rfind("--", 0) == 0)
            throw std::runtime_error(word + " is no option; expected --threads, --labels, "
                                            "--repeat or --json");
        else if (request.library.empty())
            request.library = word;
        else
            request.photos.push_back(word);
    }
    if (request.library.empty())
        throw std::runtime_error("no library is given; expected: classify MODEL.so PHOTO...");
    if (request.labels.empty()) // beside the library, if anywhere
        request.labels = request.library.substr(0, request.library.rfind('/') + 1) + "labels.txt";
    return request;
}

std::vector<std::string> read_labels(const std::string &path)
{
    std::vector<std::string> labels;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        labels.push_back(line);
    return labels;
}

double seconds_of(const std::function<void()> &work)
{
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Linear between the two samples nearest to the rank.
double percentile(const std::vector<double> &sorted, double share)
{
    const double rank = share * static_cast<double>(sorted.size() - 1);
    const std::size_t low = static_cast<std::size_t>(rank);
    const std::size_t high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (rank - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

// Bytes of memory that this process holds now; 0 where the system does not tell.
long resident_bytes()
{
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("VmRSS:", 0) == 0)
            return std::strtol(line.c_str() + 6, nullptr, 10) * 1024;
    return 0;
}

std::vector<Guess> top(const std::vector<float> &logits, const std::vector<std::string> &labels,
                       std::size_t count)
{
    const double most = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (float logit : logits)
        sum += std::exp(logit - most);
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    count = std::min(count, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count),
                      order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    std::vector<Guess> guesses;
    for (std::size_t i = 0; i < count; ++i) {
        const bool known = labels.size() == logits.size();
        guesses.push_back({std::exp(logits[order[i]] - most) / sum,
                           known ? labels[order[i]] : "class " + std::to_string(order[i])});
    }
    return guesses;
}

std::string quoted(const std::string &text)
{
    std::string result = "\"";
    for (char c : text)
        if (c == '"' || c == '\\')
            (result += '\\') += c;
        else if (static_cast<unsigned char>(c) >= ' ')
            result += c;
    return result + '"';
}

// A photo as the network takes it: bytes as they are, or value / 127.5 - 1, of 32 or 16 bits.
class Image {
public:
    Image(const Photo &square, const septune::Port &port)
        : bytes_(square.rgb), takes_bytes_(port.dtype == "uint8")
    {
        for (std::uint8_t byte : bytes_) {
            values_.push_back(static_cast<float>(byte) / 127.5f - 1.0f);
            halves_.push_back(septune::to_float16(values_.back()));
        }
    }

    std::vector<float> logits(septune::Network &network) const
    {
        return takes_bytes_ ? network.run(bytes_.data(), 1) : network.run(values_.data(), 1);
    }

    // Memory of a batch full of it, aligned so that no inference copies it.
    std::unique_ptr<void, decltype(&std::free)> batch(const septune::Port &port) const
    {
        std::unique_ptr<void, decltype(&std::free)> memory(
            std::aligned_alloc(64, (port.bytes() + 63) / 64 * 64), &std::free);
        const std::size_t size = port.bytes() / static_cast<std::size_t>(port.shape[0]);
        for (std::size_t at = 0; at < port.bytes(); at += size)
            std::memcpy(static_cast<char *>(memory.get()) + at, data(port), size);
        return memory;
    }

private:
    const void *data(const septune::Port &port) const
    {
        if (takes_bytes_)
            return bytes_.data();
        return port.dtype == "float16" ? static_cast<const void *>(halves_.data()) : values_.data();
    }

    std::vector<std::uint8_t> bytes_;
    std::vector<float> values_;
    std::vector<std::uint16_t> halves_;
    bool takes_bytes_;
};

struct Report {
    int threads = 0, batch = 0;
    double load_s = 0, first_s = 0;
    std::vector<double> times; // ascending
    long resident = 0;
    std::vector<std::pair<std::string, std::vector<Guess>>> answers;
};

std::vector<double> measure(septune::Network &network, const Image &image, int repeat)
{
    const septune::Port &in = network.inputs()[0], &out = network.outputs()[0];
    const auto input = image.batch(in);
    std::vector<unsigned char> output(out.bytes());
    const std::map<std::string, const void *> inputs{{in.name, input.get()}};
    const std::map<std::string, void *> outputs{{out.name, output.data()}};
    std::vector<double> times;
    for (int i = -std::min(WARMUP, repeat); i < repeat; ++i) {
        const double time_s = seconds_of([&] { network.run(inputs, outputs); });
        if (i >= 0)
            times.push_back(time_s);
    }
    std::sort(times.begin(), times.end());
    return times;
}

Report classify(const Request &request)
{
    Report report;
    septune::Options options;
    options.threads = request.threads;
    std::unique_ptr<septune::Network> network;
    report.load_s = seconds_of(
        [&] { network = std::make_unique<septune::Network>(request.library, options); });
    report.threads = network->threads();
    report.batch = static_cast<int>(network->batch());

    const septune::Port &in = network->inputs()[0];
    const int size = static_cast<int>(in.shape[1]);
    Photo grey;
    grey.rgb.assign(static_cast<std::size_t>(size) * static_cast<std::size_t>(size) * 3, 128);
    Image image(grey, in);
    report.first_s = seconds_of([&] { image.logits(*network); });

    const std::vector<std::string> labels = read_labels(request.labels);
    for (const std::string &path : request.photos) {
        image = Image(central_square(read_photo(path), size), in);
        report.answers.emplace_back(path, top(image.logits(*network), labels, 5));
    }
    report.times = measure(*network, image, request.repeat);
    report.resident = resident_bytes();
    return report;
}

void print_lines(const Report &report)
{
    for (const auto &[path, guesses] : report.answers) {
        std::printf("%s\n", path.c_str());
        for (const Guess &guess : guesses)
            std::printf("  %6.3f  %s\n", guess.probability, guess.label.c_str());
    }
    auto ms = [&](double share) { return percentile(report.times, share) * 1e3; };
    std::printf("%zu inferences, batch %d, threads %d: median %.3f ms, p20 %.3f, p80 %.3f, "
                "p99 %.3f\n",
                report.times.size(), report.batch, report.threads, ms(0.5), ms(0.2), ms(0.8),
                ms(0.99));
    std::printf("load %.1f ms, first inference %.1f ms, resident %.1f MiB\n", report.load_s * 1e3,
                report.first_s * 1e3, static_cast<double>(report.resident) / (1 << 20));
}

void print_json(const Report &report)
{
    auto s = [&](double share) { return percentile(report.times, share); };
    std::printf("{\"threads\": %d, \"batch\": %d, \"inferences\": %zu, \"median_s\": %.9g, "
                "\"p20_s\": %.9g, \"p80_s\": %.9g, \"p99_s\": %.9g, \"load_s\": %.9g, "
                "\"first_s\": %.9g, \"resident_bytes\": %ld, \"photos\": {",
                report.threads, report.batch, report.times.size(), s(0.5), s(0.2), s(0.8), s(0.99),
                report.load_s, report.first_s, report.resident);
    const char *before_photo = "";
    for (const auto &[path, guesses] : report.answers) {
        std::printf("%s%s: [", std::exchange(before_photo, ", "), quoted(path).c_str());
        const char *before = "";
        for (const Guess &guess : guesses)
            std::printf("%s[%.9g, %s]", std::exchange(before, ", "), guess.probability,
                        quoted(guess.label).c_str());
        std::printf("]");
    }
    std::printf("}}\n");
}

} // namespace

int main(int count, char **words)
{
    try {
        const Request request = parse(count, words);
        const Report report = classify(request);
        request.json ? print_json(report) : print_lines(report);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "classify: %s\n", error.what());
        return 1;
    }
    return 0;
}
