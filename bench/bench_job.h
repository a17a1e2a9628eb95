/* SPDX-License-Identifier: Apache-2.0
 *
 * Our side of a contest: a problem generated with its KV cache on huge pages, its truth (computed
 * once per problem and kept), and a plan ready to run.
 */
#ifndef AMLA_BENCH_JOB_H
#define AMLA_BENCH_JOB_H

#include "harness/truth.h"

/* All end the program with a message when they fail. */
harness_case bench_parse(const char *problem);
harness_dataset *bench_generate(const harness_case *c, const char *problem); /* named in messages */
harness_dataset *bench_load(const char *problem);
const harness_truth *bench_truth(const char *problem, const harness_dataset *data);
void bench_unload(harness_dataset *data);

typedef struct bench_job {
  amla_plan *plan;
  const harness_dataset *data;
  void *scratch;
  size_t scratch_bytes;
  amla_plan_info info;
} bench_job;

bench_job *bench_job_create(const harness_dataset *data, amla_isa cap, amla_rescale mode,
                            int threads);
void bench_job_run(void *job);
void bench_job_destroy(bench_job *job);

#endif
