/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors for a problem: generated from a problem string, or loaded from a file. Everything that
 * the library must not look at is hostile: unused slots, unused pages and stride padding are NaN,
 * unused block-table and list entries are 2147480000, pages are in shuffled order, outputs start as
 * a guard pattern. Where queries have keys of their own, so are the slots that none of them sees.
 */
#ifndef AMLA_HARNESS_DATASET_H
#define AMLA_HARNESS_DATASET_H

#include "problem_string.h"

#include <stdbool.h>

typedef struct harness_dataset {
  amla_problem problem;
  amla_options options; /* what its string or file says of how; the rest default */
  amla_tensors tensors; /* pointers into the buffers below */
  void *q, *kv, *out;   /* owned */
  uint16_t *mask;       /* [b][s_q][sk] f16 with the problem's strides, or NULL */
  /* Where a sequence's tokens lie and how many there are; not attached where amla.h does not read
   * them. NULL: lists of slots from a file. */
  int32_t *block_table, *seqlens_k;
  float *sinks, *lse;
  void *q_rope, *kv_rope, *extra_kv; /* these and the next as in amla_tensors, or NULL */
  int32_t *indices, *topk_length, *visible_k, *q_indptr, *kv_indptr, *kv_indices;
  int32_t *extra_block_table, *extra_seqlens_k, *extra_visible_k, *extra_indices,
      *extra_topk_length;
  float *out_ref;     /* [b][s_q][h_q][d_v] f32 from a file, or NULL: fp64 results rounded to f32 */
  float *lse_ref;     /* [b][h_q][s_q] f32 natural log from a file, or NULL */
  double scale_exact; /* of a file, before it became a float; 0 = problem.scale */
} harness_dataset;

/* Returns 0, or -1 with a reason (out of memory, product too large). */
int harness_generate(const harness_case *c, harness_dataset *data, char *error, size_t error_bytes);

/* The length that harness_generate gives a sequence. */
int32_t harness_length(const harness_case *c, int32_t sequence);

/* Query rows: b * s_q * h_q, or those of the ragged queries there are. */
int64_t harness_rows(const harness_dataset *data);

/* Element offsets in the tensors of a problem, whose strides may be 0 = packed. row: counted in the
 * order [b][s_q][h_q], or of ragged queries [total][h_q], whose strides have nothing between
 * sequences; lse is [b][h_q][s_q], or [total][h_q]. */
int64_t harness_q_offset(const amla_problem *problem, int64_t row);
int64_t harness_q_rope_offset(const amla_problem *problem, int64_t row);
int64_t harness_out_offset(const amla_problem *problem, int64_t row);
int64_t harness_lse_offset(const harness_dataset *data, int64_t row);

/* Of token j of a sequence in kv; -1 when its page id is out of range. block_table: NULL when KV is
 * contiguous. */
int64_t harness_token_offset(const amla_problem *problem, const int32_t *block_table,
                             int32_t sequence, int64_t j);

/* Allocates a buffer of exactly n elements (overruns are an address sanitiser's to find), 64-byte
 * aligned; NULL when out of memory. */
void *harness_allocate(int64_t n, size_t element_bytes);

/* Allocates the outputs of data->problem and points every tensor at its buffer; false when out of
 * memory or too large. What problem, strides included, and the other buffers say must be final. */
bool harness_attach(harness_dataset *data);

/* Fills the output buffers with the guard pattern 0xA5 again. */
void harness_reset_outputs(harness_dataset *data);

void harness_free(harness_dataset *data);

/* Element i of a buffer of that type, exactly (not fp8: kv_rows.h); and its inverse, rounded to
 * nearest even (not blocks: kv_blocks.h). */
float harness_load(const void *buffer, amla_dtype type, int64_t i);
void harness_store(void *buffer, amla_dtype type, int64_t i, float value);

/* Deterministic generator (splitmix64), uniform in (0, 1), and a normal deviate. */
uint64_t harness_random(uint64_t *state);
double harness_random_uniform(uint64_t *state);
double harness_random_normal(uint64_t *state);

#endif
