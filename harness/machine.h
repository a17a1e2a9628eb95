/* SPDX-License-Identifier: Apache-2.0
 *
 * What the operating system says of this machine.
 */
#ifndef AMLA_HARNESS_MACHINE_H
#define AMLA_HARNESS_MACHINE_H

typedef struct harness_line {
  char text[4096]; /* without its newline; flags are long */
} harness_line;

/* The value in the first line of /proc/cpuinfo with that key; *line gets the whole of it. NULL when
 * there is none. */
const char *harness_cpu_line(const char *key, harness_line *line);

#endif
