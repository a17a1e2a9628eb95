/* SPDX-License-Identifier: Apache-2.0
 *
 * A problem on the ranks at work: its data, of which every rank has all, its shards, a plan and its
 * runs.
 */
#ifndef AMLA_RANKS_JOB_H
#define AMLA_RANKS_JOB_H

#include <amla/amla_mpi.h>

#include "harness/truth.h"
#include "ranks_arguments.h"
#include "ranks_cache.h"

enum { MAX_BLOCKS = 256 /* of a trace */ };

typedef struct ranks_job {
  ranks_arguments a;
  MPI_Comm comm; /* the ranks at work: all, or the first ones */
  int rank, ranks;
  harness_dataset data;
  harness_truth truth;  /* of rank 0 */
  ranks_cache cache;    /* of --interleave */
  amla_problem problem; /* of this rank: the whole one, or with pages of its own */
  amla_tensors tensors;
  int32_t *long_table; /* of --repeat */
  float *max_logits;
  amla_options options;
  amla_mpi *mpi;
  amla_mpi_info info;
  int32_t *begin, *end, *extra_begin, *extra_end;
  amla_shard shard;
} ranks_job;

/* A file, or a problem string, with lists and pages as shards need them. Ends all if it cannot. */
void ranks_generate(ranks_job *j);

/* A plan over the ranks of j->comm, and even shards. */
amla_status ranks_try_create(ranks_job *j, amla_detail *why);
void ranks_create(ranks_job *j);
void ranks_destroy(ranks_job *j);

amla_status ranks_try_run(ranks_job *j, amla_detail *why);
void ranks_run(ranks_job *j);

/* Memory, or the end of all. */
void *ranks_allocate(size_t bytes);

#endif
