/* SPDX-License-Identifier: Apache-2.0
 *
 * See ascend_chip.h. Also the cost table in words.
 */
#include "ascend_chip.h"

#include <stdio.h>
#include <string.h>

#include "../refuse.h"

/* "910, 910b1 or 910b2" */
static void list_presets(char *text, size_t capacity) {
  size_t used = 0;
  for (int32_t i = 0; npu_preset_at(i); i++) {
    const char *between = ", ";
    if (i == 0)
      between = "";
    else if (!npu_preset_at(i + 1))
      between = " or ";
    used += (size_t)snprintf(text + used, capacity - used, "%s%s", between, npu_preset_at(i)->name);
  }
}

static amla_status check_share(const char *name, double share, amla_detail *detail) {
  if (!(share >= 0 && share <= 10))
    INVALID("%s=%g: must be in 0..10, 0 meaning 1", name, share);
  return AMLA_OK;
}

static double share_of(double share) { return share > 0 ? share : 1; }

static amla_status find_preset(const amla_sim_options *o, const char *default_name,
                               npu_preset *preset, amla_detail *detail) {
  const char *name = o->chip ? o->chip : default_name;
  const npu_preset *found = npu_find_preset(name);
  char all[100];
  if (!found) {
    list_presets(all, sizeof all);
    INVALID("chip=%.40s: must be %s", name, all);
  }
  *preset = *found;
  if (o->slice_cores < 0 || o->slice_cores > found->cores_per_die)
    INVALID("slice_cores=%d: must be in 0..%d on chip %s", o->slice_cores, found->cores_per_die,
            name);
  TRY(check_share("l2_share", o->l2_share, detail));
  TRY(check_share("hbm_share", o->hbm_share, detail));
  preset->hbm_bytes_per_second *= share_of(o->hbm_share);
  preset->l2_read_bytes_per_second *= share_of(o->l2_share);
  preset->l2_bytes_per_second *= share_of(o->l2_share);
  if (o->slice_cores > 0) {
    const double slice = (double)o->slice_cores / found->cores_per_die;
    preset->dies = 1, preset->cores_per_die = o->slice_cores;
    preset->hbm_bytes_per_second *= slice;
    preset->l2_read_bytes_per_second *= slice;
    preset->l2_bytes_per_second *= slice;
    preset->l2_bytes = (int64_t)((double)preset->l2_bytes * slice);
  }
  if (o->cores < 0 || o->cores > preset->dies * preset->cores_per_die)
    INVALID("cores=%d: must be in 0..%d on chip %s", o->cores, preset->dies * preset->cores_per_die,
            name);
  return AMLA_OK;
}

static amla_status change_cost(npu_chip *chip, const amla_sim_cost_change *c, amla_detail *detail) {
  char unit[16];
  const char *slash = strchr(c->row, '/');
  const size_t n = slash ? (size_t)(slash - c->row) : sizeof unit;
  if (n >= sizeof unit)
    INVALID("costs: %.60s: must be UNIT/operation of the cost table", c->row);
  memcpy(unit, c->row, n), unit[n] = '\0';
  if (npu_chip_set_cost(chip, unit, slash + 1, c->fixed_cycles, c->rate, c->latency_cycles) != 0)
    INVALID("costs: %.60s: no such row of the cost table, or an impossible number", c->row);
  return AMLA_OK;
}

amla_status ascend_chip_create(const amla_sim_options *o, const char *default_name,
                               npu_preset *preset, npu_chip **chip, amla_detail *detail) {
  *chip = NULL;
  amla_status status = AMLA_OK;
  TRY(find_preset(o, default_name, preset, detail));
  *chip = npu_chip_create(preset, NPU_TIMING_ONLY);
  if (!*chip)
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "chip=%s: no memory for the simulator",
                       preset->name);
  for (int32_t i = 0; status == AMLA_OK && i < o->n_costs; i++)
    status = change_cost(*chip, &o->costs[i], detail);
  if (status != AMLA_OK)
    npu_chip_destroy(*chip), *chip = NULL;
  return status;
}

int32_t amla_sim_cost_row(int32_t i, amla_sim_cost_change *row) {
  static const amla_sim_cost_change rows[] = {
#define NPU_COST(id, unit, operation, fixed, rate, rate_unit, latency, confidence, source)         \
  {unit "/" operation, fixed, rate, latency},
#include "../../sim/npu_costs.def"
#undef NPU_COST
  };
  if (i < 0 || (size_t)i >= sizeof rows / sizeof *rows)
    return 0;
  *row = rows[i];
  return 1;
}

const char *amla_sim_cost(int32_t i) {
  static _Thread_local char text[400];
  npu_chip *chip = npu_chip_create(npu_preset_at(0), NPU_TIMING_ONLY);
  const npu_cost *c = chip ? npu_chip_cost(chip, i) : NULL;
  if (c)
    snprintf(text, sizeof text,
             "%s/%s: %g + work / %g (%s) cycles, results %g later; confidence %s; %s", c->unit,
             c->operation, c->fixed_cycles, c->rate, c->rate_unit, c->latency_cycles, c->confidence,
             c->source);
  npu_chip_destroy(chip);
  return c ? text : NULL;
}
