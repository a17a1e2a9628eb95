/* SPDX-License-Identifier: Apache-2.0
 *
 * What is measured and what it should reach: one row per case, as data.
 */
#ifndef AMLA_BENCH_CASES_H
#define AMLA_BENCH_CASES_H

#include <amla/amla.h>
#include <stdbool.h>

enum { BENCH_ALL_THREADS = 0 };

/* What a figure should reach with each instruction set; 0 = none. Portable C has no targets: it is
 * there to be right. */
enum { BENCH_ISAS = AMLA_ISA_AVX512 + 1 }; /* up to the last that has targets */
typedef struct bench_target {
  double with[BENCH_ISAS]; /* by amla_isa */
} bench_target;

double bench_target_for(bench_target target, amla_isa isa);
bool bench_has_target(bench_target target); /* with any instruction set */

typedef struct bench_case {
  const char *group;       /* rows of one group follow one another */
  const char *problem;     /* harness problem string */
  int threads;             /* 1 or BENCH_ALL_THREADS */
  amla_isa isa;            /* cap */
  bench_target of_peak;    /* fraction of the FMA peak of the same instruction set and threads */
  const char *reference;   /* problem timed in the same rounds; NULL = none */
  double reference_target; /* useful FLOP/s over the reference's, with every instruction set */
  bench_target fused; /* times faster than the faster of a library's unfused and blocked forms */
  bench_target bare;  /* times faster than a library's two bare sgemms with softmax */
  bool quick;         /* also in the short run */
} bench_case;

extern const bench_case bench_cases[];
extern const int bench_n_cases;

#endif
