/* SPDX-License-Identifier: Apache-2.0
 *
 * Detection. The compiler's built-in test of AVX2 and AVX-512F includes the operating system's part
 * (XGETBV), which F16C shares with AVX. F16C itself is asked of CPUID because not every compiler's
 * built-in knows it.
 */
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>

static int has_f16c(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

static int has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static int has_avx512(void) { return has_avx2() && __builtin_cpu_supports("avx512f"); }
#else
static int has_avx2(void) { return 0; }
static int has_avx512(void) { return 0; }
#endif

int amla_isa_runs(amla_isa isa) {
  switch (isa) {
  case AMLA_ISA_AUTO:
  case AMLA_ISA_C: return 1;
  case AMLA_ISA_AVX2: return has_avx2();
  case AMLA_ISA_AVX512: return has_avx512();
  }
  return 0;
}
