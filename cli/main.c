/* SPDX-License-Identifier: Apache-2.0
 *
 * amla: chooses the command. Each command is a file, cmd_*.c, and parses its own arguments.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <amla/amla.h>

#include "cli_commands.h"
#include "cli_options.h"
#include "cli_ranks.h"
#include "harness/names.h"
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
        "  amla --version\n"
        "  mpirun -n N amla run|check|bench --ranks FILE|PROBLEM [OPTION...]\n"
        "                          keys shared out over N ranks (docs/distributed.md)\n\n"
        "PROBLEM is a string of key=value pairs, all optional; these are the defaults:\n"
        "  "
        "b=1,sq=1,h=128,sk=4096,dqk=576,dv=512,page=64,q=bf16,kv=bf16,out=f32,causal=1,scale=0."
        "1352,lse=e,sinks=0,pad="
        "0,\n"
        "  mask=0,topk=0,index=slot,topklen=none,invalid=0,window=0,scope2=none,visible=0,ragged=0,"
        "csr=0,\n"
        "  lsesink=0,qrope=0,kvrope=0,dist=normal:1,len=fixed,seed=7\n"
        "dist: normal:S uniform:A rising:R outlier:R onehot peaked:S zerov masked. len: fixed "
        "uniform ragged, or "
        "3/0/1000. index: slot position. topklen: none sequence query. scope2: none, or "
        "topk:512/sk:4096/page:64.\n"
        "With topk or visible, causal is 0.\n\n"
        "Exit status: 0 good, 1 error, 2 usage, 3 the result is wrong.\n"
        "Environment: AMLA_NUM_THREADS; AMLA_L2_BYTES, a thread's; AMLA_ISA (",
        to);
  fprintf(to, "%s) caps the instruction set.\n", harness_list_names(harness_isas, ", ").text);
}

static cli_exit run_command(const command *c, int argc, char **argv) {
  char name[32];
  snprintf(name, sizeof name, "amla %s", c->name);
  argv[1] = name; /* what argp prints as the program's name */
  return c->run(argc - 1, argv + 1);
}

int main(int argc, char **argv) {
  harness_program_setup("amla");
  cli_options_setup();
  if (argc < 2) {
    print_usage(stderr);
    return CLI_USAGE;
  }
  if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
      strcmp(argv[1], "help") == 0) {
    print_usage(stdout);
    return CLI_OK;
  }
  if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
    printf("amla %s\n", amla_version());
    return CLI_OK;
  }
  for (size_t i = 0; i < N_COMMANDS; i++)
    if (strcmp(argv[1], commands[i].name) == 0 && cli_asks_for_ranks(argv[1], argc, argv))
      return (int)cli_become_ranks(argc, argv);
    else if (strcmp(argv[1], commands[i].name) == 0)
      return (int)run_command(&commands[i], argc, argv);
  fprintf(stderr, "amla: unknown %s '%s'\n\n", argv[1][0] == '-' ? "option" : "command", argv[1]);
  print_usage(stderr);
  return CLI_USAGE;
}
