/* SPDX-License-Identifier: Apache-2.0
 *
 * Charts, drawn by gnuplot through a pipe.
 */
#ifndef AMLA_CLI_PLOT_H
#define AMLA_CLI_PLOT_H

#include <stdbool.h>
#include <stdio.h>

typedef struct cli_plot {
  FILE *gnuplot; /* write commands and data blocks here */
  const char *command, *path;
  char *temporary; /* gnuplot writes here; renamed at the end */
} cli_plot;

/* path ends in .svg or .png. False, with a message, when it does not, or when gnuplot is missing:
 * to ask before the work. */
bool cli_plot_check(const char *command, const char *path);

/* The same check, then the pipe. */
bool cli_plot_open(cli_plot *plot, const char *command, const char *path);

/* A string in gnuplot's single quotes. */
void cli_plot_string(const cli_plot *plot, const char *text);

/* False, with a message, when gnuplot failed; then there is no file. */
bool cli_plot_close(cli_plot *plot);

#endif
