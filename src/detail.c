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

amla_status amla_accept(amla_detail *detail) {
  if (detail) detail->text[0] = '\0';
  return AMLA_OK;
}
