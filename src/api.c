/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of the API that need nothing: names and version.
 */
#include <amla/amla.h>

#include "base/dtype.h"
#include "base/isa.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *amla_version(void) {
  return TEXT(AMLA_VERSION_MAJOR) "." TEXT(AMLA_VERSION_MINOR) "." TEXT(AMLA_VERSION_PATCH);
}

const char *amla_status_name(amla_status status) {
  switch (status) {
  case AMLA_OK: return "ok";
  case AMLA_INVALID_ARGUMENT: return "invalid argument";
  case AMLA_UNSUPPORTED: return "unsupported";
  case AMLA_OUT_OF_MEMORY: return "out of memory";
  case AMLA_BACKEND_FAILED: return "backend failed";
  case AMLA_CANCELLED: return "cancelled";
  }
  return "unknown status";
}

/* ---- Names of kinds ---- */

static const char *pick(const char *const *names, int n, int i) {
  return i >= 0 && i < n ? names[i] : NULL;
}
#define PICK(names, i) pick(names, (int)(sizeof(names) / sizeof *(names)), (int)(i))

const char *amla_dtype_name(amla_dtype type) {
#define NAME(id, name, ...) [id] = name,
  static const char *const names[] = {AMLA_DTYPES(NAME)};
#undef NAME
  return PICK(names, type);
}

int32_t amla_dtype_block(amla_dtype type, int32_t *bytes) {
  const int32_t elems = amla_dtype_name(type) ? amla_block_elems(type) : 0;
  *bytes = (int32_t)amla_elems_bytes(type, elems);
  return elems;
}

const char *amla_isa_name(amla_isa isa) {
#define NAME(id, name, ...) [id] = name,
  static const char *const names[] = {[AMLA_ISA_AUTO] = "auto", AMLA_ISAS(NAME)};
#undef NAME
  return PICK(names, isa);
}

const char *amla_rescale_name(amla_rescale rescale) {
  static const char *const names[] = {[AMLA_RESCALE_DEFAULT] = "default",
                                      [AMLA_RESCALE_LAZY] = "lazy",
                                      [AMLA_RESCALE_AMLA] = "amla",
                                      [AMLA_RESCALE_FLASH] = "flash"};
  return PICK(names, rescale);
}

const char *amla_backend_name(amla_backend backend) {
  static const char *const names[] = {[AMLA_BACKEND_AUTO] = "auto",
                                      [AMLA_BACKEND_REF] = "ref",
                                      [AMLA_BACKEND_CPU] = "cpu",
                                      [AMLA_BACKEND_CUDA] = "cuda",
                                      [AMLA_BACKEND_NPU] = "npu"};
  return PICK(names, backend);
}

const char *amla_p_form_name(amla_p_form form) {
  static const char *const names[] = {[AMLA_P_DEFAULT] = "default",
                                      [AMLA_P_F32] = "f32",
                                      [AMLA_P_BF16X2] = "bf16x2",
                                      [AMLA_P_BF16] = "bf16"};
  return PICK(names, form);
}

const char *amla_q_form_name(amla_q_form form) {
  static const char *const names[] = {
      [AMLA_Q_DEFAULT] = "default", [AMLA_Q_BF16X2] = "bf16x2", [AMLA_Q_BF16X3] = "bf16x3"};
  return PICK(names, form);
}

const char *amla_kv_round_name(amla_kv_round round) {
  static const char *const names[] = {[AMLA_KV_EXACT] = "exact", [AMLA_KV_BF16] = "bf16"};
  return PICK(names, round);
}
