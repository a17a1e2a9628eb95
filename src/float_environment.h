/* SPDX-License-Identifier: Apache-2.0
 *
 * The default floating-point environment around a piece of arithmetic, and the caller's own again
 * behind it. Its rounding mode or flush bits would change results; what it traps would raise a
 * signal, as we count on inf and NaN. glibc's default on Arm leaves bits that it does not know as
 * they are, of which FPCR.EBF makes BFMMLA round otherwise: all of FPCR is 0 by default.
 */
#ifndef AMLA_FLOAT_ENVIRONMENT_H
#define AMLA_FLOAT_ENVIRONMENT_H

#include <fenv.h>

static inline fenv_t amla_enter_environment(void) {
  fenv_t callers;
  fegetenv(&callers);
  fesetenv(FE_DFL_ENV);
#if defined(__aarch64__)
  __asm__ volatile("msr fpcr, xzr" ::: "memory");
#endif
  return callers;
}

static inline void amla_leave_environment(const fenv_t *callers) { fesetenv(callers); }

#endif
