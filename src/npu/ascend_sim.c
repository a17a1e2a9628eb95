/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_sim.h: the kernel in timing-only mode, and what the simulator reports of it.
 */
#include <amla/amla_sim.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../refuse.h"
#include "../problem.h"
#include "ascend_launch.h"

enum { OWN_PIPES = AMLA_SIM_PIPES - 2 };
static const struct {
  const char *name;
  int pipe, on_aiv;
} pipes[OWN_PIPES] = {{"cube", NPU_PIPE_M, 0},       {"mte1", NPU_PIPE_MTE1, 0},
                      {"mte2", NPU_PIPE_MTE2, 0},    {"fix", NPU_PIPE_FIX, 0},
                      {"vector", NPU_PIPE_V, 1},     {"aiv_mte2", NPU_PIPE_MTE2, 1},
                      {"aiv_mte3", NPU_PIPE_MTE3, 1}};

/* ---- Tilings: the public struct and ours ---- */

static ascend_tiling from_public(const amla_sim_tiling *t) {
  const ascend_tiling a = {t->lag,      t->block_keys, t->qk_l1,    t->qk_l0,
                           t->pv_l1,    t->pv_l0,      t->kv_slots, t->qp_slots,
                           t->l0_slots, t->order,      t->in_turns, t->keep_q};
  return a;
}
static amla_sim_tiling to_public(const ascend_tiling *t) {
  const amla_sim_tiling p = {t->lag,      t->block_keys, t->qk_l1,    t->qk_l0,
                             t->pv_l1,    t->pv_l0,      t->kv_slots, t->qp_slots,
                             t->l0_slots, t->order,      t->in_turns, t->keep_q};
  return p;
}

int32_t amla_sim_candidate(const amla_problem *problem, int32_t i, amla_sim_tiling *tiling) {
  ascend_tiling t;
  const int32_t found = ascend_tiling_candidate(ascend_tile_rows(problem), i, &t);
  if (found)
    *tiling = to_public(&t);
  return found;
}

static amla_status choose_tiling(const amla_problem *p, const amla_sim_options *o, ascend_tiling *t,
                                 amla_detail *detail) {
  if (o->tiling)
    *t = from_public(o->tiling);
  else if (o->schedule == AMLA_SIM_SERIAL)
    *t = ascend_tiling_serial;
  else if (o->schedule == AMLA_SIM_PRELOAD)
    *t = ascend_tiling_preload;
  else if (o->schedule == AMLA_SIM_BEST)
    *t = *ascend_tiling_best(ascend_tile_rows(p));
  else
    INVALID("schedule=%d: must be in %d..%d", (int)o->schedule, AMLA_SIM_BEST, AMLA_SIM_PRELOAD);
  const char *wrong = ascend_tiling_error(t);
  if (wrong)
    INVALID("tiling: %s", wrong);
  if (t->keep_q && ascend_tile_rows(p) > ASCEND_HALF_ROWS)
    INVALID("tiling: keep_q=1: tiles must have at most %d rows", ASCEND_HALF_ROWS);
  return AMLA_OK;
}

/* ---- Cost table ---- */

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

/* ---- Report ---- */

static double useful_flops(const amla_problem *p, const int32_t *seqlens_k) {
  double keys = 0;
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t i = 0; i < p->s_q; i++)
      keys += ascend_visible(p->causal, p->s_q, seqlens_k ? seqlens_k[s] : p->sk, i);
  return 2.0 * keys * p->h_q * ((double)p->d_qk + p->d_v);
}

static void fill_report(const amla_problem *p, const int32_t *seqlens_k, const npu_preset *preset,
                        const ascend_launch *l, const char *schedule, int checked,
                        const npu_report *r, amla_sim_report *out) {
  static const char *const modes[] = {"flash", "guarded amla", "lazy"};
  const char *mode = l->unguarded ? "amla with the published unguarded add" : modes[l->mode];
  memset(out, 0, sizeof *out);
  out->struct_bytes = sizeof *out;
  out->cores = r->cores, out->cycles = r->cycles, out->launch_cycles = r->launch_cycles,
  out->instructions = r->instructions;
  out->seconds = r->seconds, out->flops = useful_flops(p, seqlens_k);
  out->flops_per_second = r->seconds > 0 ? out->flops / r->seconds : 0;
  out->peak_flops_per_second = npu_peak_flops(preset);
  out->utilization = out->flops_per_second / out->peak_flops_per_second;
  for (int i = 0; i < OWN_PIPES; i++)
    out->pipe_name[i] = pipes[i].name,
    out->pipe_busy[i] = pipes[i].on_aiv ? r->aiv_busy[pipes[i].pipe] : r->aic_busy[pipes[i].pipe];
  const double seconds = r->seconds * (double)(r->cycles - r->launch_cycles) / (double)r->cycles,
               dies = preset->dies;
  out->pipe_name[OWN_PIPES] = "l2", out->pipe_name[OWN_PIPES + 1] = "hbm";
  out->pipe_busy[OWN_PIPES] = (double)(r->l2_read_bytes + r->l2_write_bytes) /
                              (seconds * dies * preset->l2_bytes_per_second);
  out->pipe_busy[OWN_PIPES + 1] = (double)(r->hbm_read_bytes + r->hbm_write_bytes) /
                                  (seconds * dies * preset->hbm_bytes_per_second);
  out->gm_l1_bytes = r->gm_l1_bytes, out->gm_ub_bytes = r->gm_ub_bytes,
  out->l1_l0a_bytes = r->l1_l0a_bytes, out->l1_l0b_bytes = r->l1_l0b_bytes;
  out->l0c_gm_bytes = r->l0c_gm_bytes, out->ub_gm_bytes = r->ub_gm_bytes;
  out->l2_read_bytes = r->l2_read_bytes, out->l2_write_bytes = r->l2_write_bytes;
  out->hbm_read_bytes = r->hbm_read_bytes, out->hbm_write_bytes = r->hbm_write_bytes;
  out->races_checked = checked, out->races = r->errors[NPU_ERROR_RACE];
  for (int i = 0; i < NPU_ERRORS; i++)
    out->other_errors += i == NPU_ERROR_RACE ? 0 : r->errors[i];
  out->tiling = to_public(&l->tiling);
  snprintf(out->description, sizeof out->description,
           "%s %s, %s: %d cores at %.2f GHz, %d rows x %d keys", schedule, mode, preset->name,
           r->cores, preset->ghz, ascend_tile_rows(p), l->tiling.block_keys);
  if (r->n_messages > 0)
    snprintf(out->message, sizeof out->message, "%s", r->message[0]);
}

static amla_status hand_out_trace(const amla_sim_options *o, const npu_preset *preset,
                                  const npu_report *r, amla_detail *detail) {
  for (int64_t i = 0; o->event && i < r->n_trace; i++) {
    const npu_trace_event *e = &r->trace[i];
    const amla_sim_event event = {e->start_cycle, e->end_cycle,           e->block,
                                  e->subcore,     npu_pipe_name(e->pipe), e->name};
    o->event(o->context, &event);
  }
  if (!o->trace_path)
    return AMLA_OK;
  FILE *file = fopen(o->trace_path, "w");
  const int failed = !file || npu_write_chrome_trace(r, preset, file) != 0, why = errno;
  if ((file && fclose(file) != 0) || failed)
    return amla_refuse(detail, AMLA_BACKEND_FAILED, "trace_path=%.150s: %s", o->trace_path,
                       strerror(failed ? why : errno));
  return AMLA_OK;
}

/* ---- Run ---- */

static amla_status time_on(npu_chip *chip, const npu_preset *preset, const amla_problem *p,
                           const int32_t *seqlens_k, const amla_sim_options *o,
                           const ascend_launch *l, npu_report *r, amla_detail *detail) {
  amla_tensors t = AMLA_TENSORS_INIT;
  t.seqlens_k = seqlens_k;
  amla_status status = AMLA_OK;
  for (int32_t i = 0; status == AMLA_OK && i < o->n_costs; i++)
    status = change_cost(chip, &o->costs[i], detail);
  return status == AMLA_OK ? ascend_launch_run(chip, preset, NPU_TIMING_ONLY, p, &t, l, r, detail)
                           : status;
}

static amla_status check_arguments(const amla_problem *p, const int32_t *seqlens_k,
                                   const amla_sim_options *o, const amla_sim_report *report,
                                   amla_detail *detail) {
  if (!o || o->struct_bytes != sizeof *o)
    INVALID("sim.struct_bytes: use AMLA_SIM_OPTIONS_INIT of this version");
  if (!report || report->struct_bytes != sizeof *report)
    INVALID("report.struct_bytes: use AMLA_SIM_REPORT_INIT of this version");
  if (p->b == 0)
    INVALID("b=0: nothing to simulate");
  if (o->assume_bumps < 0)
    INVALID("assume_bumps=%d: must be >= 0", o->assume_bumps);
  for (int32_t i = 0; seqlens_k && i < p->b; i++)
    if (seqlens_k[i] < 0 || seqlens_k[i] > p->sk)
      INVALID("seqlens_k[%d]=%d: must be in [0, sk=%d]", i, seqlens_k[i], p->sk);
  return ascend_check(p, detail);
}

amla_status amla_sim_run(const amla_problem *problem, const amla_options *options,
                         const int32_t *seqlens_k, const amla_sim_options *sim,
                         amla_sim_report *report, amla_detail *detail) {
  static const char *const schedules[] = {"best", "serial", "preload", "custom"};
  amla_problem p;
  amla_options o;
  ascend_launch l;
  npu_report r;
  amla_status status = amla_problem_check(problem, &p, detail);
  if (status == AMLA_OK)
    status = amla_options_check(options, &o, detail);
  if (status == AMLA_OK)
    status = check_arguments(&p, seqlens_k, sim, report, detail);
  if (status != AMLA_OK)
    return status;
  const char *name = sim->chip ? sim->chip : "910";
  const npu_preset *preset = npu_find_preset(name);
  if (!preset)
    INVALID("chip=%.40s: must be 910, 910b1, 910b2, 910b3 or 910b4", name);
  if (sim->cores < 0 || sim->cores > preset->dies * preset->cores_per_die)
    INVALID("cores=%d: must be in 0..%d on chip %s", sim->cores,
            preset->dies * preset->cores_per_die, name);
  o.split_tokens = AMLA_SPLIT_AUTO;
  l = ascend_launch_of(&p, &o);
  l.assume_bumps = sim->assume_bumps, l.unguarded = sim->unguarded_add && l.mode == ASCEND_AMLA;
  l.options.cores = sim->cores, l.options.check_races = sim->check_races ? 1 : -1,
  l.options.trace = sim->trace_path || sim->event;
  status = choose_tiling(&p, sim, &l.tiling, detail);
  if (status != AMLA_OK)
    return status;

  npu_chip *chip = npu_chip_create(preset, NPU_TIMING_ONLY);
  if (!chip)
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "chip=%s: no memory for the simulator", name);
  status = time_on(chip, preset, &p, seqlens_k, sim, &l, &r, detail);
  if (status == AMLA_OK)
    fill_report(&p, seqlens_k, preset, &l, schedules[sim->tiling ? 3 : sim->schedule],
                sim->check_races, &r, report);
  if (status == AMLA_OK)
    status = hand_out_trace(sim, preset, &r, detail);
  npu_chip_destroy(chip);
  return status == AMLA_OK ? amla_accept(detail) : status;
}
