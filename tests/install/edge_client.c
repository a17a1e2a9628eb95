/* SPDX-License-Identifier: Apache-2.0
 *
 * A program of version 0.1 that calls every function that 0.1 had, with its structs. Each struct
 * ends where a page ends that may not be touched: a library that reads or writes more of a struct
 * than its caller knows faults. Prints the library's version and "ok".
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include <amla/amla.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEADS = 3, D = 8, KEYS = 5, PARTS = 2 };

#define MUST(condition)                                                                            \
  if (!(condition)) {                                                                              \
    fprintf(stderr, "line %d: not %s: %s\n", __LINE__, #condition, detail.text);                   \
    exit(1);                                                                                       \
  }

static void *at_the_edge(const void *from, size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || mprotect(pages + page, page, PROT_NONE) || bytes > page)
    exit(1);
  return memcpy(pages + page - bytes, from, bytes);
}
#define EDGE(type, init) ((type *)at_the_edge(&(type)init, sizeof(type)))

/* In the caller's thread, last first. */
static void backwards(void *context, int32_t n, void (*task)(void *, int32_t), void *argument) {
  (void)context;
  while (n-- > 0)
    task(argument, n);
}

static amla_plan *make_plan(void) {
  amla_detail detail = {{0}};
  amla_plan *plan = NULL;
  amla_problem *p = EDGE(amla_problem, AMLA_PROBLEM_INIT);
  amla_options *o = EDGE(amla_options, AMLA_OPTIONS_INIT);
  p->h_q = HEADS, p->sk = KEYS, p->d_qk = p->d_v = D, p->scale = 1.0f;
  p->q_type = p->kv_type = p->out_type = AMLA_F32;
  o->parallel = backwards, o->threads = 2;
  MUST(amla_plan_create(&plan, p, o, &detail) == AMLA_OK);
  p->h_kv = 3;
  MUST(amla_plan_create(&(amla_plan *){NULL}, p, o, &detail) == AMLA_INVALID_ARGUMENT);
  MUST(strncmp(detail.text, "h_kv=3", 6) == 0);
  return plan;
}

/* out is the mean of keys 0, 1, ... 4 in every column, as q is 0; lse is log 5. */
static void run(const amla_plan *plan, float *out, float *lse) {
  amla_detail detail = {{0}};
  static float q[HEADS * D], kv[KEYS * D];
  amla_tensors *t = EDGE(amla_tensors, AMLA_TENSORS_INIT);
  const size_t bytes = amla_plan_scratch_bytes(plan);
  void *scratch = malloc(bytes + 1);
  for (int i = 0; i < KEYS * D; i++)
    kv[i] = (float)(i / D);
  t->q = q, t->q_bytes = sizeof q;
  t->kv = kv, t->kv_bytes = sizeof kv;
  t->out = out, t->out_bytes = HEADS * D * sizeof *out;
  t->lse = lse, t->lse_bytes = HEADS * sizeof *lse;
  MUST(amla_plan_run(plan, t, scratch, bytes, &detail) == AMLA_OK);
  free(scratch);
}

static void check_names(const amla_plan *plan) {
  amla_detail detail = {{0}};
  char text[256];
  amla_backend_info *info = EDGE(amla_backend_info, AMLA_BACKEND_INFO_INIT);
  MUST(amla_plan_describe(plan, text, sizeof text) == (int)strlen(text));
  MUST(amla_backend_query(AMLA_BACKEND_REF, info, &detail) == AMLA_OK && info->available == 1);
  MUST(strcmp(info->name, "ref") == 0);
  MUST(strcmp(amla_status_name(AMLA_OK), "ok") == 0);
}

int main(void) {
  amla_detail detail = {{0}};
  float o[PARTS * HEADS * D], lse[PARTS * HEADS], merged[HEADS * D], merged_lse[HEADS];
  amla_plan *plan = make_plan();
  check_names(plan);
  for (int part = 0; part < PARTS; part++)
    run(plan, o + part * HEADS * D, lse + part * HEADS);
  MUST(amla_merge(PARTS, HEADS, D, AMLA_LSE_NATURAL, o, sizeof o, lse, sizeof lse, merged,
                  sizeof merged, merged_lse, sizeof merged_lse, &detail) == AMLA_OK);
  for (int i = 0; i < HEADS * D; i++)
    MUST(merged[i] > 1.9999f && merged[i] < 2.0001f);
  for (int h = 0; h < HEADS; h++)
    MUST(merged_lse[h] > 2.3025f && merged_lse[h] < 2.3027f); /* log 10 */
  amla_plan_destroy(plan);
  printf("%s ok\n", amla_version());
  return 0;
}
