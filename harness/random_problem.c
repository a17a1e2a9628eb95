/* SPDX-License-Identifier: Apache-2.0
 *
 * Random problem strings. One draw a statement: C does not say in which order arguments are
 * evaluated.
 */
#include "random_problem.h"

#include <amla/amla.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "dataset.h"

enum { N_FLOAT_TYPES = AMLA_F16 + 1 };
#define PICK(state, list) list[below(state, (int)(sizeof(list) / sizeof *(list)))]

static const double budget = 1.5e7; /* elements of q k^T times d_qk */

/* In [0, n). */
static int below(uint64_t *state, int n) { return (int)(harness_random(state) % (uint64_t)n); }

int harness_random_size(uint64_t *state, int most) {
  return (int)exp(harness_random_uniform(state) * log(most + 0.99));
}

/* Elements of a row or of its first part: half of them whole units, where kernels' vectors, lines
 * and scales begin and end. */
static int random_width(uint64_t *state, int most, int unit) {
  const int any = harness_random_size(state, most), whole = (any + unit - 1) / unit * unit;
  return below(state, 2) && whole <= most ? whole : any;
}

/* Of q, out and kv. */
static const char *float_type(uint64_t *state) {
  return amla_dtype_name((amla_dtype)below(state, N_FLOAT_TYPES));
}

/* Records have dimensions of their own. */
static void fit_record(amla_dtype type, int *d_qk, int *d_v) {
  if (type != AMLA_FP8_656 && type != AMLA_FP8_584)
    return;
  *d_qk = type == AMLA_FP8_656 ? 576 : 512;
  *d_v = 512;
}

static bool is_record(const char *kv) {
  return strcmp(kv, amla_dtype_name(AMLA_FP8_656)) == 0 ||
         strcmp(kv, amla_dtype_name(AMLA_FP8_584)) == 0;
}

/* A type for kv only, if whole blocks fit into d_qk. Its elements per block in *elems, else 1. */
static const char *kv_type(uint64_t *state, int *d_qk, int *d_v, int32_t *elems) {
  int n = N_FLOAT_TYPES;
  int32_t bytes;
  while (amla_dtype_name((amla_dtype)n) != NULL)
    n++;
  const bool other = below(state, 3) == 0;
  const amla_dtype type = (amla_dtype)(N_FLOAT_TYPES + below(state, n - N_FLOAT_TYPES));
  *elems = amla_dtype_block(type, &bytes);
  if (other && *d_qk % *elems == 0) {
    fit_record(type, d_qk, d_v);
    return amla_dtype_name(type);
  }
  *elems = 1;
  return float_type(state);
}

/* A first scope: without a list, or with one. */
static const char *const dense[] = {"causal=0", "causal=1", "causal=1", "visible=1"};
static const char *const masked[] = {"causal=0,mask=1", "causal=1,mask=1"};
static const char *const windows[] = {"causal=1", "visible=1"};
static const char *const lengths[] = {"none", "none", "sequence", "query"};
static const int invalid[] = {0, 0, 10, 60, 100};

__attribute__((format(printf, 2, 3))) static void append(char *text, const char *format, ...) {
  const size_t used = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + used, HARNESS_RANDOM_SEEN - used, format, arguments);
  va_end(arguments);
}

/* Elements that lie apart, whole blocks. */
static int rope(uint64_t *state, int d_qk, int elems) {
  return below(state, (d_qk - 1) / elems + 1) * elems;
}

void harness_random_seen(uint64_t *state, int sk, int page, int d_qk, int elems,
                         char text[HARNESS_RANDOM_SEEN]) {
  enum { DENSE = 4, LIST = 6, WINDOW = 7, MASK }; /* the kinds before each, of 9 */
  const int kind = below(state, 9), most = sk + sk / 2 + 1;
  const bool list = kind >= DENSE && kind < LIST, mask = kind == MASK;
  const bool second = !mask && below(state, 3) == 0, ragged = !mask && below(state, 4) == 0;
  bool lists = list, slots = list;
  *text = '\0';
  if (list)
    append(text, ",topk=%d", harness_random_size(state, most));
  else if (kind == WINDOW || kind == LIST)
    append(text, ",%s,window=%d", PICK(state, windows), harness_random_size(state, most));
  else
    append(text, ",%s", mask ? PICK(state, masked) : PICK(state, dense));
  if (second) {
    const int topk = below(state, 2) * harness_random_size(state, most);
    const int size = harness_random_size(state, most);
    append(text, ",scope2=topk:%d/sk:%d/page:%d", topk, size, below(state, 3) * page / 2);
    lists = lists || topk > 0;
  }
  if (lists && below(state, 2)) {
    append(text, ",index=position");
    slots = false;
  }
  if (lists)
    append(text, ",topklen=%s", PICK(state, lengths));
  if (lists)
    append(text, ",invalid=%d", PICK(state, invalid));
  if (page > 0 && !slots && below(state, 3) == 0)
    append(text, ",csr=1");
  append(text, ",ragged=%d,lsesink=%d", ragged, below(state, 2));
  if (below(state, 4) == 0)
    append(text, ",qrope=%d", rope(state, d_qk, 1));
  if (!second && elems > 0 && below(state, 4) == 0)
    append(text, ",kvrope=%d", rope(state, d_qk, elems));
}

void harness_random_problem(uint64_t *state, char text[HARNESS_RANDOM_PROBLEM]) {
  static const char *const dists[] = {"normal:1",    "uniform:2",  "rising",      "outlier",
                                      "onehot",      "peaked",     "zerov",       "masked",
                                      "normal:0.01", "normal:30",  "uniform:0.5", "uniform:8",
                                      "rising:1000", "outlier:20", "peaked:3"};
  static const char *const lens[] = {"fixed", "uniform", "ragged"};
  static const char *const bases[] = {"e", "2"};
  static const double scales[] = {0.1352, 0.0416667, 1.0, -0.2, 1e-6, 7.5};
  const bool tuned = below(state, 3) == 0;
  const int any_qk = random_width(state, 700, 32), any_v = random_width(state, any_qk, 8);
  int d_qk = tuned ? 576 : any_qk;
  int d_v = tuned ? 512 : any_v;
  const int s_q = harness_random_size(state, 8), h = harness_random_size(state, 140);
  const int b = below(state, 5);
  int32_t elems;
  const char *q = float_type(state), *out = float_type(state);
  const char *kv = kv_type(state, &d_qk, &d_v, &elems);
  const double most = budget / ((double)h * s_q * d_qk * fmax(b, 1));
  const int sk = harness_random_size(state, (int)fmin(fmax(most, 2), 3000));
  const int any_page = harness_random_size(state, 200);
  const int page = below(state, 3) == 0 ? 0 : any_page;
  const int any_pad = elems > 1 ? elems : below(state, 20);
  const int pad = below(state, 3) == 0 ? any_pad : 0;
  const int sinks = below(state, 4) == 0;
  const double scale = PICK(state, scales);
  const char *lse = PICK(state, bases), *dist = PICK(state, dists), *len = PICK(state, lens);
  char seen[HARNESS_RANDOM_SEEN];
  harness_random_seen(state, sk, page, d_qk, is_record(kv) ? 0 : elems, seen);
  snprintf(text, HARNESS_RANDOM_PROBLEM,
           "b=%d,sq=%d,h=%d,sk=%d,dqk=%d,dv=%d,page=%d,q=%s,kv=%s,out=%s,scale=%g,lse=%s,sinks=%d,"
           "pad=%d%s,dist=%s,len=%s,seed=%d",
           b, s_q, h, sk, d_qk, d_v, page, q, kv, out, scale, lse, sinks, pad, seen, dist, len,
           below(state, 1000));
}
