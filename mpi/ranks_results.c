/* SPDX-License-Identifier: Apache-2.0
 *
 * See ranks_results.h.
 */
#include "ranks_results.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- One process, for comparison ---- */

ranks_results ranks_make_results(const ranks_job *j) {
  const amla_tensors *t = &j->data.tensors;
  return (ranks_results){ranks_allocate(t->out_bytes), ranks_allocate(t->lse_bytes),
                         ranks_allocate(t->lse_bytes)};
}

void ranks_free_results(ranks_results *r) { free(r->out), free(r->lse), free(r->max_logits); }

void ranks_copy_results(const ranks_job *j, ranks_results *r) {
  memcpy(r->out, j->data.out, j->data.tensors.out_bytes);
  memcpy(r->lse, j->data.lse, j->data.tensors.lse_bytes);
  if (j->max_logits)
    memcpy(r->max_logits, j->max_logits, j->data.tensors.lse_bytes);
}

void ranks_reset_outputs(ranks_job *j) {
  harness_reset_outputs(&j->data);
  if (j->max_logits)
    memset(j->max_logits, 0xA5, j->data.tensors.lse_bytes);
}

/* Rank 0 runs the whole problem, and all ranks get its result. */
void ranks_run_whole(ranks_job *j, ranks_results *r) {
  const amla_tensors *t = &j->data.tensors;
  amla_detail why = {""};
  if (j->rank == 0) {
    amla_plan *plan;
    if (amla_plan_create(&plan, &j->data.problem, &j->options, &why) != AMLA_OK)
      ranks_die("one process", why.text);
    const size_t bytes = amla_plan_scratch_bytes(plan);
    void *scratch = malloc(bytes);
    if (!scratch || amla_plan_run(plan, t, scratch, bytes, &why) != AMLA_OK)
      ranks_die("one process", why.text);
    amla_plan_destroy(plan);
    free(scratch);
    ranks_copy_results(j, r);
  }
  MPI_Bcast(r->out, (int)t->out_bytes, MPI_BYTE, 0, j->comm);
  MPI_Bcast(r->lse, (int)t->lse_bytes, MPI_BYTE, 0, j->comm);
  MPI_Bcast(r->max_logits, (int)t->lse_bytes, MPI_BYTE, 0, j->comm);
}

int ranks_is_own(const ranks_job *j, int64_t row) {
  const int64_t head = row % j->data.problem.h_q;
  return head >= j->info.head_begin && head < j->info.head_end;
}

/* What a rank does not own still has the pattern that was there before. */
static int differs(const void *got, const void *want, size_t bytes, int own) {
  const unsigned char *g = got, *w = want;
  for (size_t i = 0; i < bytes; i++)
    if (g[i] != (own ? w[i] : 0xA5))
      return 1;
  return 0;
}

/* Rows with other bits, over all ranks: of the rank's heads those of `want`, of others the guard
 * pattern. */
int ranks_count_differences(const ranks_job *j, const ranks_results *want) {
  const amla_problem *p = &j->data.problem;
  const size_t size = harness_dtype_bytes(p->out_type), bytes = (size_t)p->d_v * size;
  int different = 0, all;
  for (int64_t row = 0; row < harness_rows(&j->data); row++) {
    const size_t at = (size_t)harness_out_offset(p, row) * size;
    const size_t sum_at = (size_t)harness_lse_offset(&j->data, row) * sizeof(float);
    const int own = ranks_is_own(j, row);
    different += differs((char *)j->data.out + at, (char *)want->out + at, bytes, own);
    different +=
        differs((char *)j->data.lse + sum_at, (char *)want->lse + sum_at, sizeof(float), own);
    if (j->max_logits)
      different += differs((char *)j->max_logits + sum_at, (char *)want->max_logits + sum_at,
                           sizeof(float), own);
  }
  MPI_Allreduce(&different, &all, 1, MPI_INT, MPI_SUM, j->comm);
  return all;
}

/* ---- fp64 ---- */

void ranks_compute_truth(ranks_job *j) {
  if (j->rank == 0 && harness_truth_compute(&j->data, &j->truth) != 0)
    ranks_die("fp64", "no memory");
}

static void sum_bytes(const ranks_job *j, void *at, size_t bytes) {
  if (j->rank == 0)
    MPI_Reduce(MPI_IN_PLACE, at, (int)bytes, MPI_BYTE, MPI_BOR, 0, j->comm);
  else
    MPI_Reduce(at, NULL, (int)bytes, MPI_BYTE, MPI_BOR, 0, j->comm);
}

/* Rank 0 gets the rows of all. Those of others are cleared, so that bytes add up. */
void ranks_gather(ranks_job *j) {
  const amla_problem *p = &j->data.problem;
  const size_t size = harness_dtype_bytes(p->out_type);
  for (int64_t row = 0; row < harness_rows(&j->data); row++) {
    const int64_t at = harness_lse_offset(&j->data, row);
    if (ranks_is_own(j, row))
      continue;
    memset((char *)j->data.out + (size_t)harness_out_offset(p, row) * size, 0,
           (size_t)p->d_v * size);
    j->data.lse[at] = 0.0f;
    if (j->max_logits)
      j->max_logits[at] = 0.0f;
  }
  sum_bytes(j, j->data.out, j->data.tensors.out_bytes);
  sum_bytes(j, j->data.lse, j->data.tensors.lse_bytes);
  if (j->max_logits)
    sum_bytes(j, j->max_logits, j->data.tensors.lse_bytes);
}

/* Rank 0's outputs against fp64: by the bound of one process, or by that of merged results. */
harness_error ranks_judge(const ranks_job *j, int merged) {
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  amla_plan *plan;
  if (amla_plan_create(&plan, &j->data.problem, &j->options, NULL) != AMLA_OK)
    ranks_die("fp64", "no plan");
  amla_plan_query(plan, &info, NULL);
  amla_plan_destroy(plan);
  if (merged)
    return harness_compare_merged(&j->data, &j->truth, &info, j->ranks);
  return harness_compare_plan(&j->data, &j->truth, &info);
}

/* Largest scores are within the bound of a score, on either side. */
int ranks_same_max_logits(const ranks_job *j, const ranks_results *whole) {
  const float *want = whole->max_logits;
  int ok = 1;
  for (int64_t row = 0; j->max_logits && row < harness_rows(&j->data); row++) {
    const int64_t at = harness_lse_offset(&j->data, row);
    const double limit = 0x1p-23 * (4 + sqrt(j->data.problem.d_qk)) * j->truth.score_abs[row];
    ok = ok && (j->max_logits[at] == want[at] ||
                fabs((double)j->max_logits[at] - (double)want[at]) <= limit);
  }
  return ok;
}

/* ---- Report ---- */

void ranks_print_work(const ranks_job *j) {
  double work[3] = {(double)j->info.n_row_keys, (double)j->info.sent_bytes, j->info.wait_seconds};
  double sum[3], max[3];
  MPI_Reduce(work, sum, 3, MPI_DOUBLE, MPI_SUM, 0, j->comm);
  MPI_Reduce(work, max, 3, MPI_DOUBLE, MPI_MAX, 0, j->comm);
  if (j->rank == 0)
    printf(
        "work     %.0f row-keys a rank, max / mean %.3f; sent %.0f bytes a rank, %d records of a "
        "row, %d blocks; %d of %d messages not waited for\n",
        sum[0] / j->ranks, sum[0] > 0 ? max[0] * j->ranks / sum[0] : 1.0, sum[1] / j->ranks,
        j->info.max_entries, j->info.blocks, j->info.messages_early, j->info.messages);
}

void ranks_print_error(const char *name, const harness_error *e) {
  printf("%-8s %.2e relative, LSE %.2e largest, %.2g of the bound: %s\n", name, e->rel_error,
         e->lse_max_abs_error, e->worst_of_bound, e->ok ? "ok" : "MISMATCH");
}
