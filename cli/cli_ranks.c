/* SPDX-License-Identifier: Apache-2.0
 *
 * See cli_ranks.h. amla_ranks lies beside this program, or where it is installed.
 */
#include "cli_ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli_report.h"
#include "harness/program.h"

bool cli_asks_for_ranks(const char *command, int argc, char **argv) {
  static const char *const known[] = {"run", "check", "bench"};
  bool asked = false, takes = false;
  for (int i = 2; i < argc; i++)
    asked = asked || strcmp(argv[i], "--ranks") == 0;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    takes = takes || strcmp(command, known[i]) == 0;
  return asked && takes;
}

static void try_folder(const char *beside, char **arguments) {
  char folder[PATH_MAX], path[PATH_MAX + 64];
  if (!harness_program_folder(folder))
    return;
  snprintf(path, sizeof path, "%s/%s", folder, beside);
  arguments[0] = path;
  execv(path, arguments);
}

cli_exit cli_become_ranks(int argc, char **argv) {
  char command[32], **arguments = cli_allocate((size_t)argc + 1, sizeof *arguments);
  int n = 1;
  snprintf(command, sizeof command, "amla %s", argv[1]);
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "--ranks") != 0)
      arguments[n++] = argv[i];
  try_folder("amla_ranks", arguments);
  try_folder(AMLA_LIBEXEC_FROM_BIN "/amla_ranks", arguments);
  free(arguments);
  cli_error(command, "--ranks: there is no amla_ranks beside this program. It is built where CMake "
                     "finds an MPI (docs/distributed.md)");
  return CLI_ERROR;
}
