/* SPDX-License-Identifier: Apache-2.0
 *
 * Problems of lists, two scopes, windows, ragged queries and split rows: made from a few numbers,
 * run, and compared with fp64. Which keys a query sees, and where they lie, is computed here, apart
 * from src. Every slot that no query sees is NaN, and every entry that does not count out of range.
 */
#ifndef AMLA_TEST_SPARSE_CASE_H
#define AMLA_TEST_SPARSE_CASE_H

#include "test_run.h"

#include "harness/kv_blocks.h"
#include "spec/spec.h"

/* One cache, and what is seen of it. sk = topk = 0: there is none. */
typedef struct scope_form {
  int32_t sk, topk, page;
  int32_t lengths; /* topk_length: 0: none, 1: [b], 2: [b][s_q] */
  int32_t invalid; /* per cent of a list's entries; 100: all, in every other list */
  int32_t visible; /* visible_k is given */
  int32_t csr;
  int32_t padded; /* strides are longer than what they span */
} scope_form;

typedef struct sparse_form {
  int32_t b, s_q, h_q, d_qk, d_v; /* 0: 3, 1, 5, 40, 32 */
  amla_dtype q, kv, out;
  scope_form scope[2];
  int32_t positions, causal, window, ragged, sinks;
  int32_t mixed; /* lengths differ, 0 among them */
  int32_t q_d_rope, kv_d_rope;
  int32_t base2, with_sink;
  int32_t peaked; /* factor of q; 0: 1 */
  uint64_t seed;
} sparse_form;

typedef struct sparse_scope {
  scope_form form;
  void *kv, *rope;
  int32_t *lengths, *pages, *indptr, *visible, *list, *list_lengths; /* NULL: not given */
  int32_t row_elems, rope_elems;                                     /* of kv and rope */
  int32_t tokens, max_pages, n_pages; /* tokens of a page, or of a sequence */
  int64_t token, page, rope_token, rope_page, list_query, list_batch; /* strides, elements */
} sparse_scope;

typedef struct sparse_case {
  sparse_form form;
  harness_dataset data; /* problem, tensors, options: of memory that is `owned` */
  sparse_scope scope[2];
  int32_t n_scopes;
  void *q, *q_rope, *out;
  float *lse, *max_logits, *sinks;
  int32_t *q_indptr;
  void *owned[32];
  int n_owned;
  uint64_t seed;
} sparse_case;

/* ---- Memory ---- */

static inline void *own(sparse_case *c, int64_t n, size_t element_bytes) {
  void *at = harness_allocate(n > 0 ? n : 1, element_bytes);
  assert_true(at && c->n_owned < LENGTH(c->owned));
  memset(at, 0xff, (size_t)(n > 0 ? n : 1) * element_bytes); /* NaN */
  return c->owned[c->n_owned++] = at;
}

static inline void sparse_free(sparse_case *c) {
  for (int i = 0; i < c->n_owned; i++)
    free(c->owned[i]);
}

/* In (-sqrt 3, sqrt 3): of variance 1. */
static inline float random_uniform(uint64_t *seed) {
  return 1.7320508f * ((float)(int32_t)(uint32_t)harness_random(seed) * 0x1p-31f);
}

/* Random elements of variance factor^2, cheaper than normal deviates; those of blocks at random. */
static inline void fill_elems(uint64_t *seed, void *buffer, amla_dtype type, int64_t at, int32_t n,
                              float factor) {
  const bool whole = harness_is_block(type);
  for (int32_t i = 0; i < n && !whole; i++)
    harness_store(buffer, type, at + i, factor * random_uniform(seed));
  unsigned char *block = (unsigned char *)buffer + (whole ? harness_bytes(type, at) : 0);
  for (int64_t j = 0; whole && j < harness_bytes(type, n); j++) {
    const int64_t in_block = j % harness_bytes(type, 32);
    const bool high = in_block == 1 || in_block == 3; /* of d, and of m in types that have it */
    block[j] = high ? 0x20 : (unsigned char)random_below(seed, 256); /* near 2^-7 */
  }
}

/* ---- Queries ---- */

static inline int32_t queries_of(const sparse_case *c, int32_t sequence) {
  return c->q_indptr ? c->q_indptr[sequence + 1] - c->q_indptr[sequence] : c->form.s_q;
}

/* A query's number among all. */
static inline int32_t query_number(const sparse_case *c, int32_t sequence, int32_t query) {
  return (c->q_indptr ? c->q_indptr[sequence] : sequence * c->form.s_q) + query;
}

static inline int32_t all_queries(const sparse_case *c) { return query_number(c, c->form.b, 0); }

/* A row's place in lse and max_logits. */
static inline int64_t row_number(const sparse_case *c, int32_t sequence, int32_t query,
                                 int32_t head) {
  if (c->q_indptr)
    return (int64_t)query_number(c, sequence, query) * c->form.h_q + head;
  return ((int64_t)sequence * c->form.h_q + head) * c->form.s_q + query;
}

/* Elements before a row of q or out, packed. */
static inline int64_t row_offset(const sparse_case *c, int32_t sequence, int32_t query,
                                 int32_t head, int32_t d) {
  return ((int64_t)query_number(c, sequence, query) * c->form.h_q + head) * d;
}

/* ---- Keys ---- */

/* A token, by page and slot. */
typedef struct key_place {
  const sparse_scope *scope;
  int64_t page, slot;
} key_place;

static inline int32_t length_of(const sparse_scope *s, int32_t sequence) {
  return s->lengths ? s->lengths[sequence] : s->form.sk;
}

static inline key_place place_of_position(const sparse_scope *s, int32_t sequence, int32_t j) {
  if (s->form.page == 0)
    return (key_place){s, sequence, j};
  const int32_t row = s->indptr ? s->indptr[sequence] : sequence * s->max_pages;
  return (key_place){s, s->pages[row + j / s->form.page], j % s->form.page};
}

static inline int32_t *list_of(const sparse_case *c, const sparse_scope *s, int32_t sequence,
                               int32_t query) {
  return s->list + (c->q_indptr ? query_number(c, sequence, query) * s->list_query
                                : sequence * s->list_batch + query * s->list_query);
}

static inline int32_t list_length(const sparse_case *c, const sparse_scope *s, int32_t sequence,
                                  int32_t query) {
  if (!s->list_lengths)
    return s->form.topk;
  return s->list_lengths[s->form.lengths == 2 ? query_number(c, sequence, query) : sequence];
}

static inline int32_t list_keys_of(const sparse_case *c, const sparse_scope *s, int32_t sequence,
                                   int32_t query, key_place *keys) {
  const int32_t *list = list_of(c, s, sequence, query);
  int32_t n = 0;
  for (int32_t i = 0; i < list_length(c, s, sequence, query); i++)
    if (list[i] >= 0)
      keys[n++] = c->form.positions ? place_of_position(s, sequence, list[i])
                                    : (key_place){s, list[i] / s->tokens, list[i] % s->tokens};
  return n;
}

static inline int32_t dense_keys_of(const sparse_case *c, const sparse_scope *s, int32_t sequence,
                                    int32_t query, key_place *keys) {
  const int first = s == &c->scope[0];
  int32_t end = length_of(s, sequence), n = 0;
  if (first && c->form.causal)
    end -= queries_of(c, sequence) - 1 - query;
  if (s->visible)
    end = s->visible[query_number(c, sequence, query)];
  for (int32_t j = 0; j < end; j++)
    if (!first || c->form.window == 0 || j >= end - c->form.window)
      keys[n++] = place_of_position(s, sequence, j);
  return n;
}

/* What the query sees, in order: [result], at most as many as `most_keys`. */
static inline int32_t keys_of(const sparse_case *c, int32_t sequence, int32_t query,
                              key_place *keys) {
  int32_t n = 0;
  for (int i = 0; i < c->n_scopes; i++) {
    const sparse_scope *s = &c->scope[i];
    n += s->form.topk > 0 ? list_keys_of(c, s, sequence, query, keys + n)
                          : dense_keys_of(c, s, sequence, query, keys + n);
  }
  return n;
}

static inline int32_t most_keys(const sparse_case *c) {
  int32_t n = 1;
  for (int i = 0; i < c->n_scopes; i++)
    n += c->form.scope[i].topk ? c->form.scope[i].topk : c->form.scope[i].sk;
  return n;
}

static inline int64_t row_at(const key_place *k) {
  return k->page * k->scope->page + k->slot * k->scope->token;
}
static inline int64_t rope_at(const key_place *k) {
  return k->page * k->scope->rope_page + k->slot * k->scope->rope_token;
}

/* ---- Making one ---- */

static inline int32_t random_length(sparse_case *c, int32_t i, int32_t most) {
  if (!c->form.mixed || i % 4 == 1)
    return most;
  return i % 4 == 2 ? 0 : random_below(&c->seed, most + 1);
}

static inline void make_pages(sparse_case *c, sparse_scope *s) {
  const scope_form *f = &s->form;
  const int32_t b = c->form.b, blocks = harness_is_block(c->form.kv) ? 32 : 1;
  s->tokens = f->page ? f->page : f->sk;
  s->max_pages = f->page ? (f->sk + f->page - 1) / f->page : 0;
  s->n_pages = f->page ? b * s->max_pages + 2 : 0;
  s->row_elems = c->form.d_qk - (s == c->scope ? c->form.kv_d_rope : 0);
  s->rope_elems = c->form.d_qk - s->row_elems;
  s->token = s->row_elems + (f->padded ? blocks : 0);
  s->page = s->tokens * s->token + (f->padded ? 3 * blocks : 0);
  s->rope_token = s->rope_elems + (f->padded ? 2 * blocks : 0);
  s->rope_page = s->tokens * s->rope_token + (f->padded ? blocks : 0);
  s->lengths = own(c, b, sizeof *s->lengths);
  for (int32_t i = 0; i < b; i++)
    s->lengths[i] = random_length(c, i, f->sk);
  s->pages = own(c, s->n_pages, sizeof *s->pages);
  for (int32_t i = 0; i < s->n_pages; i++) {
    const int32_t j = random_below(&c->seed, i + 1);
    s->pages[i] = s->pages[j], s->pages[j] = i;
  }
  if (!f->csr)
    return;
  s->indptr = own(c, b + 1, sizeof *s->indptr);
  for (int32_t i = 0; i <= b; i++)
    s->indptr[i] = i * s->max_pages;
}

static inline int32_t random_entry(sparse_case *c, const sparse_scope *s, int32_t sequence) {
  const int32_t slots = (s->form.page ? s->n_pages : c->form.b) * s->tokens;
  const int32_t n = c->form.positions ? length_of(s, sequence) : slots;
  return n > 0 ? random_below(&c->seed, n) : -1;
}

static inline void make_list(sparse_case *c, sparse_scope *s, int32_t sequence, int32_t query) {
  int32_t *list = list_of(c, s, sequence, query);
  const int32_t n = list_length(c, s, sequence, query), invalid = s->form.invalid;
  const int none = invalid == 100 && (sequence + query) % 2 == 0;
  for (int32_t i = 0; i < s->form.topk; i++) {
    const int out = invalid < 100 && random_below(&c->seed, 100) < invalid;
    list[i] = i < n ? random_entry(c, s, sequence) : INT32_MAX;
    if (i < n && (none || out))
      list[i] = random_below(&c->seed, 2) ? -1 : INT32_MIN;
  }
}

static inline void make_lists(sparse_case *c, sparse_scope *s) {
  const int32_t n = all_queries(c), pad = s->form.padded ? 3 : 0;
  s->list_query = s->form.topk + pad;
  s->list_batch = c->form.s_q * s->list_query + pad;
  s->list = own(c, c->form.b * s->list_batch, sizeof *s->list);
  if (s->form.lengths)
    s->list_lengths = own(c, s->form.lengths == 2 ? n : c->form.b, sizeof *s->list_lengths);
  for (int32_t i = 0; s->form.lengths && i < (s->form.lengths == 2 ? n : c->form.b); i++)
    s->list_lengths[i] = random_length(c, i, s->form.topk);
  for (int32_t i = 0; i < c->form.b; i++)
    for (int32_t query = 0; query < queries_of(c, i); query++)
      make_list(c, s, i, query);
}

static inline void make_scope(sparse_case *c, sparse_scope *s) {
  const amla_dtype type = c->form.kv;
  make_pages(c, s);
  const int64_t pages = s->form.page ? s->n_pages : c->form.b;
  s->kv = own(c, (int64_t)harness_bytes(type, pages * s->page), 1);
  if (s->rope_elems)
    s->rope = own(c, (int64_t)harness_bytes(type, pages * s->rope_page), 1);
  if (s->form.topk > 0)
    make_lists(c, s);
  if (!s->form.visible)
    return;
  s->visible = own(c, all_queries(c), sizeof *s->visible);
  for (int32_t i = 0; i < c->form.b; i++)
    for (int32_t query = 0; query < queries_of(c, i); query++)
      s->visible[query_number(c, i, query)] = random_below(&c->seed, length_of(s, i) + 1);
}

/* Is any key of a sequence converted that only some query sees? Then all must be numbers. */
static inline int has_hidden_keys(const sparse_form *f) {
  return !f->window && !f->scope[0].topk && !f->scope[1].sk && !f->scope[1].topk;
}

static inline void fill_token(sparse_case *c, const key_place *k) {
  fill_elems(&c->seed, k->scope->kv, c->form.kv, row_at(k), k->scope->row_elems, 1.0f);
  if (k->scope->rope)
    fill_elems(&c->seed, k->scope->rope, c->form.kv, rope_at(k), k->scope->rope_elems, 1.0f);
}

/* Tokens that queries see; the rest stays NaN. */
static inline void fill_tokens(sparse_case *c) {
  key_place *keys = malloc((size_t)most_keys(c) * sizeof *keys);
  assert_non_null(keys);
  for (int32_t i = 0; i < c->form.b; i++) {
    for (int32_t j = 0; has_hidden_keys(&c->form) && j < length_of(&c->scope[0], i); j++) {
      const key_place k = place_of_position(&c->scope[0], i, j);
      fill_token(c, &k);
    }
    for (int32_t query = 0; query < queries_of(c, i); query++) {
      const int32_t n = has_hidden_keys(&c->form) ? 0 : keys_of(c, i, query, keys);
      for (int32_t j = 0; j < n; j++)
        fill_token(c, &keys[j]);
    }
  }
  free(keys);
}

static inline void make_queries(sparse_case *c) {
  const sparse_form *f = &c->form;
  if (f->ragged) {
    c->q_indptr = own(c, f->b + 1, sizeof *c->q_indptr);
    c->q_indptr[0] = 0;
  }
  for (int32_t i = 0; f->ragged && i < f->b; i++)
    c->q_indptr[i + 1] = c->q_indptr[i] + (i % 3 == 1 ? 0 : 1 + random_below(&c->seed, f->s_q));
  const int64_t rows = (int64_t)all_queries(c) * f->h_q;
  const float factor = f->peaked ? (float)f->peaked : 1.0f;
  const int32_t d = f->d_qk - f->q_d_rope;
  c->q = own(c, rows * d, harness_dtype_bytes(f->q));
  c->q_rope = own(c, rows * f->q_d_rope, harness_dtype_bytes(f->q));
  for (int64_t i = 0; i < rows; i++) {
    fill_elems(&c->seed, c->q, f->q, i * d, d, factor);
    fill_elems(&c->seed, c->q_rope, f->q, i * f->q_d_rope, f->q_d_rope, factor);
  }
  c->out = own(c, rows * f->d_v, harness_dtype_bytes(f->out));
  c->lse = own(c, rows, sizeof(float));
  c->max_logits = own(c, rows, sizeof(float));
  c->sinks = own(c, f->h_q, sizeof(float));
  for (int32_t i = 0; i < f->h_q; i++)
    c->sinks[i] = i % 5 == 3 ? -INFINITY : INFINITY;
  for (int32_t i = 0; i < f->h_q; i++)
    if (i % 5 < 3)
      c->sinks[i] = random_normal(&c->seed);
}

#define ATTACH(tensor, pointer, n)                                                                 \
  (t->tensor = (pointer), t->tensor##_bytes = t->tensor ? (size_t)(n) : 0)

static inline size_t words(int64_t n) { return (size_t)n * 4; }

static inline void attach_scopes(sparse_case *c) {
  const sparse_scope *s = &c->scope[0], *x = &c->scope[1];
  amla_problem *p = &c->data.problem;
  amla_tensors *t = &c->data.tensors;
  const int64_t b = c->form.b, queries = all_queries(c);
  const int slots = s->form.topk && !c->form.positions;
  p->sk = s->form.sk, p->topk = s->form.topk, p->page_size = s->form.page;
  p->n_pages = s->n_pages, p->max_pages = s->max_pages;
  p->kv_stride_page = s->page, p->kv_stride_token = s->token;
  p->kv_rope_stride_page = s->rope_page, p->kv_rope_stride_token = s->rope_token;
  p->indices_stride_batch = s->list_batch, p->indices_stride_query = s->list_query;
  p->topk_length_per_query = s->form.lengths == 2 || x->form.lengths == 2;
  const int64_t pages = s->form.page ? s->n_pages : b;
  ATTACH(kv, s->kv, harness_bytes(c->form.kv, pages * s->page));
  ATTACH(kv_rope, s->rope, harness_bytes(c->form.kv, pages * s->rope_page));
  ATTACH(block_table, s->form.page && !s->indptr && !slots ? s->pages : NULL,
         words(b * s->max_pages));
  ATTACH(kv_indptr, s->indptr, words(b + 1));
  ATTACH(kv_indices, s->indptr ? s->pages : NULL, words(b * s->max_pages));
  ATTACH(seqlens_k, slots ? NULL : s->lengths, words(b));
  ATTACH(visible_k, s->visible, words(queries));
  ATTACH(indices, s->list, words(b * s->list_batch));
  ATTACH(topk_length, s->list_lengths, words(s->form.lengths == 2 ? queries : b));
  if (c->n_scopes == 1)
    return;
  const int extra_slots = x->form.topk && !c->form.positions;
  const int64_t extra_pages = x->form.page ? x->n_pages : b;
  p->extra_sk = x->form.sk, p->extra_topk = x->form.topk, p->extra_page_size = x->form.page;
  p->extra_n_pages = x->n_pages, p->extra_max_pages = x->max_pages;
  p->extra_kv_stride_page = x->page, p->extra_kv_stride_token = x->token;
  p->extra_indices_stride_batch = x->list_batch, p->extra_indices_stride_query = x->list_query;
  ATTACH(extra_kv, x->kv, harness_bytes(c->form.kv, extra_pages * x->page));
  ATTACH(extra_block_table, x->form.page && !extra_slots ? x->pages : NULL,
         words(b * x->max_pages));
  ATTACH(extra_seqlens_k, extra_slots ? NULL : x->lengths, words(b));
  ATTACH(extra_visible_k, x->visible, words(queries));
  ATTACH(extra_indices, x->list, words(b * x->list_batch));
  ATTACH(extra_topk_length, x->list_lengths, words(x->form.lengths == 2 ? queries : b));
}

static inline void attach(sparse_case *c) {
  const sparse_form *f = &c->form;
  amla_problem *p = &c->data.problem;
  amla_tensors *t = &c->data.tensors;
  const int64_t rows = (int64_t)all_queries(c) * f->h_q;
  const size_t q_size = harness_dtype_bytes(f->q);
  *p = (amla_problem)AMLA_PROBLEM_INIT;
  *t = (amla_tensors)AMLA_TENSORS_INIT;
  c->data.options = (amla_options)AMLA_OPTIONS_INIT;
  c->data.options.lse_base = f->base2 ? AMLA_LSE_BASE2 : AMLA_LSE_NATURAL;
  p->b = f->b, p->s_q = f->s_q, p->h_q = f->h_q, p->d_qk = f->d_qk, p->d_v = f->d_v;
  p->q_type = f->q, p->kv_type = f->kv, p->out_type = f->out;
  p->causal = f->causal, p->window = f->window;
  p->index_kind = f->positions ? AMLA_INDEX_POSITION : AMLA_INDEX_SLOT;
  p->q_d_rope = f->q_d_rope, p->kv_d_rope = f->kv_d_rope;
  p->scale = (float)(1 / sqrt(f->d_qk));
  ATTACH(q, c->q, (size_t)(rows * (f->d_qk - f->q_d_rope)) * q_size);
  ATTACH(q_rope, f->q_d_rope ? c->q_rope : NULL, (size_t)(rows * f->q_d_rope) * q_size);
  ATTACH(q_indptr, c->q_indptr, words(f->b + 1));
  ATTACH(sinks, f->sinks ? c->sinks : NULL, words(f->h_q));
  ATTACH(out, c->out, (size_t)(rows * f->d_v) * harness_dtype_bytes(f->out));
  ATTACH(lse, c->lse, words(rows));
  ATTACH(max_logits, c->max_logits, words(rows));
  attach_scopes(c);
}

static inline void default_to(int32_t *field, int32_t value) {
  if (*field == 0)
    *field = value;
}

/* In place, for it points into itself. */
static inline void sparse_make(sparse_case *c, const sparse_form *form) {
  *c = (sparse_case){.form = *form, .seed = form->seed + 1, .n_scopes = 1};
  default_to(&c->form.b, 3);
  default_to(&c->form.s_q, 1);
  default_to(&c->form.h_q, 5);
  default_to(&c->form.d_qk, 40);
  default_to(&c->form.d_v, 32);
  if (form->scope[1].sk || form->scope[1].topk)
    c->n_scopes = 2;
  make_queries(c);
  for (int i = 0; i < c->n_scopes; i++) {
    c->scope[i].form = form->scope[i];
    make_scope(c, &c->scope[i]);
  }
  fill_tokens(c);
  attach(c);
}

/* ---- Running one ---- */

static inline const char *describe_form(const sparse_form *f) {
  static char text[700];
  int n = snprintf(text, sizeof text,
                   "{.b=%d,.s_q=%d,.h_q=%d,.d_qk=%d,.d_v=%d,.q=%d,.kv=%d,.out=%d,.positions=%d,"
                   ".causal=%d,.window=%d,.ragged=%d,.sinks=%d,.mixed=%d,.q_d_rope=%d,"
                   ".kv_d_rope=%d,.base2=%d,.with_sink=%d,.peaked=%d,.seed=%llu,.scope={",
                   f->b, f->s_q, f->h_q, f->d_qk, f->d_v, f->q, f->kv, f->out, f->positions,
                   f->causal, f->window, f->ragged, f->sinks, f->mixed, f->q_d_rope, f->kv_d_rope,
                   f->base2, f->with_sink, f->peaked, (unsigned long long)f->seed);
  for (int i = 0; i < 2; i++)
    n += snprintf(text + n, sizeof text - (size_t)n,
                  "{.sk=%d,.topk=%d,.page=%d,.lengths=%d,.invalid=%d,.visible=%d,.csr=%d,"
                  ".padded=%d},",
                  f->scope[i].sk, f->scope[i].topk, f->scope[i].page, f->scope[i].lengths,
                  f->scope[i].invalid, f->scope[i].visible, f->scope[i].csr, f->scope[i].padded);
  snprintf(text + n, sizeof text - (size_t)n, "}}");
  return text;
}

static inline void sparse_run(sparse_case *c, const amla_options *options) {
  amla_detail detail;
  const amla_tensors *t = &c->data.tensors;
  c->data.options.lse_sink = c->form.with_sink ? AMLA_LSE_WITH_SINK : AMLA_LSE_WITHOUT_SINK;
  memset(c->out, GUARD_PATTERN, t->out_bytes);
  memset(c->lse, GUARD_PATTERN, t->lse_bytes);
  memset(c->max_logits, GUARD_PATTERN, t->max_logits_bytes);
  const amla_status status = try_run(&c->data, options, &detail);
  if (status != AMLA_OK)
    fail_msg("%s %s: %s: %s", describe_form(&c->form), describe_options(options),
             amla_status_name(status), detail.text);
}

/* ---- The truth, and the bound of harness/truth.h ---- */

/* Keys and work space of a query. */
typedef struct gathered_keys {
  key_place *places;
  float *kv, *q; /* [n][d_qk], [d_qk] */
  double *weights, *out, *out_abs;
  int32_t n;
  double kv_max;
} gathered_keys;

static inline void gathered_create(const sparse_case *c, gathered_keys *g) {
  const size_t most = (size_t)most_keys(c), d_qk = (size_t)c->form.d_qk, d_v = (size_t)c->form.d_v;
  *g = (gathered_keys){.places = malloc(most * sizeof *g->places),
                       .kv = malloc(most * d_qk * sizeof *g->kv),
                       .q = malloc(d_qk * sizeof *g->q),
                       .weights = malloc(most * sizeof *g->weights),
                       .out = malloc(d_v * sizeof *g->out),
                       .out_abs = malloc(d_v * sizeof *g->out_abs)};
  assert_true(g->places && g->kv && g->q && g->weights && g->out && g->out_abs);
}

static inline void gathered_free(gathered_keys *g) {
  free(g->places), free(g->kv), free(g->q), free(g->weights), free(g->out), free(g->out_abs);
}

static inline void gather_keys(const sparse_case *c, int32_t sequence, int32_t query,
                               gathered_keys *g) {
  const int32_t d_qk = c->form.d_qk;
  g->n = keys_of(c, sequence, query, g->places);
  g->kv_max = 0;
  for (int32_t j = 0; j < g->n; j++) {
    const key_place *k = &g->places[j];
    const int32_t d_row = k->scope->row_elems;
    for (int32_t d = 0; d < d_qk; d++) {
      const float x = d < d_row ? harness_load(k->scope->kv, c->form.kv, row_at(k) + d)
                                : harness_load(k->scope->rope, c->form.kv, rope_at(k) + d - d_row);
      g->kv[(int64_t)j * d_qk + d] = x;
      g->kv_max = fmax(g->kv_max, fabs((double)x));
    }
  }
}

static inline void load_query(const sparse_case *c, int32_t sequence, int32_t query, int32_t head,
                              float *q) {
  const sparse_form *f = &c->form;
  const int32_t d = f->d_qk - f->q_d_rope;
  const int64_t at = row_offset(c, sequence, query, head, d),
                rope = row_offset(c, sequence, query, head, f->q_d_rope);
  for (int32_t i = 0; i < f->d_qk; i++)
    q[i] = i < d ? harness_load(c->q, f->q, at + i) : harness_load(c->q_rope, f->q, rope + i - d);
}

static inline void expect_close(const sparse_case *c, const amla_options *o, const char *what,
                                const int32_t *row, double got, double want, double bound) {
  if (got == want || fabs(got - want) <= bound)
    return;
  fail_msg("%s %s: %s of sequence %d query %d head %d: %.9g, want %.9g (bound %.3g)",
           describe_form(&c->form), describe_options(o), what, row[0], row[1], row[2], got, want,
           bound);
}

static inline void expect_row_right(const sparse_case *c, const amla_options *o,
                                    const gathered_keys *g, const int32_t *row) {
  const sparse_form *f = &c->form;
  const double u = 0x1p-24, log2e = 1.4426950408889634;
  static const double u_out[] = {0x1p-24, 0x1p-8, 0x1p-11};
  load_query(c, row[0], row[1], row[2], g->q);
  const spec_truth t = spec_attention_f64(f->d_qk, f->d_v, g->n, (double)c->data.problem.scale,
                                          g->q, g->kv, NULL, g->out, g->out_abs, g->weights);
  const int64_t at = row_number(c, row[0], row[1], row[2]),
                out = row_offset(c, row[0], row[1], row[2], f->d_v);
  const double sink = f->sinks && g->n > 0 ? (double)c->sinks[row[2]] : -INFINITY;
  const double of_keys = 1 / (1 + exp(sink - t.lse)), score = (4 + sqrt(f->d_qk)) * u * t.score_abs;
  double sum = 0, lse = t.lse, bound = g->n > 0 ? score + 65 * u * fmax(1, fabs(t.lse)) : 0;
  for (int32_t j = 0; j < g->n; j++)
    sum += g->weights[j];
  if (f->with_sink && sink > -INFINITY)
    lse = fmax(lse, sink) + log1p(exp(-fabs(lse - sink))), bound += u * fabs(lse);
  if (f->base2)
    lse *= log2e, bound *= log2e;
  expect_close(c, o, "lse", row, (double)c->lse[at], lse, bound);
  const double max = g->n > 0 ? t.lse - log(sum) : -INFINITY;
  expect_close(c, o, "max_logits", row, (double)c->max_logits[at], max,
               g->n > 0 ? score + 2 * u * fabs(max) : 0);
  const double tiny =
      (64 * 0x1p-115 + 0x1p-85 * g->kv_max) * g->n + (f->out == AMLA_F16 ? 0x1p-25 : 0);
  for (int32_t d = 0; d < f->d_v; d++) {
    const double want = g->n > 0 ? g->out[d] * of_keys : 0;
    const double limit = (score + 64 * u) * g->out_abs[d] * of_keys +
                         ((1 - of_keys) * bound + u_out[f->out]) * fabs(want) + tiny;
    expect_close(c, o, "out", row, (double)harness_load(c->out, f->out, out + d), want,
                 g->n > 0 ? limit : 0);
  }
}

/* Every `every`-th row. */
static inline void expect_right_rows(const sparse_case *c, const amla_options *o, int32_t every) {
  gathered_keys g;
  int32_t n = 0;
  gathered_create(c, &g);
  for (int32_t i = 0; i < c->form.b; i++)
    for (int32_t query = 0; query < queries_of(c, i); query++) {
      int gathered = 0;
      for (int32_t head = 0; head < c->form.h_q; head++)
        if (n++ % every == 0) {
          if (!gathered++)
            gather_keys(c, i, query, &g);
          expect_row_right(c, o, &g, (const int32_t[]){i, query, head});
        }
    }
  gathered_free(&g);
}

#endif
