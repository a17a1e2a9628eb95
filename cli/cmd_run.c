/* SPDX-License-Identifier: Apache-2.0
 *
 * amla run: one problem, from a file or a string, to a checked result.
 */
#include <stdio.h>
#include <string.h>

#include "cli_commands.h"
#include "cli_job.h"
#include "cli_measure.h"
#include "cli_options.h"
#include "cli_report.h"
#include "harness/names.h"
#include "harness/safetensors.h"
#include "harness/scopes.h"

typedef struct arguments {
  cli_options common;
  const char *problem, *path;
  bool out_given, no_check;
  amla_dtype out;
  double seconds;
} arguments;

static const char doc[] =
    "Runs a problem and compares the result: with out_ref and lse_ref when FILE has them, else "
    "with attention in fp64.\v"
    "FILE is safetensors: q [b, s_q, h_q, d_qk], kv_cache [pages, page_size, d_qk], block_table "
    "[b, max_pages] i32, seqlens_k [b] i32; "
    "optional sinks [h_q] f32 and, from fp64, out_ref [b, s_q, h_q, d_v] f32 and lse_ref [b, "
    "h_q, s_q] f32; metadata scale, d_v, causal. Lists, windows, visible lengths and a second "
    "scope: harness/safetensors.h has their names. "
    "Without block_table, kv_cache is [b, sk, d_qk].\n\n"
    "Exit status 3 when an element or an LSE is outside its error bound, or when the file's "
    "references are not those of its inputs.\n\n"
    "Examples:\n"
    "  amla run examples/deepseek_v3_decode.safetensors\n"
    "  amla run decode.safetensors --rescale amla --threads 1 -o out.safetensors\n"
    "  amla run b=2,sk=10000,h=16,dist=rising --json";

static const struct argp_option options[] = {
    {"output", 'o', "OUT", 0, "write out and lse as safetensors", 0},
    {"out", CLI_KEY_OUT, "TYPE", 0, "type of out: f32 (default), bf16 or f16", 0},
    {"no-check", CLI_KEY_NO_CHECK, NULL, 0, "do not compare", 0},
    {"for", CLI_KEY_FOR, "SECONDS", 0, "measure for so long (default 0.5)", 0},
    {0}};

static const struct argp_child children[] = {{&cli_plan_argp, 0, NULL, 0},
                                             {&cli_machine_argp, 0, NULL, 0},
                                             {&cli_json_argp, 0, NULL, 0},
                                             {&cli_ranks_argp, 0, NULL, 0},
                                             {0}};

static amla_dtype parse_out(struct argp_state *state, const char *text) {
  const int found = harness_find_name(harness_element_dtypes, text);
  if (found < 0)
    argp_error(state, "--out=%s: must be %s", text,
               harness_list_names(harness_element_dtypes, " or ").text);
  return (amla_dtype)found;
}

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case ARGP_KEY_INIT:
    for (size_t i = 0; children[i].argp != NULL; i++)
      state->child_inputs[i] = &a->common;
    return 0;
  case 'o': a->path = text; return 0;
  case CLI_KEY_NO_CHECK: a->no_check = true; return 0;
  case CLI_KEY_FOR: a->seconds = cli_parse_seconds(state, "for", text); return 0;
  case CLI_KEY_OUT:
    a->out = parse_out(state, text);
    a->out_given = true;
    return 0;
  case ARGP_KEY_ARG:
    if (a->problem != NULL)
      argp_error(state, "extra argument '%s'", text);
    a->problem = text;
    return 0;
  case ARGP_KEY_END:
    if (a->problem == NULL)
      argp_error(state, "FILE or PROBLEM is missing");
    if (a->common.rescale_all)
      argp_error(state, "--rescale=all: must be %s here",
                 harness_list_names(harness_rescales, " or ").text);
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- Verdict ---- */

typedef struct verdict {
  const char *reference; /* "file", "fp64", "none" */
  harness_error error;   /* against the reference */
  bool refs_ok;          /* the file's references follow from its inputs */
  harness_error refs;
  bool ok;
} verdict;

static verdict judge(const cli_job *job, bool no_check) {
  const harness_dataset *data = job->data;
  const bool has_refs = (data->out_ref != NULL || data->lse_ref != NULL) && !cli_is_simulated(job);
  verdict v = {.reference = "none", .refs_ok = true, .ok = true};
  if (no_check)
    return v;
  v.reference = has_refs ? "file" : "fp64";
  harness_truth truth = cli_truth(data);
  v.error = cli_compare(job, &truth);
  v.ok = v.error.ok;
  if (has_refs) {
    v.error = harness_compare_ref(data, &truth);
    v.refs = harness_check_refs(data, &truth);
    v.refs_ok = v.refs.ok;
    v.ok = v.ok && v.error.ok && v.refs_ok;
  }
  harness_truth_free(&truth);
  return v;
}

/* ---- Report ---- */

static void print_row(const char *what, const harness_dataset *data, int64_t row) {
  const amla_problem *p = &data->problem;
  const harness_query q = harness_query_at(p, &data->tensors, row / p->h_q);
  printf("%s: sequence %d, query %d, head %lld\n", what, q.sequence, q.query,
         (long long)(row % p->h_q));
}

/* Which keys a query sees, where that is more than a length. */
static void print_seen(const harness_dataset *data) {
  const amla_problem *p = &data->problem;
  const struct {
    const char *name;
    int32_t value;
  } fields[] = {{"topk", p->topk},
                {"window", p->window},
                {"visible_k", data->visible_k != NULL},
                {"extra_sk", p->extra_sk},
                {"extra_topk", p->extra_topk},
                {"extra_page", p->extra_page_size},
                {"q_indptr", data->q_indptr != NULL},
                {"kv_indptr", data->kv_indptr != NULL},
                {"q_d_rope", p->q_d_rope},
                {"kv_d_rope", p->kv_d_rope}};
  bool any = false;
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    if (fields[i].value == 0)
      continue;
    printf("%s%s=%d", any ? " " : "keys     ", fields[i].name, fields[i].value);
    any = true;
  }
  if (any)
    printf("\n");
}

static void print_verdict(const verdict *v, const harness_dataset *p) {
  if (strcmp(v->reference, "none") == 0)
    return;
  const bool of_file = strcmp(v->reference, "file") == 0;
  const char *reference = of_file ? "the file's out_ref and lse_ref" : v->reference;
  printf(
      "error    %.2e relative, %.2e largest; LSE %.2e largest; %.2g of the bound, against %s: %s\n",
      v->error.rel_error, v->error.max_abs_error, v->error.lse_max_abs_error,
      v->error.worst_of_bound, reference, v->error.ok ? "ok" : "MISMATCH");
  if (v->error.unjudged > 0)
    printf("         %lld numbers not judged: not finite, where nothing is promised\n",
           (long long)v->error.unjudged);
  if (!v->error.ok)
    print_row("         worst row", p, v->error.worst_row);
  if (v->refs_ok)
    return;
  printf("refs     out_ref or lse_ref is not what fp64 gives for the file's inputs (%.2g of f32 "
         "rounding): MISMATCH\n",
         v->refs.worst_of_bound);
  print_row("         worst row", p, v->refs.worst_row);
}

static void print_text(const arguments *a, const cli_job *job, const verdict *v,
                       const cli_timing *t) {
  const amla_problem *p = &job->data->problem;
  char best[32], median[32];
  printf("problem  %s: b=%d s_q=%d h_q=%d s_k<=%d d_qk=%d d_v=%d page=%d q=%s kv=%s out=%s "
         "causal=%d scale=%.6g\n",
         a->problem, p->b, p->s_q, p->h_q, p->sk, p->d_qk, p->d_v, p->page_size,
         amla_dtype_name(p->q_type), amla_dtype_name(p->kv_type), amla_dtype_name(p->out_type),
         p->causal, (double)p->scale);
  print_seen(job->data);
  printf("plan     %s\n", job->description);
  print_verdict(v, job->data);
  if (cli_is_simulated(job)) {
    printf("time     of the chip: see amla sim. The simulator took %s on this machine\n",
           cli_format_seconds(t->seconds[0].best, best));
    return;
  }
  printf("time     %s best of %d rounds; median %s\n", cli_format_seconds(t->seconds[0].best, best),
         t->rounds, cli_format_seconds(t->seconds[0].median, median));
  printf("speed    %.1f GFLOP/s, %.1f %% of the FMA peak (%.1f GFLOP/s, %s, %d thread%s)\n",
         cli_job_rate(job, t->seconds[0].best) / 1e9,
         100 * cli_job_rate(job, t->seconds[0].best) / t->peak.best, t->peak.best / 1e9, job->isa,
         job->threads, job->threads == 1 ? "" : "s");
}

static void print_json(const arguments *a, const cli_job *job, const verdict *v,
                       const cli_timing *t) {
  const double rate = cli_job_rate(job, t->seconds[0].best);
  const bool checked = strcmp(v->reference, "none") != 0;
  json_t *object =
      cli_json_pack("{s:o, s:s, s:s, s:s, s:s, s:i, s:s}", "problem", cli_json_text(a->problem),
                    "plan", job->description, "backend", job->backend, "isa", job->isa, "rescale",
                    job->rescale, "threads", job->threads, "reference", v->reference);
  if (checked)
    cli_json_error(object, &v->error);
  if (strcmp(v->reference, "file") == 0)
    json_object_set_new(object, "refs_ok", json_boolean(v->refs_ok));
  json_object_set_new(object, "ok", checked ? json_boolean(v->ok) : json_null());
  json_object_set_new(object, "simulated", json_boolean(cli_is_simulated(job)));
  json_object_set_new(object, "seconds", cli_json_real(t->seconds[0].best));
  json_object_set_new(object, "median_seconds", cli_json_real(t->seconds[0].median));
  json_object_set_new(object, "rounds", json_integer(t->rounds));
  json_object_set_new(object, "gflops", cli_json_real(rate / 1e9));
  json_object_set_new(object, "peak_gflops", cli_json_real(t->peak.best / 1e9));
  json_object_set_new(object, "utilization", cli_json_real(rate / t->peak.best));
  cli_print_json(object);
}

static cli_exit run(const char *command, const arguments *a, harness_dataset *data) {
  cli_job job;
  char error[512];
  if (a->out_given && !cli_set_out_type(command, data, a->out))
    return CLI_ERROR;
  if (!a->no_check && !cli_has_rows(command, a->problem, &data->problem))
    return CLI_ERROR;
  if (!cli_job_open(command, a->problem, &job, data, &a->common))
    return CLI_ERROR;
  const verdict v = judge(&job, a->no_check);
  cli_exit status = v.ok ? CLI_OK : CLI_MISMATCH;
  if (a->path != NULL && harness_write_result(a->path, data, error, sizeof error) != 0) {
    cli_error(command, "%s", error);
    status = CLI_ERROR;
  } else {
    cli_progress progress = cli_progress_begin("timing");
    const cli_timing timing = cli_measure(&job, 1, a->seconds, false, &progress);
    cli_progress_end(&progress);
    (a->common.json ? print_json : print_text)(a, &job, &v, &timing);
  }
  cli_job_close(&job);
  return status;
}

cli_exit cmd_run(int argc, char **argv) {
  arguments a = {.common = CLI_OPTIONS_INIT, .seconds = 0.5};
  harness_dataset data;
  cli_parse("FILE|PROBLEM", doc, options, parse, children, argc, argv, &a);
  if (a.path != NULL && !cli_may_write(argv[0], "output", a.path, &a.problem, 1))
    return CLI_ERROR;
  if (!cli_load(argv[0], a.problem, &data))
    return CLI_ERROR;
  const cli_exit status = run(argv[0], &a, &data);
  harness_free(&data);
  return status;
}
