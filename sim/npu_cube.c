/* SPDX-License-Identifier: Apache-2.0
 *
 * What the loads into L0A and L0B and the cube do. L0A holds A [m][k] by rows of 16 x 16 fractals,
 * each row-major; L0B holds B [k][n] by rows (k) of fractals, each column-major. Operands are
 * inside their buffers when these run.
 */
#include "npu_core.h"
#include "npu_float.h"

#include <string.h>

enum { F = 16, FRACTAL = F * F };

static int64_t fractals(int64_t x) { return (x + F - 1) / F; }

/* ---- Loads ---- */

/* Fractal (outer, inner) of L0 comes from an NZ matrix of height h, where fractals of a column are
   contiguous. */

enum { MN, K, SRC_ROWS };

static const npu_bf16 *nz_fractal(const npu_instr *i, const void *src, int64_t row, int64_t col) {
  return (const npu_bf16 *)src + (col * i->n[SRC_ROWS] + row * F) * F;
}

static void copy_fractal(npu_bf16 *dst, const npu_bf16 *src) {
  memcpy(dst, src, FRACTAL * sizeof *dst);
}

static void transpose_fractal(npu_bf16 *dst, const npu_bf16 *src) {
  for (int r = 0; r < F; r++)
    for (int c = 0; c < F; c++)
      dst[c * F + r] = src[r * F + c];
}

void npu_do_load_l0a(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                     uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  const int64_t ms = fractals(i->n[MN]), ks = fractals(i->n[K]);
  for (int64_t m = 0; m < ms; m++)
    for (int64_t k = 0; k < ks; k++)
      copy_fractal((npu_bf16 *)dst + (m * ks + k) * FRACTAL, nz_fractal(i, a, m, k));
}

void npu_do_load_l0a_t(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                       uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  const int64_t ms = fractals(i->n[MN]), ks = fractals(i->n[K]);
  for (int64_t m = 0; m < ms; m++)
    for (int64_t k = 0; k < ks; k++)
      transpose_fractal((npu_bf16 *)dst + (m * ks + k) * FRACTAL, nz_fractal(i, a, k, m));
}

void npu_do_load_l0b(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                     uint32_t bits) {
  (void)b, (void)lanes,
      (void)bits; /* rows of src are columns of B, and fractals of L0B are column-major: a copy */
  const int64_t ns = fractals(i->n[MN]), ks = fractals(i->n[K]);
  for (int64_t k = 0; k < ks; k++)
    for (int64_t n = 0; n < ns; n++)
      copy_fractal((npu_bf16 *)dst + (k * ns + n) * FRACTAL, nz_fractal(i, a, n, k));
}

void npu_do_load_l0b_t(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                       uint32_t bits) {
  (void)b, (void)lanes, (void)bits;
  const int64_t ns = fractals(i->n[MN]), ks = fractals(i->n[K]);
  for (int64_t k = 0; k < ks; k++)
    for (int64_t n = 0; n < ns; n++)
      transpose_fractal((npu_bf16 *)dst + (k * ns + n) * FRACTAL, nz_fractal(i, a, k, n));
}

/* ---- The cube ---- */

enum { CUBE_M, CUBE_N, CUBE_K, CUBE_ACCUMULATE };

typedef float widen_fn(uint16_t x); /* of either 16-bit type */

/* Columns 16 n.. of C, in f32: B's fractals of that column, row by row. */
static void widen_column(float (*wide)[F], const npu_bf16 *b, int64_t n, int64_t ns,
                         int64_t k_elems, widen_fn *widen) {
  for (int64_t k = 0; k < k_elems; k++)
    for (int64_t c = 0; c < F; c++)
      wide[k][c] = widen(b[(k / F * ns + n) * FRACTAL + c * F + k % F]);
}

/* acc[r][c] += a[r][k] * wide[k][c], k ascending, each step rounded: THE accumulation order. Four
 * rows at a time only for speed. */
static void multiply_rows(float acc[4][F], const npu_bf16 *const a[4], const float (*wide)[F],
                          int64_t k_elems, widen_fn *widen) {
  for (int64_t k = 0; k < k_elems; k++) {
    const int64_t at = k / F * FRACTAL + k % F;
    for (int r = 0; r < 4; r++) {
      const float x = widen(a[r][at]);
      for (int c = 0; c < F; c++)
        acc[r][c] += x * wide[k][c];
    }
  }
}

static void multiply(const npu_instr *i, void *dst, const void *a, const void *b, widen_fn *widen) {
  static _Thread_local float wide[4096][F]; /* one column of fractals of B */
  const int64_t m = i->n[CUBE_M], n = i->n[CUBE_N], k = i->n[CUBE_K], ms = fractals(m),
                ns = fractals(n), ks = fractals(k);
  for (int64_t column = 0; column < ns; column++) {
    const size_t width = (size_t)(n - column * F < F ? n - column * F : F) * sizeof(float);
    float *c = (float *)dst + column * ms * FRACTAL;
    widen_column(wide, b, column, ns, k, widen);
    for (int64_t row = 0; row < m; row += 4) {
      const npu_bf16 *a_row[4];
      float acc[4][F];
      for (int64_t r = 0; r < 4;
           r++) { /* rows past m are computed and dropped; 16 rows are always there */
        a_row[r] = (const npu_bf16 *)a + ((row + r) / F * ks * F + (row + r) % F) * F;
        if (i->n[CUBE_ACCUMULATE])
          memcpy(acc[r], c + (row + r) * F, sizeof acc[r]);
        else
          memset(acc[r], 0, sizeof acc[r]);
      }
      multiply_rows(acc, a_row, (const float(*)[F])wide, k, widen);
      for (int64_t r = 0; r < 4 && row + r < m; r++)
        memcpy(c + (row + r) * F, acc[r], width);
    }
  }
}

void npu_do_mmad_bf16(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                      uint32_t bits) {
  (void)lanes, (void)bits;
  multiply(i, dst, a, b, npu_bf16_f32);
}

void npu_do_mmad_f16(const npu_instr *i, void *dst, const void *a, const void *b, uint32_t lanes,
                     uint32_t bits) {
  (void)lanes, (void)bits;
  multiply(i, dst, a, b, npu_f16_f32);
}
