/* SPDX-License-Identifier: Apache-2.0
 *
 * What was measured, and printing it.
 */
#ifndef AMLA_BENCH_REPORT_H
#define AMLA_BENCH_REPORT_H

#include "bench_cases.h"
#include "harness/rounds.h"
#include "harness/truth.h"
#include "peer.h"

enum { BENCH_MODES = 3 }; /* lazy, amla, flash come first in a result, in this order */

typedef struct bench_contestant {
  char name[32];       /* "lazy", "OpenBLAS blocked" */
  double flops;        /* useful work of one run */
  harness_error error; /* against fp64 */
} bench_contestant;

enum { BENCH_MAX_CONTESTANTS = BENCH_MODES + 1 + PEER_MAX_LIBRARIES * PEER_FORMS };

typedef struct bench_result {
  const bench_case *row;
  harness_rounds rounds;
  int n;
  bool disturbed; /* filled in by bench_mark_disturbed */
  bench_contestant list[BENCH_MAX_CONTESTANTS];
  harness_contestant timed[BENCH_MAX_CONTESTANTS]; /* in the same order */
  /* Places in list, 0 = absent. */
  int reference, peers[PEER_MAX_LIBRARIES][PEER_FORMS];
} bench_result;

/* Marks cases whose peak was disturbed: its spread is above 10 %, or its best round is below 90 %
 * of what a thread of the same instruction set reached in another case. No target counts as met
 * there. */
void bench_mark_disturbed(bench_result *results, int n);

void bench_print_tables(const bench_result *results, int n);
void bench_print_json(const bench_result *results, int n);

#endif
