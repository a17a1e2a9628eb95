/* SPDX-License-Identifier: Apache-2.0
 *
 * amla sim --table and --search: many timed runs side by side, on all threads. Everything printed
 * is simulated.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli_report.h"
#include "cli_sim.h"
#include "cli_sim_cases.h"

const char *cli_sim_schedules(int i) {
  static const char *const names[] = {[AMLA_SIM_BEST] = "best",
                                      [AMLA_SIM_SERIAL] = "serial",
                                      [AMLA_SIM_PRELOAD] = "preload",
                                      [AMLA_SIM_IN_CORE] = "in-core"};
  return i < (int)(sizeof names / sizeof *names) ? names[i] : NULL;
}

/* ---- Rows with all pipes ---- */

static bool print_rows(const char *command, const char *title, sim_cases *list) {
  static const char *const headings[] = {"<what", "<schedule", "<rescale", "b",    "s_q",  "h",
                                         "s_k",   "% peak",    "unfitted", "cube", "mte1", "mte2",
                                         "fix",   "vector",    "l2",       "hbm"};
  static const int shown[] = {0, 1, 2, 3, 4, 7, 8}; /* pipes of the report */
  const bool ok = sim_cases_run(command, list);
  cli_table t = cli_table_create(16, headings);
  for (int i = 0; ok && i < list->n; i++) {
    const sim_case *c = &list->cases[i];
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%s", c->label);
    cli_table_cell(&t, 1, "%s", cli_sim_schedules((int)c->sim.schedule));
    cli_table_cell(&t, 2, "%s", amla_rescale_name(c->o.rescale));
    cli_table_cell(&t, 3, "%d", c->p.b), cli_table_cell(&t, 4, "%d", c->p.s_q),
        cli_table_cell(&t, 5, "%d", c->p.h_q), cli_table_cell(&t, 6, "%d", c->p.sk);
    cli_table_cell(&t, 7, "%.1f", 100 * c->r.utilization),
        cli_table_cell(&t, 8, "%.1f", 100 * c->r.unfitted_utilization);
    for (int k = 0; k < 7; k++)
      cli_table_cell(&t, 9 + k, "%.0f", 100 * c->r.pipe_busy[shown[k]]);
  }
  if (ok)
    printf("\n%s\n\n", title), cli_table_print(&t), fflush(stdout);
  cli_table_free(&t);
  sim_cases_free(list);
  return ok;
}

static const amla_rescale modes_in_order[] = {AMLA_RESCALE_FLASH, AMLA_RESCALE_AMLA,
                                              AMLA_RESCALE_LAZY};
static const amla_sim_schedule schedules_in_order[] = {AMLA_SIM_SERIAL, AMLA_SIM_PRELOAD,
                                                       AMLA_SIM_BEST};

static bool table_of_ideas(const char *command, const amla_sim_options *base, int32_t s_q,
                           const char *title) {
  sim_cases list = {0};
  for (int s = 0; s < 3; s++)
    for (int m = 0; m < 3; m++)
      sim_cases_add(&list, base, (sim_shape){96, s_q, 128, 16384}, modes_in_order[m],
                    schedules_in_order[s]);
  return print_rows(command, title, &list);
}

static bool table_of_models(const char *command, const amla_sim_options *base) {
  static const struct {
    const char *name;
    int32_t heads;
  } models[] = {
      {"DeepSeek-V3, R1", 128}, {"Kimi-K2", 64}, {"GLM-4.7-Flash", 20}, {"DeepSeek-V2-Lite", 16}};
  sim_cases list = {0};
  for (int m = 0; m < 4; m++)
    for (int32_t s_q = 1; s_q <= 2; s_q++)
      for (int32_t sk = 4096; sk <= 16384; sk *= 4)
        sim_cases_add(&list, base, (sim_shape){96, s_q, models[m].heads, sk}, AMLA_RESCALE_LAZY,
                      AMLA_SIM_BEST)
            ->label = models[m].name;
  return print_rows(command, "Model presets, all heads on one chip, best schedule, lazy", &list);
}

static bool table_of_chips(const char *command, const amla_sim_options *base) {
  static const struct {
    const char *name;
    int32_t cores;
  } chips[] = {{"910", 48}, {"910b1", 24}, {"910b2", 24}, {"910b3", 20}, {"910b4", 20}};
  sim_cases list = {0};
  for (int i = 0; i < 5; i++)
    for (int32_t s_q = 1; s_q <= 2; s_q++)
      for (int s = 1; s < 3; s++) {
        sim_case *c = sim_cases_add(&list, base, (sim_shape){2 * chips[i].cores, s_q, 128, 16384},
                                    AMLA_RESCALE_AMLA, schedules_in_order[s]);
        c->label = chips[i].name, c->sim.chip = chips[i].name;
      }
  return print_rows(command, "Chips, two sequences per AI core", &list);
}

/* What AMLA's add is worth where S and P need not leave the core. */
static bool table_of_950(const char *command, const amla_sim_options *base) {
  static const amla_sim_schedule on_950[] = {AMLA_SIM_PRELOAD, AMLA_SIM_BEST, AMLA_SIM_IN_CORE};
  sim_cases list = {0};
  for (int32_t s_q = 2; s_q >= 1; s_q--)
    for (int s = 0; s < 3; s++)
      for (int m = 0; m < 3; m++) {
        sim_case *c = sim_cases_add(&list, base, (sim_shape){64, s_q, 128, 16384},
                                    modes_in_order[m], on_950[s]);
        c->label = c->sim.chip = "950";
      }
  return print_rows(command,
                    "Ascend 950, facts of medium confidence: through memory, and with S and P in "
                    "the core",
                    &list);
}

/* Where the model is least sure, and what else could explain the published figure. */
static bool table_of_doubts(const char *command, const amla_sim_options *base) {
  static const amla_sim_cost_change slow_events[] = {{"EVENT/notify_to_wait", 0, 1, 60}},
                                    slow_hops[] = {{"CROSS/set_to_wait", 0, 1, 1000}},
                                    plain_add[] = {{"FIX/copy_l0c_gm_add_f32", 100, 70, 0}},
                                    slow_add[] = {{"FIX/copy_l0c_gm_add_f32", 100, 46.7, 0}},
                                    twice[] = {{"L2/atomic_add", 0, 0.5, 0}},
                                    slow_aiv[] = {{"MTE2/copy_gm_ub", 254, 27, 254},
                                                  {"MTE3/copy_ub_gm", 14, 27, 200},
                                                  {"MTE3/copy_ub_gm_add", 14, 27, 200}};
  static const struct {
    const char *name;
    const amla_sim_cost_change *costs;
    int32_t n;
    double l2_share;
  } variants[] = {{"as it is", NULL, 0, 1},
                  {"in-core flag 60 cycles", slow_events, 1, 1},
                  {"cross-core hop 1000 cycles", slow_hops, 1, 1},
                  {"FIX add x1.0", plain_add, 1, 1},
                  {"FIX add x1.5", slow_add, 1, 1},
                  {"atomic adds move bytes twice", twice, 1, 1},
                  {"AIV 27 B/cycle each way", slow_aiv, 3, 1},
                  {"L2 as documented: 5 and 7 TB/s", NULL, 0, 1.393}};
  sim_cases list = {0};
  for (size_t v = 0; v < sizeof variants / sizeof *variants; v++)
    for (int s = 1; s < 3; s++)
      for (int m = 0; m < 3; m++) {
        sim_case *c = sim_cases_add(&list, base, (sim_shape){48, 2, 128, 16384}, modes_in_order[m],
                                    schedules_in_order[s]);
        c->label = variants[v].name, c->sim.l2_share = variants[v].l2_share;
        c->sim.costs = variants[v].costs, c->sim.n_costs = variants[v].n;
      }
  return print_rows(command, "Doubts: other numbers where the model is least sure", &list);
}

/* ---- What production runs ---- */

static const struct {
  const char *name;
  int32_t kv_nz, d_rope, kv_int8, page_size;
  amla_dtype type;
} caches[] = {{"rows, packed", 0, 0, 0, 128, AMLA_BF16},
              {"NZ, packed", 1, 0, 0, 128, AMLA_BF16},
              {"NZ, rope apart", 1, 64, 0, 128, AMLA_BF16},
              {"NZ, rope apart, f16", 1, 64, 0, 128, AMLA_F16},
              {"int8, a scale per token", 0, 0, 1, 128, AMLA_F16},
              {"rows, top-k list", 0, 0, 0, 1, AMLA_BF16}};
enum { N_CACHES = sizeof caches / sizeof *caches, INT8 = N_CACHES - 2, LISTED };

static void add_cache(sim_cases *list, const amla_sim_options *base, int cache, sim_shape shape) {
  sim_case *c = sim_cases_add(list, base, shape, AMLA_RESCALE_LAZY, AMLA_SIM_BEST);
  c->label = caches[cache].name;
  c->sim.kv_nz = caches[cache].kv_nz, c->sim.d_rope = caches[cache].d_rope;
  c->sim.kv_int8 = caches[cache].kv_int8;
  c->p.q_type = c->p.kv_type = caches[cache].type;
  c->p.page_size = caches[cache].page_size;
  c->p.n_pages = (int64_t)c->p.b * ((c->p.sk + c->p.page_size - 1) / c->p.page_size);
}

static void print_production(const sim_cases *list) {
  static const char *const headings[] = {"<cache", "s_q",  "h",      "s_k",     "us",    "unfitted",
                                         "cube",   "mte2", "vector", "KV TB/s", "of HBM"};
  cli_table t = cli_table_create(11, headings);
  for (int i = 0; i < list->n; i++) {
    const sim_case *c = &list->cases[i];
    const double kv =
        (c->sim.kv_int8 ? 1.0 : 2.0) * c->p.b * c->p.sk * c->p.d_qk / c->r.seconds / 1e12;
    const double bytes = (double)(c->r.hbm_read_bytes + c->r.hbm_write_bytes);
    const double hbm = bytes / c->r.unfitted_seconds / c->r.pipe_busy[AMLA_SIM_PIPES - 1];
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%s", c->label);
    cli_table_cell(&t, 1, "%d", c->p.s_q), cli_table_cell(&t, 2, "%d", c->p.h_q);
    cli_table_cell(&t, 3, "%d", c->p.sk), cli_table_cell(&t, 4, "%.0f", 1e6 * c->r.seconds);
    cli_table_cell(&t, 5, "%.1f", 100 * c->r.unfitted_utilization);
    cli_table_cell(&t, 6, "%.0f", 100 * c->r.pipe_busy[0]);
    cli_table_cell(&t, 7, "%.0f", 100 * c->r.pipe_busy[2]);
    cli_table_cell(&t, 8, "%.0f", 100 * c->r.pipe_busy[4]);
    cli_table_cell(&t, 9, "%.2f", kv), cli_table_cell(&t, 10, "%.0f %%", 1e14 * kv / hbm);
  }
  cli_table_print(&t);
  cli_table_free(&t);
}

static bool table_of_production(const char *command, const amla_sim_options *base) {
  static const int32_t heads[] = {128, 64, 32, 16};
  sim_cases list = {0};
  for (int cache = 0; cache < LISTED; cache++)
    for (int32_t s_q = 2; s_q >= 1; s_q--)
      add_cache(&list, base, cache, (sim_shape){96, s_q, 128, 8192});
  for (int h = 1; h < 4; h++)
    add_cache(&list, base, 2, (sim_shape){96, 1, heads[h], 8192});
  for (int h = 1; h < 4; h++)
    add_cache(&list, base, INT8, (sim_shape){96, 1, heads[h], 8192});
  for (int32_t s_q = 3; s_q <= 4; s_q++)
    add_cache(&list, base, 2, (sim_shape){48, s_q, 128, 8192});
  add_cache(&list, base, 0, (sim_shape){96, 1, 128, 2048});
  add_cache(&list, base, LISTED, (sim_shape){96, 1, 128, 2048});
  const bool ok = sim_cases_run(command, &list);
  if (ok)
    printf(
        "\nWhat production runs: best lazy; KV TB/s: bytes of all keys over the time, and of the "
        "chip's HBM\n\n"),
        print_production(&list), fflush(stdout);
  sim_cases_free(&list);
  return ok;
}

/* ---- The grid ---- */

static bool table_of_shapes(const char *command, const amla_sim_options *base, amla_rescale rescale,
                            amla_sim_schedule schedule, const char *title) {
  static const char *const headings[] = {"s_q",  "h",    "b",     "s_k=1024", "2048",
                                         "4096", "8192", "16384", "32768"};
  static const int32_t batches[] = {16, 48, 96};
  sim_cases list = {0};
  for (int32_t s_q = 1; s_q <= 2; s_q++)
    for (int32_t h = 16; h <= 128; h *= 2)
      for (int i = 0; i < 3; i++)
        for (int32_t sk = 1024; sk <= 32768; sk *= 2)
          sim_cases_add(&list, base, (sim_shape){batches[i], s_q, h, sk}, rescale, schedule);
  const bool ok = sim_cases_run(command, &list);
  cli_table t = cli_table_create(9, headings);
  for (int i = 0; ok && i < list.n; i++) {
    const sim_case *c = &list.cases[i];
    if (i % 6 == 0) {
      cli_table_row(&t);
      cli_table_cell(&t, 0, "%d", c->p.s_q), cli_table_cell(&t, 1, "%d", c->p.h_q),
          cli_table_cell(&t, 2, "%d", c->p.b);
    }
    cli_table_cell(&t, 3 + i % 6, "%.1f", 100 * c->r.utilization);
  }
  if (ok)
    printf("\n%s\n\n", title), cli_table_print(&t), fflush(stdout);
  cli_table_free(&t);
  sim_cases_free(&list);
  return ok;
}

static bool tables_of_ideas(const char *command, const amla_sim_options *base) {
  return table_of_ideas(command, base, 2, "What each idea is worth, s_q=2") &&
         table_of_ideas(command, base, 1, "The same, s_q=1");
}
static bool table_of_paper(const char *command, const amla_sim_options *base) {
  return table_of_shapes(command, base, AMLA_RESCALE_AMLA, AMLA_SIM_PRELOAD,
                         "Utilisation, preload amla (the paper), %");
}
static bool table_of_ours(const char *command, const amla_sim_options *base) {
  return table_of_shapes(command, base, AMLA_RESCALE_LAZY, AMLA_SIM_BEST,
                         "Utilisation, best lazy (ours), %");
}

static const struct {
  const char *name;
  bool (*print)(const char *command, const amla_sim_options *base);
} tables[] = {{"ideas", tables_of_ideas},  {"doubts", table_of_doubts},
              {"models", table_of_models}, {"chips", table_of_chips},
              {"950", table_of_950},       {"production", table_of_production},
              {"paper", table_of_paper},   {"ours", table_of_ours}};
enum { N_TABLES = sizeof tables / sizeof *tables };

bool cli_sim_has_table(const char *name) {
  bool found = strcmp(name, "all") == 0;
  for (int i = 0; i < N_TABLES; i++)
    found = found || strcmp(name, tables[i].name) == 0;
  return found;
}

cli_exit cli_sim_tables(const char *command, const char *name, const amla_sim_options *base) {
  printf(
      "SIMULATED. %% of peak: useful FLOP/s over the cube's peak, with the efficiency that meets "
      "the published figure of preload amla; unfitted: without it. ");
  printf("Columns of pipes: %% busy after launch. ");
  printf("amla: with the %s add.\n", base->unguarded_add ? "published, unguarded" : "guarded");
  for (int i = 0; i < N_TABLES; i++)
    if ((strcmp(name, "all") == 0 || strcmp(name, tables[i].name) == 0) &&
        !tables[i].print(command, base))
      return CLI_ERROR;
  return CLI_OK;
}

/* ---- Search ---- */

static int by_cycles(const void *a, const void *b) {
  const int64_t x = ((const sim_case *)a)->r.cycles, y = ((const sim_case *)b)->r.cycles;
  return (x > y) - (x < y);
}

static void print_found(const sim_cases *list) {
  static const char *const headings[] = {
      "% peak",   "lag",   "qk_l1",    "qk_l0",  "pv_l1", "pv_l0", "kv_slots", "qp_slots",
      "l0_slots", "order", "in_turns", "keep_q", "cube",  "mte1",  "mte2",     "fix"};
  cli_table t = cli_table_create(16, headings);
  for (int i = 0; i < list->n && i < 15; i++) {
    const sim_case *c = &list->cases[i];
    const amla_sim_tiling *x = &c->tiling;
    const int32_t fields[] = {x->lag,   x->qk_l1,    x->qk_l0,    x->pv_l1,
                              x->pv_l0, x->kv_slots, x->qp_slots, x->l0_slots,
                              x->order, x->in_turns, x->keep_q};
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%.2f", 100 * c->r.unfitted_utilization);
    for (int k = 0; k < 11; k++)
      cli_table_cell(&t, 1 + k, "%d", fields[k]);
    for (int k = 0; k < 4; k++)
      cli_table_cell(&t, 12 + k, "%.0f", 100 * c->r.pipe_busy[k]);
  }
  cli_table_print(&t);
  cli_table_free(&t);
}

cli_exit cli_sim_search(const char *command, const amla_problem *problem, const int32_t *lengths,
                        const amla_options *options, const amla_sim_options *base) {
  sim_cases list = {0};
  amla_sim_tiling tiling;
  for (int32_t i = 0; amla_sim_candidate(problem, i, &tiling); i++) {
    sim_case *c =
        sim_cases_add(&list, base, (sim_shape){1, 1, 1, 1}, AMLA_RESCALE_DEFAULT, AMLA_SIM_BEST);
    c->p = *problem, c->o = *options, c->lengths = lengths, c->tiling = tiling,
    c->sim.tiling = &tiling;
  }
  if (!sim_cases_run(command, &list))
    return CLI_ERROR;
  qsort(list.cases, (size_t)list.n, sizeof *list.cases, by_cycles);
  printf("SIMULATED. %d tilings, all within the buffers; the first 15:\n\n", list.n);
  print_found(&list);
  sim_case *best = &list.cases[0];
  best->sim.tiling = &best->tiling, best->sim.check_races = 1, best->sim.cores = 2,
  best->sim.slice_cores = 0, best->p.b = problem->b < 2 ? problem->b : 2;
  const amla_status status =
      amla_sim_run(&best->p, &best->o, lengths, &best->sim, &best->r, &best->detail);
  if (status == AMLA_OK)
    printf("\nraces: %lld in the first, checked on %d sequences and 2 cores\n",
           (long long)best->r.races, best->p.b);
  const int64_t errors = status == AMLA_OK ? best->r.races + best->r.other_errors : 0;
  sim_cases_free(&list);
  if (status != AMLA_OK)
    return CLI_ERROR;
  return errors > 0 ? CLI_MISMATCH : CLI_OK;
}
