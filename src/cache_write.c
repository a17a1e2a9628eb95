/* SPDX-License-Identifier: Apache-2.0
 *
 * amla_cache_write: checks, and tokens shared out over threads. What becomes of an element is in
 * cpu/encode_loops.h.
 */
#include <stdint.h>

#include "checks.h"
#include "cpu/encode_rows.h"
#include "cpu/parallel.h"
#include "float_environment.h"
#include "forked.h"
#include "kv_layout.h"
#include "problem.h"

enum {
  MAX_ELEMS = 65536, /* of a part of a row, as d_qk */
  ELEM_FLOPS = 30,   /* how many take as long as an element */
  SHARE_SLOTS = 16   /* neighbours that one thread writes: their footers share cache lines */
};

/* ---- Checks ---- */

static int is_record(amla_dtype type) { return type == AMLA_FP8_656 || type == AMLA_FP8_584; }

/* Elements of a row of kv, and the part of them that the latent part has. */
static int32_t row_dims(const amla_cache_write_args *a) {
  return a->d_latent + a->d_rope - a->kv_d_rope;
}

static amla_status check_record(const amla_cache_write_args *a, amla_detail *detail) {
  const int32_t d_latent = a->kv_type == AMLA_FP8_656 ? AMLA_FP8_656_LATENT : AMLA_FP8_584_LATENT;
  const char *name = amla_dtype_name(a->kv_type);
  if (a->d_latent != d_latent)
    INVALID("d_latent=%d: must be %d for kv_type=%s", a->d_latent, d_latent, name);
  if (a->d_rope != AMLA_FP8_ROPE)
    INVALID("d_rope=%d: must be %d for kv_type=%s", a->d_rope, AMLA_FP8_ROPE, name);
  if (a->kv_d_rope != 0)
    INVALID("kv_d_rope=%d: must be 0 for kv_type=%s, whose records have it", a->kv_d_rope, name);
  return AMLA_OK;
}

static amla_status check_types(amla_cache_write_args *a, amla_detail *detail) {
  TRY(check_range("type", a->type, AMLA_F32, AMLA_N_FLOAT_DTYPES - 1, detail));
  TRY(check_range("kv_type", a->kv_type, AMLA_F32, AMLA_N_DTYPES - 1, detail));
  TRY(check_range("any_scale", a->any_scale, 0, 1, detail));
  if (a->any_scale && a->kv_type != AMLA_FP8_656)
    INVALID("any_scale=1: must be 0 for kv_type=%s, only fp8_656 holds such scales",
            amla_dtype_name(a->kv_type));
  TRY(fill_kv_scale("kv_scale", a->kv_type, &a->kv_scale, detail));
  TRY(fill_kv_scale("kv_rope_scale", a->kv_type, &a->kv_rope_scale, detail));
  if (a->kv_d_rope != 0 && a->kv_d_rope != a->d_rope)
    INVALID("kv_d_rope=%d: must be 0 or d_rope=%d", a->kv_d_rope, a->d_rope);
  return is_record(a->kv_type) ? check_record(a, detail) : AMLA_OK;
}

/* Parts and strides of q8_0 are whole blocks. */
static amla_status check_blocks(const amla_cache_write_args *a, amla_detail *detail) {
  const struct {
    const char *name;
    int64_t value;
  } sizes[] = {{"d_latent", a->d_latent},
               {"d_rope", a->d_rope},
               {"kv_stride_token", a->kv_stride_token},
               {"kv_stride_page", a->kv_stride_page},
               {"kv_rope_stride_token", a->kv_rope_stride_token},
               {"kv_rope_stride_page", a->kv_rope_stride_page}};
  const int32_t block = amla_block_elems(a->kv_type);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (sizes[i].value % block != 0)
      INVALID("%s=%lld: must be a multiple of %d for this kv_type", sizes[i].name,
              (long long)sizes[i].value, block);
  return AMLA_OK;
}

/* Rows may lie in any order, but not in each other. A page of fp8_584 is one run. */
static amla_status check_cache(amla_cache_write_args *a, amla_detail *detail) {
  const int64_t pages = a->n_pages, tokens = a->page_size;
  static const cache_names names = {"kv", "kv_stride_page", "kv_stride_token"};
  TRY(fill_kv_strides(names, a->kv_type, row_dims(a), "d_qk", tokens, &a->kv_stride_page,
                      &a->kv_stride_token, detail));
  TRY(fill_stride("kv_rope_stride_token", &a->kv_rope_stride_token, a->kv_d_rope, 1, detail));
  TRY(fill_stride("kv_rope_stride_page", &a->kv_rope_stride_page, tokens, a->kv_rope_stride_token,
                  detail));
  TRY(check_blocks(a, detail));
  const int is_584 = a->kv_type == AMLA_FP8_584;
  axis kv[] = {{"kv_stride_page", pages, a->kv_stride_page},
               {"kv_stride_token", is_584 ? 1 : tokens, a->kv_stride_token}};
  axis rope[] = {{"kv_rope_stride_page", pages, a->kv_rope_stride_page},
                 {"kv_rope_stride_token", tokens, a->kv_rope_stride_token}};
  const int64_t row = amla_row_elems(a->kv_type, row_dims(a));
  const int64_t footed = tokens * (AMLA_FP8_584_BYTES + AMLA_FP8_584_SCALES);
  if (pages == 0)
    return AMLA_OK;
  TRY(check_kv_extent(
      "kv",
      kv_extent(a->kv_type, row_dims(a), pages, tokens, a->kv_stride_page, a->kv_stride_token),
      detail));
  TRY(check_extent("kv_rope", rope, 2, a->kv_d_rope, detail));
  TRY(check_disjoint("kv", kv, 2, is_584 ? footed : row, detail));
  return a->kv_d_rope > 0 ? check_disjoint("kv_rope", rope, 2, a->kv_d_rope, detail) : AMLA_OK;
}

static amla_status check_args(const amla_cache_write_args *args, amla_cache_write_args *a,
                              amla_detail *detail) {
  TRY(copy_struct("args", args, a, sizeof *a, sizeof *a, detail));
  TRY(check_range("d_latent", a->d_latent, 1, MAX_ELEMS, detail));
  TRY(check_range("d_rope", a->d_rope, 0, MAX_ELEMS, detail));
  TRY(check_range("page_size", a->page_size, 1, INT32_MAX, detail));
  TRY(check_range("n_pages", a->n_pages, 0, INT64_MAX, detail));
  const axis pages = {"n_pages", a->n_pages, 0}, page = {"page_size", a->page_size, 0};
  TRY(check_slots(pages, page, detail));
  TRY(check_range("n_tokens", a->n_tokens, 0, INT64_MAX / 8, detail));
  TRY(check_types(a, detail));
  TRY(fill_stride("latent_stride", &a->latent_stride, a->d_latent, 1, detail));
  TRY(fill_stride("rope_stride", &a->rope_stride, a->d_rope, 1, detail));
  return check_cache(a, detail);
}

static amla_status check_buffers(const amla_cache_write_args *a, amla_detail *detail) {
  if (a->rope && a->d_rope == 0)
    INVALID("rope=%p: must be NULL when d_rope is 0", a->rope);
  if (a->kv_rope && a->kv_d_rope == 0)
    INVALID("kv_rope=%p: must be NULL when kv_d_rope is 0", a->kv_rope);
  const axis latent = {"", a->n_tokens, a->latent_stride}, rope = {"", a->n_tokens, a->rope_stride};
  const axis kv_rope[] = {{"", a->n_pages, a->kv_rope_stride_page},
                          {"", a->page_size, a->kv_rope_stride_token}};
  TRY(check_extent("latent", &latent, 1, a->d_latent, detail));
  TRY(check_extent("rope", &rope, 1, a->d_rope, detail));
  const int64_t kv = a->n_pages == 0 ? 0
                                     : kv_extent(a->kv_type, row_dims(a), a->n_pages, a->page_size,
                                                 a->kv_stride_page, a->kv_stride_token);
  const int64_t kv_rope_elems =
      a->n_pages > 0 && a->kv_d_rope > 0 ? extent_elems(kv_rope, 2, a->kv_d_rope) : 0;
  const size_t align = amla_dtype_align(a->type), kv_align = amla_dtype_align(a->kv_type);
  const extent extents[] = {
      {"kv", a->kv, a->kv_bytes, amla_elems_bytes(a->kv_type, kv), kv_align},
      {"kv_rope", a->kv_rope, a->kv_rope_bytes, amla_elems_bytes(a->kv_type, kv_rope_elems),
       kv_align},
      {"latent", a->latent, a->latent_bytes,
       amla_elems_bytes(a->type, extent_elems(&latent, 1, a->d_latent)), align},
      {"rope", a->rope, a->rope_bytes,
       a->d_rope > 0 ? amla_elems_bytes(a->type, extent_elems(&rope, 1, a->d_rope)) : 0, align},
      {"slot_mapping", a->slot_mapping, a->slot_mapping_bytes, a->n_tokens * 8, 8}};
  const int n = (int)(sizeof extents / sizeof *extents), n_outputs = 2;
  for (int i = 0; i < n; i++)
    TRY(check_buffer(&extents[i], detail));
  for (int i = 0; i < n_outputs; i++)
    for (int j = i + 1; j < n; j++)
      TRY(check_overlap(&extents[i], &extents[j], detail));
  return AMLA_OK;
}

static amla_status check_mapping(const amla_cache_write_args *a, amla_detail *detail) {
  const int64_t n_slots = a->n_pages * a->page_size;
  for (int64_t i = 0; i < a->n_tokens; i++)
    if (a->slot_mapping[i] < -1 || a->slot_mapping[i] >= n_slots)
      INVALID("slot_mapping[%lld]=%lld: the cache has %lld slots, and -1 is none", (long long)i,
              (long long)a->slot_mapping[i], (long long)n_slots);
  return AMLA_OK;
}

/* ---- Work ---- */

typedef struct job {
  const amla_cache_write_args *args;
  amla_encoding encoding;
  amla_encode_token *encode;
  int32_t n;
} job;

static amla_encoded slot_at(const amla_cache_write_args *a, int64_t page, int64_t slot) {
  char *kv = a->kv, *kv_rope = a->kv_rope, *scales = NULL;
  const int64_t at = page * a->kv_stride_page + slot * a->kv_stride_token;
  char *row = kv + amla_elems_bytes(a->kv_type, at);
  char *rope = row + amla_elems_bytes(a->kv_type, a->d_latent);
  if (a->kv_type == AMLA_FP8_656)
    rope = row + AMLA_FP8_656_ROPE_AT;
  if (a->kv_type == AMLA_FP8_584)
    scales = kv + page * a->kv_stride_page + amla_fp8_584_scales_at(a->page_size, slot);
  if (a->kv_d_rope > 0)
    rope = kv_rope + amla_elems_bytes(a->kv_type, page * a->kv_rope_stride_page +
                                                      slot * a->kv_rope_stride_token);
  return (amla_encoded){row, rope, scales};
}

/* A slot belongs to one task, which sees its tokens in order: the last one stays. */
static void write_share(void *argument, int32_t task) {
  const job *j = argument;
  const amla_cache_write_args *a = j->args;
  const fenv_t threads_own = amla_enter_environment();
  for (int64_t i = 0; i < a->n_tokens; i++) {
    const int64_t slot = a->slot_mapping[i];
    if (slot < 0 || slot / SHARE_SLOTS % j->n != task)
      continue;
    const char *latent = (const char *)a->latent + amla_elems_bytes(a->type, i * a->latent_stride);
    const char *rope = NULL;
    if (a->d_rope > 0)
      rope = (const char *)a->rope + amla_elems_bytes(a->type, i * a->rope_stride);
    j->encode(&j->encoding, latent, rope, slot_at(a, slot / a->page_size, slot % a->page_size));
  }
  amla_leave_environment(&threads_own);
}

/* Checks everything and says what is to do. `a` are the arguments with every default filled in. */
static amla_status prepare(const amla_cache_write_args *args, const amla_options *options,
                           amla_cache_write_args *a, amla_options *o, job *j, amla_detail *detail) {
  TRY(check_args(args, a, detail));
  TRY(amla_options_check(options, o, detail));
  if (a->n_tokens == 0)
    return AMLA_OK;
  TRY(check_buffers(a, detail));
  TRY(check_mapping(a, detail));
  amla_watch_forks();
  const amla_encoding encoding = {a->type,     a->kv_type,       a->d_latent, a->d_rope,
                                  a->kv_scale, a->kv_rope_scale, a->any_scale};
  const double flops = (double)a->n_tokens * (a->d_latent + a->d_rope) * ELEM_FLOPS;
  *j = (job){a, encoding, amla_encode_token_select(o->isa), amla_useful_threads(o, flops)};
  return AMLA_OK;
}

/* Scales are compared, and FLOPs counted, in our floating-point environment. `parallel` runs in the
 * caller's. */
amla_status amla_cache_write(const amla_cache_write_args *args, const amla_options *options,
                             amla_detail *detail) {
  amla_cache_write_args a;
  amla_options o;
  job j = {.n = 0};
  const fenv_t callers = amla_enter_environment();
  const amla_status status = prepare(args, options, &a, &o, &j, detail);
  amla_leave_environment(&callers);
  if (status != AMLA_OK)
    return status;
  if (j.n == 1)
    write_share(&j, 0);
  if (j.n > 1)
    amla_run_parallel(&o, j.n, write_share, &j);
  return amla_accept(detail);
}
