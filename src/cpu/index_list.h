/* SPDX-License-Identifier: Apache-2.0
 *
 * A list of the k best scores so far, fed by rising position: kept in the order of positions, with
 * a threshold that a newcomer must exceed. Integers only: a score is a key of the same order.
 */
#ifndef AMLA_CPU_INDEX_LIST_H
#define AMLA_CPU_INDEX_LIST_H

#include "index_ukr.h"

enum { AMLA_INDEX_BATCH = 64 }; /* most scores of a push */

typedef struct amla_index_list {
  const amla_index_ukr *ukr;
  int32_t *keys, *positions; /* [capacity], by rising position */
  int32_t k;                 /* how many are wanted */
  int64_t capacity;          /* at least k + AMLA_INDEX_BATCH */
  int32_t n;
  int32_t threshold; /* k keys that are not below it have been seen */
} amla_index_list;

void amla_index_list_clear(amla_index_list *list);

/* Scores of positions first, first + 1, ..., above all that came before; n <= AMLA_INDEX_BATCH. */
void amla_index_list_push(amla_index_list *list, int32_t n, const float *scores, int32_t first);

/* All of another list, whose positions are above all that came before. */
void amla_index_list_append(amla_index_list *list, const amla_index_list *other);

/* Leaves the k best, or all if there are not so many. */
void amla_index_list_finish(amla_index_list *list);

#endif
