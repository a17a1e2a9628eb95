/* SPDX-License-Identifier: Apache-2.0
 *
 * bfloat16 and IEEE binary16 as bits: exact widening, and narrowing to nearest even. NaN stays NaN
 * (quiet).
 */
#ifndef AMLA_BASE_FLOAT16_H
#define AMLA_BASE_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t amla_f32_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static inline float amla_f32_from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

static inline float amla_bf16_to_f32(uint16_t h) { return amla_f32_from_bits((uint32_t)h << 16); }

static inline uint16_t amla_f32_to_bf16(float x) {
  const uint32_t u = amla_f32_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u)
    return (uint16_t)(u >> 16 | 0x0040u);
  return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* Normal halves are rebiased by 112 exponents; subnormal ones are an integer times 2^-24, which f32
 * holds exactly. */
static inline float amla_f16_to_f32(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = h & 0x7fffu;
  if (a >= 0x7c00u)
    return amla_f32_from_bits(sign | 0x7f800000u | (a & 0x3ffu) << 13);
  if (a < 0x0400u)
    return amla_f32_from_bits(sign | amla_f32_bits((float)a * 0x1p-24f));
  return amla_f32_from_bits(sign | ((a << 13) + (112u << 23)));
}

static inline uint16_t amla_f32_to_f16(float x) {
  const uint32_t u = amla_f32_bits(x), a = u & 0x7fffffffu;
  const uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
  if (a > 0x7f800000u)
    return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
  if (a >= 0x477ff000u)
    return (uint16_t)(sign | 0x7c00u); /* >= 65520 rounds to inf */
  if (a < 0x38800000u) /* below 2^-14: adding 0.5 leaves the result, rounded to a multiple of 2^-24,
                          in the low bits */
    return (uint16_t)(sign | (amla_f32_bits(amla_f32_from_bits(a) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | ((a - (112u << 23) + 0x0fffu + (a >> 13 & 1u)) >> 13));
}

#endif
