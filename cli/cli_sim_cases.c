/* SPDX-License-Identifier: Apache-2.0
 *
 * See cli_sim_cases.h.
 */
#include "cli_sim_cases.h"

#include <stdlib.h>

#include "cli_progress.h"
#include "cli_report.h"

sim_case *sim_cases_add(sim_cases *list, const amla_sim_options *base, sim_shape shape,
                        amla_rescale rescale, amla_sim_schedule schedule) {
  static const amla_problem problem = AMLA_PROBLEM_INIT;
  static const amla_options options = AMLA_OPTIONS_INIT;
  static const amla_sim_report report = AMLA_SIM_REPORT_INIT;
  if (list->n == list->capacity)
    list->cases = cli_grow(list->cases, &list->capacity, sizeof *list->cases);
  sim_case *c = &list->cases[list->n++];
  *c = (sim_case){.label = "", .p = problem, .o = options, .sim = *base, .r = report};
  c->p.b = shape.b, c->p.s_q = shape.s_q, c->p.h_q = shape.h_q, c->p.sk = shape.sk;
  c->p.page_size = 128, c->p.scale = 0.1352f;
  c->p.n_pages = (int64_t)shape.b * ((shape.sk + 127) / 128);
  c->o.rescale = rescale, c->sim.schedule = schedule;
  return c;
}

bool sim_cases_run(const char *command, sim_cases *list) {
  cli_progress progress = cli_progress_begin("simulating");
  int done = 0;
#pragma omp parallel for schedule(dynamic)
  for (int i = list->n - 1; i >= 0; i--) { /* the long ones are last in most tables */
    sim_case *c = &list->cases[i];
    if (c->sim.tiling != NULL)
      c->sim.tiling = &c->tiling; /* the list may have moved */
    c->status = amla_sim_run(&c->p, &c->o, c->lengths, &c->sim, &c->r, &c->detail);
#pragma omp critical
    cli_progress_update(&progress, (double)++done / list->n);
  }
  cli_progress_end(&progress);
  for (int i = 0; i < list->n; i++)
    if (list->cases[i].status != AMLA_OK) {
      cli_error(command, "%s", list->cases[i].detail.text);
      return false;
    }
  return true;
}

void sim_cases_free(sim_cases *list) {
  free(list->cases);
  *list = (sim_cases){0};
}
