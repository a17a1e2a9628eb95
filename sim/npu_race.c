/* SPDX-License-Identifier: Apache-2.0
 *
 * The race checker. Happens-before by vector clocks: one component per pipe and C code of each
 * core, which counts its instructions; synchronisation joins clocks. A shadow of every buffer
 * remembers, per 32-byte granule, the last exclusive access (write or f32 add) and all shared ones
 * since (reads; s32 adds, which commute). Granules that instructions touch in part split into
 * bytes. Two accesses conflict unless both are reads or both s32 adds; a conflict without order is
 * a race. Read-only pieces of GM need no shadow.
 */
#include "npu_core.h"

#include <stdlib.h>
#include <string.h>

enum { GRANULE = 32 };

typedef struct stamp { /* an access: who, and its number there */
  uint32_t component, count;
} stamp;

typedef struct shared_access {
  stamp who;
  int32_t next; /* in npu_race.pool; 0 = end */
  uint8_t access;
} shared_access;

typedef struct npu_cell {
  stamp exclusive; /* count 0: none */
  int32_t shared;  /* list in npu_race.pool */
  int32_t split;   /* > 0: the granule's bytes are npu_race.split[split - 1] */
  uint8_t access;  /* of exclusive */
} npu_cell;

typedef struct npu_note { /* what an instruction was, for reports */
  const char *file;
  int32_t line;
  uint8_t op;
} npu_note;

typedef struct npu_history {
  npu_note *note; /* by number - 1 */
  uint32_t capacity;
} npu_history;

typedef struct npu_pair { /* two places of the kernel whose instructions raced: told once in words
                           */
  npu_note first, second;
} npu_pair;

typedef struct finding { /* another instruction that the one being checked races with, and in which
                            bytes of the operand */
  stamp other;
  uintptr_t first, end;
  uint8_t other_access;
} finding;

enum { TOLD = 64, FOUND = 64, SPLIT = GRANULE };

typedef struct npu_race {
  int32_t components;
  uint64_t clocks;  /* made so far */
  npu_cell **local; /* [cores * SPACES] */
  npu_history *history;
  shared_access *pool;
  int32_t pool_count, pool_capacity, pool_free;
  npu_cell (*split)[SPLIT];
  int32_t split_count, split_capacity;
  npu_pair told[TOLD];
  int32_t n_told;
  /* The access being checked. */
  npu_chip *chip;
  npu_core *core;
  npu_pipe pipe;
  const npu_instr *instr;
  const npu_range *range;
  uint32_t *clock;
  stamp me;
  finding found[FOUND];
  int32_t n_found;
} npu_race;

static uint32_t component(const npu_core *core, npu_pipe pipe) {
  return (uint32_t)(core->id * CLOCK_SLOTS + (int32_t)pipe);
}

/* ---- Clocks ---- */

npu_clock *npu_clock_snapshot(npu_core *core, npu_pipe pipe) {
  const size_t bytes = (size_t)core->chip->race->components * sizeof(uint32_t);
  npu_clock *c = malloc(sizeof *c + bytes);
  if (!c) {
    core->chip->stopped = core->chip->out_of_memory = true;
    return NULL;
  }
  c->references = 1, c->serial = ++core->chip->race->clocks;
  memcpy(c->at, core->pipe[pipe].clock, bytes);
  return c;
}

npu_clock *npu_clock_share(npu_clock *clock) {
  if (clock)
    clock->references++;
  return clock;
}

void npu_clock_release(npu_clock *clock) {
  if (clock && --clock->references == 0)
    free(clock);
}

static void join(npu_core *core, npu_pipe pipe, const uint32_t *from) {
  uint32_t *to = core->pipe[pipe].clock;
  for (int32_t c = 0; c < core->chip->race->components; c++)
    if (from[c] > to[c])
      to[c] = from[c];
  if (pipe == NPU_PIPE_S) { /* what it issues from now on knows more */
    npu_clock_release(core->known);
    core->known = NULL;
  }
}

void npu_clock_join(npu_core *core, npu_pipe pipe, const npu_clock *clock) {
  if (clock)
    join(core, pipe, clock->at);
}

void npu_clock_join_pipe(npu_core *core, npu_pipe pipe, const npu_core *other,
                         npu_pipe other_pipe) {
  join(core, pipe, other->pipe[other_pipe].clock);
}

/* ---- Begin, end ---- */

bool npu_race_begin(npu_chip *chip) {
  npu_race *race = chip->race = calloc(1, sizeof *race);
  if (!race)
    return false;
  race->chip = chip;
  race->components = chip->n_cores * CLOCK_SLOTS;
  race->local = calloc((size_t)chip->n_cores * SPACES, sizeof *race->local);
  race->history = calloc((size_t)race->components, sizeof *race->history);
  race->pool_count = 1; /* 0 is the end of a list */
  if (!race->local || !race->history)
    return false;
  for (int32_t c = 0; c < chip->n_cores; c++)
    for (int p = 0; p < NPU_PIPES; p++) {
      chip->core[c].pipe[p].clock = calloc((size_t)race->components, sizeof(uint32_t));
      if (!chip->core[c].pipe[p].clock)
        return false;
    }
  return true;
}

static size_t cells_of(size_t bytes) { return bytes / GRANULE + 2; }

void npu_race_end(npu_chip *chip) {
  npu_race *race = chip->race;
  for (int32_t r = 0; r < chip->n_regions; r++) {
    npu_unmap(chip->region[r].cells, cells_of(chip->region[r].bytes) * sizeof(npu_cell));
    chip->region[r].cells = NULL;
  }
  if (!race)
    return;
  for (int32_t c = 0; c < chip->n_cores; c++) {
    for (int p = 0; p < NPU_PIPES; p++)
      free(chip->core[c].pipe[p].clock);
    for (int s = SPACE_L1; race->local && s < SPACES; s++)
      npu_unmap(race->local[c * SPACES + s],
                cells_of((size_t)npu_buffer_bytes(chip, (npu_space)s)) * sizeof(npu_cell));
  }
  for (int32_t c = 0; race->history && c < race->components; c++)
    free(race->history[c].note);
  free(race->local), free(race->history), free(race->pool), free(race->split);
  free(race);
  chip->race = NULL;
}

/* ---- History ---- */

static void note(npu_race *race) {
  npu_history *h = &race->history[race->me.component];
  if (race->me.count > h->capacity) {
    const uint32_t capacity = 2 * race->me.count + 64;
    npu_note *grown = realloc(h->note, (size_t)capacity * sizeof *grown);
    if (!grown) {
      race->chip->stopped = race->chip->out_of_memory = true;
      return;
    }
    memset(grown + h->capacity, 0, (size_t)(capacity - h->capacity) * sizeof *grown);
    h->note = grown, h->capacity = capacity;
  }
  h->note[race->me.count - 1] = (npu_note){race->instr->file, race->instr->line, race->instr->op};
}

static npu_note noted(const npu_race *race, stamp who) {
  static const npu_note nothing;
  const npu_history *h = &race->history[who.component];
  return who.count >= 1 && who.count <= h->capacity ? h->note[who.count - 1] : nothing;
}

/* ---- Reports ---- */

static bool same_note(npu_note a, npu_note b) {
  return a.op == b.op && a.line == b.line && a.file == b.file;
}

static bool told_already(npu_race *race, npu_note first, npu_note second) {
  for (int32_t t = 0; t < race->n_told; t++)
    if (same_note(race->told[t].first, first) && same_note(race->told[t].second, second))
      return true;
  if (race->n_told < TOLD)
    race->told[race->n_told++] = (npu_pair){first, second};
  return false;
}

static const char *access_name(uint8_t access) {
  static const char *const names[] = {"reads", "writes", "adds s32 to", "adds f32 to"};
  return names[access];
}

static void report_finding(npu_race *race, const finding *f) {
  const npu_note a = noted(race, f->other),
                 b = {race->instr->file, race->instr->line, race->instr->op};
  const npu_core *other_core = &race->chip->core[f->other.component / CLOCK_SLOTS];
  const npu_pipe other_pipe = (npu_pipe)(f->other.component % CLOCK_SLOTS);
  char mine[160], others[160], where[96];
  if (told_already(race, a, b)) {
    race->chip->report->errors[NPU_ERROR_RACE]++;
    return;
  }
  npu_describe_bytes(race->core, race->range, f->first, f->end, where, sizeof where);
  npu_describe_instr(race->core, race->pipe, race->me.count, npu_ops[b.op].name, b.file, b.line,
                     mine, sizeof mine);
  npu_describe_instr(other_core, other_pipe, f->other.count, npu_ops[a.op].name, a.file, a.line,
                     others, sizeof others);
  npu_report_error(race->chip, NPU_ERROR_RACE, "race: %s %s %s, which %s %s: nothing orders them",
                   mine, access_name((uint8_t)race->range->access), where, others,
                   access_name(f->other_access));
}

/* One race per other instruction, however many bytes; bytes in between may be innocent. */
static void find_race(npu_race *race, stamp other, uint8_t other_access, uintptr_t base,
                      int64_t bytes) {
  const uintptr_t end = base + (uintptr_t)bytes;
  for (int32_t f = 0; f < race->n_found; f++) {
    finding *known = &race->found[f];
    if (known->other.component != other.component || known->other.count != other.count)
      continue;
    if (base < known->first)
      known->first = base;
    if (end > known->end)
      known->end = end;
    return;
  }
  if (race->n_found < FOUND)
    race->found[race->n_found++] = (finding){other, base, end, other_access};
}

/* ---- Shadow ---- */

static bool ordered(const npu_race *race, stamp other) {
  return other.count <= race->clock[other.component];
}

static int32_t new_shared(npu_race *race, shared_access value) {
  int32_t at = race->pool_free;
  if (at) {
    race->pool_free = race->pool[at].next;
  } else {
    if (race->pool_count >= race->pool_capacity) {
      const int32_t capacity = race->pool_capacity ? 2 * race->pool_capacity : 4096;
      shared_access *grown = realloc(race->pool, (size_t)capacity * sizeof *grown);
      if (!grown) {
        race->chip->stopped = race->chip->out_of_memory = true;
        return 0;
      }
      race->pool = grown, race->pool_capacity = capacity;
    }
    at = race->pool_count++;
  }
  race->pool[at] = value;
  return at;
}

static void free_shared(npu_race *race, int32_t at) {
  race->pool[at].next = race->pool_free;
  race->pool_free = at;
}

/* Shared accesses of the same kind that this one follows say nothing any more: whoever is ordered
 * after this one is after them. */
static void add_shared(npu_race *race, npu_cell *cell, npu_access access) {
  for (int32_t *link = &cell->shared; *link;) {
    const int32_t at = *link;
    if (race->pool[at].access == access && ordered(race, race->pool[at].who)) {
      *link = race->pool[at].next;
      free_shared(race, at);
    } else {
      link = &race->pool[at].next;
    }
  }
  const int32_t at = new_shared(race, (shared_access){race->me, cell->shared, (uint8_t)access});
  if (at)
    cell->shared = at;
}

static void check_cell(npu_race *race, npu_cell *cell, uintptr_t base, int64_t bytes) {
  const npu_access access = race->range->access;
  const bool is_shared = access == ACCESS_READ || access == ACCESS_ADD_S32;
  if (cell->exclusive.count && !ordered(race, cell->exclusive))
    find_race(race, cell->exclusive, cell->access, base, bytes);
  for (int32_t at = cell->shared; at; at = race->pool[at].next)
    if (!(is_shared && race->pool[at].access == access) && !ordered(race, race->pool[at].who))
      find_race(race, race->pool[at].who, race->pool[at].access, base, bytes);
  if (is_shared) {
    add_shared(race, cell, access);
    return;
  }
  while (cell->shared) {
    const int32_t at = cell->shared;
    cell->shared = race->pool[at].next;
    free_shared(race, at);
  }
  cell->exclusive = race->me, cell->access = (uint8_t)access;
}

static npu_cell *split_cell(npu_race *race, npu_cell *cell) {
  if (!cell->split) {
    if (race->split_count == race->split_capacity) {
      const int32_t capacity = race->split_capacity ? 2 * race->split_capacity : 256;
      npu_cell(*grown)[SPLIT] = realloc(race->split, (size_t)capacity * sizeof *grown);
      if (!grown) {
        race->chip->stopped = race->chip->out_of_memory = true;
        return NULL;
      }
      race->split = grown, race->split_capacity = capacity;
    }
    npu_cell *bytes = race->split[race->split_count++];
    for (int b = 0; b < SPLIT; b++) { /* each byte has seen what the granule has seen */
      bytes[b] = *cell;
      bytes[b].shared = 0;
      for (int32_t at = cell->shared; at; at = race->pool[at].next) {
        const int32_t copy = new_shared(
            race, (shared_access){race->pool[at].who, bytes[b].shared, race->pool[at].access});
        if (copy)
          bytes[b].shared = copy;
      }
    }
    cell->split = race->split_count;
  }
  return race->split[cell->split - 1];
}

static npu_cell *cells_at(npu_race *race, uintptr_t *origin) {
  const npu_range *r = race->range;
  npu_cell **cells;
  size_t bytes;
  if (r->space == SPACE_GM) {
    npu_region *region = npu_find_region(race->chip, r->base);
    cells = &region->cells, bytes = region->bytes,
    *origin = (uintptr_t)region->base / GRANULE * GRANULE;
  } else {
    const npu_core *owner = npu_owner(race->core, r);
    cells = &race->local[owner->id * SPACES + (int32_t)r->space];
    bytes = (size_t)npu_buffer_bytes(race->chip, r->space);
    *origin = (uintptr_t)owner->local[r->space];
  }
  if (!*cells)
    *cells = npu_map(cells_of(bytes) * sizeof(npu_cell));
  if (!*cells)
    race->chip->stopped = race->chip->out_of_memory = true;
  return *cells;
}

static void check_run(void *context, uintptr_t base, int64_t bytes) {
  npu_race *race = context;
  uintptr_t origin;
  npu_cell *cells = cells_at(race, &origin);
  const uintptr_t end = base + (uintptr_t)bytes;
  if (!cells)
    return;
  for (uintptr_t at = base; at < end;) {
    const uintptr_t granule = (at - origin) / GRANULE, from = origin + granule * GRANULE;
    const uintptr_t to = end < from + GRANULE ? end : from + GRANULE;
    npu_cell *cell = &cells[granule];
    if (!cell->split && to - at == GRANULE) {
      check_cell(race, cell, at, GRANULE);
    } else {
      npu_cell *byte = split_cell(race, cell);
      for (uintptr_t b = at; byte && b < to; b++)
        check_cell(race, &byte[b - from], b, 1);
    }
    at = to;
  }
}

void npu_race_check(npu_core *core, npu_pipe pipe, const npu_instr *i, const npu_range *ranges,
                    int32_t n) {
  npu_race *race = core->chip->race;
  race->core = core, race->pipe = pipe, race->instr = i;
  race->clock = core->pipe[pipe].clock;
  race->me = (stamp){component(core, pipe), core->pipe[pipe].started};
  race->clock[race->me.component] = race->me.count;
  note(race);
  for (int32_t r = 0; r < n && !core->chip->stopped; r++) {
    race->range = &ranges[r];
    if (ranges[r].space == SPACE_GM && !npu_find_region(core->chip, ranges[r].base)->writable)
      continue;
    race->n_found = 0;
    npu_walk(&ranges[r], check_run, race);
    for (int32_t f = 0; f < race->n_found; f++)
      report_finding(race, &race->found[f]);
  }
}
