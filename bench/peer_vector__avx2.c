/* SPDX-License-Identifier: Apache-2.0
 *
 * The peers' vector loops in AVX2 and FMA (-mavx2 -mfma).
 */
#include "peer_vector_loops.h"

const peer_vector peer_vector__avx2 = {.isa = AMLA_ISA_AVX2,
                                       .widen_bf16 = widen_bf16,
                                       .max_columns = max_columns,
                                       .exp2_columns = exp2_columns,
                                       .exp2_each = exp2_each,
                                       .scale_row = scale_row};
