/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem strings: parse, check, print. A key is a row of a table; what depends on several keys
 * (strides, pages, the list of lengths) is derived once all are known, so the order of keys does
 * not matter.
 */
#include "problem_string.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kv_rows.h"
#include "message.h"
#include "names.h"
#include "scopes.h"

enum {
  MAX_KEY = 16,     /* characters */
  MAX_VALUE = 4096, /* characters */
  SPARE_PAGES = 3   /* that no sequence uses */
};

/* ---- Numbers and names ---- */

size_t harness_dtype_bytes(amla_dtype type) {
  int32_t bytes;
  return amla_dtype_block(type, &bytes) == 1 && bytes > 1 ? (size_t)bytes : 0;
}

int64_t harness_bytes(amla_dtype type, int64_t n) {
  int32_t bytes;
  const int32_t elems = amla_dtype_block(type, &bytes);
  return (n + elems - 1) / elems * bytes;
}

/* Strict: digits with an optional minus, nothing before or after. */
static bool parse_integer(const char *text, int64_t *value) {
  char *end;
  const char first = text[*text == '-'];
  if (first < '0' || first > '9')
    return false;
  errno = 0;
  const long long parsed = strtoll(text, &end, 10);
  *value = parsed;
  return *end == '\0' && errno == 0;
}

static bool parse_real(const char *text, double *value) {
  char *end;
  if (strspn(text, "0123456789+-.eE") != strlen(text) || *text == '+')
    return false;
  *value = strtod(text, &end);
  return end != text && *end == '\0' && isfinite(*value);
}

/* The shortest decimal form that reads back as the same number. */
static void format_real(char text[32], double value, bool is_float) {
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(text, 32, "%.*g", digits, value);
    const double back = strtod(text, NULL);
    if (is_float ? (float)back == (float)value : back == value)
      return;
  }
}

/* ---- Values that are not plain integers ---- */

typedef struct dist_row {
  const char *name;
  double width; /* default; 0 = takes none */
} dist_row;

static const dist_row dists[] = {
    [HARNESS_NORMAL] = {"normal", 1},   [HARNESS_UNIFORM] = {"uniform", 1},
    [HARNESS_RISING] = {"rising", 200}, [HARNESS_OUTLIER] = {"outlier", 60},
    [HARNESS_ONEHOT] = {"onehot", 0},   [HARNESS_PEAKED] = {"peaked", 10},
    [HARNESS_ZEROV] = {"zerov", 0},     [HARNESS_MASKED] = {"masked", 0},
};

static int parse_dist(harness_case *c, const char *value, message error) {
  const size_t name_length = strcspn(value, ":");
  for (size_t i = 0; i < sizeof dists / sizeof *dists; i++) {
    if (strlen(dists[i].name) != name_length || strncmp(value, dists[i].name, name_length) != 0)
      continue;
    c->dist = (harness_dist)i;
    c->dist_width = dists[i].width;
    if (value[name_length] == '\0')
      return 0;
    if (dists[i].width <= 0)
      return refuse(error, "dist=%s: %s takes no width", value, dists[i].name);
    if (!parse_real(value + name_length + 1, &c->dist_width) || !(c->dist_width > 0) ||
        c->dist_width > 1e4)
      return refuse(error, "dist=%s: the width must be a number in (0, 10000]", value);
    return 0;
  }
  return refuse(error,
                "dist=%s: must be normal:S, uniform:A, rising:R, outlier:R, onehot, peaked:S, "
                "zerov or masked",
                value);
}

static int parse_len_list(harness_case *c, const char *value, message error) {
  char item[16];
  int32_t count = 0;
  for (const char *at = value;; at++) {
    const size_t length = strcspn(at, "/");
    int64_t parsed;
    snprintf(item, sizeof item, "%.*s", (int)(length < sizeof item ? length : sizeof item - 1), at);
    if (length >= sizeof item || !parse_integer(item, &parsed) || parsed < 0 || parsed > INT32_MAX)
      return refuse(error, "len=%s: must be fixed, uniform, ragged, or lengths such as 3/0/1000",
                    value);
    if (count == HARNESS_MAX_LEN_LIST)
      return refuse(error, "len: at most %d lengths can be listed", HARNESS_MAX_LEN_LIST);
    c->len_list[count++] = (int32_t)parsed;
    at += length;
    if (*at == '\0')
      break;
  }
  c->len = HARNESS_LEN_LIST;
  for (int32_t i = count; i < HARNESS_MAX_LEN_LIST; i++)
    c->len_list[i] = -1; /* marks the end until b is known */
  return 0;
}

static const char *const len_names[] = {[HARNESS_LEN_FIXED] = "fixed",
                                        [HARNESS_LEN_UNIFORM] = "uniform",
                                        [HARNESS_LEN_RAGGED] = "ragged"};

static int parse_len(harness_case *c, const char *value, message error) {
  for (size_t i = 0; i < sizeof len_names / sizeof *len_names; i++)
    if (strcmp(value, len_names[i]) == 0) {
      c->len = (harness_len)i;
      return 0;
    }
  return parse_len_list(c, value, error);
}

/* ---- Which keys a query sees ---- */

static const char *const index_names[] = {"slot", "position", NULL};
static const char *const topklen_names[] = {"none", "sequence", "query", NULL};

/* Its place in the list, -1 if it is none of it. */
static int find_name(const char *const *names, const char *value) {
  for (int i = 0; names[i] != NULL; i++)
    if (strcmp(names[i], value) == 0)
      return i;
  return -1;
}

static int parse_index(harness_case *c, const char *value, message error) {
  const int found = find_name(index_names, value);
  if (found < 0)
    return refuse(error, "index=%s: must be slot or position", value);
  c->problem.index_kind = (amla_index_kind)found;
  return 0;
}

static int parse_topklen(harness_case *c, const char *value, message error) {
  const int found = find_name(topklen_names, value);
  if (found < 0)
    return refuse(error, "topklen=%s: must be none, sequence or query", value);
  c->topklen = (harness_topklen)found;
  return 0;
}

/* A field of scope2, "sk:4096". */
static bool parse_scope2_field(amla_problem *p, const char *item) {
  const struct {
    const char *name;
    int32_t *field, min;
  } fields[] = {
      {"topk:", &p->extra_topk, 0}, {"sk:", &p->extra_sk, 1}, {"page:", &p->extra_page_size, 0}};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    const size_t length = strlen(fields[i].name);
    int64_t value;
    if (strncmp(item, fields[i].name, length) != 0)
      continue;
    if (!parse_integer(item + length, &value) || value < fields[i].min || value > INT32_MAX)
      return false;
    *fields[i].field = (int32_t)value;
    return true;
  }
  return false;
}

static int parse_scope2(harness_case *c, const char *value, message error) {
  amla_problem *p = &c->problem;
  char item[24];
  if (strcmp(value, "none") == 0)
    return 0;
  p->extra_sk = 4096, p->extra_page_size = 64;
  for (const char *at = value;; at++) {
    const size_t length = strcspn(at, "/");
    snprintf(item, sizeof item, "%.*s", (int)(length < sizeof item ? length : sizeof item - 1), at);
    if (length >= sizeof item || !parse_scope2_field(p, item))
      return refuse(error, "scope2=%s: must be none, or sizes such as topk:512/sk:4096/page:64",
                    value);
    at += length;
    if (*at == '\0')
      return 0;
  }
}

static int parse_scale(harness_case *c, const char *value, message error) {
  double scale;
  if (!parse_real(value, &scale) || !isfinite((float)scale) || (float)scale == 0.0f)
    return refuse(error, "scale=%s: must be a finite number other than 0", value);
  c->problem.scale = (float)scale;
  return 0;
}

static int parse_lse(harness_case *c, const char *value, message error) {
  if (strcmp(value, "e") != 0 && strcmp(value, "2") != 0)
    return refuse(error, "lse=%s: must be e or 2", value);
  c->options.lse_base = *value == 'e' ? AMLA_LSE_NATURAL : AMLA_LSE_BASE2;
  return 0;
}

static int parse_seed(harness_case *c, const char *value, message error) {
  char *end;
  errno = 0;
  c->seed = strtoull(value, &end, 10);
  if (*value < '0' || *value > '9' || *end != '\0' || errno != 0)
    return refuse(error, "seed=%s: must be an integer in [0, 2^64)", value);
  return 0;
}

static int parse_type(harness_names types, amla_dtype *type, const char *key, const char *value,
                      message error) {
  const int found = harness_find_name(types, value);
  if (found < 0)
    return refuse(error, "%s=%s: must be %s", key, value, harness_list_names(types, " or ").text);
  *type = (amla_dtype)found;
  return 0;
}
static int parse_q(harness_case *c, const char *value, message error) {
  return parse_type(harness_element_dtypes, &c->problem.q_type, "q", value, error);
}
static int parse_kv(harness_case *c, const char *value, message error) {
  return parse_type(harness_dtypes, &c->problem.kv_type, "kv", value, error);
}
static int parse_out(harness_case *c, const char *value, message error) {
  return parse_type(harness_element_dtypes, &c->problem.out_type, "out", value, error);
}

/* ---- The table of keys ---- */

typedef struct key_row {
  const char *name;
  /* NULL: an int32 at offset, in [min, max]. */
  int (*parse)(harness_case *c, const char *value, message error);
  size_t offset;
  int32_t min, max;
  const char *values; /* as harness_problem_key's, NULL: those of types */
  harness_names types;
  const char *meaning;
} key_row;

#define INTEGER(name, field, min, max, meaning)                                                    \
  {name, NULL, offsetof(harness_case, field), min, max, "", NULL, meaning}
#define SWITCH(name, field, meaning)                                                               \
  {name, NULL, offsetof(harness_case, field), 0, 1, "0, 1", NULL, meaning}
#define WORDS(name, parse, values, meaning) {name, parse, 0, 0, 0, values, NULL, meaning}
#define TYPE(name, parse, types, meaning) {name, parse, 0, 0, 0, NULL, types, meaning}

static const key_row keys[] = {
    INTEGER("b", problem.b, 0, INT32_MAX, "sequences"),
    INTEGER("sq", problem.s_q, 1, INT32_MAX, "queries of a sequence"),
    INTEGER("h", problem.h_q, 1, INT32_MAX, "heads"),
    INTEGER("sk", problem.sk, 1, INT32_MAX, "tokens of the longest sequence"),
    INTEGER("dqk", problem.d_qk, 1, INT32_MAX, "width of a row of q and of the cache"),
    INTEGER("dv", problem.d_v, 1, INT32_MAX, "its first columns that are the value"),
    INTEGER("page", problem.page_size, 0, INT32_MAX, "tokens of a page; 0: contiguous"),
    TYPE("q", parse_q, harness_element_dtypes, "type of q"),
    TYPE("kv", parse_kv, harness_dtypes, "type of the cache"),
    TYPE("out", parse_out, harness_element_dtypes, "type of the result"),
    SWITCH("causal", problem.causal, "causality; 0 by itself with topk or visible"),
    WORDS("scale", parse_scale, "", "of scores; the default is DeepSeek-V3's"),
    WORDS("lse", parse_lse, "e, 2", "base of the LSE"),
    SWITCH("sinks", sinks, "attention sinks, drawn from N(0, 2)"),
    INTEGER("pad", pad, 0, 1 << 20, "elements more in every stride, filled with NaN"),
    SWITCH("mask", mask, "an additive mask: hidden tiles, hidden keys, finite values"),
    INTEGER("topk", problem.topk, 0, INT32_MAX, "entries of a query's list; 0: no lists"),
    WORDS("index", parse_index, "slot, position", "what entries are"),
    WORDS("topklen", parse_topklen, "none, sequence, query",
          "what has a topk_length of its own, drawn from 0 to topk"),
    INTEGER("invalid", invalid, 0, 100, "per cent of entries that are negative"),
    INTEGER("window", problem.window, 0, INT32_MAX, "a query's last keys; 0: all"),
    WORDS("scope2", parse_scope2, "none, topk:512/sk:4096/page:64",
          "a second cache under the same softmax; topk:0: dense"),
    SWITCH("visible", visible, "each query has a length of its own"),
    SWITCH("ragged", ragged, "sequences have different numbers of queries, sq at most"),
    SWITCH("csr", csr, "page lists by kv_indptr, not a block table"),
    SWITCH("lsesink", options.lse_sink, "LSE with the sink"),
    INTEGER("qrope", problem.q_d_rope, 0, INT32_MAX, "q's last columns, which lie apart"),
    INTEGER("kvrope", problem.kv_d_rope, 0, INT32_MAX, "the cache's last columns, likewise"),
    WORDS("dist", parse_dist,
          "normal:1, uniform:1, rising:200, outlier:60, onehot, peaked:10, zerov, masked",
          "what numbers are drawn from, and its width"),
    WORDS("len", parse_len, "fixed, uniform, ragged", "lengths; or a list such as 3/0/1000"),
    WORDS("seed", parse_seed, "", "of the generator"),
};
enum { N_KEYS = sizeof keys / sizeof *keys };

static int parse_int32(const key_row *key, harness_case *c, const char *value, message error) {
  int64_t parsed;
  if (!parse_integer(value, &parsed))
    return refuse(error, "%s=%s: must be an integer", key->name, value);
  if (parsed < key->min)
    return refuse(error, "%s=%s: must be >= %d", key->name, value, key->min);
  if (parsed > key->max)
    return refuse(error, "%s=%s: must be <= %d", key->name, value, key->max);
  memcpy((char *)c + key->offset, &(int32_t){(int32_t)parsed}, sizeof(int32_t));
  return 0;
}

/* One "key=value" of the given length. Bit i of *seen: key i has been given. */
static int parse_item(const char *item, size_t length, harness_case *c, uint32_t *seen,
                      message error) {
  char name[MAX_KEY], value[MAX_VALUE];
  const char *equals = memchr(item, '=', length);
  if (equals == NULL)
    return refuse(error, "'%.*s': must be key=value", (int)(length < 64 ? length : 64), item);
  const size_t name_length = (size_t)(equals - item), value_length = length - name_length - 1;
  const int shown = (int)(name_length < 64 ? name_length : 64);
  if (name_length >= sizeof name)
    return refuse(error, "%.*s: unknown key", shown, item);
  if (value_length >= sizeof value)
    return refuse(error, "%.*s: the value is too long", shown, item);
  memcpy(name, item, name_length);
  memcpy(value, equals + 1, value_length);
  name[name_length] = value[value_length] = '\0';

  for (uint32_t i = 0; i < N_KEYS; i++) {
    if (strcmp(name, keys[i].name) != 0)
      continue;
    if (*seen & 1u << i)
      return refuse(error, "%s: given twice", name);
    *seen |= 1u << i;
    return keys[i].parse ? keys[i].parse(c, value, error) : parse_int32(&keys[i], c, value, error);
  }
  return refuse(error, "%s: unknown key", name);
}

/* ---- What follows from several keys ---- */

static int check_len_list(harness_case *c, bool b_given, message error) {
  int32_t count = 0;
  if (c->len != HARNESS_LEN_LIST)
    return 0;
  for (; count < HARNESS_MAX_LEN_LIST && c->len_list[count] >= 0; count++)
    if (c->len_list[count] > c->problem.sk)
      return refuse(error, "len: %d is longer than sk=%d", c->len_list[count], c->problem.sk);
  for (int32_t i = count; i < HARNESS_MAX_LEN_LIST; i++)
    c->len_list[i] = 0;
  if (!b_given)
    c->problem.b = count;
  return count == c->problem.b
             ? 0
             : refuse(error, "len: lists %d lengths, b=%d needs as many", count, c->problem.b);
}

/* Of a scope, whose keys are named `page` and `sk`. */
static int derive_pages(amla_problem *p, const char *page, const char *sk, message error) {
  if (p->page_size == 0)
    return 0;
  const int64_t pages = (p->sk - 1) / p->page_size + 1; /* per sequence */
  if (pages >= INT32_MAX)
    return refuse(error, "%s%d: %s%d needs more than 2^31 - 2 pages", page, p->page_size, sk,
                  p->sk);
  p->max_pages = (int32_t)pages + 1;
  p->n_pages = p->b * pages + SPARE_PAGES; /* < 2^62 */
  if (p->n_pages > INT32_MAX)
    return refuse(error, "%s%d: b=%d, %s%d need more than 2^31 - 1 pages", page, p->page_size, p->b,
                  sk, p->sk);
  return 0;
}

/* Strides of [b][s_q][h_q][d], each with pad elements behind it, but for that between ragged
 * sequences, which means nothing; false when a size leaves int64. */
static bool derive_strides(const harness_case *c, int32_t d, int64_t *head, int64_t *query,
                           int64_t *batch) {
  const amla_problem *p = &c->problem;
  int64_t all;
  *head = (int64_t)d + c->pad;
  *query = *head;
  if (!multiply_add(query, p->h_q, c->pad))
    return false;
  *batch = *query;
  if (!multiply_add(batch, p->s_q, c->ragged ? 0 : c->pad))
    return false;
  all = *batch;
  /* In bytes, the largest type and some. */
  return multiply_add(&all, p->b, 0) && multiply_add(&all, 8, 0);
}

/* Dimensions that the type of kv asks for, and its scales: no key sets them. */
static int derive_fp8(harness_case *c, message error) {
  amla_problem *p = &c->problem;
  const int32_t d_qk = harness_record_d_qk(p->kv_type);
  if (!harness_is_fp8(p->kv_type))
    return 0;
  if (p->kv_type == AMLA_FP8_E4M3)
    p->kv_scale = 0.0175f, p->kv_rope_scale = 0.03125f;
  else if (p->kv_d_rope > 0)
    return refuse(error, "kvrope=%d: must be 0 for kv=%s, whose records have it", p->kv_d_rope,
                  amla_dtype_name(p->kv_type));
  else if (p->d_qk != d_qk || p->d_v != 512)
    return refuse(error, "kv=%s: dqk=%d must be %d, dv=%d must be 512", amla_dtype_name(p->kv_type),
                  p->d_qk, d_qk, p->d_v);
  return 0;
}

/* Strides of a cache of rows of d elements; false when its size leaves int64. */
static bool derive_cache(const amla_problem *p, int32_t d, int32_t pad, int64_t *stride_page,
                         int64_t *stride_token) {
  int64_t all = p->page_size ? p->n_pages : p->b;
  *stride_token = harness_row_elems(p->kv_type, d);
  if (p->kv_type != AMLA_FP8_584) /* its pages alone have room for more */
    *stride_token += pad;
  *stride_page = p->kv_type == AMLA_FP8_584 ? 584 : *stride_token;
  return multiply_add(stride_page, p->page_size ? p->page_size : p->sk, pad) &&
         multiply_add(&all, *stride_page, 0) && multiply_add(&all, 8, 0);
}

/* Strides of its lists and caches. */
static int derive_scope(amla_problem *p, const harness_case *c, const char *name, message error) {
  int64_t slots = p->page_size ? p->n_pages * p->page_size : (int64_t)p->b * p->sk;
  int64_t lists = p->b;
  p->indices_stride_query = p->topk > 0 ? (int64_t)p->topk + c->pad : 0;
  p->indices_stride_batch = p->indices_stride_query;
  if (p->topk > 0 && slots > INT32_MAX)
    return refuse(error, "%s: a list needs fewer than 2^31 slots, the cache has %" PRId64, name,
                  slots);
  if (!multiply_add(&p->indices_stride_batch, p->s_q, c->ragged || p->topk == 0 ? 0 : c->pad) ||
      !multiply_add(&lists, p->indices_stride_batch, 0) || !multiply_add(&lists, 8, 0))
    return refuse(error, "%s: the size of indices leaves int64", name);
  if (!derive_cache(p, p->d_qk - p->kv_d_rope, c->pad, &p->kv_stride_page, &p->kv_stride_token) ||
      (p->kv_d_rope > 0 &&
       !derive_cache(p, p->kv_d_rope, c->pad, &p->kv_rope_stride_page, &p->kv_rope_stride_token)))
    return refuse(error, "%s: the size of kv leaves int64: b=%d, sk=%d, page=%d, dqk=%d", name,
                  p->b, p->sk, p->page_size, p->d_qk);
  return 0;
}

static int derive_scopes(harness_case *c, message error) {
  amla_problem *p = &c->problem;
  if (derive_scope(p, c, "topk", error) != 0)
    return -1;
  if (!harness_has_second_scope(p))
    return 0;
  amla_problem second = harness_second_problem(p);
  if (derive_pages(&second, "scope2=page:", "sk:", error) != 0 ||
      derive_scope(&second, c, "scope2", error) != 0)
    return -1;
  p->extra_max_pages = second.max_pages, p->extra_n_pages = second.n_pages;
  p->extra_kv_stride_page = second.kv_stride_page;
  p->extra_kv_stride_token = second.kv_stride_token;
  p->extra_indices_stride_batch = second.indices_stride_batch;
  p->extra_indices_stride_query = second.indices_stride_query;
  return 0;
}

/* Rules of keys that say which keys are seen, as amla.h has them. */
static int check_seen(harness_case *c, message error) {
  amla_problem *p = &c->problem;
  const bool second = harness_has_second_scope(p), lists = p->topk > 0 || p->extra_topk > 0;
  const bool dense = p->topk == 0 || (second && p->extra_topk == 0);
  if (p->causal < 0)
    p->causal = p->topk == 0 && !c->visible;
  p->topk_length_per_query = c->topklen == HARNESS_TOPKLEN_QUERY;
  const struct {
    bool broken;
    const char *key;
    int32_t value;
    const char *rule;
  } rules[] = {
      {p->causal && p->topk > 0, "causal", 1, "must be 0 with topk, where the list says it"},
      {p->causal && c->visible, "causal", 1, "must be 0 with visible=1"},
      {c->visible && !dense, "visible", 1, "needs a scope without a list"},
      {p->window > 0 && p->topk > 0, "window", p->window, "must be 0 with topk"},
      {p->window > 0 && !p->causal && !c->visible, "window", p->window,
       "needs causal=1 or visible=1"},
      {c->invalid > 0 && !lists, "invalid", c->invalid, "needs topk or scope2=topk"},
      {c->mask && harness_has_lines(p), "mask", 1, "must be 0 with topk, window or scope2"},
      {c->mask && c->ragged, "mask", 1, "must be 0 with ragged=1"},
      {c->csr && p->page_size == 0, "csr", 1, "needs pages, page=0 has none"},
      {c->csr && harness_has_slots(p), "csr", 1, "must be 0 with topk and index=slot"},
      {p->q_d_rope >= p->d_qk, "qrope", p->q_d_rope, "must be < dqk"},
      {p->kv_d_rope >= p->d_qk, "kvrope", p->kv_d_rope, "must be < dqk"},
      {p->kv_d_rope > 0 && second, "kvrope", p->kv_d_rope, "must be 0 with scope2"}};
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
    if (rules[i].broken)
      return refuse(error, "%s=%d: %s", rules[i].key, rules[i].value, rules[i].rule);
  if (c->topklen != HARNESS_TOPKLEN_NONE && !lists)
    return refuse(error, "topklen=%s: needs topk or scope2=topk", topklen_names[c->topklen]);
  if (p->index_kind != AMLA_INDEX_SLOT && !lists)
    return refuse(error, "index=position: needs topk or scope2=topk");
  return 0;
}

static int derive(harness_case *c, bool b_given, message error) {
  amla_problem *p = &c->problem;
  if (p->d_v > p->d_qk)
    return refuse(error, "dv=%d: must be <= dqk=%d", p->d_v, p->d_qk);
  if (check_len_list(c, b_given, error) != 0 || check_seen(c, error) != 0 ||
      derive_pages(p, "page=", "sk=", error) != 0)
    return -1;
  if (!derive_strides(c, p->d_qk - p->q_d_rope, &p->q_stride_head, &p->q_stride_query,
                      &p->q_stride_batch) ||
      (p->q_d_rope > 0 && !derive_strides(c, p->q_d_rope, &p->q_rope_stride_head,
                                          &p->q_rope_stride_query, &p->q_rope_stride_batch)) ||
      !derive_strides(c, p->d_v, &p->out_stride_head, &p->out_stride_query, &p->out_stride_batch))
    return refuse(error, "b=%d, sq=%d, h=%d, dqk=%d: the size of q leaves int64", p->b, p->s_q,
                  p->h_q, p->d_qk);
  int32_t bytes;
  const int32_t elems = amla_dtype_block(p->kv_type, &bytes);
  if (p->d_qk % elems != 0 || c->pad % elems != 0 || p->kv_d_rope % elems != 0)
    return refuse(error, "kv=%s: dqk=%d, pad=%d and kvrope=%d must be multiples of %d",
                  amla_dtype_name(p->kv_type), p->d_qk, c->pad, p->kv_d_rope, elems);
  if (derive_fp8(c, error) != 0)
    return -1;
  p->mask_stride_query = (int64_t)p->sk + c->pad;
  p->mask_stride_batch = p->mask_stride_query;
  int64_t mask = p->b;
  if (!multiply_add(&p->mask_stride_batch, p->s_q, c->pad) ||
      !multiply_add(&mask, p->mask_stride_batch, 0) || !multiply_add(&mask, 8, 0))
    return refuse(error, "b=%d, sq=%d, sk=%d: the size of the mask leaves int64", p->b, p->s_q,
                  p->sk);
  return derive_scopes(c, error);
}

/* ---- Interface ---- */

bool harness_describe_key(int i, harness_problem_key *out) {
  if (i < 0 || i >= N_KEYS)
    return false;
  const key_row *key = &keys[i];
  out->name = key->name, out->meaning = key->meaning;
  snprintf(out->values, sizeof out->values, "%s",
           key->types ? harness_list_names(key->types, ", ").text : key->values);
  return true;
}

static harness_case default_case(void) {
  harness_case c = {.options = AMLA_OPTIONS_INIT,
                    .dist = HARNESS_NORMAL,
                    .dist_width = 1,
                    .len = HARNESS_LEN_FIXED,
                    .seed = 7};
  c.problem = (amla_problem)AMLA_PROBLEM_INIT;
  c.problem.sk = 4096;
  c.problem.page_size = 64;
  c.problem.out_type = AMLA_F32;
  c.problem.causal = -1; /* until topk and visible are known */
  c.problem.scale = 0.1352f;
  return c;
}

int harness_parse_problem(const char *text, harness_case *out, char *error_text,
                          size_t error_bytes) {
  const message error = {error_text, error_bytes};
  harness_case c = default_case();
  uint32_t seen = 0; /* bit 0 is b, the first row of keys */
  if (strcmp(text, "default") == 0)
    text = "";
  for (const char *at = text; *text != '\0'; at++) {
    const size_t length = strcspn(at, ",");
    if (parse_item(at, length, &c, &seen, error) != 0)
      return -1;
    at += length;
    if (*at == '\0')
      break;
  }
  if (derive(&c, seen & 1u, error) != 0)
    return -1;
  *out = c;
  return 0;
}

void harness_take_options(amla_options *to, const amla_options *said) {
  to->lse_base = said->lse_base;
  to->lse_sink = said->lse_sink;
}

static void format_len(const harness_case *c, char *text, size_t text_bytes) {
  size_t used = 0;
  if (c->len != HARNESS_LEN_LIST) {
    snprintf(text, text_bytes, "%s", len_names[c->len]);
    return;
  }
  for (int32_t i = 0; i < c->problem.b; i++)
    used += (size_t)snprintf(text + used, text_bytes - used, i ? "/%d" : "%d", c->len_list[i]);
}

static void format_dist(const harness_case *c, char *text, size_t text_bytes) {
  char width[32] = "";
  if (dists[c->dist].width > 0)
    format_real(width, c->dist_width, false);
  snprintf(text, text_bytes, "%s%s%s", dists[c->dist].name, *width ? ":" : "", width);
}

static void format_scope2(const amla_problem *p, char *text, size_t text_bytes) {
  if (harness_has_second_scope(p))
    snprintf(text, text_bytes, "topk:%d/sk:%d/page:%d", p->extra_topk, p->extra_sk,
             p->extra_page_size);
  else
    snprintf(text, text_bytes, "none");
}

int harness_format_problem(const harness_case *c, char *text, size_t text_bytes) {
  const amla_problem *p = &c->problem;
  char scale[32] = "", dist[64], len[HARNESS_MAX_LEN_LIST * 12] = "", scope2[64];
  format_real(scale, (double)p->scale, true);
  format_dist(c, dist, sizeof dist);
  format_len(c, len, sizeof len);
  format_scope2(p, scope2, sizeof scope2);
  return snprintf(
      text, text_bytes,
      "b=%d,sq=%d,h=%d,sk=%d,dqk=%d,dv=%d,page=%d,q=%s,kv=%s,out=%s,causal=%d,scale=%s,lse=%s,"
      "sinks=%d,mask=%d,pad=%d,topk=%d,index=%s,topklen=%s,invalid=%d,window=%d,scope2=%s,"
      "visible=%d,ragged=%d,csr=%d,lsesink=%d,qrope=%d,kvrope=%d,"
      "dist=%s,len=%s,seed=%" PRIu64,
      p->b, p->s_q, p->h_q, p->sk, p->d_qk, p->d_v, p->page_size, amla_dtype_name(p->q_type),
      amla_dtype_name(p->kv_type), amla_dtype_name(p->out_type), p->causal, scale,
      c->options.lse_base == AMLA_LSE_NATURAL ? "e" : "2", c->sinks, c->mask, c->pad, p->topk,
      index_names[p->index_kind], topklen_names[c->topklen], c->invalid, p->window, scope2,
      c->visible, c->ragged, c->csr, c->options.lse_sink, p->q_d_rope, p->kv_d_rope, dist, len,
      c->seed);
}
