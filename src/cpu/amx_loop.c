/* SPDX-License-Identifier: Apache-2.0
 *
 * THE loop of decode.c as AMX wants it: the same steps, of which P of a group of 32 rows is made
 * beside the products that follow its scores. So PV of a key tile comes after the first scores of
 * the next one:
 *
 *     S(t,0)             PV(t-1)         S(t,1)   S(t,2)          S(t,3)   ...
 *     beside P(t-1,last) beside P(t,0)            beside P(t,1)   beside P(t,2)
 *
 * and where that finds a new reference, O follows when PV(t-1) is done. P of a split's last group
 * is made beside PV of the other groups. With P in f32, V is widened and
 * PV is the FMAs of the AVX-512 row. No ISA code.
 */
#include "amx.h"

#include <math.h>
#include <string.h>

#include "../rows.h"
#include "exp2_poly.h"
#include "rescale.h"

enum { ROWS = AMLA_AMX_ROWS, DEPTH = AMLA_AMX_DEPTH, TILE = AMLA_AMX_TILE, COLS = AMLA_AMX_COLS };
enum { TOKENS = AMLA_AMX_TOKENS, GROUP = 2 * ROWS, MAX_STEPS = TOKENS / DEPTH };

extern const amla_ukernels amla_ukernels__avx512;     /* its kernels for f32 */
extern const amla_ukernels amla_ukernels__avx512bf16; /* its load */

/* A key tile under way, in steps of 32 tokens. */
typedef struct key_tile {
  int32_t begin, n, steps;
  int32_t positions[TOKENS]; /* if the line is masked */
  uint16_t *v; /* V's pairs [d_v / 32][steps][2] tiles; with P in f32 V [TOKENS][ldv] of f32 */
  uint16_t *p_hi, *p_lo; /* [rows / 16][steps] tiles; or f32 [rows / 16][tokens][ROWS] */
} key_tile;

/* Keys [begin, begin + n) of the line: where they lie, and what has become of those that have to be
 * copied. It may grow while the tile before is computed with, 16 keys at a time. */
typedef struct key_list {
  int32_t begin, n, n_listed;
  amla_token_ref refs[TOKENS + ROWS]; /* those behind the last one are not used */
  int32_t positions[TOKENS];          /* if the line is masked */
  uint32_t scattered, copied;         /* by bits, which 16 have to be copied, and are */
  int turn;                           /* of copy */
} key_list;

/* What the mask has of a tile's keys for a query. */
typedef struct query_mask {
  int32_t query, begin; /* of the tile */
  int adds;             /* something to some score: */
  float bias[TOKENS];
} query_mask;

/* A worker's own part of the scratch. */
typedef struct amla_amx_state {
  uint16_t *qt;      /* [parts] of packed panels */
  float *s[2];       /* [2][tokens][ROWS]: of the group at hand, and of the one before it */
  uint16_t *copy[2]; /* [TOKENS][depth]: keys that had to be copied, of this tile and the next */
  key_tile tile[2];  /* even and odd ones */

  /* The group */
  amla_amx_q q;
  float factor;               /* of its scores */
  key_list list;              /* the next tile's keys, of the next split too */
  amla_cursor cursor, before; /* at the last key listed; where it was before that list */

  /* The split */
  const amla_worker *w;
  amla_partial *acc;
  int started;     /* O holds something */
  int adding;      /* PV of the tile before the chore's is not done */
  int late_panels; /* those of the first group, by bits, that have it ahead: */
  amla_rescale_step late[GROUP];
  int turn;                          /* of s */
  const key_tile *weighed;           /* the chore's */
  amla_amx_keys keys[2 * MAX_STEPS]; /* of the tile at hand */
  amla_amx_chore chore;
  amla_amx_fetch fetch;
  query_mask masks[ROWS]; /* of query % ROWS, as a panel has no more */
} amla_amx_state;

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }
static int32_t round_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

static amla_p_form p_form(const amla_worker *w) { return amla_ukernels_p_form(w->cpu->ukernels); }
static int32_t padded_depth(const amla_problem *p) { return round_up(p->d_qk, DEPTH); }
static int32_t padded_rows(const amla_worker *w) {
  return round_up(w->group.row_end - w->group.row_begin, ROWS);
}
/* Floats of a row of V, an odd number of cache lines: rows then lie in different sets of L1. */
static int64_t v_row(const amla_problem *p) { return round_up(p->d_v, COLS) + 16; }

static void *carve(const amla_plan *plan, const amla_cpu_plan *cpu, amla_arena *arena) {
  const amla_problem *p = &plan->problem;
  const int64_t rows = cpu->layout.rows_padded;
  const int f32 = amla_ukernels_p_form(cpu->ukernels) == AMLA_P_F32;
  const size_t part_bytes = (size_t)padded_depth(p) * sizeof(uint16_t);
  const size_t v_bytes = (size_t)v_row(p) * (f32 ? sizeof(float) : sizeof(uint16_t));
  amla_amx_state counted, *state = amla_arena_take(arena, 1, sizeof *state);
  amla_amx_state *s = state ? state : &counted;
  s->qt = amla_arena_take(arena, rows * amla_q_parts(p, &plan->options), part_bytes);
  for (int i = 0; i < 2; i++) { /* p_lo follows p_hi: f32 has both */
    s->s[i] = amla_arena_take(arena, GROUP * TOKENS, sizeof(float));
    s->copy[i] = amla_arena_take(arena, TOKENS, part_bytes);
    s->tile[i].p_hi = amla_arena_take(arena, rows * TOKENS, sizeof(uint16_t));
    s->tile[i].p_lo = amla_arena_take(arena, rows * TOKENS, sizeof(uint16_t));
  }
  s->tile[0].v = s->tile[1].v = amla_arena_take(arena, TOKENS, v_bytes);
  if (!f32)
    s->tile[1].v = amla_arena_take(arena, TOKENS, v_bytes);
  return state;
}

/* ---- Q ---- */

/* The scale's power of two and its sign go into q, where they are exact; what is left of it, 1 to
 * 2, into the exponential's argument. */
static void begin_group(amla_worker *w) {
  const amla_problem *p = &w->plan->problem;
  amla_amx_state *state = w->own;
  const int32_t d = padded_depth(p), rows = w->group.row_end - w->group.row_begin;
  int exponent;
  const double mantissa = frexp((double)p->scale * 1.4426950408889634, &exponent); /* log2 e */
  const float of_q = copysignf(ldexpf(1.0f, exponent - 1), p->scale);
  state->factor = 2.0f * fabsf((float)mantissa);
  state->list.n = state->list.turn = 0;
  state->cursor = state->before = (amla_cursor)AMLA_CURSOR_INIT;
  state->q = (amla_amx_q){state->qt, (int64_t)w->cpu->layout.rows_padded * d, (int64_t)ROWS * d,
                          amla_q_parts(p, &w->plan->options), d};
  for (int32_t row = 0; row < rows; row += ROWS) {
    const int32_t n = min(ROWS, rows - row);
    const void *q[ROWS];
    for (int32_t r = 0; r < n; r++) {
      const int32_t at = w->group.row_begin + row + r, query = at / p->h_q, head = at % p->h_q;
      q[r] = amla_whole_q_row(w, query, head, r);
    }
    uint16_t *to = state->qt + row / ROWS * state->q.panel;
    amla_amx_pack_q(n, p->d_qk, p->q_type, q, of_q, &state->q, to);
  }
}

/* ---- Keys ---- */

static int64_t bytes_apart(const amla_token_ref *key) { /* a key and the next */
  return (const char *)key[1].row - (const char *)key[0].row;
}

/* Can 16 keys, of which n exist, be multiplied where they are? They lie at equal distances then. */
static int lie_well(const amla_problem *p, const amla_token_ref *keys, int32_t n) {
  if (n < ROWS || p->kv_type != AMLA_BF16 || p->kv_d_rope > 0 || p->d_qk % DEPTH != 0)
    return 0;
  const char *at = keys[0].row;
  const int64_t step = bytes_apart(keys);
#pragma GCC unroll 16
  for (int i = 1; i < ROWS; i++)
    if (keys[i].row != (at += step))
      return 0;
  return 1;
}

/* Lists n keys more, by 16, and looks at these. */
static void list_more(amla_amx_state *state, int32_t n) {
  const amla_line *line = &state->w->line;
  key_list *l = &state->list;
  const int32_t at = l->n_listed, begin = l->begin + at;
  if (line->masked) {
    amla_line_positions(line, begin, n, &state->cursor, l->positions + at);
    amla_line_locate_at(line, n, l->positions + at, l->refs + at);
  } else {
    amla_line_locate(line, begin, n, &state->cursor, l->refs + at);
  }
  l->n_listed += n;
  for (int32_t j = at; j < l->n_listed; j += ROWS)
    if (!lie_well(&state->w->plan->problem, l->refs + j, l->n_listed - j))
      l->scattered |= 1u << j / ROWS;
}

/* Of n keys from `begin` on: all of them if they are neighbours, else the first 16. */
static void begin_list(amla_amx_state *state, int32_t begin, int32_t n) {
  const amla_line *line = &state->w->line;
  const int neighbours = !line->masked && !line->segments[0].entries && !line->segments[1].entries;
  key_list *l = &state->list;
  if (state->cursor.key >= begin) /* the last list went on into another split */
    state->cursor = state->before;
  state->before = state->cursor;
  l->begin = begin;
  l->n = n;
  l->scattered = l->copied = 0;
  l->n_listed = 0;
  l->turn ^= 1;
  if (n > 0)
    list_more(state, neighbours ? n : min(n, ROWS));
}

static uint16_t *place_of_copy(const amla_amx_state *state, int32_t j) {
  return state->copy[state->list.turn] + (int64_t)j * state->q.d;
}

/* A key of those listed, made whole, rounded to bf16; columns from d_qk on are 0. */
static void copy_key(amla_amx_state *state, const amla_token_ref *from) {
  const amla_worker *w = state->w;
  const amla_row_format *row = &w->cpu->row;
  const int32_t j = (int32_t)(from - state->list.refs);
  uint16_t *to = place_of_copy(state, j);
  amla_ukernels__avx512bf16.load(row, amla_whole_kv_row(w, *from, j), from->scales, to);
  if (row->d < state->q.d)
    memset(to + row->d, 0, (size_t)(state->q.d - row->d) * sizeof *to);
}

/* Each 16 keys are copied, if they have to be, while the next 16 are fetched. Of fewer than 16 the
 * tile makes the copies. */
static void follow_fetch(amla_amx_fetch *f) {
  amla_amx_state *state = f->state;
  key_list *l = &state->list;
  const int32_t next = (int32_t)(f->token - l->refs), fetched = next / ROWS - 1;
  const int at_end = next >= l->n;
  if (next % ROWS == 0 && fetched > 0)
    l->copied |= 1u << (fetched - 1);
  if (at_end && f->bytes == 0)
    return;
  if (l->n_listed < l->n)
    list_more(state, min(ROWS, l->n - l->n_listed));
  if (next % ROWS == 0) {
    f->from = l->scattered >> fetched & 1 ? l->refs + fetched * ROWS : NULL;
    f->to = (char *)place_of_copy(state, fetched * ROWS);
  }
  if (!at_end)
    f->stop = l->refs + min(next + ROWS, l->n);
  else if (f->from)
    f->stop = l->refs + (next / ROWS + 1) * ROWS;
  if (at_end)
    f->bytes = 0;
}

/* Copies 16 keys of a tile of n, from the j-th on; those missing are 0. */
static void copy_keys(amla_amx_state *state, int32_t j, int32_t n) {
  const size_t bytes = (size_t)state->q.d * sizeof(uint16_t);
  for (int32_t i = j; i < j + ROWS; i++)
    if (i < n)
      copy_key(state, state->list.refs + i);
    else
      memset(place_of_copy(state, i), 0, bytes);
}

/* The tile's keys by 16. */
static void find_keys(amla_amx_state *state, key_tile *t) {
  key_list *l = &state->list;
  if (l->n == 0 || l->begin != t->begin)
    begin_list(state, t->begin, t->n);
  if (l->n_listed < t->n)
    list_more(state, t->n - l->n_listed);
  for (int32_t j = 0; j < t->steps * DEPTH; j += ROWS) {
    amla_amx_keys *keys = &state->keys[j / ROWS];
    const uint32_t bit = 1u << j / ROWS;
    const int whole = t->n - j >= ROWS;
    if (whole && !(l->scattered & bit)) {
      *keys = (amla_amx_keys){l->refs[j].row, bytes_apart(l->refs + j)};
      continue;
    }
    if (!whole || !(l->copied & bit))
      copy_keys(state, j, t->n);
    *keys = (amla_amx_keys){(const char *)place_of_copy(state, j),
                            (int64_t)state->q.d * (int64_t)sizeof(uint16_t)};
  }
  for (int32_t j = 0; state->w->line.masked && j < t->n; j++)
    t->positions[j] = l->positions[j];
}

/* Lists, fetches and copies keys [begin, begin + n) while tile t is computed with, and PV so many
 * times. */
static void start_fetch(amla_amx_state *state, const key_tile *t, int32_t n_pv, int32_t begin,
                        int32_t n) {
  const amla_worker *w = state->w;
  const amla_problem *p = &w->plan->problem;
  const key_list *l = &state->list;
  const int64_t elems = amla_row_elems(p->kv_type, p->d_qk) - p->kv_d_rope;
  const int64_t bytes = amla_elems_bytes(p->kv_type, elems);
  const int32_t groups = (padded_rows(w) + GROUP - 1) / GROUP;
  const int64_t of_scores = (int64_t)groups * t->steps * (state->q.d / DEPTH);
  const int64_t of_pv = (int64_t)groups * t->steps * w->cpu->layout.n_col_tiles;
  const int64_t ticks = of_scores + (p_form(w) == AMLA_P_F32 ? 0 : n_pv * of_pv);
  const int as_it_is = p->kv_type == AMLA_BF16 && p->kv_d_rope == 0 && p->d_qk % DEPTH == 0;
  begin_list(state, begin, n);
  const int64_t helpings = l->n_listed < n || l->scattered ? 2 * (n + ROWS) : n;
  state->fetch = (amla_amx_fetch){
      .token = l->refs,
      .stop = l->refs + min(n, ROWS),
      .bytes = (int32_t)bytes,
      .to_bytes = as_it_is ? (int32_t)bytes : 0,
      .rate = (int32_t)((helpings << 16) / ticks) + 1,
      .state = state,
      .copy = copy_key,
      .follow = follow_fetch,
  };
}

/* ---- P ---- */

static amla_run run_of(const amla_amx_state *state, const key_tile *t) {
  return (amla_run){t->begin, t->n, state->w->line.masked ? t->positions : NULL};
}

/* What the mask has of the tile's keys whose P is made. */
static const query_mask *mask_of(amla_amx_state *state, int32_t query) {
  const key_tile *t = state->weighed;
  query_mask *m = &state->masks[query % ROWS];
  uint16_t room[TOKENS], bits = 0;
  if (m->query == query && m->begin == t->begin)
    return m;
  const uint16_t *mask = amla_mask_of(state->w, query, run_of(state, t), room);
  m->query = query;
  m->begin = t->begin;
  for (int32_t j = 0; j < t->n; j++)
    bits |= mask[j];
  m->adds = (bits & 0x7fff) != 0;
  if (m->adds)
    amla_amx_biases(t->n, mask, m->bias);
  return m;
}

/* The next query's rows [at, next) of the panel from `row` on; returns its mask. */
static const query_mask *next_mask(amla_amx_state *state, int32_t row, int32_t at, int32_t *next) {
  const amla_worker *w = state->w;
  const int32_t h_q = w->plan->problem.h_q, first = w->group.row_begin + row;
  const int32_t query = (first + at) / h_q;
  *next = min(min((query + 1) * h_q, w->group.row_end) - first, ROWS);
  return mask_of(state, query);
}

static int32_t rows_of_panel(const amla_amx_state *state, int32_t row) {
  const amla_worker *w = state->w;
  return min(ROWS, w->group.row_end - w->group.row_begin - row);
}

/* Does the mask add something to the panel's scores, or hide some? */
static int is_masked(amla_amx_state *state, int32_t row) {
  const int32_t end = state->w->tensors->mask ? rows_of_panel(state, row) : 0;
  int masked = 0;
  for (int32_t at = 0, next; at < end; at = next)
    masked |= next_mask(state, row, at, &next)->adds;
  return masked;
}

/* Scores of n keys from the i-th on in log2 units, with the mask added: query by query. */
static void apply_mask(amla_amx_state *state, int32_t row, int32_t i, int32_t n, float *s) {
  static const float no_bias[TOKENS];
  const int32_t end = rows_of_panel(state, row);
  for (int32_t at = 0, next; at < end; at = next) {
    const query_mask *m = next_mask(state, row, at, &next);
    const float *bias = m->adds ? m->bias + i : no_bias;
    amla_amx_mask(n, state->factor, bias, (1u << next) - (1u << at), amla_hidden_score,
                  s + i * ROWS);
  }
}

/* O of ROWS rows from `row` on follows its references. */
static void rescale_output(const amla_amx_state *state, int32_t row,
                           const amla_rescale_step *steps) {
  const amla_worker *w = state->w;
  const amla_ukernels *u = w->cpu->ukernels;
  float factor[ROWS];
  int32_t shift[ROWS];
  for (int32_t r = 0; r < ROWS; r++) {
    factor[r] = steps[r].factor;
    shift[r] = steps[r].shift;
  }
  for (int32_t c = 0; state->started && c < w->cpu->layout.n_col_tiles; c++) {
    float *o = state->acc->o + ((int64_t)c * w->cpu->layout.rows_padded + row) * COLS;
    if (w->plan->options.rescale == AMLA_RESCALE_FLASH)
      u->scale(ROWS, o, factor);
    else
      u->shift(ROWS, o, shift);
  }
}

/* Brings the panel's sums to new references, and O too or when PV is done; max is in log2 units. */
static void move_references(amla_amx_state *state, int32_t row, const float *max) {
  amla_partial *acc = state->acc;
  amla_rescale_step steps[ROWS];
  amla_rescale_rows(state->w->plan->options.rescale, ROWS, acc->ref + row, max, steps);
  for (int32_t r = 0; r < ROWS; r++) {
    acc->l[row + r] *= steps[r].l_factor;
    if (acc->l_rounded != acc->l)
      acc->l_rounded[row + r] *= steps[r].factor;
  }
  if (!state->adding) {
    rescale_output(state, row, steps);
    return;
  }
  memcpy(state->late + row % GROUP, steps, sizeof steps);
  state->late_panels |= 1 << row % GROUP / ROWS;
}

/* PV of the tile before is done: what the first group found in this one. */
static void rescale_late(amla_amx_state *state) {
  state->adding = 0;
  for (int32_t i = 0; i < GROUP / ROWS; i++)
    if (state->late_panels >> i & 1)
      rescale_output(state, i * ROWS, state->late + i * ROWS);
  state->late_panels = 0;
}

/* Before the first token of a panel. */
static void begin_panel(amla_amx_chore *c, const amla_panel *panel) {
  amla_amx_state *state = c->state;
  const key_tile *t = state->weighed;
  amla_visible_keys(state->w, panel, run_of(state, t), c->visible);
  c->masked = is_masked(state, c->row);
  c->factor = c->masked ? 1.0f : state->factor;
  c->all = t->n;
  for (int32_t r = 0; r < ROWS; r++) {
    c->all = min(c->all, c->visible[r]);
    c->max[r] = -INFINITY;
    c->sum[r] = c->sum_rounded[r] = 0.0f;
  }
}

/* Of a run with a mask: rows whose maximum is that of hidden keys. A score may be just that without
 * a mask to be added, which then is done after all. */
static void forgive(amla_amx_chore *c, const amla_panel *panel) {
  amla_amx_state *state = c->state;
  const key_tile *t = state->weighed;
  int lowest = 0;
  for (int32_t r = 0; r < ROWS; r++)
    lowest |= c->max[r] * c->factor == amla_hidden_score;
  if (!lowest)
    return;
  for (int32_t r = 0; !c->masked && r < ROWS; r++)
    c->max[r] *= c->factor;
  if (!c->masked)
    apply_mask(state, c->row, 0, t->n, c->s);
  c->masked = 1;
  c->factor = 1.0f;
  amla_forgive(state->w, panel, run_of(state, t), c->visible, c->s, c->max);
}

/* After the last one: references for the maximum of all. */
static void set_references(amla_amx_chore *c, const amla_panel *panel) {
  amla_amx_state *state = c->state;
  const amla_rescale mode = state->w->plan->options.rescale;
  const float *ref = state->acc->ref + c->row;
  int moved = 0;
  if (state->w->tensors->mask)
    forgive(c, panel);
  for (int32_t r = 0; r < ROWS; r++) {
    c->max[r] *= c->factor;
    moved |= c->max[r] > ref[r] + amla_rescale_tau(mode);
  }
  if (moved)
    move_references(state, c->row, c->max);
  amla_raise_max(state->acc, c->row, ROWS, c->max);
  for (int32_t r = 0; r < ROWS; r++) {
    c->base[r] = mode == AMLA_RESCALE_AMLA ? -amla_paper_n(ref[r]) : ref[r];
    if (ref[r] == -INFINITY) /* no key seen: any will do */
      c->base[r] = 0.0f;
  }
}

/* The maximum takes in n tokens, of which the last may be hidden. */
static void raise_max(amla_amx_chore *c, int32_t n) {
  const float *s = c->s + c->measured * ROWS;
  if (n == DEPTH && c->measured + n <= c->all) {
    amla_amx_raise_max(s, c->max);
    return;
  }
  float max[ROWS];
  int32_t visible[ROWS];
  for (int32_t r = 0; r < ROWS; r++)
    visible[r] = c->visible[r] - c->measured;
  amla_ukernels__avx512.narrow.max(n, s, visible, max);
  for (int32_t r = 0; r < ROWS; r++)
    c->max[r] = c->max[r] > max[r] ? c->max[r] : max[r];
}

static void measure(amla_amx_chore *c) {
  const amla_panel panel = {.kernels = &c->state->w->cpu->ukernels->narrow, .row = c->row};
  if (c->measured == 0)
    begin_panel(c, &panel);
  const int32_t n = min(DEPTH, c->state->weighed->n - c->measured);
  if (c->masked)
    apply_mask(c->state, c->row, c->measured, n, c->s);
  raise_max(c, n);
  c->measured += DEPTH;
  if (c->measured == c->tokens)
    set_references(c, &panel);
}

static void end_panel(amla_amx_chore *c) {
  amla_amx_state *state = c->state;
  const amla_rescale mode = state->w->plan->options.rescale;
  amla_partial *acc = state->acc;
  const float of_room = 1.0f / c->poly[0];
  for (int32_t r = 0; r < ROWS; r++) {
    const int32_t row = c->row + r;
    acc->l[row] += c->sum[r] * (of_room / amla_rescale_p(mode, acc->ref[row]));
    if (acc->l_rounded != acc->l)
      acc->l_rounded[row] += c->sum_rounded[r];
  }
  c->s += c->tokens * ROWS;
  c->p += c->tokens * ROWS;
  c->row += ROWS;
  c->at = c->measured = 0;
}

/* P of the group of rows from `row` on is to be made, in steps. */
static void start_chore(amla_amx_state *state, const key_tile *t, int32_t row) {
  amla_amx_chore *c = &state->chore;
  const int64_t panel = row / ROWS;
  state->weighed = t;
  c->s = state->s[state->turn];
  c->hi = t->p_hi + panel * t->steps * TILE;
  c->lo = t->p_lo + panel * t->steps * TILE;
  c->p = (float *)t->p_hi + panel * t->steps * TILE;
  c->at = c->measured = c->n_loose = 0;
  c->tokens = t->steps * DEPTH;
  c->row = row;
  c->row_end = min(padded_rows(state->w), row + GROUP);
}

/* What is left of the chore goes beside so many ticks. */
static void pace_chore(amla_amx_chore *c, int32_t ticks) {
  const int32_t steps = amla_amx_steps(c->tokens, c->form);
  const int32_t done = amla_amx_steps(c->at, c->form) - (c->at - c->measured) / DEPTH;
  c->due = 0;
  c->rate = (((c->row_end - c->row) / ROWS * steps - done) << 16) / ticks + 1;
}

static void finish_chore(amla_amx_chore *c) {
  while (c->row < c->row_end)
    amla_amx_step(c);
}

/* ---- Scores ---- */

/* Fours of V's 16 pairs in 32 tokens that are made beside the scores of groups 0, 1, ..., where
 * there are 1, 2, 3 or 4: fewest in the first, which has a whole group's P beside it, most in the
 * second, which has the least. */
static const uint8_t v_shares[5][5] = {{0}, {0, 4}, {0, 0, 4}, {0, 1, 3, 4}, {0, 0, 2, 3, 4}};

/* S of the group of rows from `row` on, its share of V's pairs, and the chore beside them. */
static void scores(amla_amx_state *state, const key_tile *t, int32_t row) {
  const amla_worker *w = state->w;
  const int32_t rows = padded_rows(w), ticks = state->q.d / DEPTH * t->steps;
  const uint8_t *share = v_shares[(rows + GROUP - 1) / GROUP] + row / GROUP;
  const amla_amx_beside beside = {&state->chore, &state->fetch};
  amla_amx_q q = state->q;
  amla_amx_pairs v = {t->v, (int64_t)t->steps * 2 * TILE,
                      (uint32_t)round_up(w->plan->problem.d_v, COLS), share[0] * 4u, share[1] * 4u};
  float *s = state->s[state->turn ^= 1];
  q.qt += row / ROWS * q.panel;
  if (p_form(w) == AMLA_P_F32)
    v.columns = 0;
  if (rows - row >= GROUP) {
    pace_chore(&state->chore, ticks);
    amla_amx_scores_32x32(t->steps, state->keys, &q, s, s + t->steps * TILE, &v, &beside);
    finish_chore(&state->chore);
    return;
  }
  const int32_t even = t->steps / 2 * 2;
  pace_chore(&state->chore, (ticks + 1) / 2);
  if (even > 0)
    amla_amx_scores_64x16(even, state->keys, &q, s, &v, &beside);
  v.v += even * 2 * TILE;
  if (even < t->steps)
    amla_amx_scores_32x16(state->keys + 2 * even, &q, s + even * TILE, &v, &beside);
  finish_chore(&state->chore);
}

/* ---- PV ---- */

/* What becomes of O's rows [begin, end): merges on the way out, and a place in `out` if that is the
 * end. */
typedef struct pv_plan {
  int32_t begin, end;
  int32_t n_merges;
  amla_merge_step merges[AMLA_MAX_MERGES];
  int whole;
  amla_row_end ends[AMLA_MAX_BLOCK_ROWS];
} pv_plan;

/* Rows [row, row + n) of column tile c are complete. */
static void finish_rows(const amla_amx_state *state, const pv_plan *plan, int32_t c, int32_t row,
                        int32_t n) {
  const amla_worker *w = state->w;
  const int64_t at = ((int64_t)c * w->cpu->layout.rows_padded + row) * COLS;
  const int32_t stored = min(n, w->group.row_end - w->group.row_begin - row);
  const float *o = state->acc->o + at;
  for (const amla_merge_step *m = plan->merges; m < plan->merges + plan->n_merges; m++) {
    w->cpu->ukernels->merge(n, m->a + at, m->of_a + row, o, m->of_b + row);
    o = m->a + at;
  }
  if (plan->whole && stored > 0)
    amla_store_tile(w, w->plan->problem.out_type, o, stored, c, plan->ends + row);
}

/* P is f32 [rows / 16][tokens][16], V f32. */
static void add_pv_f32(const amla_amx_state *state, const key_tile *t, const pv_plan *plan) {
  const amla_worker *w = state->w;
  const int32_t tokens = t->steps * DEPTH, step = amla_ukernels__avx512.pv_rows;
  const float *p = (const float *)t->p_hi, *v = (const float *)t->v;
  const int64_t ldv = v_row(&w->plan->problem);
  for (int32_t c = 0; c < w->cpu->layout.n_col_tiles; c++)
    for (int32_t row = plan->begin; row < plan->end; row += step) {
      float *o = state->acc->o + ((int64_t)c * w->cpu->layout.rows_padded + row) * COLS;
      const float *weights = p + (int64_t)(row / ROWS) * tokens * ROWS + row % ROWS;
      amla_ukernels__avx512.pv(t->n, weights, ROWS, v + c * COLS, ldv, !state->started, o, 0, NULL,
                               o);
      finish_rows(state, plan, c, row, step);
    }
}

/* The last 16 rows of an odd number of panels, in n column tiles from c on: in twos, of which the
 * first is even. */
static void add_pv_16(amla_amx_state *state, const key_tile *t, int32_t row, int32_t c, int32_t n) {
  const amla_worker *w = state->w;
  const amla_amx_beside beside = {&state->chore, &state->fetch};
  const int64_t panel = (int64_t)t->steps * TILE, at = row / ROWS * panel;
  const int64_t o_step = (int64_t)w->cpu->layout.rows_padded * COLS;
  const int32_t end = min(round_up(c + n, 2), w->cpu->layout.n_col_tiles), first = round_up(c, 2);
  const int32_t even = (end - first) / 2 * 2, last = first + even;
  const amla_amx_p p = {t->p_hi + at, t->p_lo + at, panel, t->steps, p_form(w)};
  float *o = state->acc->o + row * COLS;
  if (even > 0)
    amla_amx_pv_16x64(&p, even, t->v + 2 * panel * first, !state->started, o + o_step * first,
                      o_step, &beside);
  if (last < end)
    amla_amx_pv_16x32(&p, t->v + 2 * panel * last, !state->started, o + o_step * last, &beside);
}

/* The plan's rows of n column tiles from c on. A column tile's V stays in L1 while O streams past.
 */
static void add_pv_tiles(amla_amx_state *state, const key_tile *t, const pv_plan *plan, int32_t c,
                         int32_t n) {
  const amla_worker *w = state->w;
  const amla_amx_beside beside = {&state->chore, &state->fetch};
  const int32_t groups = (plan->end - plan->begin) / GROUP, last = plan->begin + groups * GROUP;
  const int64_t panel = (int64_t)t->steps * TILE, at = plan->begin / ROWS * panel;
  const int64_t o_step = (int64_t)w->cpu->layout.rows_padded * COLS;
  const amla_amx_p p = {t->p_hi + at, t->p_lo + at, panel, t->steps, p_form(w)};
  float *o = state->acc->o + o_step * c + plan->begin * COLS;
  amla_amx_pv_32x32(&p, groups, n, t->v + 2 * panel * c, !state->started, o, o_step, &beside);
  if (last < plan->end)
    add_pv_16(state, t, last, c, n);
}

/* O += P V, or O = P V, of the plan's rows, and what becomes of it. */
static void add_pv(amla_amx_state *state, const key_tile *t, const pv_plan *plan) {
  const int32_t n_col_tiles = state->w->cpu->layout.n_col_tiles;
  if (p_form(state->w) == AMLA_P_F32) {
    add_pv_f32(state, t, plan);
    return;
  }
  /* ticks with a helping: none beside the last step of a tile of O */
  const int32_t panels = (plan->end - plan->begin) / ROWS, steps = t->steps > 1 ? t->steps - 1 : 1;
  pace_chore(&state->chore, (panels * n_col_tiles + 1) / 2 * steps);
  if (plan->n_merges == 0 && !plan->whole) {
    add_pv_tiles(state, t, plan, 0, n_col_tiles);
    return;
  }
  /* a column tile behind, as products that are under way then hide it */
  for (int32_t c = 0; c <= n_col_tiles; c++) {
    if (c < n_col_tiles)
      add_pv_tiles(state, t, plan, c, 1);
    if (c > 0)
      finish_rows(state, plan, c - 1, plan->begin, plan->end - plan->begin);
  }
}

/* ---- The loop ---- */

static void begin_split(amla_amx_state *state, const amla_worker *w, amla_partial *acc) {
  amla_amx_chore *c = &state->chore;
  static const float poly[] = {1.0f,         AMLA_EXP2_C1, AMLA_EXP2_C2, AMLA_EXP2_C3,
                               AMLA_EXP2_C4, AMLA_EXP2_C5, AMLA_EXP2_C6};
  const float room = amla_headroom_factor(w, &w->group);
  state->w = w;
  state->acc = acc;
  state->started = state->turn = 0;
  state->adding = state->late_panels = 0;
  c->form = p_form(w);
  c->row = c->row_end = 0;
  c->measure = measure;
  c->end = end_panel;
  c->state = state;
  for (int i = 0; i < ROWS; i++)
    state->masks[i].query = -1;
  for (int i = 0; i < 7; i++)
    c->poly[i] = room * poly[i];
  for (int32_t r = 0; r < w->cpu->layout.rows_padded; r++) {
    acc->ref[r] = -INFINITY;
    acc->l[r] = acc->l_rounded[r] = 0.0f;
    if (acc->max)
      acc->max[r] = -INFINITY;
  }
}

/* All of tile t but the last group's P, and its PV; PV of tile `before`, if there is one. */
static void add_tile(amla_amx_state *state, key_tile *t, const key_tile *before) {
  const amla_worker *w = state->w;
  const pv_plan all = {.end = padded_rows(w)};
  for (int32_t row = 0; row < all.end; row += GROUP) {
    scores(state, t, row);
    start_chore(state, t, row);
    if (row > 0 || !before)
      continue;
    state->adding = 1;
    add_pv(state, before, &all);
    state->started = 1;
    rescale_late(state);
  }
  if (p_form(w) == AMLA_P_F32)
    amla_amx_widen_v(t->n, state->keys, round_up(w->plan->problem.d_v, COLS), (float *)t->v,
                     v_row(&w->plan->problem));
}

/* PV of the last tile, merges and the store, of rows [begin, end), whose P is made. */
static void end_split(amla_amx_state *state, const key_tile *t, int32_t begin, int32_t end,
                      int32_t n_merges, int whole) {
  const amla_worker *w = state->w;
  const int32_t rows = min(end, w->group.row_end - w->group.row_begin);
  pv_plan plan = {.begin = begin, .end = end, .n_merges = n_merges, .whole = whole};
  for (int32_t i = 0; i < n_merges; i++)
    plan.merges[i] = amla_merge_sums(w, state->acc - i - 1, state->acc - i, begin, end);
  if (whole)
    amla_end_rows(w, &w->group, state->acc - n_merges, begin, rows, plan.ends);
  add_pv(state, t, &plan);
}

static int accumulate(amla_worker *w, int32_t begin, int32_t end, int32_t limit, amla_partial *acc,
                      int32_t n_merges, int whole) {
  amla_amx_state *state = w->own;
  const key_tile *before = NULL;
  begin_split(state, w, acc);
  amla_amx_configure();
  for (int32_t j = begin, i = 0; j < end; j += TOKENS, i++) {
    key_tile *t = &state->tile[i % 2];
    if (amla_worker_ends(w)) {
      amla_amx_release();
      return 0;
    }
    t->begin = j;
    t->n = min(end - j, TOKENS);
    t->steps = (t->n + DEPTH - 1) / DEPTH;
    const int32_t ahead = j + t->n;
    find_keys(state, t);
    const int last = ahead == end, n_pv = (before != NULL) + last;
    start_fetch(state, t, n_pv, ahead, min((last ? limit : end) - ahead, TOKENS));
    add_tile(state, t, before);
    before = t;
  }
  if (before) {
    const int32_t rows = padded_rows(w), last = (rows - 1) / GROUP * GROUP;
    if (last > 0)
      end_split(state, before, 0, last, n_merges, whole);
    finish_chore(&state->chore);
    end_split(state, before, last, rows, n_merges, whole);
  }
  amla_amx_release();
  if (!before)
    amla_end_empty(w, acc, n_merges, whole);
  return 1;
}

const amla_own_loop amla_amx_loop = {carve, begin_group, accumulate};
