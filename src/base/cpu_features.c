/* SPDX-License-Identifier: Apache-2.0
 *
 * CPU detection. The compiler's built-in test of AVX2 and AVX-512F includes the operating system's part (XGETBV), which
 * F16C shares with AVX; F16C itself is asked of CPUID because not every compiler's built-in knows it.
 */
#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>

static int has_f16c(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
#endif

amla_cpu_features amla_detect_cpu_features(void) {
  amla_cpu_features f = {0, 0};
#if defined(__x86_64__)
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f");
#endif
  return f;
}
