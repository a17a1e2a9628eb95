/* SPDX-License-Identifier: Apache-2.0
 *
 * Timing in many short rounds. A round runs every contestant for a slice of some milliseconds, then
 * the FMA peak of the same threads and instruction set, then, if wanted, memory reads. Neighbours
 * on a shared machine disturb all of them alike. The best slice of each is what it can do here; the
 * median and the spread say how quiet the machine was.
 */
#ifndef AMLA_HARNESS_ROUNDS_H
#define AMLA_HARNESS_ROUNDS_H

#include <amla/amla.h>
#include <stdbool.h>

typedef struct harness_series {
  double best, median, spread; /* spread: distance between the quartiles over the median */
} harness_series;

/* values: [n], n >= 1, sorted by it. */
harness_series harness_summarise(double *values, int n, bool least_is_best);

enum { HARNESS_MAX_CONTESTANTS = 14 };

typedef struct harness_contestant {
  void (*run)(void *context);
  void *context;
  harness_series seconds; /* measured: of one run; best = least */
  int repetitions;        /* measured: runs in a slice */
} harness_contestant;

typedef struct harness_rounds {
  amla_isa isa;    /* of the FMA peak */
  int threads;     /* of the FMA peak and the reads */
  int least;       /* rounds, however long they take */
  double seconds;  /* then more rounds until so many are over */
  bool warm;       /* a slice begins with a run that does not count: it brings the caches back */
  bool with_reads; /* measure the read bandwidth too */
  void (*progress)(void *context, double fraction); /* after each round; may be NULL */
  void *context;
  int n;                          /* measured: rounds */
  harness_series peak, bandwidth; /* measured: FLOP/s; bytes/s, 0 = not measured */
} harness_rounds;

/* contestants: [n], 0 <= n <= HARNESS_MAX_CONTESTANTS. False when out of memory. */
bool harness_measure(harness_rounds *rounds, harness_contestant *contestants, int n);

#endif
