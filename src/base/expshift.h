/* SPDX-License-Identifier: Apache-2.0
 *
 * The guarded exponent shift: multiply an f32 by a power of two with an integer add to its bits.
 * Exact where the result is normal; subnormals, in or out, become signed zero; overflow becomes
 * signed infinity; inf and NaN keep their bits. The unguarded add of arXiv 2509.25224, eq. 7, is
 * wrong wherever x or the result is not normal (DESIGN.md, "The guard").
 */
#ifndef AMLA_BASE_EXPSHIFT_H
#define AMLA_BASE_EXPSHIFT_H

#include <stdint.h>
#include <string.h>

/* Adds n to the magnitude bits of x: x * 2^(n / 2^23) for n a multiple of 2^23. Any n with |n| <=
 * 2^62. */
static inline float amla_expadd(float x, int64_t n) {
  uint32_t u, sign, a;
  memcpy(&u, &x, sizeof u);
  sign = u & 0x80000000u;
  a = u & 0x7fffffffu;
  if (a < 0x7f800000u) {
    const int64_t r = (int64_t)a + n;
    if (a < 0x00800000u || r < 0x00800000)
      u = sign;
    else if (r >= 0x7f800000)
      u = sign | 0x7f800000u;
    else
      u = sign | (uint32_t)r;
  }
  memcpy(&x, &u, sizeof x);
  return x;
}

/* A shift count that cannot overflow: 512 powers of two lead any finite f32 to 0 or inf. NaN
 * counts as -512. */
static inline int32_t amla_clamp_shift(float k) {
  if (!(k > -512.0f))
    return -512;
  return k < 512.0f ? (int32_t)k : 512;
}

/* x * 2^k for k in [-512, 512]. */
static inline float amla_expshift(float x, int32_t k) {
  return amla_expadd(x, (int64_t)k * (1 << 23));
}

#endif
