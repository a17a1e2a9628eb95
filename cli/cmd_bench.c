/* SPDX-License-Identifier: Apache-2.0
 *
 * amla bench: speed as a fraction of the limit that binds. The result is verified before a figure
 * is printed; the limits are measured in the same rounds as the kernel (cli_measure.h).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_cuda.h"
#include "cli_commands.h"
#include "cli_job.h"
#include "cli_measure.h"
#include "cli_options.h"
#include "cli_plot.h"
#include "cli_report.h"

typedef struct arguments {
  cli_options common;
  double seconds;
  char **problems;
  int n_problems;
} arguments;

static const char doc[] =
    "Times problems in many short rounds beside the FMA peak of the same threads and instruction "
    "set, and the read bandwidth of "
    "memory.\v"
    "The best round of each counts, because neighbours on a shared machine disturb some; the "
    "median stands beside it, and the spread: the "
    "distance between the quartiles. `limit' is what binds: the FMA peak, or, when intensity "
    "(FLOP/byte) times bandwidth is less, "
    "memory. A KV cache that fits the processor's caches can exceed the memory limit.\n\n"
    "Examples:\n"
    "  amla bench\n"
    "  amla bench sk=1024 sk=4096 sk=16384 --threads 1 --rescale all --plot lengths.svg\n"
    "  amla bench h=16 --isa avx2 --for 30 --json";

static const struct argp_option options[] = {
    {"for", CLI_KEY_FOR, "SECONDS", 0,
     "measure each problem for so long (default 2; times 3 with --rescale all)", 0},
    {0}};

static const struct argp_child children[] = {
    {&cli_plan_argp, 0, NULL, 0},  {&cli_machine_argp, 0, NULL, 0}, {&cli_json_argp, 0, NULL, 0},
    {&cli_ranks_argp, 0, NULL, 0}, {&cli_plot_argp, 0, NULL, 0},    {0}};

static const char *const built_in[] = {
    "sk=1024", "sk=4096", "sk=16384", "sq=2", "h=64", "h=16", "b=4,h=16,len=uniform"};

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case ARGP_KEY_INIT:
    for (size_t i = 0; children[i].argp != NULL; i++)
      state->child_inputs[i] = &a->common;
    return 0;
  case CLI_KEY_FOR: a->seconds = cli_parse_seconds(state, "for", text); return 0;
  case ARGP_KEY_ARGS:
    a->problems = state->argv + state->next;
    a->n_problems = state->argc - state->next;
    state->next = state->argc;
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- Results ---- */

typedef struct result {
  const char *problem;
  char backend[16], isa[32], rescale[16];
  int threads, rounds, b, s_q, h_q, sk, topk;
  amla_dtype kv_type;
  double flops, bytes; /* useful work of one run */
  harness_series seconds, peak, bandwidth;
  harness_error error;
} result;

typedef struct results {
  result *list;
  int n;
} results;

static double utilization(const result *r) { return r->flops / r->seconds.best / r->peak.best; }
/* The median round against the best peak: a disturbed peak would flatter. */
static double median_utilization(const result *r) {
  return r->flops / r->seconds.median / r->peak.best;
}

/* The smaller of the two roofs. */
static double memory_roof(const result *r) {
  return r->bytes > 0 ? r->flops / r->bytes * r->bandwidth.best : INFINITY;
}
static bool memory_binds(const result *r) {
  return r->bandwidth.best > 0 && memory_roof(r) < r->peak.best;
}
static double fraction_of_limit(const result *r) {
  return r->flops / r->seconds.best / (memory_binds(r) ? memory_roof(r) : r->peak.best);
}

static json_t *result_json(const result *r) {
  json_t *o =
      cli_json_pack("{s:o, s:s, s:s, s:s, s:i, s:i, s:s}", "problem", cli_json_text(r->problem),
                    "backend", r->backend, "isa", r->isa, "rescale", r->rescale, "threads",
                    r->threads, "rounds", r->rounds, "limit", memory_binds(r) ? "memory" : "fma");
  json_object_set_new(o, "seconds", cli_json_real(r->seconds.best));
  json_object_set_new(o, "median_seconds", cli_json_real(r->seconds.median));
  json_object_set_new(o, "spread", cli_json_real(r->seconds.spread));
  json_object_set_new(o, "gflops", cli_json_real(r->flops / r->seconds.best / 1e9));
  json_object_set_new(o, "peak_gflops", cli_json_real(r->peak.best / 1e9));
  json_object_set_new(o, "median_peak_gflops", cli_json_real(r->peak.median / 1e9));
  json_object_set_new(o, "peak_spread", cli_json_real(r->peak.spread));
  json_object_set_new(o, "utilization", cli_json_real(utilization(r)));
  json_object_set_new(o, "median_utilization", cli_json_real(median_utilization(r)));
  json_object_set_new(o, "fraction_of_limit", cli_json_real(fraction_of_limit(r)));
  json_object_set_new(o, "bytes_per_second", cli_json_real(r->bytes / r->seconds.best));
  json_object_set_new(o, "read_bytes_per_second", cli_json_real(r->bandwidth.best));
  json_object_set_new(o, "intensity", cli_json_real(r->bytes > 0 ? r->flops / r->bytes : 0));
  cli_json_error(o, &r->error);
  return o;
}

static void print_json(const results *all) {
  json_t *list = json_array();
  for (int i = 0; i < all->n; i++)
    json_array_append_new(list, result_json(&all->list[i]));
  cli_print_json(list);
}

static void print_table(const results *all) {
  static const char *const headings[] = {"<problem", "<isa",   "<rescale", "threads",  "time",
                                         "GFLOP/s",  "peak",   "of peak",  "median",   "spread",
                                         "GB/s",     "FLOP/B", "<limit",   "of limit", "rel error"};
  cli_table t = cli_table_create(15, headings);
  char time[32];
  for (int i = 0; i < all->n; i++) {
    const result *r = &all->list[i];
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%s", r->problem);
    cli_table_cell(&t, 1, "%s", r->isa);
    cli_table_cell(&t, 2, "%s", r->rescale);
    cli_table_cell(&t, 3, "%d", r->threads);
    cli_table_cell(&t, 4, "%s", cli_format_seconds(r->seconds.best, time));
    cli_table_cell(&t, 5, "%.1f", r->flops / r->seconds.best / 1e9);
    cli_table_cell(&t, 6, "%.1f", r->peak.best / 1e9);
    cli_table_cell(&t, 7, "%.3f", utilization(r));
    cli_table_cell(&t, 8, "%.3f", median_utilization(r));
    cli_table_cell(&t, 9, "%.0f %%", 100 * r->seconds.spread);
    cli_table_cell(&t, 10, "%.2f", r->bytes / r->seconds.best / 1e9);
    cli_table_cell(&t, 11, "%.0f", r->bytes > 0 ? r->flops / r->bytes : 0);
    cli_table_cell(&t, 12, "%s", memory_binds(r) ? "memory" : "fma");
    cli_table_cell(&t, 13, "%.3f", fraction_of_limit(r));
    cli_table_cell(&t, 14, "%.1e", r->error.rel_error);
  }
  cli_table_print(&t);
  cli_table_free(&t);
}

/* ---- Pictures ---- */

/* Same curve: same shape but for the length. */
static bool same_series(const result *a, const result *b) {
  return a->s_q == b->s_q && a->h_q == b->h_q && a->b == b->b && a->threads == b->threads &&
         a->kv_type == b->kv_type && a->topk == b->topk && strcmp(a->isa, b->isa) == 0 &&
         strcmp(a->rescale, b->rescale) == 0;
}

static bool first_of_series(const results *all, int i) {
  for (int j = 0; j < i; j++)
    if (same_series(&all->list[j], &all->list[i]))
      return false;
  return true;
}

/* One data block per curve: length, intensity, GFLOP/s, utilisation, median utilisation. */
static void write_series(FILE *to, const results *all) {
  for (int i = 0; i < all->n; i++) {
    if (!first_of_series(all, i))
      continue;
    fprintf(to, "$series%d << EOD\n", i);
    for (int j = i; j < all->n; j++) {
      const result *r = &all->list[j];
      if (same_series(&all->list[i], r))
        fprintf(to, "%d %.6g %.6g %.4f %.4f\n", r->sk, r->flops / r->bytes,
                r->flops / r->seconds.best / 1e9, utilization(r), median_utilization(r));
    }
    fputs("EOD\n", to);
  }
}

/* Every curve once more, with these columns and in the style of this panel. */
static void plot_series(const cli_plot *plot, const results *all, const char *columns,
                        bool titles) {
  const char *style = titles ? "smooth unique with linespoints" : "with points";
  for (int i = 0; i < all->n; i++) {
    const result *r = &all->list[i];
    char title[CLI_CELL], topk[24] = "";
    if (!first_of_series(all, i))
      continue;
    if (r->topk > 0)
      snprintf(topk, sizeof topk, ",topk=%d", r->topk);
    snprintf(title, sizeof title, "b=%d,sq=%d,h=%d,kv=%s%s %s %s, %d thread%s", r->b, r->s_q,
             r->h_q, amla_dtype_name(r->kv_type), topk, r->isa, r->rescale, r->threads,
             r->threads == 1 ? "" : "s");
    fprintf(plot->gnuplot, "%s$series%d using %s %s pt %d lc %d title ", i > 0 ? ", " : "", i,
            columns, style, 4 + i % 10, 1 + i % 8);
    cli_plot_string(plot, titles ? title : "");
  }
}

/* The roofline with a point per problem, and utilisation against length; the peak is the top of
 * both axes, unless a noisy machine exceeded it. */
static bool draw(const char *command, const char *path, const results *all) {
  double peak = 0, bandwidth = 0, least = INFINITY, most = 1, fastest = 0, fullest = 1;
  cli_plot plot;
  if (!cli_plot_open(&plot, command, path))
    return false;
  FILE *to = plot.gnuplot;
  for (int i = 0; i < all->n; i++) {
    const result *r = &all->list[i];
    peak = fmax(peak, r->peak.best / 1e9);
    bandwidth = fmax(bandwidth, r->bandwidth.best / 1e9);
    least = fmin(least, r->flops / r->bytes);
    most = fmax(most, r->flops / r->bytes);
    fastest = fmax(fastest, r->flops / r->seconds.best / 1e9);
    fullest = fmax(fullest, utilization(r));
  }
  write_series(to, all);
  fprintf(to, "peak = %.6g\nbandwidth = %.6g\n", peak, bandwidth);
  fprintf(to, "top = %.6g\nfullest = %.4f\n", fmax(peak, fastest), fullest);
  fputs("set multiplot layout 1,2 title 'amla bench: best rounds, limits measured in the same "
        "rounds'\nset grid\n",
        to);
  fprintf(to,
          "set logscale xy\nset xlabel 'FLOP per byte of KV, q and out'\nset ylabel 'GFLOP/s'\nset "
          "xrange [%.4g:%.4g]\n"
          "set yrange [top / 50:top]\n"
          "unset ytics\ndo for [k = 0:5] { do for [d in '1 2 5'] {\n"
          "set ytics add (sprintf('%%g', d * 10 ** k) d * 10 ** k)\n}}\n"
          "set label 1 sprintf('FMA peak %%.0f GFLOP/s', peak) at graph 0.97,0.12 right\n"
          "set label 2 sprintf('memory %%.1f GB/s', bandwidth) at graph 0.97,0.06 right\n",
          fmin(least, peak / bandwidth) / 4, most * 2);
  fputs("plot ", to);
  plot_series(&plot, all, "2:3", false);
  fputs(", bandwidth * x < peak ? bandwidth * x : peak with lines lw 2 lc 'black' title ''\n", to);
  fputs("unset label\nunset logscale\nset logscale x 2\nset xlabel 'KV tokens' offset 0,0.5\nset "
        "ylabel "
        "'fraction of FMA peak'\n"
        "set autoscale x\nset offsets graph 0.05, graph 0.05, 0, 0\nset yrange [0:fullest]\n"
        "unset ytics\nset ytics 0.1\nset key below maxcols 1 height 1 font ',10'\nplot ",
        to);
  plot_series(&plot, all, "1:4", true);
  fputs(", 1 with lines lw 2 lc 'black' title ''\nunset multiplot\n", to);
  return cli_plot_close(&plot);
}

/* ---- Measuring ---- */

/* One problem in one rescale mode or in all, side by side. */
typedef struct contest {
  const char *command, *problem;
  harness_dataset *data;
  int n;
  cli_job jobs[CLI_MAX_JOBS];
  harness_error errors[CLI_MAX_JOBS];
} contest;

/* Every job is run once and compared with fp64: no figure without a right result. */
static cli_exit open_and_verify(contest *c, const cli_options *common) {
  harness_truth truth = {0};
  cli_exit status = CLI_OK;
  for (int j = 0; status == CLI_OK && j < c->n; j++) {
    cli_options o = *common;
    if (c->n > 1)
      o.plan.rescale = (amla_rescale)(AMLA_RESCALE_LAZY + j);
    if (!cli_job_open(c->command, c->problem, &c->jobs[j], c->data, &o)) {
      status = CLI_ERROR;
      break;
    }
    if (truth.out == NULL)
      truth = cli_truth(c->data);
    c->errors[j] = cli_compare(&c->jobs[j], &truth);
    if (!c->errors[j].ok) {
      cli_error(c->command, "%s: %s: wrong result: relative error %.2e, %.2g of the bound",
                c->problem, c->jobs[j].description, c->errors[j].rel_error,
                c->errors[j].worst_of_bound);
      status = CLI_MISMATCH;
    }
  }
  harness_truth_free(&truth);
  return status;
}

static result result_of(const contest *c, const cli_timing *t, int j) {
  const cli_job *job = &c->jobs[j];
  result r = {.problem = c->problem,
              .threads = job->threads,
              .rounds = t->rounds,
              .b = c->data->problem.b,
              .s_q = c->data->problem.s_q,
              .h_q = c->data->problem.h_q,
              .sk = c->data->problem.sk,
              .topk = c->data->problem.topk,
              .kv_type = c->data->problem.kv_type,
              .flops = harness_flops(c->data),
              .bytes = harness_kv_bytes(c->data),
              .seconds = t->seconds[j],
              .peak = t->peak,
              .bandwidth = t->bandwidth,
              .error = c->errors[j]};
  memcpy(r.backend, job->backend, sizeof r.backend);
  memcpy(r.isa, job->isa, sizeof r.isa);
  memcpy(r.rescale, job->rescale, sizeof r.rescale);
  return r;
}

static cli_exit bench_problem(const char *command, const arguments *a, const char *problem,
                              results *all) {
  harness_dataset data;
  if (!cli_load(command, problem, &data))
    return CLI_ERROR;
  if (!cli_has_rows(command, problem, &data.problem))
    return harness_free(&data), CLI_ERROR;
  contest c = {.command = command,
               .problem = problem,
               .data = &data,
               .n = a->common.rescale_all ? CLI_MAX_JOBS : 1};
  const cli_exit status = open_and_verify(&c, &a->common);
  if (status == CLI_OK) {
    cli_progress progress = cli_progress_begin(problem);
    const cli_timing t = cli_measure(c.jobs, c.n, a->seconds * c.n, true, &progress);
    cli_progress_end(&progress);
    for (int j = 0; j < c.n; j++)
      all->list[all->n++] = result_of(&c, &t, j);
  }
  for (int j = 0; j < c.n; j++)
    cli_job_close(&c.jobs[j]);
  harness_free(&data);
  return status;
}

cli_exit cmd_bench(int argc, char **argv) {
  arguments a = {.common = CLI_OPTIONS_INIT, .seconds = 2};
  cli_parse("[FILE|PROBLEM...]", doc, options, parse, children, argc, argv, &a);
  if (a.common.plan.backend == AMLA_BACKEND_CUDA)
    return bench_cuda(argv[0], &a.common, (const char *const *)a.problems, a.n_problems, a.seconds);
  const char *const *problems = a.n_problems > 0 ? (const char *const *)a.problems : built_in;
  const int n = a.n_problems > 0 ? a.n_problems : (int)(sizeof built_in / sizeof *built_in);
  if (a.common.plot != NULL && !(cli_plot_check(argv[0], a.common.plot) &&
                                 cli_may_write(argv[0], "plot", a.common.plot, problems, n)))
    return CLI_ERROR;
  results all = {.list = cli_allocate((size_t)n * CLI_MAX_JOBS, sizeof *all.list)};
  cli_exit status = CLI_OK;
  for (int i = 0; status == CLI_OK && i < n; i++)
    status = bench_problem(argv[0], &a, problems[i], &all);
  if (status == CLI_OK)
    (a.common.json ? print_json : print_table)(&all);
  if (status == CLI_OK && a.common.plot != NULL && !draw(argv[0], a.common.plot, &all))
    status = CLI_ERROR;
  free(all.list);
  return status;
}
