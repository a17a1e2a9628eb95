/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors from a problem string. Every token and every query row draws from a generator seeded by
 * its own position, so that data do not depend on threads, and a sequence does not depend on the
 * others of its batch.
 *
 * Distributions that need a certain course of the logits use one direction s of signs: q = s +
 * noise, k_j = g_j s + noise, which adds scale * d_qk * g_j to the logit of key j.
 */
#include "dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kv_blocks.h"
#include "draw.h"
#include "kv_rows.h"
#include "message.h"
#include "scopes.h"
#include "seen_data.h"

static const double two_pi = 6.283185307179586, log2e = 1.4426950408889634;
static const double gain_limit = 16384; /* |g_j|: stays finite in f16 */

/* ---- Random numbers ---- */

uint64_t harness_random(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double harness_random_uniform(uint64_t *state) {
  return ((double)(harness_random(state) >> 11) + 0.5) * 0x1p-53;
}

double harness_random_normal(uint64_t *state) { /* Box and Muller, one of the pair */
  const double radius = sqrt(-2 * log(harness_random_uniform(state)));
  return radius * cos(two_pi * harness_random_uniform(state));
}

/* ---- Elements ---- */

static float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | mantissa << 13;
  float x;
  if (exponent == 0)
    return copysignf((float)mantissa * 0x1p-24f, sign ? -1.0f : 1.0f);
  if (exponent == 31)
    bits = sign | 0x7f800000u | mantissa << 13;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint16_t float_to_half(float x) {
  const uint16_t sign = signbit(x) ? 0x8000 : 0;
  const float a = fabsf(x);
  uint32_t bits;
  if (isnan(x))
    return sign | 0x7e00;
  if (a >= 65520.0f)
    return sign | 0x7c00; /* halfway to 2^16, which rounds to even: infinity */
  if (a < 0x1p-14f)
    return (uint16_t)(sign | (uint16_t)nearbyintf(a * 0x1p24f));
  memcpy(&bits, &a, sizeof bits);
  bits += 0xfff + (bits >> 13 & 1);
  return (uint16_t)(sign | (uint16_t)((bits >> 13) - (112u << 10)));
}

static float bfloat_to_float(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint16_t float_to_bfloat(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (isnan(x))
    return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float harness_load(const void *buffer, amla_dtype type, int64_t i) {
  switch (type) {
  case AMLA_F32: return ((const float *)buffer)[i];
  case AMLA_BF16: return bfloat_to_float(((const uint16_t *)buffer)[i]);
  case AMLA_F16: return half_to_float(((const uint16_t *)buffer)[i]);
  default: break; /* fp8: harness_load_kv */
  }
  return harness_is_block(type) ? harness_load_block(buffer, type, i) : NAN;
}

void harness_store(void *buffer, amla_dtype type, int64_t i, float value) {
  switch (type) {
  case AMLA_F32: ((float *)buffer)[i] = value; break;
  case AMLA_BF16: ((uint16_t *)buffer)[i] = float_to_bfloat(value); break;
  case AMLA_F16: ((uint16_t *)buffer)[i] = float_to_half(value); break;
  default: break; /* in groups only: harness_store_block, harness_store_fp8 */
  }
}

/* Elements [i, i + n) of a buffer, n <= 32; of blocks one. */
static void store_elements(void *buffer, amla_dtype type, int64_t i, int32_t n,
                           const float *values) {
  if (harness_is_block(type)) {
    harness_store_block(buffer, type, i, values);
    return;
  }
  for (int32_t j = 0; j < n; j++)
    harness_store(buffer, type, i + j, values[j]);
}

/* ---- Buffers ---- */

/* Elements up to and including the last one of [n0][n1][n2][d] with those strides; -1 when that
 * leaves int64. */
static int64_t extent(int64_t n0, int64_t s0, int64_t n1, int64_t s1, int64_t n2, int64_t s2,
                      int64_t d) {
  int64_t a = s0, b = s1, c = s2, sum;
  if (n0 <= 0 || n1 <= 0 || n2 <= 0)
    return 0;
  if (!multiply_add(&a, n0 - 1, 0) || !multiply_add(&b, n1 - 1, 0) || !multiply_add(&c, n2 - 1, d))
    return -1;
  return __builtin_add_overflow(a, b, &sum) || __builtin_add_overflow(sum, c, &sum) ? -1 : sum;
}

/* Of a [b][s_q][h_q][d] tensor. */
static int64_t query_elems(const harness_dataset *x, int64_t batch, int64_t query, int64_t head,
                           int32_t d) {
  const amla_problem *p = &x->problem;
  if (x->q_indptr != NULL)
    return extent(1, 0, x->q_indptr[p->b], query, p->h_q, head, d);
  return extent(p->b, batch, p->s_q, query, p->h_q, head, d);
}
static int64_t q_elems(const harness_dataset *x) {
  const amla_problem *p = &x->problem;
  return query_elems(x, p->q_stride_batch, p->q_stride_query, p->q_stride_head,
                     p->d_qk - p->q_d_rope);
}
static int64_t q_rope_elems(const harness_dataset *x) {
  const amla_problem *p = &x->problem;
  return query_elems(x, p->q_rope_stride_batch, p->q_rope_stride_query, p->q_rope_stride_head,
                     p->q_d_rope);
}
static int64_t out_elems(const harness_dataset *x) {
  const amla_problem *p = &x->problem;
  return query_elems(x, p->out_stride_batch, p->out_stride_query, p->out_stride_head, p->d_v);
}
static int64_t kv_elems(const amla_problem *p) {
  const int64_t outer = p->page_size ? p->n_pages : p->b;
  const int64_t tokens = p->page_size ? p->page_size : p->sk;
  const int64_t footer = p->kv_type == AMLA_FP8_584 ? tokens * 8 : 0;
  return extent(1, 0, outer, p->kv_stride_page, tokens, p->kv_stride_token,
                harness_row_elems(p->kv_type, p->d_qk - p->kv_d_rope) + footer);
}
static int64_t kv_rope_elems(const amla_problem *p) {
  const amla_problem rope = harness_rope_problem(p);
  return kv_elems(&rope);
}
static int64_t mask_elems(const amla_problem *p) {
  return extent(1, 0, p->b, p->mask_stride_batch, p->s_q, p->mask_stride_query, p->sk);
}
static int64_t product(int64_t x, int64_t y, int64_t z) {
  return multiply_add(&x, y, 0) && multiply_add(&x, z, 0) ? x : -1;
}

void *harness_allocate(int64_t n, size_t element_bytes) {
  void *buffer = NULL;
  if (!multiply_add(&n, (int64_t)element_bytes, 0) || n < 0)
    return NULL;
  return posix_memalign(&buffer, 64, (size_t)n) == 0 ? buffer : NULL;
}

/* Points a tensor at its buffer, of n bytes. */
#define ATTACH(tensor, pointer, n)                                                                 \
  (t->tensor = (pointer), t->tensor##_bytes = t->tensor != NULL ? (size_t)(n) : 0)

static int64_t words(int64_t n) { return n * (int64_t)sizeof(int32_t); }

static int64_t list_lengths(const harness_dataset *data) {
  const amla_problem *p = &data->problem;
  return p->topk_length_per_query ? harness_rows(data) / p->h_q : p->b;
}

static void attach_first_scope(harness_dataset *data) {
  const amla_problem *p = &data->problem;
  amla_tensors *t = &data->tensors;
  const int64_t queries = harness_rows(data) / p->h_q;
  const bool slots = harness_has_slots(p);
  ATTACH(kv, data->kv, harness_bytes(p->kv_type, kv_elems(p)));
  ATTACH(kv_rope, data->kv_rope, harness_bytes(p->kv_type, kv_rope_elems(p)));
  ATTACH(block_table, slots || data->kv_indptr ? NULL : data->block_table,
         words(product(p->b, p->max_pages, 1)));
  ATTACH(seqlens_k, slots ? NULL : data->seqlens_k, words(p->b));
  ATTACH(visible_k, data->visible_k, words(queries));
  ATTACH(indices, data->indices, words(p->b * p->indices_stride_batch));
  ATTACH(topk_length, data->topk_length, words(list_lengths(data)));
  ATTACH(kv_indptr, data->kv_indptr, words((int64_t)p->b + 1));
  ATTACH(kv_indices, data->kv_indices, data->kv_indptr ? words(data->kv_indptr[p->b]) : 0);
}

static void attach_second_scope(harness_dataset *data) {
  const amla_problem p = harness_second_problem(&data->problem);
  amla_tensors *t = &data->tensors;
  const int64_t queries = harness_rows(data) / p.h_q;
  const bool slots = harness_has_slots(&p);
  ATTACH(extra_kv, data->extra_kv, harness_bytes(p.kv_type, kv_elems(&p)));
  ATTACH(extra_block_table, slots ? NULL : data->extra_block_table,
         words(product(p.b, p.max_pages, 1)));
  ATTACH(extra_seqlens_k, slots ? NULL : data->extra_seqlens_k, words(p.b));
  ATTACH(extra_visible_k, data->extra_visible_k, words(queries));
  ATTACH(extra_indices, data->extra_indices, words(p.b * p.indices_stride_batch));
  ATTACH(extra_topk_length, data->extra_topk_length, words(list_lengths(data)));
}

bool harness_attach(harness_dataset *data) {
  const amla_problem *p = &data->problem;
  amla_tensors *t = &data->tensors;
  const int64_t outs = out_elems(data), lses = harness_rows(data);
  data->out = harness_allocate(outs, harness_dtype_bytes(p->out_type));
  data->lse = harness_allocate(lses, sizeof(float));
  if (data->out == NULL || data->lse == NULL)
    return false;
  *t = (amla_tensors)AMLA_TENSORS_INIT;
  ATTACH(q, data->q, harness_bytes(p->q_type, q_elems(data)));
  ATTACH(q_rope, data->q_rope, harness_bytes(p->q_type, q_rope_elems(data)));
  ATTACH(q_indptr, data->q_indptr, words((int64_t)p->b + 1));
  attach_first_scope(data);
  if (harness_has_second_scope(p))
    attach_second_scope(data);
  ATTACH(sinks, data->sinks, p->h_q * (int64_t)sizeof(float));
  ATTACH(mask, data->mask, mask_elems(p) * (int64_t)sizeof(uint16_t));
  ATTACH(out, data->out, outs * (int64_t)harness_dtype_bytes(p->out_type));
  ATTACH(lse, data->lse, lses * (int64_t)sizeof(float));
  harness_reset_outputs(data);
  return true;
}

void harness_reset_outputs(harness_dataset *data) {
  memset(data->out, 0xA5, data->tensors.out_bytes);
  memset(data->lse, 0xA5, data->tensors.lse_bytes);
}

void harness_free(harness_dataset *data) {
  void *const buffers[] = {data->q,
                           data->kv,
                           data->out,
                           data->block_table,
                           data->seqlens_k,
                           data->sinks,
                           data->mask,
                           data->lse,
                           data->out_ref,
                           data->lse_ref,
                           data->q_rope,
                           data->kv_rope,
                           data->extra_kv,
                           data->indices,
                           data->topk_length,
                           data->visible_k,
                           data->q_indptr,
                           data->kv_indptr,
                           data->kv_indices,
                           data->extra_block_table,
                           data->extra_seqlens_k,
                           data->extra_visible_k,
                           data->extra_indices,
                           data->extra_topk_length};
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
    free(buffers[i]);
  *data = (harness_dataset){0};
}

/* ---- Where things lie ---- */

/* Strides may be 0 = packed, as in amla.h. */
static int64_t or_packed(int64_t stride, int64_t packed) { return stride ? stride : packed; }

static int64_t row_offset(const amla_problem *p, int64_t row, int32_t d, int64_t batch,
                          int64_t query, int64_t head) {
  head = or_packed(head, d);
  query = or_packed(query, p->h_q * head);
  batch = or_packed(batch, p->s_q * query);
  const int64_t h = row % p->h_q, i = row / p->h_q % p->s_q, s = row / p->h_q / p->s_q;
  return s * batch + i * query + h * head;
}

int64_t harness_q_offset(const amla_problem *p, int64_t row) {
  return row_offset(p, row, p->d_qk - p->q_d_rope, p->q_stride_batch, p->q_stride_query,
                    p->q_stride_head);
}

int64_t harness_q_rope_offset(const amla_problem *p, int64_t row) {
  return row_offset(p, row, p->q_d_rope, p->q_rope_stride_batch, p->q_rope_stride_query,
                    p->q_rope_stride_head);
}

int64_t harness_out_offset(const amla_problem *p, int64_t row) {
  return row_offset(p, row, p->d_v, p->out_stride_batch, p->out_stride_query, p->out_stride_head);
}

int64_t harness_rows(const harness_dataset *data) {
  const amla_problem *p = &data->problem;
  if (data->q_indptr != NULL)
    return product(data->q_indptr[p->b], p->h_q, 1);
  return product(p->b, p->s_q, p->h_q);
}

int64_t harness_lse_offset(const harness_dataset *data, int64_t row) {
  const amla_problem *p = &data->problem;
  if (data->q_indptr != NULL)
    return row;
  const int64_t h = row % p->h_q, i = row / p->h_q % p->s_q, s = row / p->h_q / p->s_q;
  return (s * p->h_q + h) * p->s_q + i;
}

int64_t harness_token_offset(const amla_problem *p, const int32_t *block_table, int32_t sequence,
                             int64_t j) {
  const int32_t d = p->d_qk - p->kv_d_rope;
  const int64_t token = or_packed(p->kv_stride_token, harness_row_elems(p->kv_type, d));
  const int64_t page_elems = or_packed(p->kv_stride_page, harness_page_elems(p));
  if (p->page_size == 0)
    return sequence * page_elems + j * token;
  const int64_t max_pages =
      p->max_pages ? p->max_pages : ((int64_t)p->sk + p->page_size - 1) / p->page_size;
  const int64_t page = block_table[sequence * max_pages + j / p->page_size];
  if (page < 0 || page >= p->n_pages)
    return -1;
  return page * page_elems + j % p->page_size * token;
}

/* ---- Lengths and pages ---- */

int32_t harness_length(const harness_case *c, int32_t sequence) {
  const int32_t sk = c->problem.sk;
  uint64_t state = seed_for(c->seed, STREAM_LENGTHS, sequence, 0);
  if (c->len == HARNESS_LEN_LIST)
    return c->len_list[sequence];
  /* s_q - 1, s_q - 2 ... 0, s_q, s_q - 1 ...: some rows or all see no key. */
  if (c->dist == HARNESS_MASKED) {
    const int64_t cycle = (int64_t)c->problem.s_q + 1,
                  length = (cycle - 2 - sequence % cycle + cycle) % cycle;
    return length < sk ? (int32_t)length : sk;
  }
  switch (c->len) {
  case HARNESS_LEN_UNIFORM: return 1 + (int32_t)random_below(&state, sk);
  case HARNESS_LEN_RAGGED:
    if (sequence == 0)
      return sk;
    return sequence < 3 ? sequence - 1 : (int32_t)random_below(&state, (int64_t)sk + 1);
  case HARNESS_LEN_FIXED:
  case HARNESS_LEN_LIST: break;
  }
  return sk;
}

/* Hands out the pages of the cache in shuffled order; entries beyond a sequence's length are
 * hostile. */
static bool fill_block_table(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &c->problem;
  uint64_t state = seed_for(c->seed, STREAM_PAGES, 0, 0);
  int32_t *pages = harness_allocate(p->n_pages, sizeof *pages);
  int64_t next = 0;
  if (pages == NULL)
    return false;
  for (int64_t i = 0; i < p->n_pages; i++)
    pages[i] = (int32_t)i;
  for (int64_t i = p->n_pages - 1; i > 0; i--) { /* Fisher and Yates */
    const int64_t other = random_below(&state, i + 1);
    const int32_t page = pages[i];
    pages[i] = pages[other];
    pages[other] = page;
  }
  for (int32_t s = 0; s < p->b; s++)
    for (int64_t e = 0; e < p->max_pages; e++) {
      const bool used = e * p->page_size < data->seqlens_k[s];
      data->block_table[s * (int64_t)p->max_pages + e] =
          used ? pages[next++] : HARNESS_UNUSED_ENTRY;
    }
  free(pages);
  return true;
}

/* ---- Values ---- */

static double direction(int32_t d) { return (uint32_t)d * 2654435761u >> 31 ? -1.0 : 1.0; }

/* g of a key whose logit is to be raised by so many log2 units. */
static double gain(const amla_problem *p, double log2_units) {
  return fmin(fmax(log2_units / ((double)p->scale * log2e * p->d_qk), -gain_limit), gain_limit);
}

static double noise(const harness_case *c, uint64_t *state, double normal_width) {
  if (c->dist == HARNESS_UNIFORM)
    return c->dist_width * (2 * harness_random_uniform(state) - 1);
  return normal_width * harness_random_normal(state);
}

static bool q_has_direction(harness_dist dist) {
  return dist == HARNESS_RISING || dist == HARNESS_OUTLIER || dist == HARNESS_ONEHOT ||
         dist == HARNESS_ZEROV;
}

static double draw_q(const harness_case *c, uint64_t *state, int32_t d) {
  const double width = c->dist == HARNESS_NORMAL || c->dist == HARNESS_PEAKED ? c->dist_width : 1.0;
  if (c->dist == HARNESS_ONEHOT)
    return direction(d) * (0.5 + harness_random_uniform(state)); /* q . s >= d_qk / 2 for certain */
  return noise(c, state, width) + (q_has_direction(c->dist) ? direction(d) : 0.0);
}

/* Log2 units by which the logit of key j of n is raised, and which key that is for onehot: one that
 * every query sees. */
static double logit_raise(const harness_case *c, int32_t sequence, int64_t j, int64_t n) {
  const amla_problem *p = &c->problem;
  uint64_t state = seed_for(c->seed, STREAM_ONEHOT, sequence, 0);
  const int64_t seen_by_all = n > p->s_q ? n - p->s_q + 1 : 1;
  switch (c->dist) {
  case HARNESS_RISING: return c->dist_width * (double)j / (double)(n > 1 ? n - 1 : 1);
  case HARNESS_ZEROV:
    return 40.0 * (double)j /
           (double)(n > 1 ? n - 1 : 1); /* so that O is rescaled while columns are zero */
  case HARNESS_OUTLIER: return j == (n - 1) * 7 / 8 ? c->dist_width : 0.0;
  case HARNESS_ONEHOT: /* half of it is certain; the rest has a standard deviation of at most 2.2
                          |scale| sqrt(d_qk) */
    return j == random_below(&state, seen_by_all)
               ? 200.0 + 50.0 * fabs((double)p->scale) * sqrt(p->d_qk)
               : 0.0;
  case HARNESS_NORMAL:
  case HARNESS_UNIFORM:
  case HARNESS_PEAKED:
  case HARNESS_MASKED: break;
  }
  return 0.0;
}

/* zerov: of 8 columns one is +0 and one -0 throughout, one is +0 and one -0 in the first half of
 * the tokens. */
static double zero_column(int32_t d, int64_t j, int64_t n, double value) {
  switch (d % 8) {
  case 0: return 0.0;
  case 1: return -0.0;
  case 2: return j < n / 2 ? 0.0 : value;
  case 3: return j < n / 2 ? -0.0 : value;
  default: return value;
  }
}

/* Elements [d, d + n) of the row at `at`. */
static void store_kv(const amla_problem *p, void *kv, int64_t at, int32_t d, int32_t n,
                     const float *values) {
  if (harness_is_fp8(p->kv_type))
    harness_store_fp8(p, kv, at, d, n, values);
  else
    store_elements(kv, p->kv_type, at + d, n, values);
}

static void fill_token(const harness_case *c, harness_dataset *data, int32_t sequence, int64_t j) {
  const amla_problem *p = &c->problem;
  const amla_problem rope = harness_rope_problem(p);
  const int32_t whole = p->d_qk - p->kv_d_rope; /* elements before those that lie apart */
  const int64_t at = harness_token_offset(p, data->block_table, sequence, j);
  const int64_t rope_at = harness_token_offset(&rope, data->block_table, sequence, j);
  const int64_t n = data->seqlens_k[sequence];
  uint64_t state = seed_for(c->seed, STREAM_KV, sequence, j);
  const double width = c->dist == HARNESS_NORMAL ? c->dist_width : 1.0,
               g = gain(p, logit_raise(c, sequence, j, n));
  const int32_t group = harness_group_elems(p->kv_type);
  for (int32_t d = 0; d < p->d_qk;) {
    float values[HARNESS_MAX_GROUP];
    int32_t count = 0;
    const int32_t end = d < whole ? whole : p->d_qk;
    for (; count < group && d < end; d++) {
      double value = noise(c, &state, width) + g * direction(d);
      if (c->dist == HARNESS_ZEROV && d < p->d_v)
        value = zero_column(d, j, n, value);
      values[count++] = (float)value;
    }
    const int32_t first = d - count;
    if (first < whole)
      store_kv(p, data->kv, at, first, count, values);
    else
      store_kv(&rope, data->kv_rope, rope_at, first - whole, count, values);
  }
}

/* Tokens of all sequences, or those that `seen` [b][sk] has. */
static void fill_kv(const harness_case *c, harness_dataset *data, const bool *seen) {
  for (int32_t s = 0; s < c->problem.b; s++) {
    const int64_t n = data->seqlens_k[s];
    const bool *some = seen ? seen + (int64_t)s * c->problem.sk : NULL;
#pragma omp parallel for schedule(static) if (n * c->problem.d_qk > 100000)
    for (int64_t j = 0; j < n; j++)
      if (some == NULL || some[j])
        fill_token(c, data, s, j);
  }
}

static void fill_q(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &c->problem;
  for (int64_t row = 0; row < harness_rows(data); row++) {
    const harness_query q = harness_query_at(p, &data->tensors, row / p->h_q);
    const int64_t at = harness_q_offset(p, row), rope_at = harness_q_rope_offset(p, row);
    const int32_t whole = p->d_qk - p->q_d_rope;
    const int64_t own = q.query * (int64_t)p->h_q + row % p->h_q;
    uint64_t state = seed_for(c->seed, STREAM_Q, q.sequence, own);
    for (int32_t d = 0; d < p->d_qk; d++) {
      const float value = (float)draw_q(c, &state, d);
      if (d < whole)
        harness_store(data->q, p->q_type, at + d, value);
      else
        harness_store(data->q_rope, p->q_type, rope_at + d - whole, value);
    }
  }
}

/* Regions of 128 keys that differ from query to query: all hidden, all zero, finite values, or a
 * mixture. The last query of every second sequence sees nothing. */
static void fill_mask(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &c->problem;
  for (int32_t s = 0; s < p->b; s++)
    for (int32_t i = 0; i < p->s_q; i++) {
      uint16_t *row = data->mask + s * p->mask_stride_batch + i * p->mask_stride_query;
      uint64_t state = seed_for(c->seed, STREAM_MASK, s, i);
      for (int32_t j = 0; j < data->seqlens_k[s]; j++) {
        const int64_t kind = (j / 128 + i + s) % 4;
        const double drawn = 2 * harness_random_normal(&state);
        const bool hides = kind == 0 || (kind == 3 && drawn > 0) || (s % 2 == 1 && i == p->s_q - 1);
        const float value = kind == 1 ? 0.0f : (float)drawn;
        row[j] = float_to_half(hides ? -INFINITY : value);
      }
    }
}

/* ---- Interface ---- */

/* Everything that is never written stays NaN: all bits set is a NaN in each type (the scale, in
 * q8_0). */
static void *allocate_nan(int64_t n, amla_dtype type) {
  void *buffer = n < 0 ? NULL : harness_allocate(harness_bytes(type, n), 1);
  if (buffer != NULL)
    memset(buffer, 0xff, (size_t)harness_bytes(type, n));
  return buffer;
}

/* The cache of the first scope of c's problem, and what queries see of it. */
static bool make_scope(const harness_case *c, harness_dataset *data, bool *seen) {
  const amla_problem *p = &c->problem;
  const bool table = p->page_size > 0, dense = p->topk == 0;
  data->kv = allocate_nan(kv_elems(p), p->kv_type);
  data->seqlens_k = harness_allocate(p->b, sizeof(int32_t));
  if (table)
    data->block_table = harness_allocate(product(p->b, p->max_pages, 1), sizeof(int32_t));
  if (p->kv_d_rope > 0)
    data->kv_rope = allocate_nan(kv_rope_elems(p), p->kv_type);
  if (!data->kv || !data->seqlens_k || (table && !data->block_table) ||
      (p->kv_d_rope > 0 && !data->kv_rope))
    return false;
  for (int32_t s = 0; s < p->b; s++)
    data->seqlens_k[s] = harness_length(c, s);
  if ((table && !fill_block_table(c, data)) || (!dense && !harness_draw_lists(c, data, seen)) ||
      (dense && c->visible && !harness_draw_visible(c, data)))
    return false;
  if (seen != NULL && dense)
    harness_mark_dense(data, seen);
  fill_kv(c, data, seen);
  return true;
}

/* With queries that have keys of their own, other tokens stay NaN. */
static bool make_hostile_scope(const harness_case *c, harness_dataset *data, bool lines) {
  const int64_t n = product(c->problem.b, c->problem.sk, 1);
  bool *seen = lines ? harness_allocate(n, sizeof *seen) : NULL;
  if (lines && seen == NULL)
    return false;
  for (int64_t i = 0; lines && i < n; i++)
    seen[i] = false;
  const bool ok = make_scope(c, data, seen);
  free(seen);
  return ok;
}

/* As the first scope of a problem of its own. */
static bool make_second_scope(const harness_case *c, harness_dataset *data) {
  harness_case second = *c;
  second.problem = harness_second_problem(&c->problem);
  second.seed = ~c->seed;
  if (c->len == HARNESS_LEN_LIST)
    second.len = HARNESS_LEN_UNIFORM;
  harness_dataset x = {.problem = second.problem, .tensors = data->tensors};
  const bool ok = make_hostile_scope(&second, &x, true);
  data->extra_kv = x.kv;
  data->extra_block_table = x.block_table;
  data->extra_seqlens_k = x.seqlens_k;
  data->extra_visible_k = x.visible_k;
  data->extra_indices = x.indices;
  data->extra_topk_length = x.topk_length;
  return ok;
}

static bool make_queries(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &c->problem;
  uint64_t state = seed_for(c->seed, STREAM_SINKS, 0, 0);
  if (c->ragged && !harness_draw_q_indptr(c, data))
    return false;
  data->q = allocate_nan(q_elems(data), p->q_type);
  if (p->q_d_rope > 0)
    data->q_rope = allocate_nan(q_rope_elems(data), p->q_type);
  if (c->sinks)
    data->sinks = harness_allocate(p->h_q, sizeof(float));
  if (!data->q || (p->q_d_rope > 0 && !data->q_rope) || (c->sinks && !data->sinks))
    return false;
  for (int32_t h = 0; c->sinks && h < p->h_q; h++)
    data->sinks[h] = (float)(2 * harness_random_normal(&state));
  fill_q(c, data);
  return true;
}

static bool make_mask(const harness_case *c, harness_dataset *data) {
  data->mask = allocate_nan(mask_elems(&c->problem), AMLA_F16);
  if (data->mask != NULL)
    fill_mask(c, data);
  return data->mask != NULL;
}

static bool make_tensors(const harness_case *c, harness_dataset *data) {
  const amla_problem *p = &c->problem;
  return make_queries(c, data) && make_hostile_scope(c, data, harness_has_lines(p)) &&
         (!harness_has_second_scope(p) || make_second_scope(c, data)) &&
         (!c->csr || harness_make_page_lists(data)) && (!c->mask || make_mask(c, data)) &&
         harness_attach(data);
}

int harness_generate(const harness_case *c, harness_dataset *data, char *error,
                     size_t error_bytes) {
  *data = (harness_dataset){.problem = c->problem, .options = c->options};
  if (make_tensors(c, data))
    return 0;
  harness_free(data);
  return refuse((message){error, error_bytes}, "out of memory: b=%d, sk=%d, h=%d, sq=%d",
                c->problem.b, c->problem.sk, c->problem.h_q, c->problem.s_q);
}
