/* SPDX-License-Identifier: Apache-2.0
 *
 * What our programs promise of their output: all of it is written, or the exit status is 1 and a
 * line on standard error says why. And where they lie.
 */
#ifndef AMLA_HARNESS_PROGRAM_H
#define AMLA_HARNESS_PROGRAM_H

#include <limits.h>
#include <stdbool.h>

/* Call it first in main; name begins the messages and is kept. From then on standard output that
 * could not be written and memory that jansson cannot have end the program with status 1. */
void harness_program_setup(const char *name);

/* The folder that the program lies in; false where that cannot be found out. */
bool harness_program_folder(char folder[PATH_MAX]);

/* Whether both names lead to one file, through links too. False when there is none yet. */
bool harness_same_file(const char *a, const char *b);

/* The same for standard output, where that is a file or a pipe. */
bool harness_is_stdout(const char *path);

#endif
