/* SPDX-License-Identifier: Apache-2.0
 *
 * What the x86 files have in common for rows of e4m3; they include it behind the intrinsics.
 *
 * e4m3 becomes f16 by a shift, with 8 exponents too few: its scale makes up for them. That is wrong
 * for NaN, which becomes 480, and for scales that times 2^8 are infinite. Rows that have any of
 * these are wild: what has been seen of them tells, and they are portable C's to convert.
 */
#ifndef AMLA_CPU_UKR_FP8_H
#define AMLA_CPU_UKR_FP8_H

#include "../base/load.h"

typedef struct seen_of_rows {
  __m256i codes; /* the largest ones, without sign */
  int32_t wide;  /* is a scale from 2^120 on, or NaN? */
} seen_of_rows;

static inline int is_record(amla_dtype type) {
  return type == AMLA_FP8_656 || type == AMLA_FP8_584;
}

static inline int is_fp8(amla_dtype type) { return is_record(type) || type == AMLA_FP8_E4M3; }

/* The first element that a record has in bf16, and its byte. */
static inline int32_t rope_begin(amla_dtype type) {
  return type == AMLA_FP8_656 ? AMLA_FP8_656_LATENT : AMLA_FP8_584_LATENT;
}

static inline int32_t rope_byte(amla_dtype type) {
  return type == AMLA_FP8_656 ? AMLA_FP8_656_ROPE_AT : AMLA_FP8_584_LATENT;
}

/* 32 codes. */
static inline void see_codes(seen_of_rows *seen, const void *codes) {
  const __m256i x = _mm256_loadu_si256(codes);
  seen->codes = _mm256_max_epu8(seen->codes, _mm256_and_si256(x, _mm256_set1_epi8(0x7f)));
}

/* The scales of a row. */
static inline void see_scales(seen_of_rows *seen, const amla_row_format *f, amla_dtype type,
                              const void *row, const void *scales) {
  __m128 x = _mm_setr_ps(f->scale, f->rope_scale, 0.0f, 0.0f);
  if (type == AMLA_FP8_584) {
    const __m128i e = _mm_loadl_epi64(scales), least = _mm_set1_epi8((char)(127 + 120));
    seen->wide |= _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(e, least), e)) & 0x7f;
    return;
  }
  if (type == AMLA_FP8_656)
    x = _mm_loadu_ps((const float *)(const void *)((const char *)row + AMLA_FP8_656_LATENT));
  x = _mm_andnot_ps(_mm_set1_ps(-0.0f), x);
  seen->wide |= _mm_movemask_ps(_mm_cmp_ps(x, _mm_set1_ps(0x1p120f), _CMP_NLT_UQ));
}

static inline int is_wild(const seen_of_rows *seen) {
  const __m256i nan = _mm256_cmpeq_epi8(seen->codes, _mm256_set1_epi8(0x7f));
  return seen->wide || _mm256_movemask_epi8(nan);
}

/* 2^8 times the scale of the group of e4m3 that element i is in. */
static inline float scale_x256(const amla_row_format *f, amla_dtype type, const void *row,
                               const void *scales, int32_t i) {
  float scale = i < f->d_latent ? f->scale : f->rope_scale;
  if (type == AMLA_FP8_584) {
    const uint32_t e = ((const uint8_t *)scales)[i / AMLA_FP8_584_GROUP] + 8u;
    return amla_f32_from_bits(e << 23);
  }
  if (type == AMLA_FP8_656)
    memcpy(&scale, (const char *)row + AMLA_FP8_656_LATENT + i / AMLA_FP8_656_GROUP * 4,
           sizeof scale);
  return scale * 256.0f;
}

#endif
