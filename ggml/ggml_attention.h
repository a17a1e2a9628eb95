/* SPDX-License-Identifier: Apache-2.0
 *
 * One FLASH_ATTN_EXT of ggml as one AMLA problem: which ones we take, and how they are computed.
 */
#ifndef AMLA_GGML_ATTENTION_H
#define AMLA_GGML_ATTENTION_H

#include <amla/amla.h>

#include "ggml_abi.h"
#include "ggml_buffer.h"

typedef struct ggml_attention { /* what one backend object keeps between operations */
  amla_problem problem;         /* of the plan */
  amla_plan *plan;              /* of the last operation; mostly the next one has the same shape */
  int32_t threads;              /* of the plan */
  bool asks;                    /* likewise: it asks for an end */
  ggml_buffer scratch;
  ggml_buffer lengths; /* [streams] int32_t: keys in use */
  int32_t cast_op;     /* of ggml_host.h */
  /* ggml's: true: graphs are to end. NULL = never */
  bool (*abort)(void *data);
  void *abort_data;
} ggml_attention;

/* NULL if the operation is ours, else why not: a literal. Tensors need not have memory yet.
 * cast_op: ggml_host.h. */
const char *ggml_attention_refusal(const ggml_abi_tensor *op, int32_t cast_op);

/* Not worth a second thread. */
bool ggml_attention_is_small(const ggml_abi_tensor *op);

/* Computes an operation that is ours. Returns GGML_ABI_SUCCESS, or another status with a line of
 * log. */
int ggml_attention_run(ggml_attention *a, const ggml_abi_tensor *op, int32_t threads,
                       amla_parallel parallel, void *context);

void ggml_attention_free(ggml_attention *a);

#endif
