/* SPDX-License-Identifier: Apache-2.0
 *
 * What was measured, and printing it.
 */
#ifndef AMLA_BENCH_REPORT_H
#define AMLA_BENCH_REPORT_H

#include "bench_cases.h"
#include "bench_rounds.h"
#include "peer.h"

enum { BENCH_MODES = 3 }; /* lazy, amla, flash come first in a result, in this order */

typedef struct bench_result {
  const bench_case *row;
  int rounds, n;
  bench_peak peak;
  bool disturbed; /* filled in by bench_mark_disturbed */
  bench_contestant list[BENCH_MODES + 1 + PEER_MAX_LIBRARIES * PEER_FORMS];
  /* Places in list, 0 = absent. */
  int reference, peers[PEER_MAX_LIBRARIES][PEER_FORMS];
} bench_result;

/* Marks cases whose peak was disturbed: its spread is above 10 %, or its best round is below 90 % of what a thread of
 * the same instruction set reached in another case. No target counts as met there. */
void bench_mark_disturbed(bench_result *results, int n);

void bench_print_tables(const bench_result *results, int n);
void bench_print_json(const bench_result *results, int n);

#endif
