/* SPDX-License-Identifier: Apache-2.0
 *
 * amla check: every available backend and rescale mode against fp64, one row each.
 */
#include <stdio.h>
#include <string.h>

#include "cli_commands.h"
#include "cli_job.h"
#include "cli_options.h"
#include "cli_progress.h"
#include "cli_report.h"

typedef struct arguments {
  cli_options common;
  char **problems;
  int n_problems;
} arguments;

static const char doc[] =
    "Compares every available backend and rescale mode with attention in fp64, element by "
    "element against the stated bound.\v"
    "Without PROBLEM a built-in list covers all distributions, types, paged and contiguous "
    "caches, mixed lengths, several queries, lists, windows, two scopes and "
    "sinks. Exit status 3 when any row fails.\n\n"
    "Examples:\n"
    "  amla check\n"
    "  amla check b=3,len=ragged,kv=f16,page=1 --backend cpu --isa avx2\n"
    "  amla check examples/deepseek_v3_decode.safetensors --rescale amla --json";

/* Every distribution, every type, every feature, small enough for the specification on one thread.
 */
static const char *const built_in[] = {
    "h=16,sk=1000",
    "h=128,sk=300,dist=normal:3",
    "h=16,sk=700,dist=normal:10,page=16",
    "h=5,sk=1025,dist=uniform:1,page=0",
    "h=16,sk=2048,dist=rising,sq=2",
    "h=16,sk=1500,dist=outlier",
    "h=16,sk=600,dist=onehot,page=1",
    "h=9,sk=1111,dist=peaked",
    "h=16,sk=1024,dist=zerov",
    "b=5,sq=4,h=6,sk=64,dist=masked",
    "b=6,sq=2,h=20,sk=500,len=ragged",
    "b=3,h=63,sk=257,len=0/257/100,page=3,pad=1",
    "h=16,sk=400,q=f32,kv=f32",
    "h=16,sk=400,q=f16,kv=f16,out=f16",
    "h=16,sk=400,q=f32,kv=f16,out=bf16",
    "h=16,sk=400,q=bf16,kv=f32,out=bf16,page=0,pad=3",
    "h=16,sk=400,sinks=1,lse=2",
    "b=2,sq=3,h=16,sk=900,mask=1,causal=0",
    "b=2,h=20,sk=700,kv=q8_0,page=0,pad=32,len=uniform",
    "b=2,h=40,sk=500,kv=fp8_656,len=uniform",
    "b=2,h=16,sk=500,dqk=512,kv=fp8_584,len=uniform",
    "b=2,sq=7,h=3,sk=333,causal=0,len=uniform",
    "b=2,h=16,sk=500,dqk=512,len=uniform",
    "h=4,sk=200,dqk=70,dv=33,page=7",
    "h=8,sk=20000",
    "h=16,sk=1000,topk=300,sq=2",
    "b=3,sq=2,h=12,sk=500,topk=700,topklen=query,invalid=30,page=61,len=uniform",
    "b=2,sq=3,h=20,sk=400,index=position,topk=64,invalid=100,ragged=1,csr=1",
    "b=2,h=64,dqk=512,sk=900,page=256,window=128,scope2=topk:200/sk:700/page:64,sinks=1",
    "b=2,sq=2,h=5,sk=300,scope2=sk:400/page:3,sinks=1,lsesink=1",
    "b=3,sq=4,h=9,sk=300,visible=1,window=70,csr=1",
    "b=4,sq=5,h=6,sk=300,ragged=1,len=ragged",
    "h=16,sk=400,qrope=64,kvrope=64,page=0",
};

/* What the Ascend kernel takes, small enough for its simulator. */
static const char *const built_in_npu[] = {
    "h=128,sk=1500,out=bf16",        "b=2,sq=2,h=128,sk=700,len=ragged",
    "h=16,sk=2048,dist=rising,sq=2", "h=16,sk=600,dist=onehot,page=1",
    "h=16,sk=1024,dist=zerov",       "b=5,sq=4,h=6,sk=64,dist=masked",
    "h=16,sk=400,sinks=1,lse=2",     "h=4,sk=200,dqk=70,dv=33,page=7,pad=1",
};
#define LENGTH(array) (int)(sizeof(array) / sizeof *(array))

static const struct argp_child children[] = {{&cli_plan_argp, 0, NULL, 0},
                                             {&cli_machine_argp, 0, NULL, 0},
                                             {&cli_json_argp, 0, NULL, 0},
                                             {&cli_ranks_argp, 0, NULL, 0},
                                             {0}};

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  (void)text;
  switch (key) {
  case ARGP_KEY_INIT:
    for (size_t i = 0; children[i].argp != NULL; i++)
      state->child_inputs[i] = &a->common;
    return 0;
  case ARGP_KEY_ARGS: /* all that are left */
    a->problems = state->argv + state->next;
    a->n_problems = state->argc - state->next;
    state->next = state->argc;
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

typedef struct report {
  const arguments *a;
  cli_table table;
  json_t *rows;
  int n_rows;
  bool ok;
} report;

static void add_row(report *r, const char *problem, const cli_job *job, const harness_error *e) {
  r->ok = r->ok && e->ok;
  r->n_rows++;
  if (r->a->common.json) {
    json_t *object = cli_json_pack("{s:o, s:s, s:s, s:s, s:i}", "problem", cli_json_text(problem),
                                   "backend", job->backend, "isa", job->isa, "rescale",
                                   job->rescale, "threads", job->threads);
    cli_json_error(object, e);
    json_array_append_new(r->rows, object);
    return;
  }
  cli_table_row(&r->table);
  cli_table_cell(&r->table, 0, "%s", problem);
  cli_table_cell(&r->table, 1, "%s", job->backend);
  cli_table_cell(&r->table, 2, "%s", job->isa);
  cli_table_cell(&r->table, 3, "%s", job->rescale);
  cli_table_cell(&r->table, 4, "%.2e", e->rel_error);
  cli_table_cell(&r->table, 5, "%.2e", e->max_abs_error);
  cli_table_cell(&r->table, 6, "%.2e", e->lse_max_abs_error);
  cli_table_cell(&r->table, 7, "%.3f", e->worst_of_bound);
  cli_table_cell(&r->table, 8, "%lld", (long long)e->unjudged);
  cli_table_cell(&r->table, 9, "%s", e->ok ? "yes" : "NO");
}

/* The backend that was asked for, or every one there is but npu, which is a simulator and slow.
 * False when the library refuses to say. */
static bool is_wanted(const char *command, const cli_options *common, amla_backend backend,
                      bool *wanted) {
  amla_backend_info info = AMLA_BACKEND_INFO_INIT;
  amla_detail why;
  *wanted = common->backend_given && common->plan.backend == backend;
  if (common->backend_given || backend == AMLA_BACKEND_NPU)
    return true;
  const bool answered = amla_backend_query(backend, &info, &why) == AMLA_OK;
  if (!answered)
    cli_error(command, "%s", why.text);
  *wanted = info.available;
  return answered;
}

static bool check_modes(const char *command, report *r, const char *problem, harness_dataset *data,
                        const harness_truth *truth, amla_backend backend) {
  const cli_options *common = &r->a->common;
  for (int mode = AMLA_RESCALE_LAZY; amla_rescale_name((amla_rescale)mode) != NULL; mode++) {
    cli_options o = *common;
    cli_job job;
    if (common->rescale_given && !common->rescale_all && (int)common->plan.rescale != mode)
      continue;
    o.plan.backend = backend;
    o.plan.rescale = (amla_rescale)mode;
    if (!cli_job_open(command, problem, &job, data, &o))
      return false;
    const harness_error error = cli_compare(&job, truth);
    add_row(r, problem, &job, &error);
    cli_job_close(&job);
  }
  return true;
}

static bool check_problem(const char *command, report *r, const char *problem) {
  const cli_options *common = &r->a->common;
  harness_dataset data;
  bool ok, wanted;
  if (!cli_load(command, problem, &data))
    return false;
  ok = cli_has_rows(command, problem, &data.problem);
  harness_truth truth = {0};
  for (int backend = AMLA_BACKEND_REF; ok && amla_backend_name((amla_backend)backend) != NULL;
       backend++) {
    ok = is_wanted(command, common, (amla_backend)backend, &wanted);
    if (!ok || !wanted)
      continue;
    cli_job probe; /* the library refuses what is wrong with the data before the truth reads them */
    cli_options o = *common;
    o.plan.backend = (amla_backend)backend;
    if (truth.out == NULL && (ok = cli_job_open(command, problem, &probe, &data, &o))) {
      cli_job_close(&probe);
      truth = cli_truth(&data);
    }
    ok = ok && check_modes(command, r, problem, &data, &truth, (amla_backend)backend);
  }
  harness_truth_free(&truth);
  harness_free(&data);
  return ok;
}

cli_exit cmd_check(int argc, char **argv) {
  static const char *const headings[] = {"<problem",  "<backend",  "<isa",      "<rescale",
                                         "rel error", "max error", "LSE error", "of bound",
                                         "unjudged",  "ok"};
  arguments a = {.common = CLI_OPTIONS_INIT};
  cli_parse("[FILE|PROBLEM...]", doc, NULL, parse, children, argc, argv, &a);
  const bool npu = a.common.plan.backend == AMLA_BACKEND_NPU;
  const char *const *problems = npu ? built_in_npu : built_in;
  int n = npu ? LENGTH(built_in_npu) : LENGTH(built_in);
  if (a.n_problems > 0)
    problems = (const char *const *)a.problems, n = a.n_problems;
  report r = {.a = &a, .table = cli_table_create(10, headings), .rows = json_array(), .ok = true};
  cli_progress progress = cli_progress_begin("checking");
  bool done = true;
  for (int i = 0; done && i < n; i++) {
    cli_progress_update(&progress, (double)i / n);
    done = check_problem(argv[0], &r, problems[i]);
  }
  cli_progress_end(&progress);
  if (done && r.n_rows == 0) {
    cli_error(argv[0], "no row was checked");
    done = false;
  }
  if (done && a.common.json)
    cli_print_json(json_incref(r.rows));
  if (done && !a.common.json)
    cli_table_print(&r.table);
  cli_table_free(&r.table);
  json_decref(r.rows);
  if (!done)
    return CLI_ERROR;
  return r.ok ? CLI_OK : CLI_MISMATCH;
}
