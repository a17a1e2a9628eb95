/* SPDX-License-Identifier: Apache-2.0
 *
 * Plays a trace of instructions on an out-of-order core: so many micro-operations a cycle enter a
 * window, each goes to the first of its ports that is free once its operands are there, and they
 * retire in order. Branches are predicted, caches hit, general registers are ready, and memory
 * operands do not wait for stores: ports, chains of vector and tile registers, and the window are
 * left.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PORTS = 16, MAX_REGISTERS = 64, RING = 1 << 16, FIRST_TILE = 40 };
/* Ports: loads of whole vectors and tiles; other loads, which have an address unit of their own;
 * stores. */
enum { LOAD = MAX_PORTS - 2, STORE = MAX_PORTS - 1, SMALL_LOAD = MAX_PORTS - 3 };

/* One kind of instruction. Registers: vectors 0-31, masks 32-39, tiles 40-47; -1: none. */
typedef struct op {
  int32_t ports;   /* bit mask; 0: none */
  int32_t cycles;  /* on the port */
  int32_t latency; /* until the result is there */
  int32_t uops;
  int32_t loads, stores; /* slots of those ports */
  int32_t load_latency;
  int32_t writes; /* one register */
  int32_t reads[4];
  int32_t loads_less; /* than a vector */
  int32_t loads_tile; /* needs the register's last readers to be done, unless renamed */
} op;

typedef struct core {
  int32_t width, window, store_buffer;
  int32_t slots[MAX_PORTS]; /* of a port in 4 cycles: 4 is one a cycle */
  int32_t renamed;          /* tile registers are */
} core;

typedef struct port {
  int64_t taken[RING]; /* slot s is taken if taken[s % RING] is s + 1 */
} port;

/* The first free slot from `slot` on. */
static int64_t first_free(const port *p, int64_t slot) {
  while (p->taken[slot % RING] == slot + 1)
    slot++;
  return slot;
}

/* Takes n slots of the port from cycle `start` on; the cycle in which the last of them begins. */
static double take(const core *c, port *ports, int i, double start, int32_t n) {
  const double slots = c->slots[i] / 4.0;
  int64_t slot = (int64_t)(start * slots);
  if ((double)slot < start * slots)
    slot++;
  for (int32_t k = 0; k < n; k++) {
    slot = first_free(&ports[i], slot);
    ports[i].taken[slot % RING] = slot + 1;
  }
  return (double)slot / slots;
}

/* The port among `mask` that is free first from `start` on. */
static int choose(const core *c, const port *ports, int32_t mask, double start) {
  int best = -1;
  double when = 0.0;
  for (int i = 0; i < MAX_PORTS; i++) {
    if (!(mask >> i & 1))
      continue;
    const double slots = c->slots[i] / 4.0;
    int64_t slot = (int64_t)(start * slots);
    if ((double)slot < start * slots)
      slot++;
    const double free_at = (double)first_free(&ports[i], slot) / slots;
    if (best < 0 || free_at < when) {
      best = i;
      when = free_at;
    }
  }
  return best;
}

typedef struct state {
  port *ports;
  double ready[MAX_REGISTERS], read_until[MAX_REGISTERS];
  double dispatched, retired;
} state;

/* When the instruction's operands are there, loads done. */
static double operands(const core *c, state *s, const op *o) {
  double start = s->dispatched;
  for (int i = 0; i < 4; i++)
    if (o->reads[i] >= 0 && s->ready[o->reads[i]] > start)
      start = s->ready[o->reads[i]];
  if (o->loads_tile && !c->renamed) {
    if (s->read_until[o->writes] > start)
      start = s->read_until[o->writes];
    if (s->ready[o->writes] > start)
      start = s->ready[o->writes];
  }
  if (o->loads > 0) {
    const double from = o->loads_tile ? start : s->dispatched;
    const double loaded =
        take(c, s->ports, o->loads_less ? SMALL_LOAD : LOAD, from, o->loads) + o->load_latency;
    if (loaded > start)
      start = loaded;
  }
  return start;
}

/* Plays one instruction: when it and all before it have retired. */
static double play(const core *c, state *s, const op *o) {
  double start = operands(c, s, o);
  if (o->ports) {
    const int i = choose(c, s->ports, o->ports, start);
    start = take(c, s->ports, i, start, o->cycles) - (o->cycles - 1) * 4.0 / c->slots[i];
  }
  double done = start + o->latency;
  if (o->writes >= 0)
    s->ready[o->writes] = done;
  for (int i = 0; i < 4; i++)
    if (o->reads[i] >= 0 && s->read_until[o->reads[i]] < start + o->cycles)
      s->read_until[o->reads[i]] = start + o->cycles;
  if (o->stores > 0) { /* written after it has retired, unless too many lines wait for that */
    const double written = take(c, s->ports, STORE, done, o->stores);
    if (written - c->store_buffer > done)
      done = written - c->store_buffer;
  }
  if (done > s->retired)
    s->retired = done;
  return s->retired;
}

/* at [n]: when instruction i of the trace, and all before it, had retired. */
void port_play(const core *c, const op *ops, const int32_t *trace, int64_t n, double *at);
void port_play(const core *c, const op *ops, const int32_t *trace, int64_t n, double *at) {
  state s;
  memset(&s, 0, sizeof s);
  s.ports = calloc(MAX_PORTS, sizeof *s.ports);
  int64_t oldest = 0, held = 0;
  for (int64_t i = 0; i < n; i++) {
    const op *o = &ops[trace[i]];
    for (held += o->uops; held > c->window && oldest < i; oldest++) {
      held -= ops[trace[oldest]].uops;
      if (at[oldest] > s.dispatched)
        s.dispatched = at[oldest];
    }
    s.dispatched += (double)o->uops / c->width;
    at[i] = play(c, &s, o);
  }
  free(s.ports);
}
