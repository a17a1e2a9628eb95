/* SPDX-License-Identifier: Apache-2.0
 *
 * Load, plan, run.
 */
#include "bench_job.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_memory.h"
#include "harness/names.h"

__attribute__((format(printf, 1, 2), noreturn)) static void give_up(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("bench: ", stderr);
  vfprintf(stderr, format, arguments);
  fputs("\n", stderr);
  va_end(arguments);
  exit(1);
}

/* ---- Data and truth ---- */

harness_case bench_parse(const char *problem) {
  harness_case c;
  char error[512];
  if (harness_parse_problem(problem, &c, error, sizeof error) != 0)
    give_up("%s: %s", problem, error);
  return c;
}

harness_dataset *bench_generate(const harness_case *c, const char *problem) {
  char error[512];
  harness_dataset *data = malloc(sizeof *data);
  if (data == NULL)
    give_up("out of memory");
  if (harness_generate(c, data, error, sizeof error) != 0)
    give_up("%s: %s", problem, error);
  void *kv = bench_huge_allocate(data->tensors.kv_bytes);
  data->tensors.kv = memcpy(kv, data->kv, data->tensors.kv_bytes);
  free(data->kv);
  data->kv = kv;
  return data;
}

harness_dataset *bench_load(const char *problem) {
  const harness_case c = bench_parse(problem);
  return bench_generate(&c, problem);
}

void bench_unload(harness_dataset *data) {
  if (data != NULL)
    harness_free(data);
  free(data);
}

const harness_truth *bench_truth(const char *problem, const harness_dataset *data) {
  enum { MAX_TRUTHS = 64 };
  static struct {
    const char *problem;
    harness_truth truth;
  } known[MAX_TRUTHS];
  int i = 0;
  while (i < MAX_TRUTHS && known[i].problem != NULL && strcmp(known[i].problem, problem) != 0)
    i++;
  if (i == MAX_TRUTHS)
    give_up("more than %d problems", MAX_TRUTHS);
  if (known[i].problem == NULL && harness_truth_compute(data, &known[i].truth) != 0)
    give_up("%s: out of memory for the truth", problem);
  known[i].problem = problem;
  return &known[i].truth;
}

/* ---- Plans ---- */

bench_job *bench_job_create(const harness_dataset *data, amla_isa cap, amla_rescale mode,
                            int threads) {
  amla_options options = data->options;
  amla_detail detail;
  bench_job *job = calloc(1, sizeof *job);
  if (job == NULL)
    give_up("out of memory");
  options.backend = AMLA_BACKEND_CPU;
  options.isa = cap;
  options.rescale = mode;
  options.threads = threads;
  if (amla_plan_create(&job->plan, &data->problem, &options, &detail) != AMLA_OK)
    give_up("%s", detail.text);
  job->data = data;
  job->scratch_bytes = amla_plan_scratch_bytes(job->plan);
  job->scratch = bench_huge_allocate(job->scratch_bytes);
  job->info = (amla_plan_info)AMLA_PLAN_INFO_INIT;
  if (amla_plan_query(job->plan, &job->info, &detail) != AMLA_OK)
    give_up("%s", detail.text);
  return job;
}

void bench_job_run(void *context) {
  const bench_job *job = context;
  amla_detail detail;
  if (amla_plan_run(job->plan, &job->data->tensors, job->scratch, job->scratch_bytes, &detail) !=
      AMLA_OK)
    give_up("%s", detail.text);
}

void bench_job_destroy(bench_job *job) {
  if (job == NULL)
    return;
  amla_plan_destroy(job->plan);
  free(job->scratch);
  free(job);
}
