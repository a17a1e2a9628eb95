/* SPDX-License-Identifier: Apache-2.0
 *
 * The micro-kernels that run once a tile or less, the same for every instruction set: plain loops
 * that the compiler vectorises for the file which includes them. That file has PV_COLS, columns of
 * an output tile, before it includes this one; and UKR_OWN_MULTIPLY_ADD with its own multiply_add,
 * if its other sums round x * y first.
 */
#ifndef AMLA_CPU_UKR_COLD_H
#define AMLA_CPU_UKR_COLD_H

#include <string.h>

#include "ukernels.h"

/* o overlaps nothing else: without that a check in every row would cost more than the row. clang
 * would vectorise across rows, with gathers. */
#if defined(__clang__)
#define UKR_ROW_LOOP _Pragma("clang loop vectorize(disable)")
#else
#define UKR_ROW_LOOP
#endif

#ifndef UKR_OWN_MULTIPLY_ADD
static inline float multiply_add(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
#endif

/* amla_ukr_store_rows, with a loop for each type: store_one is inlined into all three. */
static inline __attribute__((always_inline)) void
store_by_type(amla_store_row_fn *store_one, amla_dtype type, int32_t rows, int32_t cols,
              const float *o, const amla_row_end *ends, int32_t d) {
  switch (type) {
  case AMLA_BF16:
    amla_ukr_store_rows(store_one, AMLA_BF16, rows, cols, o, PV_COLS, ends, d);
    return;
  case AMLA_F16: amla_ukr_store_rows(store_one, AMLA_F16, rows, cols, o, PV_COLS, ends, d); return;
  default: amla_ukr_store_rows(store_one, AMLA_F32, rows, cols, o, PV_COLS, ends, d);
  }
}

static void scale_rows(int32_t rows, float *restrict o, const float *f) {
  UKR_ROW_LOOP
  for (int32_t r = 0; r < rows; r++, o += PV_COLS)
    for (int c = 0; c < PV_COLS; c++)
      o[c] *= f[r];
}

/* base/expshift.h in 32 bits: e = exponent field; e + k outside 1..254 gives signed zero or inf. */
static inline uint32_t shift_bits(uint32_t u, int32_t k) {
  const uint32_t sign = u & 0x80000000u;
  const int32_t e = (int32_t)(u >> 23 & 0xff), shifted = e + k;
  uint32_t y = u + ((uint32_t)k << 23);
  y = shifted > 254 ? sign | 0x7f800000u : y;
  y = ((e < 1) | (shifted < 1)) ? sign : y;
  return e == 255 ? u : y;
}

static void shift_rows(int32_t rows, float *restrict o, const int32_t *k) {
  uint32_t u[PV_COLS];
  UKR_ROW_LOOP
  for (int32_t r = 0; r < rows; r++, o += PV_COLS) {
    if (k[r] == 0)
      continue;
    memcpy(u, o, sizeof u);
    for (int c = 0; c < PV_COLS; c++)
      u[c] = shift_bits(u[c], k[r]);
    memcpy(o, u, sizeof u);
  }
}

static void merge_rows(int32_t rows, float *restrict o, const float *f, const float *b,
                       const float *g) {
  UKR_ROW_LOOP
  for (int32_t r = 0; r < rows; r++, o += PV_COLS, b += PV_COLS)
    for (int c = 0; c < PV_COLS; c++)
      o[c] = multiply_add(g[r], b[c], f[r] * o[c]);
}

#endif
