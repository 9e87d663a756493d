#include "photo.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#ifdef WITH_PNG
#include <png.h>
#endif
#ifdef WITH_JPEG
#include <csetjmp>
#include <jpeglib.h>
#endif

namespace {

constexpr double CROP = 0.875;
constexpr int PRECISION = 22; // bits behind the point of a weight: 8 of a value and a sign are left
constexpr long MOST_PIXELS = 1L << 28;

using Bytes = std::vector<std::uint8_t>;

std::runtime_error unreadable(const std::string &path, const std::string &why)
{
    return std::runtime_error(path + " is no image that can be read: " + why);
}

Photo sized(const std::string &path, long width, long height)
{
    if (width < 1 || height < 1 || width > MOST_PIXELS / height)
        throw unreadable(path, "its size is " + std::to_string(width) + " by " +
                                   std::to_string(height));
    Photo photo;
    photo.width = static_cast<int>(width);
    photo.height = static_cast<int>(height);
    photo.rgb.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
    return photo;
}

// The next number of a PPM header; comments reach from # to the end of a line.
long header_number(const Bytes &content, std::size_t &at)
{
    while (at < content.size() && (std::isspace(content[at]) || content[at] == '#'))
        if (content[at++] == '#')
            while (at < content.size() && content[at] != '\n')
                ++at;
    long number = at < content.size() && std::isdigit(content[at]) ? 0 : -1;
    for (; at < content.size() && std::isdigit(content[at]) && number < MOST_PIXELS; ++at)
        number = number * 10 + (content[at] - '0');
    return number;
}

Photo read_ppm(const std::string &path, const Bytes &content)
{
    std::size_t at = 2;
    long width = header_number(content, at), height = header_number(content, at);
    if (header_number(content, at) != 255)
        throw unreadable(path, "expected a PPM of 255 levels");
    ++at; // one white space ends the header
    Photo photo = sized(path, width, height);
    if (content.size() < at || content.size() - at < photo.rgb.size())
        throw unreadable(path, "it is cut short");
    std::memcpy(photo.rgb.data(), content.data() + at, photo.rgb.size());
    return photo;
}

#ifdef WITH_PNG
Photo read_png(const std::string &path, const Bytes &content)
{
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_memory(&image, content.data(), content.size()))
        throw unreadable(path, image.message);
    image.format = PNG_FORMAT_RGBA; // alpha is dropped below, not mixed with a background
    Photo photo;
    Bytes rgba;
    try {
        photo = sized(path, image.width, image.height);
        rgba.resize(PNG_IMAGE_SIZE(image));
    } catch (...) {
        png_image_free(&image);
        throw;
    }
    if (!png_image_finish_read(&image, nullptr, rgba.data(), 0, nullptr))
        throw unreadable(path, image.message);
    for (std::size_t pixel = 0; pixel < rgba.size() / 4; ++pixel)
        std::copy_n(&rgba[pixel * 4], 3, &photo.rgb[pixel * 3]);
    return photo;
}
#endif

#ifdef WITH_JPEG
struct JpegErrors {
    jpeg_error_mgr manager;
    std::jmp_buf back;
    char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jpeg_failed(j_common_ptr info)
{
    auto *errors = reinterpret_cast<JpegErrors *>(info->err);
    info->err->format_message(info, errors->message);
    std::longjmp(errors->back, 1);
}

Photo read_jpeg(const std::string &path, const Bytes &content)
{
    jpeg_decompress_struct info;
    JpegErrors errors;
    Photo photo; // before setjmp: nothing is constructed between it and a jump
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = jpeg_failed;
    errors.manager.output_message = [](j_common_ptr) {};
    jpeg_create_decompress(&info);
    if (setjmp(errors.back)) {
        jpeg_destroy_decompress(&info);
        throw unreadable(path, errors.message);
    }
    jpeg_mem_src(&info, content.data(), content.size());
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    try {
        photo = sized(path, info.output_width, info.output_height);
    } catch (...) {
        jpeg_destroy_decompress(&info);
        throw;
    }
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = &photo.rgb[std::size_t(info.output_scanline) * info.output_width * 3];
        jpeg_read_scanlines(&info, &row, 1);
    }
    const bool whole = errors.manager.num_warnings == 0;
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    if (!whole)
        throw unreadable(path, "it is damaged or cut short");
    return photo;
}
#endif

// Of each of `size` new pixels along a line of `length`: where its old ones begin, their weights.
struct Taps {
    int first = 0;
    std::vector<int> weights;
};

std::vector<Taps> triangle(int length, int size)
{
    const double scale = static_cast<double>(length) / size, reach = std::max(scale, 1.0);
    std::vector<Taps> all;
    for (int i = 0; i < size; ++i) {
        const double centre = (i + 0.5) * scale;
        Taps taps;
        taps.first = std::max(static_cast<int>(centre - reach + 0.5), 0);
        const int end = std::min(static_cast<int>(centre + reach + 0.5), length);
        std::vector<double> shares;
        double sum = 0;
        for (int at = taps.first; at < end; ++at) {
            shares.push_back(std::max(1 - std::abs((at - centre + 0.5) / reach), 0.0));
            sum += shares.back();
        }
        for (double share : shares)
            taps.weights.push_back(static_cast<int>(0.5 + share / sum * (1 << PRECISION)));
        all.push_back(taps);
    }
    return all;
}

std::uint8_t mixed(const Taps &taps, const std::uint8_t *values, std::size_t step)
{
    int sum = 1 << (PRECISION - 1); // rounds
    for (std::size_t i = 0; i < taps.weights.size(); ++i)
        sum += values[i * step] * taps.weights[i];
    return static_cast<std::uint8_t>(std::clamp(sum >> PRECISION, 0, 255));
}

} // namespace

Photo read_photo(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw std::runtime_error("no photo at " + path);
    const Bytes content{std::istreambuf_iterator<char>(file), {}};
    auto starts = [&](const char *magic) {
        const std::size_t size = std::strlen(magic);
        return content.size() > size && std::memcmp(content.data(), magic, size) == 0;
    };
    if (starts("P6"))
        return read_ppm(path, content);
#ifdef WITH_PNG
    if (starts("\x89PNG"))
        return read_png(path, content);
#endif
#ifdef WITH_JPEG
    if (starts("\xff\xd8"))
        return read_jpeg(path, content);
#endif
    throw unreadable(path, "expected PPM (P6)"
#ifdef WITH_PNG
                           ", PNG"
#endif
#ifdef WITH_JPEG
                           ", JPEG"
#endif
    );
}

Photo central_square(const Photo &photo, int size)
{
    const int side = std::max(static_cast<int>(std::min(photo.width, photo.height) * CROP), 1);
    const int left = (photo.width - side) / 2, top = (photo.height - side) / 2;
    const std::vector<Taps> taps = triangle(side, size);
    Bytes narrow(static_cast<std::size_t>(side) * size * 3); // resized along its rows
    Photo square;
    square.width = square.height = size;
    square.rgb.resize(static_cast<std::size_t>(size) * size * 3);
    for (int row = 0; row < side; ++row)
        for (int i = 0; i < size; ++i)
            for (int channel = 0; channel < 3; ++channel) {
                const std::size_t column = static_cast<std::size_t>(left + taps[i].first);
                const std::size_t line = static_cast<std::size_t>(top + row) * photo.width;
                narrow[(std::size_t(row) * size + i) * 3 + channel] =
                    mixed(taps[i], &photo.rgb[(line + column) * 3 + channel], 3);
            }
    const std::size_t step = static_cast<std::size_t>(size) * 3;
    for (int i = 0; i < size; ++i)
        for (std::size_t at = 0; at < step; ++at)
            square.rgb[i * step + at] = mixed(taps[i], &narrow[taps[i].first * step + at], step);
    return square;
}
