/* SPDX-License-Identifier: Apache-2.0
 *
 * What amla_ranks can be asked for, and what commands share. Each gives 1, or 0 for a mismatch, and
 * rank 0's answer counts.
 */
#ifndef AMLA_RANKS_COMMANDS_H
#define AMLA_RANKS_COMMANDS_H

#include "ranks_results.h"

int ranks_run_once(ranks_job *j);
int ranks_check(ranks_job *j);
int ranks_steps(ranks_job *j);
int ranks_bench(ranks_job *j);
int ranks_time(ranks_job *j);
int ranks_duel(ranks_job *j);
int ranks_overlap(ranks_job *j);
int ranks_fault(ranks_job *j);

/* Runs of whole splits: the bits of one process. */
int ranks_check_runs(ranks_job *j, const ranks_results *whole);
/* Interleaved shards: fp64 within their bound, and the same bits whatever the threads. */
int ranks_check_interleaved(ranks_job *j, const ranks_results *whole);
/* Whichever it is, on all ranks at work, with the same answer on each. */
int ranks_check_all(ranks_job *j, const ranks_results *whole);
void ranks_print_measures(ranks_job *j);
/* The last run's blocks of all ranks. */
void ranks_write_trace(const ranks_job *j);

#endif
