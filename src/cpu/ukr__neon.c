/* SPDX-License-Identifier: Apache-2.0
 *
 * NEON micro-kernels in f32. Register budget of 32 vectors: scores 6 tokens x 16 rows = 24
 * accumulators, 4 columns of 6 keys, 2 of Q^T; of a narrow panel 12 tokens x 8 rows, 2 columns of
 * Q^T and of each key; output 4 rows x 24 columns = 24 accumulators, 6 of V, 4 rows of P. FMLA by
 * element broadcasts. Loads per FMLA: 22 / 96, 16 / 48 and 7 / 24. The last 8 of 512 columns: 8
 * rows, 4 / 16.
 */
#include "ukr_neon.h"

#include <arm_neon.h>
#include <string.h>

#include "../base/load.h"
#include "exp2_poly.h"

enum {
  QK_TOKENS = 6,
  NARROW_TOKENS = 12,
  PV_ROWS = UKR_NEON_PV_ROWS,
  PV_COLS = UKR_NEON_PV_COLS,
  PV_END_ROWS = 8,
  PV_END_COLS = 8,
  TILE_TOKENS = 96,
  FETCH_COLUMNS = 128,
  UNROLL = 4
};

#define INLINE static inline __attribute__((always_inline))

/* acc + x * by[lane], in acc's own register: of the intrinsic gcc 12 makes 18 moves of accumulators
 * in 192 FMLAs. clang makes none of it, but spills around the assembly. */
INLINE float32x4_t fma_lane(float32x4_t acc, float32x4_t x, float32x4_t by, int lane) {
#if defined(__clang__)
  acc = vfmaq_n_f32(acc, x, by[lane]);
#else
  switch (lane) {
  case 0: __asm__("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(acc) : "w"(x), "w"(by)); break;
  case 1: __asm__("fmla %0.4s, %1.4s, %2.s[1]" : "+w"(acc) : "w"(x), "w"(by)); break;
  case 2: __asm__("fmla %0.4s, %1.4s, %2.s[2]" : "+w"(acc) : "w"(x), "w"(by)); break;
  default: __asm__("fmla %0.4s, %1.4s, %2.s[3]" : "+w"(acc) : "w"(x), "w"(by));
  }
#endif
  return acc;
}

/* ---- Conversions ---- */

typedef struct eight {
  float32x4_t low, high;
} eight;

/* Each under zeros. ZIP has more pipes than shifts have. */
INLINE eight widen_bf16(const void *src) {
  const uint16x8_t zero = vdupq_n_u16(0), x = vld1q_u16(src);
  return (eight){vreinterpretq_f32_u16(vzip1q_u16(zero, x)),
                 vreinterpretq_f32_u16(vzip2q_u16(zero, x))};
}

INLINE eight widen_f16(const void *src) {
  const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(src));
  return (eight){vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)};
}

INLINE float f16_at(const void *at) {
  __fp16 h;
  memcpy(&h, at, sizeof h);
  return (float)h;
}

/* The block that element i is in. */
INLINE const char *block_of(amla_dtype type, const void *src, int32_t i) {
  return (const char *)src + amla_elems_bytes(type, i);
}

/* What d multiplies, of 8 elements from element e of a block on, plus 128; and 8 bytes that do not
 * matter. */
INLINE uint8x16_t block_codes(amla_dtype type, const char *block, int32_t e) {
  static const int8_t values[16] = {AMLA_IQ4_NL_VALUES};
  const amla_block_format f = amla_block_format_of(type);
  const uint8_t *codes = (const uint8_t *)block + f.codes_at;
  const uint8x8_t none = vcreate_u8(0);
  uint64_t u;
  memcpy(&u, codes + (f.bits == 8 ? e : e % 16), sizeof u);
  if (f.bits == 8) /* in a general register, as the pipes are FMLA's */
    return vcombine_u8(vcreate_u8(u ^ 0x8080808080808080u), none);
  uint8x16_t x = vcombine_u8(vcreate_u8(u), none);
  x = vandq_u8(vshlq_u8(x, vdupq_n_s8((int8_t)-(e / 16 * 4))), vdupq_n_u8(15));
  if (f.bits == 5) {
    const uint8x16_t lanes = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    const uint8x16_t fifth = vtstq_u8(vdupq_n_u8(codes[e / 8 - 4]), lanes);
    x = vorrq_u8(x, vandq_u8(fifth, vdupq_n_u8(16)));
  }
  if (f.is_table)
    return veorq_u8(vreinterpretq_u8_s8(vqtbl1q_s8(vld1q_s8(values), x)), vdupq_n_u8(128));
  return vaddq_u8(x, vdupq_n_u8((uint8_t)(128 - f.zero)));
}

static const struct code_constants {
  uint16_t top[8];
  float zero[4];
} code_constants = {{0x4700, 0x4700, 0x4700, 0x4700, 0x4700, 0x4700, 0x4700, 0x4700},
                    {0x1p15f + 128, 0x1p15f + 128, 0x1p15f + 128, 0x1p15f + 128}};

/* 8 elements from i on. A code c, under zeros and beside 0x4700, is the f32 2^15 + c: ZIP and FSUB
 * have all pipes, SSHLL and SCVTF half of them. */
INLINE eight widen_block(amla_dtype type, const void *src, int32_t i) {
  const char *block = block_of(type, src, i);
  const struct code_constants *c = &code_constants;
  __asm__ volatile("" : "+r"(c)); /* loaded here: kept, they would drive out accumulators */
  const float scale = f16_at(block);
  const uint8x16_t codes = block_codes(type, block, i % AMLA_BLOCK_ELEMS);
  const uint16x8_t x = vreinterpretq_u16_u8(vzip1q_u8(vdupq_n_u8(0), codes));
  const uint16x8_t top = vld1q_u16(c->top);
  const float32x4_t low = vreinterpretq_f32_u16(vzip1q_u16(x, top));
  const float32x4_t high = vreinterpretq_f32_u16(vzip2q_u16(x, top));
  const float32x4_t zero = vld1q_f32(c->zero);
  eight y = {vmulq_n_f32(vsubq_f32(low, zero), scale), vmulq_n_f32(vsubq_f32(high, zero), scale)};
  if (amla_block_format_of(type).has_m) {
    const float32x4_t m = vdupq_n_f32(f16_at(block + 2));
    y = (eight){vaddq_f32(y.low, m), vaddq_f32(y.high, m)};
  }
  return y;
}

/* 8 elements from i on, i a multiple of 8. */
INLINE eight load_8(amla_dtype type, const void *src, int32_t i) {
  const float *f = (const float *)src + i;
  switch (type) {
  case AMLA_F32: return (eight){vld1q_f32(f), vld1q_f32(f + 4)};
  case AMLA_BF16: return widen_bf16((const uint16_t *)src + i);
  case AMLA_F16: return widen_f16((const uint16_t *)src + i);
  default: return widen_block(type, src, i);
  }
}

INLINE void put_8(float *dst, eight x) {
  vst1q_f32(dst, x.low);
  vst1q_f32(dst + 4, x.high);
}

/* Two of bf16. Operations and stores of general registers leave the pipes to FMLA.
 */
INLINE uint64_t widen_two(uint32_t x) { return (x << 16) | (uint64_t)(x >> 16) << 48; }

/* put_8 of load_8, beside a product; bf16 in vectors or not. All rows without vectors would be as
 * many instructions as are dispatched in the time of the product. */
INLINE void stage_8(amla_dtype type, int in_vectors, const void *src, int32_t i, float *dst) {
  uint32_t x[4];
  if (type != AMLA_BF16 || in_vectors) {
    put_8(dst, load_8(type, src, i));
    return;
  }
  memcpy(x, (const uint16_t *)src + i, sizeof x);
#pragma GCC unroll 2
  for (int k = 0; k < 4; k += 2) {
    const uint64_t four[2] = {widen_two(x[k]), widen_two(x[k + 1])};
    memcpy(dst + 2 * k, four, sizeof four);
  }
}

/* Blocks are whole: no rest. */
INLINE void load_row(amla_dtype type, int32_t n, const void *src, float *dst) {
  int32_t i = 0;
  for (; i + 8 <= n; i += 8)
    put_8(dst + i, load_8(type, src, i));
  if (i < n)
    amla_load_row(type, n - i, (const char *)src + amla_elems_bytes(type, i), dst + i);
}

/* Types that load_8 does not know are read by portable C. */
static int is_fp8(amla_dtype type) { return type > AMLA_F16 && !amla_is_block(type); }

static void load_elems(amla_dtype type, int32_t n, const void *src, float *dst) {
#define CASE(id, ...)                                                                              \
  case id: load_row(id, n, src, dst); return;
  switch (type) { AMLA_DTYPES(CASE) }
#undef CASE
}

static void load(const amla_row_format *f, const void *row, const void *scales, void *dst) {
  if (is_fp8(f->type))
    amla_load_kv_row(f, row, scales, dst);
  else
    load_elems(f->type, f->d, row, dst);
}

/* base/float16.h on 4 lanes. */
INLINE uint16x4_t narrow_bf16(float32x4_t x) {
  const uint32x4_t u = vreinterpretq_u32_f32(x), high = vshrq_n_u32(u, 16);
  const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  const uint32x4_t nan = vorrq_u32(high, vdupq_n_u32(0x40));
  return vmovn_u32(vbslq_u32(vceqq_f32(x, x), rounded, nan));
}

INLINE uint16x4_t narrow_4(amla_dtype type, float32x4_t x) {
  return type == AMLA_BF16 ? narrow_bf16(x) : vreinterpret_u16_f16(vcvt_f16_f32(x));
}

INLINE void store_row(amla_dtype type, int32_t n, const float *o, float factor, void *out) {
  uint16_t *h = out;
  int32_t i = 0;
  if (type == AMLA_F32) {
    amla_store_row(type, n, o, factor, out);
    return;
  }
  for (; i + 4 <= n; i += 4)
    vst1_u16(h + i, narrow_4(type, vmulq_n_f32(vld1q_f32(o + i), factor)));
  if (i < n)
    amla_store_row(type, n - i, o + i, factor, h + i);
}

/* ---- Packing ---- */

INLINE float32x4_t zip_pairs(float32x4_t a, float32x4_t b, int second) {
  const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
  return vreinterpretq_f32_f64(second ? vzip2q_f64(x, y) : vzip1q_f64(x, y));
}

INLINE void transpose_4x4(float32x4_t x[4]) {
  const float32x4_t a = vzip1q_f32(x[0], x[1]), b = vzip2q_f32(x[0], x[1]);
  const float32x4_t c = vzip1q_f32(x[2], x[3]), d = vzip2q_f32(x[2], x[3]);
  x[0] = zip_pairs(a, c, 0), x[1] = zip_pairs(a, c, 1);
  x[2] = zip_pairs(b, d, 0), x[3] = zip_pairs(b, d, 1);
}

/* n <= 4 rows in a panel of `rows`, through pieces of columns that stay in L1. */
static void pack_lanes(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                       int rows, float *qt) {
  enum { PIECE = 64 };
  float piece[4][PIECE] = {{0}};
  float32x4_t x[4];
  for (int32_t at = 0; at < d; at += PIECE) {
    const int32_t some = d - at < PIECE ? d - at : PIECE;
    for (int r = 0; r < 4 && r < n; r++)
      load_elems(type, some, (const char *)q[r] + amla_elems_bytes(type, at), piece[r]);
    for (int32_t i = 0; i < some; i += 4, qt += 4 * rows) {
      for (int r = 0; r < 4; r++)
        x[r] = vmulq_n_f32(vld1q_f32(piece[r] + i), factor);
      transpose_4x4(x);
      for (int c = 0; c < 4 && c < some - i; c++)
        vst1q_f32(qt + c * rows, x[c]);
    }
  }
}

static void pack_16(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                    int even_odd, void *qt) {
  (void)even_odd;
  for (int r = 0; r < 16; r += 4)
    pack_lanes(n - r, d, type, q + r, factor, 16, (float *)qt + r);
}

static void pack_8(int32_t n, int32_t d, amla_dtype type, const void *const *q, float factor,
                   int even_odd, void *qt) {
  (void)even_odd;
  for (int r = 0; r < 8; r += 4)
    pack_lanes(n - r, d, type, q + r, factor, 8, (float *)qt + r);
}

/* ---- Scores ---- */

/* Before the product. */
static void run_stage(const amla_ukr_stage *stage, int32_t tokens) {
  const amla_row_format *f = stage->format;
  for (const amla_ukr_move *m = stage->moves; m < stage->moves + stage->n_rows; m++) {
    const int64_t row_bytes = amla_elems_bytes(f->type, amla_row_elems(f->type, f->d));
    for (int64_t at = 0; at < row_bytes; at += 64)
      __builtin_prefetch((const char *)m[tokens].row + at, 0, 2);
    load(f, m->row, m->scales, m->to);
  }
}

typedef float32x4_t score_tile[QK_TOKENS][4];

/* `columns` columns from qt on, of which x has the keys'. */
INLINE void qk_columns(score_tile acc, int columns, const float32x4_t *x, const float *qt) {
#pragma GCC unroll 4
  for (int c = 0; c < columns; c++)
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
      const float32x4_t q = vld1q_f32(qt + c * 16 + v * 4);
#pragma GCC unroll 6
      for (int i = 0; i < QK_TOKENS; i++)
        acc[i][v] = fma_lane(acc[i][v], q, x[i], c);
    }
}

/* 4 columns from d on. */
INLINE void qk_step(score_tile acc, const float *k, int64_t ldk, int32_t d, const float *qt) {
  float32x4_t x[QK_TOKENS];
#pragma GCC unroll 6
  for (int i = 0; i < QK_TOKENS; i++)
    x[i] = vld1q_f32(k + i * ldk + d);
  qk_columns(acc, 4, x, qt + d * 16);
}

/* Columns from d on, and the end. */
INLINE void qk_end(score_tile acc, int32_t d_qk, int32_t d, const float *k, int64_t ldk,
                   const float *qt, float *s) {
  for (; d + 4 <= d_qk; d += 4)
    qk_step(acc, k, ldk, d, qt);
  for (; d < d_qk; d++) {
    float32x4_t x[QK_TOKENS];
    for (int i = 0; i < QK_TOKENS; i++)
      x[i] = vdupq_n_f32(k[i * ldk + d]);
    qk_columns(acc, 1, x, qt + d * 16);
  }
#pragma GCC unroll 24
  for (int i = 0; i < 4 * QK_TOKENS; i++)
    vst1q_f32(s + i * 4, acc[i / 4][i % 4]);
}

INLINE void qk_clear(score_tile acc) {
#pragma GCC unroll 24
  for (int i = 0; i < 4 * QK_TOKENS; i++)
    acc[i / 4][i % 4] = vdupq_n_f32(0);
}

/* Converting its own 6 rows, 8 columns ahead of the product, as a burst of conversions would hold
 * up the FMLAs; the cache lines that come FETCH_COLUMNS later are fetched. */
INLINE void qk_staging(amla_dtype type, int32_t d_qk, float *k, int64_t ldk, const float *qt,
                       float *s, const amla_ukr_move *moves) {
  const int32_t line = type == AMLA_F32 ? 16 : 32; /* columns; those of blocks are less */
  score_tile acc;
  int32_t d = 0;
  qk_clear(acc);
  for (int i = 0; i < QK_TOKENS; i++)
    put_8(k + i * ldk, load_8(type, moves[i].row, 0));
  for (; d + 8 < d_qk; d += 8) {
    if (d % line == 0) {
      const int32_t ahead = d + FETCH_COLUMNS;
      const amla_ukr_move *fetch = ahead < d_qk ? moves : moves + QK_TOKENS;
      const int64_t at = amla_elems_bytes(type, ahead < d_qk ? ahead : ahead - d_qk);
      for (int i = 0; i < QK_TOKENS; i++)
        __builtin_prefetch((const char *)fetch[i].row + at);
    }
#pragma GCC unroll 6
    for (int i = 0; i < QK_TOKENS; i++) {
      if (i % 3 == 0)
        qk_step(acc, k, ldk, d + i / 3 * 4, qt);
      stage_8(type, i % 2, moves[i].row, d + 8, k + i * ldk + d + 8);
    }
  }
  qk_end(acc, d_qk, d, k, ldk, qt, s);
}

static void qk_6x16(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *qt,
                    float *s, const amla_ukr_stage *stage) {
  const amla_ukr_move *moves = stage->moves;
  score_tile acc;
  (void)n;
  if (stage->n_rows == QK_TOKENS && d_qk % 8 == 0) {
#define CASE(id, ...)                                                                              \
  case id:                                                                                         \
    if (is_fp8(id))                                                                                \
      break;                                                                                       \
    qk_staging(id, d_qk, moves->to, ldk, qt, s, moves);                                            \
    return;
    switch (stage->format->type) { AMLA_DTYPES(CASE) }
#undef CASE
  }
  run_stage(stage, QK_TOKENS);
  qk_clear(acc);
  qk_end(acc, d_qk, 0, keys, ldk, qt, s);
}

typedef float32x4_t narrow_tile[NARROW_TOKENS][2];

/* Columns d and, if there are two, d + 1. */
INLINE void narrow_step(narrow_tile acc, int columns, const float *k, int64_t ldk, int32_t d,
                        const float *qt) {
  float32x4_t q[4];
#pragma GCC unroll 4
  for (int i = 0; i < 2 * columns; i++)
    q[i] = vld1q_f32(qt + d * 8 + i * 4);
#pragma GCC unroll 12
  for (int i = 0; i < NARROW_TOKENS; i++) {
    const float *key = k + i * ldk + d;
    const float32x2_t two = columns == 2 ? vld1_f32(key) : vld1_dup_f32(key);
    const float32x4_t x = vcombine_f32(two, vdup_n_f32(0));
#pragma GCC unroll 4
    for (int c = 0; c < 2 * columns; c++)
      acc[i][c % 2] = fma_lane(acc[i][c % 2], q[c], x, c / 2);
  }
}

static void qk_12x8(int32_t n, int32_t d_qk, const void *keys, int64_t ldk, const void *qt,
                    float *s, const amla_ukr_stage *stage) {
  narrow_tile acc;
  int32_t d = 0;
  (void)n;
  run_stage(stage, NARROW_TOKENS);
#pragma GCC unroll 24
  for (int i = 0; i < 2 * NARROW_TOKENS; i++)
    acc[i / 2][i % 2] = vdupq_n_f32(0);
  for (; d + 2 <= d_qk; d += 2)
    narrow_step(acc, 2, keys, ldk, d, qt);
  if (d < d_qk)
    narrow_step(acc, 1, keys, ldk, d, qt);
#pragma GCC unroll 24
  for (int i = 0; i < 2 * NARROW_TOKENS; i++)
    vst1q_f32(s + i * 4, acc[i / 2][i % 2]);
}

/* ---- Softmax: 4 rows of a panel of `rows` at a time ---- */

INLINE uint32x4_t seen_lanes(int32_t j, int32x4_t visible) {
  return vcgtq_s32(visible, vdupq_n_s32(j));
}

/* Tokens UNROLL at a time that all rows see: chains that the window of reordering would not reach.
 */
INLINE int32_t all_seen(int32_t n, int32x4_t visible) {
  return vminvq_s32(visible) < n ? 0 : n / UNROLL * UNROLL;
}

/* FMAXNM ignores NaN. */
INLINE void max_lanes(int32_t n, const float *s, int rows, const int32_t *visible, float *max) {
  const int32x4_t vis = vld1q_s32(visible);
  const float32x4_t none = vdupq_n_f32(-__builtin_inff());
  const int32_t all = all_seen(n, vis);
  float32x4_t m[UNROLL];
  int32_t j = 0;
#pragma GCC unroll 4
  for (int i = 0; i < UNROLL; i++)
    m[i] = none;
  for (; j < all; j += UNROLL)
#pragma GCC unroll 4
    for (int i = 0; i < UNROLL; i++)
      m[i] = vmaxnmq_f32(m[i], vld1q_f32(s + (j + i) * rows));
  for (; j < n; j++)
    m[0] = vmaxnmq_f32(m[0], vbslq_f32(seen_lanes(j, vis), vld1q_f32(s + j * rows), none));
  vst1q_f32(max, vmaxnmq_f32(vmaxnmq_f32(m[0], m[1]), vmaxnmq_f32(m[2], m[3])));
}

INLINE void max_panel(int32_t n, const float *s, int rows, const int32_t *visible, float *max) {
  for (int r = 0; r < rows; r += 4)
    max_lanes(n, s + r, rows, visible + r, max + r);
}

static void max_16(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_panel(n, s, 16, visible, max);
}

void amla_ukr_max_8__neon(int32_t n, const float *s, const int32_t *visible, float *max) {
  max_panel(n, s, 8, visible, max);
}

/* P of `tokens` tokens from s on, step by step side by side; of those that are seen if `masked`. */
INLINE void exp_tokens(int tokens, float *s, int rows, float32x4_t ref, float32x4_t mul, int masked,
                       uint32x4_t seen, float32x4_t *sum) {
  static const float c[] = {AMLA_EXP2_C5, AMLA_EXP2_C4, AMLA_EXP2_C3,
                            AMLA_EXP2_C2, AMLA_EXP2_C1, 1.0f};
  const float32x4_t magic = vdupq_n_f32(AMLA_ROUND_MAGIC);
  float32x4_t x[UNROLL], t[UNROLL], y[UNROLL];
#pragma GCC unroll 4
  for (int i = 0; i < tokens; i++) {
    x[i] = vsubq_f32(vld1q_f32(s + i * rows), ref);
    t[i] = vaddq_f32(x[i], magic);
    x[i] = vsubq_f32(x[i], vsubq_f32(t[i], magic));
    y[i] = vdupq_n_f32(AMLA_EXP2_C6);
  }
#pragma GCC unroll 6
  for (int k = 0; k < 6; k++)
#pragma GCC unroll 4
    for (int i = 0; i < tokens; i++)
      y[i] = vfmaq_f32(vdupq_n_f32(c[k]), y[i], x[i]);
#pragma GCC unroll 4
  for (int i = 0; i < tokens; i++) {
    const float32x4_t score = vld1q_f32(s + i * rows);
    const uint32x4_t nonzero = vcgeq_f32(vsubq_f32(score, ref), vdupq_n_f32(AMLA_EXP2_MIN));
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(t[i]), 23);
    const uint32x4_t r = vandq_u32(vaddq_u32(vreinterpretq_u32_f32(y[i]), exponent), nonzero);
    float32x4_t p = vfmaq_f32(vreinterpretq_f32_u32(r), score, vdupq_n_f32(0));
    if (masked)
      p = vreinterpretq_f32_u32(vandq_u32(seen, vreinterpretq_u32_f32(p)));
    *sum = vaddq_f32(*sum, p);
    vst1q_f32(s + i * rows, vmulq_f32(p, mul));
  }
}

INLINE void exp_lanes(int32_t n, float *s, int rows, const float *ref, const float *mul,
                      const int32_t *visible, float *sum) {
  const int32x4_t vis = vld1q_s32(visible);
  const float32x4_t e = vld1q_f32(ref), m = vld1q_f32(mul);
  const int32_t all = all_seen(n, vis);
  float32x4_t l = vdupq_n_f32(0);
  int32_t j = 0;
  for (; j < all; j += UNROLL)
    exp_tokens(UNROLL, s + j * rows, rows, e, m, 0, vdupq_n_u32(0), &l);
  for (; j < n; j++)
    exp_tokens(1, s + j * rows, rows, e, m, 1, seen_lanes(j, vis), &l);
  vst1q_f32(sum, l);
}

static void exp_16(int32_t n, float *s, const float *ref, const float *mul, const int32_t *visible,
                   float *sum) {
  for (int r = 0; r < 16; r += 4)
    exp_lanes(n, s + r, 16, ref + r, mul + r, visible + r, sum + r);
}

void amla_ukr_exp_8__neon(int32_t n, float *s, const float *ref, const float *mul,
                          const int32_t *visible, float *sum) {
  for (int r = 0; r < 8; r += 4)
    exp_lanes(n, s + r, 8, ref + r, mul + r, visible + r, sum + r);
}

/* ---- Output ---- */

/* rows x vecs vectors of an output tile [rows][PV_COLS]; rows is a multiple of 4. */
INLINE void pv_tile(int rows, int vecs, int32_t n, const float *p, int64_t ldp, const float *v,
                    int64_t ldv, int first, const float *o, int32_t n_merges,
                    const amla_ukr_merge *merges, float *out) {
  float32x4_t acc[24];
#pragma GCC unroll 24
  for (int i = 0; i < rows * vecs; i++)
    acc[i] = vdupq_n_f32(0);
#pragma GCC unroll 2
  for (int32_t j = 0; j < n; j++, p += ldp, v += ldv) {
    float32x4_t x[6], y[2];
#pragma GCC unroll 2
    for (int r = 0; r < rows / 4; r++)
      y[r] = vld1q_f32(p + r * 4);
#pragma GCC unroll 6
    for (int c = 0; c < vecs; c++)
      x[c] = vld1q_f32(v + c * 4);
#pragma GCC unroll 24
    for (int i = 0; i < rows * vecs; i++)
      acc[i] = fma_lane(acc[i], x[i % vecs], y[i / vecs / 4], i / vecs % 4);
  }
  if (!first)
#pragma GCC unroll 24
    for (int i = 0; i < rows * vecs; i++)
      acc[i] = vaddq_f32(vld1q_f32(o + i / vecs * PV_COLS + i % vecs * 4), acc[i]);
  for (const amla_ukr_merge *m = merges; m < merges + n_merges; m++)
#pragma GCC unroll 24
    for (int i = 0; i < rows * vecs; i++) {
      const float32x4_t a = vld1q_f32(m->a + i / vecs * PV_COLS + i % vecs * 4);
      acc[i] = vfmaq_n_f32(vmulq_n_f32(a, m->of_a[i / vecs]), acc[i], m->of_b[i / vecs]);
    }
#pragma GCC unroll 24
  for (int i = 0; i < rows * vecs; i++)
    vst1q_f32(out + i / vecs * PV_COLS + i % vecs * 4, acc[i]);
}

void amla_ukr_pv_f32_4x24__neon(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                                int first, const float *o, int32_t n_merges,
                                const amla_ukr_merge *merges, float *out) {
  pv_tile(PV_ROWS, PV_COLS / 4, n, p, ldp, v, ldv, first, o, n_merges, merges, out);
}

void amla_ukr_pv_f32_8x8__neon(int32_t n, const void *p, int64_t ldp, const void *v, int64_t ldv,
                               int first, const float *o, int32_t n_merges,
                               const amla_ukr_merge *merges, float *out) {
  pv_tile(PV_END_ROWS, PV_END_COLS / 4, n, p, ldp, v, ldv, first, o, n_merges, merges, out);
}

#include "ukr_cold.h"

void amla_ukr_store_24__neon(amla_dtype type, int32_t rows, int32_t cols, const float *o,
                             int even_odd, const amla_row_end *ends, int32_t d) {
  (void)even_odd;
  store_by_type(store_row, type, rows, cols, o, ends, d);
}

const amla_ukernels amla_ukernels__neon = {
    .isa = AMLA_ISA_NEON,
    .tile_type = AMLA_F32,
    .p_type = AMLA_F32,
    .tile_tokens = TILE_TOKENS,
    .pv_rows = PV_ROWS,
    .pv_cols = PV_COLS,
    .wide = {16, QK_TOKENS, 1, 0, pack_16, qk_6x16, max_16, exp_16},
    .narrow = {8, NARROW_TOKENS, 1, 0, pack_8, qk_12x8, amla_ukr_max_8__neon, amla_ukr_exp_8__neon},
    .load = load,
    .store = amla_ukr_store_24__neon,
    .pv = amla_ukr_pv_f32_4x24__neon,
    .pv_end = {PV_END_ROWS, PV_END_COLS, amla_ukr_pv_f32_8x8__neon},
    .scale = scale_rows,
    .shift = shift_rows,
    .merge = merge_rows,
};
