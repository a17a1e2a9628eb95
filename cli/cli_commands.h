/* SPDX-License-Identifier: Apache-2.0
 *
 * The commands of the program, and its exit codes.
 */
#ifndef AMLA_CLI_COMMANDS_H
#define AMLA_CLI_COMMANDS_H

typedef enum cli_exit {
  CLI_OK = 0,
  CLI_ERROR = 1,   /* a file, an allocation, or the library refused */
  CLI_USAGE = 2,   /* unknown command, option or argument */
  CLI_MISMATCH = 3 /* the result is wrong */
} cli_exit;

/* argv[0] is "amla COMMAND". */
cli_exit cmd_info(int argc, char **argv);
cli_exit cmd_gen(int argc, char **argv);
cli_exit cmd_run(int argc, char **argv);
cli_exit cmd_check(int argc, char **argv);
cli_exit cmd_bench(int argc, char **argv);
cli_exit cmd_accuracy(int argc, char **argv);
cli_exit cmd_sim(int argc, char **argv);
cli_exit cmd_doctor(int argc, char **argv);

#endif
