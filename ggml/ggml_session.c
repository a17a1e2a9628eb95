/* SPDX-License-Identifier: Apache-2.0
 *
 * A prebuilt ggml with the plug-in, and attention operations in it. See ggml_session.h.
 */
#define _GNU_SOURCE 1
#include "ggml_session.h"

#include <dirent.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Opening ---- */

/* libggml.so, libggml.so.0, libggml.v1.2.so: whatever the package calls the library that has the
 * registry. */
static void *open_registry(const char *folder) {
  char path[4096];
  void *library = NULL;
  DIR *dir = opendir(folder);
  for (const struct dirent *e = dir ? readdir(dir) : NULL; e != NULL && library == NULL;
       e = readdir(dir)) {
    if (strncmp(e->d_name, "libggml.", 8) != 0)
      continue;
    snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
      fprintf(stderr, "%s\n", dlerror());
  }
  if (dir != NULL)
    closedir(dir);
  return library;
}

static bool find_functions(ggml_session *s, void *library) {
  const char *missing = NULL;
#define FIND(result, name, arguments)                                                              \
  {                                                                                                \
    void *address = dlsym(library, #name);                                                         \
    if (address == NULL)                                                                           \
      missing = #name;                                                                             \
    memcpy(&s->name, &address, sizeof address);                                                    \
  }
  GGML_ABI_FUNCTIONS(FIND)
  GGML_SESSION_FUNCTIONS(FIND)
#undef FIND
  void *indexer = dlsym(library, "ggml_lightning_indexer");
  memcpy(&s->ggml_lightning_indexer, &indexer, sizeof indexer);
  if (missing != NULL)
    fprintf(stderr, "ggml has no %s\n", missing);
  return missing == NULL;
}

bool ggml_session_open(ggml_session *s, const char *folder, const char *plugin) {
  void *library = open_registry(folder);
  memset(s, 0, sizeof *s);
  if (library == NULL || !find_functions(s, library)) {
    fprintf(stderr, "%s: no usable libggml in this folder\n", folder);
    return false;
  }
  if (s->ggml_backend_dev_by_type(GGML_ABI_CPU) == NULL)
    s->ggml_backend_load_all_from_path(folder);
  void *registry = s->ggml_backend_load(plugin);
  if (registry == NULL)
    return false;
  void *n_done = s->ggml_backend_reg_get_proc_address(registry, "amla_ggml_n_done");
  memcpy(&s->amla_n_done, &n_done, sizeof n_done);
  s->cpu_device = s->ggml_backend_dev_by_type(GGML_ABI_CPU);
  s->amla_device = s->ggml_backend_dev_by_name("AMLA");
  if (s->cpu_device == NULL || s->amla_device == NULL)
    return false;
  s->cpu = s->ggml_backend_dev_init(s->cpu_device, NULL);
  s->amla = s->ggml_backend_dev_init(s->amla_device, NULL);
  return s->cpu != NULL && s->amla != NULL;
}

void ggml_session_threads(ggml_session *s, int threads) {
  void *const devices[] = {s->cpu_device, s->amla_device}, *const backends[] = {s->cpu, s->amla};
  for (int i = 0; i < 2; i++) {
    void (*set)(void *backend, int n);
    void *address = s->ggml_backend_reg_get_proc_address(
        s->ggml_backend_dev_backend_reg(devices[i]), "ggml_backend_set_n_threads");
    memcpy(&set, &address, sizeof set);
    set(backends[i], threads);
  }
}

void ggml_session_close(ggml_session *s) {
  s->ggml_backend_free(s->amla);
  s->ggml_backend_free(s->cpu);
}

/* ---- Data ---- */

static float uniform(uint64_t *state) { /* in [-1, 1); Steele, Lea, Flood: SplitMix64 */
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (float)((double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1.0);
}

static void fill_f32(ggml_abi_tensor *t, float range, uint64_t *state) {
  float *x = t->data;
  for (int64_t i = 0; i < t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; i++)
    x[i] = range * uniform(state);
}

/* Contiguous, any type. */
static void fill_rows(ggml_session *s, ggml_abi_tensor *t, uint64_t *state) {
  float *row = malloc((size_t)t->ne[0] * sizeof *row);
  for (int64_t i = 0; i < t->ne[1] * t->ne[2] * t->ne[3]; i++) {
    for (int64_t d = 0; d < t->ne[0]; d++)
      row[d] = uniform(state);
    s->ggml_quantize_chunk(t->type, row, (char *)t->data + (size_t)i * t->nb[1], 0, 1, t->ne[0],
                           NULL);
  }
  free(row);
}

/* Is the key hidden? Random: one in eight, whole runs of keys, and all of the last token's. Sparse:
 * all but one in 16. */
static bool hidden(const ggml_case *c, int64_t token, int64_t key, uint64_t *state) {
  if (c->mask == MASK_CAUSAL)
    return key > c->kv - c->tokens + token;
  if (c->mask == MASK_SPARSE)
    return uniform(state) > -0.875f;
  const bool by_chance = uniform(state) > 0.75f;
  return by_chance || (key / 100 + token) % 4 == 1 || (c->tokens > 1 && token == c->tokens - 1);
}

static void fill_mask(ggml_session *s, const ggml_case *c, ggml_abi_tensor *mask, uint64_t *state) {
  float *row = malloc((size_t)c->kv * sizeof *row);
  for (int64_t i = 0; i < mask->ne[1] * mask->ne[3]; i++) {
    for (int64_t key = 0; key < c->kv; key++) {
      const float bias = c->mask == MASK_RANDOM ? uniform(state) : 0.0f;
      row[key] = hidden(c, i % mask->ne[1], key, state) ? -INFINITY : bias;
    }
    s->ggml_fp32_to_fp16_row(row, (uint16_t *)((char *)mask->data + (size_t)i * mask->nb[1]),
                             c->kv);
  }
  free(row);
}

void ggml_fill(ggml_session *s, ggml_abi_tensor *t, uint64_t *state) {
  if (t->type == GGML_ABI_F32)
    fill_f32(t, 1.0f, state);
  else
    fill_rows(s, t, state);
}

void ggml_fill_mask(ggml_session *s, ggml_abi_tensor *mask, uint64_t *state) {
  ggml_case c = {.kv = mask->ne[0], .tokens = mask->ne[1], .mask = MASK_RANDOM};
  fill_mask(s, &c, mask, state);
}

/* ---- Operations ---- */

int64_t ggml_case_d_v(const ggml_case *c) { return c->d_k == 320 ? 256 : 512; }
int64_t ggml_case_kv_heads(const ggml_case *c) { return c->kv_heads > 0 ? c->kv_heads : 1; }

void ggml_job_create(ggml_session *s, const ggml_case *c, uint64_t seed, ggml_job *job) {
  const int64_t d_v = ggml_case_d_v(c), kv_heads = ggml_case_kv_heads(c);
  const bool cast = c->cache & CACHE_CAST, apart = c->cache & CACHE_APART;
  const int64_t elements =
      (c->d_k + d_v) * c->tokens * c->heads * c->streams +
      (apart ? 4 : 2) * c->kv * c->d_k * kv_heads * c->streams +
      c->kv * (c->tokens + 63 + (cast ? (c->d_k + d_v) * kv_heads : 0)) * c->streams;
  const int32_t cache_type = cast ? GGML_ABI_F32 : c->type;
  void *x = s->ggml_init((ggml_abi_init_params){(size_t)elements * 4 + (1 << 20), NULL, false});
  ggml_abi_tensor *q, *k_all, *v_all, *k, *v;
  if (c->permuted) { /* a cache twice as long; tokens lie one after the other, q's heads too */
    q = s->ggml_permute(
        x, job->q = s->ggml_new_tensor_4d(x, GGML_ABI_F32, c->d_k, c->heads, c->tokens, c->streams),
        0, 2, 1, 3);
    k_all = s->ggml_new_tensor_4d(x, cache_type, c->d_k, kv_heads, 2 * c->kv, c->streams);
    k = s->ggml_permute(x,
                        s->ggml_view_4d(x, k_all, c->d_k, kv_heads, c->kv, c->streams, k_all->nb[1],
                                        k_all->nb[2], k_all->nb[3], 0),
                        0, 2, 1, 3);
  } else {
    q = job->q = s->ggml_new_tensor_4d(x, GGML_ABI_F32, c->d_k, c->tokens, c->heads, c->streams);
    k_all = s->ggml_new_tensor_4d(x, cache_type, c->d_k, 2 * c->kv, kv_heads, c->streams);
    k = s->ggml_view_4d(x, k_all, c->d_k, c->kv, kv_heads, c->streams, k_all->nb[1], k_all->nb[2],
                        k_all->nb[3], 0);
  }
  v_all = apart
              ? s->ggml_new_tensor_4d(x, cache_type, c->d_k, k_all->ne[1], k_all->ne[2], c->streams)
              : k_all;
  v = s->ggml_view_4d(x, v_all, d_v, c->kv, kv_heads, c->streams, k->nb[1], k->nb[2], k->nb[3], 0);
  if (cast)
    k = s->ggml_cast(x, k, c->type), v = s->ggml_cast(x, v, c->type);
  const int64_t mask_tokens = (c->tokens + 63) / 64 * 64; /* old ggml wants it so */
  const int64_t masks = c->shared_mask ? 1 : c->streams;
  job->mask = NULL;
  if (c->mask != MASK_NONE)
    job->mask = s->ggml_new_tensor_4d(x, GGML_ABI_F16, c->kv, mask_tokens, 1, masks);
  job->sinks = c->sinks ? s->ggml_new_tensor_4d(x, GGML_ABI_F32, c->heads, 1, 1, 1) : NULL;
  fill_f32(job->q, 1.0f, &seed);
  fill_rows(s, k_all, &seed);
  if (apart)
    fill_rows(s, v_all, &seed);
  if (job->mask != NULL)
    fill_mask(s, c, job->mask, &seed);
  if (job->sinks != NULL)
    fill_f32(job->sinks, 10.0f, &seed);
  job->op = s->ggml_flash_attn_ext(x, q, k, v, job->mask, 1.0f / sqrtf((float)c->d_k), 0.0f, 0.0f);
  if (job->sinks != NULL)
    s->ggml_flash_attn_ext_add_sinks(job->op, job->sinks);
  job->graph = s->ggml_new_graph_custom(x, 64, false);
  s->ggml_build_forward_expand(job->graph, job->op);
  job->c = *c;
  job->context = x;
  job->q = q;
  job->k = k;
  job->v = v;
}

bool ggml_job_taken(ggml_session *s, const ggml_job *job) {
  return s->ggml_backend_dev_supports_op(s->amla_device, job->op);
}

bool ggml_job_run(ggml_session *s, ggml_job *job, void *backend) {
  return s->ggml_backend_graph_compute(backend, job->graph) == GGML_ABI_SUCCESS;
}

void ggml_job_free(ggml_session *s, ggml_job *job) { s->ggml_free(job->context); }

/* ---- Truth ---- */

static const void *at(const ggml_abi_tensor *t, int64_t i1, int64_t i2, int64_t i3) {
  return (const char *)t->data + (size_t)i1 * t->nb[1] + (size_t)i2 * t->nb[2] +
         (size_t)i3 * t->nb[3];
}

void ggml_widen(ggml_session *s, int32_t type, const void *row, int64_t n, float *out) {
  switch (type) {
  case GGML_ABI_F16: s->ggml_fp16_to_fp32_row(row, out, n); return;
  case GGML_ABI_BF16: s->ggml_bf16_to_fp32_row(row, out, n); return;
  case GGML_ABI_F32: memcpy(out, row, (size_t)n * sizeof *out); return;
  case GGML_ABI_Q4_0: s->dequantize_row_q4_0(row, out, n); return;
  case GGML_ABI_Q4_1: s->dequantize_row_q4_1(row, out, n); return;
  case GGML_ABI_Q5_0: s->dequantize_row_q5_0(row, out, n); return;
  case GGML_ABI_Q5_1: s->dequantize_row_q5_1(row, out, n); return;
  case GGML_ABI_Q8_0: s->dequantize_row_q8_0(row, out, n); return;
  case GGML_ABI_IQ4_NL: s->dequantize_row_iq4_nl(row, out, n); return;
  }
}

static void row_truth(ggml_session *s, const ggml_job *job, const float *k, const float *v,
                      int64_t token, int64_t head, int64_t stream, double *score, float *out) {
  const ggml_case *c = &job->c;
  const float *q = at(job->q, token, head, stream);
  const int64_t d_v = ggml_case_d_v(c);
  double max = job->sinks ? ((const float *)job->sinks->data)[head] : -INFINITY, sum, o[512] = {0};
  for (int64_t j = 0; j < c->kv; j++) {
    float bias = 0.0f;
    if (job->mask)
      s->ggml_fp16_to_fp32_row(
          (const uint16_t *)at(job->mask, token, 0, c->shared_mask ? 0 : stream) + j, &bias, 1);
    score[j] = 0.0;
    for (int64_t d = 0; d < c->d_k; d++)
      score[j] += (double)q[d] * (double)k[j * c->d_k + d];
    score[j] = score[j] * (double)(1.0f / sqrtf((float)c->d_k)) + (double)bias;
    if (score[j] > max)
      max = score[j];
  }
  sum = job->sinks ? exp((double)((const float *)job->sinks->data)[head] - max) : 0.0;
  for (int64_t j = 0; j < c->kv; j++) {
    const double p = score[j] == -INFINITY ? 0.0 : exp(score[j] - max);
    sum += p;
    for (int64_t d = 0; p > 0.0 && d < d_v; d++)
      o[d] += p * (double)v[j * d_v + d];
  }
  for (int64_t d = 0; d < d_v; d++)
    out[d] = sum > 0.0 ? (float)(o[d] / sum) : 0.0f;
}

void ggml_job_truth(ggml_session *s, const ggml_job *job, int64_t step, float *out) {
  const ggml_case *c = &job->c;
  const int64_t kv_heads = ggml_case_kv_heads(c), d_v = ggml_case_d_v(c), of_head = c->kv * c->d_k;
  float *k = malloc((size_t)(kv_heads * of_head) * sizeof *k);
  float *v = malloc((size_t)(kv_heads * c->kv * d_v) * sizeof *v);
  double *score = malloc((size_t)c->kv * sizeof *score);
  for (int64_t stream = 0, row = 0; stream < c->streams; stream++) {
    for (int64_t j = 0; j < c->kv * kv_heads; j++) {
      ggml_widen(s, c->type, at(job->k, j % c->kv, j / c->kv, stream), c->d_k, k + j * c->d_k);
      ggml_widen(s, c->type, at(job->v, j % c->kv, j / c->kv, stream), d_v, v + j * d_v);
    }
    for (int64_t token = 0; token < c->tokens; token++)
      for (int64_t head = 0; head < c->heads; head++, row++, out += d_v) {
        const int64_t kv_head = head * kv_heads / c->heads;
        for (int64_t d = 0; d < d_v; d++)
          out[d] = NAN;
        if (row % step == 0 || token == c->tokens - 1)
          row_truth(s, job, k + kv_head * of_head, v + kv_head * c->kv * d_v, token, head, stream,
                    score, out);
      }
  }
  free(score);
  free(v);
  free(k);
}

double ggml_nmse(const float *reference, const float *x, int64_t n) {
  double error = 0.0, size = 0.0;
  for (int64_t i = 0; i < n; i++) {
    if (isnan(reference[i]))
      continue;
    error += ((double)x[i] - (double)reference[i]) * ((double)x[i] - (double)reference[i]);
    size += (double)reference[i] * (double)reference[i];
  }
  return error == 0.0 ? 0.0 : error / size; /* a NaN in x stays */
}

const char *ggml_type_text(int32_t type) {
  switch (type) {
  case GGML_ABI_F16: return "f16";
  case GGML_ABI_BF16: return "bf16";
  case GGML_ABI_F32: return "f32";
  case GGML_ABI_Q4_0: return "q4_0";
  case GGML_ABI_Q4_1: return "q4_1";
  case GGML_ABI_Q5_0: return "q5_0";
  case GGML_ABI_Q5_1: return "q5_1";
  case GGML_ABI_IQ4_NL: return "iq4_nl";
  default: return "q8_0";
  }
}

const char *ggml_case_text(const ggml_case *c, char text[160]) {
  static const char *const masks[] = {"none", "causal", "random", "sparse"};
  const struct {
    bool is;
    const char *word;
  } words[] = {{c->shared_mask, " shared"},
               {c->sinks, " sinks"},
               {c->permuted, " permuted"},
               {c->cache & CACHE_CAST, " cast"},
               {c->cache & CACHE_APART, " apart"}};
  snprintf(text, 160, "%lld/%lld heads=%lld/%lld kv=%lld tokens=%lld streams=%lld %s mask=%s",
           (long long)c->d_k, (long long)ggml_case_d_v(c), (long long)c->heads,
           (long long)ggml_case_kv_heads(c), (long long)c->kv, (long long)c->tokens,
           (long long)c->streams, ggml_type_text(c->type), masks[c->mask]);
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (words[i].is)
      strncat(text, words[i].word, 160 - strlen(text) - 1);
  return text;
}
