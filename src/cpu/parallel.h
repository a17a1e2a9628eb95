/* SPDX-License-Identifier: Apache-2.0
 *
 * Tasks on the caller's pool or on OpenMP's threads.
 */
#ifndef AMLA_CPU_PARALLEL_H
#define AMLA_CPU_PARALLEL_H

#include <amla/amla.h>

#ifndef AMLA_MIN_THREAD_FLOPS /* fuzz_run and soak set less: threads share small problems too */
#define AMLA_MIN_THREAD_FLOPS 4000000 /* about what waking a thread costs */
#endif

/* OpenMP might hang here, as the process was forked. A pool of the caller's is its own affair. */
int amla_is_alone(const amla_options *options);

/* On how many threads work of so many FLOPs is worth sharing. */
static inline int32_t amla_useful_threads(const amla_options *options, double flops) {
  const double useful = flops / AMLA_MIN_THREAD_FLOPS + 1.0;
  if (amla_is_alone(options))
    return 1;
  return useful < options->threads ? (int32_t)useful : options->threads;
}

/* task(argument, i) for each i < n, in the caller's floating-point environment; n >= 2. */
void amla_run_parallel(const amla_options *options, int32_t n,
                       void (*task)(void *argument, int32_t i), void *argument);

#endif
