/* SPDX-License-Identifier: Apache-2.0
 *
 * amla sim: the Ascend kernel on the simulated NPU. One problem in detail, the tables of
 * predictions, or a search over tilings. Everything printed is simulated.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_commands.h"
#include "cli_job.h"
#include "cli_options.h"
#include "cli_plot.h"
#include "cli_report.h"
#include "cli_sim.h"
#include "harness/names.h"

enum {
  KEY_SCHEDULE = 3000,
  KEY_CHIP,
  KEY_TRACE,
  KEY_TABLE,
  KEY_SEARCH,
  KEY_CORES,
  KEY_BUMPS,
  KEY_RACES,
  KEY_COST,
  KEY_COSTS
};
enum { KEY_GUARD = KEY_COSTS + 1, KEY_VALIDATE, KEY_SWEEP, KEY_EFFICIENCY, KEY_SLICE };
enum { MAX_COSTS = 16, CHECK_BATCH = 4, CHECK_KEYS = 2048 };

typedef struct arguments {
  cli_options common;
  const char *problem;
  amla_sim_options sim;
  amla_sim_cost_change costs[MAX_COSTS];
  const char *table; /* name, "all", NULL = none */
  bool search, list_costs, all_races, validate;
  int32_t sweep; /* settings to draw; 0 = none */
} arguments;

static const char doc[] = "Times the Ascend kernel on a SIMULATED NPU: cycles, utilisation and "
                          "bytes, no results. See docs/ascend.md for what the model assumes.\v"
                          "Races are checked on the same kernel with at most 4 sequences of 2048 "
                          "keys, or with --races on all of it.\n\n"
                          "Examples:\n"
                          "  amla sim b=96,sq=2,h=128,sk=16384 --schedule preload --rescale amla\n"
                          "  amla sim b=96,sk=4096 --chip 910b2 --json\n"
                          "  amla sim b=48,sq=2,sk=4096 --trace pipeline.json --plot pipeline.svg\n"
                          "  amla sim --table\n"
                          "  amla sim b=48,sq=2,sk=4096 --search\n"
                          "  amla sim b=96,sq=2,sk=16384 --cost FIX/copy_l0c_gm_add_f32=100,70,0";

static const struct argp_option options[] = {
    {"rescale", 'r', "MODE", 0, "lazy (default), amla (as published: unguarded) or flash", 0},
    {"guard", KEY_GUARD, NULL, 0, "amla: time the guarded add that backend npu has instead", 0},
    {"schedule", KEY_SCHEDULE, "NAME", 0, "serial, preload, best (default), or in-core (950)", 0},
    {"chip", KEY_CHIP, "NAME", 0, "910 (two dies, default), 910b1, 910b2, 910b3, 910b4 or 950", 0},
    {"cores", KEY_CORES, "N", 0, "AI cores to use; default all", 0},
    {"bumps", KEY_BUMPS, "N", 0,
     "lazy: key tiles of a work item in which every row's reference moves; default 1", 0},
    {"races", KEY_RACES, NULL, 0, "check all of the problem for races, not a small one", 0},
    {"cost", KEY_COST, "ROW=F,R,L", 0,
     "what if a row of the cost table had these fixed cycles, rate, latency", 0},
    {"costs", KEY_COSTS, NULL, 0, "print the cost table with its sources", 0},
    {"trace", KEY_TRACE, "FILE", 0, "write a Chrome trace (opens in Perfetto)", 0},
    {"table", KEY_TABLE, "NAME", OPTION_ARG_OPTIONAL,
     "print the tables of predictions, or one: ideas, doubts, models, chips, 950, production, "
     "paper, ours; minutes",
     0},
    {"search", KEY_SEARCH, NULL, 0, "try tilings on the problem, print the best", 0},
    {"validate", KEY_VALIDATE, NULL, 0, "hold the model against published GEMMs", 0},
    {"sweep", KEY_SWEEP, "N", 0,
     "draw N settings of the model's numbers, more until N / 2 fit: ranges, and what holds", 0},
    {"slice", KEY_SLICE, "N", 0,
     "N AI cores with their share of a die stand for the chip: faster, much the same shares", 0},
    {"efficiency", KEY_EFFICIENCY, "E", 0,
     "share of the model's speed, in (0, 1]; default: what meets the published figure; 1: nothing "
     "fitted",
     0},
    {0}};
static const struct argp_child children[] = {
    {&cli_json_argp, 0, NULL, 0}, {&cli_plot_argp, 0, NULL, 0}, {0}};

/* ---- Arguments ---- */

static amla_sim_schedule parse_schedule(struct argp_state *state, const char *text) {
  const int found = harness_find_name(cli_sim_schedules, text);
  if (found < 0)
    argp_error(state, "--schedule=%s: unknown", text);
  return (amla_sim_schedule)found;
}

static int32_t count(struct argp_state *state, const char *option, const char *text, long least) {
  char *end;
  errno = 0;
  const long n = strtol(text, &end, 10);
  if (end == text || *end != '\0' || errno != 0 || n < least || n > INT32_MAX)
    argp_error(state, "--%s=%s: must be an integer >= %ld", option, text, least);
  return (int32_t)n;
}

static double share(struct argp_state *state, const char *option, const char *text) {
  char *end;
  const double x = strtod(text, &end);
  if (end == text || *end != '\0' || !(x > 0 && x <= 1))
    argp_error(state, "--%s=%s: must be above 0 and at most 1", option, text);
  return x;
}

/* "UNIT/operation=fixed,rate,latency"; the text is kept. */
static void add_cost(struct argp_state *state, arguments *a, char *text) {
  char *equals = strrchr(text, '=');
  if (a->sim.n_costs == MAX_COSTS)
    argp_error(state, "--cost: at most %d", MAX_COSTS);
  amla_sim_cost_change *c = &a->costs[a->sim.n_costs++];
  if (equals == NULL ||
      sscanf(equals + 1, "%lf,%lf,%lf", &c->fixed_cycles, &c->rate, &c->latency_cycles) != 3)
    argp_error(state, "--cost=%s: must be UNIT/operation=fixed,rate,latency", text);
  *equals = '\0';
  c->row = text;
}

static bool needs_no_problem(const arguments *a) {
  return a->table != NULL || a->list_costs || a->validate || a->sweep > 0;
}

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = state->child_inputs[1] = &a->common; return 0;
  case 'r': a->common.plan.rescale = cli_parse_rescale(state, text); return 0;
  case KEY_SCHEDULE: a->sim.schedule = parse_schedule(state, text); return 0;
  case KEY_CHIP: a->sim.chip = text; return 0;
  case KEY_GUARD: a->sim.unguarded_add = 0; return 0;
  case KEY_CORES: a->sim.cores = count(state, "cores", text, 1); return 0;
  case KEY_BUMPS: a->sim.assume_bumps = count(state, "bumps", text, 0); return 0;
  case KEY_RACES: a->all_races = true; return 0;
  case KEY_COST: add_cost(state, a, text); return 0;
  case KEY_COSTS: a->list_costs = true; return 0;
  case KEY_TRACE: a->sim.trace_path = text; return 0;
  case KEY_TABLE:
    a->table = text != NULL ? text : "all";
    if (!cli_sim_has_table(a->table))
      argp_error(state,
                 "--table=%s: must be ideas, doubts, models, chips, 950, production, "
                 "paper or ours",
                 text);
    return 0;
  case KEY_SEARCH: a->search = true; return 0;
  case KEY_VALIDATE: a->validate = true; return 0;
  case KEY_SWEEP: a->sweep = count(state, "sweep", text, 1); return 0;
  case KEY_SLICE: a->sim.slice_cores = count(state, "slice", text, 1); return 0;
  case KEY_EFFICIENCY: a->sim.efficiency = share(state, "efficiency", text); return 0;
  case ARGP_KEY_ARG:
    if (a->problem != NULL)
      argp_error(state, "extra argument '%s'", text);
    a->problem = text;
    return 0;
  case ARGP_KEY_END:
    if (a->problem == NULL && !needs_no_problem(a))
      argp_error(state, "PROBLEM is missing");
    if ((needs_no_problem(a) || a->search) &&
        (a->common.json || a->common.plot || a->sim.trace_path))
      argp_error(state, "--json, --plot, --trace: must go with a PROBLEM alone, "
                        "not --table, --costs, --search, --sweep or --validate");
    return 0;
  default: return ARGP_ERR_UNKNOWN;
  }
}

/* ---- One problem ---- */

/* The first key that says which keys a query sees, beyond what the kernel has; NULL: none. */
static const char *sparse_key(const harness_case *c) {
  const amla_problem *p = &c->problem;
  const struct {
    const char *key;
    int32_t value;
  } keys[] = {{"mask", c->mask},       {"topk", p->topk},       {"window", p->window},
              {"scope2", p->extra_sk}, {"visible", c->visible}, {"ragged", c->ragged},
              {"csr", c->csr},         {"qrope", p->q_d_rope},  {"kvrope", p->kv_d_rope}};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (keys[i].value != 0)
      return keys[i].key;
  return NULL;
}

/* Shapes and lengths only; the caller frees *lengths. */
static bool load_problem(const char *command, const char *text, amla_problem *p,
                         int32_t **lengths) {
  char error[512];
  harness_case c;
  if (harness_parse_problem(text, &c, error, sizeof error) != 0) {
    cli_error(command, "%s", error);
    return false;
  }
  if (sparse_key(&c) != NULL) {
    cli_error(command, "%s: %s: the kernel does not have it", text, sparse_key(&c));
    return false;
  }
  *p = c.problem;
  *lengths = cli_allocate((size_t)p->b + 1, sizeof **lengths);
  for (int32_t i = 0; i < p->b; i++)
    (*lengths)[i] = harness_length(&c, i);
  return true;
}

/* Races of the same kernel on a problem small enough for the checker, as its report; or of the
 * whole problem. */
static amla_status check_races(const arguments *a, const amla_problem *whole,
                               const int32_t *lengths, amla_sim_report *report,
                               amla_detail *detail) {
  amla_problem p = *whole;
  amla_sim_options o = a->sim;
  int32_t *some = cli_allocate((size_t)p.b + 1, sizeof *some);
  o.check_races = 1, o.trace_path = NULL, o.event = NULL;
  if (!a->all_races && p.b > CHECK_BATCH)
    p.b = CHECK_BATCH;
  if (!a->all_races && (o.cores == 0 || o.cores > 3))
    o.cores = 3, o.slice_cores = 0; /* so that sequences are cut and merged */
  for (int32_t i = 0; i < p.b; i++)
    some[i] = !a->all_races && lengths[i] > CHECK_KEYS ? CHECK_KEYS : lengths[i];
  const amla_status status = amla_sim_run(&p, &a->common.plan, some, &o, report, detail);
  free(some);
  return status;
}

static const char *binding_pipe(const amla_sim_report *r) {
  int most = 0;
  for (int i = 1; i < AMLA_SIM_PIPES; i++)
    if (r->pipe_busy[i] > r->pipe_busy[most])
      most = i;
  return r->pipe_name[most];
}

/* Does it time what backend npu does not compute with? */
static bool is_study(const arguments *a) {
  return a->common.plan.rescale == AMLA_RESCALE_AMLA && a->sim.unguarded_add;
}

static void print_text(const arguments *a, const amla_sim_report *r, const amla_sim_report *races) {
  printf("SIMULATED %s\n", r->description);
  printf("problem   %s\n", a->problem);
  if (is_study(a))
    printf(
        "study     the unguarded add is wrong where O is 0 or tiny; --guard times the right one\n");
  printf("speed     %.1f TFLOPS, %.1f %% of %.1f; %.1f us, %lld cycles\n",
         r->flops_per_second / 1e12, 100 * r->utilization, r->peak_flops_per_second / 1e12,
         r->seconds * 1e6, (long long)r->cycles);
  printf("unfitted  %.1f %%, %.1f us: the model alone, without the efficiency of %.3f that meets "
         "the published figure\n",
         100 * r->unfitted_utilization, r->unfitted_seconds * 1e6, r->efficiency);
  printf("busy     ");
  for (int i = 0; i < AMLA_SIM_PIPES; i++)
    printf(" %s %.1f %%%s", r->pipe_name[i], 100 * r->pipe_busy[i],
           i < AMLA_SIM_PIPES - 1 ? "," : "");
  printf("; L2 reads %.1f %%; most: %s\n", 100 * r->l2_read_busy, binding_pipe(r));
  printf("GB        GM to L1 %.2f, GM to UB %.2f, L1 to L0A %.2f, to L0B %.2f, L0C to GM %.2f, UB "
         "to GM %.2f; from HBM %.2f, to HBM %.2f\n",
         (double)r->gm_l1_bytes / 1e9, (double)r->gm_ub_bytes / 1e9, (double)r->l1_l0a_bytes / 1e9,
         (double)r->l1_l0b_bytes / 1e9, (double)r->l0c_gm_bytes / 1e9, (double)r->ub_gm_bytes / 1e9,
         (double)r->hbm_read_bytes / 1e9, (double)r->hbm_write_bytes / 1e9);
  printf("races: %lld, other errors: %lld (checked on %s)\n", (long long)races->races,
         (long long)(races->other_errors + r->other_errors),
         a->all_races ? "all of it" : "at most 4 sequences of 2048 keys on 3 cores");
  if (races->message[0] || r->message[0])
    printf("          %s\n", races->message[0] ? races->message : r->message);
}

static void print_json(const arguments *a, const amla_sim_report *r, const amla_sim_report *races) {
  json_t *pipes = json_object();
  for (int i = 0; i < AMLA_SIM_PIPES; i++)
    json_object_set_new(pipes, r->pipe_name[i], cli_json_real(r->pipe_busy[i]));
  json_t *bytes =
      cli_json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "gm_l1", (json_int_t)r->gm_l1_bytes,
                    "gm_ub", (json_int_t)r->gm_ub_bytes, "l1_l0a", (json_int_t)r->l1_l0a_bytes,
                    "l1_l0b", (json_int_t)r->l1_l0b_bytes, "l0c_gm", (json_int_t)r->l0c_gm_bytes,
                    "ub_gm", (json_int_t)r->ub_gm_bytes, "hbm_read", (json_int_t)r->hbm_read_bytes,
                    "hbm_write", (json_int_t)r->hbm_write_bytes);
  cli_print_json(cli_json_pack(
      "{s:b, s:o, s:s, s:I, s:f, s:f, s:f, s:f, s:i, s:o, s:o, s:I, s:I,"
      " s:b, s:b, s:f, s:f, s:f, s:f}",
      "simulated", 1, "problem", cli_json_text(a->problem), "description", r->description, "cycles",
      (json_int_t)r->cycles, "seconds", r->seconds, "tflops", r->flops_per_second / 1e12,
      "peak_tflops", r->peak_flops_per_second / 1e12, "utilization", r->utilization, "cores",
      r->cores, "pipes", pipes, "bytes", bytes, "races", (json_int_t)races->races, "other_errors",
      (json_int_t)(races->other_errors + r->other_errors), "races_checked_on_all", a->all_races,
      "unguarded_add", is_study(a), "efficiency", r->efficiency, "unfitted_seconds",
      r->unfitted_seconds, "unfitted_utilization", r->unfitted_utilization, "l2_read",
      r->l2_read_busy));
}

static cli_exit run_one(const char *command, arguments *a, const amla_problem *p,
                        const int32_t *lengths) {
  amla_sim_report report = AMLA_SIM_REPORT_INIT, races = AMLA_SIM_REPORT_INIT;
  amla_detail detail;
  cli_timeline timeline = {0};
  const char *const trace[] = {a->sim.trace_path};
  if (*trace != NULL && !cli_may_write(command, "trace", *trace, NULL, 0))
    return CLI_ERROR;
  if (a->common.plot != NULL) {
    if (!cli_plot_check(command, a->common.plot) ||
        !cli_may_write(command, "plot", a->common.plot, trace, *trace != NULL))
      return CLI_ERROR;
    a->sim.event = cli_timeline_add, a->sim.context = &timeline;
  }
  if (amla_sim_run(p, &a->common.plan, lengths, &a->sim, &report, &detail) != AMLA_OK ||
      check_races(a, p, lengths, &races, &detail) != AMLA_OK) {
    cli_error(command, "%s: %s", a->problem, detail.text);
    return CLI_ERROR;
  }
  (a->common.json ? print_json : print_text)(a, &report, &races);
  const bool drawn =
      a->common.plot == NULL || cli_timeline_draw(command, a->common.plot, &timeline, &report);
  cli_timeline_free(&timeline);
  if (!drawn)
    return CLI_ERROR;
  return races.races + races.other_errors + report.other_errors > 0 ? CLI_MISMATCH : CLI_OK;
}

static cli_exit list_costs(void) {
  const char *line;
  for (int32_t i = 0; (line = amla_sim_cost(i)) != NULL; i++)
    printf("%s\n", line);
  return CLI_OK;
}

cli_exit cmd_sim(int argc, char **argv) {
  static const amla_sim_options defaults = AMLA_SIM_OPTIONS_INIT;
  arguments a = {.common = CLI_OPTIONS_INIT, .sim = defaults};
  amla_problem p;
  int32_t *lengths;
  a.sim.unguarded_add = 1;
  cli_parse("[PROBLEM]", doc, options, parse, children, argc, argv, &a);
  a.sim.costs = a.costs;
  if (a.list_costs)
    return list_costs();
  if (a.validate)
    return cli_sim_validate(argv[0], &a.sim);
  if (a.sweep > 0)
    return cli_sim_sweep(argv[0], a.sweep, &a.sim);
  if (a.table != NULL)
    return cli_sim_tables(argv[0], a.table, &a.sim);
  if (!load_problem(argv[0], a.problem, &p, &lengths))
    return CLI_ERROR;
  const cli_exit status = a.search ? cli_sim_search(argv[0], &p, lengths, &a.common.plan, &a.sim)
                                   : run_one(argv[0], &a, &p, lengths);
  free(lengths);
  return status;
}
