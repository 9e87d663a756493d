// Photos, read and cut to what a network looks at, to the last bit as septune's own Python does.
#ifndef PHOTO_HPP
#define PHOTO_HPP

#include <cstdint>
#include <string>
#include <vector>

struct Photo {
    int width = 0, height = 0;
    std::vector<std::uint8_t> rgb; // rows from the top, three bytes a pixel
};

// Reads PPM (P6), and PNG and JPEG where the libraries for them were found at build time.
// Throws std::runtime_error with a reason.
Photo read_photo(const std::string &path);

// The central square, 0.875 of the shorter side, resized to `size` by `size` pixels: each pixel is
// an average weighted by a triangle as wide as two of the new ones, so that nothing is skipped.
Photo central_square(const Photo &photo, int size);

#endif
