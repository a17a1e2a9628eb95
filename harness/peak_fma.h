/* SPDX-License-Identifier: Apache-2.0
 *
 * Register-only loops of independent multiply-add chains, one per instruction set: what the machine
 * can do when nothing but arithmetic limits it. Each runs so many iterations and returns the
 * floating-point operations done (2 per lane and chain).
 *
 * Chains: two ports times a latency of 4 need 8; twelve keep both busy when a result comes late,
 * and fit 16 registers.
 */
#ifndef AMLA_HARNESS_PEAK_FMA_H
#define AMLA_HARNESS_PEAK_FMA_H

#include <stdint.h>

double harness_peak_fma__c(int64_t iterations);
double harness_peak_fma__avx2(int64_t iterations);
double harness_peak_fma__avx512(int64_t iterations);
double harness_peak_fma__avx512bf16(int64_t iterations); /* of bf16 products */
double harness_peak_fma__amxbf16(int64_t iterations);    /* likewise */
double harness_peak_fma__neon(int64_t iterations);
double harness_peak_fma__neonbf16(int64_t iterations); /* of bf16 products */

#endif
