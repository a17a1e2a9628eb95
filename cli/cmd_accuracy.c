/* SPDX-License-Identifier: Apache-2.0
 *
 * amla accuracy: the paper's precision study. The executable specification, one row at a time, in
 * every rescale mode and with P rounded to each type, against fp64; by distribution and length. It
 * measures the algorithms, not a backend: `amla check' does that.
 */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_commands.h"
#include "cli_job.h"
#include "cli_options.h"
#include "cli_plot.h"
#include "cli_progress.h"
#include "cli_report.h"
#include "spec/spec.h"

enum { MAX_LENGTHS = 16, BLOCK_TOKENS = 512, MAX_LENGTH = 1 << 22 }; /* blocks as in the paper */

typedef struct arguments {
  cli_options common;
  bool quick;
  int n_lengths, lengths[MAX_LENGTHS], heads;
} arguments;

static const char doc[] =
    "Runs the executable specification in every rescale mode, with P rounded to f32, bf16, "
    "f16 and a sum of two bf16, and compares with fp64: relative error "
    "(Frobenius), largest error, largest LSE error, and rescales of O per row.\v"
    "d_qk 576, d_v 512, scale 576^-0.5, blocks of 512 tokens; q and kv are bf16, out is f32. "
    "Modes: flash; uncomp: amla without its error "
    "compensation; amla; lazy; unguard: amla with the published bare integer add, shown on zero "
    "columns (zerov), where it fails. flash2, amla2 and all of bf16x2: as the CPU's rows of bf16, "
    "with a second sum, of P as rounded, which lazy always has.\n\n"
    "Examples:\n"
    "  amla accuracy --quick\n"
    "  amla accuracy --lengths 1024,131072 --heads 8 --plot accuracy.svg\n"
    "  amla accuracy --json > accuracy.json";

static const struct argp_option options[] = {
    {"quick", CLI_KEY_QUICK, NULL, 0, "lengths 1024 and 4096 only: seconds instead of minutes", 0},
    {"lengths", CLI_KEY_LENGTHS, "N,...", 0, "KV lengths (default 1024,8192,32768,131072)", 0},
    {"heads", CLI_KEY_HEADS, "N", 0, "query rows per case (default 4)", 0},
    {"threads", 't', "N", 0, "threads; default AMLA_NUM_THREADS, or one a core", 0},
    {0}};

static const struct argp_child children[] = {
    {&cli_json_argp, 0, NULL, 0}, {&cli_plot_argp, 0, NULL, 0}, {0}};

static int parse_number(struct argp_state *state, const char *option, const char *text, char **end,
                        int max) {
  const long value = strtol(text, end, 10);
  if (*end == text || value < 1 || value > max)
    argp_error(state, "--%s=%s: must be integers in [1, %d]", option, text, max);
  return (int)value;
}

static void parse_lengths(struct argp_state *state, arguments *a, const char *text) {
  char *end = NULL;
  for (a->n_lengths = 0;; text = end + 1) {
    if (a->n_lengths == MAX_LENGTHS)
      argp_error(state, "--lengths: at most %d", MAX_LENGTHS);
    a->lengths[a->n_lengths++] = parse_number(state, "lengths", text, &end, MAX_LENGTH);
    if (*end == '\0')
      return;
    if (*end != ',')
      argp_error(state, "--lengths=%s: must be integers with commas between", text);
  }
}

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  char *end;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = state->child_inputs[1] = &a->common; return 0;
  case CLI_KEY_QUICK: parse_lengths(state, a, "1024,4096"); return 0;
  case CLI_KEY_LENGTHS: parse_lengths(state, a, text); return 0;
  case CLI_KEY_HEADS:
  case 't': {
    const int value = parse_number(state, key == 't' ? "threads" : "heads", text, &end, 1024);
    if (*end != '\0')
      argp_error(state, "'%s': must be an integer", text);
    *(key == 't' ? &a->common.plan.threads : &a->heads) = value;
    return 0;
  }
  case ARGP_KEY_ARG: argp_error(state, "extra argument '%s'", text); return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- What is compared ---- */

typedef struct variant {
  const char *study; /* the name of what only this study has; NULL: the rescale mode's */
  spec_algo algo;
} variant;

/* With P in f32 the compensation is void, so uncomp is amla there. */
static const variant variants[] = {
    {NULL, {.mode = SPEC_FLASH, .p = SPEC_P_F32}},
    {NULL, {.mode = SPEC_AMLA, .p = SPEC_P_F32}},
    {NULL, {.mode = SPEC_LAZY, .p = SPEC_P_F32}},
    {NULL, {.mode = SPEC_FLASH, .p = SPEC_P_BF16}},
    {"uncomp", {.mode = SPEC_AMLA, .p = SPEC_P_BF16, .uncompensated = 1}},
    {NULL, {.mode = SPEC_AMLA, .p = SPEC_P_BF16}},
    {NULL, {.mode = SPEC_LAZY, .p = SPEC_P_BF16}},
    {"unguard", {.mode = SPEC_AMLA, .p = SPEC_P_BF16, .unguarded = 1}},
    {NULL, {.mode = SPEC_FLASH, .p = SPEC_P_F16}},
    {"uncomp", {.mode = SPEC_AMLA, .p = SPEC_P_F16, .uncompensated = 1}},
    {NULL, {.mode = SPEC_AMLA, .p = SPEC_P_F16}},
    {NULL, {.mode = SPEC_LAZY, .p = SPEC_P_F16}},
    {NULL, {.mode = SPEC_FLASH, .p = SPEC_P_BF16X2, .two_sums = 1}},
    {NULL, {.mode = SPEC_AMLA, .p = SPEC_P_BF16X2, .two_sums = 1}},
    {NULL, {.mode = SPEC_LAZY, .p = SPEC_P_BF16X2, .two_sums = 1}},
    {"flash2", {.mode = SPEC_FLASH, .p = SPEC_P_BF16, .two_sums = 1}},
    {"amla2", {.mode = SPEC_AMLA, .p = SPEC_P_BF16, .two_sums = 1}},
};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

static const char *mode_name(const variant *v) {
  static const amla_rescale rescales[] = {[SPEC_FLASH] = AMLA_RESCALE_FLASH,
                                          [SPEC_AMLA] = AMLA_RESCALE_AMLA,
                                          [SPEC_LAZY] = AMLA_RESCALE_LAZY};
  return v->study ? v->study : amla_rescale_name(rescales[v->algo.mode]);
}

static const char *p_name(spec_round p) {
  static const char *const names[] = {[SPEC_P_F32] = "f32",
                                      [SPEC_P_BF16] = "bf16",
                                      [SPEC_P_F16] = "f16",
                                      [SPEC_P_BF16X2] = "bf16x2"};
  return names[p];
}

static const char *const dists[] = {"normal:1",   "normal:3", "normal:10", "uniform:1", "uniform:3",
                                    "uniform:10", "rising",   "outlier",   "peaked",    "zerov"};
enum { N_DISTS = sizeof dists / sizeof *dists };

/* The unguarded add belongs to one column of the study; elsewhere it equals amla, or is wrong by
 * luck. */
static bool is_shown(const variant *v, const char *dist) {
  return !v->algo.unguarded || strcmp(dist, "zerov") == 0;
}

typedef struct outcome {
  bool shown;
  double square_error, square_truth, max_error, lse_error, rescales; /* rescales: sum over rows */
} outcome;

typedef struct study {
  int n_cases, heads;
  struct {
    const char *dist;
    int length;
    outcome of[N_VARIANTS];
  } cases[N_DISTS * MAX_LENGTHS];
} study;

/* ---- One case ---- */

static float *to_f32(const void *from, amla_dtype type, int64_t n) {
  float *to = cli_allocate((size_t)n, sizeof *to);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++)
    to[i] = harness_load(from, type, i);
  return to;
}

static void add_error(outcome *o, const float *out, double lse, const harness_truth *truth,
                      int row) {
  for (int32_t d = 0; d < truth->d_v; d++) {
    const double t = truth->out[(int64_t)row * truth->d_v + d], error = fabs((double)out[d] - t);
    o->square_error += error * error;
    o->square_truth += t * t;
    o->max_error = error <= o->max_error ? o->max_error : error; /* a NaN stays */
  }
  o->lse_error = fmax(o->lse_error, fabs(lse - truth->lse[row]));
}

static outcome run_variant(const spec_algo *algo, const amla_problem *p, const float *q,
                           const float *kv, const harness_truth *truth) {
  outcome o = {.shown = true};
  float weights[BLOCK_TOKENS];
  float *out = cli_allocate((size_t)p->d_v, sizeof *out);
  for (int row = 0; row < p->h_q; row++) {
    spec_row state = SPEC_ROW_INIT;
    for (int32_t j = 0; j < p->sk; j += BLOCK_TOKENS) {
      const int32_t n = p->sk - j < BLOCK_TOKENS ? p->sk - j : BLOCK_TOKENS;
      spec_block(algo, &state, p->d_qk, p->d_v, p->scale, q + (int64_t)row * p->d_qk,
                 kv + (int64_t)j * p->d_qk, NULL, n, weights, out);
    }
    const double lse = (double)spec_finish(algo, &state, p->d_v, out);
    add_error(&o, out, lse, truth, row);
    o.rescales += (double)state.rescales;
  }
  free(out);
  return o;
}

static bool run_case(const char *command, const arguments *a, const char *dist, int length,
                     outcome of[N_VARIANTS]) {
  char text[160], error[256];
  harness_case c;
  harness_dataset data;
  harness_truth truth;
  snprintf(text, sizeof text, "h=%d,sk=%d,page=0,causal=0,scale=0.0416666667,dist=%s", a->heads,
           length, dist);
  if (harness_parse_problem(text, &c, error, sizeof error) != 0 ||
      harness_generate(&c, &data, error, sizeof error) != 0) {
    cli_error(command, "%s", error);
    return false;
  }
  if (harness_truth_compute(&data, &truth) != 0) {
    cli_error(command, "out of memory");
    return false;
  }
  const amla_problem *p = &data.problem;
  float *q = to_f32(data.q, p->q_type, (int64_t)p->h_q * p->d_qk),
        *kv = to_f32(data.kv, p->kv_type, (int64_t)p->sk * p->d_qk);
#pragma omp parallel for schedule(dynamic)
  for (int v = 0; v < N_VARIANTS; v++)
    if (is_shown(&variants[v], dist))
      of[v] = run_variant(&variants[v].algo, p, q, kv, &truth);
  free(q);
  free(kv);
  harness_truth_free(&truth);
  harness_free(&data);
  return true;
}

/* ---- Report ---- */

static double rel_error(const study *s, int i, int v) {
  return sqrt(s->cases[i].of[v].square_error / s->cases[i].of[v].square_truth);
}
static double max_error(const study *s, int i, int v) { return s->cases[i].of[v].max_error; }
static double lse_error(const study *s, int i, int v) { return s->cases[i].of[v].lse_error; }
static double rescales(const study *s, int i, int v) {
  return s->cases[i].of[v].rescales / s->heads;
}

typedef struct metric {
  const char *key, *title;
  bool is_count; /* not an error: printed with one decimal */
  double (*value)(const study *s, int i, int v);
} metric;

static const metric metrics[] = {
    {"rel_error", "Relative error of O (Frobenius, against fp64)", false, rel_error},
    {"max_abs_error", "Largest error of an element of O", false, max_error},
    {"lse_max_abs_error", "Largest error of LSE", false, lse_error},
    {"rescales_per_row", "Rescales of O per row", true, rescales},
};
enum { N_METRICS = sizeof metrics / sizeof *metrics };

static void print_metric(const study *s, const metric *m) {
  char names[N_VARIANTS][32];
  const char *headings[N_VARIANTS + 2] = {"<distribution", "s_k"};
  for (int v = 0; v < N_VARIANTS; v++) {
    snprintf(names[v], sizeof names[v], "%s.%s", mode_name(&variants[v]),
             p_name(variants[v].algo.p));
    headings[v + 2] = names[v];
  }
  cli_table t = cli_table_create(N_VARIANTS + 2, headings);
  for (int i = 0; i < s->n_cases; i++) {
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%s", s->cases[i].dist);
    cli_table_cell(&t, 1, "%d", s->cases[i].length);
    for (int v = 0; v < N_VARIANTS; v++) {
      char number[32];
      snprintf(number, sizeof number, m->is_count ? "%.1f" : "%.1e", m->value(s, i, v));
      cli_table_cell(&t, v + 2, "%s", s->cases[i].of[v].shown ? number : "-");
    }
  }
  printf("%s\n", m->title);
  cli_table_print(&t);
  putchar('\n');
  cli_table_free(&t);
}

static void print_text(const study *s) {
  printf("Columns are MODE.P: the rescale mode and the type P is rounded to. %d rows a case, d_qk "
         "576, d_v 512, blocks "
         "of %d tokens.\n"
         "unguard (the published bare integer add) is shown on zero columns only, where it fails; "
         "all other columns "
         "are guarded.\n\n",
         s->heads, BLOCK_TOKENS);
  for (int m = 0; m < N_METRICS; m++)
    print_metric(s, &metrics[m]);
}

static void print_json(const study *s) {
  json_t *list = json_array();
  for (int i = 0; i < s->n_cases; i++)
    for (int v = 0; v < N_VARIANTS; v++) {
      if (!s->cases[i].of[v].shown)
        continue;
      json_t *o = cli_json_pack("{s:s, s:i, s:s, s:s, s:i}", "dist", s->cases[i].dist, "sk",
                                s->cases[i].length, "mode", mode_name(&variants[v]), "p",
                                p_name(variants[v].algo.p), "rows", s->heads);
      for (int m = 0; m < N_METRICS; m++)
        json_object_set_new(o, metrics[m].key, cli_json_real(metrics[m].value(s, i, v)));
      json_array_append_new(list, o);
    }
  cli_print_json(list);
}

/* The bars of a cluster. */
static const spec_algo bars[] = {{.mode = SPEC_FLASH},
                                 {.mode = SPEC_AMLA, .uncompensated = 1},
                                 {.mode = SPEC_AMLA},
                                 {.mode = SPEC_LAZY}};
enum { N_BARS = sizeof bars / sizeof *bars };

/* The variant behind a bar with P in that type, -1 when the study has none. */
static int variant_of(int bar, spec_round p) {
  for (int v = 0; v < N_VARIANTS; v++) {
    const spec_algo *a = &variants[v].algo;
    if (a->mode == bars[bar].mode && a->uncompensated == bars[bar].uncompensated && !a->unguarded &&
        !a->two_sums && a->p == p)
      return v;
  }
  return -1;
}

/* One panel per type of P: clusters by distribution, at the greatest length, on a logarithmic axis.
 */
static bool draw(const char *command, const char *path, const study *s, int longest) {
  cli_plot plot;
  if (!cli_plot_open(&plot, command, path))
    return false;
  FILE *to = plot.gnuplot;
  fprintf(
      to,
      "set multiplot layout 3,1 title 'amla accuracy: relative error of O against fp64, s_k = %d "
      "(errors below 1e-9 have no bar)'\nset lmargin screen 0.1\nset rmargin screen 0.86\n"
      "set style data histograms\nset style fill solid 0.8 border -1\nset logscale y\nset format y "
      "'%%.0e'\nset "
      "yrange [1e-9:1e-2]\nset ytics 100\nset xtics font ',10'\nset key outside right\n",
      longest);
  for (spec_round p = SPEC_P_F32; p <= SPEC_P_F16; p++) {
    fprintf(to, "$%s << EOD\n", p_name(p));
    for (int i = 0; i < s->n_cases; i++) {
      if (s->cases[i].length != longest)
        continue;
      fprintf(to, "%s", s->cases[i].dist);
      for (int bar = 0; bar < N_BARS; bar++) {
        const int v = variant_of(bar, p);
        const double value = v < 0 ? NAN : rel_error(s, i, v);
        fprintf(to, value > 0 ? " %.3e" : " ?", value);
      }
      fputc('\n', to);
    }
    if (p == SPEC_P_F16)
      fputs("EOD\nset xlabel 'distribution of the scores'\n", to);
    else
      fputs("EOD\n", to);
    fprintf(to, "set ylabel 'error, P in %s'\nset datafile missing '?'\nplot ", p_name(p));
    for (int bar = 0; bar < N_BARS; bar++) {
      const int v = variant_of(bar, p);
      if (v < 0)
        continue;
      fprintf(to, "%s$%s using %d:xtic(1) linecolor %d title '%s'", bar ? ", " : "", p_name(p),
              bar + 2, bar + 1, mode_name(&variants[v]));
    }
    fputc('\n', to);
  }
  fputs("unset multiplot\n", to);
  return cli_plot_close(&plot);
}

/* ---- Command ---- */

static bool run_study(const char *command, const arguments *a, study *s) {
  cli_progress progress = cli_progress_begin("accuracy");
  double done = 0, all = 0;
  bool ok = true;
  for (int l = 0; l < a->n_lengths; l++)
    all += (double)N_DISTS * a->lengths[l];
  for (int d = 0; ok && d < N_DISTS; d++)
    for (int l = 0; ok && l < a->n_lengths; l++) {
      s->cases[s->n_cases].dist = dists[d];
      s->cases[s->n_cases].length = a->lengths[l];
      ok = run_case(command, a, dists[d], a->lengths[l], s->cases[s->n_cases++].of);
      done += a->lengths[l];
      cli_progress_update(&progress, done / all);
    }
  cli_progress_end(&progress);
  return ok;
}

cli_exit cmd_accuracy(int argc, char **argv) {
  arguments a = {.common = CLI_OPTIONS_INIT,
                 .n_lengths = 4,
                 .lengths = {1024, 8192, 32768, 131072},
                 .heads = 4};
  int longest = 0, threads;
  amla_isa isa;
  cli_parse(NULL, doc, options, parse, children, argc, argv, &a);
  if (a.common.plot != NULL && !(cli_plot_check(argv[0], a.common.plot) &&
                                 cli_may_write(argv[0], "plot", a.common.plot, NULL, 0)))
    return CLI_ERROR;
  if (!cli_machine(argv[0], &a.common, &isa, &threads))
    return CLI_ERROR;
  omp_set_num_threads(threads);
  study *s = cli_allocate(1, sizeof *s);
  s->heads = a.heads;
  for (int l = 0; l < a.n_lengths; l++)
    if (a.lengths[l] > longest)
      longest = a.lengths[l];
  bool ok = run_study(argv[0], &a, s);
  if (ok)
    (a.common.json ? print_json : print_text)(s);
  if (ok && a.common.plot != NULL)
    ok = draw(argv[0], a.common.plot, s, longest);
  free(s);
  return ok ? CLI_OK : CLI_ERROR;
}
