/* SPDX-License-Identifier: Apache-2.0
 *
 * AMLA over MPI: one decode step whose keys lie on several ranks. Every rank has q of all heads and
 * a shard of the keys, whole splits in the order of tokens, and gets the results of its own heads.
 * The bits are those of one process over all keys, on any number of ranks. libamla_mpi.so is built
 * over the functions of shards in amla.h, which do the arithmetic. docs/distributed.md.
 *
 * Every function is collective over the communicator. What one rank refuses, all ranks return, with
 * the same status and text, "rank 2: ..."; then nothing has been written, but where options.cancel
 * ended the run, which it does on all ranks: outputs then hold anything. A rank that dies ends the
 * job, as MPI's error handler of the communicator says. No other thread of a rank may be in a call
 * with the same amla_mpi.
 */
#ifndef AMLA_AMLA_MPI_H
#define AMLA_AMLA_MPI_H

#include <amla/amla.h>
#include <mpi.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct amla_mpi amla_mpi; /* a plan and its buffers over a communicator */

/* Plans. `comm` is duplicated. Ranks must agree on problem (n_pages, strides and memory aside),
 * options (threads, parallel and cancel aside) and what the plan chose: instruction set,
 * split_tokens, types. options.split_tokens >= 1. With more than one thread MPI must have been
 * initialised with MPI_THREAD_FUNNELED or more, and calls come from the main thread. */
AMLA_API amla_status amla_mpi_create(amla_mpi **mpi, MPI_Comm comm, const amla_problem *problem,
                                     const amla_options *options, amla_detail *detail);

/* Computes out, lse and max_logits of the rank's heads, [head_begin, head_end) of amla_mpi_info,
 * and leaves the others alone. `shard` has the rank's own keys: begin and end, and those of the
 * second scope; the rest of it is not read. Tensors as of amla_shard_run; ranks agree on lengths,
 * lists, sinks and whether max_logits is asked for. Ours allocates nothing; MPI may. */
AMLA_API amla_status amla_mpi_run(amla_mpi *mpi, const amla_tensors *tensors,
                                  const amla_shard *shard, amla_detail *detail);

typedef struct amla_mpi_info {
  uint32_t struct_bytes;
  int32_t rank, ranks;
  int32_t head_begin, head_end; /* h_q * rank / ranks, and the next one's */
  int64_t split_tokens;         /* shards are of multiples of it */
  size_t buffer_bytes;          /* of messages, on this rank */
  /* Of the last run. */
  int64_t n_row_keys; /* keys of the shard, summed over rows: its work */
  int64_t sent_bytes;
  int32_t blocks;   /* of rows, each of which travels while the next one is computed */
  int32_t messages; /* received from others */
  int32_t
      messages_early;  /* that had come when the block after theirs was computed: not waited for */
  int32_t max_entries; /* records of a row, at most */
  double seconds, compute_seconds, wait_seconds;
} amla_mpi_info;

#define AMLA_MPI_INFO_INIT                                                                         \
  {(uint32_t)sizeof(amla_mpi_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0}

/* Local. */
AMLA_API amla_status amla_mpi_query(const amla_mpi *mpi, amla_mpi_info *info, amla_detail *detail);

/* NULL is allowed. */
AMLA_API void amla_mpi_destroy(amla_mpi *mpi);

/* Where shard i of n of a sequence begins, if its splits are shared out evenly: a multiple of
 * split_tokens; of i = n INT32_MAX, as the last shard is the one that grows. Local. */
AMLA_API int32_t amla_mpi_even_begin(int64_t split_tokens, int32_t length, int32_t i, int32_t n);

#ifdef __cplusplus
}
#endif
#endif
