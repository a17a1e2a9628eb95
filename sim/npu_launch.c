/* SPDX-License-Identifier: Apache-2.0
 *
 * A launch from begin to end: cores, caches and checker are made, the simulation runs, the report
 * is written, all is freed.
 */
#include "npu_core.h"

#include <stdlib.h>
#include <string.h>

/* ---- Launch ---- */

static bool begin_core(npu_chip *chip, int32_t id, npu_kernel *kernel) {
  npu_core *core = &chip->core[id];
  const bool aiv = id % CORES_PER_BLOCK > 0;
  core->chip = chip, core->id = id, core->block = id / CORES_PER_BLOCK,
  core->subcore = id % CORES_PER_BLOCK - 1;
  core->full_queue = NPU_PIPE_ALL;
  core->kernel = kernel, core->stall = kernel ? STALL_TIME : STALL_DONE;
  for (int s = SPACE_L1; s < SPACES; s++) {
    if ((s == SPACE_UB) != aiv)
      continue;
    core->local[s] = npu_map((size_t)npu_buffer_bytes(chip, (npu_space)s));
    if (!core->local[s])
      return false;
    if (chip->mode == NPU_FUNCTIONAL)
      memset(core->local[s], 0xff, (size_t)npu_buffer_bytes(chip, (npu_space)s));
  }
  if (!kernel)
    return true;
  core->stack = npu_map(STACK_BYTES);
  if (!core->stack || getcontext(&core->context))
    return false;
  core->context.uc_stack.ss_sp = core->stack;
  core->context.uc_stack.ss_size = STACK_BYTES;
  core->context.uc_link = NULL;
  makecontext(&core->context, npu_core_main, 0);
  npu_wake_core(core, 0);
  return true;
}

static void end_core(npu_core *core) {
  if (!core->chip)
    return; /* the launch failed before it began */
  for (int p = 0; p < NPU_PIPES; p++)
    for (npu_queue *q = &core->pipe[p]; q->count;
         q->count--, q->head = (q->head + 1) % NPU_QUEUE_DEPTH)
      npu_clock_release(q->slot[q->head].known);
  for (int from = 0; from < NPU_PIPES; from++)
    for (int to = 0; to < NPU_PIPES; to++)
      for (int e = 0; e < NPU_EVENTS; e++)
        for (int c = 0; c < NPU_FLAG_MAX; c++)
          npu_clock_release(core->event[from][to][e].clock[c]);
  for (int side = 0; side < 2; side++)
    for (int f = 0; f < NPU_FLAGS; f++)
      for (int c = 0; c < NPU_FLAG_MAX; c++)
        npu_clock_release(core->flag[side][f].clock[c]);
  for (int32_t s = 0; s < core->stream_count; s++)
    npu_clock_release(core->stream[(core->stream_head + s) % STREAM].known);
  npu_clock_release(core->known);
  for (int s = SPACE_L1; s < SPACES; s++)
    npu_unmap(core->local[s], (size_t)npu_buffer_bytes(core->chip, (npu_space)s));
  npu_written_forget_core(core);
  npu_unmap(core->stack, STACK_BYTES);
}

static bool all_done(const npu_chip *chip) {
  for (int32_t c = 0; c < chip->n_cores; c++)
    if (chip->core[c].stall != STALL_DONE || !npu_drained(&chip->core[c]))
      return false;
  return true;
}

static int refuse_launch(npu_report *report, const char *why) {
  memset(report, 0, sizeof *report);
  snprintf(report->message[0], sizeof report->message[0], "%s", why);
  report->n_messages = 1;
  return -1;
}

static void clear_launch(npu_chip *chip) {
  chip->heap_count = 0, chip->order = 0, chip->now = 0, chip->stopped = false,
  chip->out_of_memory = false;
  chip->at_barrier = 0, chip->barrier_cycle = 0, chip->n_trace = 0;
  chip->n_places = 0, chip->place_capacity = 0, chip->place_index_size = 0;
  free(chip->place_index);
  chip->place_index = NULL;
}

static bool begin(npu_chip *chip, npu_kernel *aic, npu_kernel *aiv) {
  const bool races =
      chip->options.check_races ? chip->options.check_races > 0 : chip->mode == NPU_FUNCTIONAL;
  chip->checks_written = chip->options.check_written ? chip->options.check_written > 0 : races;
  chip->n_told_unwritten = 0;
  npu_written_begin(chip);
  chip->n_cores = CORES_PER_BLOCK * chip->blocks;
  chip->core = calloc((size_t)chip->n_cores, sizeof *chip->core);
  if (!chip->core || !npu_cache_begin(chip))
    return false;
  for (int32_t c = 0; c < chip->n_cores; c++)
    if (!begin_core(chip, c, c % CORES_PER_BLOCK ? aiv : aic))
      return false;
  return !races || npu_race_begin(chip);
}

static void end(npu_chip *chip) {
  while (chip->heap_count)
    npu_clock_release(chip->heap[--chip->heap_count].clock);
  for (int32_t c = 0; chip->core && c < chip->n_cores; c++)
    end_core(&chip->core[c]);
  npu_race_end(chip);
  npu_cache_end(chip);
  free(chip->core);
  chip->core = NULL, chip->report = NULL;
}

int npu_launch(npu_chip *chip, npu_kernel *aic, npu_kernel *aiv, const void *args,
               const npu_launch_options *options, npu_report *report) {
  static const npu_launch_options defaults;
  const int32_t most = chip->preset.dies * chip->preset.cores_per_die;
  npu_core *const outer = npu_self;
  char why[80];
  chip->options = options ? *options : defaults;
  chip->blocks = chip->options.cores ? chip->options.cores : most;
  if (chip->blocks < 1 || chip->blocks > most) {
    snprintf(why, sizeof why, "cores=%d: 1 to %d on this chip, or 0 for all", chip->blocks, most);
    return refuse_launch(report, why);
  }
  memset(report, 0, sizeof *report);
  chip->report = report, chip->args = args;
  clear_launch(chip);
  if (!begin(chip, aic, aiv)) {
    end(chip);
    return refuse_launch(report, "out of memory");
  }
  npu_simulate(chip);
  npu_self = outer;
  if (!chip->stopped) {
    if (all_done(chip))
      npu_report_left_set(chip);
    else
      npu_report_deadlock(chip);
  }
  npu_report_finish(chip);
  const bool out_of_memory = chip->out_of_memory;
  end(chip);
  if (out_of_memory)
    return refuse_launch(report, "out of memory");
  for (int e = 0; e < NPU_ERRORS; e++)
    if (report->errors[e])
      return 1;
  return 0;
}

/* The rows that are other ones on this chip. */
static void set_preset_costs(npu_chip *chip) {
#define NPU_PRESET(...)
#define NPU_PRESET_COST(preset_name, ...)                                                          \
  if (!strcmp(chip->preset.name, preset_name))                                                     \
    npu_chip_set_cost(chip, __VA_ARGS__);
#include "npu_presets.def"
#undef NPU_PRESET
#undef NPU_PRESET_COST
}

npu_chip *npu_chip_create(const npu_preset *preset, npu_mode mode) {
  static const npu_cost costs[COSTS] = {
#define NPU_COST(id, unit, operation, fixed, rate, rate_unit, latency, confidence, source)         \
  {unit, operation, fixed, rate, latency, rate_unit, confidence, source},
#include "npu_costs.def"
#undef NPU_COST
  };
  npu_chip *chip = calloc(1, sizeof *chip);
  if (!chip)
    return NULL;
  chip->preset = *preset, chip->mode = mode;
  memcpy(chip->cost, costs, sizeof costs);
  set_preset_costs(chip);
  return chip;
}

void npu_chip_destroy(npu_chip *chip) {
  if (!chip)
    return;
  npu_gm_forget_all(chip);
  free(chip->region), free(chip->heap), free(chip->place), free(chip->place_index),
      free(chip->trace);
  free(chip);
}
