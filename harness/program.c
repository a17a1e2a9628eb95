/* SPDX-License-Identifier: Apache-2.0
 *
 * Output that fails, and where a program lies.
 */
#define _GNU_SOURCE 1 /* SIGXFSZ */
#include "program.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *program = "";

static void close_stdout(void) {
  const int failed_before = ferror(stdout);
  if (fclose(stdout) == 0 && !failed_before)
    return;
  fprintf(stderr, "%s: cannot write to standard output: %s\n", program, strerror(errno));
  _exit(EXIT_FAILURE);
}

/* jansson's functions return NULL when memory is short, and take NULL from each other without a
 * word: a value would be missing. */
static void *allocate_json(size_t bytes) {
  void *memory = malloc(bytes);
  if (memory != NULL)
    return memory;
  fprintf(stderr, "%s: out of memory\n", program);
  exit(EXIT_FAILURE);
}

void harness_program_setup(const char *name) {
  program = name;
  atexit(close_stdout);
  signal(SIGXFSZ, SIG_IGN); /* a file over the size limit is then a write error like any other */
  json_set_alloc_funcs(allocate_json, free);
}

bool harness_program_folder(char folder[PATH_MAX]) {
  const ssize_t n = readlink("/proc/self/exe", folder, PATH_MAX - 1);
  folder[n > 0 ? n : 0] = '\0';
  char *end = strrchr(folder, '/');
  if (end != NULL)
    *end = '\0';
  return end != NULL;
}

static bool same(const struct stat *a, const struct stat *b) {
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool harness_same_file(const char *a, const char *b) {
  struct stat about_a, about_b;
  return stat(a, &about_a) == 0 && stat(b, &about_b) == 0 && same(&about_a, &about_b);
}

bool harness_is_stdout(const char *path) {
  struct stat file, out;
  const bool known = stat(path, &file) == 0 && fstat(STDOUT_FILENO, &out) == 0;
  return known && !S_ISCHR(out.st_mode) && same(&file, &out);
}
