// Warp matrix instructions. Lane 0 holds the warp's 16x16 tiles whole and does the work of all;
// the others only state what they were asked for, so that lanes that disagree are found.
#pragma once
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "the one shape that kernels here use");
  float tile[16][16];
  fragment() {
    if (lane() == 0)
      for (auto &row : tile)
        for (float &value : row) value = NAN;
  }
};

// Hardware asks for 32-byte alignment of a tile and for rows of whole 16 bytes.
template <class T>
void check(const char *what, const T *pointer, unsigned stride) {
  the_thread->agree(what, pointer);
  if ((uintptr_t)pointer % 32) the_thread->fault("a matrix tile that is not aligned to 32 bytes");
  if (stride * sizeof(T) % 16) the_thread->fault("matrix rows that are not multiples of 16 bytes");
}

template <class Use, class T>
void fill_fragment(fragment<Use, 16, 16, 16, T> &f, float value) {
  the_thread->agree("fill_fragment", nullptr);
  if (lane() == 0)
    for (auto &row : f.tile)
      for (float &element : row) element = value;
}

template <class Use, class T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major> &f, const T *from, unsigned stride) {
  check("load_matrix_sync", from, stride);
  if (lane() == 0)
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 16; j++) f.tile[i][j] = (float)from[i * stride + j];
}

template <class T>
void store_matrix_sync(T *to, const fragment<accumulator, 16, 16, 16, T> &f, unsigned stride,
                       layout_t layout) {
  check("store_matrix_sync", to, stride);
  if (layout != mem_row_major) the_thread->fault("a matrix stored by columns");
  if (lane() == 0)
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 16; j++) to[i * stride + j] = T(f.tile[i][j]);
}

inline void mma_sync(fragment<accumulator, 16, 16, 16, float> &d,
                     const fragment<matrix_a, 16, 16, 16, half, row_major> &a,
                     const fragment<matrix_b, 16, 16, 16, half, row_major> &b,
                     const fragment<accumulator, 16, 16, 16, float> &c) {
  the_thread->agree("mma_sync", nullptr);
  if (lane() != 0) return;
  float sums[16][16];
  memcpy(sums, c.tile, sizeof sums);
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 16; j++) sums[i][j] += a.tile[i][k] * b.tile[k][j];
  memcpy(d.tile, sums, sizeof sums);
}

}  // namespace wmma
}  // namespace nvcuda
