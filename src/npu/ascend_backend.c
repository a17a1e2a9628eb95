/* SPDX-License-Identifier: Apache-2.0
 *
 * Backend npu: the Ascend kernel on a SIMULATED two-die 910, in functional mode. To study the
 * kernel, not to serve with it: it is some thousand times slower than the chip. A shared object of
 * its own, libamla_npu.so. Unlike the CPU backend, run allocates (the simulator's memory).
 */
#include <stdio.h>
#include <string.h>

#include "../plan.h"
#include "../refuse.h"
#include "ascend_launch.h"

static const char chip_name[] = "910";

static amla_status prepare(amla_plan *plan, amla_detail *detail) {
  plan->scratch_bytes = 0; /* the simulator has its own memory */
  return ascend_check(&plan->problem, plan->options.rescale, detail);
}

static amla_status run_on(npu_chip *chip, const npu_preset *preset, const amla_plan *plan,
                          const amla_tensors *tensors, amla_detail *detail) {
  npu_report report;
  const ascend_launch launch = ascend_launch_of(&plan->problem, &plan->options);
  const amla_status status = ascend_launch_run(chip, preset, NPU_FUNCTIONAL, &plan->problem,
                                               tensors, &launch, &report, detail);
  if (status == AMLA_OK && report.n_messages > 0)
    return amla_refuse(detail, AMLA_BACKEND_FAILED, "simulated NPU: %.200s", report.message[0]);
  return status;
}

static amla_status run(const amla_plan *plan, const amla_tensors *tensors, void *scratch,
                       amla_detail *detail) {
  (void)scratch;
  if (tensors->mask)
    UNSUPPORTED("mask=%p: backend npu takes none", tensors->mask);
  if (plan->problem.b == 0)
    return AMLA_OK;
  const npu_preset *preset = npu_find_preset(chip_name);
  npu_chip *chip = preset ? npu_chip_create(preset, NPU_FUNCTIONAL) : NULL;
  if (!chip)
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "npu: no memory for the simulated chip %s",
                       chip_name);
  const amla_status status = run_on(chip, preset, plan, tensors, detail);
  npu_chip_destroy(chip);
  return status;
}

static const char *absent(void) { return NULL; }

static const char *isa(amla_isa cap) {
  (void)cap;
  return "sim-910"; /* simulated */
}

static void query(const amla_plan *plan, amla_plan_info *info) {
  const ascend_launch l = ascend_launch_of(&plan->problem, &plan->options);
  info->p_type = plan->problem.kv_type;
  info->threads = 1;
  info->block_rows = ascend_block_rows(&plan->problem);
  info->tile_tokens = l.tiling.tile_keys;
  info->split_tokens = AMLA_SPLIT_AUTO; /* contiguous runs over cores */
  if (l.split_tiles > 0)
    info->split_tokens = (int64_t)l.split_tiles * l.tiling.tile_keys;
  info->simulated = 1;
  snprintf(info->kernel, sizeof info->kernel, "sim-%s", chip_name);
}

static int describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  static const char *const modes[] = {"flash", "amla", "lazy"};
  const ascend_launch l = ascend_launch_of(&plan->problem, &plan->options);
  return snprintf(text, capacity_bytes, "npu sim-%s %s, SIMULATED, %d rows x %d keys, lag %d%s",
                  chip_name, modes[l.mode], ascend_block_rows(&plan->problem), l.tiling.tile_keys,
                  l.tiling.lag, l.mode == ASCEND_AMLA ? ", guarded add" : "");
}

static const amla_backend_ops ops = {.plan_bytes = sizeof(amla_plan),
                                     .id = AMLA_BACKEND_NPU,
                                     .name = "npu",
                                     .absent = absent,
                                     .isa = isa,
                                     .prepare = prepare,
                                     .query = query,
                                     .describe = describe,
                                     .run = run};

AMLA_API const amla_backend_ops *amla_backend_entry_1(const char *library_version);
const amla_backend_ops *amla_backend_entry_1(const char *library_version) {
  return strcmp(library_version, amla_version()) ? NULL : &ops;
}
