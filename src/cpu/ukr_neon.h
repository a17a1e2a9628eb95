/* SPDX-License-Identifier: Apache-2.0
 *
 * What the rows of Arm share: kernels of ukr__neon.c that ukr__neonbf16.c has in its table too.
 */
#ifndef AMLA_CPU_UKR_NEON_H
#define AMLA_CPU_UKR_NEON_H

#include "ukernels.h"

enum { UKR_NEON_PV_ROWS = 4, UKR_NEON_PV_COLS = 24 };

void amla_ukr_max_8__neon(int32_t n, const float *s, const int32_t *visible, float *max);
void amla_ukr_exp_8__neon(int32_t n, float *s, const float *ref, const float *mul,
                          const int32_t *visible, float *sum);
amla_ukr_pv amla_ukr_pv_f32_4x24__neon, amla_ukr_pv_f32_8x8__neon;
void amla_ukr_store_24__neon(amla_dtype type, int32_t rows, int32_t cols, const float *o,
                             int even_odd, const amla_row_end *ends, int32_t d);

#endif
