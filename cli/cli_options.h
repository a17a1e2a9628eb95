/* SPDX-License-Identifier: Apache-2.0
 *
 * Options that commands share, as argp children: a command lists the groups it has. Their input is
 * a cli_options.
 */
#ifndef AMLA_CLI_OPTIONS_H
#define AMLA_CLI_OPTIONS_H

#include <argp.h>
#include <stdbool.h>

#include <amla/amla.h>

typedef struct cli_options {
  amla_options plan; /* what options of how to decode say */
  bool backend_given, rescale_all, rescale_given;
  bool json;
  const char *plot; /* file, NULL = none */
} cli_options;

#define CLI_OPTIONS_INIT {.plan = AMLA_OPTIONS_INIT}

extern const struct argp
    cli_plan_argp; /* --backend --rescale --split --p-form --q-form --kv-round */
extern const struct argp cli_machine_argp; /* --threads --isa */
extern const struct argp cli_json_argp;    /* --json */
extern const struct argp cli_ranks_argp;   /* --ranks, which main takes first (cli_ranks.h) */
extern const struct argp cli_plot_argp;    /* --plot */

/* Options of two commands, in the space argp leaves above characters. */
enum {
  CLI_KEY_FOR = 1000,
  CLI_KEY_OUT,
  CLI_KEY_NO_CHECK,
  CLI_KEY_REF,
  CLI_KEY_QUICK,
  CLI_KEY_LENGTHS,
  CLI_KEY_HEADS,
  CLI_KEY_P_FORM,
  CLI_KEY_Q_FORM,
  CLI_KEY_KV_ROUND,
  CLI_KEY_RANKS
};

/* Once, first: usage errors exit with status 2. */
void cli_options_setup(void);

/* The command whose words are wanted prints them in place of parsing, and ends. */
extern bool cli_words_wanted;

/* Parses argv; does not return on a usage error (2), on --help (0), or when the library refuses its
 * environment (1). children: groups above, NULL-terminated list. */
void cli_parse(const char *arguments, const char *doc, const struct argp_option *options,
               argp_parser_t parser, const struct argp_child *children, int argc, char **argv,
               void *input);

/* The mode of that name, or a usage error that names --rescale. */
amla_rescale cli_parse_rescale(struct argp_state *state, const char *text);

/* A number of seconds in (0, 86400], or a usage error that names the option. */
double cli_parse_seconds(struct argp_state *state, const char *option, const char *text);

#endif
