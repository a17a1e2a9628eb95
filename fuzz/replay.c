/* SPDX-License-Identifier: Apache-2.0
 *
 * A main for the fuzz targets without libFuzzer: runs the target once on every file of the folders
 * or files named, so that the corpus, and every crash once found, stays a regression test under any
 * compiler.
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

/* -1 when path cannot be read. */
static int replay_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END))
    return -1;
  long n_bytes = ftell(file);
  if (n_bytes < 0)
    return -1;
  rewind(file);
  uint8_t *bytes =
      malloc(n_bytes ? (size_t)n_bytes
                     : 1); /* exactly as long as the input: ASan sees the byte behind it */
  if (!bytes || fread(bytes, 1, (size_t)n_bytes, file) != (size_t)n_bytes)
    return -1;
  fclose(file);
  fprintf(stderr, "%s\n", path); /* the last line before a crash names its input */
  LLVMFuzzerTestOneInput(bytes, (size_t)n_bytes);
  free(bytes);
  return 0;
}

/* Number of files replayed, or -1. */
static int replay(const char *path) {
  DIR *folder = opendir(path);
  if (!folder)
    return replay_file(path) ? -1 : 1;
  int n_files = 0;
  for (struct dirent *entry; (entry = readdir(folder));) {
    if (entry->d_name[0] == '.')
      continue;
    char name[4096];
    snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
    if (replay_file(name)) {
      n_files = -1;
      break;
    }
    n_files++;
  }
  closedir(folder);
  return n_files;
}

int main(int argc, char **argv) {
  int total = 0;
  for (int i = 1; i < argc; i++) {
    int n_files = replay(argv[i]);
    if (n_files < 0) {
      fprintf(stderr, "%s: cannot read\n", argv[i]);
      return 1;
    }
    total += n_files;
  }
  printf("replayed %d inputs\n", total);
  return total == 0; /* an empty corpus tests nothing */
}
