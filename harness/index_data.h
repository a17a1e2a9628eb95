/* SPDX-License-Identifier: Apache-2.0
 *
 * Problems of the indexer: random data in any of its formats, and the truth with a bound.
 */
#ifndef AMLA_HARNESS_INDEX_DATA_H
#define AMLA_HARNESS_INDEX_DATA_H

#include <amla/amla.h>
#include <stdbool.h>

typedef struct harness_index_data {
  amla_index_args args; /* with pointers into what follows; lengths are the caller's */
  void *q_stored, *k_stored;
  float *q_scales, *weights, *scores;
  int32_t *block_table, *indices;
  float *q;       /* [b][s_q][heads][d], as stored */
  float *k;       /* [b][sk][d], as stored, without the scale */
  float *k_scale; /* [b][sk]; 1 of bf16 */
} harness_index_data;

/* Fills in the buffers of args, whose shapes, types, strides and lengths are set. Pages are in
 * random order, and slack holds NaN. `integers`: small ones, whose scores are exact in f32, and of
 * which many are equal. False when out of memory. */
bool harness_index_create(harness_index_data *data, const amla_index_args *args, uint64_t seed,
                          bool integers);
void harness_index_free(harness_index_data *data);

/* Keys that the query sees. */
int32_t harness_index_visible(const amla_index_args *args, int32_t sequence, int32_t query);

/* scores [visible] in fp64; bounds [visible] of the error of an f32 score (docs/indexer.md). */
void harness_index_truth(const harness_index_data *data, int32_t sequence, int32_t query,
                         double *scores, double *bounds);

/* What is wrong with scores and indices (positions) of a query, or NULL: a score beyond its bound,
 * a list that is not the exact choice by these scores. In time proportional to the keys. */
const char *harness_index_flaw(const harness_index_data *data, int32_t sequence, int32_t query);

/* Value of an e4m3fn byte. */
float harness_e4m3(uint8_t code);

#endif
