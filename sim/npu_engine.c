/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine: a discrete-event simulation. Each core's C code fills the queues of its pipes; each
 * pipe takes its queue in order. An instruction's effect happens at its start, in the order of
 * simulated time. What it costs is looked up, and never looked at by anything but the clock.
 */
#include "npu_core.h"

#include <math.h>
#include <stdlib.h>

/* ---- Queues ---- */

static npu_clock *known_clock(npu_core *core) {
  if (!core->chip->race)
    return NULL;
  if (!core->known)
    core->known = npu_clock_snapshot(core, NPU_PIPE_S);
  return npu_clock_share(core->known);
}

void npu_append(npu_core *core, npu_pipe pipe, npu_instr *i) {
  while (core->stream_count == STREAM)
    npu_pause(core, STALL_STREAM);
  i->pipe = (uint8_t)pipe;
  i->known = pipe == NPU_PIPE_S ? NULL : known_clock(core);
  i->file = core->file, i->line = core->line;
  core->stream[(core->stream_head + core->stream_count++) % STREAM] = *i;
  core->pipe[pipe].issued++;
}

/* Issues the first of the stream: true, or false if its queue is full. */
static bool issue_first(npu_core *core) {
  npu_instr *i = &core->stream[core->stream_head];
  npu_queue *q = &core->pipe[i->pipe];
  if (!core->spent)
    npu_spend(core, i->pipe == NPU_PIPE_S ? npu_ops[i->op].cost : COST_S_ISSUE);
  core->spent = true;
  if (i->pipe != NPU_PIPE_S) {
    if (q->count == NPU_QUEUE_DEPTH) {
      core->full_queue = (npu_pipe)i->pipe;
      return false;
    }
    i->issue_cycle = core->now;
    q->slot[(q->head + q->count) % NPU_QUEUE_DEPTH] = *i;
    if (++q->count == 1)
      npu_wake_pipe(core, (npu_pipe)i->pipe, core->now);
  }
  core->spent = false;
  core->stream_head = (core->stream_head + 1) % STREAM;
  core->stream_count--;
  return true;
}

/* The scalar unit issues what it can. */
static void feed(npu_core *core) {
  if (core->full_queue != NPU_PIPE_ALL)
    return;
  while (core->stream_count && issue_first(core))
    continue;
  if ((core->stall == STALL_STREAM && core->stream_count <= STREAM / 2) ||
      (core->stall == STALL_FLUSH && core->stream_count == 0))
    npu_wake_core(core, core->chip->now);
}

/* A queue has room again. */
static void queue_has_room(npu_core *core, npu_pipe pipe) {
  if (core->full_queue != pipe)
    return;
  core->full_queue = NPU_PIPE_ALL;
  core->now = npu_later(core->now, core->chip->now);
  feed(core);
}

void npu_issue(npu_instr *i) {
  npu_core *core = npu_self;
  i->file = core->file, i->line = core->line;
  if (!npu_check_instr(core, i))
    npu_stop_here(core);
  npu_append(core, npu_ops[i->op].pipe, i);
}

/* ---- Pipes ---- */

static int64_t cycles_of(const npu_chip *chip, const npu_instr *i, int64_t work) {
  const npu_cost *cost = &chip->cost[npu_ops[i->op].cost];
  int64_t cycles = (int64_t)cost->fixed_cycles + (int64_t)ceil((double)work / cost->rate);
  if (i->v.count)
    cycles += (int64_t)chip->cost[COST_V_COUNTED].fixed_cycles;
  return cycles;
}

static void count_bytes(npu_report *r, const npu_instr *i, int64_t work) {
  switch (npu_ops[i->op].cost) {
  case COST_MTE2_L1:
  case COST_MTE2_L1_NZ: r->gm_l1_bytes += work; break;
  case COST_MTE2_UB: r->gm_ub_bytes += work; break;
  case COST_MTE3_UB:
  case COST_MTE3_ADD: r->ub_gm_bytes += work; break;
  case COST_MTE1_L0A: r->l1_l0a_bytes += work; break;
  case COST_MTE1_L0B: r->l1_l0b_bytes += work; break;
  case COST_FIX_F32:
  case COST_FIX_ADD: r->l0c_gm_bytes += work; break;
  case COST_FIX_BF16: r->l0c_gm_bytes += work / 2; break;
  case COST_M_MMAD: r->products += (double)work; break;
  default: break;
  }
}

static void record(npu_core *core, npu_pipe pipe, const npu_instr *i, int64_t start, int64_t end) {
  npu_chip *chip = core->chip;
  if (chip->n_trace == chip->trace_capacity) {
    const int64_t capacity = chip->trace_capacity ? 2 * chip->trace_capacity : 1 << 14;
    npu_trace_event *grown = realloc(chip->trace, (size_t)capacity * sizeof *grown);
    if (!grown) {
      chip->stopped = chip->out_of_memory = true;
      return;
    }
    chip->trace = grown, chip->trace_capacity = capacity;
  }
  chip->trace[chip->n_trace++] = (npu_trace_event){
      start, end, core->block, core->subcore, (int32_t)pipe, i->line, npu_ops[i->op].name, i->file};
}

static bool touches_gm(npu_pipe pipe, npu_opcode op) {
  return pipe == NPU_PIPE_FIX || pipe == NPU_PIPE_MTE3 ||
         (pipe == NPU_PIPE_MTE2 && op != OP_FILL_L1);
}

static void watch(const npu_core *core, const npu_instr *i) {
  const npu_region *piece = npu_find_region(core->chip, (uintptr_t)i->dst);
  npu_watched w = {.block = core->block,
                   .subcore = core->subcore,
                   .name = npu_ops[i->op].name,
                   .dst = i->dst,
                   .src = i->src0,
                   .scalar = i->scalar.f,
                   .ub = core->local[SPACE_UB]};
  if (piece) {
    w.piece = piece->name;
    w.offset_bytes = (const char *)i->dst - piece->base;
  } else if (w.ub) {
    w.offset_bytes = (const char *)i->dst - core->local[SPACE_UB];
  }
  core->chip->options.watch(core->chip->options.watch_context, &w);
}

/* An instruction starts now: the observers look at it, then it does what it does. */
static void execute(npu_core *core, npu_pipe pipe, const npu_instr *i) {
  npu_chip *chip = core->chip;
  npu_queue *q = &core->pipe[pipe];
  const npu_op *op = &npu_ops[i->op];
  const bool gm = touches_gm(pipe, (npu_opcode)i->op);
  const int64_t useful = op->family->work(i);
  int64_t work = useful, shared_end = 0, latency = (int64_t)chip->cost[op->cost].latency_cycles;
  npu_range range[MAX_RANGES];
  const int32_t n = gm || chip->race || chip->checks_written ? op->family->ranges(i, range) : 0;

  for (int32_t r = 0; gm && r < n; r++) {
    if (range[r].space != SPACE_GM)
      continue;
    const npu_moved moved = npu_cache_transfer(chip, core, &range[r]);
    work = npu_later(work, moved.bytes), shared_end = moved.end_cycle;
    if (moved.missed)
      latency += (int64_t)chip->cost[COST_HBM_MISS].latency_cycles;
  }
  const int64_t hold = cycles_of(chip, i, work);
  const int64_t start = npu_later(chip->now, q->least_end_cycle - hold);
  const int64_t end = npu_later(start + hold, shared_end);
  count_bytes(chip->report, i, useful);
  if (chip->race)
    npu_race_check(core, pipe, i, range, n);
  if (chip->checks_written)
    npu_written_check(core, pipe, i, range, n);
  if (chip->options.trace)
    record(core, pipe, i, start, end);

  if (chip->options.watch)
    watch(core, i);

  if (chip->mode == NPU_FUNCTIONAL)
    npu_apply(i);

  q->free_cycle = end;
  q->done_cycle = npu_later(q->done_cycle, end + latency);
  q->busy_cycles += end - start;
  q->least_end_cycle = 0;
  chip->report->instructions++;
}

enum { NEVER = -1 };

/* When the head of a queue can go, as far as it is known now. */
static int64_t ready_cycle(const npu_core *core, const npu_queue *q, const npu_instr *i) {
  const int64_t turn = npu_later(i->issue_cycle, q->free_cycle);
  switch (i->op) {
  case OP_WAIT:
  case OP_CROSS_WAIT: return turn > core->chip->now || npu_is_set(core, i) ? turn : NEVER;
  case OP_BARRIER: return npu_later(turn, q->done_cycle);
  case OP_NOTIFY:
  case OP_NOTIFY_UNIT:
  case OP_CROSS_SET:
    return i->issue_cycle; /* it takes effect when all before it is done; what comes after it does
                              not wait for that */
  default: return turn;
  }
}

static void go(npu_core *core, npu_pipe pipe, npu_queue *q, const npu_instr *i) {
  q->started++;
  if (core->chip->race && i->known && i->known->serial != q->joined) {
    npu_clock_join(core, pipe, i->known);
    q->joined = i->known->serial;
  }
  switch (i->op) {
  case OP_WAIT:
  case OP_CROSS_WAIT: npu_take(core, pipe, i); break;
  case OP_BARRIER: break;
  case OP_NOTIFY_UNIT: npu_send(core, pipe, i, core->chip->now); break;
  case OP_NOTIFY:
  case OP_CROSS_SET: npu_send(core, pipe, i, npu_later(core->chip->now, q->done_cycle)); break;
  default: execute(core, pipe, i);
  }
}

static void run_pipe(npu_core *core, npu_pipe pipe) {
  npu_chip *chip = core->chip;
  npu_queue *q = &core->pipe[pipe];
  q->blocked = q->wake_pending = false;
  while (q->count && !chip->stopped) {
    npu_instr *i = &q->slot[q->head];
    const int64_t ready = ready_cycle(core, q, i);
    if (ready == NEVER) {
      q->blocked = true;
      break;
    }
    if (ready > chip->now) {
      npu_wake_pipe(core, pipe, ready);
      break;
    }
    go(core, pipe, q, i);
    npu_clock_release(i->known);
    q->head = (q->head + 1) % NPU_QUEUE_DEPTH;
    q->count--;
    queue_has_room(core, pipe);
  }
  if (core->stall == STALL_DRAIN && npu_drained(core))
    npu_wake_core(core, chip->now);
}

/* ---- The simulation ---- */

void npu_simulate(npu_chip *chip) {
  while (chip->heap_count && !chip->stopped) {
    const npu_event e = npu_pop_event(chip);
    chip->now = e.cycle;
    switch (e.kind) {
    case EVENT_PIPE: run_pipe(e.core, (npu_pipe)e.to); break;
    case EVENT_RESUME:
      npu_resume(e.core);
      feed(e.core);
      break;
    default: npu_event_arrives(&e);
    }
  }
}
