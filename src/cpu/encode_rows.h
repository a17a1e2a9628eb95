/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens into rows of a KV cache: one table per instruction set, of plain loops (encode_loops.h)
 * that the compiler vectorises. The bits are the same in all.
 */
#ifndef AMLA_CPU_ENCODE_ROWS_H
#define AMLA_CPU_ENCODE_ROWS_H

#include <amla/amla.h>

/* What a token is encoded to. */
typedef struct amla_encoding {
  amla_dtype from, to;
  int32_t d_latent, d_rope;
  float scale, rope_scale; /* of fp8_e4m3 */
  int32_t any_scale;       /* fp8_656: scales are not rounded up to powers of two */
} amla_encoding;

/* Where the parts of a token lie. */
typedef struct amla_encoded {
  void *row, *rope, *scales; /* rope: behind the latent part unless it lies apart; scales: in the
                                footer of fp8_584's page, NULL elsewhere */
} amla_encoded;

/* latent [d_latent] and rope [d_rope] of e->from. */
typedef void amla_encode_token(const amla_encoding *e, const void *latent, const void *rope,
                               amla_encoded to);

/* The best one that the CPU can run and the cap allows. */
amla_encode_token *amla_encode_token_select(amla_isa cap);

#endif
