/* SPDX-License-Identifier: Apache-2.0
 *
 * What this CPU can run: it has the instructions and the operating system saves the registers.
 */
#ifndef AMLA_BASE_CPU_FEATURES_H
#define AMLA_BASE_CPU_FEATURES_H

typedef struct amla_cpu_features {
  int avx2;   /* AVX2, FMA and F16C, with YMM state saved */
  int avx512; /* AVX-512F beside the above, with ZMM and mask state saved */
} amla_cpu_features;

amla_cpu_features amla_detect_cpu_features(void);

#endif
