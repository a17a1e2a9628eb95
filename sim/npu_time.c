/* SPDX-License-Identifier: Apache-2.0
 *
 * Simulated time: the heap of coming events, and the C code of each core as a coroutine that is
 * resumed and paused by them.
 */
#include "npu_core.h"

#include <stdlib.h>

_Thread_local npu_core *npu_self;

/* ---- Events of simulated time: a binary heap ---- */

static bool before(const npu_event *a, const npu_event *b) {
  return a->cycle != b->cycle ? a->cycle < b->cycle : a->order < b->order;
}

void npu_push_event(npu_chip *chip, npu_event e) {
  if (chip->heap_count == chip->heap_capacity) {
    const int64_t capacity = chip->heap_capacity ? 2 * chip->heap_capacity : 4096;
    npu_event *grown = realloc(chip->heap, (size_t)capacity * sizeof *grown);
    if (!grown) {
      chip->stopped = chip->out_of_memory = true;
      npu_clock_release(e.clock);
      return;
    }
    chip->heap = grown, chip->heap_capacity = capacity;
  }
  e.order = chip->order++;
  int64_t at = chip->heap_count++;
  for (; at > 0 && before(&e, &chip->heap[(at - 1) / 2]); at = (at - 1) / 2)
    chip->heap[at] = chip->heap[(at - 1) / 2];
  chip->heap[at] = e;
}

npu_event npu_pop_event(npu_chip *chip) {
  npu_event *heap = chip->heap;
  const npu_event first = heap[0], last = heap[--chip->heap_count];
  const int64_t n = chip->heap_count;
  int64_t at = 0;
  for (int64_t child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && before(&heap[child + 1], &heap[child]))
      child++;
    if (!before(&heap[child], &last))
      break;
    heap[at] = heap[child];
  }
  heap[at] = last;
  return first;
}

void npu_wake_pipe(npu_core *core, npu_pipe pipe, int64_t cycle) {
  if (core->pipe[pipe].wake_pending)
    return; /* never later: a pipe knows when its head can go, or waits for an event */
  core->pipe[pipe].wake_pending = true;
  npu_push_event(core->chip, (npu_event){.cycle = npu_later(cycle, core->chip->now),
                                         .kind = EVENT_PIPE,
                                         .core = core,
                                         .to = (uint8_t)pipe});
}

void npu_wake_core(npu_core *core, int64_t cycle) {
  if (core->resume_pending)
    return;
  core->resume_pending = true;
  npu_push_event(
      core->chip,
      (npu_event){.cycle = npu_later(cycle, core->chip->now), .kind = EVENT_RESUME, .core = core});
}

/* ---- The C code of a core: a coroutine ---- */

void npu_pause(npu_core *core, npu_stall why) {
  core->stall = why;
  swapcontext(&core->context, &core->chip->scheduler);
  core->now = npu_later(core->now, core->chip->now);
}

void npu_stop_here(
    npu_core *core) { /* after a refusal: the launch is over, this stack is never needed again */
  for (;;)
    npu_pause(core, STALL_TIME);
}

void npu_core_main(void) {
  npu_core *core = npu_self;
  core->kernel(core->chip->args);
  for (;;) {
    core->stall = STALL_DONE;
    swapcontext(&core->context, &core->chip->scheduler);
  }
}

void npu_resume(npu_core *core) {
  core->resume_pending = false;
  core->stall = STALL_NONE;
  npu_self = core;
  swapcontext(&core->chip->scheduler, &core->context);
  npu_self = NULL;
}

void npu_flush(npu_core *core) {
  while (core->stream_count)
    npu_pause(core, STALL_FLUSH);
}

void npu_spend(npu_core *core, npu_cost_id cost) {
  const npu_cost *c = &core->chip->cost[cost];
  core->now += (int64_t)c->fixed_cycles;
  core->pipe[NPU_PIPE_S].busy_cycles += (int64_t)c->fixed_cycles;
}

bool npu_drained(const npu_core *core) {
  for (int p = NPU_PIPE_MTE1; p < NPU_PIPES; p++)
    if (core->pipe[p].count)
      return false;
  return true;
}

void npu_drain(npu_core *core) {
  npu_flush(core);
  npu_spend(core, COST_S_ISSUE);
  while (!npu_drained(core))
    npu_pause(core, STALL_DRAIN);
  for (int p = NPU_PIPE_MTE1; p < NPU_PIPES; p++) {
    core->now = npu_later(core->now, core->pipe[p].done_cycle);
    if (core->chip->race)
      npu_clock_join_pipe(core, NPU_PIPE_S, core, (npu_pipe)p);
  }
}
