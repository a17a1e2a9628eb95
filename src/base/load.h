/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of q and kv as f32, in portable C. Exact, but for one rounding of e4m3 times a scale that is
 * no power of two, and of blocks with an m.
 */
#ifndef AMLA_BASE_LOAD_H
#define AMLA_BASE_LOAD_H

#include "blocks.h"
#include "dtype.h"
#include "float16.h"
#include "float8.h"

/* dst [n] = src [n], n a multiple of the type's block; of e4m3 without a scale. Not of records. */
static inline void amla_load_row(amla_dtype type, int32_t n, const void *src, float *dst) {
  const uint16_t *h = (const uint16_t *)src; /* the cast is for C++ */
  if (amla_is_block(type)) {
    amla_blocks_to_f32(type, n, src, dst);
    return;
  }
  switch (type) {
  case AMLA_F32: memcpy(dst, src, (size_t)n * sizeof *dst); return;
  case AMLA_BF16:
    for (int32_t i = 0; i < n; i++)
      dst[i] = amla_bf16_to_f32(h[i]);
    return;
  case AMLA_F16:
    for (int32_t i = 0; i < n; i++)
      dst[i] = amla_f16_to_f32(h[i]);
    return;
  case AMLA_FP8_E4M3:
    for (int32_t i = 0; i < n; i++)
      dst[i] = amla_e4m3_to_f32(((const uint8_t *)src)[i]);
    return;
  default: return;
  }
}

/* How rows of kv are to be read, beside their type. */
typedef struct amla_row_format {
  amla_dtype type;
  int32_t d;               /* elements */
  int32_t d_latent;        /* the first ones, which have another scale, or type, than the rest */
  float scale, rope_scale; /* of fp8_e4m3; 1 otherwise */
} amla_row_format;

/* Of elements [i, i + n) of a row: of a record all. */
static inline amla_row_format amla_row_part(const amla_row_format *f, int32_t i, int32_t n) {
  amla_row_format part = *f;
  const int32_t latent = f->d_latent > i ? f->d_latent - i : 0;
  part.d = n;
  part.d_latent = latent < n ? latent : n;
  return part;
}

/* Elements of a record, at most. */
enum { AMLA_MAX_RECORD = AMLA_FP8_656_LATENT + AMLA_FP8_ROPE };

/* dst [n] = e4m3 [n] * scale. */
static inline void amla_load_e4m3(int32_t n, const void *src, float scale, float *dst) {
  for (int32_t i = 0; i < n; i++)
    dst[i] = amla_e4m3_to_f32(((const uint8_t *)src)[i]) * scale;
}

/* The bf16 at the end of a record, of any alignment. */
static inline void amla_load_fp8_rope(const void *src, float *dst) {
  uint16_t h[AMLA_FP8_ROPE];
  memcpy(h, src, sizeof h);
  amla_load_row(AMLA_BF16, AMLA_FP8_ROPE, h, dst);
}

/* dst [f->d] of a row, the scales of which lie at `scales` if its type has them apart. */
static inline void amla_load_kv_row(const amla_row_format *f, const void *row, const void *scales,
                                    float *dst) {
  const char *at = (const char *)row; /* the casts are for C++ */
  const uint8_t *exponents = (const uint8_t *)scales;
  switch (f->type) {
  case AMLA_FP8_656:
    for (int32_t i = 0; i < AMLA_FP8_656_LATENT; i += AMLA_FP8_656_GROUP) {
      float scale;
      memcpy(&scale, at + AMLA_FP8_656_LATENT + i / AMLA_FP8_656_GROUP * 4, sizeof scale);
      amla_load_e4m3(AMLA_FP8_656_GROUP, at + i, scale, dst + i);
    }
    amla_load_fp8_rope(at + AMLA_FP8_656_ROPE_AT, dst + AMLA_FP8_656_LATENT);
    return;
  case AMLA_FP8_584:
    for (int32_t i = 0; i < AMLA_FP8_584_LATENT; i += AMLA_FP8_584_GROUP)
      amla_load_e4m3(AMLA_FP8_584_GROUP, at + i,
                     amla_e8m0_to_f32(exponents[i / AMLA_FP8_584_GROUP]), dst + i);
    amla_load_fp8_rope(at + AMLA_FP8_584_LATENT, dst + AMLA_FP8_584_LATENT);
    return;
  case AMLA_FP8_E4M3:
    amla_load_e4m3(f->d_latent, at, f->scale, dst);
    amla_load_e4m3(f->d - f->d_latent, at + f->d_latent, f->rope_scale, dst + f->d_latent);
    return;
  default: amla_load_row(f->type, f->d, row, dst);
  }
}

#endif
