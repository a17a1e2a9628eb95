/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of the API that need nothing: names and version.
 */
#include <amla/amla.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *amla_version(void) { return TEXT(AMLA_VERSION_MAJOR) "." TEXT(AMLA_VERSION_MINOR) "." TEXT(AMLA_VERSION_PATCH); }

const char *amla_status_name(amla_status status) {
  switch (status) {
    case AMLA_OK: return "ok";
    case AMLA_INVALID_ARGUMENT: return "invalid argument";
    case AMLA_UNSUPPORTED: return "unsupported";
    case AMLA_OUT_OF_MEMORY: return "out of memory";
    case AMLA_BACKEND_FAILED: return "backend failed";
  }
  return "unknown status";
}
