/* SPDX-License-Identifier: Apache-2.0
 *
 * The peers' vector loops in portable C.
 */
#include "peer_vector_loops.h"

const peer_vector peer_vector__c = {.isa = AMLA_ISA_C,
                                    .widen_bf16 = widen_bf16,
                                    .max_columns = max_columns,
                                    .exp2_columns = exp2_columns,
                                    .exp2_each = exp2_each,
                                    .scale_row = scale_row};
