/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX-512F micro-kernels. Register budget of 32 zmm: scores 12 tokens x 32 rows = 24 accumulators + 2 of Q^T + broadcasts;
 * output 8 rows x 32 columns = 16 accumulators + 2 of V + broadcasts. Loads per FMA: (12 + 2) / 24 and (8 + 2) / 16, below the
 * two load ports' limit of 1. A narrow panel of 24 tokens x 16 rows for few heads: (24 + 1) / 24 there, bound by the load ports.
 */
#include "ukernels.h"

#include <immintrin.h>
#include <string.h>

#include "exp2_poly.h"

enum { QK_TOKENS = 12, NARROW_TOKENS = 24, PV_ROWS = 8, PV_COLS = 32, TILE_TOKENS = 96 };

/* Half a block of q8_0: 11 + 7 significant bits, an exact product. */
static inline __m512 load_16_q8_0(const void *src, int32_t i) {
  const char *block = (const char *)src + amla_elems_bytes(AMLA_Q8_0, i);
  uint16_t d;
  memcpy(&d, block, sizeof d);
  const __m128i q = _mm_loadu_si128((const __m128i *)(block + 2 + i % AMLA_Q8_0_ELEMS));
  return _mm512_mul_ps(_mm512_set1_ps(_cvtsh_ss(d)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
}

/* 16 elements of a KV or q row as f32, i a multiple of 16. */
static inline __m512 load_16(amla_dtype type, const void *src, int32_t i) {
  if (type == AMLA_Q8_0) return load_16_q8_0(src, i);
  if (type == AMLA_F32) return _mm512_loadu_ps((const float *)src + i);
  const __m256i h = _mm256_loadu_si256((const __m256i *)((const uint16_t *)src + i));
  return type == AMLA_BF16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)) : _mm512_cvtph_ps(h);
}

/* The last n < 16 elements of a row. */
static inline void load_tail(amla_dtype type, const void *src, int32_t i, int32_t n, float *dst) {
  float tail[16] = {0}; /* of either width */
  if (type == AMLA_F32)
    for (int32_t t = 0; t < n; t++) tail[t] = ((const float *)src)[i + t];
  else
    memcpy(tail, (const uint16_t *)src + i, (size_t)n * sizeof(uint16_t));
  _mm512_mask_storeu_ps(dst + i, (__mmask16)((1u << n) - 1u), load_16(type, tail, 0));
}

static inline void load_row(amla_dtype type, int32_t n, const void *src, float *dst) {
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(dst + i, load_16(type, src, i));
  if (i < n) load_tail(type, src, i, n - i, dst);
}

static void load_f32(int32_t n, const void *src, float *dst) { load_row(AMLA_F32, n, src, dst); }
static void load_bf16(int32_t n, const void *src, float *dst) { load_row(AMLA_BF16, n, src, dst); }
static void load_f16(int32_t n, const void *src, float *dst) { load_row(AMLA_F16, n, src, dst); }
static void load_q8_0(int32_t n, const void *src, float *dst) { load_row(AMLA_Q8_0, n, src, dst); }

static void store_f32(int32_t n, const float *o, float factor, void *out) {
  float *f = out;
  for (int32_t i = 0; i < n; i += 16) {
    const __mmask16 some = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1u);
    _mm512_mask_storeu_ps(f + i, some, _mm512_mul_ps(_mm512_maskz_loadu_ps(some, o + i), _mm512_set1_ps(factor)));
  }
}

/* base/float16.h on 16 lanes. */
static inline __m256i narrow_16(amla_dtype type, __m512 x) {
  if (type == AMLA_F16) return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16), odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

static inline void store_16_bit(amla_dtype type, int32_t n, const float *o, float factor, void *out) {
  uint16_t *h = out, tail[16];
  int32_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((__m256i *)(h + i), narrow_16(type, _mm512_mul_ps(_mm512_loadu_ps(o + i), _mm512_set1_ps(factor))));
  if (i == n) return;
  const __m512 last = _mm512_maskz_loadu_ps((__mmask16)((1u << (n - i)) - 1u), o + i);
  _mm256_storeu_si256((__m256i *)tail, narrow_16(type, _mm512_mul_ps(last, _mm512_set1_ps(factor))));
  memcpy(h + i, tail, (size_t)(n - i) * sizeof *h);
}

static void store_bf16(int32_t n, const float *o, float factor, void *out) { store_16_bit(AMLA_BF16, n, o, factor, out); }
static void store_f16(int32_t n, const float *o, float factor, void *out) { store_16_bit(AMLA_F16, n, o, factor, out); }

/* 16 x 16 transpose in four rounds of pair-wise merges: of elements, pairs, quarters, halves. */
static inline void transpose_16x16(__m512 x[16]) {
  __m512 y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
      const __m512d a = _mm512_castps_pd(y[i + k]), b = _mm512_castps_pd(y[i + k + 2]);
      x[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      x[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) { /* x[4g + i]: rows 4g..4g+3 of columns i, 4 + i, 8 + i, 12 + i */
    const __m512 low = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x88), high = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xdd);
    const __m512 low2 = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x88), high2 = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xdd);
    y[i] = _mm512_shuffle_f32x4(low, low2, 0x88);
    y[4 + i] = _mm512_shuffle_f32x4(high, high2, 0x88);
    y[8 + i] = _mm512_shuffle_f32x4(low, low2, 0xdd);
    y[12 + i] = _mm512_shuffle_f32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = y[i];
}

/* Columns of 16 rows, of a panel of `rows`. */
static inline void pack_lanes(int32_t d, const float *q, int64_t ldq, float factor, int rows, float *qt) {
  __m512 x[16];
  for (int32_t i = 0; i < d; i += 16) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) x[r] = _mm512_mul_ps(_mm512_load_ps(q + r * ldq + i), _mm512_set1_ps(factor));
    transpose_16x16(x);
    if (d - i >= 16) {
#pragma GCC unroll 16
      for (int c = 0; c < 16; c++) _mm512_store_ps(qt + (i + c) * rows, x[c]);
    } else {
      for (int c = 0; c < d - i; c++) _mm512_store_ps(qt + (i + c) * rows, x[c]);
    }
  }
}

static void pack_32(int32_t d, const float *q, int64_t ldq, float factor, float *qt) {
  pack_lanes(d, q, ldq, factor, 32, qt);
  pack_lanes(d, q + 16 * ldq, ldq, factor, 32, qt + 16);
}

static void pack_16(int32_t d, const float *q, int64_t ldq, float factor, float *qt) { pack_lanes(d, q, ldq, factor, 16, qt); }

/* Three K rows a pointer, through two index registers. */
static inline __attribute__((always_inline)) void qk_of_32(int tokens, int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s) {
  const float *rows[QK_TOKENS / 3];
  __m512 acc[QK_TOKENS][2];
#pragma GCC unroll 4
  for (int i = 0; 3 * i < tokens; i++) rows[i] = k + 3 * i * ldk;
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
#pragma GCC unroll 2
  for (int32_t d = 0; d < d_qk; d++) {
    const __m512 q0 = _mm512_load_ps(qt + d * 32), q1 = _mm512_load_ps(qt + d * 32 + 16);
#pragma GCC unroll 12
    for (int i = 0; i < tokens; i++) {
      const __m512 x = _mm512_set1_ps(rows[i / 3][i % 3 * ldk + d]);
      acc[i][0] = _mm512_fmadd_ps(x, q0, acc[i][0]);
      acc[i][1] = _mm512_fmadd_ps(x, q1, acc[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < tokens; i++) {
    _mm512_store_ps(s + i * 32, acc[i][0]);
    _mm512_store_ps(s + i * 32 + 16, acc[i][1]);
  }
}

static void qk_12x32(int32_t n, int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s) {
  if (n > 8)
    qk_of_32(12, d_qk, k, ldk, qt, s);
  else if (n > 4)
    qk_of_32(8, d_qk, k, ldk, qt, s);
  else
    qk_of_32(4, d_qk, k, ldk, qt, s);
}

/* 24 tokens, so that Q^T streams through L1 half as often. Every broadcast feeds one FMA. */
static inline __attribute__((always_inline)) void qk_of_16(int tokens, int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s) {
  const float *rows[NARROW_TOKENS / 3];
  __m512 acc[NARROW_TOKENS];
#pragma GCC unroll 8
  for (int i = 0; 3 * i < tokens; i++) rows[i] = k + 3 * i * ldk;
#pragma GCC unroll 24
  for (int i = 0; i < tokens; i++) acc[i] = _mm512_setzero_ps();
#pragma GCC unroll 2
  for (int32_t d = 0; d < d_qk; d++) {
    const __m512 q0 = _mm512_load_ps(qt + d * 16);
#pragma GCC unroll 24
    for (int i = 0; i < tokens; i++) acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(rows[i / 3][i % 3 * ldk + d]), q0, acc[i]);
  }
#pragma GCC unroll 24
  for (int i = 0; i < tokens; i++) _mm512_store_ps(s + i * 16, acc[i]);
}

static void qk_24x16(int32_t n, int32_t d_qk, const float *k, int64_t ldk, const float *qt, float *s) {
  if (n > 12)
    qk_of_16(24, d_qk, k, ldk, qt, s);
  else
    qk_of_16(12, d_qk, k, ldk, qt, s);
}

/* 16 rows of a panel of `rows`, from its lane `r` on. */
static inline void max_lanes(int32_t n, const float *s, int rows, const int32_t *visible, float *max) {
  const __m512i vis = _mm512_loadu_si512(visible);
  __m512 m = _mm512_set1_ps(-__builtin_inff());
  for (int32_t j = 0; j < n; j++) { /* max(s, m) gives m where s is NaN */
    const __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_set1_epi32(j), vis);
    m = _mm512_mask_max_ps(m, seen, _mm512_load_ps(s + j * rows), m);
  }
  _mm512_storeu_ps(max, m);
}

static void max_32(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_lanes(n, s, 32, visible, max);
  max_lanes(n, s + 16, 32, visible + 16, max + 16);
}

static void max_16(int32_t n, const float *s, const int32_t *visible, float *max) { max_lanes(n, s, 16, visible, max); }

static inline __m512 exp2_poly(__m512 x) {
  const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(AMLA_EXP2_MIN), _CMP_GE_OQ);
  x = _mm512_min_ps(x, _mm512_set1_ps(AMLA_EXP2_MAX));
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(AMLA_EXP2_C6);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(AMLA_EXP2_C5));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(AMLA_EXP2_C4));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(AMLA_EXP2_C3));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(AMLA_EXP2_C2));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(AMLA_EXP2_C1));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(nonzero, y, n);
}

static inline void exp_lanes(int32_t n, float *s, int rows, const float *ref, const float *mul, const int32_t *visible, float *sum) {
  const __m512i vis = _mm512_loadu_si512(visible);
  const __m512 e = _mm512_loadu_ps(ref), m = _mm512_loadu_ps(mul), zero = _mm512_setzero_ps();
  __m512 l = zero;
  for (int32_t j = 0; j < n; j++) {
    const __mmask16 seen = _mm512_cmplt_epi32_mask(_mm512_set1_epi32(j), vis);
    const __m512 x = _mm512_load_ps(s + j * rows);
    const __m512 p = _mm512_maskz_fmadd_ps(seen, x, zero, exp2_poly(_mm512_sub_ps(x, e)));
    l = _mm512_add_ps(l, p);
    _mm512_store_ps(s + j * rows, _mm512_mul_ps(p, m));
  }
  _mm512_storeu_ps(sum, l);
}

static void exp_32(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible, float *sum) {
  exp_lanes(n, s, 32, ref, mul, visible, sum);
  exp_lanes(n, s + 16, 32, ref + 16, mul + 16, visible + 16, sum + 16);
}

static void exp_16(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible, float *sum) {
  exp_lanes(n, s, 16, ref, mul, visible, sum);
}

/* One token of an output tile. */
static inline __attribute__((always_inline)) void pv_step(__m512 acc[PV_ROWS][2], const float *p, const float *v) {
  const __m512 v0 = _mm512_load_ps(v), v1 = _mm512_load_ps(v + 16);
#pragma GCC unroll 8
  for (int r = 0; r < PV_ROWS; r++) {
    const __m512 x = _mm512_set1_ps(p[r]);
    acc[r][0] = _mm512_fmadd_ps(x, v0, acc[r][0]);
    acc[r][1] = _mm512_fmadd_ps(x, v1, acc[r][1]);
  }
}

/* Tokens while staging whole rows, 32 elements (a 16-bit cache line) a token, straight-line: a conversion behind a branch of
 * its own costs more than it hides. Rows for which no tokens are left are converted alone. Returns the tokens done. */
static inline __attribute__((always_inline)) int32_t pv_staging(__m512 acc[PV_ROWS][2], int32_t n, const float *p, int64_t ldp,
                                                                const float *v, int64_t ldv, const amla_ukr_stage *stage,
                                                                amla_dtype type) {
  const int32_t d32 = stage->d / 32 * 32;
  int32_t j = 0;
  for (int32_t i = 0; i < stage->n_rows; i++) {
    const char *src = stage->src[i], *ahead = stage->ahead[i];
    float *dst = stage->dst + i * stage->ld;
    int32_t d = 0;
    if (j + d32 / 32 <= n)
      for (; d < d32; d += 32, j++) {
        pv_step(acc, p + j * ldp, v + j * ldv);
        _mm_prefetch(ahead + amla_elems_bytes(type, d), _MM_HINT_T1);
        if (type == AMLA_F32) _mm_prefetch(ahead + amla_elems_bytes(type, d) + 64, _MM_HINT_T1);
        _mm512_store_ps(dst + d, load_16(type, src, d));
        _mm512_store_ps(dst + d + 16, load_16(type, src, d + 16));
      }
    load_row(type, stage->d - d, src + amla_elems_bytes(type, d), dst + d);
  }
  return j;
}

static void pv_8x32(int32_t n, const float *p, int64_t ldp, const float *v, int64_t ldv, int first, float *o,
                    const amla_ukr_stage *stage) {
  __m512 acc[PV_ROWS][2];
  int32_t j = 0;
#pragma GCC unroll 8
  for (int r = 0; r < PV_ROWS; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  if (stage->n_rows > 0) {
    if (stage->type == AMLA_BF16)
      j = pv_staging(acc, n, p, ldp, v, ldv, stage, AMLA_BF16);
    else if (stage->type == AMLA_F16)
      j = pv_staging(acc, n, p, ldp, v, ldv, stage, AMLA_F16);
    else if (stage->type == AMLA_Q8_0)
      j = pv_staging(acc, n, p, ldp, v, ldv, stage, AMLA_Q8_0);
    else
      j = pv_staging(acc, n, p, ldp, v, ldv, stage, AMLA_F32);
  }
#pragma GCC unroll 2
  for (; j < n; j++) pv_step(acc, p + j * ldp, v + j * ldv);
#pragma GCC unroll 8
  for (int r = 0; r < PV_ROWS; r++) {
    _mm512_store_ps(o + r * 32, first ? acc[r][0] : _mm512_add_ps(_mm512_load_ps(o + r * 32), acc[r][0]));
    _mm512_store_ps(o + r * 32 + 16, first ? acc[r][1] : _mm512_add_ps(_mm512_load_ps(o + r * 32 + 16), acc[r][1]));
  }
}

static void scale_32(int32_t rows, float *o, const float *f) {
  for (int32_t r = 0; r < rows; r++, o += PV_COLS) {
    const __m512 x = _mm512_set1_ps(f[r]);
    _mm512_store_ps(o, _mm512_mul_ps(_mm512_load_ps(o), x));
    _mm512_store_ps(o + 16, _mm512_mul_ps(_mm512_load_ps(o + 16), x));
  }
}

/* base/expshift.h on 16 lanes: e = exponent field; e + k outside 1..254 gives signed zero or inf. */
static inline __m512i shift_lanes(__m512i u, __m512i k) {
  const __m512i sign = _mm512_and_si512(u, _mm512_set1_epi32((int)0x80000000)), inf = _mm512_set1_epi32(0x7f800000);
  const __m512i e = _mm512_and_si512(_mm512_srli_epi32(u, 23), _mm512_set1_epi32(0xff)), r = _mm512_add_epi32(e, k);
  const __mmask16 finite = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(255));
  const __mmask16 zero = (__mmask16)(_mm512_cmpeq_epi32_mask(e, _mm512_setzero_si512()) |
                                     _mm512_cmplt_epi32_mask(r, _mm512_set1_epi32(1)));
  const __mmask16 big = _mm512_cmpgt_epi32_mask(r, _mm512_set1_epi32(254));
  __m512i y = _mm512_add_epi32(u, _mm512_slli_epi32(k, 23));
  y = _mm512_mask_or_epi32(y, big, sign, inf);
  y = _mm512_mask_mov_epi32(y, zero, sign);
  return _mm512_mask_mov_epi32(u, finite, y);
}

static void shift_32(int32_t rows, float *o, const int32_t *k) {
  for (int32_t r = 0; r < rows; r++, o += PV_COLS) {
    if (k[r] == 0) continue;
    const __m512i x = _mm512_set1_epi32(k[r]);
    _mm512_store_si512(o, shift_lanes(_mm512_load_si512(o), x));
    _mm512_store_si512(o + 16, shift_lanes(_mm512_load_si512(o + 16), x));
  }
}

static void merge_32(int32_t rows, float *o, const float *f, const float *b, const float *g) {
  for (int32_t r = 0; r < rows; r++, o += PV_COLS, b += PV_COLS) {
    const __m512 x = _mm512_set1_ps(f[r]), y = _mm512_set1_ps(g[r]);
    _mm512_store_ps(o, _mm512_fmadd_ps(y, _mm512_load_ps(b), _mm512_mul_ps(x, _mm512_load_ps(o))));
    _mm512_store_ps(o + 16, _mm512_fmadd_ps(y, _mm512_load_ps(b + 16), _mm512_mul_ps(x, _mm512_load_ps(o + 16))));
  }
}

const amla_ukernels amla_ukernels__avx512 = {
    .isa = AMLA_ISA_AVX512, .name = "avx512",
    .tile_tokens = TILE_TOKENS, .pv_rows = PV_ROWS, .pv_cols = PV_COLS,
    .wide = {32, QK_TOKENS, pack_32, qk_12x32, max_32, exp_32}, .narrow = {16, NARROW_TOKENS, pack_16, qk_24x16, max_16, exp_16},
    .load = {load_f32, load_bf16, load_f16, load_q8_0}, .store = {store_f32, store_bf16, store_f16},
    .pv = pv_8x32, .scale = scale_32, .shift = shift_32, .merge = merge_32,
};
