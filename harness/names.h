/* SPDX-License-Identifier: Apache-2.0
 *
 * The library's kinds by name: what an option or a problem string can choose from. The names are
 * the library's own, so that a new kind shows up in every client by itself.
 */
#ifndef AMLA_HARNESS_NAMES_H
#define AMLA_HARNESS_NAMES_H

#include <amla/amla.h>

/* A list: the name of value i, "" for a value that nobody asks for by name, NULL past the last. */
typedef const char *(*harness_names)(int i);

const char *harness_backends(int i); /* without auto */
const char *harness_rescales(int i); /* without default */
const char *harness_isas(int i);     /* without auto */
const char *harness_p_forms(int i);  /* without default */
const char *harness_q_forms(int i);  /* without default */
const char *harness_kv_rounds(int i);
const char *harness_dtypes(int i);
const char *harness_element_dtypes(int i); /* without types that have blocks only */

/* The value of that name, or -1. */
int harness_find_name(harness_names names, const char *text);

typedef struct harness_name_list {
  char text[128];
} harness_name_list;

/* "c, avx2 or avx512", where last is " or ". */
harness_name_list harness_list_names(harness_names names, const char *last);

#endif
