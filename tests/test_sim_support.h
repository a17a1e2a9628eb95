/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the simulated NPU share: launching a small kernel, and its report in case of
 * failure.
 */
#ifndef AMLA_TEST_SIM_SUPPORT_H
#define AMLA_TEST_SIM_SUPPORT_H

#include "test_support.h"

#include "sim/npu_isa.h"
#include "sim/npu_run.h"

static inline npu_chip *make_chip(const char *preset, npu_mode mode) {
  npu_chip *chip = npu_chip_create(npu_find_preset(preset), mode);
  assert_non_null(chip);
  return chip;
}

/* A piece that counts as written by the host. */
static inline void *make_gm(npu_chip *chip, size_t bytes, const char *name) {
  void *p = npu_gm_alloc(chip, bytes, name);
  assert_non_null(p);
  npu_gm_written(chip, p);
  return p;
}

/* Launches on one AI core with options of 0 but the number of cores. */
static inline int launch_one(npu_chip *chip, npu_kernel *aic, npu_kernel *aiv, const void *args,
                             npu_report *report) {
  npu_launch_options o = {0};
  o.cores = 1;
  return npu_launch(chip, aic, aiv, args, &o, report);
}

static inline void expect_clean(const char *what, int status, const npu_report *report) {
  if (status != 0)
    fail_msg("%s: status %d: %s", what, status, report->n_messages ? report->message[0] : "");
}

/* Event 0 of the pair, at once. */
static inline void sync_pipes(npu_pipe from, npu_pipe to) {
  npu_notify(from, to, 0);
  npu_wait(from, to, 0);
}

#endif
