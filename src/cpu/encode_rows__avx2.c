/* SPDX-License-Identifier: Apache-2.0
 *
 * The encoder for AVX2.
 */
#include "encode_loops.h"

amla_encode_token amla_encode_token__avx2;

void amla_encode_token__avx2(const amla_encoding *e, const void *latent, const void *rope,
                             amla_encoded to) {
  encode_token(e, latent, rope, to);
}
