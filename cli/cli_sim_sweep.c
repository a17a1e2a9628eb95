/* SPDX-License-Identifier: Apache-2.0
 *
 * amla sim --sweep N: not points but ranges. Draws N settings of the model's numbers from the box
 * of what is plausible, and goes on until half as many can meet the published figure; solves the
 * one knob (efficiency) in each of these so that all do, and prints how fast each schedule and
 * rescale mode is there, and how often each ordering holds. Everything printed is simulated. A
 * slice of a die stands for the chip.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_report.h"
#include "cli_sim.h"
#include "cli_sim_cases.h"
#include "harness/dataset.h"

/* ---- The box ---- */

enum { MAX_ROWS = 40, SLICE = 4, KEYS = 16384 };
static const double published_share = 0.868;

/* What a dial does to a number of the cost table's rows whose names begin with one of two texts. */
enum dial_verb { SET_FIXED, SET_RATE, SET_LATENCY, TIMES_RATE, OVER_RATE, SLOWER, L2, HBM };

static const struct {
  const char *name;
  double least, most;
  enum dial_verb verb;
  const char *row, *other_row; /* first letters */
} box[] = {
    {"launch, cycles", 11000, 23000, SET_FIXED, "CHIP/launch", NULL},
    {"in-core flag, cycles", 10, 60, SET_LATENCY, "EVENT/", NULL},
    {"cross-core hop, cycles", 250, 1000, SET_LATENCY, "CROSS/", NULL},
    {"mmad head, cycles", 6, 14, SET_FIXED, "M/", NULL},
    {"MTE1 fixed, cycles", 40, 56, SET_FIXED, "MTE1/", NULL},
    {"MTE2 to L1, B/cycle", 77, 96, SET_RATE, "MTE2/copy_gm_l1", NULL},
    {"latency of transfers, cycles", 200, 800, SET_LATENCY, "MTE2/copy", "MTE3/"},
    {"AIV transfers, times their rate", 0.45, 1.2, TIMES_RATE, "MTE2/copy_gm_ub", "MTE3/"},
    {"GM to UB, cycles of K that hold the pipe", 0, 508, SET_FIXED, "MTE2/copy_gm_ub", NULL},
    {"FIX, B/cycle", 64, 73, SET_RATE, "FIX/", NULL},
    {"FIX add, times a copy", 1, 1.5, OVER_RATE, "FIX/copy_l0c_gm_add", NULL},
    {"MTE3 add, times a copy", 1, 1.5, OVER_RATE, "MTE3/copy_ub_gm_add", NULL},
    {"atomic add in L2, times its bytes", 1, 2, OVER_RATE, "L2/atomic_add", NULL},
    {"vector unit, times slower", 1, 1.5, SLOWER, "V/", NULL},
    {"L2, times 3.59 and 5.03 TB/s", 0.84, 1.4, L2, NULL, NULL},
    {"HBM, times 1.6 TB/s", 0.8, 1.1, HBM, NULL, NULL},
};
enum { N_DIALS = sizeof box / sizeof *box };

/* ---- A drawn setting ---- */

enum { N_SCHEDULES = 3, N_MODES = 3, N_RUNS = 2 * N_SCHEDULES * N_MODES };
static const amla_sim_schedule schedules[] = {AMLA_SIM_SERIAL, AMLA_SIM_PRELOAD, AMLA_SIM_BEST};
static const amla_rescale modes[] = {AMLA_RESCALE_FLASH, AMLA_RESCALE_AMLA, AMLA_RESCALE_LAZY};
enum { SERIAL, PRELOAD, BEST, FLASH = 0, AMLA, LAZY };

static int run_index(int s_q, int schedule, int mode) {
  return ((s_q - 1) * N_SCHEDULES + schedule) * N_MODES + mode;
}

typedef struct setting {
  double dial[N_DIALS];
  amla_sim_cost_change costs[MAX_ROWS];
  amla_sim_options sim;
  double unfitted; /* share of peak of the calibration run */
  double efficiency;
  double share[N_RUNS]; /* of peak, with the efficiency */
  double unfitted_share[N_RUNS];
} setting;

static bool begins(const char *text, const char *with) {
  return with != NULL && strncmp(text, with, strlen(with)) == 0;
}

static void turn_row(amla_sim_cost_change *c, enum dial_verb verb, double x) {
  switch (verb) {
  case SET_FIXED: c->fixed_cycles = x; break;
  case SET_RATE: c->rate = x; break;
  case SET_LATENCY: c->latency_cycles = x; break;
  case TIMES_RATE: c->rate *= x; break;
  case OVER_RATE: c->rate /= x; break;
  case SLOWER: c->rate /= x, c->fixed_cycles *= x; break;
  default: break;
  }
}

static void draw(setting *s, const amla_sim_options *base, uint64_t *random) {
  int n = 0;
  while (n < MAX_ROWS && amla_sim_cost_row(n, &s->costs[n]))
    n++;
  s->sim = *base;
  s->sim.costs = s->costs, s->sim.n_costs = n, s->sim.slice_cores = SLICE;
  for (int d = 0; d < N_DIALS; d++) {
    const double x = box[d].least + harness_random_uniform(random) * (box[d].most - box[d].least);
    s->dial[d] = x;
    if (box[d].verb == L2)
      s->sim.l2_share = x;
    if (box[d].verb == HBM)
      s->sim.hbm_share = x;
    for (int r = 0; r < n; r++)
      if (begins(s->costs[r].row, box[d].row) || begins(s->costs[r].row, box[d].other_row))
        turn_row(&s->costs[r], box[d].verb, x);
  }
}

static sim_case *add_run(sim_cases *list, setting *s, int s_q, int schedule, int mode) {
  amla_sim_options o = s->sim;
  o.efficiency = s->efficiency;
  const sim_shape shape = {2 * SLICE, s_q, 128, KEYS};
  return sim_cases_add(list, &o, shape, modes[mode], schedules[schedule]);
}

/* n settings at the calibration point, unfitted; then those that are fast enough get their
 * efficiency: time after the launch is divided by it. Returns how many are kept, which come first;
 * -1: a run failed. */
static int calibrate(const char *command, setting *s, int n) {
  sim_cases list = {0};
  int kept = 0;
  for (int i = 0; i < n; i++)
    s[i].efficiency = 1, add_run(&list, &s[i], 2, PRELOAD, AMLA);
  if (!sim_cases_run(command, &list))
    return -1;
  for (int i = 0; i < n; i++) {
    const amla_sim_report *r = &list.cases[i].r;
    const double clock = (double)r->cycles / r->seconds;
    const double launch = (double)r->launch_cycles / clock;
    const double wanted = r->flops / (published_share * r->peak_flops_per_second);
    s[i].unfitted = r->unfitted_utilization;
    s[i].efficiency = (r->seconds - launch) / (wanted - launch);
    if (s[i].efficiency > 1)
      continue;
    const setting keep = s[i];
    s[i] = s[kept], s[kept] = keep;
    s[kept].sim.costs = s[kept].costs, s[i].sim.costs = s[i].costs;
    kept++;
  }
  sim_cases_free(&list);
  return kept;
}

enum { MOST_DRAWN = 8 }; /* times the number asked for */

/* Keeps the first so many settings, at least half of n if so many are found. s: [2 * n]. Returns
 * how many there are, or -1. */
static int draw_all(const char *command, setting *s, int n, const amla_sim_options *base,
                    int *drawn) {
  uint64_t random = 1;
  int kept = 0;
  *drawn = 0;
  for (int batch = n; 2 * kept < n && *drawn + batch <= MOST_DRAWN * n; batch = (n + 3) / 4) {
    for (int i = 0; i < batch; i++)
      draw(&s[kept + i], base, &random);
    const int more = calibrate(command, s + kept, batch);
    if (more < 0)
      return -1;
    kept += more, *drawn += batch;
  }
  return kept;
}

static bool run_all(const char *command, setting *s, int kept) {
  sim_cases list = {0};
  for (int i = 0; i < kept; i++)
    for (int r = 0; r < N_RUNS; r++)
      add_run(&list, &s[i], r / (N_SCHEDULES * N_MODES) + 1, r / N_MODES % N_SCHEDULES,
              r % N_MODES);
  if (!sim_cases_run(command, &list))
    return false;
  for (int i = 0; i < list.n; i++) {
    s[i / N_RUNS].share[i % N_RUNS] = list.cases[i].r.utilization;
    s[i / N_RUNS].unfitted_share[i % N_RUNS] = list.cases[i].r.unfitted_utilization;
  }
  sim_cases_free(&list);
  return true;
}

/* ---- What is printed ---- */

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

typedef struct range {
  double least, median, most;
} range;

static range range_of(const setting *s, int n, int run, bool unfitted) {
  double *x = cli_allocate((size_t)n, sizeof *x);
  for (int i = 0; i < n; i++)
    x[i] = 100 * (unfitted ? s[i].unfitted_share[run] : s[i].share[run]);
  qsort(x, (size_t)n, sizeof *x, by_value);
  const range r = {x[0], (x[(n - 1) / 2] + x[n / 2]) / 2, x[n - 1]};
  free(x);
  return r;
}

static void print_ranges(const setting *s, int n, bool unfitted) {
  static const char *const headings[] = {"<schedule", "<rescale",    "s_q=2 least", "median",
                                         "most",      "s_q=1 least", "median",      "most"};
  cli_table t = cli_table_create(8, headings);
  for (int schedule = 0; schedule < N_SCHEDULES; schedule++)
    for (int mode = 0; mode < N_MODES; mode++) {
      cli_table_row(&t);
      cli_table_cell(&t, 0, "%s", cli_sim_schedules((int)schedules[schedule]));
      cli_table_cell(&t, 1, "%s", amla_rescale_name(modes[mode]));
      for (int s_q = 2; s_q >= 1; s_q--) {
        const range r = range_of(s, n, run_index(s_q, schedule, mode), unfitted);
        const int at = s_q == 2 ? 2 : 5;
        cli_table_cell(&t, at, "%.1f", r.least);
        cli_table_cell(&t, at + 1, "%.1f", r.median);
        cli_table_cell(&t, at + 2, "%.1f", r.most);
      }
    }
  cli_table_print(&t);
  cli_table_free(&t);
}

/* a is ahead of b by at least `points` of peak. */
static const struct {
  const char *says;
  int a_schedule, a_mode, b_schedule, b_mode;
  double points;
} orderings[] = {
    {"the pipeline: preload amla 25 points above serial amla", PRELOAD, AMLA, SERIAL, AMLA, 25},
    {"preload: amla above flash", PRELOAD, AMLA, PRELOAD, FLASH, 0},
    {"preload: lazy above amla", PRELOAD, LAZY, PRELOAD, AMLA, 0},
    {"preload: lazy above flash", PRELOAD, LAZY, PRELOAD, FLASH, 0},
    {"best: amla above flash", BEST, AMLA, BEST, FLASH, 0},
    {"best: lazy above amla", BEST, LAZY, BEST, AMLA, 0},
    {"best flash above preload flash", BEST, FLASH, PRELOAD, FLASH, 0},
    {"best amla above preload amla, the paper", BEST, AMLA, PRELOAD, AMLA, 0},
    {"best amla 1 point above preload amla", BEST, AMLA, PRELOAD, AMLA, 1},
    {"best lazy above preload lazy", BEST, LAZY, PRELOAD, LAZY, 0},
    {"best lazy above preload amla, the paper", BEST, LAZY, PRELOAD, AMLA, 0},
    {"best lazy 1 point above preload amla", BEST, LAZY, PRELOAD, AMLA, 1},
    {"best lazy 2 points above preload amla", BEST, LAZY, PRELOAD, AMLA, 2},
};

static void print_orderings(const setting *s, int n) {
  static const char *const headings[] = {"<ordering", "s_q=2", "s_q=1", "<holds in 90 %"};
  cli_table t = cli_table_create(4, headings);
  for (size_t o = 0; o < sizeof orderings / sizeof *orderings; o++) {
    int holds[3] = {0};
    for (int s_q = 1; s_q <= 2; s_q++)
      for (int i = 0; i < n; i++)
        holds[s_q] +=
            100 * (s[i].share[run_index(s_q, orderings[o].a_schedule, orderings[o].a_mode)] -
                   s[i].share[run_index(s_q, orderings[o].b_schedule, orderings[o].b_mode)]) >
            orderings[o].points;
    static const char *const verdicts[] = {"no", "s_q=1", "s_q=2", "yes"};
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%s", orderings[o].says);
    cli_table_cell(&t, 1, "%d", holds[2]), cli_table_cell(&t, 2, "%d", holds[1]);
    cli_table_cell(&t, 3, "%s", verdicts[2 * (10 * holds[2] >= 9 * n) + (10 * holds[1] >= 9 * n)]);
  }
  cli_table_print(&t);
  cli_table_free(&t);
}

static void print_box(void) {
  printf("The box:\n");
  for (int d = 0; d < N_DIALS; d++)
    printf("  %-42s %g to %g\n", box[d].name, box[d].least, box[d].most);
}

cli_exit cli_sim_sweep(const char *command, int32_t n, const amla_sim_options *base) {
  setting *s = cli_allocate(2 * (size_t)n, sizeof *s);
  int drawn;
  const int kept = draw_all(command, s, n, base, &drawn);
  if (kept < 0 || !run_all(command, s, kept)) {
    free(s);
    return CLI_ERROR;
  }
  printf("SIMULATED. %d settings drawn; in %d preload amla at s_q=2, h=128, s_k=%d reaches %.1f %% "
         "of peak.\nIn each of those one efficiency, the same for all modes and schedules, is "
         "solved so that it is %.1f %% there.\n%d AI cores with their share of a die, two "
         "sequences each. %% of peak:\n\n",
         drawn, kept, KEYS, 100 * published_share, 100 * published_share, SLICE);
  if (kept > 0) {
    print_ranges(s, kept, false);
    printf("\nThe same settings with nothing fitted, %% of peak:\n\n");
    print_ranges(s, kept, true);
    printf("\nIn how many of %d an ordering holds:\n\n", kept);
    print_orderings(s, kept);
    printf("\n");
  }
  print_box();
  free(s);
  return CLI_OK;
}
