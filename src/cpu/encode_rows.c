/* SPDX-License-Identifier: Apache-2.0
 *
 * Dispatch of the encoders, by the ladder of ukernels.c.
 */
#include "encode_rows.h"

#include "../base/isa.h"

amla_encode_token amla_encode_token__c, amla_encode_token__avx2;

amla_encode_token *amla_encode_token_select(amla_isa cap) {
  amla_encode_token *best = amla_encode_token__c;
  (void)cap; /* of one row there is no choice */
#if defined(__x86_64__)
  if (amla_isa_runs(AMLA_ISA_AVX2) && (cap == AMLA_ISA_AUTO || cap >= AMLA_ISA_AVX2))
    best = amla_encode_token__avx2;
#endif
  return best;
}
