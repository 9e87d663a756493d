// Intel's tile unit in software: what the instructions that our kernels use do, for machines without
// one. A misuse that the hardware faults on ends the process with a line that says which. Of sums
// below the least normal number it keeps what the hardware takes for 0.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

constexpr int kRegisters = 8;
constexpr int kRows = 16;
constexpr int kRowBytes = 64;

struct Unit {
  bool configured = false;
  uint16_t width[kRegisters];  // bytes of a row
  uint8_t rows[kRegisters];
  uint8_t data[kRegisters][kRows][kRowBytes];
};

thread_local Unit unit;
std::atomic<int> threads_that_use_it{0};

void Require(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "tile unit: %s\n", what);
    std::abort();
  }
}

void RequireRegister(int number) {
  Require(unit.configured, "used before ldtilecfg");
  Require(number >= 0 && number < kRegisters, "no such register");
  Require(unit.rows[number] > 0 && unit.width[number] > 0, "register without rows");
}

float Widened(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;  // what is denormal counts as zero
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

extern "C" {

void septune_unit_ldtilecfg(const uint8_t* configuration) {
  Require(configuration[0] == 1, "palette is not 1");
  for (int at = 1; at < 64; ++at) {
    const bool used = (at >= 16 && at < 32) || (at >= 48 && at < 56);
    Require(used || configuration[at] == 0, "reserved bytes are not 0");
  }
  if (!unit.configured) ++threads_that_use_it;
  unit = Unit();
  for (int number = 0; number < kRegisters; ++number) {
    std::memcpy(&unit.width[number], configuration + 16 + 2 * number, 2);
    unit.rows[number] = configuration[48 + number];
    Require(unit.width[number] <= kRowBytes, "row of more than 64 bytes");
    Require(unit.rows[number] <= kRows, "register of more than 16 rows");
    Require((unit.rows[number] == 0) == (unit.width[number] == 0), "rows without width");
  }
  unit.configured = true;
}

void septune_unit_tilerelease() {
  Require(unit.configured, "released twice");
  --threads_that_use_it;
  unit = Unit();
}

int septune_unit_in_use() { return threads_that_use_it; }

void septune_unit_tileloadd64(int8_t number, const uint8_t* from, int64_t stride) {
  RequireRegister(number);
  std::memset(unit.data[number], 0, sizeof unit.data[number]);
  for (int row = 0; row < unit.rows[number]; ++row) {
    std::memcpy(unit.data[number][row], from + row * stride, unit.width[number]);
  }
}

void septune_unit_tilestored64(int8_t number, uint8_t* to, int64_t stride) {
  RequireRegister(number);
  for (int row = 0; row < unit.rows[number]; ++row) {
    std::memcpy(to + row * stride, unit.data[number][row], unit.width[number]);
  }
}

void septune_unit_tdpbf16ps(int8_t sums, int8_t left, int8_t right) {
  for (int number : {sums, left, right}) RequireRegister(number);
  Require(sums != left && sums != right && left != right, "registers are not three");
  Require(unit.rows[sums] == unit.rows[left], "rows of sums and of the left factor differ");
  Require(unit.width[sums] == unit.width[right], "width of sums and of the right factor differ");
  Require(unit.width[left] == 4 * unit.rows[right], "depths of the factors differ");
  for (int row = 0; row < unit.rows[sums]; ++row) {
    for (int column = 0; column < unit.width[sums] / 4; ++column) {
      float even = 0, odd = 0;
      for (int pair = 0; pair < unit.rows[right]; ++pair) {
        uint16_t one[2], other[2];
        std::memcpy(one, unit.data[left][row] + 4 * pair, sizeof one);
        std::memcpy(other, unit.data[right][pair] + 4 * column, sizeof other);
        even += Widened(one[0]) * Widened(other[0]);
        odd += Widened(one[1]) * Widened(other[1]);
      }
      float sum;
      std::memcpy(&sum, unit.data[sums][row] + 4 * column, sizeof sum);
      sum += even + odd;
      std::memcpy(unit.data[sums][row] + 4 * column, &sum, sizeof sum);
    }
  }
}

}  // extern "C"
