/* SPDX-License-Identifier: Apache-2.0
 *
 * Micro-kernels in portable C: the yardstick of the others, and the fallback. Fixed trip counts, so that a compiler can
 * use whatever vectors the target's baseline has.
 */
#include "ukernels.h"

#include <math.h>

#include "../base/expshift.h"
#include "../base/store.h"
#include "exp2_poly.h"

enum { ROWS = 8, QK_TOKENS = 4, PV_ROWS = 4, PV_COLS = 8, TILE_TOKENS = 64 };

static void load_f32(int32_t n, const void *src, float *dst) { memcpy(dst, src, (size_t)n * sizeof *dst); }

static void load_bf16(int32_t n, const void *src, float *dst) {
  const uint16_t *h = src;
  for (int32_t i = 0; i < n; i++) dst[i] = amla_bf16_to_f32(h[i]);
}

static void load_f16(int32_t n, const void *src, float *dst) {
  const uint16_t *h = src;
  for (int32_t i = 0; i < n; i++) dst[i] = amla_f16_to_f32(h[i]);
}

static void load_q8_0(int32_t n, const void *src, float *dst) { amla_q8_0_to_f32(n, src, dst); }

static void (*const load[4])(int32_t n, const void *src, float *dst) = {load_f32, load_bf16, load_f16, load_q8_0};

static void pack_8(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor, int split, float *qt) {
  (void)split;
  for (int r = 0; r < ROWS; r++)
    for (int32_t i = 0; i < d; i++) {
      float x = 0.0f;
      if (r < n) load[type](1, (const char *)q[r] + amla_elems_bytes(type, i), &x);
      qt[i * ROWS + r] = factor * x;
    }
}

static void qk_4x8(int32_t n, int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s, const amla_ukr_stage *stage) {
  (void)n;
  for (int32_t i = 0; i < stage->n_rows; i++) load[stage->type](d_qk, stage->src[i], stage->dst + i * ldk);
  float acc[QK_TOKENS][ROWS] = {{0}};
  for (int32_t d = 0; d < d_qk; d++)
    for (int i = 0; i < QK_TOKENS; i++)
      for (int r = 0; r < ROWS; r++) acc[i][r] += k[i * ldk + d] * qt[d * ROWS + r];
  memcpy(s, acc, sizeof acc);
}

static void max_8(int32_t n, const float *s, const int32_t *visible, float *max) {
  for (int r = 0; r < ROWS; r++) max[r] = -INFINITY;
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < ROWS; r++) {
      const float x = j < visible[r] ? s[j * ROWS + r] : -INFINITY;
      max[r] = x > max[r] ? x : max[r];
    }
}

static float exp2_poly(float x) {
  const int zero = !(x >= AMLA_EXP2_MIN);
  x = x < AMLA_EXP2_MAX ? x : AMLA_EXP2_MAX;
  x = zero ? 0.0f : x;
  const float t = x + AMLA_ROUND_MAGIC, f = x - (t - AMLA_ROUND_MAGIC);
  const float y = ((((((AMLA_EXP2_C6 * f + AMLA_EXP2_C5) * f + AMLA_EXP2_C4) * f + AMLA_EXP2_C3) * f + AMLA_EXP2_C2) * f +
                    AMLA_EXP2_C1) * f + 1.0f);
  return zero ? 0.0f : amla_f32_from_bits(amla_f32_bits(y) + (amla_f32_bits(t) << 23));
}

static void exp_8(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible, float *sum) {
  for (int r = 0; r < ROWS; r++) sum[r] = 0.0f;
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < ROWS; r++) {
      const float x = s[j * ROWS + r];
      const float p = j < visible[r] ? exp2_poly(x - ref[r]) + 0.0f * x : 0.0f;
      sum[r] += p;
      s[j * ROWS + r] = p * mul[r];
    }
}

static void pv_4x8(int32_t n, const float *p, int64_t ldp, const float *v, int64_t ldv, int first, const float *o, int32_t n_merges,
                   const amla_ukr_merge *merges, float *out) {
  float acc[PV_ROWS][PV_COLS] = {{0}};
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < PV_ROWS; r++)
      for (int c = 0; c < PV_COLS; c++) acc[r][c] += p[j * ldp + r] * v[j * ldv + c];
  for (int r = 0; r < PV_ROWS; r++)
    for (int c = 0; c < PV_COLS; c++) {
      float x = first ? acc[r][c] : o[r * PV_COLS + c] + acc[r][c];
      for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++) x = m->of_a[r] * m->a[r * PV_COLS + c] + m->of_b[r] * x;
      out[r * PV_COLS + c] = x;
    }
}

static void store_f32(int32_t rows, int32_t cols, const float *o, int split, const amla_row_end *ends, int32_t d) {
  (void)split;
  amla_ukr_store_rows(amla_store_f32, AMLA_F32, rows, cols, o, PV_COLS, ends, d);
}

static void store_bf16(int32_t rows, int32_t cols, const float *o, int split, const amla_row_end *ends, int32_t d) {
  (void)split;
  amla_ukr_store_rows(amla_store_bf16, AMLA_BF16, rows, cols, o, PV_COLS, ends, d);
}

static void store_f16(int32_t rows, int32_t cols, const float *o, int split, const amla_row_end *ends, int32_t d) {
  (void)split;
  amla_ukr_store_rows(amla_store_f16, AMLA_F16, rows, cols, o, PV_COLS, ends, d);
}

static void scale_8(int32_t rows, float *o, const float *f) {
  for (int32_t r = 0; r < rows; r++)
    for (int c = 0; c < PV_COLS; c++) o[r * PV_COLS + c] *= f[r];
}

static void shift_8(int32_t rows, float *o, const int32_t *k) {
  for (int32_t r = 0; r < rows; r++)
    for (int c = 0; c < PV_COLS && k[r] != 0; c++) o[r * PV_COLS + c] = amla_expshift(o[r * PV_COLS + c], k[r]);
}

static void merge_8(int32_t rows, float *o, const float *f, const float *b, const float *g) {
  for (int32_t r = 0; r < rows; r++)
    for (int c = 0; c < PV_COLS; c++) o[r * PV_COLS + c] = f[r] * o[r * PV_COLS + c] + g[r] * b[r * PV_COLS + c];
}

const amla_ukernels amla_ukernels__c = {
    .isa = AMLA_ISA_C, .name = "c",
    .tile_tokens = TILE_TOKENS, .pv_rows = PV_ROWS, .pv_cols = PV_COLS,
    .wide = {ROWS, QK_TOKENS, 1, 0, pack_8, qk_4x8, max_8, exp_8}, .narrow = {ROWS, QK_TOKENS, 1, 0, pack_8, qk_4x8, max_8, exp_8},
    .load = {load_f32, load_bf16, load_f16, load_q8_0}, .store = {store_f32, store_bf16, store_f16},
    .pv = pv_4x8, .scale = scale_8, .shift = shift_8, .merge = merge_8,
};
