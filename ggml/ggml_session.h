/* SPDX-License-Identifier: Apache-2.0
 *
 * For test and bench: a prebuilt ggml with the plug-in loaded into it as any program would, and
 * attention operations to run on both of its backends. ggml is loaded RTLD_LOCAL; nothing of it is
 * linked.
 */
#ifndef AMLA_GGML_SESSION_H
#define AMLA_GGML_SESSION_H

#include "ggml_abi.h"

/* Beyond what the plug-in itself needs. */
#define GGML_SESSION_FUNCTIONS(F)                                                                  \
  F(const char *, ggml_version, (void))                                                            \
  F(void *, ggml_backend_load, (const char *path))                                                 \
  F(void, ggml_backend_load_all_from_path, (const char *folder))                                   \
  F(void *, ggml_backend_dev_by_name, (const char *name))                                          \
  F(bool, ggml_backend_dev_supports_op, (void *device, const ggml_abi_tensor *op))                 \
  F(const char *, ggml_backend_dev_description, (void *device))                                    \
  F(void *, ggml_backend_reg_by_name, (const char *name))                                          \
  F(ggml_abi_tensor *, ggml_permute,                                                               \
    (void *context, ggml_abi_tensor *tensor, int a0, int a1, int a2, int a3))                      \
  F(size_t, ggml_quantize_chunk,                                                                   \
    (int32_t type, const float *from, void *to, int64_t start, int64_t rows, int64_t row_elems,    \
     const float *weights))                                                                        \
  F(void, ggml_fp16_to_fp32_row, (const uint16_t *from, float *to, int64_t n))                     \
  F(void, ggml_fp32_to_fp16_row, (const float *from, uint16_t *to, int64_t n))                     \
  F(void, ggml_bf16_to_fp32_row, (const uint16_t *from, float *to, int64_t n))                     \
  F(void, dequantize_row_q4_0, (const void *from, float *to, int64_t n))                           \
  F(void, dequantize_row_q4_1, (const void *from, float *to, int64_t n))                           \
  F(void, dequantize_row_q5_0, (const void *from, float *to, int64_t n))                           \
  F(void, dequantize_row_q5_1, (const void *from, float *to, int64_t n))                           \
  F(void, dequantize_row_q8_0, (const void *from, float *to, int64_t n))                           \
  F(void, dequantize_row_iq4_nl, (const void *from, float *to, int64_t n))

#define GGML_SESSION_MEMBER(result, name, arguments) result(*name) arguments;

typedef struct ggml_session {
  GGML_ABI_FUNCTIONS(GGML_SESSION_MEMBER)
  GGML_SESSION_FUNCTIONS(GGML_SESSION_MEMBER)
  /* NULL before ggml had it */
  ggml_abi_tensor *(*ggml_lightning_indexer)(void *context, ggml_abi_tensor *q, ggml_abi_tensor *k,
                                             ggml_abi_tensor *weights, ggml_abi_tensor *mask);
  void *cpu_device, *amla_device;
  void *cpu, *amla;             /* backends */
  int64_t (*amla_n_done)(void); /* operations that the plug-in has computed */
} ggml_session;

typedef enum mask_kind { MASK_NONE, MASK_CAUSAL, MASK_RANDOM, MASK_SPARSE } mask_kind;

/* K and V come from an f32 cache, which llama.cpp casts; V has a cache of its own. */
enum { CACHE_CAST = 1, CACHE_APART = 2 };

typedef struct ggml_case {
  int64_t d_k, heads, kv, tokens, streams;
  int32_t type; /* of K */
  mask_kind mask;
  bool shared_mask; /* one for all streams */
  bool sinks;
  bool permuted;    /* q and K as llama.cpp has them, else as ggml's own test */
  int cache;        /* CACHE_: 0: V is K's beginning */
  int64_t kv_heads; /* 0 = 1 */
} ggml_case;

/* Columns of V, the first ones of K; KV heads. */
int64_t ggml_case_d_v(const ggml_case *c);
int64_t ggml_case_kv_heads(const ggml_case *c);

/* Uniform in [-1, 1); as MASK_RANDOM. */
void ggml_fill(ggml_session *s, ggml_abi_tensor *t, uint64_t *state);
void ggml_fill_mask(ggml_session *s, ggml_abi_tensor *mask, uint64_t *state);

typedef struct ggml_job { /* a case with data */
  ggml_case c;
  void *context, *graph;
  ggml_abi_tensor *q, *k, *v, *mask, *sinks, *op;
} ggml_job;

/* The folder holds libggml*.so; plugin is the path of libggml-amla.so. Prints and returns false if
 * that fails. */
bool ggml_session_open(ggml_session *s, const char *folder, const char *plugin);
void ggml_session_threads(ggml_session *s, int threads);
void ggml_session_close(ggml_session *s);

void ggml_job_create(ggml_session *s, const ggml_case *c, uint64_t seed, ggml_job *job);
bool ggml_job_taken(ggml_session *s, const ggml_job *job); /* does the plug-in say that it can? */
bool ggml_job_run(ggml_session *s, ggml_job *job, void *backend);
void ggml_job_free(ggml_session *s, ggml_job *job);

/* The result, computed anew in f64 for one row in every `step` rows: out [elements of the result].
 * Rows left out hold NaN. */
void ggml_job_truth(ggml_session *s, const ggml_job *job, int64_t step, float *out);

/* Squared error over squared reference, over the elements whose reference is not NaN. */
double ggml_nmse(const float *reference, const float *x, int64_t n);

/* n elements of a row of K, by ggml's own functions. */
void ggml_widen(ggml_session *s, int32_t type, const void *row, int64_t n, float *out);

const char *ggml_type_text(int32_t type);
const char *ggml_case_text(const ggml_case *c, char text[160]);

#endif
