/* SPDX-License-Identifier: Apache-2.0
 *
 * See default_threads.h. Sources: sched_getaffinity(2); cgroups(7); in the kernel's documentation
 * cgroup-v2 (cpu.max), sched-bwc (cpu.cfs_quota_us) and ABI/stable/sysfs-devices-system-cpu.
 */
#define _GNU_SOURCE /* sched_getaffinity, strsep */
#if defined(__linux__)
#include <sched.h>
#endif

#include "default_threads.h"

#include <fcntl.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TEXT = 4096, MAX_PATH = 2 * MAX_TEXT };

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* What is in folder/name; "" if there is none. No stream, which would be allocated. */
static char *read_text(const char *folder, const char *name, char text[MAX_TEXT]) {
  char path[MAX_PATH + 64];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t n = file >= 0 ? read(file, text, MAX_TEXT - 1) : 0;
  text[n > 0 ? n : 0] = '\0';
  if (file >= 0)
    close(file);
  return text;
}

/* ---- Cores ---- */

static int has(const amla_cpu_set *set, long cpu) {
  return cpu >= 0 && cpu < AMLA_MAX_CPUS && (set->words[cpu / 64] >> (cpu % 64) & 1);
}

/* The first CPU of a list such as "3,67" or "0-1" that is in the set; `none` if there is none. */
static long first_of(const char *list, const amla_cpu_set *set, long none) {
  for (char *end; *list >= '0' && *list <= '9'; list = end + (*end == ',')) {
    const long first = strtol(list, &end, 10);
    const long last = *end == '-' ? strtol(end + 1, &end, 10) : first;
    for (long cpu = first; cpu <= last && cpu < AMLA_MAX_CPUS; cpu++)
      if (has(set, cpu))
        return cpu;
  }
  return none;
}

/* A core counts at the first of its CPUs that is allowed; a CPU of which nothing is said alone. */
static int64_t count_cores(const char *root, const amla_cpu_set *allowed) {
  char folder[MAX_PATH], siblings[MAX_TEXT];
  int64_t n = 0;
  for (long cpu = 0; cpu < AMLA_MAX_CPUS; cpu++) {
    if (!has(allowed, cpu))
      continue;
    snprintf(folder, sizeof folder, "%s/sys/devices/system/cpu/cpu%ld/topology", root, cpu);
    n += first_of(read_text(folder, "thread_siblings_list", siblings), allowed, cpu) == cpu;
  }
  return n;
}

/* ---- The quota of control groups ---- */

/* Whole CPUs; INT32_MAX: no quota. */
static int64_t quota_of(const char *folder, int version) {
  char text[MAX_TEXT], *end;
  int64_t quota, period;
  if (version == 2) { /* "150000 100000", or "max 100000" */
    quota = strtoll(read_text(folder, "cpu.max", text), &end, 10);
    period = strtoll(end, NULL, 10);
  } else { /* -1: none */
    quota = strtoll(read_text(folder, "cpu.cfs_quota_us", text), NULL, 10);
    period = strtoll(read_text(folder, "cpu.cfs_period_us", text), NULL, 10);
  }
  return quota > 0 && period > 0 ? quota / period : INT32_MAX;
}

/* The least of a group and of those that it lies in. In a container the path may be the host's, of
 * which only the top is there. */
static int64_t least_quota(const char *mount, char *path, int version) {
  char folder[MAX_PATH];
  int64_t least = INT32_MAX;
  for (;;) {
    snprintf(folder, sizeof folder, "%s%s", mount, path);
    least = min(least, quota_of(folder, version));
    char *last = strrchr(path, '/');
    if (!last)
      return least;
    *last = '\0';
  }
}

/* Is "cpu" one of "cpu,cpuacct"? */
static int has_cpu(char *controllers) {
  for (char *name; (name = strsep(&controllers, ","));)
    if (strcmp(name, "cpu") == 0)
      return 1;
  return 0;
}

/* Lines are "4:cpu,cpuacct:/path" in version 1, "0::/path" in version 2; a machine may have both.
 */
static int64_t count_quota(const char *root) {
  char text[MAX_TEXT], mount[MAX_PATH];
  int64_t least = INT32_MAX;
  char *rest = read_text(root, "proc/self/cgroup", text);
  for (char *path; (path = strsep(&rest, "\n"));) {
    const char *number = strsep(&path, ":");
    char *controllers = strsep(&path, ":");
    const int version = strcmp(number, "0") == 0 ? 2 : 1;
    if (!path || (version == 1 && !has_cpu(controllers)))
      continue;
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, version == 1 ? "/cpu" : "");
    least = min(least, least_quota(mount, path, version));
  }
  return least;
}

int32_t amla_cores_left(const char *root, const amla_cpu_set *allowed) {
  const int64_t n = min(count_cores(root, allowed), count_quota(root));
  return n > 1 ? (int32_t)n : 1;
}

/* ---- The default ---- */

#if defined(__linux__)
/* FNV-1a, but for the bits that the answer takes. */
static uint64_t hash_set(const amla_cpu_set *set) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int i = 0; i < AMLA_MAX_CPUS / 64; i++)
    hash = (hash ^ set->words[i]) * 0x100000001b3;
  return hash & ~(uint64_t)0xffff;
}

/* Adds the CPUs of OpenMP's places. A thread that is bound may run on one of them only. */
static void add_places(amla_cpu_set *set) {
  int ids[AMLA_MAX_CPUS];
  for (int place = 0; place < omp_get_num_places(); place++) {
    const int n = omp_get_place_num_procs(place);
    if (n > AMLA_MAX_CPUS)
      continue;
    omp_get_place_proc_ids(place, ids);
    for (int i = 0; i < n; i++)
      if (ids[i] >= 0 && ids[i] < AMLA_MAX_CPUS)
        set->words[ids[i] / 64] |= (uint64_t)1 << ids[i] % 64;
  }
}

/* Of the CPUs that the calling thread may run on, or OpenMP's threads where it binds them. Files
 * are read once for each set of them. */
static int64_t cores_of_system(void) {
  static _Atomic uint64_t known; /* the hash of a set, and its cores */
  amla_cpu_set allowed = {{0}};
  if (sched_getaffinity(0, sizeof allowed, (cpu_set_t *)allowed.words) != 0)
    return INT32_MAX;
  if (omp_get_proc_bind() != omp_proc_bind_false)
    add_places(&allowed);
  const uint64_t hash = hash_set(&allowed), before = atomic_load(&known);
  if ((before & ~(uint64_t)0xffff) == hash && (before & 0xffff) > 0)
    return (int64_t)(before & 0xffff);
  const int32_t cores = amla_cores_left("", &allowed);
  atomic_store(&known, hash | (uint64_t)cores);
  return cores;
}
#else
static int64_t cores_of_system(void) { return INT32_MAX; }
#endif

int32_t amla_default_threads(void) {
  const char *said = getenv("OMP_NUM_THREADS");
  const int32_t threads = omp_get_max_threads();
  return said && *said ? threads : (int32_t)min(threads, cores_of_system());
}
