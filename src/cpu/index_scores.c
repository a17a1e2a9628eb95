/* SPDX-License-Identifier: Apache-2.0
 *
 * See index_scores.h. A tile of keys is converted to f32 once; then panel after panel of heads is
 * multiplied with it by the micro-kernels of decode, and weighed into the keys' sums. Tile and
 * panel stay in L1.
 */
#include "index_scores.h"

#include <string.h>

/* ---- Where things lie ---- */

int64_t amla_index_slot(const amla_index_args *a, int32_t sequence, int32_t j) {
  if (a->page_size == 0)
    return (int64_t)sequence * a->sk + j;
  const int64_t page = a->block_table[(int64_t)sequence * a->max_pages + j / a->page_size];
  return page * a->page_size + j % a->page_size;
}

static int has_scales(const amla_index_args *a) {
  return a->keys == AMLA_INDEX_KEYS_FP8_PAGE || a->keys == AMLA_INDEX_KEYS_FP8_TOKEN;
}

/* Keys that follow one another in a page. */
typedef struct key_run {
  const char *row, *scale; /* scale: NULL of rows of k_type */
  int64_t row_stride_bytes, scale_stride_bytes;
  int32_t n;
} key_run;

/* Of rows of k_type, or of fp8, whose strides count bytes. */
static int64_t key_elems_bytes(const amla_index_args *a, int64_t elems) {
  return has_scales(a) ? elems : amla_elems_bytes(a->k_type, elems);
}

/* From position j of the sequence on, at most n of them. */
static key_run find_keys(const amla_index_args *a, int32_t sequence, int32_t j, int32_t n) {
  const int32_t tokens = a->page_size > 0 ? a->page_size : a->sk, in_page = j % tokens;
  const int64_t page = amla_index_slot(a, sequence, j) / tokens;
  const char *base = (const char *)a->k + key_elems_bytes(a, page * a->k_stride_page);
  key_run run = {.row_stride_bytes = key_elems_bytes(a, a->k_stride_token), .n = tokens - in_page};
  if (run.n > n)
    run.n = n;
  run.row = base + in_page * run.row_stride_bytes;
  if (a->keys == AMLA_INDEX_KEYS_FP8_PAGE) {
    run.scale_stride_bytes = (int64_t)sizeof(float);
    run.scale = base + (int64_t)tokens * a->d + in_page * run.scale_stride_bytes;
  } else if (a->keys == AMLA_INDEX_KEYS_FP8_TOKEN) {
    run.scale_stride_bytes = a->k_stride_token;
    run.scale = run.row + a->d;
  }
  return run;
}

/* ---- Set-up ---- */

/* What all kernels are that keep keys in f32: those of 16-bit tiles round q. */
static const amla_ukernels *select_kernels(amla_isa isa) {
  const amla_ukernels *best = amla_ukernels_all[0], *wanted = amla_ukernels_select(isa);
  for (int i = 0; amla_ukernels_all[i]; i++) {
    if (amla_ukernels_all[i]->tile_type == AMLA_F32)
      best = amla_ukernels_all[i];
    if (amla_ukernels_all[i] == wanted)
      break;
  }
  return best;
}

static int is_q_fp8(const amla_index_args *a) { return (int)a->q_type > AMLA_F16; }

amla_index_scorer amla_index_scorer_create(const amla_index_args *a, amla_isa isa,
                                           amla_arena *arena) {
  /* In tokens, and floats: keys of 128 elements beside a panel of 16 heads are 21 kB of L1. */
  enum { TILE = 24, LINE = 16 };
  amla_index_scorer s = {.args = a, .ukernels = select_kernels(isa)};
  const amla_ukernels *u = s.ukernels;
  const int32_t narrow = u->narrow.rows, tokens = u->narrow.tokens;
  s.ukr = amla_index_ukr_for(u->isa);
  s.rows_padded = (a->heads + narrow - 1) / narrow * narrow;
  s.tile_tokens = (TILE + tokens - 1) / tokens * tokens;
  s.ld = (a->d / LINE | 1) * LINE; /* odd: rows then start in different L1 sets */
  s.q = amla_arena_take(arena, is_q_fp8(a) ? (int64_t)a->heads * a->d : 0, sizeof *s.q);
  s.q_rows = amla_arena_take(arena, a->heads, sizeof *s.q_rows);
  s.qt = amla_arena_take(arena, (int64_t)s.rows_padded * a->d, sizeof *s.qt);
  s.weights = amla_arena_take(arena, s.rows_padded, sizeof *s.weights);
  s.keys = amla_arena_take(arena, s.tile_tokens * s.ld, sizeof *s.keys);
  s.scales = amla_arena_take(arena, s.tile_tokens, sizeof *s.scales);
  s.s = amla_arena_take(arena, s.tile_tokens * u->wide.rows, sizeof *s.s);
  s.sums = amla_arena_take(arena, s.tile_tokens * AMLA_INDEX_LANES, sizeof *s.sums);
  return s;
}

/* ---- A query ---- */

/* Each element times the head's scale, rounded once. */
static void widen_q(const amla_index_scorer *s, const void *q, int32_t head, float scale) {
  float *to = s->q + (int64_t)head * s->args->d;
  s->ukr->load_e4m3(s->args->d, q, to);
  for (int32_t i = 0; i < s->args->d; i++)
    to[i] *= scale;
}

static const amla_ukr_panel *panel_at(const amla_index_scorer *s, int32_t row) {
  const amla_ukernels *u = s->ukernels;
  return s->args->heads - row > u->narrow.rows ? &u->wide : &u->narrow;
}

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

/* The columns' order, where the loads of decode make keys f32: those of the indexer keep it. */
static int is_even_odd(const amla_index_scorer *s) {
  const amla_index_args *a = s->args;
  return a->keys == AMLA_INDEX_KEYS_TYPED && s->ukernels->even_odd[a->k_type];
}

void amla_index_scorer_begin(amla_index_scorer *s, int32_t sequence, int32_t query) {
  const amla_index_args *a = s->args;
  const int fp8 = is_q_fp8(a);
  const amla_dtype type = fp8 ? AMLA_F32 : a->q_type;
  const int64_t first = ((int64_t)sequence * a->s_q + query) * a->heads;
  s->sequence = sequence;
  for (int32_t h = 0; h < a->heads; h++) {
    const int64_t at = sequence * a->q_stride_batch + query * a->q_stride_query;
    const int64_t elem = at + h * a->q_stride_head;
    s->q_rows[h] = (const char *)a->q + (fp8 ? elem : amla_elems_bytes(type, elem));
    if (fp8) {
      widen_q(s, s->q_rows[h], h, a->q_scales ? a->q_scales[first + h] : 1.0f);
      s->q_rows[h] = s->q + (int64_t)h * a->d;
    }
  }
  for (int32_t row = 0; row < a->heads;) {
    const amla_ukr_panel *p = panel_at(s, row);
    p->pack(min(p->rows, a->heads - row), a->d, type, s->q_rows + row, 1.0f, is_even_odd(s),
            s->qt + (int64_t)row * a->d);
    row += p->rows;
  }
  memset(s->weights, 0, (size_t)s->rows_padded * sizeof *s->weights);
  memcpy(s->weights, a->weights + first, (size_t)a->heads * sizeof *s->weights);
}

/* ---- Scores ---- */

static void load_rows(const amla_index_scorer *s, const key_run *run, float *to) {
  const amla_index_args *a = s->args;
  const amla_row_format format = {a->k_type, a->d, a->d, 1.0f, 1.0f};
  void (*load)(int32_t, const void *, float *) = s->ukr->load_bf16;
  if (has_scales(a))
    load = s->ukr->load_e4m3;
  if (a->keys == AMLA_INDEX_KEYS_TYPED)
    for (int32_t j = 0; j < run->n; j++)
      s->ukernels->load(&format, run->row + j * run->row_stride_bytes, NULL, to + j * s->ld);
  else
    for (int32_t j = 0; j < run->n; j++)
      load(a->d, run->row + j * run->row_stride_bytes, to + j * s->ld);
}

static void load_run(const amla_index_scorer *s, const key_run *run, int32_t at) {
  load_rows(s, run, s->keys + at * s->ld);
  for (int32_t j = 0; j < run->n && run->scale; j++)
    memcpy(&s->scales[at + j], run->scale + j * run->scale_stride_bytes, sizeof *s->scales);
}

static void load_keys(const amla_index_scorer *s, int32_t first, int32_t n) {
  for (int32_t j = 0; j < n;) {
    const key_run run = find_keys(s->args, s->sequence, first + j, n - j);
    load_run(s, &run, j);
    j += run.n;
  }
}

/* Rows behind the last head are 0 * k, which is NaN where k is infinite. */
static void clear_padding(float *s, int32_t n, int32_t rows, int32_t used) {
  for (int32_t j = 0; j < n && used < rows; j++)
    memset(s + j * rows + used, 0, (size_t)(rows - used) * sizeof *s);
}

static void add_panel(const amla_index_scorer *s, const amla_ukr_panel *p, int32_t row, int32_t n) {
  static const amla_ukr_move no_move;
  static const amla_row_format f32 = {.type = AMLA_F32};
  static const amla_ukr_stage nothing = {&f32, 0, &no_move}; /* the keys are converted */
  const amla_index_args *a = s->args;
  const float *scales = has_scales(a) ? s->scales : NULL;
  for (int32_t j = 0; j < n; j += p->tokens)
    p->qk(min(p->tokens, n - j), a->d, s->keys + j * s->ld, s->ld, s->qt + (int64_t)row * a->d,
          s->s + j * p->rows, &nothing);
  clear_padding(s->s, n, p->rows, a->heads - row);
  s->ukr->weigh(n, p->rows, s->s, s->weights + row, scales, s->sums);
}

void amla_index_scorer_run(const amla_index_scorer *s, int32_t first, int32_t n, float *scores) {
  memset(s->sums, 0, (size_t)n * AMLA_INDEX_LANES * sizeof *s->sums);
  load_keys(s, first, n);
  for (int32_t row = 0; row < s->args->heads;) {
    const amla_ukr_panel *p = panel_at(s, row);
    add_panel(s, p, row, n);
    row += p->rows;
  }
  s->ukr->add_lanes(n, s->sums, scores);
}
