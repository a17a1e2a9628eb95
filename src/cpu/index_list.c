/* SPDX-License-Identifier: Apache-2.0
 *
 * See index_list.h. The list fills up, is cut back to k, and fills up again: every cut raises the
 * threshold, so that of scores in random order few get in. The cut bisects over the value of a key,
 * which is a fixed number of passes that vectorise, whatever the distribution.
 */
#include "index_list.h"

#include <string.h>

/* Rising with the score, as integers compare: NaN below -inf, -0 like 0. */
static int32_t key_of(float score) {
  const float x = score + 0.0f;
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return x != x ? INT32_MIN + 1 : bits ^ ((bits >> 31) & INT32_MAX);
}

static int32_t count_above(const amla_index_list *list, int32_t bound) {
  return list->ukr->count_above(list->n, list->keys, bound);
}

/* A bound with fewer than k keys above it, or just k, and at least k that are not below. */
static int32_t find_threshold(const amla_index_list *list) {
  int64_t low = list->threshold, high = INT32_MIN;
  for (int32_t i = 0; i < list->n; i++)
    high = list->keys[i] > high ? list->keys[i] : high;
  while (low < high) { /* more than k are above low - 1, fewer than k above high */
    const int64_t middle = low + (high - low) / 2;
    const int32_t n = count_above(list, (int32_t)middle);
    if (n == list->k)
      return (int32_t)middle;
    if (n > list->k)
      low = middle + 1;
    else
      high = middle;
  }
  return (int32_t)low;
}

/* Back to k: all above the threshold, and of those at it the first ones. */
static void cut(amla_index_list *list) {
  const int32_t threshold = find_threshold(list);
  int32_t at_threshold = list->k - count_above(list, threshold), n = 0;
  for (int32_t i = 0; i < list->n; i++) {
    const int32_t key = list->keys[i], tied = key == threshold && at_threshold > 0;
    list->keys[n] = key;
    list->positions[n] = list->positions[i];
    n += key > threshold || tied;
    at_threshold -= tied;
  }
  list->n = n;
  list->threshold = threshold;
}

/* For n more. More than k are there then, as the capacity is at least k + AMLA_INDEX_BATCH. */
static void make_room(amla_index_list *list, int32_t n) {
  if (list->n > list->capacity - n)
    cut(list);
}

void amla_index_list_clear(amla_index_list *list) {
  list->n = 0;
  list->threshold = INT32_MIN;
}

void amla_index_list_push(amla_index_list *list, int32_t n, const float *scores, int32_t first) {
  make_room(list, n);
  int32_t fresh[AMLA_INDEX_BATCH]; /* apart, as this loop vectorises */
  int32_t *keys = list->keys + list->n, *positions = list->positions + list->n, added = 0;
  const int32_t threshold = list->threshold;
  for (int32_t i = 0; i < n; i++)
    fresh[i] = key_of(scores[i]);
  for (int32_t i = 0; i < n; i++) {
    keys[added] = fresh[i];
    positions[added] = first + i;
    added += fresh[i] > threshold;
  }
  list->n += added;
}

void amla_index_list_append(amla_index_list *list, const amla_index_list *other) {
  for (int32_t i = 0; i < other->n; i++) {
    make_room(list, 1);
    list->keys[list->n] = other->keys[i];
    list->positions[list->n] = other->positions[i];
    list->n += other->keys[i] > list->threshold;
  }
}

void amla_index_list_finish(amla_index_list *list) {
  if (list->n > list->k)
    cut(list);
}
