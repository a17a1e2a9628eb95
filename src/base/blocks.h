/* SPDX-License-Identifier: Apache-2.0
 *
 * ggml's blocks of 32 elements: an f16 factor d, and codes. An element is d * code, exactly in f32:
 * 11 + 8 significant bits at most. q4_1 and q5_1 add an f16 m, which rounds once.
 * Source: ggml-common.h's block_q4_0 and its like.
 */
#ifndef AMLA_BASE_BLOCKS_H
#define AMLA_BASE_BLOCKS_H

#include "dtype.h"
#include "float16.h"

/* How codes lie in a block. Codes of 8 bits are int8. Of 4 bits byte j has element j, then j + 16
 * above it; of 5 bits the fifth ones are bits 0 to 31 of the 4 bytes before the codes. */
typedef struct amla_block_format {
  int32_t bits;
  int32_t zero;     /* the code that stands for 0 */
  int32_t codes_at; /* byte */
  int32_t has_m;    /* m lies behind d */
  int32_t is_table; /* codes are numbers of iq4_nl's values */
} amla_block_format;

static inline amla_block_format amla_block_format_of(amla_dtype type) {
  static const amla_block_format q8_0 = {8, 0, 2, 0, 0}, q4_0 = {4, 8, 2, 0, 0},
                                 q4_1 = {4, 0, 4, 1, 0}, q5_0 = {5, 16, 6, 0, 0},
                                 q5_1 = {5, 0, 8, 1, 0}, iq4_nl = {4, 0, 2, 0, 1};
  switch (type) {
  case AMLA_Q4_0: return q4_0;
  case AMLA_Q4_1: return q4_1;
  case AMLA_Q5_0: return q5_0;
  case AMLA_Q5_1: return q5_1;
  case AMLA_IQ4_NL: return iq4_nl;
  default: return q8_0;
  }
}

#define AMLA_IQ4_NL_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

static inline int amla_is_block(amla_dtype type) { return amla_block_elems(type) > 1; }

/* The f16 at a byte of a block. */
static inline float amla_block_f16(const void *block, int32_t at) {
  uint16_t h;
  memcpy(&h, (const char *)block + at, sizeof h);
  return amla_f16_to_f32(h);
}

/* Code of element j, as the integer that d multiplies. */
static inline int32_t amla_block_code(amla_dtype type, const unsigned char *block, int32_t j) {
  static const int8_t values[] = {AMLA_IQ4_NL_VALUES};
  const amla_block_format f = amla_block_format_of(type);
  const unsigned char *codes = block + f.codes_at;
  if (f.bits == 8)
    return (int8_t)codes[j];
  int32_t code = codes[j % 16] >> j / 16 * 4 & 15;
  if (f.bits == 5)
    code |= (codes[j / 8 - 4] >> j % 8 & 1) << 4;
  return f.is_table ? values[code] : code - f.zero;
}

/* dst [n] of blocks, n a multiple of 32. */
static inline void amla_blocks_to_f32(amla_dtype type, int32_t n, const void *src, float *dst) {
  const unsigned char *block = (const unsigned char *)src; /* the cast is for C++ */
  const int32_t has_m = amla_block_format_of(type).has_m;
  for (; n > 0; n -= AMLA_BLOCK_ELEMS, block += amla_elems_bytes(type, AMLA_BLOCK_ELEMS)) {
    const float d = amla_block_f16(block, 0), m = has_m ? amla_block_f16(block, 2) : 0.0f;
    for (int32_t j = 0; j < AMLA_BLOCK_ELEMS; j++) {
      const float x = d * (float)amla_block_code(type, block, j);
      *dst++ = has_m ? x + m : x;
    }
  }
}

#endif
