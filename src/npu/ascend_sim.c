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
#include "ascend_chip.h"
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
  const ascend_tiling a = {t->lag,      t->tile_keys, t->qk_l1,    t->qk_l0,    t->pv_l1,
                           t->pv_l0,    t->kv_slots,  t->qp_slots, t->l0_slots, t->order,
                           t->in_turns, t->keep_q,    t->in_core};
  return a;
}
static amla_sim_tiling to_public(const ascend_tiling *t) {
  const amla_sim_tiling p = {t->lag,      t->tile_keys, t->qk_l1,    t->qk_l0,    t->pv_l1,
                             t->pv_l0,    t->kv_slots,  t->qp_slots, t->l0_slots, t->order,
                             t->in_turns, t->keep_q,    t->in_core};
  return p;
}

int32_t amla_sim_candidate(const amla_problem *problem, int32_t i, amla_sim_tiling *tiling) {
  ascend_tiling t;
  const int32_t found = ascend_tiling_candidate(ascend_block_rows(problem), i, &t);
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
    *t = ascend_tiling_best(ascend_block_rows(p), o->kv_int8);
  else if (o->schedule == AMLA_SIM_IN_CORE)
    *t = ascend_tiling_in_core;
  else
    INVALID("schedule=%d: must be in %d..%d", (int)o->schedule, AMLA_SIM_BEST, AMLA_SIM_IN_CORE);
  const char *wrong = ascend_tiling_error(t);
  if (wrong)
    INVALID("tiling: %s", wrong);
  if (t->keep_q && !t->in_core && ascend_block_rows(p) > ASCEND_HALF_ROWS)
    INVALID("tiling: keep_q=1: blocks must have at most %d rows", ASCEND_HALF_ROWS);
  return AMLA_OK;
}

/* ---- Report ---- */

static double useful_flops(const amla_problem *p, const int32_t *seqlens_k) {
  double keys = 0;
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t i = 0; i < p->s_q; i++)
      keys += ascend_visible(p->causal, p->s_q, seqlens_k ? seqlens_k[s] : p->sk, i);
  return 2.0 * keys * p->h_q * ((double)p->d_qk + p->d_v);
}

/* Times and rates: as the model says, and with the efficiency. */
static void fill_speed(const amla_problem *p, const int32_t *seqlens_k, const npu_preset *preset,
                       double efficiency, const npu_report *r, amla_sim_report *out) {
  const double busy_cycles = (double)(r->cycles - r->launch_cycles);
  out->efficiency = efficiency > 0 ? efficiency : AMLA_SIM_EFFICIENCY;
  out->cycles = r->launch_cycles + (int64_t)(busy_cycles / out->efficiency + 0.5);
  out->launch_cycles = r->launch_cycles;
  out->seconds = (double)out->cycles / (preset->ghz * 1e9);
  out->flops = useful_flops(p, seqlens_k);
  out->flops_per_second = out->flops / out->seconds;
  out->peak_flops_per_second = npu_peak_flops(preset);
  out->utilization = out->flops_per_second / out->peak_flops_per_second;
  out->unfitted_seconds = r->seconds;
  out->unfitted_utilization = out->flops / r->seconds / out->peak_flops_per_second;
}

static void fill_busy(const npu_preset *preset, const npu_report *r, amla_sim_report *out) {
  for (int i = 0; i < OWN_PIPES; i++) {
    const double *busy = pipes[i].on_aiv ? r->aiv_busy : r->aic_busy;
    out->pipe_name[i] = pipes[i].name, out->pipe_busy[i] = busy[pipes[i].pipe];
  }
  const double seconds = r->seconds * (double)(r->cycles - r->launch_cycles) / (double)r->cycles;
  const double die_seconds = seconds * preset->dies;
  const double l2 = (double)(r->l2_read_bytes + r->l2_write_bytes) / die_seconds;
  const double hbm = (double)(r->hbm_read_bytes + r->hbm_write_bytes) / die_seconds;
  out->pipe_name[OWN_PIPES] = "l2", out->pipe_name[OWN_PIPES + 1] = "hbm";
  out->pipe_busy[OWN_PIPES] = l2 / preset->l2_bytes_per_second;
  out->pipe_busy[OWN_PIPES + 1] = hbm / preset->hbm_bytes_per_second;
  out->l2_read_busy = (double)r->l2_read_bytes / die_seconds / preset->l2_read_bytes_per_second;
}

static void fill_bytes(const npu_report *r, amla_sim_report *out) {
  out->gm_l1_bytes = r->gm_l1_bytes, out->gm_ub_bytes = r->gm_ub_bytes;
  out->l1_l0a_bytes = r->l1_l0a_bytes, out->l1_l0b_bytes = r->l1_l0b_bytes;
  out->l0c_gm_bytes = r->l0c_gm_bytes, out->ub_gm_bytes = r->ub_gm_bytes;
  out->l2_read_bytes = r->l2_read_bytes, out->l2_write_bytes = r->l2_write_bytes;
  out->hbm_read_bytes = r->hbm_read_bytes, out->hbm_write_bytes = r->hbm_write_bytes;
}

static void fill_report(const amla_problem *p, const int32_t *seqlens_k, const npu_preset *preset,
                        const ascend_launch *l, const amla_sim_options *sim, const npu_report *r,
                        amla_sim_report *out) {
  static const char *const schedules[] = {"best", "serial", "preload", "in-core", "custom"};
  static const char *const modes[] = {"flash", "guarded amla", "lazy"};
  const char *mode = l->unguarded ? "amla with the published unguarded add" : modes[l->mode];
  memset(out, 0, sizeof *out);
  out->struct_bytes = sizeof *out;
  out->cores = r->cores, out->instructions = r->instructions;
  fill_speed(p, seqlens_k, preset, sim->efficiency, r, out);
  fill_busy(preset, r, out);
  fill_bytes(r, out);
  out->races_checked = sim->check_races, out->races = r->errors[NPU_ERROR_RACE];
  for (int i = 0; i < NPU_ERRORS; i++)
    out->other_errors += i == NPU_ERROR_RACE ? 0 : r->errors[i];
  out->tiling = to_public(&l->tiling);
  snprintf(out->description, sizeof out->description,
           "%s %s, %s: %d cores at %.2f GHz, %d rows x %d keys",
           schedules[sim->tiling ? 4 : (int)sim->schedule], mode, preset->name, r->cores,
           preset->ghz, ascend_min(ascend_block_rows(p), ascend_most_rows(&l->tiling)),
           l->tiling.tile_keys);
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

static amla_status check_arguments(const amla_problem *p, amla_rescale rescale,
                                   const int32_t *seqlens_k, const amla_sim_options *o,
                                   const amla_sim_report *report, amla_detail *detail) {
  if (!o || o->struct_bytes != sizeof *o)
    INVALID("sim.struct_bytes: use AMLA_SIM_OPTIONS_INIT of this version");
  if (!report || report->struct_bytes != sizeof *report)
    INVALID("report.struct_bytes: use AMLA_SIM_REPORT_INIT of this version");
  if (p->b == 0)
    INVALID("b=0: nothing to simulate");
  if (!(o->efficiency >= 0 && o->efficiency <= 1))
    INVALID("efficiency=%g: must be in 0..1", o->efficiency);
  if (o->assume_bumps < 0)
    INVALID("assume_bumps=%d: must be >= 0", o->assume_bumps);
  for (int32_t i = 0; seqlens_k && i < p->b; i++)
    if (seqlens_k[i] < 0 || seqlens_k[i] > p->sk)
      INVALID("seqlens_k[%d]=%d: must be in [0, sk=%d]", i, seqlens_k[i], p->sk);
  return ascend_check(p, rescale, detail);
}

amla_status amla_sim_run(const amla_problem *problem, const amla_options *options,
                         const int32_t *seqlens_k, const amla_sim_options *sim,
                         amla_sim_report *report, amla_detail *detail) {
  amla_problem p;
  amla_options o;
  amla_tensors t = AMLA_TENSORS_INIT;
  ascend_launch l;
  npu_preset preset;
  npu_chip *chip;
  npu_report r;
  amla_status status;
  TRY(amla_problem_check(problem, &p, detail));
  TRY(amla_options_check(options, &o, detail));
  TRY(check_arguments(&p, o.rescale, seqlens_k, sim, report, detail));
  o.split_tokens = AMLA_SPLIT_AUTO;
  l = ascend_launch_of(&p, &o);
  l.layout.nz = sim->kv_nz, l.layout.d_rope = sim->d_rope, l.layout.int8 = sim->kv_int8;
  l.assume_bumps = sim->assume_bumps, l.unguarded = sim->unguarded_add && l.mode == ASCEND_AMLA;
  l.options.cores = sim->cores, l.options.check_races = sim->check_races ? 1 : -1,
  l.options.trace = sim->trace_path || sim->event;
  TRY(choose_tiling(&p, sim, &l.tiling, detail));
  TRY(ascend_chip_create(sim, "910", &preset, &chip, detail));
  t.seqlens_k = seqlens_k;
  status = ascend_launch_run(chip, &preset, NPU_TIMING_ONLY, &p, &t, &l, &r, detail);
  if (status == AMLA_OK)
    fill_report(&p, seqlens_k, &preset, &l, sim, &r, report);
  if (status == AMLA_OK)
    status = hand_out_trace(sim, &preset, &r, detail);
  npu_chip_destroy(chip);
  return status == AMLA_OK ? amla_accept(detail) : status;
}
