/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines on stderr. See cli_log.h.
 */
#include "cli_log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
  int plans, runs, refusals;
  double tokens, flops, seconds;
} total;

static void say_total(void) {
  fprintf(stderr, "amla: done plans=%d runs=%d tokens=%.0f GFLOP/s=%.1f refusals=%d\n", total.plans,
          total.runs, total.tokens, total.seconds > 0 ? total.flops / total.seconds / 1e9 : 0.0,
          total.refusals);
}

bool cli_log_wanted(void) {
  static enum { UNKNOWN, NO, YES } wanted;
  if (wanted != UNKNOWN)
    return wanted == YES;
  const char *text = getenv("AMLA_LOG");
  wanted = text != NULL && *text != '\0' && strcmp(text, "0") != 0 ? YES : NO;
  if (wanted == YES)
    atexit(say_total);
  return wanted == YES;
}

static void print_fields(const amla_problem *p) {
  const struct {
    const char *name;
    int32_t value;
  } fields[] = {{"b", p->b},
                {"s_q", p->s_q},
                {"h_q", p->h_q},
                {"sk", p->sk},
                {"d_qk", p->d_qk},
                {"d_v", p->d_v},
                {"causal", p->causal},
                {"page_size", p->page_size},
                {"topk", p->topk},
                {"window", p->window},
                {"extra_sk", p->extra_sk},
                {"extra_topk", p->extra_topk},
                {"extra_page_size", p->extra_page_size}};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (fields[i].value != 0)
      fprintf(stderr, " %s=%d", fields[i].name, fields[i].value);
}

void cli_log_plan(const amla_problem *p, const char *description) {
  if (!cli_log_wanted())
    return;
  fprintf(stderr, "amla: plan");
  print_fields(p);
  fprintf(stderr, " q=%s kv=%s out=%s: %s\n", amla_dtype_name(p->q_type),
          amla_dtype_name(p->kv_type), amla_dtype_name(p->out_type), description);
  total.plans++;
}

void cli_log_run(double tokens, double flops, double seconds) {
  if (!cli_log_wanted())
    return;
  total.runs++;
  total.tokens += tokens;
  total.flops += seconds > 0 ? flops : 0;
  total.seconds += seconds;
}

void cli_log_refused(void) {
  if (cli_log_wanted())
    total.refusals++;
}
