/* SPDX-License-Identifier: Apache-2.0
 *
 * e4m3fn and e8m0 as bytes: exact widening, and narrowing to nearest even that saturates. Written
 * so that a compiler vectorises loops of them. Source: OCP Microscaling Formats 1.0, and for e4m3
 * OCP 8-bit Floating Point 1.0 (fn: without infinities, one NaN of either sign).
 */
#ifndef AMLA_BASE_FLOAT8_H
#define AMLA_BASE_FLOAT8_H

#include <stdint.h>

#include "float16.h"

#define AMLA_E4M3_MAX 448.0f

/* 1 sign, 4 exponent (bias 7), 3 mantissa. Subnormal ones are an integer times 2^-9. */
static inline float amla_e4m3_to_f32(uint8_t code) {
  const uint32_t a = code & 0x7fu, sign = (uint32_t)(code & 0x80u) << 24;
  const uint32_t subnormal = amla_f32_bits((float)(int32_t)a * 0x1p-9f);
  const uint32_t normal = (a << 20) + (120u << 23); /* rebiased by 127 - 7 exponents */
  uint32_t u = a < 8 ? subnormal : normal;
  u = a == 0x7f ? 0x7fc00000u : u;
  return amla_f32_from_bits(sign | u);
}

/* Infinities and what rounds beyond 448 become 448; NaN stays NaN. */
static inline int32_t amla_f32_to_e4m3(float x) {
  const int32_t u = (int32_t)amla_f32_bits(x), a = u & 0x7fffffff; /* ordered as magnitudes are */
  const int32_t b = a < 0x43e00000 ? a : 0x43e00000;               /* at most 448 */
  /* Below 2^-6: adding 2^14 leaves the result, rounded to a multiple of 2^-9, in the low bits. */
  const float sum = amla_f32_from_bits((uint32_t)b) + 0x1p14f;
  const int32_t subnormal = (int32_t)amla_f32_bits(sum) - 0x46800000;
  const int32_t normal = ((b + 0x7ffff + (b >> 20 & 1)) >> 20) - (120 << 3);
  int32_t code = b < 0x3c800000 ? subnormal : normal;
  code = a > 0x7f800000 ? 0x7f : code;
  return (u >> 24 & 0x80) | code;
}

/* A power of two, 2^(code - 127); 255 is NaN. 2^-127 is subnormal in f32. */
static inline float amla_e8m0_to_f32(uint8_t code) {
  uint32_t u = (uint32_t)code << 23;
  u = code == 0 ? 0x00400000u : u;
  u = code == 255 ? 0x7fc00000u : u;
  return amla_f32_from_bits(u);
}

/* The smallest power of two >= x, for x in [2^-126, 2^127]. */
static inline float amla_power_of_2_above(float x) {
  return amla_f32_from_bits((amla_f32_bits(x) + 0x7fffffu) & 0x7f800000u);
}

/* Of a power of two in [2^-126, 2^127]. */
static inline uint8_t amla_power_of_2_to_e8m0(float x) { return (uint8_t)(amla_f32_bits(x) >> 23); }

#endif
