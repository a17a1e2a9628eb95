/* SPDX-License-Identifier: Apache-2.0
 *
 * See l2_cache.h. Linux says it in /sys/devices/system/cpu/cpuN/cache/indexM: level, type, size
 * ("512K") and shared_cpu_list ("0-1,8"). Source:
 * Documentation/ABI/testing/sysfs-devices-system-cpu.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity */
#include <sched.h>
#endif

#include "l2_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../environment.h"

enum { MAX_CPUS = 8192, MAX_CACHES = 8, MAX_PATH = 256, MAX_TEXT = 128 };

amla_status amla_l2_from_environment(int64_t *bytes, amla_detail *detail) {
  return amla_environment_number("AMLA_L2_BYTES", (int64_t)1 << 40, bytes, detail);
}

/* The file's first line; "" if there is none. */
static const char *read_line(const char *folder, int index, const char *name, char text[MAX_TEXT]) {
  char path[MAX_PATH];
  text[0] = '\0';
  snprintf(path, sizeof path, "%s/cache/index%d/%s", folder, index, name);
  FILE *file = fopen(path, "r");
  if (!file)
    return text;
  if (!fgets(text, MAX_TEXT, file))
    text[0] = '\0';
  fclose(file);
  return text;
}

static int64_t parse_size(const char *text) {
  char *unit;
  const long long n = strtoll(text, &unit, 10);
  if (*unit == 'K')
    return n << 10;
  return *unit == 'M' ? n << 20 : n;
}

/* Of "0-1,8"; at least 1. */
static int count_cpus(const char *list) {
  int n = 0;
  for (char *end; *list >= '0' && *list <= '9'; list = end + (*end == ',')) {
    const long first = strtol(list, &end, 10);
    const long last = *end == '-' ? strtol(end + 1, &end, 10) : first;
    n += (int)(last - first) + 1;
  }
  return n > 1 ? n : 1;
}

int64_t amla_l2_of_cpu(const char *folder) {
  char text[MAX_TEXT];
  for (int i = 0; i < MAX_CACHES; i++) {
    if (strtol(read_line(folder, i, "level", text), NULL, 10) != 2)
      continue;
    if (read_line(folder, i, "type", text)[0] == 'I') /* Instruction */
      continue;
    const int64_t bytes = parse_size(read_line(folder, i, "size", text));
    return bytes / count_cpus(read_line(folder, i, "shared_cpu_list", text));
  }
  return 0;
}

#if defined(__linux__)
int64_t amla_l2_of_system(void) {
  cpu_set_t allowed[MAX_CPUS / CPU_SETSIZE];
  int64_t least = 0;
  memset(allowed, 0, sizeof allowed);
  if (sched_getaffinity(0, sizeof allowed, allowed) != 0)
    return 0;
  for (int cpu = 0; cpu < MAX_CPUS; cpu++) {
    if (!CPU_ISSET_S(cpu, sizeof allowed, allowed))
      continue;
    char folder[MAX_PATH];
    snprintf(folder, sizeof folder, "/sys/devices/system/cpu/cpu%d", cpu);
    const int64_t bytes = amla_l2_of_cpu(folder);
    if (bytes <= 0)
      return 0;
    if (least == 0 || bytes < least)
      least = bytes;
  }
  return least;
}
#else
int64_t amla_l2_of_system(void) { return 0; }
#endif
