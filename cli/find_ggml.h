/* SPDX-License-Identifier: Apache-2.0
 *
 * Which libggml would a program use? It may lie beside the program, elsewhere (Debian has programs,
 * libraries and backends in three folders), or inside a single library. Files are looked at, and
 * the dynamic linker is asked; nothing is loaded.
 */
#ifndef AMLA_FIND_GGML_H
#define AMLA_FIND_GGML_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define FIND_GGML_IK "it is ik_llama.cpp, a fork of 2024, which cannot load backends"

enum { FIND_GGML_TEXT = 3 * PATH_MAX };

typedef struct ggml_place {
  char library[PATH_MAX];       /* the file that has ggml's registry */
  char folder[PATH_MAX];        /* of what was asked about: ggml looks for backends there too */
  char note[FIND_GGML_TEXT];    /* what else is worth saying; "" if nothing */
  char problem[FIND_GGML_TEXT]; /* why there is none */
} ggml_place;

/* where: an absolute path of a folder, a program or a library. false: place->problem says why. */
bool find_ggml(const char *where, ggml_place *place);

/* Runs a program, with an environment variable set to 1 unless that is NULL, and keeps the
 * beginning of what it prints, with standard error if `errors` says so. Returns its exit code; -1:
 * it did not start, or was killed. */
int find_ggml_run(const char *const *arguments, const char *variable, bool errors, char *text,
                  size_t text_bytes);

#endif
