/* SPDX-License-Identifier: Apache-2.0
 *
 * bench and time: what a run takes, of its slowest rank.
 */
#include <stdio.h>
#include <string.h>

#include "ranks_commands.h"

/* The best round: of its slowest rank seconds, seconds of waiting, messages and bytes sent. */
enum { SECONDS, WAITING, MESSAGES, SENT_BYTES, N_MEASURES };

static void measure(ranks_job *j, double best[N_MEASURES]) {
  best[SECONDS] = 1e30;
  for (int i = 0; i < j->a.rounds; i++) {
    MPI_Barrier(MPI_COMM_WORLD);
    ranks_run(j);
    const double mine[N_MEASURES] = {j->info.seconds, j->info.wait_seconds, j->info.messages,
                                     (double)j->info.sent_bytes};
    double slowest[N_MEASURES];
    MPI_Allreduce(mine, slowest, N_MEASURES, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    if (slowest[SECONDS] < best[SECONDS])
      memcpy(best, slowest, sizeof slowest);
  }
}

void ranks_print_measures(ranks_job *j) {
  double best[N_MEASURES], bytes, sum;
  measure(j, best);
  bytes = (double)j->info.sent_bytes;
  MPI_Reduce(&bytes, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  if (j->rank == 0)
    printf("time     %.6f s best of %d, slowest rank; %.0f bytes a rank sent, %.1f %% of the time "
           "not hidden\n",
           best[SECONDS], j->a.rounds, sum / j->ranks, 100.0 * best[WAITING] / best[SECONDS]);
}

int ranks_time(ranks_job *j) {
  double best[N_MEASURES];
  ranks_create(j);
  measure(j, best);
  if (j->rank == 0)
    printf("{\"ranks\": %d, \"seconds\": %.9f, \"wait_seconds\": %.9f, \"messages\": %.0f, "
           "\"sent_bytes\": %.0f, \"entries\": %d}\n",
           j->ranks, best[SECONDS], best[WAITING], best[MESSAGES], best[SENT_BYTES],
           j->info.max_entries);
  ranks_destroy(j);
  return 1;
}

/* On all ranks only. */
int ranks_bench(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  ranks_run_whole(j, &whole);
  const int ok = ranks_check_all(j, &whole);
  ranks_free_results(&whole);
  if (!ok)
    return 0;
  ranks_create(j);
  ranks_print_measures(j);
  if (j->a.trace)
    ranks_write_trace(j);
  ranks_destroy(j);
  return 1;
}
