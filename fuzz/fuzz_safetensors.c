/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem files: any bytes are refused with a reason, or are a problem whose tensors lie inside
 * their buffers; then a plan for it is made and run, which ASan watches.
 */
#include "fuzz.h"

#include <string.h>

#include "harness/safetensors.h"
#include "harness/scopes.h"

enum { MAX_WORK = 1 << 24 }; /* multiply-adds: larger problems are read, not run */

static void run(harness_dataset *data) {
  amla_plan *plan = NULL;
  amla_detail detail;
  data->options.threads = 2;
  if (amla_plan_create(&plan, &data->problem, &data->options, &detail) != AMLA_OK) {
    FUZZ_CHECK(*detail.text, "refused without a reason");
    return;
  }
  const size_t scratch_bytes = amla_plan_scratch_bytes(plan);
  void *scratch = malloc(scratch_bytes ? scratch_bytes : 1);
  FUZZ_CHECK(scratch, "%zu bytes of scratch", scratch_bytes);
  if (amla_plan_run(plan, &data->tensors, scratch, scratch_bytes, &detail) != AMLA_OK)
    FUZZ_CHECK(*detail.text, "refused without a reason");
  free(scratch);
  amla_plan_destroy(plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
  harness_dataset data;
  char error[256] = "";
  if (harness_parse_safetensors("input", bytes, n_bytes, &data, error, sizeof error) != 0) {
    FUZZ_CHECK(*error && memchr(error, '\0', sizeof error), "refused without a reason");
    return 0;
  }
  const amla_problem *p = &data.problem;
  const double keys = (double)harness_most_keys(p);
  if (keys * p->b * p->s_q * p->h_q * p->d_qk <= MAX_WORK)
    run(&data);
  harness_free(&data);
  return 0;
}
