/* SPDX-License-Identifier: Apache-2.0
 *
 * In which order the cube core works: the schedules as literal loops that fill lists. Pure
 * arithmetic, no instruction. A trip t is the column tiles of C1(t) and of C2(t - lag):
 *
 *     S[:, n] = Q K[n]^T    n: 128 keys       O[:, n] += P V[:, n]    n: 128 columns
 *
 * and a column tile is L0 steps: both halves of the rows, all pieces of depth in L1 (k), all depths
 * of L0 within a piece (k0).
 */
#ifndef ASCEND_ORDER_H
#define ASCEND_ORDER_H

#include "ascend_tiling.h"

enum { ASCEND_C1, ASCEND_C2 };

/* ---- A trip: which column tile of which product comes next ---- */

typedef struct ascend_column {
  int32_t product, n;
} ascend_column;

enum { ASCEND_TRIP_COLUMNS = 2 * ASCEND_MAX_COLUMN_TILES };

/* As published. With lag 1, C1 runs one key tile ahead (Preload Pipeline):
 *     C1(0) | C1(1) C2(0) | C1(2) C2(1) | ...
 * with lag 0 nothing overlaps: C1(0) C2(0) | C1(1) C2(1) | ... */
static inline void ascend_trip_in_sequence(ascend_column trip[ASCEND_TRIP_COLUMNS]) {
  int32_t i = 0;
  for (int32_t product = ASCEND_C1; product <= ASCEND_C2; product++)
    for (int32_t n = 0; n < ASCEND_MAX_COLUMN_TILES; n++, i++)
      trip[i].product = product, trip[i].n = n;
}

/* Ours, for few rows: K comes from HBM and V from L2, so the products take turns, and every other
 * core starts with the other one. */
static inline void ascend_trip_in_turns(ascend_column trip[ASCEND_TRIP_COLUMNS], int32_t first) {
  int32_t i = 0;
  for (int32_t n = 0; n < ASCEND_MAX_COLUMN_TILES; n++)
    for (int32_t turn = 0; turn < 2; turn++, i++)
      trip[i].product = turn ? !first : first, trip[i].n = n;
}

/* ---- A column tile: which half of the rows meets which depth next ---- */

typedef struct ascend_l0_step {
  int32_t half, k, k0; /* k0: depth within piece k */
} ascend_l0_step;

typedef struct ascend_depths {
  int32_t halves, pieces;
  int32_t total, piece, step; /* depth of the product, of a piece in L1, of an L0 step */
} ascend_depths;

enum { ASCEND_MAX_L0_STEPS = 2 * 4 * 40 };

static inline int32_t ascend_depth_of_piece(const ascend_depths *d, int32_t k) {
  return ascend_min(d->piece, d->total - k * d->piece);
}

static inline int32_t ascend_l0_add(ascend_l0_step *list, int32_t i, int32_t half, int32_t k,
                                    int32_t k0) {
  list[i].half = half, list[i].k = k, list[i].k0 = k0;
  return i + 1;
}

/* As published: piece by piece, half 0, then half 1. Both accumulators end together. */
static inline int32_t ascend_l0_by_piece(const ascend_depths *d, ascend_l0_step *list) {
  int32_t i = 0;
  for (int32_t k = 0; k < d->pieces; k++)
    for (int32_t half = 0; half < d->halves; half++)
      for (int32_t k0 = 0; k0 < ascend_depth_of_piece(d, k); k0 += d->step)
        i = ascend_l0_add(list, i, half, k, k0);
  return i;
}

/* Both halves use a B tile in L0B before the next is loaded. */
static inline int32_t ascend_l0_share_b(const ascend_depths *d, ascend_l0_step *list) {
  int32_t i = 0;
  for (int32_t k = 0; k < d->pieces; k++)
    for (int32_t k0 = 0; k0 < ascend_depth_of_piece(d, k); k0 += d->step)
      for (int32_t half = 0; half < d->halves; half++)
        i = ascend_l0_add(list, i, half, k, k0);
  return i;
}

/* Ours: half 0 through all depths, then half 1. One accumulator drains while the other fills. */
static inline int32_t ascend_l0_stagger(const ascend_depths *d, ascend_l0_step *list) {
  int32_t i = 0;
  for (int32_t half = 0; half < d->halves; half++)
    for (int32_t k = 0; k < d->pieces; k++)
      for (int32_t k0 = 0; k0 < ascend_depth_of_piece(d, k); k0 += d->step)
        i = ascend_l0_add(list, i, half, k, k0);
  return i;
}

static inline int32_t ascend_l0_order(int32_t order, const ascend_depths *d, ascend_l0_step *list) {
  switch (order) {
  case ASCEND_BY_PIECE: return ascend_l0_by_piece(d, list);
  case ASCEND_SHARE_B: return ascend_l0_share_b(d, list);
  default: return ascend_l0_stagger(d, list);
  }
}

#endif
