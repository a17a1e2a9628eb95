/* SPDX-License-Identifier: Apache-2.0
 *
 * How the generators of tensors draw: every item from a generator of its own, and one hostile value
 * for what nobody may read.
 */
#ifndef AMLA_HARNESS_DRAW_H
#define AMLA_HARNESS_DRAW_H

#include "dataset.h"

/* Of block tables and lists: FlashMLA's tests poison with the same. */
enum { HARNESS_UNUSED_ENTRY = 2147480000 };

enum {
  STREAM_Q = 1,
  STREAM_KV,
  STREAM_LENGTHS,
  STREAM_PAGES,
  STREAM_SINKS,
  STREAM_ONEHOT,
  STREAM_MASK,
  STREAM_LISTS,
  STREAM_LIST_LENGTHS,
  STREAM_VISIBLE,
  STREAM_QUERIES
};

/* A generator of its own for item (i, j) of a stream. */
static inline uint64_t seed_for(uint64_t seed, uint64_t stream, int64_t i, int64_t j) {
  uint64_t state = seed * 8 + stream;
  state = harness_random(&state) + (uint64_t)i;
  state = harness_random(&state) + (uint64_t)j;
  return harness_random(&state);
}

static inline int64_t random_below(uint64_t *state, int64_t n) {
  return (int64_t)(harness_random(state) % (uint64_t)n);
}

#endif
