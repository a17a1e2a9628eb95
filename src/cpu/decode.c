/* SPDX-License-Identifier: Apache-2.0
 *
 * THE loop on a CPU: scores, reference, P, rescale O, PV, in the order of spec/amla.c. No ISA code: that is behind the
 * micro-kernel table. Layouts are in decode.h, the mathematics in DESIGN.md and rescale.h.
 */
#include "decode.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "../base/float16.h"
#include "../problem.h"
#include "rescale.h"

enum { MAX_TILE_TOKENS = 128, MAX_QK_TOKENS = 16 };

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

/* Addresses of n KV tokens of the group's sequence from `begin` on; past `limit`, of the last one. */
static void find_tokens(const amla_worker *w, int32_t begin, int32_t n, int32_t limit, const void **src) {
  const amla_problem *p = &w->plan->problem;
  const int64_t token_bytes = amla_elems_bytes(p->kv_type, p->kv_stride_token);
  const int32_t known = min(n, limit - begin);
  for (int32_t j = 0; j < known;) { /* page by page */
    const char *at = amla_token(p, w->tensors, w->group.sequence, begin + j);
    const int32_t on_page = p->page_size > 0 ? p->page_size - (begin + j) % p->page_size : known;
    for (const int32_t end = j + min(known - j, on_page); j < end; j++, at += token_bytes) src[j] = at;
  }
  for (int32_t j = known > 0 ? known : 0; j < n; j++) src[j] = src[j - 1];
}

/* S^T of panels [first, last), which are of one kind, for the tile's n tokens. If they are the block's first, they convert keys on the way: src has
 * the tile's, and n_after of those after it. Either the first panel converts its own, or all panels in equal parts those of the next score tile,
 * which is the next KV tile's in the end. Memory moves while the FMAs run. */
static void panel_scores(amla_worker *w, const amla_panel *first, const amla_panel *last, int32_t n, const void *const *src, int32_t n_after) {
  const amla_problem *problem = &w->plan->problem;
  const int32_t n_panels = (int32_t)(last - first);
  const int64_t ld = w->layout.ld;
  for (int32_t j = 0, next; n_panels > 0 && j < n; j = next) {
    const int32_t tokens = first->kernels->tokens, ahead = first->kernels->ahead;
    next = min(n, j + tokens);
    const int32_t at = ahead ? next : j, rows = first > w->panels ? 0 : at < n ? min(tokens, n - at) : min(tokens, n_after);
    for (int32_t i = 0; i < n_panels; i++) {
      const amla_panel *p = first + i;
      const int32_t from = ahead ? rows * i / n_panels : i > 0 ? rows : 0, to = ahead ? rows * (i + 1) / n_panels : rows;
      const amla_ukr_stage stage = {problem->kv_type, to - from, src + at + from, (at < n ? w->tiles[0] + at * ld : w->tiles[1]) + from * ld};
      p->kernels->qk(next - j, problem->d_qk, w->tiles[0] + j * ld, ld, w->qt + (int64_t)p->row * problem->d_qk,
                     w->s + p->row * w->plan->ukernels->tile_tokens + j * p->kernels->rows, &stage);
    }
  }
}

/* S^T of the tile of n keys from `begin` on; keys [next, limit) will be asked for after it. */
static void scores(amla_worker *w, int32_t begin, int32_t n, int32_t next, int32_t limit) {
  const amla_ukernels *u = w->plan->ukernels;
  const amla_problem *problem = &w->plan->problem;
  const amla_panel *last = w->panels + w->n_panels, *narrow = last[-1].kernels == &u->narrow ? last - 1 : last;
  const int32_t ahead = w->panels->kernels->ahead * w->panels->kernels->tokens;
  const void *src[MAX_TILE_TOKENS + 3 * MAX_QK_TOKENS];
  find_tokens(w, begin, n, limit, src);
  find_tokens(w, next, 3 * MAX_QK_TOKENS, limit, src + n);
  for (int32_t i = 0; w->staged != begin && i < min(n, ahead); i++) u->load[problem->kv_type](problem->d_qk, src[i], w->tiles[0] + i * w->layout.ld);
  panel_scores(w, w->panels, narrow, n, src, limit - next);
  panel_scores(w, narrow, last, n, src, limit - next);
  w->staged = next < limit ? next : -1;
}

/* ---- The mask: a key that it hides gets a score below the domain, which becomes P = 0 and no maximum ---- */

static const float hidden = -FLT_MAX, lowest = -0x1.fffffcp127f; /* lowest: the next number above */

/* Keys of the tile from `begin` on that some query of the group sees. */
static int tile_is_seen(const amla_worker *w, int32_t begin, int32_t n) {
  const amla_problem *p = &w->plan->problem;
  for (int32_t query = w->group.row_begin / p->h_q; query <= (w->group.row_end - 1) / p->h_q; query++) {
    const uint16_t *mask = amla_mask_row(p, w->tensors, w->group.sequence, query);
    for (int32_t j = 0; j < n; j++)
      if (mask[begin + j] != AMLA_MASK_HIDDEN) return 1;
  }
  return 0;
}

/* The first tile from `begin` on, in steps of whole tiles, that is not hidden from all rows; `limit` if there is none. */
static int32_t next_tile(const amla_worker *w, int32_t begin, int32_t limit) {
  const int32_t tile_tokens = w->plan->ukernels->tile_tokens;
  while (w->tensors->mask && begin < limit && !tile_is_seen(w, begin, min(limit - begin, tile_tokens))) begin += tile_tokens;
  return min(begin, limit);
}

/* s [n][rows] += mask * log2 e, in log2 units as the scores are. */
static void add_mask(const amla_worker *w, const amla_panel *p, int32_t begin, int32_t n, float *s) {
  const int32_t rows = p->kernels->rows, h_q = w->plan->problem.h_q, first = w->group.row_begin + p->row;
  const int32_t end = min(rows, w->group.row_end - first);
  for (int32_t r = 0, stop; r < end; r = stop) { /* rows of one query at a time */
    const uint16_t *mask = amla_mask_row(&w->plan->problem, w->tensors, w->group.sequence, (first + r) / h_q) + begin;
    stop = min(end, r + h_q - (first + r) % h_q);
    for (int32_t j = 0; j < n; j++) {
      const float bias = amla_f16_to_f32(mask[j]) * 1.44269504f;
      if (bias == 0.0f) continue;
      for (int32_t i = r; i < stop; i++) s[j * rows + i] = bias == -INFINITY ? hidden : s[j * rows + i] + bias;
    }
  }
}

/* The largest score of row r of the panel, in whose n tokens nothing above `hidden` was found. A
 * score of -FLT_MAX that the mask leaves
 * visible is raised by its last bit, which tells it from hidden ones; without any, the row has seen
 * nothing (but keys that are NaN or -inf). */
static float raise_lowest(const amla_worker *w, const amla_panel *p, int32_t r, int32_t begin,
                          int32_t n, float *s) {
  const amla_problem *problem = &w->plan->problem;
  const int32_t row = min(w->group.row_begin + p->row + r, w->group.row_end - 1);
  const uint16_t *mask = amla_mask_row(problem, w->tensors, w->group.sequence, row / problem->h_q);
  float max = -INFINITY;
  for (int32_t j = 0; j < n; j++) {
    float *score = &s[j * p->kernels->rows + r];
    if (*score == hidden && mask[begin + j] != AMLA_MASK_HIDDEN) *score = max = lowest;
  }
  return max;
}

/* How many of the tile's n tokens, the first of which is `begin`, each row of the panel sees. */
static void visible_tokens(const amla_worker *w, const amla_panel *p, int32_t begin, int32_t n, int32_t *visible) {
  for (int32_t r = 0; r < p->kernels->rows; r++) {
    const int32_t seen = w->visible_end[p->row + r] - begin;
    visible[r] = seen < 0 ? 0 : seen < n ? seen : n;
  }
}

/* What the group's P, and so its O, is multiplied by beside what the mode asks for. */
static float headroom(const amla_worker *w, const amla_group *group) {
  return ldexpf(1.0f, -amla_headroom(w->plan->options.rescale, group->length));
}

/* New references, P in place of the scores, l; and what that asks of each row of O. Returns 0 if nothing. */
static int weights(amla_worker *w, int32_t begin, int32_t n, amla_partial *acc, amla_rescale_step *steps) {
  const amla_rescale mode = w->plan->options.rescale;
  const float room = headroom(w, &w->group);
  float max[AMLA_UKR_MAX_ROWS], base[AMLA_UKR_MAX_ROWS], mul[AMLA_UKR_MAX_ROWS], sum[AMLA_UKR_MAX_ROWS];
  int32_t visible[AMLA_UKR_MAX_ROWS];
  int moved = 0;
  for (const amla_panel *p = w->panels; p < w->panels + w->n_panels; p++) {
    float *s = w->s + p->row * w->plan->ukernels->tile_tokens, *ref = acc->ref + p->row, *l = acc->l + p->row;
    visible_tokens(w, p, begin, n, visible);
    if (w->tensors->mask) add_mask(w, p, begin, n, s);
    p->kernels->max(n, s, visible, max);
    for (int32_t r = 0; w->tensors->mask && r < p->kernels->rows; r++)
      if (max[r] == hidden) max[r] = raise_lowest(w, p, r, begin, visible[r], s);
    moved |= amla_rescale_rows(mode, p->kernels->rows, ref, max, steps + p->row);
    for (int32_t r = 0; r < p->kernels->rows; r++) {
      base[r] = w->tensors->mask && ref[r] == -INFINITY ? 0.0f : ref[r]; /* any will do for hidden keys: P = 0 */
      mul[r] = room * amla_rescale_p(mode, ref[r]);
    }
    p->kernels->exp(n, s, base, mul, visible, sum);
    for (int32_t r = 0; r < p->kernels->rows; r++) l[r] = steps[p->row + r].l_factor * l[r] + sum[r];
  }
  return moved || mode == AMLA_RESCALE_FLASH; /* flash multiplies in every tile; adding N = 0 is nothing to do */
}

/* The first n rows of O: a multiplication in flash, an integer add to the exponents in amla and lazy. */
static void rescale_rows(const amla_worker *w, float *o, int32_t n, const amla_rescale_step *steps) {
  const amla_ukernels *u = w->plan->ukernels;
  float factor[AMLA_MAX_BLOCK_ROWS];
  int32_t shift[AMLA_MAX_BLOCK_ROWS];
  for (int32_t r = 0; r < n; r++) {
    factor[r] = steps[r].factor;
    shift[r] = steps[r].shift;
  }
  for (int32_t c = 0; c < w->layout.n_col_tiles; c++) {
    float *rows = o + (int64_t)c * w->layout.rows_padded * u->pv_cols;
    if (w->plan->options.rescale == AMLA_RESCALE_FLASH)
      u->scale(n, rows, factor);
    else
      u->shift(n, rows, shift);
  }
}

/* What a merge a += b multiplies the rows of either side's O by. */
typedef struct merge_step {
  float *a;
  float of_a[AMLA_MAX_BLOCK_ROWS], of_b[AMLA_MAX_BLOCK_ROWS];
} merge_step;

/* Brings references and sums of rows [row_begin, row_end) of a to those of a + b. */
static merge_step merge_rows(const amla_worker *w, amla_partial *a, const amla_partial *b, int32_t row_begin, int32_t row_end) {
  const amla_rescale mode = w->plan->options.rescale;
  merge_step m;
  m.a = a->o;
  for (int32_t r = row_begin; r < row_end; r++) {
    const float ref = a->ref[r] > b->ref[r] ? a->ref[r] : b->ref[r];
    const amla_rescale_step of_a = amla_rescale_to(mode, a->ref[r], ref), of_b = amla_rescale_to(mode, b->ref[r], ref);
    /* A side that has seen no key holds +0. Times -0 it adds nothing: the other side keeps its bits, a
     * negative zero too. Two of them stay +0. */
    m.of_a[r] = a->ref[r] == -INFINITY ? -0.0f : of_a.factor;
    if (ref == -INFINITY) m.of_a[r] = 0.0f;
    m.of_b[r] = b->ref[r] == -INFINITY ? -0.0f : of_b.factor;
    a->ref[r] = ref;
    a->l[r] = of_a.l_factor * a->l[r] + of_b.l_factor * b->l[r];
  }
  return m;
}

/* Ends rows [row_begin, row_end) of the group, whose result is a. */
static void end_rows(const amla_worker *w, const amla_group *group, const amla_partial *a, int32_t row_begin, int32_t row_end, amla_row_end *ends) {
  const amla_plan *plan = w->plan;
  const float room = headroom(w, group);
  for (int32_t r = row_begin; r < row_end; r++) {
    const int32_t at = group->row_begin + r, query = at / plan->problem.h_q, head = at % plan->problem.h_q;
    const float of_p = room * amla_rescale_p(plan->options.rescale, a->ref[r]);
    const double divisor = (double)a->l[r] * (double)of_p;
    ends[r] = amla_end_row(&plan->problem, &plan->options, w->tensors, group->sequence, query, head, divisor, (double)a->ref[r] + log2((double)a->l[r]));
  }
}

/* The first `rows` rows of an output tile, in column tile c. */
static void store_tile(const amla_worker *w, const float *o, int32_t rows, int32_t c, const amla_row_end *ends) {
  const amla_ukernels *u = w->plan->ukernels;
  const amla_problem *p = &w->plan->problem;
  const int32_t d = c * u->pv_cols;
  u->store[p->out_type](rows, min(p->d_v - d, u->pv_cols), o, u->split[p->kv_type] && d + u->pv_cols <= p->d_qk, ends, d);
}

/* Column tile c is the last one and so narrow that pv_end computes it. */
static int is_pv_end(const amla_worker *w, int32_t c) {
  const amla_ukernels *u = w->plan->ukernels;
  return u->pv_end.pv && w->plan->problem.d_v - c * u->pv_cols <= u->pv_end.cols;
}

/* O += P V, or O = P V; in the split's last tile merged on the way out, and stored if that is the end: `ends` then has the block's rows. */
static void add_pv(const amla_worker *w, int32_t n, int first, float *o, const merge_step *merges, int32_t n_merges, const amla_row_end *ends) {
  const int32_t rows = w->group.row_end - w->group.row_begin;
  const amla_ukernels *u = w->plan->ukernels;
  const int64_t ld = w->layout.ld, cols = u->pv_cols;
  for (int32_t c = 0; c < w->layout.n_col_tiles; c++) {
    const int end = is_pv_end(w, c);
    amla_ukr_pv *const pv = end ? u->pv_end.pv : u->pv;
    const int32_t step = end ? u->pv_end.rows : u->pv_rows;
    const float *v = w->tiles[0] + c * cols;
    for (const amla_panel *panel = w->panels; panel < w->panels + w->n_panels; panel++) {
      const int32_t ldp = panel->kernels->rows, stop = min(ldp, w->n_pv_rows - panel->row);
      const float *p = w->s + panel->row * u->tile_tokens;
      int64_t at = ((int64_t)c * w->layout.rows_padded + panel->row) * cols;
      for (int32_t r = 0; r < stop; r += step, at += step * cols) {
        amla_ukr_merge tiles[AMLA_MAX_MERGES];
        float *out = o + at;
        for (int32_t i = 0; i < n_merges; i++) {
          out = merges[i].a + at;
          tiles[i] = (amla_ukr_merge){out, merges[i].of_a + panel->row + r, merges[i].of_b + panel->row + r};
        }
        pv(n, p + r, ldp, v, ld, first, o + at, n_merges, tiles, out);
        if (ends) store_tile(w, out, min(step, rows - panel->row - r), c, ends + panel->row + r);
      }
    }
  }
}

static void swap_tiles(amla_worker *w) {
  float *tile = w->tiles[0];
  w->tiles[0] = w->tiles[1];
  w->tiles[1] = tile;
}

/* No key seen yet; the first tile writes O. */
static void clear_sums(const amla_worker *w, amla_partial *acc) {
  for (int32_t r = 0; r < w->layout.rows_padded; r++) {
    acc->ref[r] = -INFINITY;
    acc->l[r] = 0.0f;
  }
}

/* The columns of the last tile that pv_end does not write and rescaling and merging read. They stay 0. */
static void clear_padding(const amla_worker *w, amla_partial *acc) {
  const amla_ukernels *u = w->plan->ukernels;
  const int32_t last = w->layout.n_col_tiles - 1;
  if (!is_pv_end(w, last)) return;
  float *o = acc->o + (int64_t)last * w->layout.rows_padded * u->pv_cols + u->pv_end.cols;
  for (int32_t r = 0; r < w->layout.rows_padded; r++, o += u->pv_cols) memset(o, 0, (size_t)(u->pv_cols - u->pv_end.cols) * sizeof *o);
}

static void clear_output(const amla_worker *w, amla_partial *acc) {
  const amla_layout *l = &w->layout;
  memset(acc->o, 0, (size_t)l->n_col_tiles * (size_t)(l->rows_padded * w->plan->ukernels->pv_cols) * sizeof(float));
}

void amla_worker_accumulate(amla_worker *w, int32_t begin, int32_t end, int32_t limit, amla_partial *acc, int32_t n_merges, int whole) {
  const int32_t tile_tokens = w->plan->ukernels->tile_tokens;
  amla_rescale_step steps[AMLA_MAX_BLOCK_ROWS];
  merge_step merges[AMLA_MAX_MERGES];
  amla_row_end ends[AMLA_MAX_BLOCK_ROWS];
  const int32_t rows = w->group.row_end - w->group.row_begin;
  int first = 1;

  clear_sums(w, acc);
  clear_padding(w, acc);
  for (int32_t j = next_tile(w, begin, end), n, next; j < end; j = next, first = 0) {
    n = min(end - j, tile_tokens);
    next = next_tile(w, j + n, end); /* whether a tile is skipped is the split's affair alone */
    scores(w, j, n, next < end ? next : next_tile(w, end, limit), limit);
    if (weights(w, j, n, acc, steps) && !first) rescale_rows(w, acc->o, w->n_pv_rows, steps);
    const int32_t merged = next < end ? 0 : n_merges;
    for (int32_t i = 0; i < merged; i++) merges[i] = merge_rows(w, acc - i - 1, acc - i, 0, w->layout.rows_padded);
    if (whole && next >= end) end_rows(w, &w->group, acc - n_merges, 0, rows, ends);
    add_pv(w, n, first, acc->o, merges, merged, whole && next >= end ? ends : NULL);
    swap_tiles(w);
  }
  if (!first) return;
  clear_output(w, acc);
  for (int32_t i = 0; i < n_merges; i++) amla_partial_merge(w, acc - i - 1, acc - i, 0, w->n_pv_rows);
  if (whole) amla_partial_store(w, &w->group, acc - n_merges, 0, rows);
}

/* ---- Around the loop ---- */

amla_layout amla_layout_create(const amla_plan *plan) {
  const amla_ukernels *u = plan->ukernels;
  const int32_t narrow = u->narrow.rows;
  amla_layout l;
  l.rows_padded = (plan->schedule.block_rows + narrow - 1) / narrow * narrow;
  l.n_col_tiles = (plan->problem.d_v + u->pv_cols - 1) / u->pv_cols;
  l.ld = plan->problem.d_qk > l.n_col_tiles * u->pv_cols ? plan->problem.d_qk : l.n_col_tiles * u->pv_cols;
  l.ld = (l.ld + 15) / 16 * 16;
  if (l.ld / 16 % 2 == 0) l.ld += 16; /* rows then start in different L1 sets */
  return l;
}

static void pack_q(const amla_worker *w, const amla_panel *panel) {
  const amla_problem *p = &w->plan->problem;
  const int32_t first = w->group.row_begin + panel->row, n = min(panel->kernels->rows, w->group.row_end - first);
  const void *rows[AMLA_UKR_MAX_ROWS];
  for (int32_t r = 0; r < n; r++) rows[r] = amla_q_row(p, w->tensors, w->group.sequence, (first + r) / p->h_q, (first + r) % p->h_q);
  panel->kernels->pack(n, p->d_qk, p->q_type, rows, (float)((double)p->scale * 1.4426950408889634), w->plan->ukernels->split[p->kv_type],
                       w->qt + (int64_t)panel->row * p->d_qk);
}

void amla_worker_begin_group(amla_worker *w, const amla_group *group) {
  const amla_ukernels *u = w->plan->ukernels;
  const int32_t rows = group->row_end - group->row_begin;
  w->group = *group;
  w->n_panels = 0;
  w->n_pv_rows = (rows + u->pv_rows - 1) / u->pv_rows * u->pv_rows;
  for (int32_t r = 0; r < AMLA_MAX_BLOCK_ROWS; r++)
    w->visible_end[r] = amla_visible(&w->plan->problem, group->length, (group->row_begin + min(r, rows - 1)) / w->plan->problem.h_q);
  for (int32_t row = 0; row < rows; row += w->panels[w->n_panels++].kernels->rows) {
    w->panels[w->n_panels] = (amla_panel){rows - row > u->narrow.rows ? &u->wide : &u->narrow, row};
    pack_q(w, &w->panels[w->n_panels]);
  }
  w->staged = -1;
  for (int32_t j = 0; j < u->tile_tokens; j++) /* columns that no key fills but pv reads */
    for (int64_t d = w->plan->problem.d_qk; d < w->layout.ld; d++) w->tiles[0][j * w->layout.ld + d] = w->tiles[1][j * w->layout.ld + d] = 0.0f;
}

void amla_partial_merge(const amla_worker *w, amla_partial *a, const amla_partial *b, int32_t row_begin, int32_t row_end) {
  const merge_step m = merge_rows(w, a, b, row_begin, row_end);
  for (int32_t c = 0; c < w->layout.n_col_tiles; c++) {
    const int64_t at = ((int64_t)c * w->layout.rows_padded + row_begin) * w->plan->ukernels->pv_cols;
    w->plan->ukernels->merge(row_end - row_begin, a->o + at, m.of_a + row_begin, b->o + at, m.of_b + row_begin);
  }
}

void amla_partial_store(const amla_worker *w, const amla_group *group, const amla_partial *a, int32_t row_begin, int32_t row_end) {
  const int32_t step = w->plan->ukernels->pv_rows, cols = w->plan->ukernels->pv_cols;
  amla_row_end ends[AMLA_MAX_BLOCK_ROWS];
  end_rows(w, group, a, row_begin, row_end, ends);
  for (int32_t r = row_begin; r < row_end; r += step)
    for (int32_t c = 0; c < w->layout.n_col_tiles; c++)
      store_tile(w, a->o + ((int64_t)c * w->layout.rows_padded + r) * cols, min(step, row_end - r), c, ends + r);
}
