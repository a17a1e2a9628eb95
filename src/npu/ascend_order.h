/* SPDX-License-Identifier: Apache-2.0
 *
 * In which order the cube core works through a column tile: literal loops that fill a list of L0
 * steps. Pure arithmetic, no instruction. A column tile is both halves of the rows, all pieces of
 * depth in L1 (k), all depths of L0 within a piece (k0):
 *
 *     S[:, n] = Q K[n]^T    n: 128 keys       O[:, n] += P V[:, n]    n: 128 columns
 *
 * The order of column tiles is at the end of ascend_cube.c.
 */
#ifndef ASCEND_ORDER_H
#define ASCEND_ORDER_H

#include "ascend_tiling.h"

typedef struct ascend_l0_step {
  int32_t half, k, k0; /* k0: depth within piece k */
  int32_t b;           /* which of the tiles of B that the column tile loads, in their order */
} ascend_l0_step;

typedef struct ascend_depths {
  int32_t halves, pieces;
  int32_t total, piece, step; /* depth of the product, of a piece in L1, of an L0 step */
  int32_t l0_slots;           /* tiles of B that L0B holds */
} ascend_depths;

enum { ASCEND_MAX_L0_STEPS = 2 * 4 * 40 };

static inline int32_t ascend_depth_of_piece(const ascend_depths *d, int32_t k) {
  return ascend_min(d->piece, d->total - k * d->piece);
}
static inline int32_t ascend_steps_of_piece(const ascend_depths *d, int32_t k) {
  return ascend_pieces(ascend_depth_of_piece(d, k), d->step);
}

static inline int32_t ascend_l0_add(ascend_l0_step *list, int32_t i, int32_t half, int32_t k,
                                    int32_t k0, int32_t b) {
  list[i].half = half, list[i].k = k, list[i].k0 = k0, list[i].b = b;
  return i + 1;
}

/* As published: piece by piece, half 0, then half 1. Both accumulators end together. */
static inline int32_t ascend_l0_by_piece(const ascend_depths *d, ascend_l0_step *list) {
  int32_t i = 0;
  for (int32_t k = 0; k < d->pieces; k++)
    for (int32_t half = 0; half < d->halves; half++)
      for (int32_t k0 = 0; k0 < ascend_depth_of_piece(d, k); k0 += d->step)
        i = ascend_l0_add(list, i, half, k, k0, i);
  return i;
}

/* Ours: the same, but half 1 finds tiles of B in L0B where half 0 has left them. Where a piece has
 * more of them than L0B holds, the halves take turns, except in the last piece: half 0's
 * accumulator drains while half 1 ends. */
static inline int32_t ascend_l0_share_b(const ascend_depths *d, ascend_l0_step *list) {
  int32_t i = 0, b = 0; /* b: tiles loaded before this run of steps */
  for (int32_t k = 0; k < d->pieces; k++) {
    const int32_t steps = ascend_steps_of_piece(d, k), all_fit = steps <= d->l0_slots;
    const int32_t last = k == d->pieces - 1, run = all_fit || last ? steps : 1;
    for (int32_t begin = 0; begin < steps; begin += run) {
      for (int32_t half = 0; half < d->halves; half++)
        for (int32_t s = 0; s < run; s++)
          i = ascend_l0_add(list, i, half, k, (begin + s) * d->step,
                            b + s + (run > d->l0_slots ? half * run : 0));
      b = list[i - 1].b + 1;
    }
  }
  return i;
}

static inline int32_t ascend_l0_order(int32_t order, const ascend_depths *d, ascend_l0_step *list) {
  return order == ASCEND_SHARE_B ? ascend_l0_share_b(d, list) : ascend_l0_by_piece(d, list);
}

#endif
