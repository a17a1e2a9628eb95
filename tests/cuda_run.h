/* SPDX-License-Identifier: Apache-2.0
 *
 * From a problem string to a checked result of the CUDA backend: on a GPU, or on the emulation,
 * whichever object is loaded. What test_run.h is for host memory.
 */
#ifndef AMLA_TEST_CUDA_RUN_H
#define AMLA_TEST_CUDA_RUN_H

#include "test_run.h"

#include "harness/cuda_memory.h"

static const char *const kernels[] = {"mma32", "mma64", "wgmma2", "wgmma3"};

static const amla_cuda_tools *tools; /* set by find_backend */

/* Says what computes, or why nothing does. */
static inline bool find_backend(void) {
  char why[256];
  tools = harness_cuda_tools(why, sizeof why);
  if (tools)
    printf("cuda: %s\n", tools->device_name());
  else
    printf("skipped: cuda is absent: %s\n", why);
  fflush(stdout);
  return tools != NULL;
}

static inline amla_options cuda_options(amla_rescale rescale, int32_t split_tokens) {
  return make_options(AMLA_BACKEND_CUDA, rescale, AMLA_ISA_AUTO, 1, split_tokens);
}

/* What is about to run: everything is on the device. */
typedef struct device_job {
  const harness_dataset *data;
  const amla_plan *plan;
  amla_tensors *tensors; /* of the device */
  void *scratch;
  size_t scratch_bytes;
} device_job;

static inline amla_status run_job(const device_job *job, amla_detail *detail) {
  return amla_plan_run(job->plan, job->tensors, job->scratch, job->scratch_bytes, detail);
}

/* One run on the device: what is in `data` goes there, results come back. Scratch is exactly as
 * long as asked for, all NaN, between guard bytes. Returns run's status; the status word, if
 * wanted. */
static inline amla_status device_run_by(amla_status (*start)(const device_job *, amla_detail *),
                                        harness_dataset *data, const amla_options *options,
                                        const char *kernel, uint32_t *status_word,
                                        amla_detail *detail) {
  harness_device_data device;
  amla_plan *plan = NULL;
  char why[256];
  amla_options o = *options;
  amla_problem problem = data->problem;
  problem.memory = AMLA_MEMORY_DEVICE;
  harness_take_options(&o, &data->options);
  setenv("AMLA_CUDA_KERNEL", kernel, 1);
  const amla_status created = amla_plan_create(&plan, &problem, &o, detail);
  if (created != AMLA_OK)
    return created;
  if (!harness_device_upload(&device, tools, data, why, sizeof why))
    fail_msg("upload: %s", why);

  const size_t bytes = amla_plan_scratch_bytes(plan), whole = bytes + 2 * GUARD_BYTES;
  unsigned char *image = malloc(whole);
  char *scratch = tools->allocate(whole);
  assert_non_null(image);
  assert_non_null(scratch);
  memset(image, 0xff, whole);
  memset(image, GUARD_PATTERN, GUARD_BYTES);
  memset(image + GUARD_BYTES + bytes, GUARD_PATTERN, GUARD_BYTES);
  tools->upload(scratch, image, whole);

  const device_job job = {data, plan, &device.tensors, scratch + GUARD_BYTES, bytes};
  const amla_status status = start(&job, detail);
  const char *failed = harness_device_download(&device, data);
  if (!failed)
    failed = tools->download(image, scratch, whole);
  if (failed)
    fail_msg("kernel %s: %s", kernel, failed);
  if (!all_bytes_are(image, GUARD_BYTES, GUARD_PATTERN) ||
      !all_bytes_are(image + GUARD_BYTES + bytes, GUARD_BYTES, GUARD_PATTERN))
    fail_msg("kernel %s: bytes outside the scratch were written", kernel);
  if (status_word)
    memcpy(status_word, image + GUARD_BYTES, sizeof *status_word);
  tools->release(scratch);
  free(image);
  harness_device_free(&device);
  amla_plan_destroy(plan);
  return status;
}

static inline amla_status device_run(harness_dataset *data, const amla_options *options,
                                     const char *kernel, uint32_t *status_word,
                                     amla_detail *detail) {
  return device_run_by(run_job, data, options, kernel, status_word, detail);
}

static inline void run_on_device(harness_dataset *data, const char *problem,
                                 const amla_options *options, const char *kernel) {
  amla_detail detail;
  uint32_t status_word;
  harness_reset_outputs(data);
  const amla_status status = device_run(data, options, kernel, &status_word, &detail);
  if (status != AMLA_OK)
    fail_msg("'%s' %s %s: %s: %s", problem, kernel, describe_options(options),
             amla_status_name(status), detail.text);
  if (status_word != 0)
    fail_msg("'%s' %s %s: status word %u", problem, kernel, describe_options(options), status_word);
  if (damaged_padding(data))
    fail_msg("'%s' %s %s: elements between the rows of out were written", problem, kernel,
             describe_options(options));
}

/* Against fp64, within the bound for P in the type of kv. */
static inline void check_on_device(const char *problem, const amla_options *options,
                                   const char *kernel) {
  harness_dataset data;
  harness_truth truth;
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  run_on_device(&data, problem, options, kernel);
  const harness_error e = harness_compare_rounded_p(&data, &truth, data.problem.kv_type);
  if (!e.ok)
    fail_msg(
        "'%s' %s %s: row %lld is %.3g times its bound away (relative %.3g, max %.3g, LSE %.3g)",
        problem, kernel, describe_options(options), (long long)e.worst_row, e.worst_of_bound,
        e.rel_error, e.max_abs_error, e.lse_max_abs_error);
  harness_truth_free(&truth);
  harness_free(&data);
}

#endif
