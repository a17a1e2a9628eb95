/* SPDX-License-Identifier: Apache-2.0
 *
 * What runs make, of all rows: those of ranks beside those of one process and fp64.
 */
#ifndef AMLA_RANKS_RESULTS_H
#define AMLA_RANKS_RESULTS_H

#include "ranks_job.h"

typedef struct ranks_results {
  void *out, *lse, *max_logits;
} ranks_results;

ranks_results ranks_make_results(const ranks_job *j);
void ranks_free_results(ranks_results *r);
void ranks_copy_results(const ranks_job *j, ranks_results *r);
void ranks_reset_outputs(ranks_job *j);

/* Rank 0 runs the whole problem, and all ranks get its result. */
void ranks_run_whole(ranks_job *j, ranks_results *r);

int ranks_is_own(const ranks_job *j, int64_t row);
/* Rows with other bits, over all ranks: of the rank's heads those of `want`, of others the guard
 * pattern. */
int ranks_count_differences(const ranks_job *j, const ranks_results *want);

/* Of rank 0. */
void ranks_compute_truth(ranks_job *j);
/* Rank 0 gets the rows of all. */
void ranks_gather(ranks_job *j);
/* Rank 0's outputs against fp64: by the bound of one process, or by that of merged results. */
harness_error ranks_judge(const ranks_job *j, int merged);
/* Largest scores are within the bound of a score, on either side. */
int ranks_same_max_logits(const ranks_job *j, const ranks_results *whole);

void ranks_print_work(const ranks_job *j);
void ranks_print_error(const char *name, const harness_error *e);

#endif
