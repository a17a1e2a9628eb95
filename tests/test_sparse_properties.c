/* SPDX-License-Identifier: Apache-2.0
 *
 * What must hold of lists, scopes, windows and ragged queries whatever the numbers are, bit by bit,
 * in every instruction set and rescale mode: the same keys in the same order are the same result,
 * however they are said and whoever else is in the batch.
 */
#include "sparse_case.h"

/* Outputs of a run, kept. */
typedef struct outputs {
  size_t out_bytes, row_bytes; /* of out; of lse and max_logits */
  char *out, *lse, *max;
} outputs;

static char *copy_of(const void *from, size_t bytes) {
  char *to = malloc(bytes + 1);
  assert_non_null(to);
  memcpy(to, from, bytes);
  return to;
}

static outputs run_and_keep(sparse_case *c, const amla_options *options) {
  const amla_tensors *t = &c->data.tensors;
  sparse_run(c, options);
  return (outputs){t->out_bytes, t->lse_bytes, copy_of(c->out, t->out_bytes),
                   copy_of(c->lse, t->lse_bytes), copy_of(c->max_logits, t->lse_bytes)};
}

static void outputs_free(outputs *o) { free(o->out), free(o->lse), free(o->max); }

/* Runs the case again, as it is now: it must give the same bits. */
static void expect_same(sparse_case *c, const outputs *want, const char *what,
                        const amla_options *options) {
  outputs got = run_and_keep(c, options);
  assert_true(got.out_bytes == want->out_bytes && got.row_bytes == want->row_bytes);
  if (memcmp(got.out, want->out, got.out_bytes) || memcmp(got.lse, want->lse, got.row_bytes) ||
      memcmp(got.max, want->max, got.row_bytes))
    fail_msg("%s %s: %s: other bits", describe_form(&c->form), describe_options(options), what);
  outputs_free(&got);
}

/* ---- A list that says what lengths say ---- */

static int32_t slot_of(const sparse_case *c, int32_t sequence, int32_t j) {
  const key_place k = place_of_position(&c->scope[0], sequence, j);
  return (int32_t)(k.page * c->scope[0].tokens + k.slot);
}

/* Replaces what queries see of the dense first scope by lists of it, as positions or slots, with
 * `gaps` invalid entries before each valid one. */
static void say_by_lists(sparse_case *c, int positions, int32_t gaps) {
  amla_problem *p = &c->data.problem;
  amla_tensors *t = &c->data.tensors;
  const int32_t topk = (c->form.scope[0].sk + 1) * (1 + gaps), n = all_queries(c);
  int32_t *lists = own(c, (int64_t)n * topk, sizeof *lists);
  key_place *keys = malloc((size_t)most_keys(c) * sizeof *keys);
  assert_non_null(keys);
  for (int32_t i = 0; i < p->b; i++)
    for (int32_t query = 0; query < queries_of(c, i); query++) {
      int32_t *list = lists + (int64_t)query_number(c, i, query) * topk;
      const int32_t end = dense_keys_of(c, &c->scope[0], i, query, keys);
      int32_t first = length_of(&c->scope[0], i); /* the window's, from behind */
      if (c->form.causal)
        first -= queries_of(c, i) - 1 - query;
      if (c->scope[0].visible)
        first = c->scope[0].visible[query_number(c, i, query)];
      first -= end;
      for (int32_t j = 0; j < end; j++)
        list[gaps + j * (1 + gaps)] = positions ? first + j : slot_of(c, i, first + j);
    }
  free(keys);
  p->topk = topk;
  p->index_kind = positions ? AMLA_INDEX_POSITION : AMLA_INDEX_SLOT;
  p->causal = p->window = 0;
  ATTACH(visible_k, NULL, 0);
  ATTACH(indices, lists, words((int64_t)n * topk));
  if (!positions) {
    ATTACH(block_table, NULL, 0);
    ATTACH(seqlens_k, NULL, 0);
  }
}

static void check_lists_as_dense(const amla_options *options) {
  static const sparse_form forms[] = {
      {.scope = {{.sk = 700, .page = 16}}, .mixed = 1, .b = 5, .h_q = 37},
      {.scope = {{.sk = 700, .page = 0}}, .b = 2, .causal = 1, .kv = AMLA_BF16},
      {.scope = {{.sk = 300, .page = 1, .padded = 1}}, .s_q = 2, .b = 2, .h_q = 128},
      {.scope = {{.sk = 300, .page = 7}}, .s_q = 4, .mixed = 1, .b = 5, .causal = 1, .window = 100},
      {.scope = {{.sk = 300, .page = 7, .visible = 1}}, .s_q = 4, .mixed = 1, .b = 5, .window = 9},
      {.scope = {{.sk = 300, .page = 7}},
       .s_q = 4,
       .mixed = 1,
       .b = 5,
       .causal = 1,
       .window = 50,
       .ragged = 1},
  };
  for (int i = 0; i < LENGTH(forms); i++)
    for (int said = 0; said < 4; said++) {
      sparse_case c;
      sparse_make(&c, &forms[i]);
      outputs dense = run_and_keep(&c, options);
      say_by_lists(&c, said % 2, said / 2 * 3);
      expect_same(&c, &dense, said % 2 ? "a list of positions" : "a list of slots", options);
      outputs_free(&dense);
      sparse_free(&c);
    }
}

static void a_list_of_what_is_visible_is_dense_attention(void **state) {
  (void)state;
  for_each_engine(check_lists_as_dense);
}

/* ---- Two scopes ---- */

/* The second scope's lists behind the first one's, of the same cache. */
static void concatenate(sparse_case *c) {
  amla_problem *p = &c->data.problem;
  amla_tensors *t = &c->data.tensors;
  const int32_t first = p->topk, second = p->extra_topk, n = all_queries(c), topk = first + second;
  int32_t *lists = own(c, (int64_t)n * topk, sizeof *lists);
  for (int32_t i = 0; i < n; i++) {
    memcpy(lists + i * topk, c->scope[0].list + i * first, words(first));
    memcpy(lists + i * topk + first, (const int32_t *)t->extra_indices + i * second, words(second));
  }
  p->topk = topk;
  p->indices_stride_query = p->indices_stride_batch = 0;
  ATTACH(indices, lists, words((int64_t)n * topk));
  p->extra_sk = p->extra_topk = p->extra_page_size = p->extra_max_pages = 0;
  p->extra_n_pages = 0;
  ATTACH(extra_kv, NULL, 0);
  ATTACH(extra_indices, NULL, 0);
}

static void check_two_scopes(const amla_options *options) {
  static const sparse_form form = {
      .scope = {{.sk = 160, .topk = 200, .page = 16, .invalid = 20}}, .s_q = 3, .b = 4, .sinks = 1};
  sparse_case c;
  sparse_make(&c, &form);
  amla_problem *p = &c.data.problem;
  amla_tensors *t = &c.data.tensors;
  const int32_t n = all_queries(&c), topk = 333;
  int32_t *lists = own(&c, n * topk, sizeof *lists);
  for (int32_t i = 0; i < n * topk; i++) /* slots that some query sees hold numbers */
    lists[i] = c.scope[0].list[random_below(&c.seed, n * p->topk)];
  p->extra_topk = topk, p->extra_page_size = 4; /* the same cache in smaller pages */
  p->extra_n_pages = p->n_pages * 4;
  ATTACH(extra_kv, t->kv, t->kv_bytes);
  ATTACH(extra_indices, lists, words((int64_t)n * topk));
  outputs two = run_and_keep(&c, options);
  concatenate(&c);
  expect_same(&c, &two, "one list", options);
  outputs_free(&two);
  sparse_free(&c);
}

static void two_scopes_are_one_list(void **state) {
  (void)state;
  for_each_engine(check_two_scopes);
}

/* ---- Other sums of the same keys: within the bound of what they were ---- */

/* Each list in another order; the case expects the keys of its own. */
static void check_permuted(const amla_options *options) {
  static const sparse_form form = {.scope = {{.sk = 400, .topk = 500, .page = 16, .invalid = 10}},
                                   .s_q = 2,
                                   .b = 2,
                                   .peaked = 3};
  sparse_case c;
  sparse_make(&c, &form);
  amla_tensors *t = &c.data.tensors;
  const int32_t n = all_queries(&c), topk = form.scope[0].topk;
  int32_t *lists = own(&c, n * topk, sizeof *lists);
  memcpy(lists, c.scope[0].list, words((int64_t)n * topk));
  for (int32_t i = 0; i < n; i++)
    for (int32_t j = topk - 1; j > 0; j--) { /* Fisher and Yates */
      int32_t *list = lists + i * topk, other = random_below(&c.seed, j + 1), entry = list[j];
      list[j] = list[other], list[other] = entry;
    }
  outputs before = run_and_keep(&c, options);
  ATTACH(indices, lists, words((int64_t)n * topk));
  sparse_run(&c, options);
  assert_memory_not_equal(c.out, before.out, before.out_bytes);
  expect_right_rows(&c, options, 1);
  outputs_free(&before);
  sparse_free(&c);
}

static void a_permuted_list_is_within_the_bound(void **state) {
  (void)state;
  for_each_engine(check_permuted);
}

/* Dense attention under a mask of -inf before the window, which the case then expects. */
static void check_window_as_mask(const amla_options *options) {
  static const sparse_form form = {
      .scope = {{.sk = 500, .page = 16}}, .s_q = 3, .b = 4, .mixed = 1, .causal = 1};
  const int32_t window = 130, sk = form.scope[0].sk;
  sparse_case c;
  sparse_make(&c, &form);
  amla_tensors *t = &c.data.tensors;
  const int32_t n = all_queries(&c);
  uint16_t *mask = own(&c, (int64_t)n * sk, sizeof *mask);
  for (int32_t i = 0; i < n; i++) {
    const int32_t end = length_of(&c.scope[0], i / form.s_q) - form.s_q + i % form.s_q + 1;
    for (int32_t j = 0; j < sk; j++)
      mask[(int64_t)i * sk + j] = j < end - window ? 0xfc00 : 0;
  }
  ATTACH(mask, mask, (size_t)n * (size_t)sk * sizeof *mask);
  c.form.window = window;
  sparse_run(&c, options);
  expect_right_rows(&c, options, 1);
  ATTACH(mask, NULL, 0);
  c.data.problem.window = window;
  sparse_run(&c, options);
  expect_right_rows(&c, options, 1);
  sparse_free(&c);
}

static void a_window_is_a_mask(void **state) {
  (void)state;
  for_each_engine(check_window_as_mask);
}

/* ---- What must not matter ---- */

static const sparse_form both_lists = {
    .scope = {{.sk = 400, .topk = 300, .page = 16, .lengths = 2, .invalid = 10},
              {.sk = 200, .topk = 400, .page = 3, .lengths = 2, .invalid = 50}},
    .s_q = 2,
    .b = 6,
    .h_q = 37,
    .mixed = 1,
    .sinks = 1};

/* What is behind a list's length, and more room for it. */
static void check_padding(const amla_options *options) {
  sparse_case c;
  sparse_make(&c, &both_lists);
  amla_problem *p = &c.data.problem;
  amla_tensors *t = &c.data.tensors;
  outputs want = run_and_keep(&c, options);
  const int32_t n = all_queries(&c), wider = p->topk + 500;
  int32_t *lists = own(&c, n * wider, sizeof *lists); /* -1 */
  for (int32_t i = 0; i < n; i++)
    memcpy(lists + i * wider, c.scope[0].list + i * p->topk, words(c.scope[0].list_lengths[i]));
  ATTACH(indices, lists, words((int64_t)n * wider));
  p->topk = wider, p->indices_stride_query = p->indices_stride_batch = 0;
  expect_same(&c, &want, "wider lists", options);
  for (int32_t i = 0; i < n; i++)
    for (int32_t j = c.scope[0].list_lengths[i]; j < wider; j++)
      lists[i * wider + j] = INT32_MAX;
  expect_same(&c, &want, "entries behind a list's length", options);
  outputs_free(&want);
  sparse_free(&c);
}

static void padding_of_lists_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_padding);
}

static void check_threads(const amla_options *base) {
  sparse_case c;
  sparse_make(&c, &both_lists);
  amla_options options = *base;
  options.threads = 1;
  outputs want = run_and_keep(&c, &options);
  for (int32_t threads = 2; threads <= 9; threads += 7) {
    options.threads = threads;
    expect_same(&c, &want, "more threads", &options);
  }
  outputs_free(&want);
  sparse_free(&c);
}

static void threads_do_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_threads);
}

/* Each query of `c` in a run of its own: with its rows, lists and results. */
static void check_alone(sparse_case *c, const outputs *want, const amla_options *options) {
  const int32_t d = c->form.d_qk, d_v = c->form.d_v, h_q = c->form.h_q;
  for (int32_t i = 0; i < c->form.b; i++)
    for (int32_t query = 0; query < queries_of(c, i); query++) {
      const int32_t number = query_number(c, i, query);
      sparse_case one = *c;
      amla_problem *p = &one.data.problem;
      amla_tensors *t = &one.data.tensors;
      one.form.b = one.form.s_q = p->b = p->s_q = 1;
      one.q_indptr = NULL;
      ATTACH(q_indptr, NULL, 0);
      t->q = (const float *)c->q + (int64_t)number * h_q * d;
      for (int s = 0; s < 2; s++) {
        const sparse_scope *scope = &c->scope[s];
        if (!scope->list)
          continue;
        const int32_t *list = list_of(c, scope, i, query);
        if (s)
          t->extra_indices = list, t->extra_topk_length = &scope->list_lengths[number];
        else
          t->indices = list, t->topk_length = &scope->list_lengths[number];
      }
      p->q_stride_batch = p->out_stride_batch = 0;
      t->out_bytes = (size_t)(h_q * d_v) * sizeof(float);
      t->lse_bytes = t->max_logits_bytes = words(h_q);
      sparse_run(&one, options);
      const char *out = want->out + (size_t)number * t->out_bytes;
      int same = memcmp(one.out, out, t->out_bytes) == 0;
      for (int32_t head = 0; head < h_q; head++) {
        const int64_t row = row_number(c, i, query, head);
        same &= memcmp(&one.lse[head], want->lse + 4 * row, 4) == 0;
        same &= memcmp(&one.max_logits[head], want->max + 4 * row, 4) == 0;
      }
      if (!same)
        fail_msg("%s %s: query %d of sequence %d alone has other bits", describe_form(&c->form),
                 describe_options(options), query, i);
    }
}

static void check_company(const amla_options *options) {
  sparse_form form = both_lists;
  for (form.ragged = 0; form.ragged < 2; form.ragged++) {
    sparse_case c;
    sparse_make(&c, &form);
    outputs want = run_and_keep(&c, options);
    check_alone(&c, &want, options);
    outputs_free(&want);
    sparse_free(&c);
  }
}

static void company_does_not_change_a_bit(void **state) {
  (void)state;
  for_each_engine(check_company);
}

/* ---- Other ways to say the same ---- */

/* Visible lengths that causality gives too. */
static void check_visible(const amla_options *options) {
  static const sparse_form form = {
      .scope = {{.sk = 300, .page = 7}}, .s_q = 5, .mixed = 1, .b = 5, .causal = 1, .h_q = 37};
  sparse_case c;
  sparse_make(&c, &form);
  amla_tensors *t = &c.data.tensors;
  outputs want = run_and_keep(&c, options);
  int32_t *visible = own(&c, all_queries(&c), sizeof *visible);
  for (int32_t i = 0; i < c.form.b; i++)
    for (int32_t query = 0; query < c.form.s_q; query++) {
      const int32_t n = length_of(&c.scope[0], i) - (c.form.s_q - 1 - query);
      visible[i * c.form.s_q + query] = n > 0 ? n : 0;
    }
  c.data.problem.causal = 0;
  ATTACH(visible_k, visible, words(all_queries(&c)));
  expect_same(&c, &want, "visible_k", options);
  outputs_free(&want);
  sparse_free(&c);
}

static void visible_lengths_may_be_those_of_causality(void **state) {
  (void)state;
  for_each_engine(check_visible);
}

/* Page lists in place of a block table; queries of equal number as ragged ones. */
static void check_indptrs(const amla_options *options) {
  static const sparse_form form = {
      .scope = {{.sk = 300, .page = 7}}, .s_q = 5, .mixed = 1, .b = 5, .causal = 1};
  sparse_case c;
  sparse_make(&c, &form);
  amla_tensors *t = &c.data.tensors;
  const sparse_scope *s = &c.scope[0];
  outputs want = run_and_keep(&c, options);
  int32_t *indptr = own(&c, c.form.b + 1, sizeof *indptr), at = 0;
  int32_t *pages = own(&c, c.form.b * s->max_pages, sizeof *pages);
  for (int32_t i = 0; i < c.form.b; i++) { /* no more than are needed */
    const int32_t n = (length_of(s, i) + s->form.page - 1) / s->form.page;
    indptr[i] = at;
    memcpy(pages + at, s->pages + i * s->max_pages, words(n));
    at += n;
  }
  indptr[c.form.b] = at;
  ATTACH(block_table, NULL, 0);
  ATTACH(kv_indptr, indptr, words(c.form.b + 1));
  ATTACH(kv_indices, pages, words(at));
  expect_same(&c, &want, "kv_indptr", options);

  int32_t *queries = own(&c, c.form.b + 1, sizeof *queries);
  for (int32_t i = 0; i <= c.form.b; i++)
    queries[i] = i * c.form.s_q;
  ATTACH(q_indptr, queries, words(c.form.b + 1));
  sparse_run(&c, options);
  assert_memory_equal(c.out, want.out, want.out_bytes);
  for (int32_t i = 0; i < c.form.b; i++)
    for (int32_t query = 0; query < c.form.s_q; query++)
      for (int32_t head = 0; head < c.form.h_q; head++)
        assert_memory_equal(&c.lse[(queries[i] + query) * c.form.h_q + head],
                            want.lse + 4 * row_number(&c, i, query, head), 4);
  outputs_free(&want);
  sparse_free(&c);
}

static void indptrs_are_tables_and_rectangles(void **state) {
  (void)state;
  for_each_engine(check_indptrs);
}

/* Rows in one piece have the bits of rows in two. */
static void check_split_rows(const amla_options *options) {
  static const sparse_form form = {.scope = {{.sk = 300, .topk = 250, .page = 7}},
                                   .s_q = 2,
                                   .h_q = 37,
                                   .d_qk = 72,
                                   .q_d_rope = 8,
                                   .kv_d_rope = 24,
                                   .kv = AMLA_BF16};
  sparse_case c;
  sparse_make(&c, &form);
  const sparse_scope *s = &c.scope[0];
  amla_problem *p = &c.data.problem;
  amla_tensors *t = &c.data.tensors;
  const int32_t d = form.d_qk, d_q = d - form.q_d_rope, slots = s->n_pages * s->tokens;
  const int32_t rows = all_queries(&c) * form.h_q;
  outputs want = run_and_keep(&c, options);
  float *q = own(&c, rows * d, sizeof *q);
  uint16_t *kv = own(&c, slots * d, sizeof *kv);
  for (int32_t r = 0; r < rows; r++) {
    memcpy(q + r * d, (const float *)c.q + r * d_q, words(d_q));
    memcpy(q + r * d + d_q, (const float *)c.q_rope + r * form.q_d_rope, words(form.q_d_rope));
  }
  for (int32_t i = 0; i < slots; i++) {
    const uint16_t *row = (const uint16_t *)s->kv + i * s->row_elems;
    const uint16_t *rope = (const uint16_t *)s->rope + i * s->rope_elems;
    memcpy(kv + i * d, row, (size_t)s->row_elems * 2);
    memcpy(kv + i * d + s->row_elems, rope, (size_t)s->rope_elems * 2);
  }
  p->q_d_rope = p->kv_d_rope = 0;
  p->kv_stride_page = p->kv_stride_token = 0;
  ATTACH(q, q, words(rows * d));
  ATTACH(kv, kv, (size_t)(slots * d) * 2);
  ATTACH(q_rope, NULL, 0);
  ATTACH(kv_rope, NULL, 0);
  expect_same(&c, &want, "rows in one piece", options);
  outputs_free(&want);
  sparse_free(&c);
}

static void rows_in_two_pieces_are_rows(void **state) {
  (void)state;
  for_each_engine(check_split_rows);
}

/* Keys that begin at k_begin are keys whose q is 0 before it. */
static void check_key_begin(const amla_options *options) {
  static const sparse_form form = {.scope = {{.sk = 300, .page = 7}},
                                   .s_q = 2,
                                   .h_q = 37,
                                   .d_qk = 136,
                                   .d_v = 64,
                                   .q_d_rope = 8,
                                   .kv_d_rope = 72,
                                   .kv = AMLA_F16}; /* no row of bf16 takes it, with or without */
  sparse_case c;
  sparse_make(&c, &form);
  const int32_t d = form.d_qk - form.q_d_rope, apart = 64, rows = all_queries(&c) * form.h_q;
  float *q = own(&c, rows * (d - apart), sizeof *q);
  for (int32_t r = 0; r < rows; r++) {
    memset((float *)c.q + r * d, 0, words(apart));
    memcpy(q + r * (d - apart), (const float *)c.q + r * d + apart, words(d - apart));
  }
  outputs want = run_and_keep(&c, options);
  amla_tensors *t = &c.data.tensors;
  c.data.problem.k_begin = apart;
  ATTACH(q, q, words(rows * (d - apart)));
  expect_same(&c, &want, "keys from k_begin on", options);
  outputs_free(&want);
  sparse_free(&c);
}

static void keys_begin_where_q_does(void **state) {
  (void)state;
  for_each_engine(check_key_begin);
}

/* Asking for more changes nothing of the rest. */
static void check_outputs(const amla_options *options) {
  sparse_case c;
  sparse_make(&c, &both_lists);
  outputs want = run_and_keep(&c, options);
  c.data.tensors.max_logits = NULL;
  c.form.with_sink = 1;
  sparse_run(&c, options);
  assert_memory_equal(c.out, want.out, want.out_bytes);
  assert_memory_not_equal(c.lse, want.lse, want.row_bytes);
  c.form.with_sink = 0;
  sparse_run(&c, options);
  assert_memory_equal(c.lse, want.lse, want.row_bytes);
  outputs_free(&want);
  sparse_free(&c);
}

static void outputs_do_not_depend_on_each_other(void **state) {
  (void)state;
  for_each_engine(check_outputs);
}

/* Scratch holds nothing of a list or a batch. */
static void scratch_does_not_grow_with_lists(void **state) {
  (void)state;
  size_t bytes[2];
  for (int i = 0; i < 2; i++) {
    amla_problem p = AMLA_PROBLEM_INIT;
    amla_options o = AMLA_OPTIONS_INIT;
    amla_plan *plan;
    o.threads = 2;
    p.scale = 1, p.page_size = 64, p.n_pages = 1 << 20, p.topk = 512 << 2 * i, p.b = 1000 << i;
    assert_int_equal(amla_plan_create(&plan, &p, &o, NULL), AMLA_OK);
    bytes[i] = amla_plan_scratch_bytes(plan);
    amla_plan_destroy(plan);
  }
  assert_int_equal(bytes[0], bytes[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_list_of_what_is_visible_is_dense_attention),
      cmocka_unit_test(two_scopes_are_one_list),
      cmocka_unit_test(a_permuted_list_is_within_the_bound),
      cmocka_unit_test(a_window_is_a_mask),
      cmocka_unit_test(padding_of_lists_does_not_change_a_bit),
      cmocka_unit_test(threads_do_not_change_a_bit),
      cmocka_unit_test(company_does_not_change_a_bit),
      cmocka_unit_test(visible_lengths_may_be_those_of_causality),
      cmocka_unit_test(indptrs_are_tables_and_rectangles),
      cmocka_unit_test(rows_in_two_pieces_are_rows),
      cmocka_unit_test(keys_begin_where_q_does),
      cmocka_unit_test(outputs_do_not_depend_on_each_other),
      cmocka_unit_test(scratch_does_not_grow_with_lists),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
