/* SPDX-License-Identifier: Apache-2.0
 *
 * amla: chooses the command. Each command is a file, cmd_*.c, and parses its own arguments.
 */
#include <stdio.h>
#include <string.h>

#include <amla/amla.h>

#include "cli_commands.h"
#include "cli_help.h"
#include "cli_options.h"
#include "cli_ranks.h"
#include "harness/program.h"

typedef struct command {
  const char *name;
  cli_exit (*run)(int argc, char **argv);
  const char *summary;
} command;

static const command commands[] = {
    {"info", cmd_info, "this machine: instruction sets, backends, measured peaks"},
    {"gen", cmd_gen, "write a problem as a safetensors file"},
    {"run", cmd_run, "run a problem, compare the result, print error and speed"},
    {"check", cmd_check, "every backend and rescale mode against fp64"},
    {"bench", cmd_bench, "speed as a fraction of the limit that binds"},
    {"sim", cmd_sim, "the Ascend kernel on a simulated NPU: utilisation, tables, trace"},
    {"accuracy", cmd_accuracy, "accuracy of the rescale modes by distribution and length"},
    {"doctor", cmd_doctor, "would llama.cpp use the plug-in, and if not, why"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *to) {
  fputs("Usage: amla COMMAND [OPTION...] [PROBLEM...]\n\n"
        "MLA attention decoding (AMLA, arXiv 2509.25224).\n\n",
        to);
  for (size_t i = 0; i < N_COMMANDS; i++)
    fprintf(to, "  amla %-9s %s\n", commands[i].name, commands[i].summary);
  fputs("\n"
        "  amla COMMAND --help     options of a command, with examples\n"
        "  amla --version          of the library\n"
        "  mpirun -n N amla run|check|bench --ranks FILE|PROBLEM [OPTION...]\n"
        "                          keys shared out over N ranks (docs/distributed.md)\n\n",
        to);
  cli_list_topics(to);
  fputs("\n"
        "PROBLEM is a string such as h=16,sk=4096,kv=q8_0.\n",
        to);
}

static cli_exit run_command(const command *c, int argc, char **argv) {
  char name[32];
  snprintf(name, sizeof name, "amla %s", c->name);
  argv[1] = name; /* what argp prints as the program's name */
  return c->run(argc - 1, argv + 1);
}

static const command *find_command(const char *name) {
  for (size_t i = 0; i < N_COMMANDS; i++)
    if (strcmp(name, commands[i].name) == 0)
      return &commands[i];
  return NULL;
}

/* amla help, amla help TOPIC, amla help COMMAND. */
static cli_exit help(int argc, char **argv) {
  const command *c = argc > 2 ? find_command(argv[2]) : NULL;
  if (argc == 2)
    print_usage(stdout);
  else if (argc > 3 || (c == NULL && !cli_print_topic(argv[2]))) {
    fprintf(stderr, "amla: no help on '%s'\n\n", argv[argc > 3 ? 3 : 2]);
    print_usage(stderr);
    return CLI_USAGE;
  } else if (c != NULL)
    return run_command(c, 3, (char *[]){argv[0], argv[2], (char[]){"--help"}, NULL});
  return CLI_OK;
}

/* amla complete, amla complete COMMAND: words for a shell. */
static cli_exit complete(int argc, char **argv) {
  const command *c = argc > 2 ? find_command(argv[2]) : NULL;
  cli_words_wanted = true;
  if (c != NULL)
    return run_command(c, 2, argv + 1);
  for (size_t i = 0; i < N_COMMANDS; i++)
    puts(commands[i].name);
  if (argc > 2)
    cli_print_topic_words(); /* as after amla help */
  else
    puts("help\n--help\n--version");
  return CLI_OK;
}

int main(int argc, char **argv) {
  const char *word = argc > 1 ? argv[1] : "";
  const command *c = find_command(word);
  harness_program_setup("amla");
  cli_options_setup();
  if (c != NULL && cli_asks_for_ranks(word, argc, argv))
    return (int)cli_become_ranks(argc, argv);
  if (c != NULL)
    return (int)run_command(c, argc, argv);
  if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
    return (int)help(argc, argv);
  if (strcmp(word, "complete") == 0)
    return (int)complete(argc, argv);
  if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
    printf("amla %s\n", amla_version());
    return CLI_OK;
  }
  if (argc > 1)
    fprintf(stderr, "amla: unknown %s '%s'\n\n", *word == '-' ? "option" : "command", word);
  print_usage(stderr);
  return CLI_USAGE;
}
