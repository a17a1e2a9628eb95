/* SPDX-License-Identifier: Apache-2.0
 *
 * amla bench --backend cuda. A batch is made of a few generated sequences ("originals"), repeated
 * at other addresses until there are b: the device moves as many bytes as it should, and every one
 * of the b results is compared with fp64 before a figure is printed. A wrong one is marked and not
 * timed. Each timed run follows a write of more than L2 holds, and takes the next of several sets
 * of page tables over different copies.
 *
 * Two counts stand side by side: useful FLOPs (visible keys only), as everywhere in this project;
 * and FlashMLA's, which counts hidden keys of causal problems too, for comparison with its
 * published figures. `kernel' is the decode kernel alone, `end to end' has the clearing of the
 * scratch's counters before it; there is no other kernel.
 */
#include "bench_cuda.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_job.h"
#include "cli_log.h"
#include "cli_progress.h"
#include "cli_report.h"
#include "harness/cuda_memory.h"
#include "harness/rounds.h"

static const char *const built_in[] = {"b=128,sq=2,sk=4096",
                                       "b=128,sq=2,sk=8192",
                                       "b=128,sq=2,sk=16384",
                                       "b=128,sq=2,sk=32768",
                                       "b=128,sk=4096",
                                       "b=128,sk=8192",
                                       "b=128,sk=16384",
                                       "b=128,sk=32768",
                                       "b=128,sk=4096,len=uniform",
                                       "b=128,sq=2,sk=8192,len=uniform",
                                       "b=128,h=16,sk=4096",
                                       "b=128,h=16,sk=16384",
                                       "b=1,h=16,sk=1024",
                                       "b=1,h=16,sk=65536",
                                       "b=8,h=16,sk=1024",
                                       "b=8,h=16,sk=65536"};

static const double MAX_TRUTH_FLOPS = 4e10, MAX_ORIGINAL_ELEMS = 4e7;
enum { MAX_RUNS = 200, MIN_RUNS = 5, MAX_SETS = 4, COLD_BYTES = 256 << 20 };

typedef struct limits {
  double wgmma, mma, mix, copy; /* FLOP/s, FLOP/s, FLOP/s, bytes/s; 0 = not measured */
} limits;

typedef struct figures {
  const char *problem;
  char description[256];
  amla_plan_info info;
  double end_to_end, median, kernel; /* seconds: best, median, best */
  double flops, flashmla_flops, bytes;
  int runs;
  harness_error error;
} figures;

/* ---- Data ---- */

/* Originals generated on the host, and everything on the device. */
typedef struct batch {
  const amla_cuda_tools *tools;
  harness_dataset originals;
  harness_truth truth;
  amla_problem problem; /* of the whole batch, device memory */
  int n_originals, n_sets;
  amla_tensors sets[MAX_SETS];
  void *buffers[4 + MAX_SETS]; /* kv, q, out, lse, tables */
  void *lengths, *sinks, *scratch;
  amla_plan *plan;
  size_t scratch_bytes;
} batch;

static void free_batch(batch *x) {
  for (size_t i = 0; i < sizeof x->buffers / sizeof *x->buffers; i++)
    x->tools->release(x->buffers[i]);
  x->tools->release(x->lengths);
  x->tools->release(x->sinks);
  x->tools->release(x->scratch);
  amla_plan_destroy(x->plan);
  harness_truth_free(&x->truth);
  harness_free(&x->originals);
}

/* As many originals as can be generated and their truth computed in a moment, and a divisor of b;
 * all b where copies are not possible. */
static int count_originals(const harness_case *c) {
  const amla_problem *p = &c->problem;
  const double flops = 2.0 * p->s_q * p->h_q * p->sk * ((double)p->d_qk + p->d_v),
               elems = (double)p->sk * p->d_qk;
  const double most = fmin(MAX_TRUTH_FLOPS / flops, MAX_ORIGINAL_ELEMS / elems);
  if (p->page_size == 0 || c->len == HARNESS_LEN_LIST || c->pad || p->b < 2)
    return p->b;
  int n = most < p->b ? (int)fmax(most, 1) : p->b;
  while (p->b % n != 0)
    n--;
  return n;
}

static bool generate_originals(const char *command, const char *text, batch *x,
                               harness_case *whole) {
  char error[256], shorter[512];
  harness_case few;
  if (harness_parse_problem(text, whole, error, sizeof error) != 0)
    return cli_error(command, "%s", error), false;
  if (!cli_has_rows(command, text, &whole->problem))
    return false;
  few = *whole;
  x->n_originals = count_originals(whole);
  few.problem.b = x->n_originals;
  harness_format_problem(&few, shorter, sizeof shorter);
  if (harness_parse_problem(shorter, &few, error, sizeof error) != 0 ||
      harness_generate(&few, &x->originals, error, sizeof error) != 0)
    return cli_error(command, "%s: %s", text, error), false;
  x->truth = cli_truth(&x->originals);
  return true;
}

/* A device buffer of `copies` copies of host data. */
static void *repeat(const amla_cuda_tools *tools, const void *host, size_t bytes, int64_t copies) {
  char *device = tools->allocate(bytes * (size_t)copies);
  for (int64_t i = 0; device && i < copies; i++)
    if (tools->upload(device + (size_t)i * bytes, host, bytes)) {
      tools->release(device);
      return NULL;
    }
  return device;
}

/* Table of set s: sequence i is original i % n in the copy after those of the sets before. */
static void *upload_table(const batch *x, int s, int copies) {
  const amla_problem *p = &x->originals.problem;
  const size_t row = (size_t)p->max_pages;
  int32_t *table = cli_allocate(row * (size_t)x->problem.b, sizeof *table);
  for (int32_t i = 0; i < x->problem.b; i++)
    for (size_t j = 0; j < row; j++) {
      const int64_t page = x->originals.block_table[(size_t)(i % x->n_originals) * row + j];
      const int64_t moved = page + (int64_t)(s * copies + i / x->n_originals) * p->n_pages;
      /* Unused entries may be anything. */
      table[(size_t)i * row + j] = page < p->n_pages ? (int32_t)moved : (int32_t)page;
    }
  void *device = repeat(x->tools, table, row * (size_t)x->problem.b * sizeof *table, 1);
  free(table);
  return device;
}

static bool place(batch *x) {
  const amla_tensors *t = &x->originals.tensors;
  const int copies = x->problem.b / x->n_originals;
  const bool paged = x->problem.page_size > 0;
  x->n_sets = 1;
  while (paged && x->n_sets < MAX_SETS &&
         (size_t)(x->n_sets * copies) * t->kv_bytes < (size_t)COLD_BYTES)
    x->n_sets++;
  x->problem.n_pages = x->originals.problem.n_pages * copies * x->n_sets;
  x->buffers[0] = repeat(x->tools, t->kv, t->kv_bytes, (int64_t)copies * x->n_sets);
  x->buffers[1] = repeat(x->tools, t->q, t->q_bytes, copies);
  x->buffers[2] = repeat(x->tools, t->out, t->out_bytes, copies);
  x->buffers[3] = repeat(x->tools, t->lse, t->lse_bytes, copies);
  x->lengths = repeat(x->tools, t->seqlens_k, t->seqlens_k_bytes, copies);
  if (t->sinks)
    x->sinks = repeat(x->tools, t->sinks, t->sinks_bytes, 1);
  bool ok = x->buffers[0] && x->buffers[1] && x->buffers[2] && x->buffers[3] && x->lengths &&
            (x->sinks || !t->sinks);
  for (int s = 0; s < x->n_sets && ok; s++) {
    amla_tensors *set = &x->sets[s];
    *set = *t;
    set->kv = x->buffers[0], set->kv_bytes = t->kv_bytes * (size_t)copies * (size_t)x->n_sets;
    set->q = x->buffers[1], set->q_bytes = t->q_bytes * (size_t)copies;
    set->out = x->buffers[2], set->out_bytes = t->out_bytes * (size_t)copies;
    set->lse = x->buffers[3], set->lse_bytes = t->lse_bytes * (size_t)copies;
    set->seqlens_k = x->lengths, set->seqlens_k_bytes = t->seqlens_k_bytes * (size_t)copies;
    set->sinks = x->sinks;
    if (!paged)
      continue;
    x->buffers[4 + s] = upload_table(x, s, copies);
    set->block_table = x->buffers[4 + s];
    set->block_table_bytes = (size_t)x->problem.b * (size_t)x->problem.max_pages * sizeof(int32_t);
    ok = set->block_table != NULL;
  }
  return ok;
}

static bool make_plan(const char *command, const char *text, const cli_options *options, batch *x) {
  amla_options o = options->plan;
  amla_detail detail;
  char description[256];
  harness_take_options(&o, &x->originals.options);
  if (amla_plan_create(&x->plan, &x->problem, &o, &detail) != AMLA_OK)
    return cli_log_refused(), cli_error(command, "%s: %s", text, detail.text), false;
  amla_plan_describe(x->plan, description, sizeof description);
  cli_log_plan(&x->problem, description);
  x->scratch_bytes = amla_plan_scratch_bytes(x->plan);
  x->scratch = x->tools->allocate(x->scratch_bytes);
  if (!x->scratch)
    return cli_error(command, "%s: out of device memory for %zu bytes of scratch", text,
                     x->scratch_bytes),
           false;
  return true;
}

static bool open_batch(const char *command, const char *text, const cli_options *options,
                       const amla_cuda_tools *tools, batch *x) {
  harness_case whole;
  *x = (batch){.tools = tools};
  if (!generate_originals(command, text, x, &whole))
    return false;
  x->problem = whole.problem;
  x->problem.memory = AMLA_MEMORY_DEVICE;
  if (!place(x))
    return cli_error(command, "%s: out of device memory", text), false;
  return make_plan(command, text, options, x);
}

/* ---- Verifying and timing ---- */

static const char *run_set(void *argument, int32_t i) {
  static amla_detail detail;
  const batch *x = argument;
  if (amla_plan_run(x->plan, &x->sets[i % x->n_sets], x->scratch, x->scratch_bytes, &detail) !=
      AMLA_OK)
    return cli_log_refused(), detail.text;
  cli_log_run((double)x->problem.b * x->problem.s_q, 0, 0);
  return NULL;
}

/* Every copy's results of every set against the truth of its original; the worst. NULL, or what
 * went wrong. */
static const char *verify(batch *x, harness_error *worst) {
  const amla_tensors *t = &x->originals.tensors;
  const int copies = x->problem.b / x->n_originals;
  *worst = (harness_error){.ok = 1};
  for (int s = 0; s < x->n_sets; s++) {
    const char *why = run_set(x, s);
    if (!why)
      why = x->tools->synchronise();
    for (int c = 0; c < copies && !why; c++) {
      why = x->tools->download(x->originals.out, (char *)x->buffers[2] + (size_t)c * t->out_bytes,
                               t->out_bytes);
      if (!why)
        why = x->tools->download(x->originals.lse, (char *)x->buffers[3] + (size_t)c * t->lse_bytes,
                                 t->lse_bytes);
      if (why)
        break;
      const harness_error e =
          harness_compare_rounded_p(&x->originals, &x->truth, x->problem.kv_type);
      if (e.worst_of_bound >= worst->worst_of_bound)
        *worst = e;
    }
    if (why)
      return why;
  }
  return NULL;
}

static const char *measure(batch *x, double seconds, figures *f) {
  static double both[2 * MAX_RUNS];
  double whole[MAX_RUNS];
  /* Warms up, and says how long a run takes. */
  const char *why = x->tools->time(MIN_RUNS, COLD_BYTES, run_set, x, both);
  if (why)
    return why;
  const double wanted = seconds / fmax(both[2 * (MIN_RUNS - 1)] + 2e-4, 1e-6);
  f->runs = (int)fmin(fmax(wanted, MIN_RUNS), MAX_RUNS);
  why = x->tools->time(f->runs, COLD_BYTES, run_set, x, both);
  if (why)
    return why;
  f->kernel = INFINITY;
  for (int i = 0; i < f->runs; i++) {
    whole[i] = both[2 * i];
    f->kernel = fmin(f->kernel, both[2 * i + 1]);
  }
  const harness_series series = harness_summarise(whole, f->runs, true);
  f->end_to_end = series.best;
  f->median = series.median;
  return NULL;
}

static void count_work(const batch *x, figures *f) {
  const amla_problem *p = &x->problem;
  harness_dataset counted = x->originals;
  int32_t *lengths = cli_allocate((size_t)p->b, sizeof *lengths);
  double keys = 0;
  for (int32_t i = 0; i < p->b; i++)
    keys += lengths[i] = x->originals.seqlens_k[i % x->n_originals];
  counted.problem = *p;
  counted.tensors.seqlens_k = lengths;
  f->flops = harness_flops(&counted);
  f->bytes = harness_kv_bytes(&counted);
  f->flashmla_flops = 2.0 * p->s_q * p->h_q * keys * ((double)p->d_qk + p->d_v);
  free(lengths);
}

static cli_exit bench_one(const char *command, const char *text, const cli_options *options,
                          const amla_cuda_tools *tools, double seconds, figures *f) {
  batch x;
  cli_exit status = CLI_ERROR;
  *f = (figures){.problem = text, .end_to_end = NAN, .median = NAN, .kernel = NAN};
  if (open_batch(command, text, options, tools, &x)) {
    amla_plan_describe(x.plan, f->description, sizeof f->description);
    f->info = (amla_plan_info)AMLA_PLAN_INFO_INIT;
    amla_plan_query(x.plan, &f->info, NULL);
    count_work(&x, f);
    const char *why = verify(&x, &f->error);
    if (!why && f->error.ok)
      why = measure(&x, seconds, f);
    if (why)
      cli_error(command, "%s: %s", text, why);
    else if (!f->error.ok)
      cli_error(command, "%s: %s: wrong result: relative error %.2e, %.2g of the bound", text,
                f->description, f->error.rel_error, f->error.worst_of_bound);
    if (!why)
      status = f->error.ok ? CLI_OK : CLI_MISMATCH;
  }
  free_batch(&x);
  return status;
}

/* ---- Results ---- */

static bool is_wgmma(const figures *f) { return strncmp(f->info.kernel, "wgmma", 5) == 0; }
static double matrix_limit(const figures *f, const limits *l) {
  return is_wgmma(f) ? l->wgmma : l->mma;
}
/* At the limits; 0 when they are not known. */
static double least_seconds(const figures *f, const limits *l) {
  const double matrix = matrix_limit(f, l);
  const double computing = matrix > 0 ? f->flops / matrix : 0;
  return fmax(computing, l->copy > 0 ? f->bytes / l->copy : 0);
}
static const char *limit_name(const figures *f, const limits *l) {
  const double matrix = matrix_limit(f, l);
  if (matrix <= 0 && l->copy <= 0)
    return "unknown";
  if (matrix <= 0 || f->flops / matrix < f->bytes / fmax(l->copy, 1))
    return "memory";
  return is_wgmma(f) ? "wgmma" : "mma.sync";
}

/* A row is printed when it is there: what comes after it may hang. */
static const struct column {
  const char *heading;
  int width; /* < 0: to the left */
} columns[] = {{"problem", -40},
               {"result", -6},
               {"kernel", 8},
               {"end to end", 10},
               {"median", 8},
               {"TFLOP/s", 7},
               {"GB/s", 6},
               {"limit", -8},
               {"kernel of limit", 15},
               {"of limit", 8},
               {"FlashMLA count: kernel", 22},
               {"end to end", 10},
               {"rel error", 9},
               {"plan", -1}};
enum { N_COLUMNS = sizeof columns / sizeof *columns };

typedef char cells[N_COLUMNS][256];

static void print_cells(cells c) {
  for (int i = 0; i < N_COLUMNS; i++)
    printf("%*s%s", columns[i].width, c[i], i + 1 < N_COLUMNS ? "  " : "\n");
  fflush(stdout);
}

static void print_limits(const limits *l) {
  printf("wgmma      %.1f TFLOP/s, products only\n", l->wgmma * 1e-12);
  printf("mma.sync   %.1f TFLOP/s, products only\n", l->mma * 1e-12);
  printf("mix        %.1f TFLOP/s, products only, as the default wgmma kernel orders them\n",
         l->mix * 1e-12);
  printf("copy       %.1f GB/s, read plus written\n", l->copy * 1e-9);
  fflush(stdout);
}

static void print_heading(const amla_cuda_tools *tools, const limits *l) {
  cells c;
  printf("device     %s\n", tools->device_name());
  if (tools->emulated)
    printf("EMULATED on this CPU: the times below are no figures of speed\n");
  print_limits(l);
  for (int i = 0; i < N_COLUMNS; i++)
    snprintf(c[i], sizeof c[i], "%s", columns[i].heading);
  print_cells(c);
}

__attribute__((format(printf, 3, 4))) static void cell(cells c, int *column, const char *format,
                                                       ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(c[(*column)++], sizeof c[0], format, arguments);
  va_end(arguments);
}

static void print_row(const limits *l, const figures *f) {
  cells c;
  char text[32];
  int at = 0;
  cell(c, &at, "%s", f->problem);
  cell(c, &at, "%s", f->error.ok ? "right" : "WRONG");
  cell(c, &at, "%s", cli_format_seconds(f->kernel, text));
  cell(c, &at, "%s", cli_format_seconds(f->end_to_end, text));
  cell(c, &at, "%s", cli_format_seconds(f->median, text));
  cell(c, &at, "%.1f", f->flops / f->end_to_end * 1e-12);
  cell(c, &at, "%.0f", f->bytes / f->end_to_end * 1e-9);
  cell(c, &at, "%s", limit_name(f, l));
  cell(c, &at, "%.3f", least_seconds(f, l) / f->kernel);
  cell(c, &at, "%.3f", least_seconds(f, l) / f->end_to_end);
  cell(c, &at, "%.1f", f->flashmla_flops / f->kernel * 1e-12);
  cell(c, &at, "%.1f", f->flashmla_flops / f->end_to_end * 1e-12);
  cell(c, &at, "%.1e", f->error.rel_error);
  cell(c, &at, "%s", f->description);
  for (int i = 2; i < at - 2 && !f->error.ok; i++)
    snprintf(c[i], sizeof c[i], "-");
  print_cells(c);
}

/* An element of the array that `[` has begun. */
static void print_json(const amla_cuda_tools *tools, const limits *l, const figures *f,
                       bool first) {
  json_t *o = cli_json_pack("{s:o, s:s, s:s, s:s, s:b, s:s, s:i}", "problem",
                            cli_json_text(f->problem), "backend", "cuda", "description",
                            f->description, "device", tools->device_name(), "emulated",
                            tools->emulated, "limit", limit_name(f, l), "runs", f->runs);
  const struct {
    const char *name;
    double value;
  } numbers[] = {{"seconds", f->end_to_end},
                 {"median_seconds", f->median},
                 {"kernel_seconds", f->kernel},
                 {"gflops", f->flops / f->end_to_end * 1e-9},
                 {"kernel_gflops", f->flops / f->kernel * 1e-9},
                 {"flashmla_kernel_gflops", f->flashmla_flops / f->kernel * 1e-9},
                 {"flashmla_gflops", f->flashmla_flops / f->end_to_end * 1e-9},
                 {"peak_gflops", matrix_limit(f, l) * 1e-9},
                 {"wgmma_gflops", l->wgmma * 1e-9},
                 {"mma_gflops", l->mma * 1e-9},
                 {"mix_gflops", l->mix * 1e-9},
                 {"copy_bytes_per_second", l->copy},
                 {"bytes_per_second", f->bytes / f->end_to_end},
                 {"utilization", f->flops / f->end_to_end / matrix_limit(f, l)},
                 {"fraction_of_limit", least_seconds(f, l) / f->end_to_end},
                 {"kernel_fraction_of_limit", least_seconds(f, l) / f->kernel}};
  for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++)
    json_object_set_new(o, numbers[j].name, cli_json_real(numbers[j].value));
  cli_json_error(o, &f->error);
  if (!first)
    puts(",");
  cli_print_json(o);
  fflush(stdout);
}

static limits measure_limits(const amla_cuda_tools *tools) {
  return (limits){tools->matrix_rate(AMLA_CUDA_RATE_WGMMA), tools->matrix_rate(AMLA_CUDA_RATE_MMA),
                  tools->matrix_rate(AMLA_CUDA_RATE_MIX), tools->copy_rate()};
}

static limits better(const limits *a, const limits *b) { /* a limit is not beaten */
  return (limits){fmax(a->wgmma, b->wgmma), fmax(a->mma, b->mma), fmax(a->mix, b->mix),
                  fmax(a->copy, b->copy)};
}

/* Goes on after an error and after a wrong result, which decides the exit status. */
cli_exit bench_cuda(const char *command, const cli_options *options, const char *const *problems,
                    int n_problems, double seconds) {
  char reason[256];
  const amla_cuda_tools *tools = harness_cuda_tools(reason, sizeof reason);
  if (!tools)
    return cli_error(command, "backend=cuda: %s", reason), CLI_ERROR;
  if (n_problems == 0)
    problems = built_in, n_problems = (int)(sizeof built_in / sizeof *built_in);
  limits l = measure_limits(tools);
  cli_exit worst = CLI_OK;
  int n_rows = 0;
  if (options->json)
    puts("[");
  else
    print_heading(tools, &l);
  for (int i = 0; i < n_problems; i++) {
    figures f;
    cli_progress progress = cli_progress_begin(problems[i]);
    const cli_exit status = bench_one(command, problems[i], options, tools, seconds, &f);
    cli_progress_end(&progress);
    if (status > worst)
      worst = status;
    if (status == CLI_ERROR)
      continue;
    const limits now = measure_limits(tools);
    l = better(&l, &now);
    if (options->json)
      print_json(tools, &l, &f, n_rows == 0);
    else
      print_row(&l, &f);
    n_rows++;
  }
  if (options->json)
    puts("]");
  else
    print_limits(&l);
  return worst;
}
