/* SPDX-License-Identifier: Apache-2.0
 *
 * When blocks were computed and came: bench --trace, and overlap.
 */
#include <stdio.h>
#include <stdlib.h>

#include "ranks_commands.h"

static int32_t get_trace(const ranks_job *j, amla_mpi_block *blocks) {
  int32_t n;
  amla_mpi_trace(j->mpi, MAX_BLOCKS, blocks, &n, NULL);
  return n;
}

static void print_block(FILE *to, int rank, int block, const amla_mpi_block *b) {
  fprintf(to, "%d %d %lld-%lld %.6f %.6f %.6f %.6f %.6f %.6f %d %d\n", rank, block,
          (long long)b->row_begin, (long long)b->row_end, b->compute_begin, b->compute_end, b->sent,
          b->first_message, b->last_message, b->finished, b->messages, b->messages_within);
}

/* The last run's blocks of all ranks. */
void ranks_write_trace(const ranks_job *j) {
  amla_mpi_block mine[MAX_BLOCKS], *all = ranks_allocate((size_t)j->ranks * sizeof mine);
  const int32_t n = get_trace(j, mine);
  MPI_Gather(mine, (int)sizeof mine, MPI_BYTE, all, (int)sizeof mine, MPI_BYTE, 0, j->comm);
  FILE *to = j->rank == 0 ? fopen(j->a.trace, "w") : NULL;
  if (j->rank == 0 && !to)
    ranks_die(j->a.trace, "cannot be written");
  if (to)
    fprintf(to, "# rank block rows compute_begin compute_end sent first_message last_message "
                "finished messages within; seconds since the rank's run began\n");
  for (int32_t i = 0; to && i < n * j->ranks; i++)
    print_block(to, i / n, i % n, &all[i / n * MAX_BLOCKS + i % n]);
  if (to && fclose(to) != 0)
    ranks_die(j->a.trace, "cannot be written");
  free(all);
}

/* Questions of options.cancel, at which each rank meets each other one. So all have computed a
 * block and sent what goes before one of them goes on to the second key tile of the next block, and
 * what they sent has come before what they say here. */
static int meetings, asks;
static int meet(void *context) {
  const ranks_job *j = context;
  for (int k = 0; asks < meetings && k < j->ranks; k++) {
    int mine = asks, other;
    MPI_Sendrecv(&mine, 1, MPI_INT, k, 0, &other, 1, MPI_INT, k, 0, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
  }
  asks++;
  return 0;
}

static int has_own_rows(const ranks_job *j, const amla_mpi_block *b) {
  int any = 0;
  for (int64_t row = b->row_begin; row < b->row_end; row++)
    any |= ranks_is_own(j, row);
  return any;
}

/* Every block but the last came while the next one was computed: nothing else fits the order of
 * events. It needs as many key tiles a block on each rank, eight or so for MPI to bring them in. */
static int came_meanwhile(const ranks_job *j) {
  amla_mpi_block blocks[MAX_BLOCKS];
  const int32_t n = get_trace(j, blocks);
  int ok = 1, came = 0;
  for (int32_t i = 0; i + 1 < n; i++) {
    const amla_mpi_block *b = &blocks[i];
    ok = ok && b->compute_end <= b->sent && b->sent <= b[1].compute_begin;
    if (!has_own_rows(j, b))
      continue;
    ok = ok && b->messages == j->ranks - 1 && b->messages_within == b->messages &&
         b[1].compute_begin <= b->first_message && b->last_message <= b[1].compute_end;
    came++;
  }
  for (int32_t i = 0; !ok && i < n; i++)
    print_block(stderr, j->rank, i, &blocks[i]);
  return ok && came > 0;
}

int ranks_overlap(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  int ok, all;
  ranks_run_whole(j, &whole);
  j->options.cancel = meet, j->options.cancel_context = j;
  ranks_create(j);
  asks = 0;
  ranks_run(j);
  MPI_Allreduce(&asks, &meetings, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  asks = 0;
  ranks_reset_outputs(j);
  ranks_run(j);
  ok = came_meanwhile(j);
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  all = all && (j->a.interleave || ranks_count_differences(j, &whole) == 0);
  if (j->rank == 0)
    printf("overlap  %d blocks on %d ranks, each came while the next one was computed: %s\n",
           j->info.blocks, j->ranks, all ? "ok" : "NOT SO");
  ranks_free_results(&whole);
  return all;
}
