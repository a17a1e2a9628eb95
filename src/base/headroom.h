/* SPDX-License-Identifier: Apache-2.0
 *
 * Headroom of O. P is multiplied by 2^-bits on its way to PV, and the divisor at the end by the
 * same. That is exact, and no sum over a sequence's keys leaves f32, whatever finite values V
 * holds. What it costs is at the other end: |V| 2^-bits should be normal.
 */
#ifndef AMLA_BASE_HEADROOM_H
#define AMLA_BASE_HEADROOM_H

#include <amla/amla.h>

enum {
  AMLA_LAZY_TAU = 8,     /* lazy lets P grow to 2^8 before its reference moves */
  AMLA_MAX_HEADROOM = 40 /* of lazy at INT32_MAX keys */
};

/* Bits for a sequence of that many keys: a function of nothing else, so that bits of results do
 * not depend on company. P is at most 2^8 in lazy, sqrt 2 in amla, 1 in flash; one bit more is
 * for the roundings of the sum. */
static inline int32_t amla_headroom(amla_rescale mode, int32_t keys) {
  int32_t bits = 1;
  if (mode == AMLA_RESCALE_LAZY)
    bits += AMLA_LAZY_TAU;
  if (mode == AMLA_RESCALE_AMLA)
    bits += 1;
  for (; keys > 0; keys /= 2)
    bits++;
  return bits;
}

#endif
