/* SPDX-License-Identifier: Apache-2.0
 *
 * Micro-kernels in portable C: the yardstick of the others, and the fallback. Fixed trip counts, so
 * that a compiler can use whatever vectors the target's baseline has.
 */
#include "ukernels.h"

#include <math.h>
#include <string.h>

#include "../base/load.h"
#include "exp2_poly.h"

enum { ROWS = 8, QK_TOKENS = 4, PV_ROWS = 4, PV_COLS = 8, TILE_TOKENS = 64 };

static void load(const amla_row_format *format, const void *row, const void *scales, void *dst) {
  amla_load_kv_row(format, row, scales, dst);
}

static void pack_8(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                   int even_odd, void *panel) {
  float *qt = panel;
  (void)even_odd;
  for (int r = 0; r < ROWS; r++)
    for (int32_t i = 0; i < d; i++) {
      float x = 0.0f;
      if (r < n)
        amla_load_row(type, 1, (const char *)q[r] + amla_elems_bytes(type, i), &x);
      qt[i * ROWS + r] = factor * x;
    }
}

static void qk_4x8(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *panel,
                   float *s, const amla_ukr_stage *stage) {
  const float *k = keys, *qt = panel;
  float acc[QK_TOKENS][ROWS] = {{0}};
  (void)n;
  for (const amla_ukr_move *m = stage->moves; m < stage->moves + stage->n_rows; m++)
    amla_load_kv_row(stage->format, m->row, m->scales, m->to);
  for (int32_t d = 0; d < d_qk; d++)
    for (int i = 0; i < QK_TOKENS; i++)
      for (int r = 0; r < ROWS; r++)
        acc[i][r] += k[i * ldk + d] * qt[d * ROWS + r];
  memcpy(s, acc, sizeof acc);
}

static void max_8(int32_t n, const float *s, const int32_t *visible, float *max) {
  for (int r = 0; r < ROWS; r++)
    max[r] = -INFINITY;
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < ROWS; r++) {
      const float x = j < visible[r] ? s[j * ROWS + r] : -INFINITY;
      max[r] = x > max[r] ? x : max[r];
    }
}

static float exp2_poly(float x) {
  static const float c[] = {AMLA_EXP2_C5, AMLA_EXP2_C4, AMLA_EXP2_C3,
                            AMLA_EXP2_C2, AMLA_EXP2_C1, 1.0f};
  const int zero = !(x >= AMLA_EXP2_MIN);
  x = x < AMLA_EXP2_MAX ? x : AMLA_EXP2_MAX;
  x = zero ? 0.0f : x;
  const float t = x + AMLA_ROUND_MAGIC, f = x - (t - AMLA_ROUND_MAGIC);
  float y = AMLA_EXP2_C6;
  for (int i = 0; i < 6; i++)
    y = y * f + c[i];
  return zero ? 0.0f : amla_f32_from_bits(amla_f32_bits(y) + (amla_f32_bits(t) << 23));
}

static void exp_8(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                  float *sum) {
  for (int r = 0; r < ROWS; r++)
    sum[r] = 0.0f;
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < ROWS; r++) {
      const float x = s[j * ROWS + r];
      const float p = j < visible[r] ? exp2_poly(x - ref[r]) + 0.0f * x : 0.0f;
      sum[r] += p;
      s[j * ROWS + r] = p * mul[r];
    }
}

static void pv_4x8(int32_t n, const void *weights, int64_t ldp, const void *values, int64_t ldv,
                   int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                   float *out) {
  const float *p = weights, *v = values;
  float acc[PV_ROWS][PV_COLS] = {{0}};
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < PV_ROWS; r++)
      for (int c = 0; c < PV_COLS; c++)
        acc[r][c] += p[j * ldp + r] * v[j * ldv + c];
  for (int r = 0; r < PV_ROWS; r++)
    for (int c = 0; c < PV_COLS; c++) {
      const int at = r * PV_COLS + c;
      float x = first ? acc[r][c] : o[at] + acc[r][c];
      for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++)
        x = m->of_a[r] * m->a[at] + m->of_b[r] * x;
      out[at] = x;
    }
}

#define UKR_OWN_MULTIPLY_ADD
static inline float multiply_add(float x, float y, float z) { return x * y + z; }

#include "ukr_cold.h"

static void store(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                  const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  amla_ukr_store_rows(amla_store_row, type, rows, cols, o, PV_COLS, ends, d);
}

const amla_ukernels amla_ukernels__c = {
    .isa = AMLA_ISA_C,
    .tile_type = AMLA_F32,
    .p_type = AMLA_F32,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {ROWS, QK_TOKENS, 1, 0, pack_8, qk_4x8, max_8, exp_8},
    .narrow = {ROWS, QK_TOKENS, 1, 0, pack_8, qk_4x8, max_8, exp_8},
    .load = load,
    .store = store,
    .pv = pv_4x8,
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};
