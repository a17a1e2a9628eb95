/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem strings: any text is refused with a reason or means one problem; printed and read again
 * it means the same one.
 */
#include "fuzz.h"

#include <string.h>

#include "harness/problem_string.h"

enum { MAX_TEXT = 8192 };

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
  harness_case first, second;
  char text[MAX_TEXT], again[MAX_TEXT], error[256] = "";
  if (n_bytes >= sizeof text)
    return 0;
  memcpy(text, bytes, n_bytes);
  text[n_bytes] = '\0';

  memset(&first, 0, sizeof first); /* for memcmp: padding too */
  memset(&second, 0, sizeof second);
  if (harness_parse_problem(text, &first, error, sizeof error) != 0) {
    FUZZ_CHECK(*error && memchr(error, '\0', sizeof error), "refused without a reason: %s", text);
    return 0;
  }
  const int length = harness_format_problem(&first, text, sizeof text);
  FUZZ_CHECK(length > 0 && (size_t)length < sizeof text, "length %d", length);
  FUZZ_CHECK(harness_parse_problem(text, &second, error, sizeof error) == 0, "%s: %s", text, error);
  harness_format_problem(&second, again, sizeof again);
  FUZZ_CHECK(strcmp(text, again) == 0, "\n%s\n%s", text, again);
  FUZZ_CHECK(memcmp(&first.problem, &second.problem, sizeof first.problem) == 0, "%s", text);
  return 0;
}
