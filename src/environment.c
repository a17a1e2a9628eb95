/* SPDX-License-Identifier: Apache-2.0
 *
 * See environment.h.
 */
#include "environment.h"

#include <errno.h>
#include <stdlib.h>

#include "refuse.h"

amla_status amla_environment_number(const char *name, int64_t most, int64_t *value,
                                    amla_detail *detail) {
  const char *text = getenv(name);
  *value = 0;
  if (!text || !*text)
    return AMLA_OK;
  char *end;
  errno = 0;
  const long long n = strtoll(text, &end, 10);
  if (*end || errno || n < 1 || n > most)
    INVALID("%s=%.40s: must be a number in 1..%lld", name, text, (long long)most);
  *value = n;
  return AMLA_OK;
}
