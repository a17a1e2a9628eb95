/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend on the host: what it takes, which kernel, how scratch is carved, one launch per
 * run. Nothing here needs a CUDA header.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/arena.h"
#include "../refuse.h"
#include "../plan.h"
#include "../problem.h"
#include "cuda_device.h"

enum { AUTO_MAX_SPLITS = 64, SCRATCH_ALIGN = 4 };

typedef struct kernel_shape {
  const char *name;
  int32_t rows, tile_tokens;
} kernel_shape;
static const kernel_shape shapes[] = {{"mma32", 32, 16},  {"mma64", 64, 32},   {"wgmma2", 64, 64},
                                      {"wgmma3", 64, 64}, {"wgmma3c", 64, 64}, {"wgmma16", 64, 64}};

/* What a plan keeps. */
typedef struct cuda_plan {
  amla_cuda_device device;
  amla_cuda_kernel kernel; /* the best that problem and device allow; a run whose cache has no map
                              takes MMA64 instead of a wgmma kernel */
  int32_t grid, n_slots;
  int32_t split_base_tokens, max_splits, auto_items;
} cuda_plan;

/* ---- Which kernel ---- */

/* AMLA_CUDA_KERNEL caps the choice, as AMLA_ISA does on the CPU: for tests and comparisons. Returns
 * 0 where it names no kernel. */
static int kernel_cap(amla_cuda_kernel *cap) {
  const char *text = getenv("AMLA_CUDA_KERNEL");
  *cap = AMLA_CUDA_WGMMA3;
  if (!text || !*text)
    return 1;
  for (int i = 0; i < AMLA_CUDA_N_KERNELS; i++)
    if (strcmp(text, shapes[i].name) == 0)
      return *cap = (amla_cuda_kernel)i, 1;
  return 0;
}

static amla_cuda_kernel best_kernel(const amla_cuda_device *d, amla_cuda_kernel cap) {
  if (d->shared_bytes < 163 * 1024 || cap == AMLA_CUDA_MMA32)
    return AMLA_CUDA_MMA32;
  return d->major == 9 && amla_cuda_is_wgmma(cap) ? cap : AMLA_CUDA_MMA64;
}

/* The tensor map wants boxes that fit pages, and strides of 16 bytes below 2^40. */
static int map_fits(const amla_problem *p) {
  const int64_t page_bytes = p->kv_stride_page * 2, token_bytes = p->kv_stride_token * 2,
                limit = INT64_C(1) << 40;
  const int64_t pages = p->page_size > 0 ? p->n_pages : p->b;
  return amla_cuda_box_tokens(p->page_size) > 0 && page_bytes % 16 == 0 && token_bytes % 16 == 0 &&
         page_bytes < limit && token_bytes < limit && pages >= 1 && pages <= INT32_MAX;
}

/* ---- Prepare ---- */

static amla_status check_problem(const amla_plan *plan, amla_detail *detail) {
  const amla_problem *p = &plan->problem;
  if (p->kv_type != AMLA_BF16 && p->kv_type != AMLA_F16)
    UNSUPPORTED("kv_type=%s: cuda has bf16 and f16", amla_dtype_name(p->kv_type));
  if (p->q_type != p->kv_type)
    UNSUPPORTED("q_type=%s: cuda needs that of kv, %s", amla_dtype_name(p->q_type),
                amla_dtype_name(p->kv_type));
  if (p->d_v != AMLA_CUDA_D_V || (p->d_qk != 576 && p->d_qk != 512))
    UNSUPPORTED("d_qk=%d, d_v=%d: cuda has 576/512 and 512/512", p->d_qk, p->d_v);
  if (plan->options.rescale == AMLA_RESCALE_AMLA)
    UNSUPPORTED("rescale=amla: cuda has lazy and flash; lazy makes the same shifts, as "
                "multiplications, which are faster there");
  return AMLA_OK;
}

static void choose_splits(const amla_plan *plan, const kernel_shape *shape, cuda_plan *c) {
  const amla_problem *p = &plan->problem;
  const int32_t rows = p->s_q * p->h_q, option = plan->options.split_tokens;
  if (option == AMLA_SPLIT_AUTO) {
    c->auto_items = c->device.multiprocessors;
    c->split_base_tokens = 2 * shape->tile_tokens;
    c->max_splits = AUTO_MAX_SPLITS;
  } else if (option == AMLA_SPLIT_BY_LENGTH) {
    c->split_base_tokens = amla_cuda_rule_base(rows, shape->rows);
    c->max_splits = amla_cuda_rule_max_splits(rows);
  } else {
    const int64_t tokens =
        ((int64_t)option + shape->tile_tokens - 1) / shape->tile_tokens * shape->tile_tokens;
    c->split_base_tokens = tokens > 1 << 30 ? 1 << 30 : (int32_t)tokens;
    c->max_splits = amla_cuda_ceil_div(p->sk, c->split_base_tokens);
  }
  c->max_splits = amla_cuda_min(c->max_splits, amla_cuda_ceil_div(p->sk, c->split_base_tokens));
}

static amla_status prepare_in(amla_plan *plan, cuda_plan *c, amla_detail *detail);
static void *carve(const amla_plan *plan, const cuda_plan *c, void *scratch,
                   amla_cuda_params *params, size_t *zero_bytes, size_t *bytes);

static amla_status prepare(amla_plan *plan, amla_detail *detail) {
  cuda_plan c = {0};
  const amla_status status = prepare_in(plan, &c, detail);
  if (status != AMLA_OK)
    return status;
  plan->state = malloc(sizeof c);
  if (!plan->state)
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "plan: no memory for %zu bytes", sizeof c);
  memcpy(plan->state, &c, sizeof c);
  return AMLA_OK;
}

/* The plan's kernel, and what a run may take instead. */
static const char *prepare_kernels(const cuda_plan *c, const amla_problem *p) {
  const int f16 = p->kv_type == AMLA_F16;
  const char *why = amla_cuda_device_prepare(c->kernel, f16, p->d_qk);
  if (!why && amla_cuda_is_wgmma(c->kernel))
    why = amla_cuda_device_prepare(AMLA_CUDA_MMA64, f16, p->d_qk);
  return why;
}

static amla_status prepare_in(amla_plan *plan, cuda_plan *c, amla_detail *detail) {
  const amla_status status = check_problem(plan, detail);
  if (status != AMLA_OK)
    return status;
  const char *why = amla_cuda_device_get(&c->device);
  if (why)
    return amla_refuse(detail, AMLA_BACKEND_FAILED, "cuda: %s", why);
  amla_cuda_kernel cap;
  if (!kernel_cap(&cap))
    return amla_refuse(detail, AMLA_INVALID_ARGUMENT,
                       "AMLA_CUDA_KERNEL=%.40s: must be %s, %s, %s, %s, %s or %s",
                       getenv("AMLA_CUDA_KERNEL"), shapes[0].name, shapes[1].name, shapes[2].name,
                       shapes[3].name, shapes[4].name, shapes[5].name);
  c->kernel = best_kernel(&c->device, cap);
  if (amla_cuda_is_wgmma(c->kernel) && !map_fits(&plan->problem))
    c->kernel = AMLA_CUDA_MMA64;
  const kernel_shape *shape = &shapes[c->kernel];
  const int32_t n_blocks = amla_cuda_ceil_div(plan->problem.s_q * plan->problem.h_q, shape->rows);
  /* The same shape where the kernel takes no such number of rows. */
  if ((c->kernel == AMLA_CUDA_WGMMA3C && n_blocks % 2 != 0) ||
      (c->kernel == AMLA_CUDA_WGMMA16 && plan->problem.s_q * plan->problem.h_q > 16))
    c->kernel = AMLA_CUDA_WGMMA3;
  why = prepare_kernels(c, &plan->problem);
  if (why)
    return amla_refuse(detail, AMLA_BACKEND_FAILED, "cuda: %s", why);
  choose_splits(plan, shape, c);

  const int64_t per_sequence = (int64_t)n_blocks * c->max_splits;
  if (per_sequence > INT32_MAX / 2 || per_sequence * plan->problem.b > INT32_MAX / 2)
    UNSUPPORTED(
        "b=%d, s_q=%d, h_q=%d, sk=%d: cuda cuts at most %d pieces, and these would be %d x %lld",
        plan->problem.b, plan->problem.s_q, plan->problem.h_q, plan->problem.sk, INT32_MAX / 2,
        plan->problem.b, (long long)per_sequence);
  const int32_t items = (int32_t)(per_sequence * plan->problem.b);
  const int32_t room = amla_cuda_device_room(&c->device, c->kernel,
                                             plan->problem.kv_type == AMLA_F16, plan->problem.d_qk);
  c->grid = amla_cuda_max(1, amla_cuda_min(items, room));
  if (c->kernel == AMLA_CUDA_WGMMA3C)
    c->grid = amla_cuda_max(2, c->grid / 2 * 2);
  c->n_slots = c->max_splits > 1 ? amla_cuda_min(items, (int32_t)per_sequence + c->grid) : 0;
  size_t zero_bytes;
  carve(plan, c, NULL, NULL, &zero_bytes, &plan->scratch_bytes);
  return AMLA_OK;
}

static void release(amla_plan *plan) {
  free(plan->state);
  plan->state = NULL;
}

/* The status word is where scratch begins, the rest aligned; what must be zero comes first. Returns
 * where that ends. */
static void *carve(const amla_plan *plan, const cuda_plan *c, void *scratch,
                   amla_cuda_params *params, size_t *zero_bytes, size_t *bytes) {
  const int32_t block_rows = shapes[c->kernel].rows,
                n_blocks = amla_cuda_ceil_div(plan->problem.s_q * plan->problem.h_q, block_rows);
  amla_arena a = amla_arena_create(scratch ? (char *)scratch + SCRATCH_ALIGN : NULL);
  uint32_t *ticket = amla_arena_take(&a, 1, sizeof *ticket);
  uint32_t *groups = amla_arena_take(
      &a, (int64_t)plan->problem.b * n_blocks * AMLA_CUDA_GROUP_WORDS, sizeof *groups);
  uint32_t *freed = amla_arena_take(&a, c->n_slots, sizeof *freed);
  char *zero_end = a.base ? a.base + a.used_bytes : NULL;
  float *partial_o =
      amla_arena_take(&a, (int64_t)c->n_slots * block_rows * AMLA_CUDA_D_V, sizeof *partial_o);
  float *partial_ref =
      amla_arena_take(&a, (int64_t)c->n_slots * 3 * block_rows, sizeof *partial_ref);
  *bytes = SCRATCH_ALIGN + AMLA_ARENA_ALIGN + a.used_bytes;
  if (!params)
    return NULL;
  params->status = scratch;
  params->ticket = ticket;
  params->groups = groups;
  params->freed = freed;
  params->partial_o = partial_o;
  params->partial_ref = partial_ref;
  params->n_slots = c->n_slots;
  *zero_bytes = (size_t)(zero_end - (char *)scratch);
  return zero_end;
}

/* ---- Run ---- */

/* Strides in 16-bit elements. */
static int aligned16(const void *at, int64_t stride_a, int64_t stride_b, int64_t stride_c) {
  return ((uintptr_t)at | (uint64_t)stride_a * 2 | (uint64_t)stride_b * 2 |
          (uint64_t)stride_c * 2) %
             16 ==
         0;
}

static void set_tensors(const amla_plan *plan, const amla_tensors *t, amla_cuda_params *k) {
  const amla_problem *p = &plan->problem;
  k->q = t->q, k->kv = t->kv, k->out = t->out, k->lse = t->lse;
  k->block_table = t->block_table, k->seqlens_k = t->seqlens_k, k->sinks = t->sinks;
  k->q_stride_batch = p->q_stride_batch, k->q_stride_query = p->q_stride_query,
  k->q_stride_head = p->q_stride_head;
  k->out_stride_batch = p->out_stride_batch, k->out_stride_query = p->out_stride_query,
  k->out_stride_head = p->out_stride_head;
  k->kv_stride_page = p->kv_stride_page, k->kv_stride_token = p->kv_stride_token,
  k->n_pages = p->page_size > 0 ? p->n_pages : p->b;
  k->b = p->b, k->s_q = p->s_q, k->h_q = p->h_q, k->sk = p->sk, k->d_qk = p->d_qk;
  k->page_size = p->page_size, k->max_pages = p->max_pages, k->causal = p->causal;
  k->flash = plan->options.rescale == AMLA_RESCALE_FLASH,
  k->lse_base2 = plan->options.lse_base == AMLA_LSE_BASE2;
  k->out_type = (int32_t)p->out_type;
  k->scale_log2 = p->scale * 1.44269504088896340736f;
  k->vector_q = aligned16(t->q, p->q_stride_batch, p->q_stride_query, p->q_stride_head);
  k->vector_kv = aligned16(t->kv, p->kv_stride_page, p->kv_stride_token, 0);
  k->bulk_out = p->out_type != AMLA_F32 &&
                aligned16(t->out, p->out_stride_batch, p->out_stride_query, p->out_stride_head);
  k->vector_out = (uintptr_t)t->out % 4 == 0 &&
                  (p->out_stride_batch | p->out_stride_query | p->out_stride_head) % 2 == 0;
}

static void set_cuts(const amla_plan *plan, const cuda_plan *c, amla_cuda_kernel kernel,
                     amla_cuda_params *k) {
  k->rows = plan->problem.s_q * plan->problem.h_q;
  k->block_rows = shapes[kernel].rows;
  k->n_blocks = amla_cuda_ceil_div(k->rows, k->block_rows);
  k->tile_tokens = shapes[kernel].tile_tokens;
  k->n_clusters = kernel == AMLA_CUDA_WGMMA3C ? c->grid / 2 : 0;
  k->split_base_tokens = c->split_base_tokens, k->max_splits = c->max_splits,
  k->auto_items = c->auto_items;
}

static amla_status run(const amla_plan *plan, const amla_tensors *t, void *scratch,
                       amla_detail *detail) {
  const cuda_plan *c = plan->state;
  amla_cuda_device now;
  if (t->mask)
    UNSUPPORTED("mask=%p: cuda takes none", t->mask);
  if ((uintptr_t)scratch % SCRATCH_ALIGN)
    return amla_refuse(detail, AMLA_INVALID_ARGUMENT, "scratch=%p: must be aligned to %d bytes",
                       scratch, SCRATCH_ALIGN);
  if (plan->problem.b == 0)
    return AMLA_OK;
  const char *why = amla_cuda_device_get(&now);
  if (why)
    return amla_refuse(detail, AMLA_BACKEND_FAILED, "cuda: %s", why);
  if (now.ordinal != c->device.ordinal)
    return amla_refuse(detail, AMLA_INVALID_ARGUMENT,
                       "device %d is current: the plan is for device %d", now.ordinal,
                       c->device.ordinal);

  amla_cuda_work work = {.kernel = c->kernel,
                         .f16 = plan->problem.kv_type == AMLA_F16,
                         .grid = c->grid,
                         .zero = scratch};
  size_t bytes;
  set_tensors(plan, t, &work.params);
  if (amla_cuda_is_wgmma(work.kernel) && !(work.params.vector_kv && amla_cuda_device_map(&work)))
    work.kernel = AMLA_CUDA_MMA64; /* the same rows: the same scratch */
  set_cuts(plan, c, work.kernel, &work.params);
  carve(plan, c, scratch, &work.params, &work.zero_bytes, &bytes);
  why = amla_cuda_device_run(&work, t->stream);
  return why ? amla_refuse(detail, AMLA_BACKEND_FAILED, "cuda: %s", why) : AMLA_OK;
}

/* ---- The table ---- */

static const char *absent(void) {
  amla_cuda_device d;
  const char *why = amla_cuda_device_get(&d);
  if (!why && d.major < 8)
    why = "the GPU is older than Ampere (compute capability 8.0)";
  return why;
}

static const char *isa(amla_isa isa_cap) {
  amla_cuda_device d;
  amla_cuda_kernel cap;
  (void)isa_cap;
  (void)kernel_cap(&cap); /* prepare refuses a wrong name */
  return amla_cuda_device_get(&d) ? "" : shapes[best_kernel(&d, cap)].name;
}

static void query(const amla_plan *plan, amla_plan_info *info) {
  const cuda_plan *c = plan->state;
  info->p_type = plan->problem.kv_type;
  info->threads = 1;
  info->block_rows = shapes[c->kernel].rows;
  info->tile_tokens = shapes[c->kernel].tile_tokens;
  info->split_tokens = c->auto_items > 0 ? AMLA_SPLIT_AUTO : c->split_base_tokens;
  snprintf(info->kernel, sizeof info->kernel, "%s", shapes[c->kernel].name);
}

static int describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  const cuda_plan *c = plan->state;
  const kernel_shape *s = &shapes[c->kernel];
  char splits[64];
  if (c->auto_items > 0)
    snprintf(splits, sizeof splits, "splits for %d items", c->auto_items);
  else
    snprintf(splits, sizeof splits, "at most %d splits of %d", c->max_splits, c->split_base_tokens);
  return snprintf(text, capacity_bytes,
                  "cuda %s %s, %d rows x %d tokens, %s, %d thread blocks on %s", s->name,
                  amla_rescale_name(plan->options.rescale), s->rows, s->tile_tokens, splits,
                  c->grid, c->device.name);
}

#if defined(__GNUC__)
#define EXPORT __attribute__((visibility("default")))
#else
#define EXPORT
#endif
const amla_backend_ops *amla_backend_entry_1(const char *library_version);
EXPORT const amla_backend_ops *amla_backend_entry_1(const char *library_version) {
  static const amla_backend_ops ops = {.plan_bytes = sizeof(amla_plan),
                                       .id = AMLA_BACKEND_CUDA,
                                       .name = "cuda",
                                       .device_memory = 1,
                                       .absent = absent,
                                       .isa = isa,
                                       .prepare = prepare,
                                       .release = release,
                                       .query = query,
                                       .describe = describe,
                                       .run = run};
  return strcmp(library_version, amla_version()) ? NULL : &ops;
}
