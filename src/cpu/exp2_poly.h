/* SPDX-License-Identifier: Apache-2.0
 *
 * 2^x = 2^n * 2^f with n = round(x), f in [-1/2, 1/2]; 2^f by a polynomial of degree 6 whose
 * constant term is exactly 1, so that 2^integer is exact. Coefficients: (2^f - 1) / f interpolated
 * at six Chebyshev nodes, rounded to f32; relative error of the polynomial 9.2e-9 (0.15 u), of its
 * evaluation in f32 below 2 ulp.
 */
#ifndef AMLA_CPU_EXP2_POLY_H
#define AMLA_CPU_EXP2_POLY_H

#include "../base/headroom.h"

#define AMLA_EXP2_C1 0x1.62e430p-1f
#define AMLA_EXP2_C2 0x1.ebfbe0p-3f
#define AMLA_EXP2_C3 0x1.c6af6cp-5f
#define AMLA_EXP2_C4 0x1.3b2a54p-7f
#define AMLA_EXP2_C5 0x1.5f0890p-10f
#define AMLA_EXP2_C6 0x1.44138ap-13f

/* Below: 0. P is normal then, and with the headroom taken off too: subnormal numbers would be slow
 * and carry nothing. */
#define AMLA_EXP2_MIN (-126.0f + AMLA_MAX_HEADROOM)
#define AMLA_EXP2_MAX 127.0f
#define AMLA_ROUND_MAGIC                                                                           \
  12582912.0f /* 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits */

#endif
