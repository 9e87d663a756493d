// IEEE half precision in software: to nearest even, subnormals kept, as the hardware does it.
#pragma once
#include <cstdint>
#include <cstring>

struct half {
  uint16_t bits;

  half() = default;
  half(float value) : bits(rounded(value)) {}
  half(double value) : half((float)value) {}
  half(int value) : half((float)value) {}
  operator float() const {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff, word;
    if (rest >= 0x7c00) {  // infinite or not a number
      word = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
      word = sign | (rest << 13) + (112u << 23);
    } else {
      float value = (float)rest * 0x1p-24f;
      memcpy(&word, &value, 4);
      word |= sign;
    }
    float value;
    memcpy(&value, &word, 4);
    return value;
  }

 private:
  static uint16_t rounded(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    uint16_t sign = word >> 16 & 0x8000;
    word &= 0x7fffffff;
    if (word > 0x7f800000) return sign | 0x7e00;
    if (word >= 0x47800000) return sign | 0x7c00;  // 65536 and above
    if (word < 0x38800000) {                       // subnormal: the float adder rounds it
      float magnitude;
      memcpy(&magnitude, &word, 4);
      magnitude += 0.5f;
      memcpy(&word, &magnitude, 4);
      return sign | (uint16_t)(word - 0x3f000000);
    }
    word += 0xfff + (word >> 13 & 1);
    return sign | (uint16_t)((word - (112u << 23)) >> 13);  // may round up to infinity
  }
};
typedef half __half;
struct __attribute__((aligned(4))) half2 {
  half x, y;
};
typedef half2 __half2;
static inline half2 make_half2(half x, half y) { return {x, y}; }

static inline half operator+(half a, half b) { return half((float)a + (float)b); }
static inline half operator-(half a, half b) { return half((float)a - (float)b); }
static inline half operator*(half a, half b) { return half((float)a * (float)b); }
static inline half operator/(half a, half b) { return half((float)a / (float)b); }
static inline bool __hgt(half a, half b) { return (float)a > (float)b; }
static inline bool __hlt(half a, half b) { return (float)a < (float)b; }
static inline half __float2half_rn(float value) { return half(value); }
static inline half __float2half(float value) { return half(value); }
static inline float __half2float(half value) { return value; }
