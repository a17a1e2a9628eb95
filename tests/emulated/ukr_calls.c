/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of the two rows ROW and ROW_P16 as functions of plain arguments: the machine code for
 * the emulator, and the model for this machine (test_avx512bf16.py).
 */
#include "src/cpu/ukernels.h"

extern const amla_ukernels ROW, ROW_P16;

#define EXPORT __attribute__((visibility("default")))

enum { MAX_KEYS = 2 * AMLA_UKR_MAX_QK_TOKENS };

static const amla_ukernels *row(int p16) { return p16 ? &ROW_P16 : &ROW; }

static const amla_ukr_panel *panel(int p16, int narrow) {
  return narrow ? &row(p16)->narrow : &row(p16)->wide;
}

EXPORT void ukr_load(amla_dtype type, int32_t n, const void *src, void *dst) {
  ROW.load(&(amla_row_format){.type = type, .d = n}, src, NULL, dst);
}

/* q [n] rows at equal distances. */
EXPORT void ukr_pack(int narrow, int32_t n, int32_t d, const char *q, int64_t q_bytes, float factor,
                     void *qt) {
  const void *rows[AMLA_UKR_MAX_ROWS];
  for (int32_t r = 0; r < n; r++)
    rows[r] = q + r * q_bytes;
  panel(0, narrow)->pack(n, d, AMLA_BF16, rows, factor, 0, qt);
}

/* The stage: n_rows rows of `from`, bf16 or another type, to [n_rows][ldk] at `to`. */
EXPORT void ukr_qk(int narrow, int32_t n, int32_t d, const void *k, int64_t ldk, const void *qt,
                   float *s, amla_dtype type, int32_t n_rows, const char *from, int64_t from_bytes,
                   uint16_t *to) {
  amla_ukr_move moves[MAX_KEYS];
  for (int32_t i = 0; i < MAX_KEYS; i++) {
    const int32_t at = i < n_rows || n_rows == 0 ? i : n_rows - 1;
    moves[i] = (amla_ukr_move){.row = from + at * from_bytes, .to = to + at * ldk};
  }
  const amla_row_format format = {.type = type, .d = d};
  const amla_ukr_stage stage = {&format, n_rows, moves};
  panel(0, narrow)->qk(n, d, k, ldk, qt, s, &stage);
}

EXPORT void ukr_max(int narrow, int32_t n, const float *s, const int32_t *visible, float *max) {
  panel(0, narrow)->max(n, s, visible, max);
}

EXPORT void ukr_exp(int p16, int narrow, int32_t n, float *s, const float *ref, const float *mul,
                    const int32_t *visible, float *sum) {
  panel(p16, narrow)->exp(n, s, ref, mul, visible, sum);
}

/* a [n_merges][pv_rows][pv_cols], of_a and of_b [n_merges][pv_rows] */
EXPORT void ukr_pv(int p16, int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                   int first, const float *o, int32_t n_merges, const float *a, const float *of_a,
                   const float *of_b, float *out) {
  amla_ukr_merge merges[4];
  const int32_t rows = ROW.pv_rows;
  for (int32_t m = 0; m < n_merges; m++)
    merges[m] = (amla_ukr_merge){a + m * rows * ROW.pv_cols, of_a + m * rows, of_b + m * rows};
  row(p16)->pv(n, p, ldp, v, ldv, first, o, n_merges, merges, out);
}

/* Rows of out at equal distances; factors [rows]. */
EXPORT void ukr_store(int p16, amla_dtype type, int32_t rows, int32_t cols, const float *o,
                      const float *factors, char *out, int64_t out_bytes, int32_t d) {
  amla_row_end ends[AMLA_UKR_MAX_ROWS];
  for (int32_t r = 0; r < rows; r++)
    ends[r] = (amla_row_end){.out = out + r * out_bytes, .factor = factors[r]};
  row(p16)->store(type, rows, cols, o, 0, ends, d);
}

EXPORT void ukr_scale(int32_t rows, float *o, const float *f) { ROW.scale(rows, o, f); }
EXPORT void ukr_shift(int32_t rows, float *o, const int32_t *k) { ROW.shift(rows, o, k); }
EXPORT void ukr_merge(int32_t rows, float *o, const float *f, const float *b, const float *g) {
  ROW.merge(rows, o, f, b, g);
}
