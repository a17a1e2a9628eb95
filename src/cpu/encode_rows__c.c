/* SPDX-License-Identifier: Apache-2.0
 *
 * The encoder for the target's baseline.
 */
#include "encode_loops.h"

static void narrow_f16(int32_t n, const float *x, uint16_t *h) {
  for (int32_t i = 0; i < n; i++)
    h[i] = amla_f32_to_f16(x[i]);
}

/* In two loops: GCC would select among bytes, which it packs one by one for that. */
static void narrow_e4m3(int32_t n, const float *x, float scale, uint8_t *to) {
  int32_t codes[GROUP];
  for (int32_t i = 0; i < n; i++)
    codes[i] = amla_f32_to_e4m3(x[i] / scale);
  for (int32_t i = 0; i < n; i++)
    to[i] = (uint8_t)codes[i];
}

amla_encode_token amla_encode_token__c;

void amla_encode_token__c(const amla_encoding *e, const void *latent, const void *rope,
                          amla_encoded to) {
  encode_token(e, latent, rope, to);
}
