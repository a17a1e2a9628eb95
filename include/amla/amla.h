/* SPDX-License-Identifier: Apache-2.0
 *
 * AMLA: attention decoding for Multi-head Latent Attention (MLA) models.
 *
 * The library's header. For every query row (sequence, query, head)
 *
 *     S_j = scale * q . k_j      O = sum_j softmax(S)_j * v_j      LSE = log sum_j exp(S_j)
 *
 * in MLA's absorbed form: all heads share one KV row per token. The key is the whole row (d_qk =
 * 512 latent + 64 rope), the value its first d_v = 512 elements. Source: arXiv 2509.25224 (AMLA),
 * arXiv 2405.04434 (MLA).
 *
 * Use: fill a problem and options, and create a plan. Every refusal of a shape or an option happens
 * there. Ask the plan for its scratch size, then run it as often as you like with other data,
 * lengths and block tables of the same shape.
 *
 * The library never exits and never prints. It calls no allocator in amla_plan_run, but for the npu
 * simulator. The OpenMP runtime may call one, once, when it first forms its team of threads; should
 * that fail, it is that runtime which prints and exits. A refusal leaves every output untouched.
 *
 * Structs grow at their end only and start with their own size. Fill them through their AMLA_*_INIT
 * macro, which sets the defaults; in fields that later versions append, zero is the default.
 * Compiles as C11 and as C++11.
 */
#ifndef AMLA_AMLA_H
#define AMLA_AMLA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(AMLA_STATIC)
#define AMLA_API
#elif defined(__GNUC__)
#define AMLA_API __attribute__((visibility("default")))
#else
#define AMLA_API
#endif

#define AMLA_VERSION_MAJOR 0
#define AMLA_VERSION_MINOR 2
#define AMLA_VERSION_PATCH 0

/* ---- Status ---- */

/* Values are pinned: they never change meaning. */
typedef enum amla_status {
  AMLA_OK = 0,
  /* A field, pointer, length or page id breaks a rule; the detail says which. */
  AMLA_INVALID_ARGUMENT = 1,
  /* Well-formed, but not built or not on this machine; the detail says what. */
  AMLA_UNSUPPORTED = 2,
  AMLA_OUT_OF_MEMORY = 3,  /* no memory for the plan (a few kB), or for npu's simulated chip */
  AMLA_BACKEND_FAILED = 4, /* a driver or device reported an error; the detail has its words */
  AMLA_CANCELLED = 5 /* the caller's amla_options.cancel ended the run; outputs hold anything */
} amla_status;

/* Why a call was refused: field, value and rule, for example "h_kv=3: MLA decode needs 1". Always
 * NUL-terminated. Every function that takes a detail accepts NULL, and writes "" on success. */
typedef struct amla_detail {
  char text[256];
} amla_detail;

/* "ok", "invalid argument", ...; never NULL. */
AMLA_API const char *amla_status_name(amla_status status);

/* Version of the library that is linked, "0.2.0"; compare with AMLA_VERSION_* of the header. */
AMLA_API const char *amla_version(void);

/* ---- Types ---- */

typedef enum amla_dtype {
  AMLA_F32 = 0,
  AMLA_BF16 = 1, /* the upper half of an f32 */
  AMLA_F16 = 2,  /* IEEE binary16 */
  /* kv only: ggml's blocks of 32 elements in 34 bytes, {f16 d; int8 q[32]}; element i = d * q[i],
   * which f32 holds exactly */
  AMLA_Q8_0 = 3,

  /* Of kv only, with e4m3fn for the latent part. Strides of the first two count bytes. Scales and
   * elements may be anything: what is NaN or infinite makes rows so. docs/numerics.md says where
   * reading them rounds. */

  /* DeepSeek-V3.2's 656 bytes a token, d_qk = 576: 512 e4m3, 4 f32 scales, one per 128 of them, 64
   * bf16 */
  AMLA_FP8_656 = 4,
  /* DeepSeek-V4's pages, d_qk = d_v = 512: of each token 448 e4m3 and 64 bf16, 576 bytes; behind
   * the page's last token of each 8 bytes, 7 e8m0 scales, one per 64 e4m3, and one unused.
   * kv_stride_token is 576 */
  AMLA_FP8_584 = 5,
  /* e4m3 throughout; elements times kv_scale, those of the rope part times kv_rope_scale: the last
   * kv_d_rope, or d_qk - d_v if that is 0 */
  AMLA_FP8_E4M3 = 6,
  /* kv only: ggml's other blocks of 32 elements. d and m are f16. Byte j of 16 has the code of
   * element j, and above it that of j + 16; h has the fifth bits, from element 0 on. */
  AMLA_Q4_0 = 7,  /* 18 bytes {d, codes}; element = d * (code - 8) */
  AMLA_Q4_1 = 8,  /* 20 bytes {d, m, codes}; d * code + m */
  AMLA_Q5_0 = 9,  /* 22 bytes {d, h, codes}; d * (code - 16) */
  AMLA_Q5_1 = 10, /* 24 bytes {d, m, h, codes}; d * code + m */
  /* 18 bytes {d, codes}; d * -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89 or
   * 113, by code */
  AMLA_IQ4_NL = 11
} amla_dtype;

typedef enum amla_backend {
  AMLA_BACKEND_AUTO = 0, /* cuda for device memory, else cpu */
  AMLA_BACKEND_REF = 1,  /* the executable specification, one thread: always right, slow */
  AMLA_BACKEND_CPU = 2,
  AMLA_BACKEND_CUDA = 3, /* libamla_cuda.so, loaded when first asked for */
  /* libamla_npu.so, likewise: the Ascend kernel on a SIMULATED NPU, to study it, not to serve with
   * it */
  AMLA_BACKEND_NPU = 4
} amla_backend;

/* How the running output follows a growing maximum. Same result within rounding, different cost;
 * see docs/numerics.md. */
typedef enum amla_rescale {
  AMLA_RESCALE_DEFAULT = 0, /* lazy */
  /* an integer log2 reference, moved only when a score exceeds it by 8: almost no rescale */
  AMLA_RESCALE_LAZY = 1,
  /* the paper: a power of two in every key tile, applied as an integer add to the exponent */
  AMLA_RESCALE_AMLA = 2,
  AMLA_RESCALE_FLASH = 3 /* FlashAttention-2: multiply by exp(m_old - m_new) in every key tile */
} amla_rescale;

/* What P = softmax's numerators are rounded to on their way to V, at most: a backend may be more
 * exact, and is where that costs nothing. amla_plan_query says what runs. ref and the FP32 rows of
 * cpu always have f32; cuda and npu round P to 16 bits, and refuse f32 and bf16x2. */
typedef enum amla_p_form {
  AMLA_P_DEFAULT = 0, /* cpu: f32 where out is f32, else bf16x2. cuda and npu: their own */
  AMLA_P_F32 = 1,
  AMLA_P_BF16X2 = 2, /* a sum of two bf16: typically 2^-17 of sum p |v|, at most 2^-15 */
  AMLA_P_BF16 = 3    /* as kernels for GPUs have it: typically 2^-9, at most 2^-7 */
} amla_p_form;

/* How many bf16 parts stand for an f32 or f16 element of q where keys are multiplied in bf16. */
typedef enum amla_q_form {
  AMLA_Q_DEFAULT = 0, /* as many as hold it exactly: 2 for f16, 3 for f32 */
  AMLA_Q_BF16X2 = 1,  /* at most 2^-17 of an element */
  AMLA_Q_BF16X3 = 2
} amla_q_form;

/* Whether keys of other types than bf16 and fp8_584, which bf16 holds, may be rounded to it, for
 * the sake of the instructions that multiply it. It moves a score by at most 2^-8 of scale * sum
 * |q_d k_d|, out by 2^-8 of sum p |v| besides. */
typedef enum amla_kv_round {
  AMLA_KV_EXACT = 0,
  AMLA_KV_BF16 = 1 /* nearest even */
} amla_kv_round;

/* Caps the instruction set; the environment variable AMLA_ISA (c, avx2, avx512, avx512bf16,
 * amxbf16, neon, neonbf16) caps it further. A value of another architecture than the library's is
 * refused. Those with bf16 in their names are for keys in bf16 or fp8_584: of other types only if
 * kv_round says so. They take numbers below 2^-126 as 0. */
typedef enum amla_isa {
  AMLA_ISA_AUTO = 0,       /* the best that CPU and operating system offer */
  AMLA_ISA_C = 1,          /* portable C */
  AMLA_ISA_AVX2 = 2,       /* AVX2 + FMA + F16C */
  AMLA_ISA_AVX512 = 3,     /* AVX-512F */
  AMLA_ISA_AVX512BF16 = 4, /* AVX512-BF16, with AVX-512BW and VL */
  AMLA_ISA_AMXBF16 = 5,    /* AMX-BF16 beside these */
  AMLA_ISA_NEON = 6,       /* aarch64 */
  AMLA_ISA_NEONBF16 = 7    /* aarch64 with FEAT_BF16 */
} amla_isa;

typedef enum amla_lse_base {
  AMLA_LSE_NATURAL = 0, /* log, as FlashMLA and FlashAttention return it */
  AMLA_LSE_BASE2 = 1    /* log2, as FlashInfer returns it */
} amla_lse_base;

/* What LSE is of, where there are sinks. */
typedef enum amla_lse_sink {
  AMLA_LSE_WITHOUT_SINK = 0, /* the keys alone, as FlashMLA returns it */
  AMLA_LSE_WITH_SINK = 1     /* keys and sink, as FlashInfer's SM120 kernels return it */
} amla_lse_sink;

/* What the entries of indices are. */
typedef enum amla_index_kind {
  /* place in the cache: page * page_size + offset; contiguous: sequence * sk + position */
  AMLA_INDEX_SLOT = 0,
  AMLA_INDEX_POSITION = 1 /* position in the sequence, found through its block table */
} amla_index_kind;

typedef enum amla_memory {
  AMLA_MEMORY_HOST = 0,
  AMLA_MEMORY_DEVICE = 1 /* every tensor, lengths and block table included; only for backend cuda */
} amla_memory;

/* Names of kinds, as options and messages have them: "bf16", "avx2", "lazy", "cpu". NULL past the
 * last one: all of a kind are a loop from 0 on. */
AMLA_API const char *amla_dtype_name(amla_dtype type);
AMLA_API const char *amla_isa_name(amla_isa isa);             /* 0: "auto" */
AMLA_API const char *amla_rescale_name(amla_rescale rescale); /* 0: "default" */
AMLA_API const char *amla_backend_name(amla_backend backend); /* 0: "auto" */
AMLA_API const char *amla_p_form_name(amla_p_form form);      /* 0: "default" */
AMLA_API const char *amla_q_form_name(amla_q_form form);      /* 0: "default" */
AMLA_API const char *amla_kv_round_name(amla_kv_round round); /* 0: "exact" */

/* What this machine lacks of an instruction set: feature, registers that the system saves, or
 * permission to use them. NULL if it runs. */
AMLA_API const char *amla_isa_missing(amla_isa isa);

/* Elements of the type's block, and in *bytes its size: 1 and 4 of f32, 32 and 34 of q8_0. 0 past
 * the last type. */
AMLA_API int32_t amla_dtype_block(amla_dtype type, int32_t *bytes);

/* ---- Problem: shapes and types, no pointers ---- */

/* Strides count elements of the tensor's type; 0 = packed in the order given beside the tensor.
 * Dimensions are refused when < 1 (b, sk, h_kv, page_size and max_pages may be 0), when a product
 * leaves int64, or beyond d_qk = 65536 and s_q * h_q = 2^24. */
typedef struct amla_problem {
  uint32_t struct_bytes;
  int32_t b; /* sequences; 0 is allowed and does nothing */
  /* query tokens per sequence: 1 in plain decode, 2.. with speculative decoding. Default 1 */
  int32_t s_q;
  int32_t h_q;  /* query heads */
  int32_t h_kv; /* KV heads: 0 or 1; MLA has one */
  /* maximum KV length of a sequence: run refuses longer ones. 0 (ref and cpu): no sequence has
   * keys, and kv and block_table may be NULL */
  int32_t sk;
  int32_t d_qk;        /* key elements per token. Default 576 */
  int32_t d_v;         /* value = first d_v elements of the row, d_v <= d_qk. Default 512 */
  int32_t page_size;   /* tokens per page of the KV cache; 0 = contiguous, kv is [b][sk][d_qk] */
  int32_t max_pages;   /* entries per row of the block table; 0 = ceil(sk / page_size) */
  int64_t n_pages;     /* pages in the KV cache; page ids must be in [0, n_pages). Contiguous: 0 */
  amla_dtype q_type;   /* f32, bf16, f16 */
  amla_dtype kv_type;  /* any; of blocks d_qk and the kv strides are multiples of 32 */
  amla_dtype out_type; /* f32, bf16, f16; rounded to nearest even */
  /* 1: query i of a sequence of length n sees keys [0, n - s_q + i + 1) (bottom-right aligned) */
  int32_t causal;
  /* factor of q . k, not 0, and finite also times log2(e). It has no default: models use
   * 1/sqrt(192) times YaRN's mscale^2 */
  float scale;
  amla_memory memory;
  /* q [b][s_q][h_q][d_qk], last one contiguous */
  int64_t q_stride_batch, q_stride_query, q_stride_head;
  /* out [b][s_q][h_q][d_v], last one contiguous */
  int64_t out_stride_batch, out_stride_query, out_stride_head;
  int64_t kv_stride_page; /* between pages (paged) or sequences (contiguous) */
  /* between tokens of one page or sequence, >= d_qk unless page_size is 1 */
  int64_t kv_stride_token;
  int64_t mask_stride_batch, mask_stride_query; /* mask [b][s_q][sk], last one contiguous */

  /* Since 0.2. 0 everywhere is dense attention over one cache of whole rows. docs/sparse.md.
   *
   * The keys of a query are those of the first scope, then those of the second, in that order: one
   * line of keys under one softmax, with one LSE and one sink. A scope is a cache and what a query
   * sees of it: a list, or everything up to a length. */

  /* > 0: a query sees of the first scope the tokens that indices lists, in at most so many entries.
   * Needs causal = 0 and window = 0: the list says it all */
  int32_t topk;
  amla_index_kind index_kind;    /* of both scopes' lists */
  int32_t topk_length_per_query; /* topk_length and extra_topk_length are: 0: [b]; 1: [b][s_q] */
  /* > 0: a query that would see keys [0, n) of the first scope sees those from max(0, n - window)
   * on. Needs causal = 1 or visible_k */
  int32_t window;
  /* > 0: the last so many elements of a row lie in q_rope or kv_rope, and rows of q or kv have only
   * the d_qk - so many before them */
  int32_t q_d_rope, kv_d_rope;
  int32_t extra_sk; /* second scope: as sk. It is there if extra_sk or extra_topk is > 0 */
  int32_t extra_topk, extra_page_size, extra_max_pages; /* as topk, page_size, max_pages */
  /* fp8_e4m3: factor of the elements of kv before the rope part, and of those in it. Positive and
   * finite; 0 = 1 */
  float kv_scale, kv_rope_scale;
  int64_t extra_n_pages, extra_kv_stride_page, extra_kv_stride_token;
  int64_t indices_stride_batch, indices_stride_query; /* indices [b][s_q][topk], last contiguous */
  int64_t extra_indices_stride_batch, extra_indices_stride_query;
  /* q_rope [b][s_q][h_q][q_d_rope], last one contiguous */
  int64_t q_rope_stride_batch, q_rope_stride_query, q_rope_stride_head;
  int64_t kv_rope_stride_page, kv_rope_stride_token; /* kv_rope, as those of kv */
  /* > 0 (ref and cpu): a token's key is elements [k_begin, d_qk) of its row, and rows of q have
   * only those. So keys may lie apart from values, other than their beginning: with k_begin = d_v
   * and kv_d_rope = d_qk - d_v, kv holds the values and kv_rope the keys. A multiple of 32 */
  int64_t k_begin;
} amla_problem;

/* clang-format off */
#define AMLA_PROBLEM_INIT                                                                          \
  {(uint32_t)sizeof(amla_problem), 1, 1, 128, 1, 0, 576, 512, 0, 0, 0, AMLA_BF16, AMLA_BF16,       \
   AMLA_BF16, 0, 0.0f, AMLA_MEMORY_HOST, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,                             \
   0, AMLA_INDEX_SLOT, 0, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
/* clang-format on */

/* ---- Options: how, never what ---- */

/* A function of the rows and the sequence's own length: batch-invariant bits. */
#define AMLA_SPLIT_BY_LENGTH 0
/* By occupancy of the threads: not batch-invariant. */
#define AMLA_SPLIT_AUTO (-1)

/* Runs task(argument, i) once for each i in [0, n), in any order, on any threads, and returns
 * when all have returned. */
typedef void (*amla_parallel)(void *context, int32_t n, void (*task)(void *argument, int32_t i),
                              void *argument);

/* Not 0: the run is to end. */
typedef int (*amla_cancel)(void *context);

typedef struct amla_options {
  uint32_t struct_bytes;
  amla_backend backend;
  amla_rescale rescale;
  /* 0 = AMLA_NUM_THREADS if set, else OMP_NUM_THREADS, else what OpenMP has, at most one a core and
   * what affinity and cgroup quota leave; at most 1024. No number changes a bit of the result.
   *
   * After fork: the child of a process that had several threads when it forked runs on one thread.
   * OpenMP's may be among those, and it would wait for them for ever. The bits are the same, and
   * amla_plan_describe says so. The caller's own pool, `parallel`, is left alone. Forks are
   * noticed from the first plan on. */
  int32_t threads;
  amla_isa isa;
  /* AMLA_SPLIT_BY_LENGTH, AMLA_SPLIT_AUTO, or a number >= 1, rounded up to key tiles. cpu: splits
   * begin at multiples of that number, whatever the length: at positions of their scope that are
   * multiples; of lists of slots, which know no positions, at keys. A list of positions begins a
   * split with the first entry at or beyond a multiple. cuda and npu: most keys per split. */
  int32_t split_tokens;
  amla_lse_base lse_base;
  /* cpu: NULL = OpenMP. For engines with a thread pool of their own, so that no second one competes
   * with it. It is called at most twice per run, never with n < 2 or n > threads, in the caller's
   * floating-point environment. An exception or a longjmp may leave it. That ends the run, whose
   * outputs then hold anything, and does no harm to plan and scratch. */
  amla_parallel parallel;
  void *parallel_context;
  amla_lse_sink lse_sink; /* ref and cpu. Of rows that see a key; others' LSE is -inf in both */
  amla_p_form p_form;
  amla_q_form q_form;
  amla_kv_round kv_round;
  /* ref and cpu; others refuse it. NULL = never. Every thread of a run asks it before each key tile
   * (ref: before each 128 keys of a row), at the same time as others and in its own floating-point
   * environment. Once one is told to end all end at their next tile, and amla_plan_run returns
   * AMLA_CANCELLED: outputs then hold anything, and plan and scratch are as before. It must not
   * jump, throw or use AMX. */
  amla_cancel cancel;
  void *cancel_context;
} amla_options;

/* clang-format off */
#define AMLA_OPTIONS_INIT                                                                          \
  {(uint32_t)sizeof(amla_options), AMLA_BACKEND_AUTO, AMLA_RESCALE_DEFAULT, 0, AMLA_ISA_AUTO, 0,   \
   AMLA_LSE_NATURAL, NULL, NULL, AMLA_LSE_WITHOUT_SINK, AMLA_P_DEFAULT, AMLA_Q_DEFAULT,           \
   AMLA_KV_EXACT, NULL, NULL}
/* clang-format on */

/* ---- Tensors: pointers and run-time data ---- */

/* Every buffer comes with its capacity, in bytes, of which the last touched element must be inside.
 * Buffers are aligned to their element. out, lse and max_logits must not overlap any other buffer
 * (refused), scratch none at all (not checked). Nothing past a sequence's length is read: unused
 * slots of its last page, unused pages and unused block-table entries may hold anything. */
typedef struct amla_tensors {
  uint32_t struct_bytes;
  const void *q; /* [b][s_q][h_q][d_qk] q_type */
  size_t q_bytes;
  const void *kv; /* [n_pages][page_size][d_qk] kv_type, or [b][sk][d_qk] */
  size_t kv_bytes;
  const int32_t *block_table; /* [b][max_pages]; NULL when contiguous */
  size_t block_table_bytes;
  const int32_t *seqlens_k; /* [b], each in [0, sk]; NULL = all sk */
  size_t seqlens_k_bytes;
  /* [h_q] logits in natural-log units, or NULL. Scales out by exp(LSE) / (exp(LSE) + exp(sink)),
   * leaves LSE alone, as FlashMLA's attn_sink */
  const float *sinks;
  size_t sinks_bytes;
  void *out; /* [b][s_q][h_q][d_v] out_type; rows that see no key are 0 */
  size_t out_bytes;
  float *lse; /* [b][h_q][s_q] f32, or NULL; rows that see no key are -inf */
  size_t lse_bytes;
  const void *q_rope; /* [b][s_q][h_q][q_d_rope] q_type; NULL when q_d_rope is 0 */
  /* [n_pages][page_size][kv_d_rope] kv_type, or [b][sk][kv_d_rope]; NULL when kv_d_rope is 0 */
  const void *kv_rope;
  /* ref and cpu. [b][s_q][sk] f16, added to scale * q . k of every head; -inf hides the key; NULL =
   * none */
  const void *mask;
  size_t q_rope_bytes, kv_rope_bytes, mask_bytes;
  /* device memory: the CUstream to run on, NULL = the default stream. Host memory: must be NULL */
  void *stream;

  /* Since 0.2; all NULL for dense attention over one cache. */

  /* [b][s_q][topk] tokens of the first scope, as index_kind says. A negative entry is none,
   * wherever it stands; a token listed twice counts twice. Slots are below n_pages * page_size
   * (contiguous: b * sk), and block_table and seqlens_k are not read. Positions are below the
   * sequence's length */
  const int32_t *indices;
  size_t indices_bytes;
  /* [b] or [b][s_q], each in [0, topk]: entries of a list that count, the first ones; NULL = all
   * topk. Those after them may hold anything */
  const int32_t *topk_length;
  size_t topk_length_bytes;
  /* [b][s_q], each in [0, length]: a query sees keys [0, visible_k) of the first scope. NULL = as
   * causal says. Not with causal or topk */
  const int32_t *visible_k;
  size_t visible_k_bytes;
  /* [b + 1], from 0, never falling: sequence i has queries [q_indptr[i], q_indptr[i + 1]), at most
   * s_q. With it every [b][s_q] here and in the problem is [q_indptr[b]], by the query strides,
   * and lse and max_logits are [q_indptr[b]][h_q]. NULL = each has s_q. Not with mask */
  const int32_t *q_indptr;
  size_t q_indptr_bytes;
  /* [b + 1], from 0, never falling: sequence i has pages [kv_indptr[i], kv_indptr[i + 1]) of
   * kv_indices, in place of a row of block_table, which is NULL then */
  const int32_t *kv_indptr;
  size_t kv_indptr_bytes;
  const int32_t *kv_indices; /* [kv_indptr[b]] page ids */
  size_t kv_indices_bytes;
  /* ref and cpu. [b][h_q][s_q] f32, or NULL: the largest scale * q . k of the row that is a number,
   * mask included, in natural-log units; -inf without keys */
  float *max_logits;
  size_t max_logits_bytes;
  const void *extra_kv; /* second scope: as kv, of kv_type too; the others as their namesakes */
  size_t extra_kv_bytes;
  const int32_t *extra_block_table; /* [b][extra_max_pages] */
  size_t extra_block_table_bytes;
  const int32_t *extra_seqlens_k; /* [b] */
  size_t extra_seqlens_k_bytes;
  /* [b][s_q]; NULL = the scope's whole length: causal and window are the first scope's */
  const int32_t *extra_visible_k;
  size_t extra_visible_k_bytes;
  const int32_t *extra_indices; /* [b][s_q][extra_topk] */
  size_t extra_indices_bytes;
  const int32_t *extra_topk_length; /* [b] or [b][s_q] */
  size_t extra_topk_length_bytes;
} amla_tensors;

/* clang-format off */
#define AMLA_TENSORS_INIT                                                                          \
  {(uint32_t)sizeof(amla_tensors), NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL,     \
   0, NULL, NULL, NULL, 0, 0, 0, NULL, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0,       \
   NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0}
/* clang-format on */

/* ---- Plan ---- */

typedef struct amla_plan amla_plan; /* immutable: share it between threads freely */

/* Checks problem and options and chooses backend, micro-kernels and splits. On success *plan is
 * owned by the caller; on a refusal it is NULL. */
AMLA_API amla_status amla_plan_create(amla_plan **plan, const amla_problem *problem,
                                      const amla_options *options, amla_detail *detail);

/* Bytes of scratch that run needs, of any alignment (device memory: as cudaMalloc aligns).
 * Grows with threads and rows; with b and sk only until each thread holds 2 log2(splits) partial
 * results. 0 for NULL. */
AMLA_API size_t amla_plan_scratch_bytes(const amla_plan *plan);

/* Writes one line such as "cpu avx512 lazy, 128 rows x 96 tokens, qk 12x32, pv 8x32, split 576 of
 * 4096, 2 threads" and returns its length without the NUL, as snprintf does. */
AMLA_API int amla_plan_describe(const amla_plan *plan, char *text, size_t capacity_bytes);

/* What a plan chose, for programs. amla_plan_describe says it to people. */
typedef struct amla_plan_info {
  uint32_t struct_bytes;
  amla_backend backend; /* not AUTO */
  amla_rescale rescale; /* not DEFAULT */
  amla_isa isa;         /* of backend cpu; AUTO elsewhere */
  amla_dtype p_type;    /* what P is rounded to on its way to V */
  int32_t threads;      /* most threads of a run; 1 in ref and npu, and in a forked child */
  int32_t block_rows;   /* rows of Q computed together */
  int32_t tile_tokens;  /* keys computed together */
  int64_t split_tokens; /* most keys of a partial result, of a sequence of sk; AMLA_SPLIT_AUTO */
  int32_t simulated;    /* 1: how long a run takes means nothing */
  char kernel[32];      /* "qk 12x32, pv 8x32", "wgmma3", "sim-910"; "" in ref */
  amla_p_form p_form;   /* of ref and cpu, not DEFAULT; elsewhere p_type says it */
  amla_q_form q_form;   /* DEFAULT: q is multiplied as it is */
  amla_dtype key_type;  /* of backend cpu: keys are multiplied as f32, or as bf16 */
  /* of backend cpu: the least share of an L2 that a thread may have; 0: unknown. AMLA_L2_BYTES
   * overrides it */
  int64_t l2_bytes;
} amla_plan_info;

/* clang-format off */
#define AMLA_PLAN_INFO_INIT                                                                        \
  {(uint32_t)sizeof(amla_plan_info), AMLA_BACKEND_AUTO, AMLA_RESCALE_DEFAULT, AMLA_ISA_AUTO,       \
   AMLA_F32, 0, 0, 0, 0, 0, {0}, AMLA_P_DEFAULT, AMLA_Q_DEFAULT, AMLA_F32, 0}
/* clang-format on */

/* Fills info, as much of it as its struct_bytes says. */
AMLA_API amla_status amla_plan_query(const amla_plan *plan, amla_plan_info *info,
                                     amla_detail *detail);

/* Computes out and lse. Re-entrant: concurrent runs of one plan need their own scratch and outputs.
 *
 * Same input, same bits: whatever the number of threads, whatever else is in the batch (with the
 * default split rule), and whatever the caller's rounding mode, flush-to-zero bits or trapped
 * exceptions. These are restored, as in every function here.
 *
 * Refused before any work, outputs untouched: null or short buffers, and scratch smaller than
 * amla_plan_scratch_bytes. In host memory also lengths outside [0, sk], a used page id outside
 * [0, n_pages) and an entry of a list beyond the cache or the sequence. The device clamps the first
 * and reports the second: amla_cuda.h.
 *
 * Range of V: any finite number on ref and cpu, in every rescale mode. On every backend |V| <=
 * FLT_MAX / (2^8 * keys) is safe, and so is |V| <= 2^88 for every sk. Beyond that cuda and npu may
 * return inf. What underflows is lost: up to keys * 2^-109 of an element of out, and keys whose
 * weight is below 2^-86 of the largest (60 nats).
 *
 * Non-finite numbers: a non-finite element of q makes its own row non-finite and no other. A
 * non-finite element of kv makes every row non-finite that sees its token. It may also reach
 * queries of the same sequence that causality, visible_k or the mask hides it from, but never
 * another sequence, and with topk, window or a second scope no other query. An infinite score gives
 * a NaN row. A score counts as infinite, in either sign and mask included, from FLT_MAX / log2(e)
 * = 2.36e38 on; if one of its scaled products or partial sums does; if an element of scale *
 * log2(e) * q beyond f32 takes part in it. Where keys are multiplied in bf16, q . k is summed
 * unscaled, and such a sum may not leave f32 either. ref may be right for some of them. */
AMLA_API amla_status amla_plan_run(const amla_plan *plan, const amla_tensors *tensors,
                                   void *scratch, size_t scratch_bytes, amla_detail *detail);

/* NULL is allowed. */
AMLA_API void amla_plan_destroy(amla_plan *plan);

/* ---- Shards: one run over caches that lie apart ---- */

#define AMLA_MAX_SHARDS 4096 /* of a finish */

/* The keys of a sequence may be shared out over parts, such as the machines of a cluster. Each part
 * runs over its own keys and leaves partial results that are not normalised yet. Whoever has those
 * of all parts finishes them, any heads of any rows. The result has the bits of one amla_plan_run
 * over all keys.
 *
 * Shards are of whole splits: of backend cpu, with options.split_tokens >= 1, and not of lists of
 * slots. Every part has the same problem (n_pages, strides and threads aside), options and
 * instruction set, and tensors that say the same: lengths, visible_k and lists are of whole
 * sequences. Only kv differs: pages of other parts and their entries in the block table are never
 * read, and may be anything. So page_size must be >= 1. A contiguous part of a cache is a page.
 *
 * A record is what a shard knows of a row from one node of the merge tree: f32
 *     O [d_v], reference, sum of P [, sum of P as rounded] [, largest score]
 * with the first bracket where P is rounded (amla_plan_info.p_type) and the second where max_logits
 * are asked for. O is sum P v times 2^-headroom, the reference and the largest score are in log2
 * units. Without a key the reference is -inf, and O and sums are 0. */
typedef struct amla_shard {
  uint32_t struct_bytes;
  int32_t n_entries; /* of finish: records of a row, as amla_shard_info has it */
  /* [b] positions [begin, end) of the first scope: multiples of amla_plan_info.split_tokens, but an
   * end may be the sequence's or lie beyond it. Where it is not above begin there are no keys. */
  const int32_t *begin, *end;
  size_t begin_bytes, end_bytes;
  const int32_t *extra_begin, *extra_end; /* of the second scope; NULL without one */
  size_t extra_begin_bytes, extra_end_bytes;
  /* Rows [row_begin, row_end) in the order [b][s_q][h_q], or of ragged queries [total][h_q]; 0 and
   * 0: all. Each is a multiple of 32 or a last one, counted from its sequence's first row; with
   * topk, window or a second scope from its query's first row. */
  int64_t row_begin, row_end;
  int32_t head_begin, head_end; /* of finish: those of the rows' heads that there are records of,
                                   and results wanted; 0 and 0: all */
  float *records;               /* [rows][n_entries] records */
  size_t records_bytes;
} amla_shard;

#define AMLA_SHARD_INIT                                                                            \
  {(uint32_t)sizeof(amla_shard), 0, NULL, NULL, 0, 0, NULL, NULL, 0, 0, 0, 0, 0, 0, NULL, 0}

typedef struct amla_shard_info {
  uint32_t struct_bytes;
  int32_t n_entries;     /* most records of a row; of others the last ones are empty */
  int32_t record_floats; /* f32 of a record */
  int64_t n_rows;        /* from row_begin to row_end */
  int64_t n_row_keys;    /* keys of the shard, summed over rows: the run's work */
  size_t records_bytes;  /* n_rows * n_entries * record_floats * 4 */
} amla_shard_info;

#define AMLA_SHARD_INFO_INIT {(uint32_t)sizeof(amla_shard_info), 0, 0, 0, 0, 0}

/* Bytes of scratch, of any alignment, that run and finish need, whatever the shard. 0 where the
 * plan has no shards. */
AMLA_API size_t amla_shard_scratch_bytes(const amla_plan *plan);

/* What a run over the shard leaves. Checks everything that amla_shard_run checks but records and
 * scratch. Of tensors out may be NULL. */
AMLA_API amla_status amla_shard_query(const amla_plan *plan, const amla_tensors *tensors,
                                      const amla_shard *shard, amla_shard_info *info,
                                      amla_detail *detail);

/* Computes the shard's records; n_entries and heads of `shard` are not read. Writes nothing else:
 * out may be NULL. max_logits is not written: whether it is NULL says what records hold. Refusals
 * as of amla_plan_run, of the shard's own pages, and of sequences and queries with rows of its own;
 * of records that overlap what is read. options.cancel is asked, and may end it: records then hold
 * anything. */
AMLA_API amla_status amla_shard_run(const amla_plan *plan, const amla_tensors *tensors,
                                    const amla_shard *shard, void *scratch, size_t scratch_bytes,
                                    amla_detail *detail);

/* Refuses what amla_shard_finish would of tensors, before there are records. */
AMLA_API amla_status amla_shard_check_outputs(const amla_plan *plan, const amla_tensors *tensors,
                                              amla_detail *detail);

/* Merges the records of all shards and writes out, lse and max_logits of their rows and heads, and
 * of no other. Sinks are applied here. Of tensors q, kv, tables and mask may be NULL.
 *   shards [n_shards], at most AMLA_MAX_SHARDS, in the order of tokens: each begins where the one
 *   before it ended, and together they have every key of every row. Rows and heads are those of the
 *   first one. Nothing of them overlaps out, lse or max_logits. */
AMLA_API amla_status amla_shard_finish(const amla_plan *plan, const amla_tensors *tensors,
                                       int32_t n_shards, const amla_shard *shards, void *scratch,
                                       size_t scratch_bytes, amla_detail *detail);

/* ---- Merge ---- */

/* Merges partial results over disjoint sets of keys (context-parallel or split decode), each
 * normalised, with its LSE:
 *     LSE = log sum_p exp(LSE_p)        O = sum_p exp(LSE_p - LSE) O_p
 * in the order of the parts, in f32. Parts with LSE = -inf are left out, whatever their O holds;
 * if all are, O = 0 and LSE = -inf. A part whose LSE is NaN or +inf makes its row NaN. out and
 * lse may be the first part itself; any other overlap is refused.
 *   o   [n_parts][n_rows][d_v], lse_parts [n_parts][n_rows], out [n_rows][d_v],
 *       lse [n_rows] or NULL; capacities in bytes.
 * Source: FlashDecoding; arXiv 2205.14135, section 3. Sinks: apply them once, after the merge. */
AMLA_API amla_status amla_merge(int32_t n_parts, int64_t n_rows, int32_t d_v, amla_lse_base base,
                                const float *o, size_t o_bytes, const float *lse_parts,
                                size_t lse_parts_bytes, float *out, size_t out_bytes, float *lse,
                                size_t lse_bytes, amla_detail *detail);

/* Merges parts as amla_merge does, over the same arithmetic: parts apart in memory, a sink, an out
 * type, and either mark of an empty part. Strides count elements; 0 = packed in the order given. */
typedef enum amla_empty_lse {
  AMLA_EMPTY_MINUS_INF = 0, /* a part without keys has LSE -inf, as here; +inf makes its row NaN */
  AMLA_EMPTY_PLUS_INF = 1   /* +inf, as FlashMLA has it; -inf means the same */
} amla_empty_lse;

typedef struct amla_merge_args {
  uint32_t struct_bytes;
  int32_t n_parts;
  int64_t n_rows;
  int32_t d_v; /* Default 512 */
  amla_lse_base base;
  amla_empty_lse empty; /* of lse_parts; lse has the same mark where all parts are empty */
  amla_dtype out_type;  /* f32, bf16, f16; rounded to nearest even. Default f32 */
  const float *o;       /* [n_parts][n_rows][d_v], last one contiguous */
  size_t o_bytes;
  int64_t o_stride_part, o_stride_row;
  const float *lse_parts; /* [n_parts][n_rows] */
  size_t lse_parts_bytes;
  int64_t lse_parts_stride_part, lse_parts_stride_row;
  /* [n_heads] logits in natural-log units, or NULL: one key more, without a value. For parts that
   * have not had it. Row r is of head r / head_rows % n_heads: head_rows is 1 for rows [..][h_q],
   * s_q for rows [..][h_q][s_q]. */
  const float *sinks;
  size_t sinks_bytes;
  int32_t n_heads;
  int32_t head_rows; /* 0 = 1 */
  int32_t lse_sink;  /* 0: lse is without the sink; 1: with it, of empty rows the sink itself */
  void *out;         /* [n_rows][d_v] out_type */
  size_t out_bytes;
  int64_t out_stride_row;
  float *lse; /* [n_rows], or NULL */
  size_t lse_bytes;
  int64_t lse_stride_row;
} amla_merge_args;

/* clang-format off */
#define AMLA_MERGE_ARGS_INIT                                                                       \
  {(uint32_t)sizeof(amla_merge_args), 1, 0, 512, AMLA_LSE_NATURAL, AMLA_EMPTY_MINUS_INF, AMLA_F32, \
   NULL, 0, 0, 0, NULL, 0, 0, 0, NULL, 0, 0, 0, 0, NULL, 0, 0, NULL, 0, 0}
/* clang-format on */

/* out and lse may take the place of the first part if type and row stride are the same; any other
 * overlap of what they span is refused, as are rows of out that overlap. */
AMLA_API amla_status amla_merge_parts(const amla_merge_args *args, amla_detail *detail);

/* ---- The indexer of sparse attention (DeepSeek-V3.2, GLM-5) ---- */

/* The indexer's key cache. P is page_size, or sk in a contiguous cache, where a page is a sequence.
 * Elements are fp8 e4m3fn, each times its token's f32 scale. */
typedef enum amla_index_keys {
  AMLA_INDEX_KEYS_BF16 = 0, /* [P][d] bf16 */
  /* index_132: per page [P][d] fp8, then [P] scales; with d = 128, 132 P bytes */
  AMLA_INDEX_KEYS_FP8_PAGE = 1,
  AMLA_INDEX_KEYS_FP8_TOKEN = 2, /* [P] records of [d] fp8 and a scale; with d = 128, 132 bytes */
  AMLA_INDEX_KEYS_TYPED = 3      /* [P][d] k_type */
} amla_index_keys;

/* Shapes, types and pointers of amla_index_topk. Strides count elements, of fp8 keys bytes; 0 =
 * packed. Capacities are in bytes. */
typedef struct amla_index_args {
  uint32_t struct_bytes;
  int32_t b, s_q;    /* sequences, may be 0; queries of each. Default of s_q 1 */
  int32_t heads;     /* Default 64 */
  int32_t d;         /* a multiple of 32. Default 128 */
  int32_t sk;        /* maximum length of a sequence; may be 0 */
  int32_t topk;      /* entries of a list. Default 2048; 0 with scores = scores only */
  int32_t page_size; /* 0 = contiguous, k is [b][sk] */
  int32_t max_pages; /* entries per row of the block table; 0 = ceil(sk / page_size) */
  int64_t n_pages;   /* page ids must be in [0, n_pages). Contiguous: 0 */
  amla_dtype q_type; /* f32, bf16, f16, fp8_e4m3. Default bf16 */
  amla_index_keys keys;
  amla_index_kind index_kind;                            /* of indices */
  int32_t causal;                                        /* as in amla_problem */
  int64_t q_stride_batch, q_stride_query, q_stride_head; /* of q [b][s_q][heads][d] */
  int64_t k_stride_page;                                 /* pages; contiguous: sequences */
  int64_t k_stride_token;                                /* FP8_PAGE: 0 or d */
  const void *q;
  size_t q_bytes;
  const float *q_scales; /* [b][s_q][heads], factors of fp8 q; NULL = 1 */
  size_t q_scales_bytes;
  const float *weights; /* [b][s_q][heads] */
  size_t weights_bytes;
  const void *k; /* [n_pages] pages */
  size_t k_bytes;
  const int32_t *block_table; /* [b][max_pages]; NULL when contiguous */
  size_t block_table_bytes;
  const int32_t *seqlens_k; /* [b], each in [0, sk]; NULL = all sk */
  size_t seqlens_k_bytes;
  /* [b][s_q], each in [0, length]: the query sees keys [0, visible_k). NULL = by length and causal;
   * refused beside causal = 1 */
  const int32_t *visible_k;
  size_t visible_k_bytes;
  int32_t *indices; /* [b][s_q][topk] */
  size_t indices_bytes;
  float *scores; /* [b][s_q][sk], -inf from the first key on that the query does not see; or NULL */
  size_t scores_bytes;
  /* of KEYS_TYPED: f32, bf16, f16 or ggml's blocks, strides of which are multiples of 32; else 0 */
  amla_dtype k_type;
} amla_index_args;

/* clang-format off */
#define AMLA_INDEX_ARGS_INIT                                                                       \
  {(uint32_t)sizeof(amla_index_args), 1, 1, 64, 128, 0, 2048, 0, 0, 0, AMLA_BF16,                  \
   AMLA_INDEX_KEYS_BF16, AMLA_INDEX_SLOT, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0,    \
   NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, AMLA_F32}
/* clang-format on */

/* Bytes of scratch, of any alignment, that amla_index_topk needs: a function of threads, heads, d
 * and min(topk, sk), not of b or s_q. Reads shapes and types only. */
AMLA_API amla_status amla_index_scratch_bytes(const amla_index_args *args,
                                              const amla_options *options, size_t *scratch_bytes,
                                              amla_detail *detail);

/* For each query, the topk keys of highest score
 *     score(t) = sum_h weights[h] * max(0, q[h] . k[t])
 * in ascending position, then -1 where the query sees fewer keys than topk; those it sees are then
 * all listed. Of equal scores the lower position goes first; +inf ranks first, NaN last, and -0 is
 * 0. Numerics: docs/indexer.md.
 *
 * Runs on the CPU. Of the options, threads, isa and parallel count; backend is AUTO or CPU. Same
 * input, same bits, whatever the threads and the rest of the batch. Nothing is allocated. Refused
 * before any work, as by amla_plan_run: also an index that would leave int32, and outputs that
 * overlap another buffer. */
AMLA_API amla_status amla_index_topk(const amla_index_args *args, const amla_options *options,
                                     void *scratch, size_t scratch_bytes, amla_detail *detail);
/* ---- Writing a cache ---- */

/* Tokens for a cache, in host memory. Strides count elements of their tensor, bytes in fp8_656 and
 * fp8_584; 0 = packed. */
typedef struct amla_cache_write_args {
  uint32_t struct_bytes;
  int32_t d_latent;  /* 512; 448 in fp8_584. Default 512 */
  int32_t d_rope;    /* 64; 0 = none. Default 64 */
  int32_t page_size; /* tokens per page, >= 1. A contiguous cache has one page a sequence */
  int64_t n_pages;   /* n_pages * page_size <= 2^31 - 1 */
  int64_t n_tokens;
  amla_dtype type;    /* of latent and rope: f32, bf16, f16 */
  amla_dtype kv_type; /* as in amla_problem */
  int32_t kv_d_rope;  /* 0: a row of kv ends with its rope part; d_rope: that is in kv_rope */
  int32_t any_scale;  /* fp8_656: 0: powers of two, as DeepSeek writes them; 1: any, as GLM does */
  float kv_scale, kv_rope_scale;      /* fp8_e4m3: as in amla_problem, given, not found; 0 = 1 */
  int64_t latent_stride, rope_stride; /* between tokens */
  int64_t kv_stride_page, kv_stride_token, kv_rope_stride_page, kv_rope_stride_token;
  const void *latent; /* [n_tokens][d_latent] */
  size_t latent_bytes;
  const void *rope; /* [n_tokens][d_rope]; NULL if d_rope is 0 */
  size_t rope_bytes;
  const int64_t *slot_mapping; /* [n_tokens] page * page_size + offset; -1: the token is left out */
  size_t slot_mapping_bytes;
  void *kv; /* [n_pages][page_size] rows */
  size_t kv_bytes;
  void *kv_rope; /* [n_pages][page_size][d_rope]; NULL if kv_d_rope is 0 */
  size_t kv_rope_bytes;
} amla_cache_write_args;

/* clang-format off */
#define AMLA_CACHE_WRITE_ARGS_INIT                                                                 \
  {(uint32_t)sizeof(amla_cache_write_args), 512, 64, 0, 0, 0, AMLA_BF16, AMLA_BF16, 0, 0, 0.0f,    \
   0.0f, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0}
/* clang-format on */

/* Writes each token to its slot and nothing else. Of several tokens for one slot the last one
 * stays. Of options threads, parallel and isa count, and change no bit; NULL = the defaults.
 *
 * An element of the cache's own type keeps its bits. Others are rounded to nearest even:
 *   f32, bf16, f16: f16 overflows to infinity.
 *   q8_0: d = largest magnitude of the block / 127. A block whose d leaves f16, or with an element
 *     that is not finite, reads as NaN. Of other blocks likewise:
 *   q4_0, q5_0, iq4_nl: code 0 is the element of largest magnitude, d that over -8, -16, -127.
 *   q4_1, q5_1: m = the least element, d = the largest one less the least, over 15 or 31.
 *     The codes are the nearest ones by d and m as they are stored.
 *   fp8_656, fp8_584: a group's scale = its largest finite magnitude / 448, at least 1e-4, rounded
 *     up to a power of two (but any_scale). Elements are divided by it in f32, rounded to e4m3, and
 *     saturate at 448, infinities too. NaN stays NaN. The rope part is bf16.
 *   fp8_e4m3: the same by the scales that are given.
 * Refused before anything is written: shapes, short buffers, buffers that overlap, slots outside
 * the cache. */
AMLA_API amla_status amla_cache_write(const amla_cache_write_args *args,
                                      const amla_options *options, amla_detail *detail);

/* ---- Backends ---- */

typedef struct amla_backend_info {
  uint32_t struct_bytes;
  int32_t available; /* 1 or 0 */
  char name[16];     /* "ref", "cpu", "cuda", "npu" */
  char isa[16]; /* instruction set that a plan without cap would use; "" where that means nothing */
  char reason[160]; /* why it is absent; "" when available */
} amla_backend_info;

#define AMLA_BACKEND_INFO_INIT {(uint32_t)sizeof(amla_backend_info), 0, {0}, {0}, {0}}

/* Fills info for REF, CPU, CUDA or NPU (AUTO is refused). */
AMLA_API amla_status amla_backend_query(amla_backend backend, amla_backend_info *info,
                                        amla_detail *detail);

#ifdef __cplusplus
}
#endif
#endif
