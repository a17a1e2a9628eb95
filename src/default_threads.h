/* SPDX-License-Identifier: Apache-2.0
 *
 * How many threads a run has unless someone says: docs/performance.md.
 */
#ifndef AMLA_DEFAULT_THREADS_H
#define AMLA_DEFAULT_THREADS_H

#include <stdint.h>

/* A set of CPUs; CPU i is bit i % 64 of word i / 64. */
enum { AMLA_MAX_CPUS = 8192 };
typedef struct amla_cpu_set {
  uint64_t words[AMLA_MAX_CPUS / 64];
} amla_cpu_set;

/* OMP_NUM_THREADS if it is set; else what OpenMP has, but no more than what is left to us. */
int32_t amla_default_threads(void);

/* Cores of which some CPU is allowed, but no more than whole CPUs of the quota of time that our
 * control groups have; at least 1. `root` goes before the names of all files. */
int32_t amla_cores_left(const char *root, const amla_cpu_set *allowed);

#endif
