/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of AVX512-BF16 in portable C: the same shapes, layouts, orders and roundings, one
 * element at a time. The machine code is held against it bit by bit (tests/emulated), and it stands
 * in for it in whole runs (test_bf16_rows). Lanes come last, for compilers.
 */
#include "src/cpu/ukernels.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/base/load.h"
#include "src/cpu/exp2_poly.h"

enum { MAX_ROWS = AMLA_UKR_MAX_ROWS, QK_TOKENS = 12, PV_ROWS = 8, PV_COLS = 32, TILE_TOKENS = 96 };

#if defined(__x86_64__) /* compiled with -mfma */
__attribute__((constructor)) static void need_fma(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("fma"))
    return;
  puts("skipped: the model of the rows of bf16 needs a CPU with FMA");
  exit(77);
}
#endif

/* ---- Instructions ---- */

/* Numbers below 2^-126 are zeros. */
static inline float flush(float x) {
  const uint32_t u = amla_f32_bits(x);
  return amla_f32_from_bits((u & 0x7f800000u) == 0 ? u & 0x80000000u : u);
}

static inline float widen(uint16_t x) { return flush(amla_f32_from_bits((uint32_t)x << 16)); }

static inline float step(float a, float b, float sum) { return flush(fmaf(a, b, flush(sum))); }

/* vdpbf16ps: the odd product first. */
static inline float pair_step(const uint16_t *a, const uint16_t *b, float sum) {
  return step(widen(a[0]), widen(b[0]), step(widen(a[1]), widen(b[1]), sum));
}

/* vcvtne2ps2bf16 */
static uint16_t round_bf16(float x) {
  const uint32_t u = amla_f32_bits(flush(x));
  if (isnan(x))
    return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ---- Keys, Q^T, scores ---- */

static void load(const amla_row_format *f, const void *row, const void *scales, void *dst) {
  uint16_t *to = dst;
  float x[4096];
  assert(f->d <= 4096);
  if (f->type == AMLA_BF16) {
    memcpy(dst, row, (size_t)f->d * sizeof *to);
    return;
  }
  amla_load_kv_row(f, row, scales, x);
  for (int32_t i = 0; i < f->d; i++)
    to[i] = round_bf16(x[i]);
}

static int depth_of(int rows) { return 64 / rows; }

static int32_t whole(int32_t d, int rows) {
  return (d + depth_of(rows) - 1) / depth_of(rows) * depth_of(rows);
}

static void pack(int rows, int32_t n, int32_t d, const void *const *q, float factor, uint16_t *qt) {
  const int depth = depth_of(rows);
  const int32_t end = whole(d, rows);
  for (int32_t i = 0; i < end; i++)
    for (int r = 0; r < rows; r++) {
      const uint16_t x = i < d && r < n ? ((const uint16_t *)q[r])[i] : 0;
      qt[(i / depth * rows + r) * depth + i % depth] = x;
    }
  for (int r = 0; r < rows; r++)
    memcpy(qt + end * rows + 2 * r, &factor, sizeof factor);
}

/* Each pair of `depth` columns has a sum of its own. */
static inline void qk(int rows, int32_t n, int32_t d_qk, const uint16_t *k, int64_t ldk,
                      const uint16_t *qt, float *s) {
  const int depth = depth_of(rows);
  const int32_t end = whole(d_qk, rows);
  float factor;
  memcpy(&factor, qt + end * rows, sizeof factor);
  for (int32_t i = 0; i < n; i++, k += ldk, s += rows) {
    float sum[2][MAX_ROWS] = {{0}};
    for (int32_t d = 0; d < end; d += 2)
      for (int r = 0; r < rows; r++) {
        const uint16_t *q = qt + (d / depth * rows + r) * depth + d % depth;
        sum[d % depth / 2][r] = pair_step(q, k + d, sum[d % depth / 2][r]);
      }
    for (int r = 0; r < rows; r++)
      s[r] = (depth == 2 ? sum[0][r] : sum[0][r] + sum[1][r]) * factor;
  }
}

/* ---- P ---- */

static void max(int rows, int32_t n, const float *s, const int32_t *visible, float *max_of) {
  for (int r = 0; r < rows; r++)
    max_of[r] = -INFINITY;
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < rows; r++)
      if (j < visible[r] && s[j * rows + r] > max_of[r])
        max_of[r] = s[j * rows + r];
}

static float exp2_poly(float x) {
  static const float c[] = {AMLA_EXP2_C5, AMLA_EXP2_C4, AMLA_EXP2_C3,
                            AMLA_EXP2_C2, AMLA_EXP2_C1, 1.0f};
  if (!(x >= AMLA_EXP2_MIN) || isinf(x))
    return 0.0f; /* the caller sees to what is not finite */
  const float n = nearbyintf(x), f = x - n;
  float y = AMLA_EXP2_C6;
  for (int i = 0; i < 6; i++)
    y = fmaf(y, f, c[i]);
  return ldexpf(y, (int)n);
}

static void exp2_rows(int rows, int32_t n, float *s, const float *ref, const float *mul,
                      const int32_t *visible, float *sum) {
  for (int r = 0; r < rows; r++)
    sum[r] = 0.0f;
  for (int32_t j = 0; j < n; j++)
    for (int r = 0; r < rows; r++) {
      const float x = s[j * rows + r];
      const float p = j < visible[r] ? fmaf(x, 0.0f, exp2_poly(x - ref[r])) : 0.0f;
      sum[r] += p;
      s[j * rows + r] = p * mul[r];
    }
}

static void round_p(int rows, int32_t n, float *s, float *sum) {
  static const uint16_t ones[2] = {0x3f80, 0x3f80};
  for (int r = 0; r < rows; r++) {
    sum[r] = 0.0f;
    for (int32_t j = 0; j < n; j += 2) {
      const float a = s[j * rows + r], b = j + 1 < n ? s[(j + 1) * rows + r] : 0.0f;
      const uint16_t pair[2] = {round_bf16(a), round_bf16(b)};
      memcpy(&s[j / 2 * rows + r], pair, sizeof pair);
      sum[r] = pair_step(pair, ones, sum[r]);
    }
  }
}

/* ---- PV ---- */

/* Which of 32 columns element i of an output tile's row is. */
static int even_odd_column(int i) { return i % 16 * 2 + i / 16; }
static int dealt_column(int i) { return i % 16 / 4 * 8 + i / 16 * 4 + i % 4; }

static void end_row(int r, const float *sum, int first, const float *o, int32_t n_merges,
                    const amla_ukr_merge *merges, float *out) {
  for (int c = 0; c < PV_COLS; c++) {
    const int at = r * PV_COLS + c;
    float x = first ? sum[c] : o[at] + sum[c];
    for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++)
      x = fmaf(m->of_b[r], x, m->of_a[r] * m->a[at]);
    out[at] = x;
  }
}

static void pv(int32_t n, const void *weights, int64_t ldp, const void *values, int64_t ldv,
               int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
               float *out) {
  const float *p = weights;
  const uint16_t *v = values;
  for (int r = 0; r < PV_ROWS; r++) {
    float sum[PV_COLS] = {0};
    for (int32_t j = 0; j < n; j++)
      for (int c = 0; c < PV_COLS; c++) {
        const uint32_t x = v[j * ldv + even_odd_column(c)];
        sum[c] = fmaf(p[j * ldp + r], amla_f32_from_bits(x << 16), sum[c]);
      }
    end_row(r, sum, first, o, n_merges, merges, out);
  }
}

static void pv_p16(int32_t n, const void *weights, int64_t ldp, const void *values, int64_t ldv,
                   int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                   float *out) {
  const uint16_t *p = weights, *v = values;
  for (int r = 0; r < PV_ROWS; r++) {
    float sum[PV_COLS] = {0};
    for (int32_t j = 0; j < n; j += 2) {
      const uint16_t *a = v + j * ldv, *b = j + 1 < n ? a + ldv : a;
      for (int c = 0; c < PV_COLS; c++) {
        const uint16_t pair[2] = {a[dealt_column(c)], b[dealt_column(c)]};
        sum[c] = pair_step(p + (j / 2 * ldp + r) * 2, pair, sum[c]);
      }
    }
    end_row(r, sum, first, o, n_merges, merges, out);
  }
}

static void store_in_order(int (*column)(int i), amla_dtype type, int32_t rows, int32_t cols,
                           const float *o, const amla_row_end *ends, int32_t d) {
  float x[PV_ROWS * PV_COLS];
  for (int32_t r = 0; r < rows; r++)
    for (int i = 0; i < PV_COLS; i++)
      x[r * PV_COLS + column(i)] = o[r * PV_COLS + i];
  amla_ukr_store_rows(amla_store_row, type, rows, cols, x, PV_COLS, ends, d);
}

/* ---- The table's rows ---- */

#define PANEL(rows)                                                                                \
  static void pack_##rows(int32_t n, int32_t d, amla_dtype type, const void *const *q,             \
                          float factor, int even_odd, void *qt) {                                  \
    (void)type, (void)even_odd;                                                                    \
    pack(rows, n, d, q, factor, qt);                                                               \
  }                                                                                                \
  static void qk_12x##rows(int32_t n, int32_t d_qk, const void *k, int64_t ldk, const void *qt,    \
                           float *s, const amla_ukr_stage *stage) {                                \
    for (int32_t i = 0; i < stage->n_rows; i++)                                                    \
      load(stage->format, stage->moves[i].row, stage->moves[i].scales, stage->moves[i].to);        \
    qk(rows, n, d_qk, k, ldk, qt, s);                                                              \
  }                                                                                                \
  static void max_##rows(int32_t n, const float *s, const int32_t *visible, float *max_of) {       \
    max(rows, n, s, visible, max_of);                                                              \
  }                                                                                                \
  static void exp_##rows(int32_t n, float *s, const float *ref, const float *mul,                  \
                         const int32_t *visible, float *sum) {                                     \
    exp2_rows(rows, n, s, ref, mul, visible, sum);                                                 \
  }                                                                                                \
  static void exp_##rows##_p16(int32_t n, float *s, const float *ref, const float *mul,            \
                               const int32_t *visible, float *sum) {                               \
    exp2_rows(rows, n, s, ref, mul, visible, sum);                                                 \
    round_p(rows, n, s, sum + (rows));                                                             \
  }
PANEL(32)
PANEL(16)

static void store(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                  const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  store_in_order(even_odd_column, type, rows, cols, o, ends, d);
}

static void store_p16(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                      const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  store_in_order(dealt_column, type, rows, cols, o, ends, d);
}

#include "src/cpu/ukr_cold.h"

extern const amla_ukernels amla_ukernels__model, amla_ukernels__model_p16;

const amla_ukernels amla_ukernels__model = {
    .isa = AMLA_ISA_C,
    .tile_type = AMLA_BF16,
    .p_type = AMLA_F32,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {32, QK_TOKENS, 2, 1, pack_32, qk_12x32, max_32, exp_32},
    .narrow = {16, QK_TOKENS, 4, 0, pack_16, qk_12x16, max_16, exp_16},
    .load = load,
    .store = store,
    .pv = pv,
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};

const amla_ukernels amla_ukernels__model_p16 = {
    .isa = AMLA_ISA_C,
    .tile_type = AMLA_BF16,
    .p_type = AMLA_BF16,
    .p_form = AMLA_P_BF16,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {32, QK_TOKENS, 2, 1, pack_32, qk_12x32, max_32, exp_32_p16},
    .narrow = {16, QK_TOKENS, 4, 0, pack_16, qk_12x16, max_16, exp_16_p16},
    .load = load,
    .store = store_p16,
    .pv = pv_p16,
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};
