/* SPDX-License-Identifier: Apache-2.0
 *
 * What a peer needs beside a BLAS: widening KV, and a softmax over columns of S^T [token][row],
 * where the lanes of a vector run along rows and nothing is horizontal. One table per instruction
 * set, all compiled from peer_vector_loops.h, so that a peer is as fast between its two sgemm calls
 * as a careful author would make it.
 */
#ifndef AMLA_BENCH_PEER_VECTOR_H
#define AMLA_BENCH_PEER_VECTOR_H

#include <amla/amla.h>
#include <stdint.h>

typedef struct peer_vector {
  amla_isa isa;
  void (*widen_bf16)(int n, const uint16_t *from, float *to);
  /* max[row] = max(max[row], s[token][row]) */
  void (*max_columns)(int tokens, int rows, const float *s, float *max);
  /* s[token][row] = 2^(s[token][row] - max[row]), which must be <= 0; sum[row] += it */
  void (*exp2_columns)(int tokens, int rows, float *s, const float *max, float *sum);
  void (*exp2_each)(int n, float *x);                 /* x[i] = 2^x[i], x[i] <= 0 */
  void (*scale_row)(int n, float factor, float *row); /* row[i] *= factor */
} peer_vector;

extern const peer_vector peer_vector__c, peer_vector__avx2, peer_vector__avx512;

#endif
