/* SPDX-License-Identifier: Apache-2.0
 *
 * Micro-kernels of FEAT_BF16: BFMMLA multiplies 2 x 4 by 4 x 2 bf16, 16 products, at the rate of
 * FMLA's 4. Keys and q are multiplied as they are; P goes in one bf16, in two, or in f32 by FMLA.
 *
 * What BFMMLA computes (Arm ARM, BFMatMulAdd without FPCR.EBF), for each of its 2 x 2 sums, first
 * of the columns k = 0, 1, then of 2, 3: sum = add(sum, add(mul(a[k], b[k]), mul(a[k + 1], b[k +
 * 1]))) each rounded to odd, not to nearest: what is inexact gets its last bit set. Subnormal
 * operands, sums and results are zeros of their sign, overflow is infinity, any NaN is 0x7fc00000.
 *
 * q of f16 and f32 goes in two and three bf16, the least first: as many passes over the columns.
 *
 * Orders of its own:
 *     tile   token pairs: of 8 columns, row 2i has {key 2i, key 2i + 1} of the first 4, row 2i + 1
 *            those of the last 4; columns up to a multiple of 8 are 0
 *     turned (bf16) of 4 tokens x 8 columns, row i has the 4 tokens of column 2i, then of 2i + 1;
 *            (f32) rows of values
 *     P      4 tokens: pieces of {row r, row r + 1} x 4 tokens, 16 bytes. Pieces of rows 0, 2 (high
 *            parts, then low ones) are the even ones, those of rows 4, 6 the odd ones
 *
 * Register budget of 32 vectors: scores 12 tokens x 8 rows = 24 accumulators, 4 of Q^T; output 4
 * rows x 24 columns = 24 accumulators, 2 or 4 of P. Loads per BFMMLA: 10 / 24, and 14 / 24 or 16 /
 * 48. The last 8 of 512 columns: 8 rows, 8 / 16.
 */
#include "ukr_neon.h"

#include <arm_neon.h>
#include <string.h>

#include "../base/load.h"

enum {
  ROWS = 8,
  QK_TOKENS = 12,
  PAIRS = QK_TOKENS / 2,
  DEPTH = 4, /* columns, or tokens, of a BFMMLA */
  PV_COLS = UKR_NEON_PV_COLS,
  TILE_TOKENS = 96
};

#define INLINE static inline __attribute__((always_inline))

/* acc of rows a x columns b, in acc's own register: gcc 12 moves accumulators about between the
 * intrinsics. clang does not, but spills around the assembly. */
INLINE float32x4_t dot_2x2(float32x4_t acc, uint16x8_t a, uint16x8_t b) {
#if defined(__clang__)
  acc = vbfmmlaq_f32(acc, vreinterpretq_bf16_u16(a), vreinterpretq_bf16_u16(b));
#else
  __asm__("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(acc) : "w"(a), "w"(b));
#endif
  return acc;
}

INLINE uint16x8_t zip_halves(uint16x8_t a, uint16x8_t b, int second) {
  const uint64x2_t x = vreinterpretq_u64_u16(a), y = vreinterpretq_u64_u16(b);
  return vreinterpretq_u16_u64(second ? vzip2q_u64(x, y) : vzip1q_u64(x, y));
}

INLINE float32x4_t zip_pairs(float32x4_t a, float32x4_t b, int second) {
  return vreinterpretq_f32_u16(
      zip_halves(vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b), second));
}

/* ---- Conversions ---- */

INLINE uint16x4_t narrow(float32x4_t x) { return vreinterpret_u16_bf16(vcvt_bf16_f32(x)); }

INLINE float32x4_t widen(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }

enum { PIECE = AMLA_MAX_RECORD }; /* elements converted at a time: whole blocks, whole vectors */

/* Rounded to nearest even, which changes nothing in fp8_584. */
static void load(const amla_row_format *f, const void *row, const void *scales, void *dst) {
  uint16_t *to = dst;
  if (f->type == AMLA_BF16) {
    memcpy(dst, row, (size_t)f->d * sizeof *to);
    return;
  }
  for (int32_t i = 0; i < f->d; i += PIECE) {
    const int32_t some = f->d - i < PIECE ? f->d - i : PIECE;
    const amla_row_format part = amla_row_part(f, i, some);
    float x[PIECE] = {0};
    uint16_t y[PIECE];
    amla_load_kv_row(&part, (const char *)row + amla_elems_bytes(f->type, i), scales, x);
    for (int c = 0; c < some; c += 4)
      vst1_u16(y + c, narrow(vld1q_f32(x + c)));
    memcpy(to + i, y, (size_t)some * sizeof *to);
  }
}

/* ---- Packing: as ukernels.h has it ---- */

/* Elements [i, i + 4), from n on 0. */
INLINE float32x4_t load_q(amla_dtype type, const void *q, int32_t i, int32_t n) {
  const char *at = (const char *)q + amla_elems_bytes(type, i);
  float x[4] = {0};
  if (i + 4 > n) {
    amla_load_row(type, n - i, at, x);
    return vld1q_f32(x);
  }
  switch (type) {
  case AMLA_F32: return vld1q_f32((const float *)(const void *)at);
  case AMLA_F16:
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)(const void *)at)));
  default: return widen(vld1_u16((const uint16_t *)(const void *)at));
  }
}

static void pack_row(int32_t parts, int32_t d, amla_dtype type, const void *q, uint16_t *qt) {
  const int32_t part_elems = (d + DEPTH - 1) / DEPTH * DEPTH * ROWS;
  for (int32_t i = 0; i < d; i += DEPTH) {
    float32x4_t x = load_q(type, q, i, d);
    for (int32_t part = parts - 1; part >= 0; part--) {
      const uint16x4_t y = narrow(x);
      vst1_u16(qt + part * part_elems + i * ROWS, y);
      x = vsubq_f32(x, widen(y));
    }
  }
}

INLINE void pack(int32_t parts, int32_t n, int32_t d, amla_dtype type, const void *const *q,
                 float factor, uint16_t *qt) {
  const int32_t elems = parts * ((d + DEPTH - 1) / DEPTH * DEPTH * ROWS);
  memset(qt, 0, (size_t)elems * sizeof *qt);
  for (int32_t r = 0; r < n; r++)
    pack_row(parts, d, type, q[r], qt + r * DEPTH);
  for (int r = 0; r < ROWS; r++)
    memcpy(qt + elems + 2 * r, &factor, sizeof factor);
}

static void pack_8(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                   int even_odd, void *qt) {
  (void)even_odd;
  pack(1, n, d, type, q, factor, qt);
}

static void pack_8_q2(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                      int even_odd, void *qt) {
  (void)even_odd;
  pack(2, n, d, type, q, factor, qt);
}

static void pack_8_q3(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                      int even_odd, void *qt) {
  (void)even_odd;
  pack(3, n, d, type, q, factor, qt);
}

/* ---- Scores ---- */

INLINE void put_pair(uint16x8_t x, uint16x8_t y, uint16_t *to, int64_t ldk) {
  vst1q_u16(to, zip_halves(x, y, 0));
  vst1q_u16(to + ldk, zip_halves(x, y, 1));
}

static void load_part(const amla_row_format *f, const amla_ukr_move *m, int32_t i, int32_t n,
                      uint16_t *to) {
  const amla_row_format part = amla_row_part(f, i, n);
  load(&part, (const char *)m->row + amla_elems_bytes(f->type, i), m->scales, to);
}

/* Two rows from column d on, up to a multiple of 8. */
static void stage_rest(const amla_row_format *f, int32_t d, const amla_ukr_move *a,
                       const amla_ukr_move *b, int64_t ldk) {
  for (; d < f->d; d += PIECE) {
    const int32_t some = f->d - d < PIECE ? f->d - d : PIECE;
    uint16_t x[PIECE] = {0}, y[PIECE] = {0};
    load_part(f, a, d, some, x);
    if (b)
      load_part(f, b, d, some, y);
    for (int32_t c = 0; c < some; c += 8)
      put_pair(vld1q_u16(x + c), vld1q_u16(y + c), (uint16_t *)a->to + d + c, ldk);
  }
}

/* Rows a and b (NULL: 0) to row a->to and the one behind it. */
static void stage_pair(const amla_row_format *f, const amla_ukr_move *a, const amla_ukr_move *b,
                       int64_t ldk) {
  const int32_t whole = f->type == AMLA_BF16 && b ? f->d / 8 * 8 : 0;
  const uint16_t *low = a->row, *high = b ? b->row : NULL;
  uint16_t *to = a->to;
  for (int32_t d = 0; d < whole; d += 8)
    put_pair(vld1q_u16(low + d), vld1q_u16(high + d), to + d, ldk);
  stage_rest(f, whole, a, b, ldk);
}

static void run_stage(int64_t ldk, const amla_ukr_stage *stage) {
  const amla_ukr_move *m = stage->moves;
  const amla_row_format *f = stage->format;
  if (stage->n_rows == 0) /* its format may be NULL */
    return;
  const int64_t row_bytes = amla_elems_bytes(f->type, amla_row_elems(f->type, f->d));
  for (int32_t i = 0; i < stage->n_rows; i++)
    for (int64_t at = 0; at < row_bytes; at += 64)
      __builtin_prefetch((const char *)m[QK_TOKENS + i].row + at, 0, 2);
  for (int32_t i = 0; i < stage->n_rows; i += 2)
    stage_pair(f, &m[i], i + 1 < stage->n_rows ? &m[i + 1] : NULL, ldk);
}

typedef float32x4_t score_tile[PAIRS][ROWS / 2];

/* 4 columns of token pairs, which are 2 ldk apart. */
INLINE void qk_step(score_tile acc, const uint16_t *k, int64_t ldk, const uint16_t *qt) {
  uint16x8_t q[ROWS / 2];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS / 2; r++)
    q[r] = vld1q_u16(qt + r * 8);
#pragma GCC unroll 6
  for (int i = 0; i < PAIRS; i++) {
    const uint16x8_t x = vld1q_u16(k + 2 * i * ldk);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS / 2; r++)
      acc[i][r] = dot_2x2(acc[i][r], x, q[r]);
  }
}

/* All columns of a part of q; where the next one is. */
INLINE const uint16_t *qk_part(score_tile acc, int32_t d_qk, const uint16_t *k, int64_t ldk,
                               const uint16_t *qt) {
  int32_t d = 0;
  for (; d + DEPTH < d_qk; d += 2 * DEPTH, k += 2 * DEPTH, qt += 2 * DEPTH * ROWS) {
    qk_step(acc, k, ldk, qt);
    qk_step(acc, k + ldk, ldk, qt + DEPTH * ROWS);
  }
  if (d < d_qk) {
    qk_step(acc, k, ldk, qt);
    qt += DEPTH * ROWS;
  }
  return qt;
}

INLINE void qk(int32_t parts, int32_t d_qk, const void *keys, int64_t ldk, const void *panel,
               float *s, const amla_ukr_stage *stage) {
  const uint16_t *qt = panel;
  score_tile acc;
  run_stage(ldk, stage);
#pragma GCC unroll 24
  for (int i = 0; i < PAIRS * ROWS / 2; i++)
    acc[i / 4][i % 4] = vdupq_n_f32(0);
  for (int32_t part = 0; part < parts; part++)
    qt = qk_part(acc, d_qk, keys, ldk, qt);
#pragma GCC unroll 12
  for (int i = 0; i < QK_TOKENS; i++)
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) {
      const float32x4_t factor = vld1q_f32((const float *)(const void *)qt + 4 * r);
      const float32x4_t x = zip_pairs(acc[i / 2][2 * r], acc[i / 2][2 * r + 1], i % 2);
      vst1q_f32(s + i * ROWS + 4 * r, vmulq_f32(x, factor));
    }
}

static void qk_12x8(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *panel,
                    float *s, const amla_ukr_stage *stage) {
  (void)n;
  qk(1, d_qk, keys, ldk, panel, s, stage);
}

static void qk_12x8_q2(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *panel,
                       float *s, const amla_ukr_stage *stage) {
  (void)n;
  qk(2, d_qk, keys, ldk, panel, s, stage);
}

static void qk_12x8_q3(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *panel,
                       float *s, const amla_ukr_stage *stage) {
  (void)n;
  qk(3, d_qk, keys, ldk, panel, s, stage);
}

/* ---- P ---- */

/* 4 tokens of 4 rows, side by side: rows r, r + 1 and r + 2, r + 3 in one bf16 to out[0] and
 * out[2]; what is left of them, if there are two parts, to out[4] and out[6]. x becomes what that
 * amounts to. */
INLINE void round_4x4(int parts, float32x4_t x[4], uint16x8_t *out) {
  float32x4_t row[4];
  const float32x4_t a = vzip1q_f32(x[0], x[2]), b = vzip2q_f32(x[0], x[2]);
  const float32x4_t c = vzip1q_f32(x[1], x[3]), d = vzip2q_f32(x[1], x[3]);
  row[0] = vzip1q_f32(a, c), row[1] = vzip2q_f32(a, c);
  row[2] = vzip1q_f32(b, d), row[3] = vzip2q_f32(b, d);
  for (int i = 0; i < 4; i += 2) {
    const uint16x4_t high0 = narrow(row[i]), high1 = narrow(row[i + 1]);
    out[i] = vcombine_u16(high0, high1);
    if (parts == 2)
      out[4 + i] = vcombine_u16(narrow(vsubq_f32(row[i], widen(high0))),
                                narrow(vsubq_f32(row[i + 1], widen(high1))));
  }
  for (int t = 0; t < 4; t++) {
    const float32x4_t high = widen(narrow(x[t]));
    x[t] = parts == 1 ? high : vaddq_f32(high, widen(narrow(vsubq_f32(x[t], high))));
  }
}

/* P in f32, in place of itself. Pieces of rows 4 to 7 stand between those of rows 0 to 3. */
INLINE void exp_rounded(int parts, int32_t n, float *s, const float *ref, const float *mul,
                        const int32_t *visible, float *sum) {
  uint16_t *p = (uint16_t *)(void *)s;
  float32x4_t l[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
  amla_ukr_exp_8__neon(n, s, ref, mul, visible, sum);
  for (int32_t j = 0; j < n; j += 4, s += 4 * ROWS, p += 4 * ROWS * parts) {
    uint16x8_t piece[8];
    for (int half = 0; half < 2; half++) {
      float32x4_t x[4];
      for (int t = 0; t < 4; t++)
        x[t] = j + t < n ? vld1q_f32(s + t * ROWS + 4 * half) : vdupq_n_f32(0);
      round_4x4(parts, x, piece + half);
      for (int t = 0; t < 4; t++)
        l[half] = vaddq_f32(l[half], x[t]);
    }
    for (int i = 0; i < 4 * parts; i++)
      vst1q_u16(p + 8 * i, piece[i]);
  }
  vst1q_f32(sum + ROWS, l[0]);
  vst1q_f32(sum + ROWS + 4, l[1]);
}

static void exp_bf16x2(int32_t n, float *s, const float *ref, const float *mul,
                       const int32_t *visible, float *sum) {
  exp_rounded(2, n, s, ref, mul, visible, sum);
}

static void exp_bf16(int32_t n, float *s, const float *ref, const float *mul,
                     const int32_t *visible, float *sum) {
  exp_rounded(1, n, s, ref, mul, visible, sum);
}

/* ---- Values ---- */

/* 4 tokens, of which the first `known` are there; others become 0, as P = 0 times anything is not.
 */
INLINE void turn_4(int32_t known, int32_t d_v, uint16_t *v, int64_t ld) {
  static const uint16_t ones[8] = {0xffff, 0xffff, 0xffff, 0xffff, 0, 0, 0, 0};
  const uint16x8_t first = vld1q_u16(ones), all = vdupq_n_u16(0xffff);
  const uint16x8_t of_a = known > 1 ? all : first;
  const uint16x8_t of_b = known > 3 ? all : known > 2 ? first : vdupq_n_u16(0);
  for (int32_t d = 0; d < d_v; d += 8, v += 8) {
    uint16x8_t x[4];
    for (int i = 0; i < 4; i++)
      x[i] = vandq_u16(vld1q_u16(v + i * ld), i < 2 ? of_a : of_b);
    for (int h = 0; h < 2; h++) { /* columns 4h to 4h + 3 */
      const uint16x8_t even = vzip1q_u16(x[h], x[2 + h]), odd = vzip2q_u16(x[h], x[2 + h]);
      vst1q_u16(v + 2 * h * ld, vzip1q_u16(even, odd));
      vst1q_u16(v + (2 * h + 1) * ld, vzip2q_u16(even, odd));
    }
  }
}

static void turn_bf16(int32_t n, int32_t d_v, void *tile, int64_t ld) {
  uint16_t *v = tile;
  int32_t j = 0;
  for (; j + 4 <= n; j += 4, v += 4 * ld)
    turn_4(4, d_v, v, ld);
  if (j < n)
    turn_4(n - j, d_v, v, ld);
}

/* From the last columns on: what is written then has been read. */
static void turn_f32(int32_t n, int32_t d_v, void *tile, int64_t ld) {
  const uint16x8_t zero = vdupq_n_u16(0);
  uint16_t *v = tile;
  for (int32_t j = 0; j < n; j += 2, v += 2 * ld)
    for (int32_t d = (d_v - 1) / 8 * 8; d >= 0; d -= 8) {
      const uint16x8_t low = vld1q_u16(v + d), high = vld1q_u16(v + ld + d);
      float *a = (float *)(void *)v + d, *b = (float *)(void *)(v + ld) + d;
      vst1q_f32(a, vreinterpretq_f32_u16(vzip1q_u16(zero, low)));
      vst1q_f32(a + 4, vreinterpretq_f32_u16(vzip1q_u16(zero, high)));
      vst1q_f32(b, vreinterpretq_f32_u16(vzip2q_u16(zero, low)));
      vst1q_f32(b + 4, vreinterpretq_f32_u16(vzip2q_u16(zero, high)));
    }
}

/* ---- Output ---- */

/* Vector c of row r, from the tile [row pairs][vecs] of 2 x 2 sums. */
INLINE float32x4_t row_of(const float32x4_t *acc, int vecs, int r, int c) {
  const float32x4_t *pair = acc + r / 2 * 2 * vecs + 2 * c;
  return zip_pairs(pair[0], pair[1], r % 2);
}

/* 2 * pairs rows x vecs vectors of an output tile [rows][PV_COLS]. */
INLINE void pv_tile(int parts, int pairs, int vecs, int32_t n, const uint16_t *p, const uint16_t *v,
                    int64_t ldv, int first, const float *o, int32_t n_merges,
                    const amla_ukr_merge *merges, float *out) {
  float32x4_t acc[24], x[24];
#pragma GCC unroll 24
  for (int i = 0; i < 2 * pairs * vecs; i++)
    acc[i] = vdupq_n_f32(0);
  for (int32_t j = 0; j < n; j += 4, p += 4 * ROWS * parts, v += 4 * ldv) {
    uint16x8_t w[8];
#pragma GCC unroll 8
    for (int i = 0; i < pairs * parts; i++) /* pairs 2 and 3 are the odd pieces */
      w[i] = vld1q_u16(p + (i / pairs * 4 + i % pairs % 2 * 2 + i % pairs / 2) * 8);
#pragma GCC unroll 24
    for (int i = 0; i < 2 * vecs; i++) {
      const uint16x8_t y = vld1q_u16(v + i % 4 * ldv + i / 4 * 8);
#pragma GCC unroll 8
      for (int k = 0; k < pairs * parts; k++)
        acc[k % pairs * 2 * vecs + i] = dot_2x2(acc[k % pairs * 2 * vecs + i], w[k], y);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < 2 * pairs * vecs; i++) {
    x[i] = row_of(acc, vecs, i / vecs, i % vecs);
    if (!first)
      x[i] = vaddq_f32(vld1q_f32(o + i / vecs * PV_COLS + i % vecs * 4), x[i]);
  }
  for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++)
#pragma GCC unroll 24
    for (int i = 0; i < 2 * pairs * vecs; i++) {
      const float32x4_t a = vld1q_f32(m->a + i / vecs * PV_COLS + i % vecs * 4);
      x[i] = vfmaq_n_f32(vmulq_n_f32(a, m->of_a[i / vecs]), x[i], m->of_b[i / vecs]);
    }
#pragma GCC unroll 24
  for (int i = 0; i < 2 * pairs * vecs; i++)
    vst1q_f32(out + i / vecs * PV_COLS + i % vecs * 4, x[i]);
}

static void pv_bf16x2_4x24(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                           int first, const float *o, int32_t n_merges,
                           const amla_ukr_merge *merges, float *out) {
  (void)ldp;
  pv_tile(2, 2, 6, n, p, v, ldv, first, o, n_merges, merges, out);
}

static void pv_bf16x2_8x8(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                          int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                          float *out) {
  (void)ldp;
  pv_tile(2, 4, 2, n, p, v, ldv, first, o, n_merges, merges, out);
}

static void pv_bf16_4x24(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                         int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                         float *out) {
  (void)ldp;
  pv_tile(1, 2, 6, n, p, v, ldv, first, o, n_merges, merges, out);
}

static void pv_bf16_8x8(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                        int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges,
                        float *out) {
  (void)ldp;
  pv_tile(1, 4, 2, n, p, v, ldv, first, o, n_merges, merges, out);
}

#include "ukr_cold.h"

#define PANEL(q, exp_kernel)                                                                       \
  {ROWS, QK_TOKENS, DEPTH, 0, pack_8##q, qk_12x8##q, amla_ukr_max_8__neon, exp_kernel}
#define TABLE_ROW(parts, q, p_of, form, turned, width, exp_kernel, pv_kernel, pv_end_kernel)       \
  {                                                                                                \
      .isa = AMLA_ISA_NEONBF16,                                                                    \
      .tile_type = AMLA_BF16,                                                                      \
      .p_type = (p_of),                                                                            \
      .p_form = (form),                                                                            \
      .q_parts = (parts),                                                                          \
      .tile_tokens = TILE_TOKENS,                                                                  \
      .pv_rows = UKR_NEON_PV_ROWS,                                                                 \
      .pv_cols = PV_COLS,                                                                          \
      .wide = PANEL(q, exp_kernel),                                                                \
      .narrow = PANEL(q, exp_kernel),                                                              \
      .turn = (turned),                                                                            \
      .v_width = (width),                                                                          \
      .load = load,                                                                                \
      .store = amla_ukr_store_24__neon,                                                            \
      .pv = (pv_kernel),                                                                           \
      .pv_end = {8, 8, pv_end_kernel},                                                             \
      .scale = scale_rows,                                                                         \
      .shift = shift_rows,                                                                         \
      .merge = merge_rows,                                                                         \
  }
#define FORMS_OF_P(parts, q)                                                                       \
  {                                                                                                \
      TABLE_ROW(parts, q, AMLA_F32, AMLA_P_F32, turn_f32, 2, amla_ukr_exp_8__neon,                 \
                amla_ukr_pv_f32_4x24__neon, amla_ukr_pv_f32_8x8__neon),                            \
      TABLE_ROW(parts, q, AMLA_BF16, AMLA_P_BF16X2, turn_bf16, 1, exp_bf16x2, pv_bf16x2_4x24,      \
                pv_bf16x2_8x8),                                                                    \
      TABLE_ROW(parts, q, AMLA_BF16, AMLA_P_BF16, turn_bf16, 1, exp_bf16, pv_bf16_4x24,            \
                pv_bf16_8x8),                                                                      \
  }

/* By parts of q and forms of P, the least exact last. */
const amla_ukernels amla_ukernels__neonbf16[3][3] = {
    FORMS_OF_P(1, ),
    FORMS_OF_P(2, _q2),
    FORMS_OF_P(3, _q3),
};
