/* SPDX-License-Identifier: Apache-2.0
 *
 * The encoder for the target's baseline.
 */
#include "encode_loops.h"

amla_encode_token amla_encode_token__c;

void amla_encode_token__c(const amla_encoding *e, const void *latent, const void *rope,
                          amla_encoded to) {
  encode_token(e, latent, rope, to);
}
