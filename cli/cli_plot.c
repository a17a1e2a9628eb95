/* SPDX-License-Identifier: Apache-2.0
 *
 * The pipe to gnuplot. Its output goes to a file beside the target, renamed when gnuplot ended
 * well.
 */
#define _GNU_SOURCE 1 /* asprintf, memmem */
#include "cli_plot.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli_report.h"

static const char *terminal_for(const char *path) {
  const char *dot = strrchr(path, '.');
  if (dot != NULL && strcmp(dot, ".svg") == 0)
    return "svg size 1000,600 dynamic background 'white' font 'sans,12'";
  if (dot != NULL && strcmp(dot, ".png") == 0)
    return "pngcairo size 1000,600 font 'sans,10'";
  return NULL;
}

static bool gnuplot_exists(void) { return system("command -v gnuplot >/dev/null 2>&1") == 0; }

void cli_plot_string(const cli_plot *plot, const char *text) {
  fputc('\'', plot->gnuplot);
  for (; *text != '\0'; text++)
    fputs(*text == '\'' ? "''" : (char[]){*text, '\0'}, plot->gnuplot);
  fputc('\'', plot->gnuplot);
}

/* An empty file beside the target, to show early that its directory exists and can be written. */
static bool create_temporary(cli_plot *plot) {
  if (asprintf(&plot->temporary, "%s.XXXXXX", plot->path) < 0)
    plot->temporary = NULL;
  const int descriptor = plot->temporary ? mkstemp(plot->temporary) : -1;
  if (descriptor < 0) {
    free(plot->temporary);
    plot->temporary = NULL;
    return false;
  }
  return close(descriptor) == 0;
}

bool cli_plot_check(const char *command, const char *path) {
  const bool known = terminal_for(path) != NULL, exists = known && gnuplot_exists();
  if (!known)
    cli_error(command, "--plot=%s: must end in .svg or .png", path);
  else if (!exists)
    cli_error(command, "--plot=%s: needs the program gnuplot, which is not installed", path);
  return exists;
}

bool cli_plot_open(cli_plot *plot, const char *command, const char *path) {
  *plot = (cli_plot){.command = command, .path = path};
  if (!cli_plot_check(command, path))
    return false;
  signal(SIGPIPE, SIG_IGN); /* a gnuplot that dies shows in its exit status */
  if (!create_temporary(plot) || (plot->gnuplot = popen("gnuplot", "w")) == NULL) {
    cli_error(command, "--plot=%s: cannot write: %s", path, strerror(errno));
    if (plot->temporary != NULL)
      unlink(plot->temporary);
    free(plot->temporary);
    return false;
  }
  fprintf(plot->gnuplot, "set terminal %s\nset output ", terminal_for(path));
  cli_plot_string(plot, plot->temporary);
  fputs("\nset termoption noenhanced\nset grid ytics\n", plot->gnuplot);
  return true;
}

/* gnuplot ends well on a full disk too. Whether the picture has its end: PNG's last chunk, SVG's
 * last tag. */
static bool is_complete(const char *path) {
  char tail[33] = "";
  FILE *file = fopen(path, "rb");
  if (file == NULL)
    return false;
  const bool read = fseek(file, -32, SEEK_END) == 0 && fread(tail, 1, 32, file) == 32;
  fclose(file);
  return read && (memmem(tail, 32, "IEND", 4) != NULL || memmem(tail, 32, "</svg>", 6) != NULL);
}

bool cli_plot_close(cli_plot *plot) {
  fputs("\nunset output\n", plot->gnuplot);
  const bool written = fflush(plot->gnuplot) == 0;
  const int status = pclose(plot->gnuplot);
  bool ok = written && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (ok)
    ok = is_complete(plot->temporary);
  if (ok)
    ok = chmod(plot->temporary, 0644) == 0 && rename(plot->temporary, plot->path) == 0;
  if (!ok) {
    cli_error(plot->command, "--plot=%s: gnuplot could not draw it", plot->path);
    unlink(plot->temporary);
  }
  free(plot->temporary);
  return ok;
}
