/* SPDX-License-Identifier: Apache-2.0
 *
 * The progress bar.
 */
#include "cli_progress.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "harness/roofline.h"

cli_progress cli_progress_begin(const char *what) {
  return (cli_progress){
      .what = what, .enabled = isatty(STDERR_FILENO) != 0, .started = harness_seconds()};
}

void cli_progress_update(void *context, double fraction) {
  static const char bar[] = "########################################";
  enum { WIDTH = sizeof bar - 1 };
  cli_progress *p = context;
  if (!p->enabled)
    return;
  const double now = harness_seconds();
  if (now - p->started < 1 || now - p->last < 0.1)
    return;
  const int filled = (int)(fmin(fmax(fraction, 0), 1) * WIDTH);
  fprintf(stderr, "\r\033[K%-24.24s [%-*.*s] %3.0f %%  %.0f s", p->what, (int)WIDTH, filled, bar,
          100 * fraction, now - p->started);
  p->last = now;
  p->drawn = true;
}

void cli_progress_end(cli_progress *p) {
  if (p->drawn)
    fputs("\r\033[K", stderr);
  p->drawn = false;
}
