/* SPDX-License-Identifier: Apache-2.0
 *
 * What the x86 files have in common for ggml's blocks; they include it behind the intrinsics.
 */
#ifndef AMLA_CPU_UKR_BLOCKS_H
#define AMLA_CPU_UKR_BLOCKS_H

#include "../base/blocks.h"

/* The block that element i of a row is in. */
static inline const char *block_of(amla_dtype type, const void *row, int32_t i) {
  return (const char *)row + amla_elems_bytes(type, i);
}

/* What d multiplies, of n elements from element e of a block on, as int8: n is 8 or 16 and divides
 * e. */
static inline __attribute__((always_inline)) __m128i block_codes(amla_dtype type, int n,
                                                                 const char *block, int32_t e) {
  const amla_block_format f = amla_block_format_of(type);
  const char *codes = block + f.codes_at + (f.bits == 8 ? e : e % 16);
  const __m128i *at = (const __m128i *)(const void *)codes;
  __m128i x = n == 16 ? _mm_loadu_si128(at) : _mm_loadl_epi64(at);
  if (f.bits == 8)
    return x;
  x = _mm_srl_epi16(x, _mm_cvtsi32_si128(e / 16 * 4));
  x = _mm_and_si128(x, _mm_set1_epi8(15));
  if (f.bits == 5) {
    const __m128i lanes = _mm_set1_epi64x((int64_t)0x8040201008040201u);
    const __m128i bytes = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    uint16_t h;
    memcpy(&h, block + f.codes_at - 4 + e / 8, sizeof h);
    const __m128i bits = _mm_shuffle_epi8(_mm_cvtsi32_si128(h), bytes);
    const __m128i fifth = _mm_cmpeq_epi8(_mm_and_si128(bits, lanes), lanes);
    x = _mm_or_si128(x, _mm_and_si128(fifth, _mm_set1_epi8(16)));
  }
  if (f.is_table)
    return _mm_shuffle_epi8(_mm_setr_epi8(AMLA_IQ4_NL_VALUES), x);
  return _mm_sub_epi8(x, _mm_set1_epi8((char)f.zero));
}

#endif
