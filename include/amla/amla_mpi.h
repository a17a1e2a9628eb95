/* SPDX-License-Identifier: Apache-2.0
 *
 * AMLA over MPI: one decode step whose keys lie on several ranks. Every rank has q of all heads and
 * a shard of the keys, and gets the results of its own heads. Shards are whole splits in the order
 * of tokens, unless options say otherwise: the bits are then those of one process over all keys, on
 * any number of ranks. libamla_mpi.so is built over the functions of shards in amla.h, which do the
 * arithmetic. docs/distributed.md.
 *
 * Every function is collective over the communicator. What one rank refuses, all ranks return, with
 * the same status and text, "rank 2: ..."; then nothing has been written, but where options.cancel
 * ended the run, which it does on all ranks: outputs then hold anything. A rank that dies, or
 * any error of MPI, ends the job, whatever the error handler of the communicator. No other thread
 * of a rank may be in a call with the same amla_mpi.
 */
#ifndef AMLA_AMLA_MPI_H
#define AMLA_AMLA_MPI_H

#include <amla/amla.h>
#include <mpi.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct amla_mpi amla_mpi; /* a plan and its buffers over a communicator */

/* How keys are shared out, and what is noted. Zero is the default. */
typedef struct amla_mpi_options {
  uint32_t struct_bytes;
  /* 0: shards are runs of whole splits, and results have the bits of one process.
   *
   * n >= 1: shards are interleaved. Token t is of rank t / n % ranks, so that ranks are level
   * whatever the length. A rank's caches have its own tokens only, closed up: token t is at
   * position amla_mpi_own_tokens(n, t, rank, ranks) of block table and pages. Everything else is of
   * whole sequences, as ever: sk, lengths, visible lengths, windows and lists of positions.
   * max_pages is that of the rank's own tables, which have room for amla_mpi_own_tokens(n, sk, 0,
   * ranks) tokens. Not with a mask.
   *
   * Ranks then merge their normalised results, in f32, in the order of ranks. The bits depend on n
   * and the number of ranks, and on nothing else. With u = 2^-24, W ranks and L = max(1, score_abs
   * + log of the keys), and what else is of harness/truth.h, results are within |out - truth| <= 3
   * (C_score u score_abs + C_sum u) out_abs + (2 L + W + 2) u out_abs
   *                    + (1 - f) * bound of lse * |truth| + u_out |truth| + tiny
   *     |lse - truth| <= C_score u score_abs + (C_sum + 1) u max(1, |truth|) + u L
   * of which one process has the first term once, and none with L or W. */
  int32_t interleave_tokens;
  int32_t
      trace_blocks; /* the first so many blocks of rows of a run are noted, for amla_mpi_trace */
} amla_mpi_options;

#define AMLA_MPI_OPTIONS_INIT {(uint32_t)sizeof(amla_mpi_options), 0, 0}

/* Plans. `comm` is duplicated. Ranks must agree on problem (n_pages, max_pages, strides and memory
 * aside), options (threads, parallel and cancel aside), interleave_tokens and what the plan chose:
 * instruction set, split_tokens, types. options.split_tokens >= 1. With more than one thread MPI
 * must have been initialised with MPI_THREAD_FUNNELED or more, and calls come from the main thread.
 *   mpi_options: NULL = the defaults. */
AMLA_API amla_status amla_mpi_create(amla_mpi **mpi, MPI_Comm comm, const amla_problem *problem,
                                     const amla_options *options,
                                     const amla_mpi_options *mpi_options, amla_detail *detail);

/* Computes out, lse and max_logits of the rank's heads, [head_begin, head_end) of amla_mpi_info,
 * and leaves the others alone. `shard` has the rank's own keys: begin and end, and those of the
 * second scope; the rest of it is not read. With interleave_tokens it is NULL. Tensors as of
 * amla_shard_run; ranks agree on lengths, lists, sinks and whether max_logits is asked for. Ours
 * allocates nothing; MPI may.
 *
 * Messages move while keys are computed: the calling thread asks MPI before each key tile, if the
 * threads are OpenMP's or there is one. With options.parallel they move between blocks. */
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
  int32_t blocks;         /* of rows, each of which travels while the next one is computed */
  int32_t messages;       /* received from others */
  int32_t messages_early; /* of those, that nobody waited for */
  int32_t max_entries;    /* records of a row, at most */
  double seconds, compute_seconds, wait_seconds;
} amla_mpi_info;

#define AMLA_MPI_INFO_INIT                                                                         \
  {(uint32_t)sizeof(amla_mpi_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0}

/* Local. */
AMLA_API amla_status amla_mpi_query(const amla_mpi *mpi, amla_mpi_info *info, amla_detail *detail);

/* A block of rows of the last run. Times are in seconds since the run began. */
typedef struct amla_mpi_block {
  int64_t row_begin, row_end;
  double compute_begin, compute_end, sent; /* its records were given to MPI */
  double first_message, last_message;      /* when they were seen to have come; -1: none */
  double finished;                         /* the results of the rank's heads were written */
  int32_t messages;                        /* received from others */
  int32_t messages_within; /* of those, seen between two key tiles of this block or the next one */
} amla_mpi_block;

/* Blocks of the last run into blocks [capacity], and in *n how many there are: at most
 * trace_blocks. Local. */
AMLA_API amla_status amla_mpi_trace(const amla_mpi *mpi, int32_t capacity, amla_mpi_block *blocks,
                                    int32_t *n, amla_detail *detail);

/* NULL is allowed. */
AMLA_API void amla_mpi_destroy(amla_mpi *mpi);

/* Where shard i of n of a sequence begins, if its splits are shared out evenly: a multiple of
 * split_tokens; of i = n INT32_MAX, as the last shard is the one that grows. Local. */
AMLA_API int32_t amla_mpi_even_begin(int64_t split_tokens, int32_t length, int32_t i, int32_t n);

/* How many of the tokens before a position are a rank's own, if they are interleaved: of one of its
 * tokens also the position in the rank's cache. Local. */
AMLA_API int32_t amla_mpi_own_tokens(int32_t interleave_tokens, int32_t position, int32_t rank,
                                     int32_t ranks);

#ifdef __cplusplus
}
#endif
#endif
