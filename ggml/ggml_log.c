/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines on stderr. See ggml_log.h.
 */
#define _GNU_SOURCE 1 /* clock_gettime */
#include "ggml_log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml_abi.h"

static bool wanted, unwanted;

__attribute__((constructor)) static void read_environment(void) {
  const char *text = getenv("AMLA_LOG");
  unwanted = text != NULL && strcmp(text, "0") == 0;
  wanted = text != NULL && *text != '\0' && !unwanted;
}

bool ggml_log_wanted(void) { return wanted; }
bool ggml_log_unwanted(void) { return unwanted; }

void ggml_log(const char *format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(stderr, "amla: %s\n", line); /* in one piece */
}

/* ---- Plans and runs ---- */

static struct {
  atomic_int plans;
  _Atomic int64_t runs, tokens, flops, nanoseconds, refusals;
} total;

void ggml_log_plan(const amla_problem *p, const amla_plan *plan) {
  char how[256];
  if (!wanted)
    return;
  amla_plan_describe(plan, how, sizeof how);
  char k_begin[32] = "";
  if (p->k_begin != 0)
    snprintf(k_begin, sizeof k_begin, " k_begin=%lld", (long long)p->k_begin);
  ggml_log("plan b=%d s_q=%d h_q=%d sk=%d d_qk=%d d_v=%d%s%s q=%s kv=%s out=%s: %s", p->b, p->s_q,
           p->h_q, p->sk, p->d_qk, p->d_v, p->causal ? " causal=1" : "", k_begin,
           amla_dtype_name(p->q_type), amla_dtype_name(p->kv_type), amla_dtype_name(p->out_type),
           how);
  total.plans++;
}

int64_t ggml_log_nanoseconds(void) {
  struct timespec now = {0};
  if (wanted)
    clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void ggml_log_run(int64_t tokens, double flops, int64_t began_nanoseconds) {
  if (!wanted)
    return;
  total.nanoseconds += ggml_log_nanoseconds() - began_nanoseconds;
  total.flops += (int64_t)flops;
  total.tokens += tokens;
  total.runs++;
}

void ggml_log_total(void) {
  const int64_t ns = total.nanoseconds;
  const double rate = ns > 0 ? (double)total.flops / (double)ns : 0.0;
  if (wanted && (total.plans > 0 || total.refusals > 0))
    ggml_log("done plans=%d runs=%lld tokens=%lld GFLOP/s=%.1f refusals=%lld", total.plans,
             (long long)total.runs, (long long)total.tokens, rate, (long long)total.refusals);
}

/* ---- Failures ---- */

static const char *const names[GGML_LOG_N_OPERATIONS] = {"attention", "indexer"};

void ggml_log_status(ggml_log_operation operation, int status, const char *why) {
  if (status == GGML_ABI_FAILED)
    ggml_log("%s failed: %s", names[operation], why);
  if (status == GGML_ABI_ALLOC_FAILED)
    ggml_log("%s failed: no memory for its scratch", names[operation]);
}

/* ---- Reasons ---- */

enum { MAX_REASONS = 32 };
typedef struct left {
  _Atomic(const char *) reason; /* NULL: free */
  atomic_int times;
} left;
static left left_of[GGML_LOG_N_OPERATIONS][MAX_REASONS];

void ggml_log_left(ggml_log_operation operation, const char *reason) {
  total.refusals += operation == GGML_LOG_ATTENTION;
  for (left *l = left_of[operation]; l < left_of[operation] + MAX_REASONS; l++) {
    const char *found = NULL;
    const bool is_new = atomic_compare_exchange_strong(&l->reason, &found, reason);
    if (!is_new && found != reason)
      continue;
    atomic_fetch_add(&l->times, 1);
    if (is_new && ggml_log_wanted())
      ggml_log("%s left to the CPU: %s", names[operation], reason);
    return;
  }
}

const char *ggml_log_commonest_reason(void) {
  left *most = left_of[GGML_LOG_ATTENTION];
  for (int i = 1; i < MAX_REASONS; i++)
    if (atomic_load(&left_of[GGML_LOG_ATTENTION][i].times) > atomic_load(&most->times))
      most = &left_of[GGML_LOG_ATTENTION][i];
  return atomic_load(&most->reason);
}
