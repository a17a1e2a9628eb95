/* SPDX-License-Identifier: Apache-2.0
 *
 * See index_data.h. Formats are written down apart from src on purpose.
 */
#include "index_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dataset.h"
#include "spec/spec.h"

/* ---- Numbers ---- */

float harness_e4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  if ((code & 0x7f) == 0x7f)
    return NAN;
  if (exponent == 0)
    return sign * ldexpf((float)mantissa, -9);
  return sign * ldexpf((float)(8 + mantissa), exponent - 10);
}

/* The byte of that value, which has one. */
static uint8_t encode_e4m3(float x) {
  int code = 0;
  while (harness_e4m3((uint8_t)code) != x)
    code++;
  return (uint8_t)code;
}

static uint8_t random_e4m3(uint64_t *seed) {
  for (;;) {
    const uint8_t code = (uint8_t)harness_random(seed);
    if ((code & 0x7f) != 0x7f)
      return code;
  }
}

static float small_integer(uint64_t *seed) { return (float)(harness_random(seed) % 7) - 3.0f; }

/* A new element at dst, of 1, 2 or 4 bytes; returns its value. */
static float put_element(void *dst, bool fp8, amla_dtype type, uint64_t *seed, bool integers) {
  if (fp8) {
    const uint8_t code = integers ? encode_e4m3(small_integer(seed)) : random_e4m3(seed);
    *(uint8_t *)dst = code;
    return harness_e4m3(code);
  }
  const float x = integers ? small_integer(seed) : (float)harness_random_normal(seed);
  harness_store(dst, type, 0, x);
  return harness_load(dst, type, 0);
}

/* ---- Layout ---- */

static int64_t or_packed(int64_t stride, int64_t packed) { return stride > 0 ? stride : packed; }

static int32_t page_tokens(const amla_index_args *a) {
  return a->page_size > 0 ? a->page_size : a->sk;
}

typedef struct key_at {
  unsigned char *row, *scale;
} key_at;

static int64_t key_page_bytes(const amla_index_args *a) {
  const int64_t tokens = page_tokens(a);
  if (a->keys == AMLA_INDEX_KEYS_FP8_PAGE)
    return or_packed(a->k_stride_page, tokens * (a->d + 4));
  if (a->keys == AMLA_INDEX_KEYS_FP8_TOKEN)
    return or_packed(a->k_stride_page, tokens * or_packed(a->k_stride_token, a->d + 4));
  return 2 * or_packed(a->k_stride_page, tokens * or_packed(a->k_stride_token, a->d));
}

static key_at find_key(const harness_index_data *data, int32_t sequence, int32_t j) {
  const amla_index_args *a = &data->args;
  const int32_t tokens = page_tokens(a), columns = (a->sk + tokens - 1) / tokens;
  const int64_t width = a->max_pages > 0 ? a->max_pages : columns;
  const int64_t page =
      a->page_size > 0 ? a->block_table[sequence * width + j / a->page_size] : sequence;
  unsigned char *base = (unsigned char *)data->k_stored + page * key_page_bytes(a);
  const int64_t in_page = j % tokens;
  if (a->keys == AMLA_INDEX_KEYS_FP8_PAGE)
    return (key_at){base + in_page * a->d, base + (int64_t)tokens * a->d + in_page * 4};
  if (a->keys == AMLA_INDEX_KEYS_FP8_TOKEN) {
    unsigned char *row = base + in_page * or_packed(a->k_stride_token, a->d + 4);
    return (key_at){row, row + a->d};
  }
  return (key_at){base + in_page * 2 * or_packed(a->k_stride_token, a->d), NULL};
}

/* ---- Filling ---- */

static void fill_keys(harness_index_data *data, uint64_t *seed, bool integers) {
  const amla_index_args *a = &data->args;
  const bool fp8 = a->keys != AMLA_INDEX_KEYS_BF16;
  const int size = fp8 ? 1 : 2;
  for (int32_t i = 0; i < a->b; i++)
    for (int32_t j = 0; j < a->sk; j++) {
      const int64_t token = (int64_t)i * a->sk + j;
      const key_at at = find_key(data, i, j);
      for (int32_t e = 0; e < a->d; e++)
        data->k[token * a->d + e] = put_element(at.row + e * size, fp8, AMLA_BF16, seed, integers);
      float scale = 1.0f;
      if (fp8)
        scale = integers ? (float)(1 + harness_random(seed) % 2)
                         : 0.01f + fabsf((float)harness_random_normal(seed));
      data->k_scale[token] = scale;
      if (fp8)
        memcpy(at.scale, &scale, sizeof scale);
    }
}

static void fill_queries(harness_index_data *data, uint64_t *seed, bool integers) {
  const amla_index_args *a = &data->args;
  const bool fp8 = a->q_type == AMLA_FP8_E4M3;
  const int64_t size = fp8 ? 1 : (int64_t)harness_dtype_bytes(a->q_type);
  const int64_t by_head = or_packed(a->q_stride_head, a->d);
  const int64_t by_query = or_packed(a->q_stride_query, by_head * a->heads);
  const int64_t by_batch = or_packed(a->q_stride_batch, by_query * a->s_q);
  for (int64_t row = 0; row < (int64_t)a->b * a->s_q * a->heads; row++) {
    const int64_t h = row % a->heads, query = row / a->heads % a->s_q, i = row / a->heads / a->s_q;
    char *to = (char *)data->q_stored + (i * by_batch + query * by_query + h * by_head) * size;
    float scale = 1.0f;
    if (fp8 && !integers)
      scale = 0.01f + fabsf((float)harness_random_normal(seed));
    data->q_scales[row] = scale;
    data->weights[row] = integers ? small_integer(seed) : (float)harness_random_normal(seed);
    for (int32_t e = 0; e < a->d; e++)
      data->q[row * a->d + e] = scale * put_element(to + e * size, fp8, a->q_type, seed, integers);
  }
}

static void shuffle_pages(harness_index_data *data, int64_t width, uint64_t *seed) {
  const amla_index_args *a = &data->args;
  const int32_t n = (int32_t)a->n_pages;
  for (int64_t i = 0; i < a->b * width; i++)
    data->block_table[i] = (int32_t)(i % n);
  for (int64_t i = a->b * width - 1; i > 0; i--) {
    const int64_t other = (int64_t)(harness_random(seed) % (uint64_t)(i + 1));
    const int32_t swap = data->block_table[i];
    data->block_table[i] = data->block_table[other];
    data->block_table[other] = swap;
  }
}

/* ---- Memory ---- */

static void *filled(int64_t bytes, int value) {
  void *block = malloc(bytes > 0 ? (size_t)bytes : 1);
  if (block != NULL)
    memset(block, value, (size_t)bytes);
  return block;
}

/* Bytes from the first to one past the last element of q; harness_index_create's slack is inside.
 */
static int64_t q_span(const amla_index_args *a) {
  const int64_t by_head = or_packed(a->q_stride_head, a->d);
  const int64_t by_query = or_packed(a->q_stride_query, by_head * a->heads);
  const int64_t by_batch = or_packed(a->q_stride_batch, by_query * a->s_q);
  const int64_t elems =
      (a->b - 1) * by_batch + (a->s_q - 1) * by_query + (a->heads - 1) * by_head + a->d;
  return elems * (a->q_type == AMLA_FP8_E4M3 ? 1 : (int64_t)harness_dtype_bytes(a->q_type));
}

static int64_t k_span(const amla_index_args *a) {
  const int64_t pages = a->page_size > 0 ? a->n_pages : a->b, tokens = page_tokens(a);
  if (tokens == 0 || pages == 0)
    return 0;
  int64_t last = tokens * (a->d + 4);
  if (a->keys == AMLA_INDEX_KEYS_FP8_TOKEN)
    last = (tokens - 1) * or_packed(a->k_stride_token, a->d + 4) + a->d + 4;
  if (a->keys == AMLA_INDEX_KEYS_BF16)
    last = 2 * ((tokens - 1) * or_packed(a->k_stride_token, a->d) + a->d);
  return (pages - 1) * key_page_bytes(a) + last;
}

bool harness_index_create(harness_index_data *data, const amla_index_args *args, uint64_t seed,
                          bool integers) {
  harness_index_data d = {.args = *args};
  amla_index_args *a = &d.args;
  const int64_t queries = (int64_t)a->b * a->s_q, tokens = (int64_t)a->b * a->sk;
  const int64_t columns = a->page_size > 0 ? (a->sk + a->page_size - 1) / a->page_size : 0;
  const int64_t width = a->max_pages > 0 ? a->max_pages : columns;
  if (a->page_size > 0 && a->n_pages == 0)
    a->n_pages = a->b * width;
  const int64_t rows = queries * a->heads;
  a->q_bytes = (size_t)q_span(a), a->k_bytes = (size_t)k_span(a);
  a->q = d.q_stored = filled((int64_t)a->q_bytes, 0xff);
  a->k = d.k_stored = filled((int64_t)a->k_bytes, 0xff);
  a->weights = d.weights = filled(rows * 4, 0), a->weights_bytes = (size_t)rows * 4;
  d.q_scales = filled(rows * 4, 0);
  if (a->q_type == AMLA_FP8_E4M3)
    a->q_scales = d.q_scales, a->q_scales_bytes = (size_t)rows * 4;
  d.block_table = filled(a->b * width * 4, 0);
  if (a->page_size > 0)
    a->block_table = d.block_table, a->block_table_bytes = (size_t)(a->b * width * 4);
  a->indices = d.indices = filled(queries * a->topk * 4, 0x55);
  a->indices_bytes = (size_t)(queries * a->topk * 4);
  a->scores = d.scores = filled(queries * a->sk * 4, 0x55);
  a->scores_bytes = (size_t)(queries * a->sk * 4);
  d.q = filled(rows * a->d * 4, 0), d.k = filled(tokens * a->d * 4, 0);
  d.k_scale = filled(tokens * 4, 0);
  *data = d;
  if (!d.q_stored || !d.k_stored || !d.weights || !d.q_scales || !d.block_table || !d.indices ||
      !d.scores || !d.q || !d.k || !d.k_scale) {
    harness_index_free(data);
    return false;
  }
  if (a->page_size > 0 && a->n_pages > 0)
    shuffle_pages(data, width, &seed);
  fill_keys(data, &seed, integers);
  fill_queries(data, &seed, integers);
  return true;
}

void harness_index_free(harness_index_data *d) {
  void *const all[] = {d->q_stored, d->k_stored,    d->q_scales, d->weights, d->scores,
                       d->indices,  d->block_table, d->q,        d->k,       d->k_scale};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    free(all[i]);
}

/* ---- Truth ---- */

int32_t harness_index_visible(const amla_index_args *a, int32_t sequence, int32_t query) {
  const int32_t length = a->seqlens_k ? a->seqlens_k[sequence] : a->sk;
  if (a->visible_k)
    return a->visible_k[sequence * a->s_q + query];
  const int32_t hidden = a->causal ? a->s_q - 1 - query : 0;
  return length > hidden ? length - hidden : 0;
}

void harness_index_truth(const harness_index_data *data, int32_t sequence, int32_t query,
                         double *scores, double *bounds) {
  const amla_index_args *a = &data->args;
  const int64_t row = ((int64_t)sequence * a->s_q + query) * a->heads;
  const int32_t n = harness_index_visible(a, sequence, query);
  for (int32_t j = 0; j < n; j++) {
    const int64_t token = (int64_t)sequence * a->sk + j;
    double sum_abs;
    scores[j] = spec_index_score(a->heads, a->d, data->q + row * a->d, data->weights + row,
                                 data->k + token * a->d, (double)data->k_scale[token], &sum_abs);
    bounds[j] = 1.01 * (a->d + a->heads + 4) * 0x1p-24 * sum_abs + 0x1p-100;
  }
}

static bool within_bounds(const harness_index_data *data, int32_t sequence, int32_t query,
                          const float *scores, int32_t n) {
  double *truth = malloc(((size_t)n + 1) * sizeof *truth);
  double *bounds = malloc(((size_t)n + 1) * sizeof *bounds);
  bool ok = truth != NULL && bounds != NULL;
  if (ok)
    harness_index_truth(data, sequence, query, truth, bounds);
  for (int32_t j = 0; ok && j < n; j++)
    ok = fabs((double)scores[j] - truth[j]) <= bounds[j];
  free(truth), free(bounds);
  return ok;
}

const char *harness_index_flaw(const harness_index_data *data, int32_t sequence, int32_t query) {
  const amla_index_args *a = &data->args;
  const int64_t row = (int64_t)sequence * a->s_q + query;
  const int32_t n = harness_index_visible(a, sequence, query), wanted = n < a->topk ? n : a->topk;
  const float *scores = data->scores + row * a->sk;
  const int32_t *list = data->indices + row * a->topk;
  float least = INFINITY, best_out = -INFINITY;
  int32_t last_least = -1, first_best_out = n, i = 0;
  if (!within_bounds(data, sequence, query, scores, n))
    return "a score is beyond its bound";
  for (int32_t j = 0; j < n; j++) {
    const bool in = i < wanted && list[i] == j;
    i += in;
    if (in && scores[j] <= least)
      least = scores[j], last_least = j;
    if (!in && scores[j] > best_out)
      best_out = scores[j], first_best_out = j;
  }
  if (i != wanted)
    return "the list is not so many positions that rise";
  for (; i < a->topk; i++)
    if (list[i] != -1)
      return "the list does not end in -1";
  if (best_out > least || (best_out == least && first_best_out < last_least))
    return "a better key is not in the list";
  return NULL;
}
