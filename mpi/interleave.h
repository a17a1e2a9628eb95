/* SPDX-License-Identifier: Apache-2.0
 *
 * Interleaved shards: what a problem and its tensors are to a rank that has every ranks-th block of
 * tokens, closed up in a cache of its own. Lengths, visible lengths, lists and windows of whole
 * sequences become those of the rank's own tokens. Nothing here sends or computes.
 */
#ifndef AMLA_INTERLEAVE_H
#define AMLA_INTERLEAVE_H

#include <amla/amla_mpi.h>

typedef struct amla_interleaving {
  int32_t tokens, rank, ranks;
  amla_problem whole;
  int32_t *words; /* of the own tensors' arrays */
} amla_interleaving;

/* The rank's own problem: of its tokens, into f32, dense over lengths or by lists. Every rank has
 * the same. `x->whole` is a problem that a plan has been made of. */
amla_problem amla_interleave_problem(const amla_interleaving *x);

/* int32_t that x->words needs. */
size_t amla_interleave_words(const amla_interleaving *x);

/* The rank's own tensors, but for outputs. `t` has been checked against x->whole. */
amla_tensors amla_interleave_tensors(const amla_interleaving *x, const amla_tensors *t);

#endif
