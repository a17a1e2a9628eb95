/* SPDX-License-Identifier: Apache-2.0
 *
 * The instruments themselves: problem strings, generators, and the comparison that all other
 * verdicts rest on. A comparison that cannot fail proves nothing, so most of this file corrupts a
 * right result in one place and demands that it shows.
 */
#include "test_run.h"

#include <inttypes.h>

#include "harness/names.h"
#include "harness/rounds.h"
#include "src/base/float16.h"

/* ---- Problem strings ---- */

static void parse_must(const char *text, harness_case *c) {
  char error[256];
  if (harness_parse_problem(text, c, error, sizeof error) != 0)
    fail_msg("'%s': %s", text, error);
}

static void defaults_are_documented_ones(void **state) {
  (void)state;
  static const char all[] = "sk=4096,b=1,sq=1,dqk=576,dv=512,page=64,q=bf16,kv=bf16,out=f32,causal="
                            "1,scale=0.1352,lse=e,sinks=0,pad=0,"
                            "dist=normal:1,len=fixed,seed=7";
  static const char *const same[] = {"", "default", "h=128", all};
  char first[1024], text[1024];
  for (int i = 0; i < LENGTH(same); i++) {
    harness_case c;
    parse_must(same[i], &c);
    const int length = harness_format_problem(&c, text, sizeof text);
    assert_int_equal(length, strlen(text));
    assert_int_equal(harness_format_problem(&c, NULL, 0), length);
    if (i == 0)
      memcpy(first, text, sizeof first);
    assert_string_equal(text, first);
  }
}

static void strings_round_trip(void **state) {
  (void)state;
  static const char *const texts[] = {"b=4,sq=2,h=128,sk=4096,page=64,q=bf16,kv=bf16,causal=1,"
                                      "scale=0.1352,dist=normal:1,len=uniform,seed=7",
                                      "b=0",
                                      "b=3,sk=1000,len=3/0/1000",
                                      "len=5,sk=5",
                                      "dist=uniform:0.25",
                                      "dist=rising",
                                      "dist=rising:1234.5",
                                      "dist=outlier:7",
                                      "dist=onehot",
                                      "dist=peaked:3",
                                      "dist=zerov",
                                      "dist=masked,sq=7,b=9",
                                      "len=ragged,b=7",
                                      "page=0",
                                      "page=1,sk=33",
                                      "pad=13,sinks=1,lse=2",
                                      "scale=-0.3333333",
                                      "scale=1e-30",
                                      "seed=18446744073709551615",
                                      "q=f32,kv=f16,out=bf16",
                                      "topk=2048,index=position,topklen=query,invalid=100,ragged=1",
                                      "topk=64,index=slot,topklen=sequence,causal=0",
                                      "window=128,causal=1,scope2=topk:512/sk:4096/page:256",
                                      "scope2=topk:0/sk:900/page:0,csr=1,lsesink=1",
                                      "visible=1,causal=0,window=7,qrope=64,kvrope=0",
                                      "kvrope=32,kv=q8_0,scope2=none",
                                      "dqk=1,dv=1,h=1,sk=1"};
  for (int i = 0; i < LENGTH(texts); i++) {
    harness_case a, b;
    char once[1024], twice[1024];
    parse_must(texts[i], &a);
    harness_format_problem(&a, once, sizeof once);
    parse_must(once, &b);
    harness_format_problem(&b, twice, sizeof twice);
    assert_string_equal(once, twice);
    assert_memory_equal(&a.problem, &b.problem, sizeof a.problem);
    assert_memory_equal(a.len_list, b.len_list, sizeof a.len_list);
    assert_true(a.seed == b.seed && a.dist == b.dist &&
                to_bits((float)a.dist_width) == to_bits((float)b.dist_width) && a.len == b.len);
    /* What was said is said again. */
    for (const char *key = texts[i]; *key;
         key += strcspn(key, ",") + (key[strcspn(key, ",")] == ',')) {
      char item[128];
      snprintf(item, sizeof item, "%.*s", (int)strcspn(key, ","), key);
      if (strcmp(item, "dist=rising") != 0 && strstr(once, item) == NULL)
        fail_msg("'%s' lacks '%s'", once, item);
    }
  }
}

static void fields_get_their_values(void **state) {
  (void)state;
  harness_case c;
  parse_must("len=3/0/"
             "70,sk=70,sq=2,h=5,dqk=24,dv=16,page=16,q=f32,kv=f16,out=bf16,causal=0,scale=0.5,lse="
             "2,sinks=1,pad=3,dist=peaked:4,seed=99",
             &c);
  const amla_problem *p = &c.problem;
  assert_true(p->b == 3 && p->s_q == 2 && p->h_q == 5 && p->sk == 70 && p->d_qk == 24 &&
              p->d_v == 16 && p->page_size == 16);
  assert_true(p->q_type == AMLA_F32 && p->kv_type == AMLA_F16 && p->out_type == AMLA_BF16 &&
              p->causal == 0 && c.options.lse_base == AMLA_LSE_BASE2);
  assert_true(to_bits(p->scale) == to_bits(0.5f) && c.sinks == 1 && c.pad == 3 &&
              c.dist == HARNESS_PEAKED && c.seed == 99);
  assert_true(c.len == HARNESS_LEN_LIST && c.len_list[0] == 3 && c.len_list[1] == 0 &&
              c.len_list[2] == 70);
  assert_true(p->q_stride_head == 27 && p->out_stride_head == 19 &&
              p->kv_stride_token == 27);            /* pad behind every row */
  assert_true(p->max_pages > 5 && p->n_pages > 15); /* spare entries and pages */
  assert_true(harness_dtype_bytes(AMLA_F32) == 4 && harness_dtype_bytes(AMLA_BF16) == 2 &&
              harness_dtype_bytes(AMLA_F16) == 2);
}

static void options_of_a_string_go_before_others(void **state) {
  (void)state;
  harness_case c;
  amla_options o = AMLA_OPTIONS_INIT;
  o.threads = 3;
  parse_must("lse=2,sinks=1,lsesink=1", &c);
  harness_take_options(&o, &c.options);
  assert_true(o.lse_base == AMLA_LSE_BASE2 && o.lse_sink == AMLA_LSE_WITH_SINK && o.threads == 3);
}

static const struct {
  const char *text, *error;
} refusals[] = {
    {"sk=-3", "sk=-3: must be >= 1"},
    {"sk=0", "sk=0: must be >= 1"},
    {"b=-1", "b=-1: must be >= 0"},
    {"h=0", "h=0: must be >= 1"},
    {"sq=0", "sq=0: must be >= 1"},
    {"dqk=0", "dqk=0: must be >= 1"},
    {"page=-64", "page=-64: must be >= 0"},
    {"causal=2", "causal=2: must be <= 1"},
    {"sinks=7", "sinks=7: must be <= 1"},
    {"pad=-1", "pad=-1: must be >= 0"},
    {"h=12x", "h=12x: must be an integer"},
    {"h=", "h=: must be an integer"},
    {"h= 12", "h= 12: must be an integer"},
    {"h=+12", "h=+12: must be an integer"},
    {"h=0x10", "h=0x10: must be an integer"},
    {"h=99999999999999999999", "h=99999999999999999999: must be"},
    {"h=2147483648", "h=2147483648: must be <= 2147483647"},
    {"dv=577", "dv=577: must be <= dqk=576"},
    {"dqk=100", "dv=512: must be <= dqk=100"},
    {"q=f64", "q=f64: must be f32, bf16 or f16"},
    {"kv=fp8_656,dqk=512", "kv=fp8_656: dqk=512 must be 576, dv=512 must be 512"},
    {"kv=fp8_584", "kv=fp8_584: dqk=576 must be 512, dv=512 must be 512"},
    {"out=", "out=: must be f32, bf16 or f16"},
    {"scale=0", "scale=0: must be a finite number other than 0"},
    {"scale=nan", "scale=nan: must be"},
    {"scale=inf", "scale=inf: must be"},
    {"scale=1e60", "scale=1e60: must be"},
    {"scale=1e-60", "scale=1e-60: must be"},
    {"scale=0.1z", "scale=0.1z: must be"},
    {"lse=10", "lse=10: must be e or 2"},
    {"dist=gauss", "dist=gauss: must be normal:S"},
    {"dist=normal:", "dist=normal:: the width must be"},
    {"dist=normal:-1", "dist=normal:-1: the width must be"},
    {"dist=normal:0", "dist=normal:0: the width must be"},
    {"dist=onehot:3", "dist=onehot:3: onehot takes no width"},
    {"dist=norm", "dist=norm: must be"},
    {"len=long", "len=long: must be fixed, uniform, ragged, or lengths"},
    {"len=1//2", "len=1//2: must be"},
    {"len=5/-1", "len=5/-1: must be"},
    {"len=4097", "len: 4097 is longer than sk=4096"},
    {"len=1/2,b=3", "len: lists 2 lengths, b=3 needs as many"},
    {"seed=-1", "seed=-1: must be an integer in [0, 2^64)"},
    {"seed=18446744073709551616", "seed=18446744073709551616: must be"},
    {"colour=red", "colour: unknown key"},
    {"B=3", "B: unknown key"},
    {"h=3,h=3", "h: given twice"},
    {"h", "'h': must be key=value"},
    {"h=3,", "'': must be key=value"},
    {",h=3", "'': must be key=value"},
    {"h=3 ", "h=3 : must be an integer"},
    {"default,h=3", "'default': must be key=value"},
    {"b=2147483647,sk=2147483647,page=1", "page=1: "},
    {"topk=-1", "topk=-1: must be >= 0"},
    {"topk=8,causal=1", "causal=1: must be 0 with topk"},
    {"visible=1,causal=1", "causal=1: must be 0 with visible=1"},
    {"topk=8,visible=1", "visible=1: needs a scope without a list"},
    {"topk=8,window=3", "window=3: must be 0 with topk"},
    {"causal=0,window=3", "window=3: needs causal=1 or visible=1"},
    {"index=place,topk=8", "index=place: must be slot or position"},
    {"index=position", "index=position: needs topk or scope2=topk"},
    {"topklen=all,topk=8", "topklen=all: must be none, sequence or query"},
    {"topklen=query", "topklen=query: needs topk or scope2=topk"},
    {"invalid=5", "invalid=5: needs topk or scope2=topk"},
    {"invalid=101,topk=8", "invalid=101: must be <= 100"},
    {"scope2=", "scope2=: must be none, or sizes such as"},
    {"scope2=sk:0", "scope2=sk:0: must be none, or sizes such as"},
    {"scope2=sk:3/", "scope2=sk:3/: must be none, or sizes such as"},
    {"scope2=top:3", "scope2=top:3: must be none, or sizes such as"},
    {"scope2=sk:99999999999999999999999999", "must be none, or sizes such as"},
    {"mask=1,scope2=sk:3", "mask=1: must be 0 with topk, window or scope2"},
    {"mask=1,ragged=1", "mask=1: must be 0 with ragged=1"},
    {"csr=1,page=0", "csr=1: needs pages, page=0 has none"},
    {"csr=1,topk=8", "csr=1: must be 0 with topk and index=slot"},
    {"qrope=576", "qrope=576: must be < dqk"},
    {"kvrope=576", "kvrope=576: must be < dqk"},
    {"kvrope=64,scope2=sk:3", "kvrope=64: must be 0 with scope2"},
    {"kvrope=7,kv=q8_0", "kv=q8_0: dqk=576, pad=0 and kvrope=7 must be multiples of 32"},
    {"topk=8,b=65536,sk=65536,page=0", "topk: a list needs fewer than 2^31 slots"},
    {"scope2=topk:8/sk:65536/page:0,b=65536", "scope2: a list needs fewer than 2^31 slots"},
    {"scope2=sk:2000000000/page:1,b=9,sk=1", "scope2=page:1: b=9, sk:2000000000 need"},
    {"h=2147483647,sq=2147483647,dqk=2147483647,dv=1,page=0", "leaves int64"},
    {"b=2147483647,sk=2147483647,page=0,dqk=2147483647", "leaves int64"},
};

static void refusals_name_key_value_and_rule(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(refusals); i++) {
    char error[256] = "";
    harness_case c, before;
    memset(&c, 0x5a, sizeof c);
    before = c;
    if (harness_parse_problem(refusals[i].text, &c, error, sizeof error) != -1)
      fail_msg("'%s' is accepted", refusals[i].text);
    if (strstr(error, refusals[i].error) == NULL)
      fail_msg("'%s': '%s' does not contain '%s'", refusals[i].text, error, refusals[i].error);
    assert_memory_equal(&c, &before, sizeof c); /* out is untouched */
    assert_int_equal(harness_parse_problem(refusals[i].text, &c, NULL, 0), -1);
  }
}

static void a_type_that_is_none_is_answered_by_the_list(void **state) {
  (void)state;
  char error[256];
  harness_case c;
  assert_int_equal(harness_parse_problem("kv=fp8", &c, error, sizeof error), -1);
  assert_non_null(strstr(error, "kv=fp8: must be f32, "));
  for (int i = 0; harness_dtypes(i) != NULL; i++)
    assert_non_null(strstr(error, harness_dtypes(i)));
}

/* ---- Elements and random numbers ---- */

/* The harness has conversions of its own, so that an error in the library's cannot hide. */
static void elements_load_and_store_as_the_library(void **state) {
  (void)state;
  uint64_t seed = 1;
  for (int code = 0; code < 65536; code++) {
    const uint16_t h = (uint16_t)code;
    uint16_t back;
    assert_true(same_number(harness_load(&h, AMLA_BF16, 0), amla_bf16_to_f32(h)) &&
                same_number(harness_load(&h, AMLA_F16, 0), amla_f16_to_f32(h)));
    if (isnan(amla_f16_to_f32(h)) || isnan(amla_bf16_to_f32(h)))
      continue;
    harness_store(&back, AMLA_BF16, 0, amla_bf16_to_f32(h));
    assert_int_equal(back, h);
    harness_store(&back, AMLA_F16, 0, amla_f16_to_f32(h));
    assert_int_equal(back, h);
  }
  for (int i = 0; i < 1000000; i++) {
    const float x = of_bits((uint32_t)harness_random(&seed));
    uint16_t h[2];
    float f;
    if (isnan(x))
      continue;
    harness_store(h, AMLA_BF16, 0, x);
    harness_store(h, AMLA_F16, 1, x);
    harness_store(&f, AMLA_F32, 0, x);
    if (h[0] != amla_f32_to_bf16(x) || h[1] != amla_f32_to_f16(x) || to_bits(f) != to_bits(x))
      fail_msg("%a: stored as 0x%04x, 0x%04x, %a", (double)x, h[0], h[1], (double)f);
  }
}

typedef struct moments {
  double mean, deviation, least, most;
} moments;

static moments moments_of(const double *x, int64_t n) {
  moments m = {0, 0, INFINITY, -INFINITY};
  double squares = 0;
  for (int64_t i = 0; i < n; i++) {
    m.mean += x[i] / (double)n;
    squares += x[i] * x[i] / (double)n;
    m.least = fmin(m.least, x[i]);
    m.most = fmax(m.most, x[i]);
  }
  m.deviation = sqrt(squares - m.mean * m.mean);
  return m;
}

static void random_numbers_have_their_distribution(void **state) {
  (void)state;
  enum { N = 100000 };
  static double uniform[N], normal[N];
  uint64_t seed = 5, again = 5;
  for (int i = 0; i < N; i++)
    uniform[i] = harness_random_uniform(&seed);
  for (int i = 0; i < N; i++)
    normal[i] = harness_random_normal(&seed);
  /* Deterministic. */
  assert_true(to_bits((float)harness_random_uniform(&again)) == to_bits((float)uniform[0]));
  const moments u = moments_of(uniform, N), n = moments_of(normal, N);
  assert_true(u.least > 0 && u.most < 1 && fabs(u.mean - 0.5) < 0.005 &&
              fabs(u.deviation - sqrt(1.0 / 12)) < 0.003);
  assert_true(fabs(n.mean) < 0.02 && fabs(n.deviation - 1) < 0.01 && n.most > 3.5 && n.most < 6);
}

/* ---- Datasets: what must not be read is hostile ---- */

/* Marks the elements of rows [0, n) at offset(i), and demands: marked ones finite, all others NaN.
 */
static void expect_nan_elsewhere(const void *buffer, amla_dtype type, int64_t elems,
                                 const unsigned char *used, const char *what) {
  int64_t unused = 0;
  for (int64_t i = 0; i < elems; i++) {
    const float x = harness_load(buffer, type, i);
    unused += !used[i];
    const char *kind = used[i] ? "used" : "unused";
    if (used[i] ? !isfinite(x) : !isnan(x))
      fail_msg("%s: element %" PRId64 " is %g, %s", what, i, (double)x, kind);
  }
  if (unused == 0)
    fail_msg("%s: nothing is unused", what);
}

static void unused_memory_is_hostile(void **state) {
  (void)state;
  static const char *const problems[] = {
      "b=4,sq=3,h=5,sk=70,dqk=12,dv=8,page=16,len=70/0/17/33,pad=3",
      "b=3,h=2,sk=40,dqk=8,dv=8,page=0,len=40/1/0,q=f32,kv=f16,pad=1"};
  for (int t = 0; t < LENGTH(problems); t++) {
    harness_dataset d;
    generate(&d, problems[t]);
    const amla_problem *p = &d.problem;
    const int64_t q_elems = (int64_t)(d.tensors.q_bytes / harness_dtype_bytes(p->q_type)),
                  kv_elems = (int64_t)(d.tensors.kv_bytes / harness_dtype_bytes(p->kv_type));
    unsigned char *q_used = calloc((size_t)q_elems, 1), *kv_used = calloc((size_t)kv_elems, 1);
    assert_true(q_used != NULL && kv_used != NULL);
    for (int64_t row = 0; row < n_rows(&d); row++)
      memset(q_used + q_row_offset(p, row), 1, (size_t)p->d_qk);
    for (int32_t s = 0; s < p->b; s++)
      for (int64_t j = 0; j < d.seqlens_k[s]; j++)
        memset(kv_used + kv_token_offset(&d, s, j), 1, (size_t)p->d_qk);
    expect_nan_elsewhere(d.q, p->q_type, q_elems, q_used, "q");
    expect_nan_elsewhere(d.kv, p->kv_type, kv_elems, kv_used, "kv");
    assert_true(all_bytes_are(d.out, d.tensors.out_bytes, GUARD_PATTERN) &&
                all_bytes_are(d.lse, d.tensors.lse_bytes, GUARD_PATTERN));
    free(q_used);
    free(kv_used);
    harness_free(&d);
  }
}

/* ---- Datasets: which keys are seen ---- */

typedef struct entry_counts {
  int valid, negative, twice;
} entry_counts;

/* Entries of one query's list: marks the slots of the cache that it names, and demands that what
 * does not count is out of range. */
static void count_entries(const int32_t *list, int32_t n, int32_t topk, unsigned char *named,
                          entry_counts *counts) {
  for (int32_t i = 0; i < n; i++) {
    counts->valid += list[i] >= 0;
    counts->negative += list[i] < 0;
    counts->twice += list[i] >= 0 && named[list[i]];
    if (list[i] >= 0)
      named[list[i]] = 1;
  }
  for (int32_t i = n; i < topk; i++)
    assert_int_equal(list[i], 2147480000);
}

/* Slots of a cache of pages of `page` tokens: named ones finite, all other elements NaN. */
static void expect_only_named(const void *kv, size_t kv_bytes, const unsigned char *named,
                              int64_t slots, int32_t page, int64_t stride_page,
                              int64_t stride_token) {
  const int64_t elems = (int64_t)kv_bytes / 2;
  unsigned char *used = calloc((size_t)elems, 1);
  assert_non_null(used);
  for (int64_t i = 0; i < slots; i++)
    memset(used + i / page * stride_page + i % page * stride_token, named[i], 8);
  expect_nan_elsewhere(kv, AMLA_BF16, elems, used, "kv");
  free(used);
}

static void lists_are_hostile(void **state) {
  (void)state;
  harness_dataset d;
  entry_counts counts = {0, 0, 0};
  static unsigned char first[1000], second[1000];
  generate(&d, "b=3,sq=2,h=2,sk=60,dqk=8,dv=8,page=7,pad=2,topk=90,topklen=query,invalid=30,len=60/"
               "0/9,scope2=topk:40/sk:50/page:3");
  const amla_problem *p = &d.problem;
  const amla_tensors *t = &d.tensors;
  assert_true(t->block_table == NULL && t->seqlens_k == NULL && t->kv_indptr == NULL);
  for (int32_t i = 0; i < 6; i++) {
    count_entries(t->indices + i / 2 * p->indices_stride_batch + i % 2 * p->indices_stride_query,
                  t->topk_length[i], 90, first, &counts);
    count_entries(t->extra_indices + i / 2 * p->extra_indices_stride_batch +
                      i % 2 * p->extra_indices_stride_query,
                  t->extra_topk_length[i], 40, second, &counts);
  }
  assert_true(counts.valid > 100 && counts.negative > 40 && counts.twice > 10);
  assert_int_equal(t->topk_length[0], 90);
  expect_only_named(t->kv, t->kv_bytes, first, p->n_pages * 7, 7, p->kv_stride_page,
                    p->kv_stride_token);
  expect_only_named(t->extra_kv, t->extra_kv_bytes, second, p->extra_n_pages * 3, 3,
                    p->extra_kv_stride_page, p->extra_kv_stride_token);
  harness_free(&d);
}

static void change_entry(harness_dataset *d) { d->indices[0] = d->indices[1]; }
static void change_length(harness_dataset *d) { d->topk_length[0] = 3; }
static void change_visible(harness_dataset *d) { d->visible_k[0] /= 2; }
static void change_window(harness_dataset *d) { d->problem.window--; }
static void change_extra_entry(harness_dataset *d) { d->extra_indices[0] = d->extra_indices[1]; }
static void change_extra_length(harness_dataset *d) { d->extra_seqlens_k[0]--; }
static void change_page(harness_dataset *d) { d->kv_indices[0] = d->kv_indices[1]; }
static void change_queries(harness_dataset *d) { d->problem.causal = 0; }
static void change_sink(harness_dataset *d) { d->options.lse_sink = AMLA_LSE_WITHOUT_SINK; }
static void change_q_rope(harness_dataset *d) { harness_store(d->q_rope, AMLA_BF16, 0, 9.0f); }
static void change_kv_rope(harness_dataset *d) {
  for (int64_t i = 0; i < (int64_t)d->tensors.kv_rope_bytes / 2; i++)
    harness_store(d->kv_rope, AMLA_BF16, i, 1.0f);
}

/* A result is right for what the tensors said, and wrong once any of them says something else. */
static void what_is_seen_decides_the_verdict(void **state) {
  (void)state;
  static const struct {
    const char *problem;
    void (*change)(harness_dataset *d);
  } rows[] = {{"topk=20,page=3", change_entry},
              {"topk=20,index=position,page=3", change_entry},
              {"topk=20,topklen=query", change_length},
              {"topk=20,topklen=sequence,page=0", change_length},
              {"visible=1", change_visible},
              {"window=9", change_window},
              {"scope2=topk:20/sk:30/page:4", change_extra_entry},
              {"scope2=sk:30/page:4", change_extra_length},
              {"csr=1,page=8", change_page},
              {"ragged=1,b=4,sq=3,page=0", change_queries},
              {"sinks=1,lsesink=1", change_sink},
              {"qrope=3", change_q_rope},
              {"kvrope=3,page=3", change_kv_rope}};
  const amla_options options = make_options(AMLA_BACKEND_REF, AMLA_RESCALE_LAZY, 0, 1, 0);
  for (int i = 0; i < LENGTH(rows); i++) {
    harness_dataset d;
    harness_truth truth;
    char problem[256];
    snprintf(problem, sizeof problem, "h=3,sk=40,dqk=12,dv=8,%s", rows[i].problem);
    generate(&d, problem);
    run(&d, problem, &options);
    compute_truth_of(&d, &truth);
    if (!harness_compare(&d, &truth).ok)
      fail_msg("'%s': a right result is refused", problem);
    harness_truth_free(&truth);
    rows[i].change(&d);
    compute_truth_of(&d, &truth);
    if (harness_compare(&d, &truth).ok)
      fail_msg("'%s': the result of other keys is accepted", problem);
    harness_truth_free(&truth);
    harness_free(&d);
  }
}

static void pages_are_shuffled_and_unused_entries_hostile(void **state) {
  (void)state;
  harness_dataset d;
  int in_order = 0;
  generate(&d, "b=4,h=1,sk=200,dqk=4,dv=4,page=8,len=200/0/100/3");
  const amla_problem *p = &d.problem;
  bool *taken = calloc((size_t)p->n_pages, sizeof *taken);
  assert_non_null(taken);
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t e = 0; e < p->max_pages; e++) {
      const int32_t id = d.block_table[s * p->max_pages + e];
      if (e * 8 >= d.seqlens_k[s]) {
        assert_int_equal(id, 2147480000);
        continue;
      }
      assert_true(id >= 0 && id < p->n_pages && !taken[id]);
      taken[id] = true;
      in_order += e > 0 && id == d.block_table[s * p->max_pages + e - 1] + 1;
    }
  assert_true(in_order < 8);
  free(taken);
  harness_free(&d);
}

static void a_sequence_does_not_depend_on_its_batch(void **state) {
  (void)state;
  harness_dataset one, many;
  generate(&one, "b=1,h=3,sk=50,dqk=12,dv=8,page=0");
  generate(&many, "b=4,h=3,sk=50,dqk=12,dv=8,page=0");
  assert_memory_equal(one.q, many.q, one.tensors.q_bytes);
  assert_memory_equal(one.kv, many.kv, one.tensors.kv_bytes);
  harness_free(&many);
  generate(&many, "b=1,h=3,sk=50,dqk=12,dv=8,page=0,seed=8");
  assert_memory_not_equal(one.q, many.q, one.tensors.q_bytes);
  assert_memory_not_equal(one.kv, many.kv, one.tensors.kv_bytes);
  harness_free(&one);
  harness_free(&many);
}

static void lengths_are_what_len_says(void **state) {
  (void)state;
  harness_dataset d;
  generate(&d, "b=3,h=1,sk=100,dqk=4,dv=4,len=fixed");
  assert_true(d.seqlens_k[0] == 100 && d.seqlens_k[1] == 100 && d.seqlens_k[2] == 100);
  harness_free(&d);
  generate(&d, "b=6,h=1,sk=100,dqk=4,dv=4,len=ragged");
  assert_true(d.seqlens_k[0] == 100 && d.seqlens_k[1] == 0 && d.seqlens_k[2] == 1);
  for (int s = 3; s < 6; s++)
    assert_in_range(d.seqlens_k[s], 0, 100);
  harness_free(&d);
  generate(&d, "b=64,h=1,sk=100,dqk=4,dv=4,len=uniform");
  int below_half = 0;
  for (int s = 0; s < 64; s++) {
    assert_in_range(d.seqlens_k[s], 1, 100);
    below_half += d.seqlens_k[s] <= 50;
  }
  assert_in_range(below_half, 16, 48);
  harness_free(&d);
  generate(&d, "b=12,sq=5,h=1,sk=100,dqk=4,dv=4,dist=masked");
  int empty = 0, partly = 0;
  for (int s = 0; s < 12; s++) {
    assert_in_range(d.seqlens_k[s], 0, 5);
    empty += d.seqlens_k[s] == 0;
    partly += d.seqlens_k[s] > 0 && d.seqlens_k[s] < 5;
  }
  assert_true(empty > 0 && partly > 0);
  harness_free(&d);
}

/* ---- Datasets: the distributions ---- */

static moments moments_of_buffer(const harness_dataset *d, bool of_q) {
  const amla_problem *p = &d->problem;
  const amla_dtype type = of_q ? p->q_type : p->kv_type;
  const void *buffer = of_q ? d->q : d->kv;
  const size_t bytes = of_q ? d->tensors.q_bytes : d->tensors.kv_bytes;
  const int64_t n = (int64_t)(bytes / harness_dtype_bytes(type));
  double *x = malloc((size_t)n * sizeof *x);
  assert_non_null(x);
  for (int64_t i = 0; i < n; i++)
    x[i] = (double)harness_load(buffer, type, i);
  const moments m = moments_of(x, n);
  free(x);
  return m;
}

static void plain_distributions_have_their_width(void **state) {
  (void)state;
  static const struct {
    const char *dist;
    double q_deviation, kv_deviation;
  } rows[] = {{"normal:1", 1, 1},
              {"normal:0.25", 0.25, 0.25},
              {"uniform:3", 3 / 1.7320508, 3 / 1.7320508},
              {"peaked:7", 7, 1}};
  for (int i = 0; i < LENGTH(rows); i++) {
    char problem[128];
    harness_dataset d;
    snprintf(problem, sizeof problem, "h=200,sk=200,dqk=100,dv=100,page=0,dist=%s",
             rows[i].dist); /* no unused elements */
    generate(&d, problem);
    const moments q = moments_of_buffer(&d, true), kv = moments_of_buffer(&d, false);
    if (!(fabs(q.mean) < 0.03 * q.deviation && fabs(q.deviation / rows[i].q_deviation - 1) < 0.02))
      fail_msg("%s: q has mean %g, deviation %g", rows[i].dist, q.mean, q.deviation);
    if (!(fabs(kv.mean) < 0.03 * kv.deviation &&
          fabs(kv.deviation / rows[i].kv_deviation - 1) < 0.02))
      fail_msg("%s: kv has mean %g, deviation %g", rows[i].dist, kv.mean, kv.deviation);
    if (strncmp(rows[i].dist, "uniform", 7) == 0)
      assert_true(q.most <= 3 && q.least >= -3 && q.most > 2.9);
    harness_free(&d);
  }
}

/* Logits of one head in log2 units. */
static double *logits_of(const harness_dataset *d, int64_t row) {
  const amla_problem *p = &d->problem;
  const int32_t n = d->seqlens_k[0];
  double *logits = malloc((size_t)n * sizeof *logits);
  assert_non_null(logits);
  for (int32_t j = 0; j < n; j++) {
    logits[j] = 0;
    for (int32_t c = 0; c < p->d_qk; c++)
      logits[j] += (double)p->scale * 1.4426950408889634 *
                   (double)harness_load(d->q, p->q_type, q_row_offset(p, row) + c) *
                   (double)harness_load(d->kv, p->kv_type, kv_token_offset(d, 0, j) + c);
  }
  return logits;
}

static double mean_of(const double *x, int32_t from, int32_t to) {
  double sum = 0;
  for (int32_t i = from; i < to; i++)
    sum += x[i] / (to - from);
  return sum;
}

static void rising_logits_rise_by_r(void **state) {
  (void)state;
  harness_dataset d;
  generate(&d, "h=4,sk=1000,dqk=64,dv=48,dist=rising:300");
  for (int64_t row = 0; row < 4; row++) {
    double *x = logits_of(&d, row);
    for (int32_t part = 1; part < 10; part++)
      assert_true(mean_of(x, part * 100, part * 100 + 100) >
                  mean_of(x, part * 100 - 100, part * 100));
    const double rise = (mean_of(x, 900, 1000) - mean_of(x, 0, 100)) / 0.9;
    if (!(rise > 200 && rise < 400))
      fail_msg("head %d rises by %g", (int)row, rise);
    free(x);
  }
  harness_free(&d);
}

static void one_late_token_is_an_outlier(void **state) {
  (void)state;
  harness_dataset d;
  generate(&d, "h=4,sk=1000,dqk=64,dv=48,dist=outlier:500");
  for (int64_t row = 0; row < 4; row++) {
    double *x = logits_of(&d, row), best = -INFINITY, second = -INFINITY;
    int32_t at = -1;
    for (int32_t j = 0; j < 1000; j++) {
      if (x[j] > best)
        second = best, best = x[j], at = j;
      else if (x[j] > second)
        second = x[j];
    }
    if (!(at > 500 && best - second > 250))
      fail_msg("head %d: token %d is %g above the rest", (int)row, at, best - second);
    free(x);
  }
  harness_free(&d);
}

static void one_key_takes_all_in_onehot(void **state) {
  (void)state;
  static const char *const problems[] = {"h=4,sk=1000,dqk=64,dv=48,dist=onehot",
                                         "h=3,sq=4,sk=70,dqk=576,dv=512,dist=onehot,scale=0.02",
                                         "h=5,sk=300,dqk=7,dv=3,dist=onehot,kv=f32"};
  for (int t = 0; t < LENGTH(problems); t++) {
    harness_dataset d;
    generate(&d, problems[t]);
    for (int64_t row = 0; row < n_rows(&d); row++) {
      double *x = logits_of(&d, row), best = -INFINITY, rest = 0;
      const int32_t n =
          (int32_t)harness_visible(&d.problem, &d.tensors, 0, (int32_t)(row / d.problem.h_q));
      int32_t at = -1;
      for (int32_t j = 0; j < n; j++)
        if (x[j] > best)
          best = x[j], at = j;
      for (int32_t j = 0; j < n; j++)
        rest += j == at ? 0 : exp2(x[j] - best);
      if (!(rest < 1e-9))
        fail_msg("'%s' row %d: the other keys have weight %g", problems[t], (int)row, rest);
      free(x);
    }
    harness_free(&d);
  }
}

/* Columns 0, 1 of 8 are zero, 2, 3 in the first half only; both signs. */
static void zerov_has_zero_columns(void **state) {
  (void)state;
  harness_dataset d;
  generate(&d, "h=1,sk=100,dqk=32,dv=24,dist=zerov");
  for (int32_t j = 0; j < 100; j++)
    for (int32_t c = 0; c < 32; c++) {
      const float x = harness_load(d.kv, d.problem.kv_type, kv_token_offset(&d, 0, j) + c);
      const bool zero = c < 24 && (c % 8 < 2 || (c % 8 < 4 && j < 50));
      if (zero != (x == 0.0f))
        fail_msg("token %d column %d is %g", j, c, (double)x);
      if (zero)
        assert_int_equal(!!signbit(x), c % 2);
    }
  harness_free(&d);
}

static void sinks_are_drawn(void **state) {
  (void)state;
  harness_dataset d;
  double x[128];
  generate(&d, "h=128,sk=10,dqk=4,dv=4,sinks=1");
  for (int i = 0; i < 128; i++)
    x[i] = (double)d.sinks[i];
  const moments m = moments_of(x, 128);
  assert_true(fabs(m.mean) < 0.7 && m.deviation > 1.5 && m.deviation < 2.5);
  assert_true(d.tensors.sinks == d.sinks && d.tensors.sinks_bytes == 128 * sizeof(float));
  harness_free(&d);
}

/* ---- Comparison ---- */

/* The truth as a backend would give it: rounded to the output types. */
static void store_truth(harness_dataset *d, const harness_truth *t) {
  const double unit = d->options.lse_base == AMLA_LSE_BASE2 ? log(2) : 1;
  harness_reset_outputs(d);
  for (int64_t row = 0; row < t->n_rows; row++) {
    for (int32_t c = 0; c < t->d_v; c++)
      harness_store(d->out, d->problem.out_type, out_row_offset(&d->problem, row) + c,
                    (float)t->out[row * t->d_v + c]);
    d->lse[lse_row_offset(d, row)] = (float)(t->lse[row] / unit);
  }
}

typedef struct specimen {
  const char *problem;
  harness_dataset data;
  harness_truth truth;
} specimen;

static specimen specimen_create(const char *problem) {
  specimen s = {.problem = problem};
  generate(&s.data, problem);
  compute_truth_of(&s.data, &s.truth);
  store_truth(&s.data, &s.truth);
  return s;
}

static void specimen_free(specimen *s) {
  harness_truth_free(&s->truth);
  harness_free(&s->data);
}

static const char *const specimens[] = {
    "b=3,sq=2,h=4,sk=90,dqk=24,dv=16,len=90/0/1,out=f32",
    "b=2,sq=3,h=5,sk=60,dqk=24,dv=16,len=60/2,out=bf16,lse=2,pad=2",
    "b=1,h=7,sk=150,dqk=24,dv=24,out=f16,sinks=1,causal=0",
    "b=2,sq=2,h=3,sk=90,dqk=24,dv=16,dist=rising,out=f32"};

static void expect_verdict(specimen *s, bool ok, const char *what) {
  const harness_error e = harness_compare(&s->data, &s->truth);
  if (e.ok != ok)
    fail_msg("'%s': %s is %s (%.3g of the bound)", s->problem, what, e.ok ? "accepted" : "refused",
             e.worst_of_bound);
  if (ok != (e.worst_of_bound <= 1))
    fail_msg("'%s': %s: verdict and worst_of_bound=%g disagree", s->problem, what,
             e.worst_of_bound);
}

static void rounded_truth_is_accepted(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(specimens); i++) {
    specimen s = specimen_create(specimens[i]);
    expect_verdict(&s, true, "the truth");
    const harness_error e = harness_compare(&s.data, &s.truth);
    assert_true(e.rel_error < 0.005 && e.max_abs_error < 0.05 && e.lse_max_abs_error < 1e-4);
    specimen_free(&s);
  }
}

/* One number of the result replaced. */
static void corrupt_out(specimen *s, int64_t row, int32_t column, float value) {
  store_truth(&s->data, &s->truth);
  harness_store(s->data.out, s->data.problem.out_type,
                out_row_offset(&s->data.problem, row) + column, value);
}
static void corrupt_lse(specimen *s, int64_t row, float value) {
  store_truth(&s->data, &s->truth);
  s->data.lse[lse_row_offset(&s->data, row)] = value;
}

static void every_corrupted_element_is_found(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(specimens); i++) {
    specimen s = specimen_create(specimens[i]);
    for (int64_t row = 0; row < s.truth.n_rows; row++)
      for (int32_t c = 0; c < s.truth.d_v; c++) {
        const float right = (float)s.truth.out[row * s.truth.d_v + c];
        const float wrong[] = {right * 2.0f + 1e-3f,       right + 0.06f, NAN, INFINITY, -INFINITY,
                               of_bits(0xa5a5a5a5u) + 1.0f};
        for (int k = 0; k < LENGTH(wrong); k++) {
          corrupt_out(&s, row, c, wrong[k]);
          expect_verdict(&s, false, "one wrong element");
          assert_int_equal(harness_compare(&s.data, &s.truth).worst_row, row);
        }
      }
    specimen_free(&s);
  }
}

static void every_corrupted_lse_is_found(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(specimens); i++) {
    specimen s = specimen_create(specimens[i]);
    for (int64_t row = 0; row < s.truth.n_rows; row++) {
      const float right = lse_at(&s.data, row);
      const bool empty = right == -INFINITY;
      const float near = empty ? -100.0f : right + 1e-3f * fmaxf(1.0f, fabsf(right));
      const float wrong[] = {near, empty ? INFINITY : -INFINITY, NAN, 0.0f};
      for (int k = 0; k < LENGTH(wrong); k++) {
        corrupt_lse(&s, row, wrong[k]);
        expect_verdict(&s, false, "one wrong LSE");
      }
    }
    specimen_free(&s);
  }
}

/* Errors of the kind programs make. */
static void swap_rows(specimen *s) {
  for (int32_t c = 0; c < s->truth.d_v; c++) {
    const float a = out_at(&s->data, 0, c), b = out_at(&s->data, 1, c);
    harness_store(s->data.out, s->data.problem.out_type, out_row_offset(&s->data.problem, 0) + c,
                  b);
    harness_store(s->data.out, s->data.problem.out_type, out_row_offset(&s->data.problem, 1) + c,
                  a);
  }
}
static void zero_a_row(specimen *s) {
  for (int32_t c = 0; c < s->truth.d_v; c++)
    harness_store(s->data.out, s->data.problem.out_type, out_row_offset(&s->data.problem, 0) + c,
                  0.0f);
}
static void leave_a_row(specimen *s) {
  memset((char *)s->data.out, GUARD_PATTERN,
         (size_t)s->truth.d_v * harness_dtype_bytes(s->data.problem.out_type));
}
static void mix_up_lse_base(specimen *s) {
  for (int64_t row = 0; row < s->truth.n_rows; row++)
    s->data.lse[row] *= s->data.options.lse_base == AMLA_LSE_BASE2 ? 0.6931472f : 1.442695f;
}
static void shift_columns(specimen *s) {
  for (int32_t c = 0; c + 1 < s->truth.d_v; c++)
    harness_store(s->data.out, s->data.problem.out_type, out_row_offset(&s->data.problem, 0) + c,
                  (float)s->truth.out[c + 1]);
}
static void lose_one_key(specimen *s) { /* the last one: as a kernel that stops at n - 1 */
  harness_truth other;
  s->data.seqlens_k[0]--;
  compute_truth_of(&s->data, &other);
  s->data.seqlens_k[0]++;
  store_truth(&s->data, &other);
  harness_truth_free(&other);
}
static void ignore_causality(specimen *s) {
  harness_truth other;
  s->data.problem.causal ^= 1;
  if (s->data.problem.s_q == 1)
    s->data.problem.scale *= 1.001f; /* no such error there: another one */
  compute_truth_of(&s->data, &other);
  if (s->data.problem.s_q == 1)
    s->data.problem.scale /= 1.001f;
  s->data.problem.causal ^= 1;
  store_truth(&s->data, &other);
  harness_truth_free(&other);
}

static void errors_that_programs_make_are_found(void **state) {
  (void)state;
  static const struct {
    const char *name;
    void (*corrupt)(specimen *s);
  } rows[] = {{"rows swapped", swap_rows},
              {"a row of zeros", zero_a_row},
              {"a row not written", leave_a_row},
              {"LSE in the other base", mix_up_lse_base},
              {"columns shifted", shift_columns},
              {"one key lost", lose_one_key},
              {"causality ignored", ignore_causality}};
  for (int i = 0; i < LENGTH(specimens); i++)
    for (int k = 0; k < LENGTH(rows); k++) {
      specimen s = specimen_create(specimens[i]);
      rows[k].corrupt(&s);
      expect_verdict(&s, false, rows[k].name);
      specimen_free(&s);
    }
}

/* The bound is tight enough to tell f32 from less: 1e-4 of the row's magnitude is too much, 1e-8 is
 * not. */
static void bound_is_of_the_size_of_f32_rounding(void **state) {
  (void)state;
  specimen s = specimen_create(specimens[0]);
  for (int32_t c = 0; c < s.truth.d_v; c++) {
    const float right = (float)s.truth.out[c], size = (float)s.truth.out_abs[c];
    corrupt_out(&s, 0, c, right + 1e-4f * size);
    expect_verdict(&s, false, "an error of 1e-4");
    corrupt_out(&s, 0, c, right + 1e-8f * size);
    expect_verdict(&s, true, "an error of 1e-8");
  }
  corrupt_lse(&s, 0, (float)s.truth.lse[0] + 1e-3f);
  expect_verdict(&s, false, "an LSE error of 1e-3");
  specimen_free(&s);
}

/* amla.h: a row that sees a poison must show it; one from which causality hides it may; others must
 * not. */
static void poison_must_show_where_it_is_seen(void **state) {
  (void)state;
  specimen s = {.problem = "b=2,sq=3,h=2,sk=40,dqk=12,dv=8,len=40/40"};
  generate(&s.data, s.problem);
  /* Seen by queries 1 and 2 of sequence 0. */
  harness_store(s.data.kv, s.data.problem.kv_type, kv_token_offset(&s.data, 0, 38), NAN);
  compute_truth_of(&s.data, &s.truth);
  for (int64_t row = 0; row < 12; row++)
    assert_int_equal(s.truth.may_poison[row], row < 2);
  store_truth(&s.data, &s.truth);
  expect_verdict(&s, true, "the poisoned truth");
  for (int64_t row = 0; row < 12; row++) {
    const bool sees = row >= 2 && row < 6, hidden = row < 2;
    corrupt_out(&s, row, 3, sees ? 0.5f : NAN);
    if (!hidden)
      expect_verdict(&s, false, sees ? "a finite element of a poisoned row" : "NaN in a clean row");
  }
  store_truth(&s.data, &s.truth);
  for (int32_t c = 0; c < 8; c++)
    harness_store(s.data.out, s.data.problem.out_type, out_row_offset(&s.data.problem, 0) + c, NAN);
  s.data.lse[0] = NAN;
  expect_verdict(&s, true, "a row that may be poisoned");
  specimen_free(&s);
}

/* Where nothing is promised, what is not finite is counted. */
static void what_is_not_judged_is_counted(void **state) {
  (void)state;
  specimen s = {.problem = "b=1,h=2,sk=2,dqk=3,dv=2,q=f32,kv=f32,page=0,causal=0,scale=1"};
  generate(&s.data, s.problem);
  static const float kv[2 * 3] = {1, 2, 0x1p127f, 1, 3, -0x1p127f};
  float *q = s.data.q;
  memcpy(s.data.kv, kv, sizeof kv);
  q[0] = q[1] = q[3] = q[4] = 0.0f;
  q[2] = 1.75f; /* row 0: a score of 2.98e38 */
  q[5] = 0.0f;
  compute_truth_of(&s.data, &s.truth);
  store_truth(&s.data, &s.truth);
  assert_int_equal(harness_compare(&s.data, &s.truth).unjudged, 0);
  expect_verdict(&s, true, "the truth");
  for (int32_t c = 0; c < 2; c++)
    ((float *)s.data.out)[c] = NAN;
  s.data.lse[0] = NAN;
  expect_verdict(&s, true, "a row that may be infinite");
  assert_int_equal(harness_compare(&s.data, &s.truth).unjudged, 2 + 1);
  s.data.tensors.lse = NULL;
  assert_int_equal(harness_compare(&s.data, &s.truth).unjudged, 2);
  corrupt_out(&s, 1, 1, INFINITY);
  expect_verdict(&s, false, "an infinity in another row");
  specimen_free(&s);
}

/* Every element of out off by so many times sum p |v|: inside the bound of the plan, or not. */
static bool passes(specimen *s, const amla_plan_info *info, double off) {
  const harness_truth *t = &s->truth;
  store_truth(&s->data, t);
  for (int64_t row = 0; row < t->n_rows; row++)
    for (int32_t d = 0; d < t->d_v; d++) {
      const double value = t->out[row * t->d_v + d] + off * t->out_abs[row * t->d_v + d];
      harness_store(s->data.out, AMLA_F32, out_row_offset(&s->data.problem, row) + d, (float)value);
    }
  return harness_compare_plan(&s->data, &s->truth, info).ok;
}

static void bound_is_that_of_the_plan(void **state) {
  (void)state;
  static const struct {
    const char *kv;
    amla_p_form p;
    amla_q_form q;
    amla_dtype keys;
    double out, lse; /* what is let through beside the bound of f32 */
  } rows[] = {
      {"bf16", AMLA_P_F32, AMLA_Q_DEFAULT, AMLA_F32, 0, 0},
      {"bf16", AMLA_P_F32, AMLA_Q_DEFAULT, AMLA_BF16, 0, 0},
      {"bf16", AMLA_P_BF16X2, AMLA_Q_DEFAULT, AMLA_BF16, 0x1p-15, 0},
      {"bf16", AMLA_P_BF16, AMLA_Q_BF16X3, AMLA_BF16, 0x1p-7, 0},
      {"bf16", AMLA_P_F32, AMLA_Q_BF16X2, AMLA_BF16, 0x1p-17, 0x1p-17},
      {"f32", AMLA_P_F32, AMLA_Q_DEFAULT, AMLA_BF16, 0x1p-7, 0x1p-8},
      {"f32", AMLA_P_F32, AMLA_Q_DEFAULT, AMLA_F32, 0, 0},
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    char problem[160];
    amla_plan_info info = AMLA_PLAN_INFO_INIT;
    specimen s = {.problem = problem};
    snprintf(problem, sizeof problem,
             "h=3,sk=50,dqk=16,dv=8,page=0,causal=0,out=f32,q=f32,scale=0.25,kv=%s", rows[i].kv);
    info.backend = AMLA_BACKEND_CPU;
    info.p_form = rows[i].p, info.q_form = rows[i].q, info.key_type = rows[i].keys;
    generate(&s.data, s.problem);
    compute_truth_of(&s.data, &s.truth);
    double least = INFINITY, most = 0; /* scale sum |q k| */
    for (int64_t row = 0; row < s.truth.n_rows; row++) {
      least = fmin(least, s.truth.score_abs[row]);
      most = fmax(most, s.truth.score_abs[row]);
    }
    const double p = rows[i].out - rows[i].lse, floor = 80 * 0x1p-24;
    if (!passes(&s, &info, 0.95 * (p + rows[i].lse * least)))
      fail_msg("row %d: what is stated is refused", i);
    if (passes(&s, &info, 1.05 * (p + rows[i].lse * most) + floor + 10 * most * 0x1p-24))
      fail_msg("row %d: more than stated is let through", i);
    store_truth(&s.data, &s.truth);
    s.data.lse[0] += (float)(1.05 * rows[i].lse * most + floor * 4 + 10 * most * 0x1p-24);
    if (harness_compare_plan(&s.data, &s.truth, &info).ok)
      fail_msg("row %d: a wrong LSE is let through", i);
    specimen_free(&s);
  }
}

/* Keys of 1 + 2^-8 and a little, which bf16 rounds up to those of the other token: a weight of
 * exp(-3.9) becomes that of an equal. */
static void a_weight_of_rounded_keys_may_move_by_its_factor(void **state) {
  (void)state;
  amla_plan_info info = AMLA_PLAN_INFO_INIT;
  specimen s = {.problem = "h=1,sk=2,dqk=33,dv=1,page=0,causal=0,out=f32,q=f32,kv=f32,scale=1"};
  info.backend = AMLA_BACKEND_CPU, info.p_form = AMLA_P_F32, info.key_type = AMLA_BF16;
  generate(&s.data, s.problem);
  float *q = s.data.q, *kv = s.data.kv;
  for (int d = 0; d < 33; d++)
    q[d] = d ? 1000.0f / 32 : 0.0f, kv[d] = d ? 1 + 0x1.001p-8f : 1.0f, kv[33 + d] = 1 + 0x1p-7f;
  kv[33] = 0.0f;
  compute_truth_of(&s.data, &s.truth);
  store_truth(&s.data, &s.truth);
  ((float *)s.data.out)[0] = 0.5f;
  s.data.lse[0] = 1007.8125f + 0.6931472f;
  assert_true(harness_compare_plan(&s.data, &s.truth, &info).ok);
  info.key_type = AMLA_F32;
  assert_false(harness_compare_plan(&s.data, &s.truth, &info).ok);
  for (int d = 0; d < 33; d++)
    q[d] *= 100;
  harness_truth_free(&s.truth);
  compute_truth_of(&s.data, &s.truth);
  store_truth(&s.data, &s.truth);
  info.key_type = AMLA_BF16;
  assert_true(harness_compare_plan(&s.data, &s.truth, &info).ok);
  ((float *)s.data.out)[0] = 3.1f; /* V is 1 and 0: no mean of it, whatever the weights */
  assert_false(harness_compare_plan(&s.data, &s.truth, &info).ok);
  specimen_free(&s);
}

/* 3e38 twice: a backend without headroom may return inf for the mean, but not NaN, and one with
 * headroom may not. */
static void infinities_are_accepted_without_headroom_only(void **state) {
  (void)state;
  specimen s = {.problem = "b=1,h=1,sk=2,dqk=1,dv=1,q=f32,kv=f32,page=0,causal=0,scale=1"};
  generate(&s.data, s.problem);
  ((float *)s.data.q)[0] = 0.0f;
  for (int j = 0; j < 2; j++)
    ((float *)s.data.kv)[j] = 3e38f;
  compute_truth_of(&s.data, &s.truth);
  store_truth(&s.data, &s.truth);
  expect_verdict(&s, true, "the truth");
  harness_error e = harness_compare_rounded_p(&s.data, &s.truth, AMLA_BF16);
  assert_true(e.ok && e.unjudged == 0);
  corrupt_out(&s, 0, 0, INFINITY);
  expect_verdict(&s, false, "an infinity");
  e = harness_compare_rounded_p(&s.data, &s.truth, AMLA_BF16);
  assert_true(e.ok && e.unjudged == 1);
  corrupt_out(&s, 0, 0, NAN);
  assert_false(harness_compare_rounded_p(&s.data, &s.truth, AMLA_BF16).ok);
  specimen_free(&s);
}

static void lse_and_rows_without_keys_are_judged(void **state) {
  (void)state;
  specimen s = specimen_create(specimens[0]);
  const int64_t empty = 2 * 4; /* first row of sequence 1, of length 0 */
  assert_true(s.truth.lse[empty] == -INFINITY);
  corrupt_out(&s, empty, 0, 1e-30f);
  expect_verdict(&s, false, "an empty row that is not 0");
  store_truth(&s.data, &s.truth);
  s.data.tensors.lse = NULL;
  expect_verdict(&s, true, "no LSE");
  specimen_free(&s);
}

/* ---- References of a file ---- */

static void references_are_compared_and_checked(void **state) {
  (void)state;
  for (int i = 0; i < LENGTH(specimens); i++) {
    specimen s = specimen_create(specimens[i]);
    assert_int_equal(harness_set_refs(&s.data, &s.truth), 0);
    assert_true(harness_compare_ref(&s.data, &s.truth).ok &&
                harness_check_refs(&s.data, &s.truth).ok);
    float *element = &s.data.out_ref[5];
    const float right = *element;
    *element =
        right == 0.0f ? 1e-3f : of_bits(to_bits(right) ^ 1u << 24); /* one bit of the exponent */
    assert_false(harness_check_refs(&s.data, &s.truth).ok);
    assert_false(harness_compare_ref(&s.data, &s.truth).ok);
    *element = right;
    s.data.lse_ref[0] += 1e-3f * fmaxf(1.0f, fabsf(s.data.lse_ref[0]));
    assert_false(harness_check_refs(&s.data, &s.truth).ok);
    assert_false(harness_compare_ref(&s.data, &s.truth).ok);
    specimen_free(&s);
  }
}

/* ---- Counting ---- */

static void visible_keys_and_flops_are_counted(void **state) {
  (void)state;
  harness_dataset d;
  generate(&d, "b=3,sq=4,h=2,sk=10,dqk=6,dv=5,len=10/2/0,q=f32,kv=f16,out=bf16");
  static const int64_t visible[3][4] = {{7, 8, 9, 10}, {0, 0, 1, 2}, {0, 0, 0, 0}};
  double keys = 0;
  for (int32_t s = 0; s < 3; s++)
    for (int32_t i = 0; i < 4; i++) {
      assert_int_equal(harness_visible(&d.problem, &d.tensors, s, i), visible[s][i]);
      keys += 2.0 * (double)visible[s][i];
    }
  assert_true(fabs(harness_flops(&d) - 2 * keys * 11) < 1e-9);
  assert_true(fabs(harness_kv_bytes(&d) - (12 * 6 * 2 + 24 * (6 * 4 + 5 * 2))) < 1e-9);
  d.problem.causal = 0;
  assert_int_equal(harness_visible(&d.problem, &d.tensors, 1, 0), 2);
  d.tensors.seqlens_k = NULL;
  assert_int_equal(harness_visible(&d.problem, &d.tensors, 2, 0), 10);
  harness_free(&d);
}

static double flops_of(const char *problem) {
  harness_dataset d;
  generate(&d, problem);
  const double flops = harness_flops(&d);
  harness_free(&d);
  return flops;
}

static void keys_of_lists_windows_and_scopes_are_counted(void **state) {
  (void)state;
  static const struct {
    const char *problem;
    double keys;
  } rows[] = {
      {"sq=2,topk=30", 60},
      {"sq=2,topk=30,invalid=100", 30}, /* every second list has none */
      {"sq=2,topk=30,invalid=100,scope2=sk:5", 40},
      {"sq=3,window=4", 12},
      {"len=2,sq=3,window=4", 0 + 1 + 2},
      {"sq=3,window=4,scope2=topk:7/sk:9/page:2", 33},
      {"scope2=sk:9", 49},
      {"b=2,sq=3,ragged=1,len=40/40", 38 + 39 + 40}, /* the second has no query */
  };
  for (int i = 0; i < LENGTH(rows); i++) {
    char problem[256];
    snprintf(problem, sizeof problem, "h=2,sk=40,dqk=6,dv=5,%s", rows[i].problem);
    if (flops_of(problem) != rows[i].keys * 2 * 2 * 11)
      fail_msg("'%s': %g FLOP", problem, flops_of(problem));
  }
}

/* ---- Names ---- */

static const char *some_names(int i) {
  static const char *const names[] = {"", "one", "", "two", "three", NULL};
  return names[i];
}

static const char *one_name(int i) { return i == 0 ? "one" : NULL; }

static void names_are_found_and_listed(void **state) {
  (void)state;
  assert_int_equal(harness_find_name(some_names, "one"), 1);
  assert_int_equal(harness_find_name(some_names, "three"), 4);
  assert_int_equal(harness_find_name(some_names, "thre"), -1);
  assert_int_equal(harness_find_name(some_names, ""), -1);
  assert_string_equal(harness_list_names(some_names, " or ").text, "one, two or three");
  assert_string_equal(harness_list_names(one_name, " or ").text, "one");
  assert_int_equal(harness_find_name(harness_backends, "auto"), -1); /* nobody asks for it */
  assert_int_equal(harness_find_name(harness_dtypes, "q8_0"), AMLA_Q8_0);
  assert_int_equal(harness_find_name(harness_element_dtypes, "q8_0"), -1);
  assert_int_equal(harness_find_name(harness_element_dtypes, "f16"), AMLA_F16);
}

/* ---- Rounds ---- */

static void series_are_summarised(void **state) {
  (void)state;
  double values[] = {9, 1, 5, 3, 7};
  const harness_series least = harness_summarise(values, 5, true);
  assert_true(least.best == 1 && least.median == 5 && least.spread == 4.0 / 5); /* 3 to 7 */
  assert_true(harness_summarise(values, 5, false).best == 9);
  assert_true(harness_summarise(values, 4, true).median == 4);
  const harness_series one = harness_summarise(values, 1, true);
  assert_true(one.best == 1 && one.median == 1 && one.spread == 0);
}

static void count_run(void *context) { ++*(int *)context; }

static void every_round_runs_every_contestant(void **state) {
  (void)state;
  int runs[2] = {0, 0};
  harness_contestant c[] = {{.run = count_run, .context = &runs[0]},
                            {.run = count_run, .context = &runs[1]}};
  harness_rounds r = {.isa = AMLA_ISA_C, .threads = 1, .least = 3};
  assert_true(harness_measure(&r, c, 2));
  assert_int_equal(r.n, 3); /* no time is left for more */
  assert_true(r.peak.best > 0 && r.bandwidth.best == 0);
  for (int i = 0; i < 2; i++) {
    assert_true(runs[i] > 3 * c[i].repetitions); /* and those that found the number */
    assert_true(c[i].repetitions > 0 && c[i].seconds.best <= c[i].seconds.median);
  }
  r.with_reads = true;
  assert_true(harness_measure(&r, NULL, 0));
  assert_true(r.n == 3 && r.peak.best > 0 && r.bandwidth.best > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(defaults_are_documented_ones),
      cmocka_unit_test(strings_round_trip),
      cmocka_unit_test(fields_get_their_values),
      cmocka_unit_test(options_of_a_string_go_before_others),
      cmocka_unit_test(refusals_name_key_value_and_rule),
      cmocka_unit_test(a_type_that_is_none_is_answered_by_the_list),
      cmocka_unit_test(names_are_found_and_listed),
      cmocka_unit_test(series_are_summarised),
      cmocka_unit_test(every_round_runs_every_contestant),
      cmocka_unit_test(elements_load_and_store_as_the_library),
      cmocka_unit_test(random_numbers_have_their_distribution),
      cmocka_unit_test(unused_memory_is_hostile),
      cmocka_unit_test(pages_are_shuffled_and_unused_entries_hostile),
      cmocka_unit_test(a_sequence_does_not_depend_on_its_batch),
      cmocka_unit_test(lengths_are_what_len_says),
      cmocka_unit_test(plain_distributions_have_their_width),
      cmocka_unit_test(rising_logits_rise_by_r),
      cmocka_unit_test(one_late_token_is_an_outlier),
      cmocka_unit_test(one_key_takes_all_in_onehot),
      cmocka_unit_test(zerov_has_zero_columns),
      cmocka_unit_test(sinks_are_drawn),
      cmocka_unit_test(rounded_truth_is_accepted),
      cmocka_unit_test(every_corrupted_element_is_found),
      cmocka_unit_test(every_corrupted_lse_is_found),
      cmocka_unit_test(errors_that_programs_make_are_found),
      cmocka_unit_test(bound_is_of_the_size_of_f32_rounding),
      cmocka_unit_test(poison_must_show_where_it_is_seen),
      cmocka_unit_test(what_is_not_judged_is_counted),
      cmocka_unit_test(bound_is_that_of_the_plan),
      cmocka_unit_test(a_weight_of_rounded_keys_may_move_by_its_factor),
      cmocka_unit_test(infinities_are_accepted_without_headroom_only),
      cmocka_unit_test(lse_and_rows_without_keys_are_judged),
      cmocka_unit_test(references_are_compared_and_checked),
      cmocka_unit_test(visible_keys_and_flops_are_counted),
      cmocka_unit_test(keys_of_lists_windows_and_scopes_are_counted),
      cmocka_unit_test(lists_are_hostile),
      cmocka_unit_test(what_is_seen_decides_the_verdict),
  };
  return cmocka_run_group_tests_name("harness", tests, NULL, NULL);
}
