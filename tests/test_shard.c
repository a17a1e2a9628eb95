/* SPDX-License-Identifier: Apache-2.0
 *
 * Shards: however the splits of a run are shared out over parts, the result has the bits of one run
 * over all of them. Pages of other parts are hostile in a part's table. And the fixed splits that
 * shards are made of.
 */
#include "test_run.h"

#include "harness/seen_data.h"

enum { MAX_PARTS = 8 };

/* A problem, its result in one run, and a buffer for the largest scores. */
typedef struct whole {
  harness_dataset data;
  const char *problem;
  amla_options options;
  amla_plan_info info;
  float *max_logits;
  unsigned char *out, *lse, *max; /* results in one run */
  uint64_t seed;
} whole;

static void *copy_of(const void *from, size_t bytes) {
  void *to = malloc(bytes + 1);
  assert_non_null(to);
  return bytes ? memcpy(to, from, bytes) : to;
}

static size_t max_bytes(const whole *w) { return (size_t)harness_rows(&w->data) * 4; }

static amla_plan *plan_of(const whole *w, int32_t threads) {
  amla_plan *plan = NULL;
  amla_detail detail;
  amla_options o = w->options;
  o.threads = threads;
  o.lse_base = w->data.options.lse_base;
  o.lse_sink = w->data.options.lse_sink;
  if (amla_plan_create(&plan, &w->data.problem, &o, &detail) != AMLA_OK)
    fail_msg("'%s': %s", w->problem, detail.text);
  return plan;
}

static whole make_whole(const char *problem, const amla_options *options, uint64_t seed) {
  whole w = {.problem = problem, .options = *options, .seed = seed};
  generate(&w.data, problem);
  assert_true(harness_sort_lists(&w.data));
  w.max_logits = calloc(max_bytes(&w) + 4, 1);
  assert_non_null(w.max_logits);
  if (seed % 2) {
    w.data.tensors.max_logits = w.max_logits;
    w.data.tensors.max_logits_bytes = max_bytes(&w);
  }
  amla_plan *plan = plan_of(&w, 2);
  w.info = (amla_plan_info)AMLA_PLAN_INFO_INIT;
  assert_int_equal(amla_plan_query(plan, &w.info, NULL), AMLA_OK);
  amla_plan_destroy(plan);
  run(&w.data, problem, options);
  w.out = copy_of(w.data.out, w.data.tensors.out_bytes);
  w.lse = copy_of(w.data.lse, w.data.tensors.lse_bytes);
  w.max = copy_of(w.max_logits, max_bytes(&w));
  harness_reset_outputs(&w.data);
  memset(w.max_logits, 0, max_bytes(&w));
  return w;
}

static void free_whole(whole *w) {
  harness_free(&w->data);
  free(w->max_logits);
  free(w->out);
  free(w->lse);
  free(w->max);
}

static void expect_whole(whole *w, const char *how) {
  if (memcmp(w->out, w->data.out, w->data.tensors.out_bytes) != 0 ||
      memcmp(w->lse, w->data.lse, w->data.tensors.lse_bytes) != 0 ||
      memcmp(w->max, w->max_logits, max_bytes(w)) != 0)
    fail_msg("'%s' %s split %lld, %s: other bits than in one run", w->problem,
             describe_options(&w->options), (long long)w->info.split_tokens, how);
  harness_reset_outputs(&w->data);
  memset(w->max_logits, 0, max_bytes(w));
}

/* ---- Parts ---- */

typedef struct part {
  int32_t *bounds[2][2]; /* of a scope, begin and end: [b] */
  amla_shard shard;
  float *records;
} part;

static int32_t *new_bounds(int32_t b) {
  int32_t *bounds = calloc((size_t)b + 1, sizeof *bounds);
  assert_non_null(bounds);
  return bounds;
}

static part new_part(const whole *w) {
  const amla_problem *p = &w->data.problem;
  const int second = p->extra_sk > 0 || p->extra_topk > 0;
  const size_t bytes = (size_t)p->b * 4;
  part x = {.shard = AMLA_SHARD_INIT};
  for (int i = 0; i < 4; i++)
    x.bounds[i / 2][i % 2] = new_bounds(p->b);
  x.shard.begin = x.bounds[0][0], x.shard.end = x.bounds[0][1];
  x.shard.begin_bytes = x.shard.end_bytes = bytes;
  if (second) {
    x.shard.extra_begin = x.bounds[1][0], x.shard.extra_end = x.bounds[1][1];
    x.shard.extra_begin_bytes = x.shard.extra_end_bytes = bytes;
  }
  return x;
}

static void free_part(part *x) {
  for (int i = 0; i < 4; i++)
    free(x->bounds[i / 2][i % 2]);
  free(x->records);
  x->records = NULL;
}

/* Entries of the table that no token of [begin, end) needs become hostile. */
static int32_t *hide_pages(const int32_t *table, size_t bytes, int32_t page, int32_t max_pages,
                           const int32_t *begin, const int32_t *end) {
  int32_t *hidden = table ? copy_of(table, bytes) : NULL;
  for (size_t i = 0; table && i < bytes / 4; i++) {
    const int64_t first = (int64_t)(i % (size_t)max_pages) * page;
    const size_t sequence = i / (size_t)max_pages;
    if (first + page <= begin[sequence] || first >= end[sequence])
      hidden[i] = 2147480000;
  }
  return hidden;
}

static int32_t pages_of(int32_t max_pages, int32_t sk, int32_t page) {
  return max_pages > 0 || page == 0 ? max_pages : (sk + page - 1) / page;
}

/* Computes the part's records on that many threads. */
static void run_part(const whole *w, part *x, int32_t threads) {
  const amla_problem *p = &w->data.problem;
  amla_tensors t = w->data.tensors;
  int32_t *first =
      hide_pages(t.block_table, t.block_table_bytes, p->page_size,
                 pages_of(p->max_pages, p->sk, p->page_size), x->bounds[0][0], x->bounds[0][1]);
  int32_t *second = hide_pages(t.extra_block_table, t.extra_block_table_bytes, p->extra_page_size,
                               pages_of(p->extra_max_pages, p->extra_sk, p->extra_page_size),
                               x->bounds[1][0], x->bounds[1][1]);
  t.block_table = first, t.extra_block_table = second;
  t.out = NULL, t.out_bytes = 0, t.lse = NULL, t.lse_bytes = 0;
  amla_plan *plan = plan_of(w, threads);
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  amla_detail detail;
  if (amla_shard_query(plan, &t, &x->shard, &info, &detail) != AMLA_OK)
    fail_msg("'%s': %s", w->problem, detail.text);
  x->shard.n_entries = info.n_entries;
  x->records = malloc(info.records_bytes + 1);
  x->shard.records = x->records, x->shard.records_bytes = info.records_bytes;
  guarded scratch = guarded_create(amla_shard_scratch_bytes(plan), 1);
  memset(guarded_data(&scratch), 0xff, scratch.bytes);
  if (amla_shard_run(plan, &t, &x->shard, guarded_data(&scratch), scratch.bytes, &detail))
    fail_msg("'%s': %s", w->problem, detail.text);
  assert_int_equal(guarded_damage(&scratch), 0);
  guarded_free(&scratch);
  amla_plan_destroy(plan);
  free(first);
  free(second);
}

/* The records of some heads, of all the shard's rows. */
static float *pick_heads(const whole *w, const amla_shard *s, int32_t head_begin,
                         int32_t head_end) {
  const int64_t end = s->row_end > 0 ? s->row_end : harness_rows(&w->data);
  const int64_t rows = end - s->row_begin;
  const size_t bytes = rows > 0 ? s->records_bytes / (size_t)rows : 0;
  char *picked = malloc(s->records_bytes + 1), *to = picked;
  assert_non_null(picked);
  for (int64_t row = s->row_begin; row < end; row++) {
    const int64_t head = row % w->data.problem.h_q;
    if (head >= head_begin && head < head_end && bytes > 0)
      memcpy(to, (const char *)s->records + (size_t)(row - s->row_begin) * bytes, bytes),
          to += bytes;
  }
  return (float *)(void *)picked;
}

static void finish_heads(whole *w, const part *parts, int n, int32_t head_begin, int32_t head_end,
                         int32_t threads) {
  amla_tensors t = w->data.tensors;
  amla_shard shards[MAX_PARTS];
  amla_detail detail;
  for (int i = 0; i < n; i++) {
    shards[i] = parts[i].shard;
    shards[i].head_begin = head_begin, shards[i].head_end = head_end;
    shards[i].records = pick_heads(w, &parts[i].shard, head_begin, head_end);
  }
  t.q = t.kv = t.extra_kv = t.q_rope = t.kv_rope = t.mask = NULL;
  t.block_table = t.extra_block_table = NULL;
  amla_plan *plan = plan_of(w, threads);
  guarded scratch = guarded_create(amla_shard_scratch_bytes(plan), 1);
  memset(guarded_data(&scratch), 0xff, scratch.bytes);
  if (amla_shard_finish(plan, &t, n, shards, guarded_data(&scratch), scratch.bytes, &detail))
    fail_msg("'%s': %s", w->problem, detail.text);
  assert_int_equal(guarded_damage(&scratch), 0);
  guarded_free(&scratch);
  amla_plan_destroy(plan);
  for (int i = 0; i < n; i++)
    free(shards[i].records);
}

/* All heads in one call, or in two. */
static void finish(whole *w, const part *parts, int n, int32_t threads) {
  const int32_t h_q = w->data.problem.h_q;
  const int32_t cut = threads > 1 ? random_below(&w->seed, h_q) : 0;
  if (cut > 0)
    finish_heads(w, parts, n, 0, cut, threads);
  finish_heads(w, parts, n, cut, h_q, threads);
}

/* ---- Every way to cut nine splits ---- */

/* Runs of splits, each computed once; n of them share out all splits from `at` on. */
typedef struct ways {
  whole *w;
  part runs[10][10]; /* of splits [from, to) */
  int32_t splits;
  part chosen[MAX_PARTS];
  int done;
} ways;

static void each_way(ways *all, int n, int32_t at) {
  if (at == all->splits) {
    finish_heads(all->w, all->chosen, n, 0, all->w->data.problem.h_q, 1 + all->done % 2);
    expect_whole(all->w, "one of all ways to cut");
    all->done++;
    return;
  }
  for (int32_t to = at + 1; n < MAX_PARTS && to <= all->splits; to++) {
    all->chosen[n] = all->runs[at][to];
    each_way(all, n + 1, to);
  }
}

/* The least fixed splits: a key tile. */
static int32_t tile_of(const amla_options *options) {
  harness_dataset data;
  generate(&data, "h=1,sk=1");
  const amla_plan_info info = info_of(&data, options);
  harness_free(&data);
  return info.tile_tokens;
}

static void check_all_ways(const amla_options *base) {
  enum { SPLITS = 9 }; /* a tree with a right child of one */
  amla_options options = *base;
  char problem[128];
  if (base->backend == AMLA_BACKEND_REF)
    return;
  options.split_tokens = 1;
  const int32_t tile = tile_of(base);
  snprintf(problem, sizeof problem, "h=3,sk=%d,dqk=40,dv=36,page=16,dist=peaked:3,sinks=1",
           SPLITS * tile - 5);
  whole w = make_whole(problem, &options, 4);
  ways all = {.w = &w, .splits = SPLITS};
  for (int32_t from = 0; from < SPLITS; from++)
    for (int32_t to = from + 1; to <= SPLITS; to++) {
      part *x = &all.runs[from][to];
      *x = new_part(&w);
      x->bounds[0][0][0] = from * tile, x->bounds[0][1][0] = to * tile;
      run_part(&w, x, 1 + (from + to) % 3);
    }
  each_way(&all, 0, 0);
  assert_int_equal(all.done, (1 << (SPLITS - 1)) - 1); /* all but nine parts */
  for (int32_t from = 0; from < SPLITS; from++)
    for (int32_t to = from + 1; to <= SPLITS; to++)
      free_part(&all.runs[from][to]);
  free_whole(&w);
}

static void every_way_to_cut_gives_the_bits_of_one_run(void **state) {
  (void)state;
  for_each_engine(check_all_ways);
}

/* ---- Everything that a line of keys can be ---- */

static const char *const problems[] = {
    "b=3,h=5,sk=900,dqk=40,dv=36,page=7,len=ragged",
    "b=2,sq=3,h=23,sk=900,dqk=40,dv=36,page=16,causal=1,len=900/2",
    "b=2,sq=2,h=70,sk=700,dqk=48,dv=32,page=16,out=bf16,q=bf16,kv=bf16,sinks=1,len=uniform",
    "b=2,h=5,sk=900,dqk=40,dv=36,page=16,mask=1,sq=3",
    "b=2,h=9,sk=900,dqk=40,dv=36,page=16,mask=1,len=900/500",
    "b=2,sq=2,h=5,sk=900,dqk=40,dv=36,page=16,topk=300,index=position,invalid=20,len=uniform",
    "b=2,sq=2,h=5,sk=900,dqk=40,dv=36,page=16,topk=40,index=position,topklen=query,sinks=1",
    "b=2,sq=3,h=5,sk=900,dqk=40,dv=36,page=16,causal=1,window=250",
    "b=2,sq=2,h=5,sk=400,dqk=40,dv=36,page=16,causal=1,window=130,scope2=sk:700/page:5,sinks=1",
    "b=2,sq=2,h=5,sk=700,dqk=40,dv=36,page=16,topk=99,index=position,invalid=10,"
    "scope2=topk:80/sk:500/page:9,lsesink=1,sinks=1",
    "b=4,sq=3,h=5,sk=600,dqk=40,dv=36,page=16,visible=1,ragged=1",
    "b=2,h=5,sk=600,dqk=40,dv=32,page=16,qrope=8,kvrope=8,lse=2",
    "b=1,h=1,sk=700,dqk=576,dv=512,page=64,kv=q8_0",
};

/* Random bounds: whole splits, some parts without any, and ends far beyond the sequence. */
static void draw_bounds(whole *w, part *parts, int n, int scope) {
  const amla_problem *p = &w->data.problem;
  const int32_t *lengths = scope ? w->data.extra_seqlens_k : w->data.seqlens_k;
  const int64_t tokens = w->info.split_tokens;
  for (int32_t i = 0; i < p->b; i++) {
    const int32_t length = lengths ? lengths[i] : scope ? p->extra_sk : p->sk;
    const int32_t splits = (int32_t)((length + tokens - 1) / tokens);
    int32_t at = 0;
    for (int k = 0; k < n; k++) {
      const int last = k + 1 == n;
      const int32_t left = splits - at;
      const int32_t to = last ? splits : at + random_below(&w->seed, left > 0 ? left + 1 : 1);
      parts[k].bounds[scope][0][i] = (int32_t)(at * tokens);
      parts[k].bounds[scope][1][i] = last ? INT32_MAX : (int32_t)(to * tokens);
      at = to;
    }
  }
}

static void check_lines(const amla_options *base) {
  if (base->backend == AMLA_BACKEND_REF)
    return;
  const int step = long_run() || base->rescale == AMLA_RESCALE_LAZY ? 1 : 4;
  for (int i = 0; i < LENGTH(problems); i += step) {
    amla_options options = *base;
    options.split_tokens = 1 + (i % 2) * tile_of(base);
    whole w = make_whole(problems[i], &options, (uint64_t)i);
    for (int round = 0; round < (long_run() ? 20 : 3); round++) {
      part parts[MAX_PARTS];
      const int n = 1 + random_below(&w.seed, MAX_PARTS);
      for (int k = 0; k < n; k++)
        parts[k] = new_part(&w);
      for (int scope = 0; scope < (parts[0].shard.extra_begin ? 2 : 1); scope++)
        draw_bounds(&w, parts, n, scope);
      for (int k = 0; k < n; k++)
        run_part(&w, &parts[k], 1 + random_below(&w.seed, 4));
      finish(&w, parts, n, 1 + round % 3);
      expect_whole(&w, "random parts");
      for (int k = 0; k < n; k++)
        free_part(&parts[k]);
    }
    free_whole(&w);
  }
}

static void every_line_of_keys_can_be_shared_out(void **state) {
  (void)state;
  for_each_engine(check_lines);
}

/* ---- Rows, a few at a time ---- */

/* Two parts of rows [begin, end). */
static void run_rows(whole *w, int64_t begin, int64_t end) {
  part parts[2];
  for (int k = 0; k < 2; k++) {
    parts[k] = new_part(w);
    parts[k].shard.row_begin = begin, parts[k].shard.row_end = end;
  }
  draw_bounds(w, parts, 2, 0);
  for (int k = 0; k < 2; k++)
    run_part(w, &parts[k], 1 + k);
  finish(w, parts, 2, 2);
  for (int k = 0; k < 2; k++)
    free_part(&parts[k]);
}

/* Row blocks of 128 hold rows of several queries, and a mask hides keys from all of a block's
 * queries that it does not hide from all others. */
static void check_rows(const amla_options *base) {
  static const char *const of_blocks[] = {
      "b=2,sq=5,h=37,sk=700,dqk=40,dv=36,page=16,mask=1,causal=1,dist=peaked:3",
      "b=2,sq=5,h=37,sk=700,dqk=40,dv=36,page=16,causal=1,sinks=1"};
  if (base->backend == AMLA_BACKEND_REF)
    return;
  for (int i = 0; i < LENGTH(of_blocks); i++) {
    amla_options options = *base;
    options.split_tokens = 2 * tile_of(base); /* keys of tiles move */
    whole w = make_whole(of_blocks[i], &options, (uint64_t)i);
    const int64_t all = harness_rows(&w.data), of_sequence = all / w.data.problem.b;
    for (int64_t begin = 0, end; begin < all; begin = end) {
      const int64_t last = (begin / of_sequence + 1) * of_sequence;
      end = begin + 64 + 32 * i;
      end = end < last ? end : last;
      run_rows(&w, begin, end);
    }
    expect_whole(&w, "some rows at a time");
    free_whole(&w);
  }
}

static void rows_may_be_computed_apart(void **state) {
  (void)state;
  for_each_engine(check_rows);
}

/* What rows of one sequence need of others is nothing: their lengths, pages, bounds and lists may
 * be anything. */
static void check_sequences_apart(const char *problem) {
  enum { B = 3, SQ = 2, H = 8 };
  const amla_options options =
      make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 1);
  whole w = make_whole(problem, &options, 0);
  const harness_dataset *d = &w.data;
  const int32_t pages = pages_of(d->problem.max_pages, d->problem.sk, d->problem.page_size);
  for (int32_t own = 0; own < B; own++) {
    part x = new_part(&w);
    int32_t *lengths = copy_of(d->seqlens_k, B * sizeof *lengths);
    int32_t *table = copy_of(d->block_table, d->tensors.block_table_bytes);
    int32_t *listed = copy_of(d->topk_length, d->tensors.topk_length_bytes);
    x.bounds[0][1][own] = INT32_MAX;
    for (int32_t i = 0; i < B; i++) {
      if (i == own)
        continue;
      x.bounds[0][0][i] = 5, x.bounds[0][1][i] = 77, d->seqlens_k[i] = INT32_MAX;
      memset(d->block_table + i * pages, 0xff, (size_t)pages * sizeof *table);
      for (int32_t q = i * SQ; d->topk_length && q < (i + 1) * SQ; q++)
        d->topk_length[q] = INT32_MAX;
    }
    x.shard.row_begin = own * SQ * H, x.shard.row_end = (own + 1) * SQ * H;
    run_part(&w, &x, 1);
    finish(&w, &x, 1, 1);
    memcpy(d->seqlens_k, lengths, B * sizeof *lengths);
    memcpy(d->block_table, table, d->tensors.block_table_bytes);
    if (d->topk_length)
      memcpy(d->topk_length, listed, d->tensors.topk_length_bytes);
    free(lengths), free(table), free(listed);
    free_part(&x);
  }
  expect_whole(&w, "a sequence at a time");
  free_whole(&w);
}

static void rows_need_their_own_sequence_only(void **state) {
  (void)state;
  check_sequences_apart("b=3,sq=2,h=8,sk=400,dqk=40,dv=36,page=16,sinks=1");
  check_sequences_apart("b=3,sq=2,h=8,sk=400,dqk=40,dv=36,page=16,topk=90,index=position,"
                        "topklen=query");
}

/* ---- Cancelling ---- */

typedef struct caller {
  int asked, end_at; /* the question that is answered with yes; 0: none */
} caller;

static int ask(void *context) {
  caller *c = context;
  return ++c->asked == c->end_at;
}

static void a_shard_is_cancelled(void **state) {
  caller c = {0, 0};
  amla_options options = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 1);
  amla_detail detail;
  (void)state;
  options.cancel = ask, options.cancel_context = &c;
  whole w = make_whole("b=2,h=5,sk=900,dqk=40,dv=36,page=16", &options, 2);
  part x = new_part(&w);
  draw_bounds(&w, &x, 1, 0);
  c.asked = 0;
  run_part(&w, &x, 1);
  const int asked = c.asked;
  assert_in_range(asked, 4, 1000);
  amla_plan *plan = plan_of(&w, 1);
  const size_t bytes = amla_shard_scratch_bytes(plan);
  void *scratch = malloc(bytes);
  for (c.end_at = 1; c.end_at <= asked; c.end_at += asked / 4) {
    c.asked = 0;
    assert_int_equal(amla_shard_run(plan, &w.data.tensors, &x.shard, scratch, bytes, &detail),
                     AMLA_CANCELLED);
    assert_non_null(strstr(detail.text, "cancel"));
    assert_int_equal(c.asked, c.end_at);
  }
  c.end_at = 0;
  assert_int_equal(amla_shard_run(plan, &w.data.tensors, &x.shard, scratch, bytes, &detail),
                   AMLA_OK);
  finish(&w, &x, 1, 1);
  expect_whole(&w, "after it was cancelled");
  amla_plan_destroy(plan);
  free(scratch);
  free_part(&x);
  free_whole(&w);
}

/* ---- What a step costs beside its work ---- */

static int system_asked;
int64_t __real_amla_l2_of_system(void);
int64_t __wrap_amla_l2_of_system(void);
int64_t __wrap_amla_l2_of_system(void) {
  system_asked++;
  return __real_amla_l2_of_system();
}

/* A plan's query reads files of each CPU. No step may, of many shards least of all. */
static void steps_ask_nothing_of_the_system(void **state) {
  amla_options options = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 1);
  (void)state;
  whole w = make_whole("b=2,h=5,sk=900,dqk=40,dv=36,page=16", &options, 2);
  part x = new_part(&w);
  draw_bounds(&w, &x, 1, 0);
  assert_true(system_asked > 0); /* make_whole's query did */
  system_asked = 0;
  run_part(&w, &x, 1);
  finish(&w, &x, 1, 1);
  assert_int_equal(system_asked, 0);
  expect_whole(&w, "as one part");
  free_part(&x);
  free_whole(&w);
}

/* ---- Refusals ---- */

/* One field is wrong, and named. */
typedef struct wrong {
  const char *words;
  int32_t begin, end;
  int64_t row_begin, row_end;
} wrong;

static void wrong_shards_are_refused_by_name(void **state) {
  (void)state;
  static const wrong all[] = {
      {"begin[0]=-1: must be >= 0", -1, 96, 0, 0},
      {"begin[0]=5: must be a multiple of split_tokens", 5, 960, 0, 0},
      {"end[0]=100: must be a multiple of split_tokens", 0, 100, 0, 0},
      {"row_begin=8: must be a multiple of 32 rows", 0, 960, 8, 40},
      {"row_end=41: must be <= 40", 0, 960, 0, 41},
      {"row_begin=32: must be <= row_end=0", 0, 960, 32, 0},
  };
  amla_options options = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 96);
  whole w = make_whole("h=40,sk=900,dqk=40,dv=36,page=16", &options, 2);
  part x = new_part(&w);
  amla_plan *plan = plan_of(&w, 1);
  amla_shard_info info = AMLA_SHARD_INFO_INIT;
  amla_detail detail;
  for (int i = 0; i < LENGTH(all); i++) {
    x.bounds[0][0][0] = all[i].begin, x.bounds[0][1][0] = all[i].end;
    x.shard.row_begin = all[i].row_begin, x.shard.row_end = all[i].row_end;
    assert_int_equal(amla_shard_query(plan, &w.data.tensors, &x.shard, &info, &detail),
                     AMLA_INVALID_ARGUMENT);
    if (!strstr(detail.text, all[i].words))
      fail_msg("'%s' instead of '%s'", detail.text, all[i].words);
  }
  amla_plan_destroy(plan);
  free_part(&x);
  free_whole(&w);
}

/* Records are written: all that a run reads lies apart from them. */
static void records_that_overlap_are_refused_by_name(void **state) {
  (void)state;
  amla_options options = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 96);
  whole w = make_whole("h=4,sk=900,dqk=40,dv=36,page=16,sinks=1", &options, 2);
  part x = new_part(&w);
  draw_bounds(&w, &x, 1, 0);
  run_part(&w, &x, 1);
  /* Behind the small ones others may lie, which are named then. */
  const struct {
    const char *words;
    void *at;
  } all[] = {{"q=", w.data.q},
             {"", (char *)w.data.kv + w.data.tensors.kv_bytes - 4},
             {"", w.data.block_table},
             {"", w.data.seqlens_k},
             {"must not overlap begin", x.bounds[0][0]},
             {"", x.bounds[0][1]}};
  amla_plan *plan = plan_of(&w, 1);
  const size_t bytes = amla_shard_scratch_bytes(plan);
  void *scratch = malloc(bytes);
  amla_detail detail;
  for (int i = 0; i < LENGTH(all); i++) {
    x.shard.records = all[i].at;
    assert_int_equal(amla_shard_run(plan, &w.data.tensors, &x.shard, scratch, bytes, &detail),
                     AMLA_INVALID_ARGUMENT);
    if (!strstr(detail.text, all[i].words) || !strstr(detail.text, "must not overlap"))
      fail_msg("'%s' instead of '%s'", detail.text, all[i].words);
  }
  x.shard.records = x.records;
  amla_tensors unwritten = w.data.tensors;
  unwritten.out = x.records + 1, unwritten.lse = x.records + 2; /* and not looked at */
  if (amla_shard_run(plan, &unwritten, &x.shard, scratch, bytes, &detail))
    fail_msg("%s", detail.text);
  free(scratch);
  amla_plan_destroy(plan);
  free_part(&x);
  free_whole(&w);
}

/* Shards that leave keys out, and records that are too short, write nothing. */
static void wrong_finishes_are_refused_by_name(void **state) {
  (void)state;
  amla_options options = make_options(AMLA_BACKEND_CPU, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, 96);
  whole w = make_whole("h=4,sk=900,dqk=40,dv=36,page=16", &options, 2);
  part parts[2] = {new_part(&w), new_part(&w)};
  const int32_t cut = (int32_t)w.info.split_tokens * 3;
  parts[0].bounds[0][1][0] = parts[1].bounds[0][0][0] = cut;
  parts[1].bounds[0][1][0] = INT32_MAX;
  for (int i = 0; i < 2; i++)
    run_part(&w, &parts[i], 1);
  amla_plan *plan = plan_of(&w, 1);
  const size_t bytes = amla_shard_scratch_bytes(plan);
  void *scratch = malloc(bytes);
  amla_detail detail;
  amla_shard shards[2] = {parts[0].shard, parts[1].shard};
#define EXPECT(words, n)                                                                           \
  do {                                                                                             \
    assert_int_equal(amla_shard_finish(plan, &w.data.tensors, n, shards, scratch, bytes, &detail), \
                     AMLA_INVALID_ARGUMENT);                                                       \
    if (!strstr(detail.text, words))                                                               \
      fail_msg("'%s' instead of '%s'", detail.text, words);                                        \
  } while (0)
  EXPECT("must reach its length 900", 1);
  EXPECT("n_shards=0: must be >= 1", 0);
  EXPECT("n_shards=4097: must be <= 4096", AMLA_MAX_SHARDS + 1);
  shards[1] = parts[0].shard;
  EXPECT("shards[1].begin[0]=0: must be", 2);
  shards[1] = parts[1].shard, shards[1].records_bytes--;
  EXPECT("records_bytes=", 2);
  shards[1] = parts[1].shard, shards[1].n_entries--;
  EXPECT("n_entries=", 2);
  shards[1] = parts[1].shard, shards[0].head_end = 5;
  EXPECT("head_end=5: must be <= 4", 2);
  shards[0].head_end = 0, shards[1].records = w.data.out;
  EXPECT("must not overlap records", 2);
  shards[1].records = w.data.lse + 3;
  EXPECT("must not overlap records", 2);
  shards[1].records = parts[1].records, shards[1].end = (const int32_t *)w.data.lse;
  memcpy(w.data.lse, parts[1].bounds[0][1], sizeof(int32_t));
  EXPECT("must not overlap end", 2);
#undef EXPECT
  for (size_t i = 0; i < w.data.tensors.out_bytes; i++)
    assert_int_equal(((unsigned char *)w.data.out)[i], 0xA5);
  free(scratch);
  amla_plan_destroy(plan);
  free_part(&parts[0]);
  free_part(&parts[1]);
  free_whole(&w);
}

static void who_has_no_shards_says_so(void **state) {
  (void)state;
  static const struct {
    const char *problem, *words;
    amla_backend backend;
    int32_t split;
    amla_status status;
  } all[] = {
      {"h=1,sk=90", "backend=ref: shards are of cpu", AMLA_BACKEND_REF, 96, AMLA_UNSUPPORTED},
      {"h=1,sk=90", "split_tokens=0: must be >= 1", AMLA_BACKEND_CPU, 0, AMLA_INVALID_ARGUMENT},
      {"h=1,sk=90,page=0", "page_size=0", AMLA_BACKEND_CPU, 96, AMLA_INVALID_ARGUMENT},
      {"h=1,sk=90,topk=9", "index_kind=slot", AMLA_BACKEND_CPU, 96, AMLA_UNSUPPORTED},
  };
  for (int i = 0; i < LENGTH(all); i++) {
    harness_dataset data;
    amla_plan *plan = NULL;
    amla_detail detail;
    generate(&data, all[i].problem);
    const amla_options options =
        make_options(all[i].backend, AMLA_RESCALE_LAZY, AMLA_ISA_AUTO, 1, all[i].split);
    assert_int_equal(amla_plan_create(&plan, &data.problem, &options, NULL), AMLA_OK);
    assert_int_equal(amla_shard_check_outputs(plan, &data.tensors, &detail), all[i].status);
    if (!strstr(detail.text, all[i].words))
      fail_msg("'%s' instead of '%s'", detail.text, all[i].words);
    assert_int_equal(amla_shard_scratch_bytes(plan), 0);
    amla_plan_destroy(plan);
    harness_free(&data);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_way_to_cut_gives_the_bits_of_one_run),
      cmocka_unit_test(every_line_of_keys_can_be_shared_out),
      cmocka_unit_test(rows_may_be_computed_apart),
      cmocka_unit_test(rows_need_their_own_sequence_only),
      cmocka_unit_test(a_shard_is_cancelled),
      cmocka_unit_test(steps_ask_nothing_of_the_system),
      cmocka_unit_test(wrong_shards_are_refused_by_name),
      cmocka_unit_test(records_that_overlap_are_refused_by_name),
      cmocka_unit_test(wrong_finishes_are_refused_by_name),
      cmocka_unit_test(who_has_no_shards_says_so),
  };
  return cmocka_run_group_tests_name("shard", tests, NULL, NULL);
}
