/* SPDX-License-Identifier: Apache-2.0
 *
 * Kinds by name.
 */
#include "names.h"

#include <stdio.h>
#include <string.h>

#include "problem_string.h"

const char *harness_backends(int i) { return i ? amla_backend_name((amla_backend)i) : ""; }
const char *harness_rescales(int i) { return i ? amla_rescale_name((amla_rescale)i) : ""; }
const char *harness_isas(int i) { return i ? amla_isa_name((amla_isa)i) : ""; }
const char *harness_p_forms(int i) { return i ? amla_p_form_name((amla_p_form)i) : ""; }
const char *harness_q_forms(int i) { return i ? amla_q_form_name((amla_q_form)i) : ""; }
const char *harness_kv_rounds(int i) { return amla_kv_round_name((amla_kv_round)i); }
const char *harness_dtypes(int i) { return amla_dtype_name((amla_dtype)i); }

const char *harness_element_dtypes(int i) {
  const char *name = harness_dtypes(i);
  return name == NULL || harness_dtype_bytes((amla_dtype)i) > 0 ? name : "";
}

int harness_find_name(harness_names names, const char *text) {
  const char *name;
  for (int i = 0; *text != '\0' && (name = names(i)) != NULL; i++)
    if (strcmp(name, text) == 0)
      return i;
  return -1;
}

harness_name_list harness_list_names(harness_names names, const char *last) {
  harness_name_list list = {""};
  const char *waiting = NULL, *name; /* the latest name, until it is known whether it is the last */
  size_t n = 0;
  for (int i = 0; (name = names(i)) != NULL; i++) {
    if (*name == '\0')
      continue;
    if (waiting != NULL)
      n += (size_t)snprintf(list.text + n, sizeof list.text - n, "%s%s", n ? ", " : "", waiting);
    waiting = name;
  }
  if (waiting != NULL)
    snprintf(list.text + n, sizeof list.text - n, "%s%s", n ? last : "", waiting);
  return list;
}
