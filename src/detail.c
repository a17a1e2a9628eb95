/* SPDX-License-Identifier: Apache-2.0
 *
 * The words of a refusal. See detail.h.
 */
#include "detail.h"

#include <stdarg.h>
#include <stdio.h>

amla_status amla_refuse(amla_detail *detail, amla_status status, const char *format, ...) {
  if (detail) {
    va_list args;
    va_start(args, format);
    vsnprintf(detail->text, sizeof detail->text, format, args);
    va_end(args);
  }
  return status;
}

amla_status amla_check_overlap(const char *name, const void *at, uint64_t bytes,
                               const char *other_name, const void *other, uint64_t other_bytes,
                               amla_detail *detail) {
  const uintptr_t x = (uintptr_t)at, y = (uintptr_t)other;
  if (at && other && bytes > 0 && other_bytes > 0 && x < y + other_bytes && y < x + bytes)
    return amla_refuse(detail, AMLA_INVALID_ARGUMENT, "%s=%p: must not overlap %s", name, at,
                       other_name);
  return AMLA_OK;
}

amla_status amla_accept(amla_detail *detail) {
  if (detail)
    detail->text[0] = '\0';
  return AMLA_OK;
}
