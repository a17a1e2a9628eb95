/* SPDX-License-Identifier: Apache-2.0
 *
 * Topics of `amla help`, and the words that a shell completes, one a line (cli/amla.bash).
 */
#ifndef AMLA_CLI_HELP_H
#define AMLA_CLI_HELP_H

#include <argp.h>
#include <stdbool.h>
#include <stdio.h>

#include "harness/names.h"

void cli_list_topics(FILE *to);
bool cli_print_topic(const char *name); /* false: there is none of that name */

void cli_print_topic_words(void);
void cli_print_key_words(void); /* of problem strings */

/* Its options and those of its children. names_of: what an option chooses from, or NULL. */
void cli_print_option_words(const struct argp *argp, harness_names (*names_of)(int key));

#endif
