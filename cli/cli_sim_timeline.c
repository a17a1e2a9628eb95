/* SPDX-License-Identifier: Apache-2.0
 *
 * The pipeline as a picture: what each pipe of one AI core did in the middle of a run, coloured by
 * stage. Simulated.
 */
#include <stdlib.h>
#include <string.h>

#include "cli_plot.h"
#include "cli_report.h"
#include "cli_sim.h"

enum { WINDOW_CYCLES = 50000 };

/* Rows from the top; AIV 0 stands for both. */
static const struct {
  const char *label, *pipe;
  int on_aiv;
} rows[] = {{"AIC MTE2", "MTE2", 0}, {"AIC MTE1", "MTE1", 0}, {"AIC M", "M", 0},
            {"AIC FIX", "FIX", 0},   {"AIV MTE2", "MTE2", 1}, {"AIV V", "V", 1},
            {"AIV MTE3", "MTE3", 1}};
enum { N_ROWS = sizeof rows / sizeof *rows };

/* Kinds of operation, by what their names hold; colours that colour-blind readers tell apart (Okabe
 * and Ito's). */
static const struct {
  const char *part, *title;
  int colour;
} kinds[] = {{"add_s32", "N added to O", 0xd55e00},
             {"add_f32", "P V added to O", 0xe69f00},
             {"l0b_t", "V to L0B", 0x009e73},
             {"l0", "Q, K and P to L0, S out of L0C", 0x56b4e9},
             {"exp", "exp", 0xcc79a7},
             {"", "all else", 0x595959}};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

void cli_timeline_add(void *context, const amla_sim_event *event) {
  cli_timeline *t = context;
  if (event->core != 0 || event->subcore == 1)
    return;
  if (t->n == t->capacity)
    t->events = cli_grow(t->events, &t->capacity, sizeof *t->events);
  t->events[t->n++] = *event;
}

void cli_timeline_free(cli_timeline *t) { free(t->events); }

static int row_of(const amla_sim_event *e) {
  for (int i = 0; i < N_ROWS; i++)
    if (rows[i].on_aiv == (e->subcore >= 0) && strcmp(rows[i].pipe, e->pipe) == 0)
      return i;
  return -1;
}

static int kind_of(const amla_sim_event *e) {
  int kind = 0;
  while (strstr(e->name, kinds[kind].part) == NULL)
    kind++;
  return kind;
}

static void write_boxes(FILE *to, const cli_timeline *t, int kind, int64_t begin) {
  fprintf(to, "$kind%d << END\n-1 -1 -1 -1\n", kind);
  for (int i = 0; i < t->n; i++) {
    const amla_sim_event *e = &t->events[i];
    const int row = row_of(e);
    if (row < 0 || kind_of(e) != kind || e->end_cycle < begin ||
        e->start_cycle > begin + WINDOW_CYCLES || e->end_cycle == e->start_cycle)
      continue;
    fprintf(to, "%.6g %d %.6g %.6g\n", (double)(e->start_cycle + e->end_cycle - 2 * begin) / 2e3,
            N_ROWS - row, (double)(e->start_cycle - begin) / 1e3,
            (double)(e->end_cycle - begin) / 1e3);
  }
  fputs("END\n", to);
}

bool cli_timeline_draw(const char *command, const char *path, const cli_timeline *t,
                       const amla_sim_report *report) {
  cli_plot plot;
  const int64_t middle = report->launch_cycles + (report->cycles - report->launch_cycles) / 2;
  const int64_t begin = middle - WINDOW_CYCLES / 2 > 0 ? middle - WINDOW_CYCLES / 2 : 0;
  char title[256];
  if (!cli_plot_open(&plot, command, path))
    return false;
  FILE *to = plot.gnuplot;
  for (int i = 0; i < N_KINDS; i++)
    write_boxes(to, t, i, begin);
  snprintf(title, sizeof title, "SIMULATED: %s; %.1f %% of peak", report->description,
           100 * report->utilization);
  fputs("set title ", to);
  cli_plot_string(&plot, title);
  fputs("\nset style fill solid 0.9 noborder\nset key outside top center horizontal\n"
        "set xlabel 'time, from the middle of the run on (thousand cycles)'\n"
        "set ylabel 'pipe of AI core 0, and of one of its vector cores'\n",
        to);
  fprintf(to, "set xrange [0:%g]\nset yrange [0.4:%d.9]\nset ytics (", WINDOW_CYCLES / 1e3, N_ROWS);
  for (int i = 0; i < N_ROWS; i++)
    fprintf(to, "%s'%s' %d", i > 0 ? ", " : "", rows[i].label, N_ROWS - i);
  fputs(")\nplot ", to);
  for (int i = 0; i < N_KINDS; i++)
    fprintf(to,
            "%s$kind%d using 1:2:3:4:($2-0.38):($2+0.38) with boxxyerror lc rgb '#%06x' title '%s'",
            i > 0 ? ", " : "", i, (unsigned)kinds[i].colour, kinds[i].title);
  fputs("\n", to);
  return cli_plot_close(&plot);
}
