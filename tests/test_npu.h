/* SPDX-License-Identifier: Apache-2.0
 *
 * From a problem string to a launch of the Ascend kernel on the simulated NPU, with what only
 * white-box tests choose: schedule, split, chip.
 */
#ifndef AMLA_TEST_NPU_H
#define AMLA_TEST_NPU_H

#include "test_run.h"

#include "src/npu/ascend_launch.h"
#include "src/problem.h"

static const char *const schedule_names[] = {"serial", "preload", "best", "in-core"};
enum { SERIAL, PRELOAD, BEST, SCHEDULES, IN_CORE = SCHEDULES }; /* IN_CORE: on chip 950 */
enum {
  MODES = 3,
  UNGUARDED_AMLA = MODES,
  PROGRAMS
}; /* the last is for study: not what backend npu runs */

static inline const char *mode_name(int mode) {
  for (int r = AMLA_RESCALE_LAZY; amla_rescale_name((amla_rescale)r) != NULL; r++)
    if ((int)ascend_mode_of((amla_rescale)r) == mode)
      return amla_rescale_name((amla_rescale)r);
  return "unguarded amla";
}

static inline ascend_tiling tiling_of(int schedule, const amla_problem *p) {
  if (schedule == SERIAL)
    return ascend_tiling_serial;
  if (schedule == PRELOAD)
    return ascend_tiling_preload;
  if (schedule == IN_CORE)
    return ascend_tiling_in_core;
  return ascend_tiling_best(ascend_block_rows(p), 0);
}

/* Defaults, which tests change: splits of 8 tiles, as the library's default is. mode: an
 * ascend_mode, or UNGUARDED_AMLA. */
static inline ascend_launch make_launch(const harness_dataset *data, int mode, int schedule) {
  amla_options o = AMLA_OPTIONS_INIT;
  harness_take_options(&o, &data->options);
  ascend_launch l = ascend_launch_of(&data->problem, &o);
  l.unguarded = mode == UNGUARDED_AMLA;
  l.mode = l.unguarded ? ASCEND_AMLA : (ascend_mode)mode;
  l.tiling = tiling_of(schedule, &data->problem);
  return l;
}

static inline const npu_preset *preset_of(const ascend_launch *l) {
  return npu_find_preset(l->tiling.in_core ? "950" : "910");
}

static inline const char *describe_launch(const ascend_launch *l) {
  static char text[200];
  snprintf(text, sizeof text, "mode=%s lag=%d order=%d keep_q=%d in_core=%d split_tiles=%d",
           mode_name(l->unguarded ? UNGUARDED_AMLA : (int)l->mode), l->tiling.lag, l->tiling.order,
           l->tiling.keep_q, l->tiling.in_core, l->split_tiles);
  return text;
}

static inline void set_random_costs(npu_chip *chip, uint64_t seed) {
  for (int c = 0; c < npu_cost_count(); c++) {
    const npu_cost *cost = npu_chip_cost(chip, c);
    const double fixed = random_below(&seed, 2000), rate = 0.01 + random_below(&seed, 500);
    const double latency = random_below(&seed, 2000);
    assert_int_equal(npu_chip_set_cost(chip, cost->unit, cost->operation, fixed, rate, latency), 0);
  }
}

/* Launches on `cores` AI cores (0 = all of the two-die 910, or of the 950) into outputs that start
 * as the guard pattern. seed: of random costs; 0 = the table's. */
static inline npu_report launch_at(harness_dataset *data, const char *problem, ascend_launch *l,
                                   int32_t cores, uint64_t seed) {
  const npu_preset *preset = preset_of(l);
  npu_chip *chip = npu_chip_create(preset, NPU_FUNCTIONAL);
  npu_report report;
  amla_detail detail;
  amla_problem p;
  assert_non_null(chip);
  assert_int_equal(amla_problem_check(&data->problem, &p, &detail), AMLA_OK);
  harness_reset_outputs(data);
  if (seed)
    set_random_costs(chip, seed);
  l->options.cores = cores;
  const amla_status status =
      ascend_launch_run(chip, preset, NPU_FUNCTIONAL, &p, &data->tensors, l, &report, &detail);
  npu_chip_destroy(chip);
  if (status != AMLA_OK)
    fail_msg("'%s' %s: %s", problem, describe_launch(l), detail.text);
  return report;
}

static inline npu_report launch_on(harness_dataset *data, const char *problem, ascend_launch *l,
                                   int32_t cores) {
  return launch_at(data, problem, l, cores, 0);
}

static inline void expect_clean(const npu_report *report, const char *problem,
                                const ascend_launch *l) {
  if (report->n_messages > 0)
    fail_msg("'%s' %s: %s", problem, describe_launch(l), report->message[0]);
}

static inline void expect_npu_bound(const harness_dataset *data, const harness_truth *truth,
                                    const char *problem, const ascend_launch *l) {
  const harness_error e = harness_compare_rounded_p(data, truth, AMLA_BF16);
  if (!e.ok)
    fail_msg("'%s' %s: row %lld is %.3g times its bound away (relative %.3g, max %.3g, LSE %.3g)",
             problem, describe_launch(l), (long long)e.worst_row, e.worst_of_bound, e.rel_error,
             e.max_abs_error, e.lse_max_abs_error);
}

#endif
