/* SPDX-License-Identifier: Apache-2.0
 *
 * AVX2 + FMA + F16C micro-kernels. Register budget of 16 ymm: scores 6 tokens x 16 rows = 12
 * accumulators + 2 of Q^T + 2 broadcasts; output 4 rows x 24 columns = 12 accumulators + 3 of V + 1
 * broadcast. Loads per FMA: (6 + 2) / 12 and (4 + 3) / 12. The last 8 of 512 columns: 8 rows, (8 +
 * 1) / 8.
 */
#include "ukernels.h"

#include <immintrin.h>
#include <string.h>

#include "../base/load.h"
#include "exp2_poly.h"
#include "ukr_blocks.h"
#include "ukr_fp8.h"

enum {
  QK_TOKENS = 6,
  NARROW_TOKENS = 12,
  PV_ROWS = 4,
  PV_COLS = 24,
  PV_END_ROWS = 8,
  PV_END_COLS = 8,
  TILE_TOKENS = 96,
  FETCH_COLUMNS = 256, /* ahead: 1536 cycles. 128 are too few where neighbours use memory too */
  MAX_CODES = 576,
  UNROLL = 4
};

/* 8 elements, by a load that fills both halves and one shuffle that puts each under zeros. */
static inline __m256 widen_bf16(const void *src) {
  const __m256i high = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1,
                                        -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return _mm256_castsi256_ps(
      _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(src)), high));
}

/* ---- Rows of kv ---- */

/* The end of the elements that have one scale with element i. */
static inline int32_t group_end(const amla_row_format *f, amla_dtype type, int32_t i) {
  switch (type) {
  case AMLA_FP8_656: return (i / AMLA_FP8_656_GROUP + 1) * AMLA_FP8_656_GROUP;
  case AMLA_FP8_584: return (i / AMLA_FP8_584_GROUP + 1) * AMLA_FP8_584_GROUP;
  case AMLA_FP8_E4M3: return i < f->d_latent ? f->d_latent : f->d;
  default: return amla_is_block(type) ? (i / AMLA_BLOCK_ELEMS + 1) * AMLA_BLOCK_ELEMS : f->d;
  }
}

static inline int has_scales(amla_dtype type) { return amla_is_block(type) || is_fp8(type); }

static inline __m256 f16_at(const void *at) {
  uint16_t h;
  memcpy(&h, at, sizeof h);
  return _mm256_set1_ps(_cvtsh_ss(h));
}

/* The scale of the group that begins with element i; of e4m3 as ukr_fp8.h has it. */
static inline __attribute__((always_inline)) __m256 scale_at(const amla_row_format *f,
                                                             amla_dtype type, const void *row,
                                                             const void *scales, int32_t i) {
  if (!amla_is_block(type))
    return _mm256_set1_ps(scale_x256(f, type, row, scales, i));
  return f16_at(block_of(type, row, i));
}

/* 16 codes as f16 without their scale (ukr_fp8.h). */
static inline __m256i half_codes(__m128i codes) {
  const __m256i x = _mm256_cvtepi8_epi16(codes); /* the sign is there twice */
  return _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16((short)0xbf80));
}

static inline __m256 load_8_of_block(amla_dtype type, const void *src, int32_t i, __m256 d) {
  const char *block = block_of(type, src, i);
  const __m128i codes = block_codes(type, 8, block, i % AMLA_BLOCK_ELEMS);
  const __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), d);
  return amla_block_format_of(type).has_m ? _mm256_add_ps(x, f16_at(block + 2)) : x;
}

/* 8 elements from i on, i a multiple of 8; times the group's scale. */
static inline __m256 load_8(amla_dtype type, const void *src, int32_t i, __m256 scale) {
  if (amla_is_block(type))
    return load_8_of_block(type, src, i, scale);
  if (is_fp8(type)) {
    const void *codes = (const char *)src + i;
    const __m128i h = _mm256_castsi256_si128(half_codes(_mm_loadl_epi64(codes)));
    return _mm256_mul_ps(_mm256_cvtph_ps(h), scale);
  }
  if (type == AMLA_F32)
    return _mm256_loadu_ps((const float *)src + i);
  const __m128i *h = (const __m128i *)(const void *)((const uint16_t *)src + i);
  return type == AMLA_BF16 ? widen_bf16(h) : _mm256_cvtph_ps(_mm_loadu_si128(h));
}

/* What is left of a row when its first i elements, in whole vectors, are done. */
static inline void load_rest(const amla_row_format *f, amla_dtype type, const void *row, int32_t i,
                             float *dst) {
  const char *rest = (const char *)row + amla_elems_bytes(type, i);
  if (type == AMLA_FP8_E4M3)
    amla_load_e4m3(f->d - i, rest, f->rope_scale, dst + i);
  else if (type == AMLA_FP8_656)
    amla_load_fp8_rope((const char *)row + AMLA_FP8_656_ROPE_AT, dst + i);
  else if (type == AMLA_FP8_584)
    amla_load_fp8_rope(rest, dst + i);
  else if (i < f->d)
    amla_load_row(type, f->d - i, rest, dst + i);
}

static inline void see_8(seen_of_rows *seen, const void *codes) {
  const __m128i x = _mm_and_si128(_mm_loadl_epi64(codes), _mm_set1_epi8(0x7f));
  seen->codes = _mm256_max_epu8(seen->codes, _mm256_zextsi128_si256(x));
}

/* Blocks are whole: no rest. */
static inline __attribute__((always_inline)) void load_row(amla_dtype type,
                                                           const amla_row_format *f,
                                                           const void *row, const void *scales,
                                                           float *dst) {
  const int32_t end = is_record(type) ? f->d_latent : f->d;
  seen_of_rows seen = {_mm256_setzero_si256(), is_fp8(type) && f->d_latent % 8 != 0};
  __m256 scale = _mm256_setzero_ps();
  int32_t i = 0, group = 0;
  if (is_fp8(type))
    see_scales(&seen, f, type, row, scales);
  for (; i + 8 <= end; i += 8) {
    if (has_scales(type) && i == group) {
      scale = scale_at(f, type, row, scales, i);
      group = group_end(f, type, i);
    }
    if (is_fp8(type))
      see_8(&seen, (const char *)row + i);
    _mm256_storeu_ps(dst + i, load_8(type, row, i, scale));
  }
  load_rest(f, type, row, i, dst);
  if (is_fp8(type) && is_wild(&seen))
    amla_load_kv_row(f, row, scales, dst);
}

static void load(const amla_row_format *f, const void *row, const void *scales, void *dst) {
#define CASE(id, ...)                                                                              \
  case id: load_row(id, f, row, scales, dst); return;
  switch (f->type) { AMLA_DTYPES(CASE) }
#undef CASE
}

/* base/float16.h on 8 lanes. */
static inline __m128i narrow_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16),
                odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i y =
      _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  return _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

static inline __m128i narrow_f16(__m256 x) {
  return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline __m128i narrow_8(amla_dtype type, __m256 x) {
  return type == AMLA_BF16 ? narrow_bf16(x) : narrow_f16(x);
}

static inline __attribute__((always_inline)) void
store_row(amla_dtype type, int32_t n, const float *o, float factor, void *out) {
  const __m256 f = _mm256_set1_ps(factor);
  char *to = out;
  int32_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(o + i), f);
    if (type == AMLA_F32)
      _mm256_storeu_ps((float *)(void *)to + i, x);
    else
      _mm_storeu_si128((__m128i *)(void *)(to + 2 * i), narrow_8(type, x));
  }
  if (i < n)
    amla_store_row(type, n - i, o + i, factor, to + amla_elems_bytes(type, i));
}

/* 8 x 8 transpose: merges of elements, pairs, halves. */
static inline void transpose_8x8(__m256 x[8]) {
  __m256 y[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
      const __m256d a = _mm256_castps_pd(y[i + k]), b = _mm256_castps_pd(y[i + k + 2]);
      x[i + 2 * k] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      x[i + 2 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) { /* x[4g + i]: rows 4g..4g+3 of columns i and 4 + i */
    y[i] = _mm256_permute2f128_ps(x[i], x[4 + i], 0x20);
    y[4 + i] = _mm256_permute2f128_ps(x[i], x[4 + i], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    x[i] = y[i];
}

/* 8 columns, some of them missing, of n <= 8 rows from column i on: transposed, times factor. */
static inline __attribute__((always_inline)) void pack_columns(int32_t n, int32_t some,
                                                               amla_dtype type,
                                                               const void *const *q, int32_t i,
                                                               float factor, int rows, float *qt) {
  __m256 x[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) {
    float rest[8] __attribute__((aligned(32))) = {0};
    x[r] = _mm256_setzero_ps();
    if (r < n && some == 8)
      x[r] = load_8(type, q[r], i, x[r]);
    if (r < n && some < 8) {
      amla_load_row(type, some, (const char *)q[r] + amla_elems_bytes(type, i), rest);
      x[r] = _mm256_load_ps(rest);
    }
    x[r] = _mm256_mul_ps(x[r], _mm256_set1_ps(factor));
  }
  transpose_8x8(x);
  for (int c = 0; c < some; c++)
    _mm256_store_ps(qt + c * rows, x[c]);
}

static inline __attribute__((always_inline)) void pack_typed(int32_t n, int32_t d, amla_dtype type,
                                                             const void *const *q, float factor,
                                                             int rows, float *qt) {
  int32_t i = 0;
  for (; i + 8 <= d; i += 8)
    pack_columns(n, 8, type, q, i, factor, rows, qt + i * rows);
  if (i < d)
    pack_columns(n, d - i, type, q, i, factor, rows, qt + i * rows);
}

/* n <= 8 rows in a panel of `rows`. */
static inline void pack_lanes(int32_t n, int32_t d, amla_dtype type, const void *const *q,
                              float factor, int rows, float *qt) {
  switch (type) {
  case AMLA_F32: pack_typed(n, d, AMLA_F32, q, factor, rows, qt); return;
  case AMLA_BF16: pack_typed(n, d, AMLA_BF16, q, factor, rows, qt); return;
  default: pack_typed(n, d, AMLA_F16, q, factor, rows, qt);
  }
}

static void pack_16(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                    int even_odd, void *qt) {
  (void)even_odd;
  pack_lanes(n, d, type, q, factor, 16, qt);
  pack_lanes(n - 8, d, type, q + 8, factor, 16, (float *)qt + 8);
}

static void pack_8(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                   int even_odd, void *qt) {
  (void)even_odd;
  pack_lanes(n, d, type, q, factor, 8, qt);
}

/* Before the product. */
static __attribute__((noinline)) void run_stage(const amla_ukr_stage *stage, int32_t tokens) {
  const amla_row_format *f = stage->format;
  for (const amla_ukr_move *m = stage->moves; m < stage->moves + stage->n_rows; m++) {
    const int64_t row_bytes = amla_elems_bytes(f->type, amla_row_elems(f->type, f->d));
    for (int64_t at = 0; at < row_bytes; at += 64)
      _mm_prefetch((const char *)m[tokens].row + at, _MM_HINT_T1);
    load(f, m->row, m->scales, m->to);
  }
}

typedef __m256 score_tile[QK_TOKENS][2];

/* clang-format off */

/* A key's element times 16 rows of Q^T, which are in ymm14 and ymm15. */
#define QK_ROW(t, address, low, high)                                                              \
  "vbroadcastss 4*" #t address ", %%ymm13\n\t"                                                     \
  "vfmadd231ps %%ymm14, %%ymm13, %[" low "]\n\t"                                                   \
  "vfmadd231ps %%ymm15, %%ymm13, %[" high "]\n\t"

/* Column t of the first 4 keys, and the sums that it adds to. */
#define QK_FOUR(t)                                                                                 \
  "vmovaps 64*" #t "(%[qt]), %%ymm14\n\t"                                                          \
  "vmovaps 64*" #t "+32(%[qt]), %%ymm15\n\t"                                                       \
  QK_ROW(t, "(%[a])", "a0", "b0")                                                                  \
  QK_ROW(t, "(%[a],%[ld])", "a1", "b1")                                                            \
  QK_ROW(t, "(%[a],%[ld],2)", "a2", "b2")                                                          \
  QK_ROW(t, "(%[b])", "a3", "b3")
#define QK_FOUR_SUMS(acc)                                                                          \
  [a0] "+x"(acc[0][0]), [b0] "+x"(acc[0][1]), [a1] "+x"(acc[1][0]), [b1] "+x"(acc[1][1]),          \
    [a2] "+x"(acc[2][0]), [b2] "+x"(acc[2][1]), [a3] "+x"(acc[3][0]), [b3] "+x"(acc[3][1])

/* Column t, a number, behind k and q. One instruction to the compiler: 12 sums leave 4 registers,
 * and where there is more to do than FMAs it would move sums about and spill them. Three keys a
 * pointer, `ld_bytes` apart. */
#define QK_STEP(t, acc, k, k3, ld_bytes, q)                                                        \
  __asm__(QK_FOUR(t)                                                                               \
          QK_ROW(t, "(%[b],%[ld])", "a4", "b4")                                                    \
          QK_ROW(t, "(%[b],%[ld],2)", "a5", "b5")                                                  \
          : QK_FOUR_SUMS(acc), [a4] "+x"(acc[4][0]), [b4] "+x"(acc[4][1]),                         \
            [a5] "+x"(acc[5][0]), [b5] "+x"(acc[5][1])                                             \
          : [a] "r"(k), [b] "r"(k3), [ld] "r"(ld_bytes), [qt] "r"(q)                               \
          : "ymm13", "ymm14", "ymm15", "memory")

/* The same of the first 4 keys. */
#define QK_STEP_4(t, acc, k, k3, ld_bytes, q)                                                      \
  __asm__(QK_FOUR(t)                                                                               \
          : QK_FOUR_SUMS(acc)                                                                      \
          : [a] "r"(k), [b] "r"(k3), [ld] "r"(ld_bytes), [qt] "r"(q)                               \
          : "ymm13", "ymm14", "ymm15", "memory")

/* clang-format on */

static inline __attribute__((always_inline)) void qk_end(score_tile acc, int32_t d_qk, int32_t d,
                                                         const float *k, int64_t ldk,
                                                         const float *qt, float *s) {
  const float *k3 = k + 3 * ldk;
  const int64_t ld_bytes = ldk * (int64_t)sizeof *k;
  for (; d + 2 <= d_qk; d += 2) {
    QK_STEP(0, acc, k + d, k3 + d, ld_bytes, qt + d * 16);
    QK_STEP(1, acc, k + d, k3 + d, ld_bytes, qt + d * 16);
  }
  if (d < d_qk)
    QK_STEP(0, acc, k + d, k3 + d, ld_bytes, qt + d * 16);
#pragma GCC unroll 6
  for (int i = 0; i < QK_TOKENS; i++) {
    _mm256_store_ps(s + i * 16, acc[i][0]);
    _mm256_store_ps(s + i * 16 + 8, acc[i][1]);
  }
}

/* A split's last keys: 8 sums keep the FMAs busy too. */
static __attribute__((noinline)) void qk_4x16(int32_t d_qk, const float *k, int64_t ldk,
                                              const float *qt, float *s) {
  const float *k3 = k + 3 * ldk;
  const int64_t ld_bytes = ldk * (int64_t)sizeof *k;
  __m256 acc[4][2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    acc[i][0] = acc[i][1] = _mm256_setzero_ps();
  for (int32_t d = 0; d < d_qk; d++)
    QK_STEP_4(0, acc, k + d, k3 + d, ld_bytes, qt + d * 16);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm256_store_ps(s + i * 16, acc[i][0]);
    _mm256_store_ps(s + i * 16 + 8, acc[i][1]);
  }
}

/* Fetches what the moves' rows have in column d. */
static inline __attribute__((always_inline)) void fetch_column(amla_dtype type, int32_t d,
                                                               const amla_ukr_move *moves) {
  const int64_t at = type == AMLA_FP8_656 && d >= AMLA_FP8_656_LATENT
                         ? AMLA_FP8_656_ROPE_AT + 2 * (d - AMLA_FP8_656_LATENT)
                         : amla_elems_bytes(type, d);
  for (int i = 0; i < QK_TOKENS; i++)
    _mm_prefetch((const char *)moves[i].row + at, _MM_HINT_T0);
  for (int i = 0; type == AMLA_FP8_584 && d == 0 && i < QK_TOKENS; i++)
    _mm_prefetch((const char *)moves[i].scales, _MM_HINT_T0);
}

/* The codes of 6 rows as f16. */
typedef struct half_rows {
  uint16_t row[QK_TOKENS][MAX_CODES + 32] __attribute__((aligned(32))); /* in other sets of L1 */
} half_rows;

/* 8 columns from i on, of row t; e4m3 are f16 by then. */
static inline __attribute__((always_inline)) void stage_8(amla_dtype type,
                                                          const amla_ukr_move *moves,
                                                          const half_rows *halves, int t, int32_t i,
                                                          const __m256 *scale, float *k) {
  if (is_fp8(type)) {
    const __m256 x = load_8(AMLA_F16, halves->row[t], i, scale[t]);
    _mm256_store_ps(k + i, _mm256_mul_ps(x, scale[t]));
  } else {
    _mm256_store_ps(k + i, load_8(type, moves[t].row, i, scale[t]));
  }
}

/* The rows' scales of the group that begins with element i. They stay in memory. */
static inline __attribute__((always_inline)) void set_scales(const amla_row_format *f,
                                                             amla_dtype type,
                                                             const amla_ukr_move *moves, int32_t i,
                                                             __m256 *scale) {
  for (int t = 0; t < QK_TOKENS; t++)
    scale[t] = scale_at(f, type, moves[t].row, moves[t].scales, i);
  __asm__("" : "+m"(*(__m256(*)[QK_TOKENS])scale));
}

/* Converts columns [to, end) of its own 6 rows, and multiplies those 8 columns before them: one row
 * a column, as a burst of conversions would hold up the FMAs. The cache lines that come later are
 * fetched; of fp8, whose codes are read before, the next rows'. */
static inline __attribute__((always_inline)) void
stage_columns(score_tile acc, amla_dtype type, int32_t to, int32_t end, const amla_row_format *f,
              const amla_ukr_move *moves, const half_rows *halves, float *k, int64_t ldk,
              const float *qt, __m256 *scale) {
  const int32_t line = type == AMLA_F32 ? 16 : 32; /* columns; those of blocks are less */
  const int32_t fetched = is_fp8(type) || f->d < FETCH_COLUMNS ? f->d : FETCH_COLUMNS;
  const int64_t ld_bytes = ldk * (int64_t)sizeof *k;
  float *k3 = k + 3 * ldk;
  for (; to < end; to += 8) {
    const int32_t d = to - 8, ahead = d + fetched;
    if (d % line == 0)
      fetch_column(type, ahead < f->d ? ahead : ahead - f->d,
                   ahead < f->d ? moves : moves + QK_TOKENS);
    if (amla_is_block(type) && to % AMLA_BLOCK_ELEMS == 0)
      set_scales(f, type, moves, to, scale);
#define COLUMN(t)                                                                                  \
  if (t < QK_TOKENS)                                                                               \
    stage_8(type, moves, halves, t, to, scale, t < 3 ? k + t * ldk : k3 + (t - 3) * ldk);          \
  QK_STEP(t, acc, k + d, k3 + d, ld_bytes, qt + d * 16);
    COLUMN(0) COLUMN(1) COLUMN(2) COLUMN(3) COLUMN(4) COLUMN(5) COLUMN(6) COLUMN(7)
#undef COLUMN
  }
}

/* Columns that are converted beside the product: all but the bf16 of a record. */
static inline int32_t staged_columns(amla_dtype type, const amla_row_format *f) {
  return is_record(type) ? f->d_latent : f->d;
}

/* What is cheaper on its own than between FMAs: codes become f16, the bf16 of records f32. Returns
 * whether a row is wild. */
static inline int prepare_fp8(amla_dtype type, const amla_row_format *f, const amla_ukr_move *moves,
                              half_rows *halves, float *k, int64_t ldk) {
  const int32_t n = staged_columns(type, f);
  seen_of_rows seen = {_mm256_setzero_si256(), 0};
  for (int t = 0; t < QK_TOKENS; t++, k += ldk) {
    const char *row = moves[t].row, *rope = row + rope_byte(type);
    see_scales(&seen, f, type, row, moves[t].scales);
    for (int32_t i = 0; i < n; i += 32) {
      const __m128i *codes = (const __m128i *)(const void *)(row + i);
      __m256i *half = (__m256i *)(void *)(halves->row[t] + i);
      see_codes(&seen, codes);
      _mm256_store_si256(half, half_codes(_mm_loadu_si128(codes)));
      _mm256_store_si256(half + 1, half_codes(_mm_loadu_si128(codes + 1)));
    }
    for (int32_t i = n; i < f->d; i += 8)
      _mm256_store_ps(k + i, load_8(AMLA_BF16, rope, i - n, _mm256_setzero_ps()));
  }
  return is_wild(&seen);
}

/* Returns whether a row was wild; no scores are there then. */
static inline __attribute__((always_inline)) int qk_staging(amla_dtype type,
                                                            const amla_row_format *f, float *k,
                                                            int64_t ldk, const float *qt, float *s,
                                                            const amla_ukr_move *moves) {
  const int32_t n = staged_columns(type, f);
  half_rows halves;
  score_tile acc;
  __m256 scale[QK_TOKENS];
  if (is_fp8(type) && prepare_fp8(type, f, moves, &halves, k, ldk))
    return 1;
  if (has_scales(type))
    set_scales(f, type, moves, 0, scale);
#pragma GCC unroll 6
  for (int t = 0; t < QK_TOKENS; t++) {
    acc[t][0] = acc[t][1] = _mm256_setzero_ps();
    stage_8(type, moves, &halves, t, 0, scale, k + t * ldk);
  }
  for (int32_t to = 8, end; to < n; to = end) {
    end = is_fp8(type) ? group_end(f, type, to) : n;
    if (is_fp8(type) && group_end(f, type, to - 1) == to)
      set_scales(f, type, moves, to, scale);
    stage_columns(acc, type, to, end, f, moves, &halves, k, ldk, qt, scale);
  }
  qk_end(acc, f->d, n - 8, k, ldk, qt, s);
  return 0;
}

/* Can stage_columns take rows of the format? */
static inline int is_staged(const amla_row_format *f) {
  if (!is_fp8(f->type))
    return f->d % 8 == 0;
  return f->d % 32 == 0 && f->d_latent % 8 == 0 && f->d <= MAX_CODES;
}

/* Returns whether a row was wild. Apart from qk_6x16: most calls have nothing to convert, and do
 * without its frame. */
static __attribute__((noinline)) int qk_staged(const amla_ukr_stage *stage, int64_t ldk,
                                               const float *qt, float *s) {
  const amla_row_format *f = stage->format;
  const amla_ukr_move *moves = stage->moves;
#define CASE(id, ...)                                                                              \
  case id: return qk_staging(id, f, moves->to, ldk, qt, s, moves);
  switch (f->type) { AMLA_DTYPES(CASE) }
#undef CASE
  return 1;
}

static void qk_6x16(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *qt,
                    float *s, const amla_ukr_stage *stage) {
  score_tile acc;
  if (stage->n_rows == QK_TOKENS && is_staged(stage->format) && !qk_staged(stage, ldk, qt, s))
    return;
  if (stage->n_rows > 0)
    run_stage(stage, QK_TOKENS);
  if (n <= 4) {
    qk_4x16(d_qk, keys, ldk, qt, s);
    return;
  }
#pragma GCC unroll 6
  for (int i = 0; i < QK_TOKENS; i++)
    acc[i][0] = acc[i][1] = _mm256_setzero_ps();
  qk_end(acc, d_qk, 0, keys, ldk, qt, s);
}

static void qk_12x8(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *panel,
                    float *s, const amla_ukr_stage *stage) {
  const float *k = keys, *qt = panel;
  __m256 acc[NARROW_TOKENS];
  (void)n;
  run_stage(stage, NARROW_TOKENS);
#pragma GCC unroll 12
  for (int i = 0; i < NARROW_TOKENS; i++)
    acc[i] = _mm256_setzero_ps();
  for (int32_t d = 0; d < d_qk; d++) {
    const __m256 q0 = _mm256_load_ps(qt + d * 8);
#pragma GCC unroll 12
    for (int i = 0; i < NARROW_TOKENS; i++)
      acc[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(k + i * ldk + d), q0, acc[i]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < NARROW_TOKENS; i++)
    _mm256_store_ps(s + i * 8, acc[i]);
}

static inline __m256 seen_lanes(int32_t j, __m256i visible) {
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(visible, _mm256_set1_epi32(j)));
}

/* How many tokens all 8 rows see, in whole UNROLLs: those go side by side, in chains that the
 * window of reordering would not reach. */
static inline int32_t all_seen(int32_t n, const int32_t *visible) {
  int32_t least = n;
  for (int r = 0; r < 8; r++)
    least = visible[r] < least ? visible[r] : least;
  return least / UNROLL * UNROLL;
}

/* 8 rows of a panel of `rows`. */
static inline void max_lanes(int32_t n, const float *s, int rows, const int32_t *visible,
                             float *max) {
  const __m256i vis = _mm256_loadu_si256((const __m256i *)visible);
  const __m256 none = _mm256_set1_ps(-__builtin_inff());
  const int32_t all = all_seen(n, visible);
  __m256 m[UNROLL];
  int32_t j = 0;
#pragma GCC unroll 4
  for (int i = 0; i < UNROLL; i++)
    m[i] = none;
  for (; j < all; j += UNROLL)
#pragma GCC unroll 4
    for (int i = 0; i < UNROLL; i++)
      m[i] = _mm256_max_ps(_mm256_load_ps(s + (j + i) * rows), m[i]); /* m[i] where s is NaN */
  for (; j < n; j++)
    m[0] = _mm256_max_ps(_mm256_blendv_ps(none, _mm256_load_ps(s + j * rows), seen_lanes(j, vis)),
                         m[0]);
#pragma GCC unroll 4
  for (int i = 1; i < UNROLL; i++)
    m[0] = _mm256_max_ps(m[i], m[0]);
  _mm256_storeu_ps(max, m[0]);
}

static void max_16(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_lanes(n, s, 16, visible, max);
  max_lanes(n, s + 8, 16, visible + 8, max + 8);
}

static void max_8(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_lanes(n, s, 8, visible, max);
}

/* P of `tokens` tokens from s on, step by step side by side; of those that are seen if `masked`. */
static inline __attribute__((always_inline)) void exp_tokens(int tokens, float *s, int rows,
                                                             __m256 ref, __m256 mul, int masked,
                                                             __m256 seen, __m256 *sum) {
  static const float c[] = {AMLA_EXP2_C5, AMLA_EXP2_C4, AMLA_EXP2_C3,
                            AMLA_EXP2_C2, AMLA_EXP2_C1, 1.0f};
  const __m256 magic = _mm256_set1_ps(AMLA_ROUND_MAGIC);
  __m256 x[UNROLL], t[UNROLL], y[UNROLL];
#pragma GCC unroll 4
  for (int i = 0; i < tokens; i++) {
    x[i] = _mm256_sub_ps(_mm256_load_ps(s + i * rows), ref);
    t[i] = _mm256_add_ps(x[i], magic);
    x[i] = _mm256_sub_ps(x[i], _mm256_sub_ps(t[i], magic));
    y[i] = _mm256_set1_ps(AMLA_EXP2_C6);
  }
#pragma GCC unroll 6
  for (int k = 0; k < 6; k++)
#pragma GCC unroll 4
    for (int i = 0; i < tokens; i++)
      y[i] = _mm256_fmadd_ps(y[i], x[i], _mm256_set1_ps(c[k]));
#pragma GCC unroll 4
  for (int i = 0; i < tokens; i++) {
    const __m256 score = _mm256_load_ps(s + i * rows);
    const __m256 nonzero =
        _mm256_cmp_ps(_mm256_sub_ps(score, ref), _mm256_set1_ps(AMLA_EXP2_MIN), _CMP_GE_OQ);
    const __m256i r = _mm256_add_epi32(_mm256_castps_si256(y[i]),
                                       _mm256_slli_epi32(_mm256_castps_si256(t[i]), 23));
    __m256 p =
        _mm256_fmadd_ps(score, _mm256_setzero_ps(), _mm256_and_ps(nonzero, _mm256_castsi256_ps(r)));
    if (masked)
      p = _mm256_and_ps(seen, p);
    *sum = _mm256_add_ps(*sum, p);
    _mm256_store_ps(s + i * rows, _mm256_mul_ps(p, mul));
  }
}

static inline void exp_lanes(int32_t n, float *s, int rows, const float *ref, const float *mul,
                             const int32_t *visible, float *sum) {
  const __m256i vis = _mm256_loadu_si256((const __m256i *)visible);
  const __m256 e = _mm256_loadu_ps(ref), m = _mm256_loadu_ps(mul);
  const int32_t all = all_seen(n, visible);
  __m256 l = _mm256_setzero_ps();
  int32_t j = 0;
  for (; j < all; j += UNROLL)
    exp_tokens(UNROLL, s + j * rows, rows, e, m, 0, l, &l);
  for (; j < n; j++)
    exp_tokens(1, s + j * rows, rows, e, m, 1, seen_lanes(j, vis), &l);
  _mm256_storeu_ps(sum, l);
}

static void exp_16(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                   float *sum) {
  exp_lanes(n, s, 16, ref, mul, visible, sum);
  exp_lanes(n, s + 8, 16, ref + 8, mul + 8, visible + 8, sum + 8);
}

static void exp_8(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                  float *sum) {
  exp_lanes(n, s, 8, ref, mul, visible, sum);
}

/* rows x vecs vectors of an output tile [rows][PV_COLS]. */
static inline __attribute__((always_inline)) void
pv_tile(int rows, int vecs, int32_t n, const float *p, int64_t ldp, const float *v, int64_t ldv,
        int first, const float *o, int32_t n_merges, const amla_ukr_merge *merges, float *out) {
  __m256 acc[12];
#pragma GCC unroll 12
  for (int i = 0; i < rows * vecs; i++)
    acc[i] = _mm256_setzero_ps();
#pragma GCC unroll 2
  for (int32_t j = 0; j < n; j++, p += ldp, v += ldv) {
    __m256 x[3];
#pragma GCC unroll 3
    for (int c = 0; c < vecs; c++)
      x[c] = _mm256_load_ps(v + c * 8);
#pragma GCC unroll 12
    for (int i = 0; i < rows * vecs; i++)
      acc[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(p + i / vecs), x[i % vecs], acc[i]);
  }
  if (!first)
#pragma GCC unroll 12
    for (int i = 0; i < rows * vecs; i++)
      acc[i] = _mm256_add_ps(_mm256_load_ps(o + i / vecs * PV_COLS + i % vecs * 8), acc[i]);
  for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++)
#pragma GCC unroll 12
    for (int i = 0; i < rows * vecs; i++) {
      const __m256 a = _mm256_mul_ps(_mm256_set1_ps(m->of_a[i / vecs]),
                                     _mm256_load_ps(m->a + i / vecs * PV_COLS + i % vecs * 8));
      acc[i] = _mm256_fmadd_ps(_mm256_set1_ps(m->of_b[i / vecs]), acc[i], a);
    }
#pragma GCC unroll 12
  for (int i = 0; i < rows * vecs; i++)
    _mm256_store_ps(out + i / vecs * PV_COLS + i % vecs * 8, acc[i]);
}

static void pv_4x24(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv, int first,
                    const float *o, int32_t n_merges, const amla_ukr_merge *merges, float *out) {
  pv_tile(PV_ROWS, PV_COLS / 8, n, p, ldp, v, ldv, first, o, n_merges, merges, out);
}

static void pv_8x8(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv, int first,
                   const float *o, int32_t n_merges, const amla_ukr_merge *merges, float *out) {
  pv_tile(PV_END_ROWS, PV_END_COLS / 8, n, p, ldp, v, ldv, first, o, n_merges, merges, out);
}

#include "ukr_cold.h"

static void store(amla_dtype type, int32_t rows, int32_t cols, const float *o, int even_odd,
                  const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  store_by_type(store_row, type, rows, cols, o, ends, d);
}

const amla_ukernels amla_ukernels__avx2 = {
    .isa = AMLA_ISA_AVX2,
    .tile_type = AMLA_F32,
    .p_type = AMLA_F32,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {16, QK_TOKENS, 1, 0, pack_16, qk_6x16, max_16, exp_16},
    .narrow = {8, NARROW_TOKENS, 1, 0, pack_8, qk_12x8, max_8, exp_8},
    .load = load,
    .store = store,
    .pv = pv_4x24,
    .pv_end = {PV_END_ROWS, PV_END_COLS, pv_8x8},
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};
