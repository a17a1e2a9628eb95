/* SPDX-License-Identifier: Apache-2.0
 *
 * Events between the pipes of a core and flags between the cores of a block: how they are set, when
 * that arrives, and what a wait takes. The calls are in npu_sync.c, above the engine.
 */
#include "npu_core.h"

static void counter_set(npu_core *core, npu_counter *c, const npu_event *e) {
  const bool flag = e->kind == EVENT_CROSS;
  char name[32], what[64];
  if (c->count == (flag ? NPU_FLAG_MAX : 1)) {
    if (flag)
      snprintf(what, sizeof what, "flag %d", e->id);
    else
      snprintf(what, sizeof what, "event %s->%s %d", npu_pipe_name(e->from), npu_pipe_name(e->to),
               e->id);
    npu_report_error(core->chip, NPU_ERROR_OVERFLOW,
                     "overflow: %s, %s: set %d times without a wait, at most %d",
                     npu_core_name(core, name, sizeof name), what, c->count + 1, c->count);
    npu_clock_release(e->clock);
    return;
  }
  const int32_t last = (c->head + c->count++) % NPU_FLAG_MAX;
  c->clock[last] = e->clock, c->least_end_cycle[last] = e->least_end_cycle;
}

static void counter_take(npu_core *core, npu_pipe pipe, npu_counter *c) {
  npu_clock *clock = c->clock[c->head];
  npu_queue *q = &core->pipe[pipe];
  q->least_end_cycle = npu_later(q->least_end_cycle, c->least_end_cycle[c->head]);
  c->clock[c->head] = NULL;
  c->head = (c->head + 1) % NPU_FLAG_MAX;
  c->count--;
  if (core->chip->race)
    npu_clock_join(core, pipe, clock);
  npu_clock_release(clock);
}

bool npu_is_set(const npu_core *core, const npu_instr *i) {
  if (i->op == OP_WAIT)
    return core->event[i->from][i->to][i->event].count > 0;
  return core->flag[0][i->event].count > 0 &&
         (core->subcore >= 0 || core->flag[1][i->event].count > 0);
}

void npu_take(npu_core *core, npu_pipe pipe, const npu_instr *i) {
  if (i->op == OP_WAIT) {
    counter_take(core, pipe, &core->event[i->from][i->to][i->event]);
    return;
  }
  counter_take(core, pipe, &core->flag[0][i->event]);
  if (core->subcore < 0)
    counter_take(core, pipe, &core->flag[1][i->event]);
}

static void wake_waiters(npu_core *core) {
  if (core->stall == STALL_EVENT)
    npu_wake_core(core, core->chip->now);
  for (int p = NPU_PIPE_MTE1; p < NPU_PIPES; p++)
    if (core->pipe[p].blocked)
      npu_wake_pipe(core, (npu_pipe)p, core->chip->now);
}

void npu_event_arrives(const npu_event *e) {
  npu_core *core = e->core;
  counter_set(
      core,
      e->kind == EVENT_SET ? &core->event[e->from][e->to][e->id] : &core->flag[e->from][e->id], e);
  wake_waiters(core);
}

/* A notify or cross_set of `pipe` takes effect at `cycle`. */
void npu_send(npu_core *core, npu_pipe pipe, const npu_instr *i, int64_t cycle) {
  npu_chip *chip = core->chip;
  npu_clock *clock = chip->race ? npu_clock_snapshot(core, pipe) : NULL;
  npu_event e = {.kind = EVENT_SET,
                 .core = core,
                 .from = i->from,
                 .to = i->to,
                 .id = i->event,
                 .clock = clock};
  if (i->op == OP_NOTIFY || i->op == OP_NOTIFY_UNIT) {
    if (i->op == OP_NOTIFY_UNIT)
      e.least_end_cycle = core->pipe[pipe].done_cycle;
    e.cycle = cycle + (int64_t)chip->cost[COST_EVENT_HOP].latency_cycles;
    npu_push_event(chip, e);
    return;
  }
  npu_core *const aic = core - core->id % CORES_PER_BLOCK;
  e.kind = EVENT_CROSS;
  e.cycle = cycle + (int64_t)chip->cost[COST_CROSS_HOP].latency_cycles;
  if (core->subcore >= 0) {
    e.core = aic, e.from = (uint8_t)core->subcore;
    npu_push_event(chip, e);
    return;
  }
  for (int sub = 0; sub < 2; sub++) {
    e.core = aic + 1 + sub, e.from = 0, e.clock = sub ? npu_clock_share(clock) : clock;
    npu_push_event(chip, e);
  }
}
