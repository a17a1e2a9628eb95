/* SPDX-License-Identifier: Apache-2.0
 *
 * All dispatch of the CPU backend: start from portable C, climb the ISA ladder, stop at the first missing step or the cap.
 */
#include "ukernels.h"

#include <stddef.h>

#include "../base/cpu_features.h"

const amla_ukernels *const amla_ukernels_all[] = {
    &amla_ukernels__c,
#if defined(__x86_64__)
    &amla_ukernels__avx2,
    &amla_ukernels__avx512,
#endif
    NULL,
};

const amla_ukernels *amla_ukernels_select(amla_isa cap) {
  const amla_cpu_features cpu = amla_detect_cpu_features();
  const int runs[] = {1, cpu.avx2, cpu.avx512};
  const amla_ukernels *best = amla_ukernels_all[0];
  for (int i = 1; amla_ukernels_all[i] && runs[i]; i++)
    if (cap == AMLA_ISA_AUTO || amla_ukernels_all[i]->isa <= cap) best = amla_ukernels_all[i];
  return best;
}
