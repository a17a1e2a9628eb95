/* SPDX-License-Identifier: Apache-2.0
 *
 * The one list of instruction sets, and which of them run here: the CPU has the instructions and
 * the operating system saves the registers.
 */
#ifndef AMLA_BASE_ISA_H
#define AMLA_BASE_ISA_H

#include <amla/amla.h>

/* Where a row of the list exists. A name of another architecture is refused: as a cap it would mean
 * nothing there. */
typedef enum amla_architecture {
  AMLA_ANY_ARCHITECTURE,
  AMLA_X86_64,
  AMLA_AARCH64
} amla_architecture;

/* X(id, name, architecture), by rising id: a cap allows what is not above it. */
#define AMLA_ISAS(X)                                                                               \
  X(AMLA_ISA_C, "c", AMLA_ANY_ARCHITECTURE)         /* portable C */                               \
  X(AMLA_ISA_AVX2, "avx2", AMLA_X86_64)             /* AVX2, FMA and F16C */                       \
  X(AMLA_ISA_AVX512, "avx512", AMLA_X86_64)         /* AVX-512F beside these */                    \
  X(AMLA_ISA_AVX512BF16, "avx512bf16", AMLA_X86_64) /* and AVX-512BW, VL and BF16 */               \
  X(AMLA_ISA_AMXBF16, "amxbf16", AMLA_X86_64)       /* and AMX-TILE and AMX-BF16 */                \
  X(AMLA_ISA_NEON, "neon", AMLA_AARCH64)            /* part of the architecture */                 \
  X(AMLA_ISA_NEONBF16, "neonbf16", AMLA_AARCH64)    /* FEAT_BF16 beside it */

#define AMLA_COUNT_ISA(id, name, architecture) +1
enum { AMLA_N_ISAS = 1 AMLA_ISAS(AMLA_COUNT_ISA) }; /* AMLA_ISA_AUTO included */
#undef AMLA_COUNT_ISA

/* Is it of the architecture that this is compiled for? AMLA_ISA_AUTO is. */
int amla_isa_is_native(amla_isa isa);

/* amla_isa_missing says what is missing. */
int amla_isa_runs(amla_isa isa);

/* Does it gain anything over the one below it on this core? docs/cpu-kernel.md has the model. */
int amla_isa_gains(amla_isa isa);

#endif
