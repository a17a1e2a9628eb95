/* SPDX-License-Identifier: Apache-2.0
 *
 * Backends in shared objects of their own: libamla_NAME.so.MAJOR, looked for in AMLA_BACKEND_DIR
 * if that is set, else beside the file that this code is in, else wherever the system's loader
 * looks. One of another version than the library's is refused. Loaded once, when first asked for,
 * and kept.
 */
#ifndef AMLA_LOAD_BACKEND_H
#define AMLA_LOAD_BACKEND_H

#include "backend.h"

/* The backend's table; NULL with a reason, never NULL and never freed, when it cannot be loaded.
 * Thread-safe. */
const amla_backend_ops *amla_backend_load(amla_backend id, const char **reason);

#endif
