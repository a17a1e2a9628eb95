/* SPDX-License-Identifier: Apache-2.0
 *
 * run, check and steps: results of ranks against those of one process and fp64.
 */
#include <stdio.h>

#include "ranks_commands.h"

/* The first n ranks do what is to be done on them, and the others wait. */
static int on_ranks(ranks_job *j, int n, const ranks_results *whole,
                    int (*what)(ranks_job *, const ranks_results *)) {
  int rank, ok = 1, all;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_split(MPI_COMM_WORLD, rank < n ? 0 : 1, rank, &j->comm);
  MPI_Comm_rank(j->comm, &j->rank);
  MPI_Comm_size(j->comm, &j->ranks);
  if (rank < n)
    ok = what(j, whole);
  MPI_Comm_free(&j->comm);
  j->comm = MPI_COMM_WORLD;
  MPI_Comm_rank(j->comm, &j->rank);
  MPI_Comm_size(j->comm, &j->ranks);
  MPI_Allreduce(&ok, &all, 1, MPI_INT, MPI_MIN, j->comm);
  return all;
}

/* Runs of whole splits: the bits of one process. */
int ranks_check_runs(ranks_job *j, const ranks_results *whole) {
  ranks_create(j);
  ranks_reset_outputs(j);
  ranks_run(j);
  const int different = ranks_count_differences(j, whole);
  ranks_print_work(j);
  if (j->rank == 0)
    printf("ranks    %d ranks against one process, split %lld: %s\n", j->ranks,
           (long long)j->info.split_tokens, different ? "OTHER BITS" : "the same bits");
  ranks_destroy(j);
  return different == 0;
}

/* Interleaved shards: fp64 within their bound, and the same bits whatever the threads. */
int ranks_check_interleaved(ranks_job *j, const ranks_results *whole) {
  ranks_results first = ranks_make_results(j);
  int ok = 1;
  ranks_create(j);
  ranks_reset_outputs(j);
  ranks_run(j);
  ranks_copy_results(j, &first);
  const int strays = ranks_count_differences(j, &first);
  ranks_print_work(j);
  ranks_destroy(j);
  j->options.threads++;
  ranks_create(j);
  ranks_reset_outputs(j);
  ranks_run(j);
  const int different = ranks_count_differences(j, &first);
  ranks_destroy(j);
  j->options.threads--;
  ranks_gather(j);
  if (j->rank == 0) {
    const harness_error e = ranks_judge(j, 1);
    const int same = ranks_same_max_logits(j, whole);
    ranks_print_error("merged", &e);
    printf("ranks    %d ranks interleaved by %d, bits with another thread: %s; %s\n", j->ranks,
           j->a.interleave, different ? "OTHER" : "the same",
           strays ? "WROTE ROWS OF OTHERS" : "no other row written");
    if (!same)
      printf("ranks    max_logits: MISMATCH\n");
    ok = e.ok && same && !different && !strays;
  }
  ranks_free_results(&first);
  return ok;
}

int ranks_check_all(ranks_job *j, const ranks_results *whole) {
  if (j->a.interleave)
    ranks_compute_truth(j);
  int ok = (j->a.interleave ? ranks_check_interleaved : ranks_check_runs)(j, whole);
  MPI_Bcast(&ok, 1, MPI_INT, 0, j->comm);
  return ok;
}

/* On all ranks, which say what they refuse, then on 1, 2, 4, ... of them. */
static int check_counts(ranks_job *j, const ranks_results *whole) {
  int (*what)(ranks_job *, const ranks_results *) =
      j->a.interleave ? ranks_check_interleaved : ranks_check_runs;
  const int all = j->ranks;
  int ok = what(j, whole);
  for (int n = 1; n < all; n *= 2)
    ok &= on_ranks(j, n, whole, what);
  return ok;
}

/* One process against fp64, then ranks. Of a table many times over fp64 would take too long. */
int ranks_check(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  int ok = 1;
  ranks_run_whole(j, &whole);
  if (j->a.repeat == 1)
    ranks_compute_truth(j);
  if (j->rank == 0 && j->a.repeat == 1) {
    const harness_error e = ranks_judge(j, 0);
    ranks_print_error("fp64", &e);
    ok = e.ok;
  }
  ok &= check_counts(j, &whole);
  ranks_free_results(&whole);
  return ok;
}

/* One run against fp64 or what the file has, and its time. */
int ranks_run_once(ranks_job *j) {
  int ok = 1;
  ranks_compute_truth(j);
  ranks_create(j);
  ranks_reset_outputs(j);
  ranks_run(j);
  ranks_print_work(j);
  ranks_gather(j);
  if (j->rank == 0) {
    const harness_error e = ranks_judge(j, j->a.interleave > 0);
    ranks_print_error("fp64", &e);
    ok = e.ok;
  }
  if (j->rank == 0 && (j->data.out_ref || j->data.lse_ref)) {
    const harness_error e = harness_compare_ref(&j->data, &j->truth);
    ranks_print_error("file", &e);
    ok = ok && e.ok;
  }
  ranks_print_measures(j);
  ranks_destroy(j);
  return ok;
}

/* A growing sequence: no key moves, of runs the last shard grows. */
static int step(ranks_job *j, ranks_results *whole) {
  int wrong;
  ranks_run_whole(j, whole);
  ranks_reset_outputs(j);
  ranks_run(j);
  if (!j->a.interleave)
    return ranks_count_differences(j, whole) == 0;
  ranks_gather(j);
  ranks_compute_truth(j);
  wrong = j->rank == 0 && !ranks_judge(j, 1).ok;
  harness_truth_free(&j->truth);
  j->truth = (harness_truth){0};
  return !wrong;
}

int ranks_steps(ranks_job *j) {
  ranks_results whole = ranks_make_results(j);
  const int32_t last = j->data.problem.sk;
  int wrong = 0;
  if (j->a.steps > last)
    ranks_leave(1, "--steps", "must be <= sk");
  if (j->a.interleave)
    ranks_create(j); /* caches of the longest */
  for (int32_t i = 0; i < j->data.problem.b; i++)
    j->data.seqlens_k[i] = last - j->a.steps + 1;
  if (!j->a.interleave)
    ranks_create(j);
  for (int n = 0; n < j->a.steps; n++) {
    wrong += !step(j, &whole);
    for (int32_t i = 0; i < j->data.problem.b; i++)
      j->data.seqlens_k[i]++;
  }
  if (j->rank == 0 && j->a.interleave)
    printf("steps    %d steps on %d ranks, interleaved by %d, no key moved: %d beyond the bound\n",
           j->a.steps, j->ranks, j->a.interleave, wrong);
  else if (j->rank == 0)
    printf("steps    %d steps on %d ranks, split %lld, no key moved: %d with other bits than one "
           "process\n",
           j->a.steps, j->ranks, (long long)j->info.split_tokens, wrong);
  ranks_free_results(&whole);
  ranks_destroy(j);
  return wrong == 0;
}
