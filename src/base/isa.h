/* SPDX-License-Identifier: Apache-2.0
 *
 * The one list of instruction sets, and which of them run here: the CPU has the instructions and
 * the operating system saves the registers.
 */
#ifndef AMLA_BASE_ISA_H
#define AMLA_BASE_ISA_H

#include <amla/amla.h>

/* X(id, name), by rising id: a cap allows what is not above it. */
#define AMLA_ISAS(X)                                                                               \
  X(AMLA_ISA_C, "c")                   /* portable C */                                            \
  X(AMLA_ISA_AVX2, "avx2")             /* AVX2, FMA and F16C */                                    \
  X(AMLA_ISA_AVX512, "avx512")         /* AVX-512F beside these */                                 \
  X(AMLA_ISA_AVX512BF16, "avx512bf16") /* and AVX-512BW, VL and BF16 */                            \
  X(AMLA_ISA_AMXBF16, "amxbf16")       /* and AMX-TILE and AMX-BF16 */

#define AMLA_COUNT_ISA(id, name) +1
enum { AMLA_N_ISAS = 1 AMLA_ISAS(AMLA_COUNT_ISA) }; /* AMLA_ISA_AUTO included */
#undef AMLA_COUNT_ISA

/* amla_isa_missing says what is missing. */
int amla_isa_runs(amla_isa isa);

/* Does it gain anything over the one below it on this core? docs/cpu-kernel.md has the model. */
int amla_isa_gains(amla_isa isa);

#endif
