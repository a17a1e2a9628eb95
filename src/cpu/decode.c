/* SPDX-License-Identifier: Apache-2.0
 *
 * THE loop on a CPU, amla_worker_accumulate: scores, reference, P, rescale O, PV, in the order of
 * spec/amla.c. No ISA code: that is behind the micro-kernel table. Layouts are in decode.h, the
 * mathematics in DESIGN.md and rescale.h.
 */
#include "decode.h"

#include <math.h>
#include <string.h>

#include "../base/float16.h"
#include "../rows.h"
#include "rescale.h"

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

static void *elems_at(void *buffer, amla_dtype type, int64_t elems) {
  return (char *)buffer + amla_elems_bytes(type, elems);
}

/* ---- Scores ---- */

/* A row made whole, in place i of `joined`. */
static const void *join_row(const amla_worker *w, amla_dtype type, const void *row, int32_t d,
                            const void *rope, int32_t d_rope, int32_t i) {
  const int64_t row_bytes = amla_elems_bytes(type, d), rope_bytes = amla_elems_bytes(type, d_rope);
  char *whole = elems_at(w->joined, type, (int64_t)i * w->plan->problem.d_qk);
  memcpy(whole, row, (size_t)row_bytes);
  memcpy(whole + row_bytes, rope, (size_t)rope_bytes);
  return whole;
}

const void *amla_whole_kv_row(const amla_worker *w, amla_token_ref from, int32_t i) {
  const amla_problem *p = &w->plan->problem;
  if (p->kv_d_rope == 0)
    return from.row;
  return join_row(w, p->kv_type, from.row, p->d_qk - p->kv_d_rope, from.rope, p->kv_d_rope, i);
}

const void *amla_whole_q_row(const amla_worker *w, int32_t query, int32_t head, int32_t i) {
  const amla_problem *p = &w->plan->problem;
  const void *row = amla_q_row(p, w->tensors, w->group.sequence, query, head);
  if (p->q_d_rope == 0)
    return row;
  const void *rope = amla_q_rope(p, w->tensors, w->group.sequence, query, head);
  return join_row(w, p->q_type, row, amla_q_elems(p), rope, p->q_d_rope, i);
}

typedef struct key_list {
  amla_ukr_move moves[AMLA_MAX_LISTED];
  int32_t n;
} key_list;

/* Appends n keys from `begin` on, which go to `tile` one after the other. Past `limit` it is the
 * last one again: it is fetched, not converted. */
static void list_keys(const amla_worker *w, amla_cursor *cursor, int32_t begin, int32_t n,
                      int32_t limit, void *tile, key_list *list) {
  const amla_problem *p = &w->plan->problem;
  const int64_t row_bytes = amla_elems_bytes(w->cpu->ukernels->tile_type, w->cpu->layout.ld);
  const int32_t known = min(n, limit - begin);
  amla_token_ref refs[AMLA_MAX_LISTED];
  amla_ukr_move *moves = list->moves + list->n;
  char *to = tile;
  amla_line_locate(&w->line, begin, known, cursor, refs);
  for (int32_t j = 0; p->kv_d_rope > 0 && j < known; j++)
    refs[j].row = amla_whole_kv_row(w, refs[j], list->n + j);
  for (int32_t j = 0; j < known; j++, to += row_bytes)
    moves[j] = (amla_ukr_move){refs[j].row, refs[j].scales, to};
  for (int32_t j = known > 0 ? known : 0; j < n; j++)
    moves[j] = moves[j - 1];
  list->n += n;
}

/* S^T of panels [first, last), which are of one kind, for the tile's n keys. If they are the
 * block's first, they convert keys on the way, of which `upcoming` has n_keys: a score tile's own
 * in its first panel, or those of the score tile `ahead` in all panels in equal parts. */
static void panel_scores(amla_worker *w, const amla_panel *first, const amla_panel *last, int32_t n,
                         const amla_ukr_move *upcoming, int32_t n_keys) {
  const amla_problem *p = &w->plan->problem;
  const amla_ukernels *u = w->cpu->ukernels;
  const int32_t n_panels = (int32_t)(last - first);
  if (n_panels == 0)
    return;
  const int32_t rows = first->kernels->rows, ahead = first->kernels->ahead;
  const int32_t tokens = first->kernels->tokens, parts = ahead ? n_panels : 1;
  for (int32_t j = 0, next; j < n; j = next) {
    next = min(n, j + tokens);
    const int32_t at = ahead ? next : j;
    const int32_t known = (at < n ? n : n_keys) - at;
    const int32_t n_moves = first == w->panels && p->k_begin == 0 ? min(tokens, known) : 0;
    const void *k = elems_at(upcoming[j].to, u->tile_type, p->k_begin);
    for (int32_t i = 0; i < n_panels; i++) {
      const int32_t row = first[i].row, part = min(i, parts), after = min(i + 1, parts);
      const int32_t from = n_moves * part / parts, to = n_moves * after / parts;
      const amla_ukr_stage stage = {&w->cpu->row, to - from, upcoming + at + from};
      float *s = w->s + row * u->tile_tokens + j * rows;
      first[i].kernels->qk(next - j, amla_key_elems(p), k, w->cpu->layout.ld, first[i].qt, s,
                           &stage);
    }
  }
}

/* S^T of the tile of n keys from `begin` on; keys [next, limit) will be asked for after it. Keys
 * are converted while the FMAs run: this tile's, or this tile's and the first of the next one. Of
 * rows that begin with what is no key, qk does not pass all columns: they are converted before. */
static void scores(amla_worker *w, int32_t begin, int32_t n, int32_t next, int32_t limit) {
  const amla_ukernels *u = w->cpu->ukernels;
  const amla_problem *p = &w->plan->problem;
  const amla_panel *last = w->panels + w->n_panels;
  const amla_panel *narrow = last[-1].kernels == &u->narrow ? last - 1 : last;
  const int32_t tokens = w->panels->kernels->ahead * w->panels->kernels->tokens;
  const int32_t ahead = p->k_begin > 0 ? 0 : tokens, n_ahead = min(limit - next, ahead);
  const int32_t n_before = p->k_begin > 0 ? n : min(n, ahead);
  key_list list = {.n = 0};
  if (w->line.masked)
    amla_line_positions(&w->line, begin, n, &w->mask_cursor, w->positions);
  list_keys(w, &w->cursor, begin, n, limit, w->tiles[0], &list);
  amla_cursor cursor = w->cursor;
  /* Rows to be joined are not fetched: that takes as long. */
  list_keys(w, &cursor, next, AMLA_MAX_AHEAD, p->kv_d_rope > 0 ? next + n_ahead : limit,
            w->tiles[1], &list);
  for (int32_t i = 0; w->staged != begin && i < n_before; i++)
    u->load(&w->cpu->row, list.moves[i].row, list.moves[i].scales, list.moves[i].to);
  panel_scores(w, w->panels, narrow, n, list.moves, n + n_ahead);
  panel_scores(w, narrow, last, n, list.moves, n + n_ahead);
  w->staged = next < limit && p->k_begin == 0 ? next : -1;
}

/* ---- The mask: hidden before the maximum, forgiven after it ---- */

static const float lowest = -0x1.fffffcp127f; /* the next number above amla_hidden_score */

const uint16_t *amla_mask_of(const amla_worker *w, int32_t query, amla_run keys, uint16_t *room) {
  const amla_problem *p = &w->plan->problem;
  const uint16_t *mask = amla_mask_row(p, w->tensors, w->group.sequence, query);
  if (!keys.positions)
    return mask + keys.begin;
#pragma GCC unroll 8
  for (int32_t j = 0; j < keys.n; j++)
    room[j] = mask[keys.positions[j]];
  return room;
}

/* s [n][rows] += mask * log2 e, in log2 units as the scores are; hidden where it is -inf. */
static void hide(const amla_worker *w, const amla_panel *panel, amla_run keys, float *s) {
  const amla_problem *p = &w->plan->problem;
  const int32_t rows = panel->kernels->rows, h_q = p->h_q;
  const int32_t first = w->group.row_begin + panel->row, end = min(rows, w->group.row_end - first);
  uint16_t room[AMLA_UKR_MAX_TILE_TOKENS];
  for (int32_t r = 0, stop; r < end; r = stop) { /* rows of one query at a time */
    const int32_t query = (first + r) / h_q;
    const uint16_t *mask = amla_mask_of(w, query, keys, room);
    stop = min(end, (query + 1) * h_q - first);
    for (int32_t j = 0; j < keys.n; j++) {
      const float bias = amla_f16_to_f32(mask[j]) * 1.44269504f;
      float *row = s + j * rows;
      for (int32_t i = r; bias == -INFINITY && i < stop; i++)
        row[i] = amla_hidden_score;
      for (int32_t i = r; bias != -INFINITY && bias != 0.0f && i < stop; i++)
        row[i] += bias;
    }
  }
}

/* The largest score of row r of the panel, in whose n keys nothing above `hidden` was found. A
 * score of -FLT_MAX that the mask leaves visible is raised by its last bit, which tells it from
 * hidden ones. Without any, the row has seen nothing, but for NaN and -inf, which its P keeps. */
static float raise_lowest(const amla_worker *w, const amla_panel *panel, int32_t r, amla_run keys,
                          int32_t n, float *s) {
  const amla_problem *p = &w->plan->problem;
  const int32_t row = min(w->group.row_begin + panel->row + r, w->group.row_end - 1);
  uint16_t room[AMLA_UKR_MAX_TILE_TOKENS];
  const uint16_t *mask = amla_mask_of(w, row / p->h_q, keys, room);
  float max = -INFINITY;
  for (int32_t j = 0; j < n; j++) {
    float *score = &s[j * panel->kernels->rows + r];
    if (*score == amla_hidden_score && mask[j] != AMLA_MASK_HIDDEN)
      *score = max = lowest;
  }
  return max;
}

/* Rows whose maximum is `hidden` have it no more. */
void amla_forgive(const amla_worker *w, const amla_panel *panel, amla_run keys,
                  const int32_t *visible, float *s, float *max) {
  for (int32_t r = 0; r < panel->kernels->rows; r++)
    if (max[r] == amla_hidden_score)
      max[r] = raise_lowest(w, panel, r, keys, visible[r], s);
}

/* ---- Weights ---- */

/* What the group's P, and so its O, is multiplied by beside what the mode asks for. */
float amla_headroom_factor(const amla_worker *w, const amla_group *group) {
  return ldexpf(1.0f, -amla_headroom(w->plan->options.rescale, group->length));
}

/* Those before `end`. */
static int32_t count_before(amla_run keys, int32_t end) {
  int32_t n = keys.n;
  if (!keys.positions)
    return end < keys.begin ? 0 : min(end - keys.begin, n);
  while (n > 0 && keys.positions[n - 1] >= end)
    n--;
  return n;
}

void amla_visible_keys(const amla_worker *w, const amla_panel *panel, amla_run keys,
                       int32_t *visible) {
  for (int32_t r = 0; r < panel->kernels->rows; r++)
    visible[r] = count_before(keys, w->visible_end[panel->row + r]);
}

/* The second sum, where P is rounded: it follows O. */
static void add_rounded(const amla_panel *panel, amla_partial *acc, const amla_rescale_step *steps,
                        const float *sum) {
  float *l = acc->l_rounded + panel->row;
  for (int32_t r = 0; acc->l_rounded != acc->l && r < panel->kernels->rows; r++)
    l[r] = steps[r].factor * l[r] + sum[r];
}

void amla_raise_max(amla_partial *acc, int32_t row, int32_t n, const float *max) {
  for (int32_t r = 0; acc->max && r < n; r++)
    if (max[r] > acc->max[row + r])
      acc->max[row + r] = max[r];
}

/* P in place of the panel's scores, and l: what a new maximum asks of each row goes to steps. */
static int panel_weights(amla_worker *w, const amla_panel *panel, amla_run keys, amla_partial *acc,
                         amla_rescale_step *steps) {
  const amla_rescale mode = w->plan->options.rescale;
  const float room = amla_headroom_factor(w, &w->group);
  const amla_ukr_panel *kernels = panel->kernels;
  const int32_t n = keys.n, rows = kernels->rows, masked = w->tensors->mask != NULL;
  float max[AMLA_UKR_MAX_ROWS], base[AMLA_UKR_MAX_ROWS], mul[AMLA_UKR_MAX_ROWS];
  float sum[2 * AMLA_UKR_MAX_ROWS];
  int32_t visible[AMLA_UKR_MAX_ROWS];
  float *s = w->s + panel->row * w->cpu->ukernels->tile_tokens;
  float *ref = acc->ref + panel->row, *l = acc->l + panel->row;
  amla_visible_keys(w, panel, keys, visible);
  if (masked)
    hide(w, panel, keys, s);
  kernels->max(n, s, visible, max);
  if (masked)
    amla_forgive(w, panel, keys, visible, s, max);
  amla_raise_max(acc, panel->row, rows, max);
  const int moved = amla_rescale_rows(mode, rows, ref, max, steps);
  for (int32_t r = 0; r < rows; r++) {
    base[r] = masked && ref[r] == -INFINITY ? 0.0f : ref[r]; /* any will do for hidden keys */
    mul[r] = room * amla_rescale_p(mode, ref[r]);
  }
  kernels->exp(n, s, base, mul, visible, sum);
  for (int32_t r = 0; r < rows; r++)
    l[r] = steps[r].l_factor * l[r] + sum[r];
  add_rounded(panel, acc, steps, sum + rows);
  return moved;
}

/* New references, P in place of the scores, l; and what that asks of each row of O. Returns 0 if
 * nothing: flash multiplies in every tile, adding N = 0 is nothing to do. */
static int weights(amla_worker *w, int32_t begin, int32_t n, amla_partial *acc,
                   amla_rescale_step *steps) {
  const amla_run keys = {begin, n, w->line.masked ? w->positions : NULL};
  int moved = w->plan->options.rescale == AMLA_RESCALE_FLASH;
  for (const amla_panel *p = w->panels; p < w->panels + w->n_panels; p++)
    moved |= panel_weights(w, p, keys, acc, steps + p->row);
  return moved;
}

/* ---- Rescaling and merging O ---- */

/* The first n rows of O: a multiplication in flash, an integer add to the exponents in amla and
 * lazy. */
static void rescale_rows(const amla_worker *w, float *o, int32_t n,
                         const amla_rescale_step *steps) {
  const amla_ukernels *u = w->cpu->ukernels;
  float factor[AMLA_MAX_BLOCK_ROWS];
  int32_t shift[AMLA_MAX_BLOCK_ROWS];
  for (int32_t r = 0; r < n; r++) {
    factor[r] = steps[r].factor;
    shift[r] = steps[r].shift;
  }
  for (int32_t c = 0; c < w->cpu->layout.n_col_tiles; c++) {
    float *rows = o + (int64_t)c * w->cpu->layout.rows_padded * u->pv_cols;
    if (w->plan->options.rescale == AMLA_RESCALE_FLASH)
      u->scale(n, rows, factor);
    else
      u->shift(n, rows, shift);
  }
}

/* A side that has seen no key holds +0. Times -0 it adds nothing: the other side keeps its bits, a
 * negative zero too. */
static float merge_factor(amla_rescale_step step, float ref) {
  return ref == -INFINITY ? -0.0f : step.factor;
}

/* Brings references and sums of rows [row_begin, row_end) of a to those of a + b. */
amla_merge_step amla_merge_sums(const amla_worker *w, amla_partial *a, const amla_partial *b,
                                int32_t row_begin, int32_t row_end) {
  const amla_rescale mode = w->plan->options.rescale;
  amla_merge_step m;
  m.a = a->o;
  for (int32_t r = row_begin; r < row_end; r++) {
    const float ref = a->ref[r] > b->ref[r] ? a->ref[r] : b->ref[r];
    const amla_rescale_step of_a = amla_rescale_to(mode, a->ref[r], ref);
    const amla_rescale_step of_b = amla_rescale_to(mode, b->ref[r], ref);
    m.of_a[r] = ref == -INFINITY ? 0.0f : merge_factor(of_a, a->ref[r]); /* two stay +0 */
    m.of_b[r] = merge_factor(of_b, b->ref[r]);
    a->ref[r] = ref;
    a->l[r] = of_a.l_factor * a->l[r] + of_b.l_factor * b->l[r];
    if (a->l_rounded != a->l)
      a->l_rounded[r] = of_a.factor * a->l_rounded[r] + of_b.factor * b->l_rounded[r];
  }
  if (a->max)
    amla_raise_max(a, row_begin, row_end - row_begin, b->max + row_begin);
  return m;
}

void amla_partial_merge(const amla_worker *w, amla_partial *a, const amla_partial *b,
                        int32_t row_begin, int32_t row_end) {
  const amla_ukernels *u = w->cpu->ukernels;
  const amla_merge_step m = amla_merge_sums(w, a, b, row_begin, row_end);
  for (int32_t c = 0; c < w->cpu->layout.n_col_tiles; c++) {
    const int64_t at = ((int64_t)c * w->cpu->layout.rows_padded + row_begin) * u->pv_cols;
    const float *of_a = m.of_a + row_begin, *of_b = m.of_b + row_begin;
    u->merge(row_end - row_begin, a->o + at, of_a, b->o + at, of_b);
  }
}

/* ---- The end of a group ---- */

/* Ends rows [row_begin, row_end) of the group, whose result is a. */
void amla_end_rows(const amla_worker *w, const amla_group *group, const amla_partial *a,
                   int32_t row_begin, int32_t row_end, amla_row_end *ends) {
  const amla_problem *p = &w->plan->problem;
  const amla_options *o = &w->plan->options;
  const float room = amla_headroom_factor(w, group);
  for (int32_t r = row_begin; r < row_end; r++) {
    const int32_t at = group->row_begin + r, query = at / p->h_q, head = at % p->h_q;
    const double l = (double)a->l[r], ref = (double)a->ref[r];
    const float of_p = room * amla_rescale_p(o->rescale, a->ref[r]);
    const int rounded = a->l_rounded != a->l;
    const double divisor = rounded ? (double)a->l_rounded[r] : l * (double)of_p;
    const amla_row_sums sums = {
        .divisor = divisor, .lse2 = ref + log2(l), .max2 = a->max ? (double)a->max[r] : 0.0};
    ends[r] = amla_end_row(p, o, w->tensors, group->sequence, query, head, sums);
  }
}

/* The first `rows` rows of an output tile, in column tile c. */
void amla_store_tile(const amla_worker *w, amla_dtype type, const float *o, int32_t rows, int32_t c,
                     const amla_row_end *ends) {
  const amla_ukernels *u = w->cpu->ukernels;
  const amla_problem *p = &w->plan->problem;
  const int32_t d = c * u->pv_cols;
  const int even_odd = u->even_odd[p->kv_type] && d + u->pv_cols <= p->d_qk;
  u->store(type, rows, min(p->d_v - d, u->pv_cols), o, even_odd, ends, d);
}

void amla_partial_store(const amla_worker *w, const amla_group *group, const amla_partial *a,
                        int32_t row_begin, int32_t row_end) {
  const int32_t step = w->cpu->ukernels->pv_rows, cols = w->cpu->ukernels->pv_cols;
  amla_row_end ends[AMLA_MAX_BLOCK_ROWS];
  amla_end_rows(w, group, a, row_begin, row_end, ends);
  for (int32_t r = row_begin; r < row_end; r += step)
    for (int32_t c = 0; c < w->cpu->layout.n_col_tiles; c++) {
      const float *o = a->o + ((int64_t)c * w->cpu->layout.rows_padded + r) * cols;
      amla_store_tile(w, w->plan->problem.out_type, o, min(step, row_end - r), c, ends + r);
    }
}

/* ---- PV ---- */

/* What becomes of an output tile: an addition to what is there unless `first`, merges on the way
 * out, and a place in `out` if that is the end: `ends` then has the block's rows. */
typedef struct pv_plan {
  int first;
  int32_t n_merges;
  const amla_merge_step *merges;
  const amla_row_end *ends; /* or NULL */
} pv_plan;

/* A column tile of O, and of V. */
typedef struct pv_column {
  amla_ukr_pv *pv;
  int32_t c, step; /* step: rows of an output tile */
  const void *v;
  int64_t ldv;
} pv_column;

/* Column tile c is the last one and so narrow that pv_end computes it. */
static int is_pv_end(const amla_worker *w, int32_t c) {
  const amla_ukernels *u = w->cpu->ukernels;
  return u->pv_end.pv && w->plan->problem.d_v - c * u->pv_cols <= u->pv_end.cols;
}

static pv_column pv_column_at(const amla_worker *w, int32_t c) {
  const amla_ukernels *u = w->cpu->ukernels;
  const int64_t v_width = u->turn ? u->v_width : 1;
  const void *v = elems_at(w->tiles[0], u->tile_type, c * u->pv_cols * v_width);
  pv_column column = {u->pv, c, u->pv_rows, v, w->cpu->layout.ld / v_width};
  if (is_pv_end(w, c))
    column.pv = u->pv_end.pv, column.step = u->pv_end.rows;
  return column;
}

/* Asks for the lines of results that an output tile will be stored to, which then come from memory
 * beside its products. Always inline: GCC drops calls of a function that does nothing else. */
static inline __attribute__((always_inline)) void fetch_out(const amla_worker *w, int32_t rows,
                                                            int32_t c, const amla_row_end *ends) {
  const amla_dtype type = w->plan->problem.out_type;
  const int32_t cols = w->cpu->ukernels->pv_cols, d = c * cols;
  const int64_t begin = amla_elems_bytes(type, d);
  const int64_t last = amla_elems_bytes(type, min(d + cols, w->plan->problem.d_v)) - 1;
  for (int32_t r = 0; r < rows; r++)
    if (ends[r].out) {
      __builtin_prefetch((char *)ends[r].out + begin, 1);
      __builtin_prefetch((char *)ends[r].out + last, 1);
    }
}

/* The panel's rows of a column tile. */
static void panel_pv(const amla_worker *w, const amla_panel *panel, const pv_column *column,
                     int32_t n, float *o, const pv_plan *plan) {
  const int64_t cols = w->cpu->ukernels->pv_cols;
  const int32_t step = column->step, c = column->c;
  const int32_t ldp = panel->kernels->rows, stop = min(panel->row + ldp, w->n_pv_rows);
  const int32_t n_rows = w->group.row_end - w->group.row_begin;
  const char *p = (const char *)(w->s + panel->row * w->cpu->ukernels->tile_tokens);
  const int64_t step_bytes = step * (int64_t)sizeof(float); /* or pairs of bf16 */
  int64_t at = ((int64_t)c * w->cpu->layout.rows_padded + panel->row) * cols;
  for (int32_t r = panel->row; r < stop; r += step, at += step * cols, p += step_bytes) {
    amla_ukr_merge merges[AMLA_MAX_MERGES];
    float *out = o + at;
    for (int32_t i = 0; i < plan->n_merges; i++) {
      const amla_merge_step *m = &plan->merges[i];
      out = m->a + at;
      merges[i] = (amla_ukr_merge){out, m->of_a + r, m->of_b + r};
    }
    if (plan->ends)
      fetch_out(w, min(step, n_rows - r), c, plan->ends + r);
    column->pv(n, p, ldp, column->v, column->ldv, plan->first, o + at, plan->n_merges, merges, out);
    if (plan->ends)
      amla_store_tile(w, w->plan->problem.out_type, out, min(step, n_rows - r), c, plan->ends + r);
  }
}

/* O += P V, or O = P V. */
static void add_pv(const amla_worker *w, int32_t n, float *o, const pv_plan *plan) {
  if (w->cpu->ukernels->turn)
    w->cpu->ukernels->turn(n, w->plan->problem.d_v, w->tiles[0], w->cpu->layout.ld);
  for (int32_t c = 0; c < w->cpu->layout.n_col_tiles; c++) {
    const pv_column column = pv_column_at(w, c);
    for (const amla_panel *p = w->panels; p < w->panels + w->n_panels; p++)
      panel_pv(w, p, &column, n, o, plan);
  }
}

static void swap_tiles(amla_worker *w) {
  void *tile = w->tiles[0];
  w->tiles[0] = w->tiles[1];
  w->tiles[1] = tile;
}

/* ---- The loop ---- */

/* No key seen yet. The first tile writes O, but for the columns of its last tile that pv_end does
 * not write and rescaling and merging read: they are 0 and stay so. */
static void clear_partial(const amla_worker *w, amla_partial *acc) {
  const amla_ukernels *u = w->cpu->ukernels;
  const int32_t rows = w->cpu->layout.rows_padded, last = w->cpu->layout.n_col_tiles - 1;
  const int32_t unused = is_pv_end(w, last) ? u->pv_cols - u->pv_end.cols : 0;
  float *o = acc->o + (int64_t)last * rows * u->pv_cols + (u->pv_cols - unused);
  for (int32_t r = 0; r < rows; r++, o += u->pv_cols) {
    acc->ref[r] = -INFINITY;
    acc->l[r] = acc->l_rounded[r] = 0.0f;
    if (acc->max)
      acc->max[r] = -INFINITY;
    for (int32_t i = 0; i < unused; i++)
      o[i] = 0.0f;
  }
}

/* No row saw any key. */
void amla_end_empty(const amla_worker *w, amla_partial *acc, int32_t n_merges, int whole) {
  const amla_layout *l = &w->cpu->layout;
  const int64_t elems = (int64_t)l->n_col_tiles * l->rows_padded * w->cpu->ukernels->pv_cols;
  memset(acc->o, 0, (size_t)elems * sizeof *acc->o);
  for (int32_t i = 0; i < n_merges; i++)
    amla_partial_merge(w, acc - i - 1, acc - i, 0, w->n_pv_rows);
  if (!whole)
    return;
  amla_partial_store(w, &w->group, acc - n_merges, 0, w->group.row_end - w->group.row_begin);
}

int amla_worker_accumulate(amla_worker *w, int32_t begin, int32_t end, int32_t limit,
                           amla_partial *acc, int32_t n_merges, int whole) {
  const int32_t tile_tokens = w->cpu->ukernels->tile_tokens;
  if (w->cpu->ukernels->own)
    return w->cpu->ukernels->own->accumulate(w, begin, end, limit, acc, n_merges, whole);
  amla_rescale_step steps[AMLA_MAX_BLOCK_ROWS];
  amla_merge_step merges[AMLA_MAX_MERGES];
  amla_row_end ends[AMLA_MAX_BLOCK_ROWS];
  const int32_t rows = w->group.row_end - w->group.row_begin;
  pv_plan plan = {.first = 1, .merges = merges};

  clear_partial(w, acc);
  for (int32_t j = begin, n, next; j < end; j = next) {
    if (amla_worker_ends(w))
      return 0;
    n = min(end - j, tile_tokens);
    next = j + n;
    const int last = next == end;
    scores(w, j, n, next, limit);
    const int moved = weights(w, j, n, acc, steps);
    if (moved && !plan.first)
      rescale_rows(w, acc->o, w->n_pv_rows, steps);
    for (; last && plan.n_merges < n_merges; plan.n_merges++) {
      amla_partial *b = acc - plan.n_merges;
      merges[plan.n_merges] = amla_merge_sums(w, b - 1, b, 0, w->cpu->layout.rows_padded);
    }
    if (last && whole)
      amla_end_rows(w, &w->group, acc - n_merges, 0, rows, ends), plan.ends = ends;
    add_pv(w, n, acc->o, &plan);
    swap_tiles(w);
    plan.first = 0;
  }
  if (plan.first)
    amla_end_empty(w, acc, n_merges, whole);
  return 1;
}

/* ---- Around the loop ---- */

amla_layout amla_layout_create(const amla_problem *p, const amla_ukernels *u, int32_t block_rows) {
  const int32_t narrow = u->narrow.rows;
  const int64_t line = 64 / amla_elems_bytes(u->tile_type, 1);
  amla_layout l;
  l.rows_padded = (block_rows + narrow - 1) / narrow * narrow;
  l.n_col_tiles = (p->d_v + u->pv_cols - 1) / u->pv_cols;
  const int64_t v_cols = (int64_t)l.n_col_tiles * u->pv_cols * (u->turn ? u->v_width : 1);
  const int64_t lines = ((p->d_qk > v_cols ? p->d_qk : v_cols) + line - 1) / line;
  l.ld = (lines | 1) * line; /* odd: rows then start in different L1 sets */
  return l;
}

static void pack_q(const amla_worker *w, const amla_panel *panel) {
  const amla_problem *p = &w->plan->problem;
  const amla_ukernels *u = w->cpu->ukernels;
  const int32_t first = w->group.row_begin + panel->row;
  const int32_t n = min(panel->kernels->rows, w->group.row_end - first);
  const float factor = (float)((double)p->scale * 1.4426950408889634); /* log2 e */
  const void *q[AMLA_UKR_MAX_ROWS];
  for (int32_t r = 0; r < n; r++) {
    const int32_t at = first + r, query = at / p->h_q, head = at % p->h_q;
    q[r] = amla_whole_q_row(w, query, head, r);
  }
  panel->kernels->pack(n, amla_key_elems(p), p->q_type, q, factor, u->even_odd[p->kv_type],
                       panel->qt);
}

/* Columns that no key fills but pv reads. */
static void clear_tile_padding(const amla_worker *w, void *tile) {
  const amla_dtype type = w->cpu->ukernels->tile_type;
  const int64_t d_qk = w->plan->problem.d_qk, ld = w->cpu->layout.ld;
  const size_t bytes = (size_t)amla_elems_bytes(type, ld - d_qk);
  for (int32_t j = 0; j < w->cpu->ukernels->tile_tokens; j++)
    memset(elems_at(tile, type, j * ld + d_qk), 0, bytes);
}

void amla_worker_begin_group(amla_worker *w, const amla_group *group) {
  const amla_ukernels *u = w->cpu->ukernels;
  const amla_problem *p = &w->plan->problem;
  const int32_t rows = group->row_end - group->row_begin;
  w->group = *group;
  w->line = group->line;
  w->cursor = w->mask_cursor = (amla_cursor)AMLA_CURSOR_INIT;
  w->n_panels = 0;
  w->n_pv_rows = (rows + u->pv_rows - 1) / u->pv_rows * u->pv_rows;
  for (int32_t r = 0; r < AMLA_MAX_BLOCK_ROWS; r++) {
    const int32_t query = (group->row_begin + min(r, rows - 1)) / p->h_q;
    w->visible_end[r] = w->cpu->schedule.lines
                            ? group->visible
                            : amla_visible(p, w->tensors, group->sequence, query);
  }
  if (u->own) {
    u->own->begin_group(w);
    return;
  }
  for (int32_t row = 0; row < rows; row += w->panels[w->n_panels++].kernels->rows) {
    const amla_ukr_panel *kernels = rows - row > u->narrow.rows ? &u->wide : &u->narrow;
    char *qt = (char *)w->qt + row * amla_ukr_qt_bytes(u, p->d_qk);
    w->panels[w->n_panels] = (amla_panel){kernels, row, qt};
    pack_q(w, &w->panels[w->n_panels]);
  }
  w->staged = -1;
  clear_tile_padding(w, w->tiles[0]);
  clear_tile_padding(w, w->tiles[1]);
}
