/* SPDX-License-Identifier: Apache-2.0
 *
 * Every backend, instruction set and rescale mode against fp64 within the bound of harness/truth.h,
 * over shapes, types, page sizes and lengths. The normal run takes a covering set, in which any two
 * choices meet, and random problem strings; with AMLA_LONG=1 the full cross product, which takes an
 * hour or more. Unused slots are NaN, unused table entries 2147480000. A failure prints the problem
 * string and the options.
 */
#include "test_run.h"

#include "harness/random_problem.h"

/* ---- The choices ---- */

enum { TYPES = AMLA_N_FLOAT_DTYPES }; /* of q and out */
static const int page_sizes[] = {0, 1, 3, 16, 64, 128};
static const int lengths[] = {0,  1,  2,  63,  64,  65,
                              95, 96, 97, 251, 1000}; /* tiles have 64 or 96 tokens */
static const int heads[] = {1, 3, 6, 9, 16, 63, 64, 126, 128};
static const int queries[] = {1, 2, 4, 7};
static const struct {
  int d_qk, d_v;
} dims[] = {{576, 512}, {512, 512}, {64, 48}, {7, 3}, {1, 1}, {100, 100}};
static const char *const dists[] = {"normal:1", "uniform:2", "rising", "outlier",
                                    "onehot",   "peaked",    "zerov",  "masked"};
static const int splits[] = {AMLA_SPLIT_BY_LENGTH, AMLA_SPLIT_AUTO, 1, 200};
static const int threads[] = {1, 2, 3};
static const struct {
  int pad, sinks;
  const char *lse;
} extras[] = {{0, 0, "e"}, {3, 0, "2"}, {1, 1, "e"}, {0, 1, "2,lsesink=1"}};

/* What a query sees of the first scope, of a length: N stands for about so many keys. */
enum { SEES_MASK = 2, SEES_SLOTS = 4, SEES_POSITIONS, SEES_END = 9 };
static const char *const sees[SEES_END] = {
    "causal=0",          "causal=1",  "causal=0,mask=1",
    "causal=1,mask=1",   "topk=N",    "topk=N,index=position",
    "causal=1,window=N", "visible=1", "visible=1,window=N"};
static const char *const list_forms[] = {"", ",topklen=sequence,invalid=25", ",topklen=query",
                                         ",invalid=100"};
static const char *const second_scopes[] = {"", ",scope2=sk:N", ",scope2=topk:N/sk:N"};
static const char *const page_tables[] = {"", ",csr=1"};
static const char *const query_forms[] = {"", ",ragged=1"};
static const char *const ropes[] = {"", ",qrope=R", ",kvrope=R", ",qrope=R,kvrope=R"};

enum {
  F_ENGINE,
  F_RESCALE,
  F_Q,
  F_KV,
  F_OUT,
  F_PAGE,
  F_LENGTH,
  F_HEADS,
  F_QUERIES,
  F_SEES,
  F_LISTS,
  F_SECOND,
  F_TABLE,
  F_RAGGED,
  F_ROPE,
  F_DIMS,
  F_DIST,
  F_SPLIT,
  F_THREADS,
  F_EXTRA,
  FACTORS
};
static const int levels[FACTORS] = {N_ENGINES,
                                    LENGTH(rescales),
                                    TYPES,
                                    AMLA_N_DTYPES,
                                    TYPES,
                                    LENGTH(page_sizes),
                                    LENGTH(lengths),
                                    LENGTH(heads),
                                    LENGTH(queries),
                                    SEES_END,
                                    LENGTH(list_forms),
                                    LENGTH(second_scopes),
                                    LENGTH(page_tables),
                                    LENGTH(query_forms),
                                    LENGTH(ropes),
                                    LENGTH(dims),
                                    LENGTH(dists),
                                    LENGTH(splits),
                                    LENGTH(threads),
                                    LENGTH(extras)};
enum { MAX_LEVELS = 16 };

typedef int choice[FACTORS];

static const char *type_name(int type) { return amla_dtype_name((amla_dtype)type); }

static amla_options options_of(const choice c) {
  return engine_options(c[F_ENGINE], rescales[c[F_RESCALE]], threads[c[F_THREADS]],
                        splits[c[F_SPLIT]]);
}

typedef struct row_dims {
  int d_qk, d_v;
} row_dims;

/* Records have dimensions of their own. */
static row_dims dims_for(int kv_type, row_dims others) {
  switch (kv_type) {
  case AMLA_FP8_656: return (row_dims){576, 512};
  case AMLA_FP8_584: return (row_dims){512, 512};
  default: return others;
  }
}

/* Appends a form, with n and rope in place of N and R. */
static void append_form(char *text, size_t bytes, const char *form, int n, int rope) {
  size_t used = strlen(text);
  for (; *form; form++, used = strlen(text))
    if (*form == 'N' || *form == 'R')
      snprintf(text + used, bytes - used, "%d", *form == 'N' ? n : rope);
    else
      snprintf(text + used, bytes - used, "%c", *form);
}

/* Two sequences, so that neither is alone: the length in question, and a short one. */
static void problem_of(const choice c, int seed, char *text, size_t bytes) {
  const int length = lengths[c[F_LENGTH]], other = lengths[(c[F_LENGTH] + seed) % 9];
  const row_dims d = dims_for(c[F_KV], (row_dims){dims[c[F_DIMS]].d_qk, dims[c[F_DIMS]].d_v});
  const int longest = length > other ? length : other;
  const int sk = longest > 0 ? longest + seed % 3 : 1;
  const int block = amla_block_elems((amla_dtype)c[F_KV]);
  const bool whole = d.d_qk % block == 0; /* blocks only */
  const int pad = extras[c[F_EXTRA]].pad * (whole ? block : 1);
  snprintf(
      text, bytes,
      "b=2,sq=%d,h=%d,sk=%d,dqk=%d,dv=%d,page=%d,q=%s,kv=%s,out=%s,lse=%s,sinks=%d,pad=%d,dist=%s,"
      "len=%d/%d,seed=%d,",
      queries[c[F_QUERIES]], heads[c[F_HEADS]], sk, d.d_qk, d.d_v, page_sizes[c[F_PAGE]],
      type_name(c[F_Q]), type_name(whole ? c[F_KV] : AMLA_BF16), type_name(c[F_OUT]),
      extras[c[F_EXTRA]].lse, extras[c[F_EXTRA]].sinks, pad, dists[c[F_DIST]], length, other, seed);
  const char *const forms[] = {
      sees[c[F_SEES]],         list_forms[c[F_LISTS]],   second_scopes[c[F_SECOND]],
      page_tables[c[F_TABLE]], query_forms[c[F_RAGGED]], ropes[c[F_ROPE]]};
  for (int i = 0; i < LENGTH(forms); i++)
    append_form(text, bytes, forms[i], longest * (1 + seed % 4) / 3 + 1,
                d.d_qk > 64 ? 64 : d.d_qk / 2);
}

/* ---- Choices that exclude one another ---- */

/* Choice i of factor f beside choice j of factor g; f < g. */
static bool excludes(int f, int i, int g, int j) {
  if (f == F_SEES && (i == SEES_MASK || i == SEES_MASK + 1) && (g == F_SECOND || g == F_RAGGED))
    return j > 0;
  if (f == F_SEES && g == F_LISTS)
    return j > 0 && i != SEES_SLOTS && i != SEES_POSITIONS;
  if (f == F_SEES && g == F_TABLE)
    return j > 0 && i == SEES_SLOTS;
  if (f == F_PAGE && g == F_TABLE)
    return j > 0 && page_sizes[i] == 0;
  if (f == F_SECOND && g == F_ROPE)
    return i > 0 && strstr(ropes[j], "kvrope") != NULL;
  if (f == F_KV && g == F_ROPE)
    return (i == AMLA_FP8_656 || i == AMLA_FP8_584) && strstr(ropes[j], "kvrope") != NULL;
  return f == F_ROPE && g == F_DIMS && i > 0 && dims[j].d_qk == 1;
}

static bool may_meet(int f, int i, int g, int j) {
  return f < g ? !excludes(f, i, g, j) : !excludes(g, j, f, i);
}

/* ---- A covering set: greedy, seeded ---- */

static bool met[FACTORS][MAX_LEVELS][FACTORS]
               [MAX_LEVELS]; /* have these two choices been in one row? */

static int64_t count_missing_pairs(void) {
  int64_t missing = 0;
  for (int f = 0; f < FACTORS; f++)
    assert_true(levels[f] <= MAX_LEVELS);
  for (int f = 0; f < FACTORS; f++)
    for (int g = 0; g < f; g++)
      for (int i = 0; i < levels[f]; i++)
        for (int j = 0; j < levels[g]; j++)
          missing += !met[f][i][g][j] && may_meet(f, i, g, j);
  return missing;
}

/* Pairs that choosing `level` for factor f would add to a row in which the factors with set[] are
 * decided; -1: one of those excludes it. The first level goes with everything. */
static int gain(const choice row, const bool *set, int f, int level) {
  int pairs = 0;
  for (int g = 0; g < FACTORS; g++) {
    if (set[g] && g != f && !may_meet(f, level, g, row[g]))
      return -1;
    pairs += set[g] && g != f && !met[f][level][g][row[g]];
  }
  return pairs;
}

/* A row built factor by factor in random order, each at its best level. Returns how many new pairs
 * it has. */
static int propose_row(choice row, uint64_t *seed) {
  bool set[FACTORS] = {false};
  int order[FACTORS], total = 0;
  for (int f = 0; f < FACTORS; f++)
    order[f] = f;
  for (int f = FACTORS - 1; f > 0; f--) {
    const int other = random_below(seed, f + 1), swap = order[f];
    order[f] = order[other];
    order[other] = swap;
  }
  for (int i = 0; i < FACTORS; i++) {
    const int f = order[i], start = random_below(seed, levels[f]);
    int best = -1;
    for (int l = 0; l < levels[f]; l++) {
      const int level = (start + l) % levels[f], pairs = gain(row, set, f, level);
      if (pairs > best)
        best = pairs, row[f] = level;
    }
    set[f] = true;
    total += best;
  }
  return total;
}

static void mark_pairs(const choice row) {
  for (int f = 0; f < FACTORS; f++)
    for (int g = 0; g < FACTORS; g++)
      met[f][row[f]][g][row[g]] = true;
}

/* The best of some proposals; all pairs stay reachable because a random start level opens new rows.
 */
static void next_row(choice row, uint64_t *seed) {
  int best = -1;
  for (int attempt = 0; attempt < 30; attempt++) {
    choice candidate;
    const int pairs = propose_row(candidate, seed);
    if (pairs > best) {
      best = pairs;
      memcpy(row, candidate, sizeof candidate);
    }
  }
  mark_pairs(row);
}

static void covering_set_is_within_the_bound(void **state) {
  (void)state;
  uint64_t seed = 20240601;
  int count = 0;
  while (count_missing_pairs() > 0) {
    choice row;
    char problem[768];
    next_row(row, &seed);
    if (++count > 2000)
      fail_msg("the covering set does not end");
    if (!engine_runs_here(row[F_ENGINE]))
      continue;
    problem_of(row, count, problem, sizeof problem);
    const amla_options options = options_of(row);
    check_problem(problem, &options);
  }
  printf("%d problems cover all pairs of %d factors\n", count, FACTORS);
}

/* ---- Random problem strings ---- */

static amla_options random_options(uint64_t *seed) {
  int e;
  do
    e = random_below(seed, N_ENGINES);
  while (!engine_runs_here(e));
  const int split = random_below(seed, 4) == 0 ? harness_random_size(seed, 500)
                                               : splits[random_below(seed, LENGTH(splits))];
  const amla_rescale rescale = rescales[random_below(seed, LENGTH(rescales))];
  return engine_options(e, rescale, harness_random_size(seed, 9), split);
}

static void random_problems_are_within_the_bound(void **state) {
  (void)state;
  const int count = TEST_EMULATED ? 60 : 500;
  uint64_t seed = 77;
  for (int i = 0; i < count; i++) {
    char problem[HARNESS_RANDOM_PROBLEM];
    harness_random_problem(&seed, problem);
    const amla_options options = random_options(&seed);
    check_problem(problem, &options);
  }
}

/* Without an LSE buffer O is the same. */
static void lse_may_be_left_out(void **state) {
  (void)state;
  const char *problem = "b=2,h=20,sk=300,dqk=64,dv=48,len=ragged";
  for (int e = 0; e < N_ENGINES; e++) {
    const amla_options options = engine_options(e, AMLA_RESCALE_LAZY, 2, 0);
    harness_dataset with, without;
    if (!engine_runs_here(e))
      continue;
    generate(&with, problem);
    generate(&without, problem);
    without.tensors.lse = NULL;
    without.tensors.lse_bytes = 0;
    run(&with, problem, &options);
    run(&without, problem, &options);
    assert_memory_equal(with.out, without.out, with.tensors.out_bytes);
    assert_true(
        all_bytes_are(without.lse, (size_t)n_rows(&without) * sizeof(float), GUARD_PATTERN));
    harness_free(&with);
    harness_free(&without);
  }
}

/* ---- The full cross product ---- */

/* Every engine and mode on one set of tensors. */
static void check_engines(choice c, int seed) {
  char problem[768];
  harness_dataset data;
  harness_truth truth;
  problem_of(c, seed, problem, sizeof problem);
  generate(&data, problem);
  compute_truth_of(&data, &truth);
  for (c[F_ENGINE] = 0; c[F_ENGINE] < N_ENGINES; c[F_ENGINE]++)
    for (c[F_RESCALE] = 0; c[F_RESCALE] < LENGTH(rescales) && engine_runs_here(c[F_ENGINE]);
         c[F_RESCALE]++) {
      const amla_options options = options_of(c);
      run(&data, problem, &options);
      expect_within_bound(&data, &truth, problem, &options);
    }
  harness_truth_free(&truth);
  harness_free(&data);
}

/* The level, or the first one if another factor excludes it. */
static void choose_allowed(choice c, int f, int level) {
  bool allowed = true;
  for (int g = 0; g < FACTORS; g++)
    allowed = allowed && (g == f || may_meet(f, level, g, c[g]));
  c[f] = allowed ? level : 0;
}

/* Engines x modes x types x pages x lengths x heads x queries x keys seen; dimensions,
 * distributions and the rest take turns. */
static void cross_product_is_within_the_bound(void **state) {
  (void)state;
  static const int crossed[] = {F_Q, F_KV, F_PAGE, F_LENGTH, F_HEADS, F_QUERIES, F_SEES};
  static const int rotating[] = {F_OUT,   F_DIMS,  F_DIST,   F_SPLIT,  F_THREADS, F_EXTRA,
                                 F_LISTS, F_TABLE, F_SECOND, F_RAGGED, F_ROPE};
  int total = 1;
  if (!long_run())
    skip();
  for (int i = 0; i < LENGTH(crossed); i++)
    total *= levels[crossed[i]];
  for (int n = 0; n < total; n++) {
    choice c = {0};
    uint64_t seed = (uint64_t)n;
    for (int i = 0, rest = n; i < LENGTH(crossed); i++) {
      c[crossed[i]] = rest % levels[crossed[i]];
      rest /= levels[crossed[i]];
    }
    for (int i = 0; i < LENGTH(rotating); i++)
      choose_allowed(c, rotating[i], random_below(&seed, levels[rotating[i]]));
    check_engines(c, n);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(covering_set_is_within_the_bound),
      cmocka_unit_test(random_problems_are_within_the_bound),
      cmocka_unit_test(lse_may_be_left_out),
      cmocka_unit_test(cross_product_is_within_the_bound),
  };
  return cmocka_run_group_tests_name("differential", tests, NULL, NULL);
}
