/* SPDX-License-Identifier: Apache-2.0
 *
 * The synchronisation calls of npu_isa.h: events, flags and barriers, over npu_flags.c; and the
 * places of the kernel that wait, which are numbered so that a launch can leave one out.
 */
#include "npu_core.h"

#include <stdlib.h>

/* ---- Checks ---- */

static bool has_pipe(const npu_core *core, int32_t pipe) {
  switch (pipe) {
  case NPU_PIPE_S:
  case NPU_PIPE_MTE2: return true;
  case NPU_PIPE_MTE1:
  case NPU_PIPE_M:
  case NPU_PIPE_FIX: return core->subcore < 0;
  case NPU_PIPE_MTE3:
  case NPU_PIPE_V: return core->subcore >= 0;
  default: return false;
  }
}

static void check_pipe(npu_core *core, const npu_instr *i, const char *field, int32_t pipe) {
  if (!has_pipe(core, pipe)) {
    npu_refuse(core, i, field, pipe, "not a pipe of this core");
    npu_stop_here(core);
  }
}

static void check_id(npu_core *core, const npu_instr *i, const char *field, int32_t id,
                     int32_t most, const char *rule) {
  if (id < 0 || id > most) {
    npu_refuse(core, i, field, id, rule);
    npu_stop_here(core);
  }
}

npu_instr npu_make_sync(npu_core *core, npu_opcode op, npu_pipe from, npu_pipe to, int32_t id) {
  npu_instr i = {0};
  i.op = (uint8_t)op, i.from = (uint8_t)from, i.to = (uint8_t)to, i.event = (uint8_t)id;
  i.file = core->file, i.line = core->line;
  return i;
}

static npu_instr make_event(npu_core *core, npu_opcode op, npu_pipe from, npu_pipe to,
                            int32_t event) {
  const npu_instr i = npu_make_sync(core, op, from, to, event);
  check_pipe(core, &i, "from", (int32_t)from);
  check_pipe(core, &i, "to", (int32_t)to);
  if (from == to) {
    npu_refuse(core, &i, "to", (long long)to, "must be another pipe than from");
    npu_stop_here(core);
  }
  check_id(core, &i, "event", event, NPU_EVENTS - 1, "0 to 7");
  return i;
}

static npu_instr make_flag(npu_core *core, npu_opcode op, npu_pipe pipe, int32_t flag) {
  const npu_instr i = npu_make_sync(core, op, pipe, pipe, flag);
  check_pipe(core, &i, "pipe", (int32_t)pipe);
  check_id(core, &i, "flag", flag, NPU_FLAGS - 1, "0 to 15");
  return i;
}

/* The k-th wait for a flag takes the k-th set, whatever the costs, only if one pipe of a core sets
 * it and one waits. */
static void claim_flag(npu_core *core, npu_flag_user *user, const npu_instr *i, const char *role) {
  if (!user->known)
    *user = (npu_flag_user){true, false, i->from, i->line, i->file};
  if (user->pipe == i->from || user->told)
    return;
  user->told = true;
  npu_report_ambiguous(core, role, user, i);
}

static void set_or_append(npu_core *core, npu_pipe pipe, npu_instr *i) {
  if (pipe != NPU_PIPE_S) {
    npu_append(core, pipe, i);
    return;
  }
  npu_flush(core);
  npu_spend(core, COST_S_ISSUE);
  npu_send(core, NPU_PIPE_S, i, core->now);
}

static void wait_or_append(npu_core *core, npu_pipe pipe, npu_instr *i) {
  if (pipe != NPU_PIPE_S) {
    npu_append(core, pipe, i);
    return;
  }
  npu_flush(core);
  npu_spend(core, COST_S_ISSUE);
  while (!npu_is_set(core, i)) {
    core->stall_from = (npu_pipe)(i->op == OP_WAIT ? i->from : NPU_PIPE_ALL),
    core->stall_event = i->event;
    npu_pause(core, STALL_EVENT);
  }
  npu_take(core, NPU_PIPE_S, i);
}

/* ---- Places that wait ---- */

static uint32_t place_hash(const npu_wait_place *p) {
  uint64_t h = (uint64_t)(uintptr_t)p->file ^ (uint64_t)p->line << 32 ^
               (uint64_t)(p->op * 7 + p->from) << 20 ^ (uint64_t)(p->to * 16 + p->event) << 8;
  h *= 0x9e3779b97f4a7c15u;
  return (uint32_t)(h >> 32);
}

static bool same_place(const npu_wait_place *a, const npu_wait_place *b) {
  return a->file == b->file && a->line == b->line && a->op == b->op && a->from == b->from &&
         a->to == b->to && a->event == b->event;
}

static bool grow_places(npu_chip *chip) {
  const int32_t size = chip->place_index_size ? 2 * chip->place_index_size : 256;
  int32_t *index = calloc((size_t)size, sizeof *index);
  npu_wait_place *places = realloc(chip->place, (size_t)size / 2 * sizeof *places);
  if (places)
    chip->place = places;
  if (!index || !places) {
    free(index);
    return false;
  }
  for (int32_t p = 0; p < chip->n_places; p++) {
    uint32_t at = place_hash(&chip->place[p]) & (uint32_t)(size - 1);
    while (index[at])
      at = (at + 1) & (uint32_t)(size - 1);
    index[at] = p + 1;
  }
  free(chip->place_index);
  chip->place_index = index, chip->place_index_size = size, chip->place_capacity = size / 2;
  return true;
}

/* The 1-based number of the place that waits here. */
static int32_t wait_place(npu_chip *chip, const npu_instr *i) {
  const npu_wait_place p = {i->file, i->line, i->op, i->from, i->to, i->event};
  if (chip->n_places == chip->place_capacity && !grow_places(chip)) {
    chip->stopped = chip->out_of_memory = true;
    return 0;
  }
  uint32_t at = place_hash(&p) & (uint32_t)(chip->place_index_size - 1);
  for (; chip->place_index[at]; at = (at + 1) & (uint32_t)(chip->place_index_size - 1))
    if (same_place(&chip->place[chip->place_index[at] - 1], &p))
      return chip->place_index[at];
  chip->place[chip->n_places++] = p;
  return chip->place_index[at] = chip->n_places;
}

static bool dropped(npu_chip *chip, const npu_instr *i) {
  chip->report->waits++;
  return wait_place(chip, i) == chip->options.drop_wait && chip->options.drop_wait > 0;
}

/* ---- Calls ---- */

void npu_notify(npu_pipe from, npu_pipe to, int32_t event) {
  npu_core *core = npu_self;
  npu_instr i = make_event(core, OP_NOTIFY, from, to, event);
  set_or_append(core, from, &i);
}

void npu_notify_unit(npu_pipe from, npu_pipe to, int32_t event) {
  npu_core *core = npu_self;
  npu_instr i = make_event(core, OP_NOTIFY_UNIT, from, to, event);
  const bool pair =
      (from == NPU_PIPE_M && to == NPU_PIPE_FIX) || (from == NPU_PIPE_FIX && to == NPU_PIPE_M);
  if (!pair) {
    npu_refuse(core, &i, "from", (long long)from, "a unit flag is between M and FIX");
    npu_stop_here(core);
  }
  npu_append(core, from, &i);
}

void npu_wait(npu_pipe from, npu_pipe to, int32_t event) {
  npu_core *core = npu_self;
  npu_instr i = make_event(core, OP_WAIT, from, to, event);
  if (!dropped(core->chip, &i))
    wait_or_append(core, to, &i);
}

void npu_cross_set(npu_pipe pipe, int32_t flag) {
  npu_core *core = npu_self;
  npu_instr i = make_flag(core, OP_CROSS_SET, pipe, flag);
  claim_flag(core, &core->setter[flag], &i, "setter");
  set_or_append(core, pipe, &i);
}

void npu_cross_wait(npu_pipe pipe, int32_t flag) {
  npu_core *core = npu_self;
  npu_instr i = make_flag(core, OP_CROSS_WAIT, pipe, flag);
  if (dropped(core->chip, &i))
    return;
  claim_flag(core, &core->waiter[flag], &i, "waiter");
  wait_or_append(core, pipe, &i);
}

void npu_barrier(npu_pipe pipe) {
  npu_core *core = npu_self;
  if (pipe == NPU_PIPE_ALL) {
    npu_drain(core);
    return;
  }
  npu_instr i = npu_make_sync(core, OP_BARRIER, pipe, pipe, 0);
  check_pipe(core, &i, "pipe", (int32_t)pipe);
  if (pipe != NPU_PIPE_S)
    npu_append(core, pipe, &i);
}

static void release_barrier(npu_chip *chip) {
  const int64_t cycle = chip->barrier_cycle + (int64_t)chip->cost[COST_CHIP_BARRIER].fixed_cycles;
  npu_core *first = &chip->core[0];
  if (chip->race) { /* everybody knows what everybody knew */
    for (int32_t c = 1; c < chip->n_cores; c++)
      npu_clock_join_pipe(first, NPU_PIPE_S, &chip->core[c], NPU_PIPE_S);
    for (int32_t c = 1; c < chip->n_cores; c++)
      npu_clock_join_pipe(&chip->core[c], NPU_PIPE_S, first, NPU_PIPE_S);
  }
  for (int32_t c = 0; c < chip->n_cores; c++)
    if (chip->core[c].kernel)
      npu_wake_core(&chip->core[c], cycle);
  chip->at_barrier = 0, chip->barrier_cycle = 0;
}

void npu_barrier_all(void) {
  npu_core *core = npu_self;
  npu_chip *chip = core->chip;
  int32_t expected = 0;
  for (int32_t c = 0; c < chip->n_cores; c++)
    expected += chip->core[c].kernel != NULL;
  npu_drain(core);
  chip->barrier_cycle = npu_later(chip->barrier_cycle, core->now);
  if (++chip->at_barrier == expected)
    release_barrier(chip);
  npu_pause(core, STALL_BARRIER_ALL);
}
