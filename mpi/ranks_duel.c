/* SPDX-License-Identifier: Apache-2.0
 *
 * duel: ranks of one thread against as many threads of one process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "harness/rounds.h"
#include "ranks_commands.h"

typedef struct one_process {
  amla_plan *plan;
  void *scratch;
  size_t bytes;
} one_process;

static one_process make_one_process(const ranks_job *j) {
  one_process one = {0};
  amla_options o = j->options;
  amla_detail why;
  o.threads = j->ranks * j->a.threads;
  if (amla_plan_create(&one.plan, &j->data.problem, &o, &why) != AMLA_OK)
    ranks_die("one process", why.text);
  one.bytes = amla_plan_scratch_bytes(one.plan);
  one.scratch = ranks_allocate(one.bytes);
  return one;
}

/* OpenMP's workers stop spinning meanwhile, which takes them up to 7 ms. Neither side starts warmer
 * than the other. */
static void rest(void) { nanosleep(&(struct timespec){0, 10000000}, NULL); }

/* Seconds of a run on rank 0, while others sleep: a barrier of MPI's would keep a core busy. */
static double time_one_process(const ranks_job *j, const one_process *one) {
  MPI_Request all_done;
  int done = 0;
  rest();
  MPI_Barrier(j->comm);
  const double before = MPI_Wtime();
  if (j->rank == 0 &&
      amla_plan_run(one->plan, &j->data.tensors, one->scratch, one->bytes, NULL) != AMLA_OK)
    ranks_die("one process", "refused");
  const double seconds = MPI_Wtime() - before;
  MPI_Ibarrier(j->comm, &all_done);
  while (MPI_Test(&all_done, &done, MPI_STATUS_IGNORE), !done)
    nanosleep(&(struct timespec){0, 200000}, NULL);
  return seconds;
}

static double time_ranks(ranks_job *j) {
  double slowest;
  rest();
  MPI_Barrier(j->comm);
  ranks_run(j);
  MPI_Allreduce(&j->info.seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, j->comm);
  return slowest;
}

static void print_duel(const ranks_job *j, double *one_seconds, double *ranks_seconds) {
  const harness_series one = harness_summarise(one_seconds, j->a.rounds, true);
  const harness_series ranks = harness_summarise(ranks_seconds, j->a.rounds, true);
  printf("duel     %s: one process, %d threads: %.1f us best, %.1f median; %d ranks: %.1f best, "
         "%.1f median\n",
         j->a.problem, j->ranks * j->a.threads, one.best * 1e6, one.median * 1e6, j->ranks,
         ranks.best * 1e6, ranks.median * 1e6);
  printf("duel     ranks have %.3f of its speed by the best, %.3f by the median; they add %.1f us "
         "to the median\n",
         one.best / ranks.best, one.median / ranks.median, (ranks.median - one.median) * 1e6);
}

/* Turn and turn about, after results have been compared. */
int ranks_duel(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  const size_t n = (size_t)j->a.rounds;
  double *one = ranks_allocate(n * sizeof *one), *ranks = ranks_allocate(n * sizeof *ranks);
  ranks_run_whole(j, &whole);
  const int ok = ranks_check_all(j, &whole);
  ranks_free_results(&whole);
  one_process process = make_one_process(j);
  ranks_create(j);
  for (size_t i = 0; ok && i < n; i++) {
    one[i] = time_one_process(j, &process);
    ranks[i] = time_ranks(j);
  }
  if (ok && j->rank == 0)
    print_duel(j, one, ranks);
  amla_plan_destroy(process.plan);
  free(process.scratch), free(one), free(ranks);
  return ok;
}
