/* SPDX-License-Identifier: Apache-2.0
 *
 * amla sim --validate: the timing model against published profiles that know nothing of attention,
 * and the fit of the one bandwidth that was read off them. Everything simulated is labelled so.
 */
#include <math.h>
#include <stdio.h>

#include "cli_report.h"
#include "cli_sim.h"

static bool run_gemm(const char *command, int32_t i, const amla_sim_options *sim,
                     amla_sim_gemm *g) {
  amla_detail detail;
  if (amla_sim_gemm_run(i, sim, g, &detail) == AMLA_OK)
    return true;
  cli_error(command, "%s", detail.text);
  return false;
}

static double time_error(const amla_sim_gemm *g) { return g->seconds / g->published_seconds - 1; }

static void print_gemm(cli_table *t, const amla_sim_gemm *g) {
  cli_table_row(t);
  cli_table_cell(t, 0, "%d", g->n);
  cli_table_cell(t, 1, "%s", g->held_out ? "held out" : "fitted");
  cli_table_cell(t, 2, "%.1f", 1e6 * g->published_seconds);
  cli_table_cell(t, 3, "%.1f", 1e6 * g->seconds);
  cli_table_cell(t, 4, "%+.1f %%", 100 * time_error(g));
  for (int s = 0; s < AMLA_SIM_GEMM_SHARES; s++) {
    const double simulated = 100 * g->share[s], published = 100 * g->published_share[s];
    if (published > 0)
      cli_table_cell(t, 5 + s, "%.1f - %.1f = %+.1f", simulated, published, simulated - published);
    else
      cli_table_cell(t, 5 + s, "%.1f", simulated);
  }
}

static bool print_gemms(const char *command, const amla_sim_options *sim, int32_t fitted[2]) {
  static const char *const headings[] = {
      "n", "<what", "published us", "simulated us", "error", "cube %", "MTE1 %", "MTE2 %", "FIX %"};
  amla_sim_gemm g;
  cli_table t = cli_table_create(9, headings);
  bool ok = true;
  for (int32_t i = 0; ok && i < amla_sim_gemm_count(); i++) {
    ok = run_gemm(command, i, sim, &g);
    if (ok)
      print_gemm(&t, &g);
    if (ok && !g.held_out)
      fitted[0] = fitted[1], fitted[1] = i;
  }
  if (ok) {
    printf("SIMULATED GEMMs against published profiles: 24 cores at 1.85 GHz. Busy shares of the "
           "whole duration:\nsimulated - published. Fitted: the launch on 1536, L2's rate of reads "
           "on 6144 and 8192 (times).\nPublished for 8192: 4012 to 4081 us.\n\n");
    cli_table_print(&t);
  }
  cli_table_free(&t);
  return ok;
}

/* Errors of the two GEMMs that L2's rate is fitted on: the largest that are not held out. */
static bool fit_errors(const char *command, const amla_sim_options *sim, const int32_t fitted[2],
                       double errors[2]) {
  for (int k = 0; k < 2; k++) {
    amla_sim_gemm g;
    if (!run_gemm(command, fitted[k], sim, &g))
      return false;
    errors[k] = time_error(&g);
  }
  return true;
}

static bool print_fit(const char *command, const amla_sim_options *sim, const int32_t fitted[2]) {
  static const char *const headings[] = {"L2 reads, TB/s", "6144", "8192", "root of mean square"};
  enum { FIRST = 344, LAST = 374, STEP = 5, N = (LAST - FIRST) / STEP + 1 }; /* 0.01 TB/s */
  double errors[N][2];
  bool ok = true;
#pragma omp parallel for schedule(dynamic)
  for (int i = 0; i < N; i++) {
    amla_sim_options o = *sim;
    o.l2_share = (FIRST + i * STEP) / 100.0 / 3.59;
    const bool ran = fit_errors(command, &o, fitted, errors[i]);
#pragma omp critical
    ok = ok && ran;
  }
  cli_table t = cli_table_create(4, headings);
  for (int i = 0; ok && i < N; i++) {
    cli_table_row(&t);
    cli_table_cell(&t, 0, "%.2f", (FIRST + i * STEP) / 100.0);
    cli_table_cell(&t, 1, "%+.1f %%", 100 * errors[i][0]);
    cli_table_cell(&t, 2, "%+.1f %%", 100 * errors[i][1]);
    cli_table_cell(&t, 3, "%.2f %%", 100 * hypot(errors[i][0], errors[i][1]) / sqrt(2));
  }
  if (ok)
    printf("\nThe fit of L2's rate of reads (the model has 3.59), errors of the two times:\n\n"),
        cli_table_print(&t);
  cli_table_free(&t);
  return ok;
}

static bool print_copies(const char *command, const amla_sim_options *sim) {
  double rate;
  amla_detail detail;
  if (amla_sim_copy_run(sim, &rate, &detail) != AMLA_OK) {
    cli_error(command, "%s", detail.text);
    return false;
  }
  printf("\n48 vector cores that copy through L2: simulated %.2f TB/s read and written. The one "
         "public figure is\n2.35 TB/s, a lower bound of what they can do: the model may be %.1f "
         "times too fast there.\n",
         rate / 1e12, rate / 2.35e12);
  return true;
}

cli_exit cli_sim_validate(const char *command, const amla_sim_options *base) {
  int32_t fitted[2] = {0, 0};
  const bool ok = print_gemms(command, base, fitted) && print_fit(command, base, fitted) &&
                  print_copies(command, base);
  return ok ? CLI_OK : CLI_ERROR;
}
