/* SPDX-License-Identifier: Apache-2.0
 *
 * Plans: check, choose a backend, let it prepare; then check the tensors and run.
 */
#include "plan.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "refuse.h"
#include "float_environment.h"
#include "load_backend.h"
#include "problem.h"

/* Files and the tests' bit patterns are little-endian, and no big-endian machine has ever run this.
 */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "AMLA needs a little-endian machine"
#endif

/* The backend's table; NULL with a reason when it is absent. */
static const amla_backend_ops *find_backend(amla_backend id, const char **reason) {
  *reason = NULL;
  if (id == AMLA_BACKEND_REF)
    return &amla_backend_ref;
  if (id == AMLA_BACKEND_CPU)
    return &amla_backend_cpu;
  return amla_backend_load(id, reason);
}

/* Options and problem say which, and the backend what it takes. */
static amla_status choose_backend(amla_plan *p, amla_detail *detail) {
  const char *reason;
  const int device = p->problem.memory == AMLA_MEMORY_DEVICE;
  if (p->options.backend == AMLA_BACKEND_AUTO)
    p->options.backend = device ? AMLA_BACKEND_CUDA : AMLA_BACKEND_CPU;
  if (device && p->options.backend != AMLA_BACKEND_CUDA)
    INVALID("memory=device: backend=%s needs host memory", amla_backend_name(p->options.backend));
  p->backend = find_backend(p->options.backend, &reason);
  if (!p->backend)
    UNSUPPORTED("backend=%s: %s", amla_backend_name(p->options.backend), reason);
  if (p->backend->device_memory && !device)
    INVALID("memory=host: backend=%s needs device memory", p->backend->name);
  if (p->problem.sk == 0 && p->backend->id > AMLA_BACKEND_CPU) /* they divide by it */
    UNSUPPORTED("sk=0: backend=%s needs >= 1", p->backend->name);
  const amla_p_form form = p->options.p_form;
  if ((form == AMLA_P_F32 || form == AMLA_P_BF16X2) && p->backend->id > AMLA_BACKEND_CPU)
    UNSUPPORTED("p_form=%s: backend=%s rounds P to 16 bits", amla_p_form_name(form),
                p->backend->name);
  if (p->backend->id > AMLA_BACKEND_CPU)
    TRY(amla_plan_check_dense(p->backend->name, &p->problem, &p->options, detail));
  return p->backend->prepare(p, detail);
}

static amla_status create(amla_plan **plan, const amla_problem *problem,
                          const amla_options *options, amla_detail *detail) {
  amla_plan p = {0};
  if (!plan)
    INVALID("plan=NULL: must point to where the plan goes");
  *plan = NULL;
  amla_status status = amla_problem_check(problem, &p.problem, detail);
  if (status == AMLA_OK)
    status = amla_options_check(options, &p.options, detail);
  if (status == AMLA_OK)
    status = choose_backend(&p, detail);
  if (status != AMLA_OK)
    return status;

  *plan = malloc(sizeof p);
  if (!*plan) {
    if (p.backend->release)
      p.backend->release(&p);
    return amla_refuse(detail, AMLA_OUT_OF_MEMORY, "plan: no memory for %zu bytes", sizeof p);
  }
  memcpy(*plan, &p, sizeof p);
  return amla_accept(detail);
}

amla_status amla_plan_create(amla_plan **plan, const amla_problem *problem,
                             const amla_options *options, amla_detail *detail) {
  const fenv_t callers = amla_enter_environment();
  const amla_status status = create(plan, problem, options, detail);
  amla_leave_environment(&callers);
  return status;
}

void amla_plan_destroy(amla_plan *plan) {
  if (plan && plan->backend->release)
    plan->backend->release(plan);
  free(plan);
}

size_t amla_plan_scratch_bytes(const amla_plan *plan) { return plan ? plan->scratch_bytes : 0; }

int amla_plan_describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  if (capacity_bytes > 0 && text)
    text[0] = '\0';
  if (!plan)
    return 0;
  const fenv_t callers = amla_enter_environment();
  const int length = plan->backend->describe(plan, text, text ? capacity_bytes : 0);
  amla_leave_environment(&callers);
  return length;
}

amla_status amla_plan_run(const amla_plan *plan, const amla_tensors *tensors, void *scratch,
                          size_t scratch_bytes, amla_detail *detail) {
  if (!plan)
    INVALID("plan=NULL: must be a plan");
  amla_tensors t;
  amla_status status = amla_tensors_check(&plan->problem, tensors, &t, detail);
  if (status != AMLA_OK)
    return status;
  if (plan->backend->id > AMLA_BACKEND_CPU)
    TRY(amla_tensors_check_dense(plan->backend->name, &t, detail));
  if (scratch_bytes < plan->scratch_bytes)
    INVALID("scratch_bytes=%zu: must be >= %zu", scratch_bytes, plan->scratch_bytes);
  if (!scratch && plan->scratch_bytes > 0)
    INVALID("scratch=NULL: must point to %zu bytes", plan->scratch_bytes);

  if (plan->backend->own_environment) {
    status = plan->backend->run(plan, &t, scratch, detail);
  } else {
    const fenv_t callers = amla_enter_environment();
    status = plan->backend->run(plan, &t, scratch, detail);
    amla_leave_environment(&callers);
  }
  return status == AMLA_OK ? amla_accept(detail) : status;
}

/* How much of a struct that we fill a caller of another version knows. */
static size_t known_bytes(uint32_t struct_bytes, size_t our_bytes) {
  return struct_bytes < our_bytes ? struct_bytes : our_bytes;
}

static amla_status check_info(uint32_t struct_bytes, size_t first_bytes, amla_detail *detail) {
  if (struct_bytes >= first_bytes)
    return AMLA_OK;
  INVALID("info.struct_bytes=%u: must be >= %zu, use its INIT macro", struct_bytes, first_bytes);
}

amla_status amla_plan_query(const amla_plan *plan, amla_plan_info *info, amla_detail *detail) {
  static const size_t first_bytes = offsetof(amla_plan_info, kernel) + sizeof info->kernel;
  amla_plan_info full = AMLA_PLAN_INFO_INIT;
  if (!plan)
    INVALID("plan=NULL: must be a plan");
  if (!info)
    INVALID("info=NULL: must point to a struct");
  TRY(check_info(info->struct_bytes, first_bytes, detail));
  full.struct_bytes = info->struct_bytes;
  full.backend = plan->backend->id;
  full.rescale = plan->options.rescale;
  full.threads = plan->options.threads;
  plan->backend->query(plan, &full);
  memcpy(info, &full, known_bytes(info->struct_bytes, sizeof full));
  return amla_accept(detail);
}

amla_status amla_backend_query(amla_backend backend, amla_backend_info *info, amla_detail *detail) {
  static const size_t first_bytes = offsetof(amla_backend_info, reason) + sizeof info->reason;
  amla_backend_info full = AMLA_BACKEND_INFO_INIT;
  if (backend < AMLA_BACKEND_REF || backend > AMLA_BACKEND_NPU)
    INVALID("backend=%d: must be in %d..%d", (int)backend, AMLA_BACKEND_REF, AMLA_BACKEND_NPU);
  if (!info)
    INVALID("info=NULL: must point to a struct");
  TRY(check_info(info->struct_bytes, first_bytes, detail));
  const char *reason;
  const amla_backend_ops *ops = find_backend(backend, &reason);
  amla_options options; /* for the environment's ISA cap */
  TRY(amla_options_check(NULL, &options, detail));
  full.struct_bytes = info->struct_bytes;
  full.available = ops != NULL;
  strncpy(full.name, amla_backend_name(backend), sizeof full.name - 1);
  strncpy(full.reason, ops ? "" : reason, sizeof full.reason - 1);
  strncpy(full.isa, ops ? ops->isa(options.isa) : "", sizeof full.isa - 1);
  memcpy(info, &full, known_bytes(info->struct_bytes, sizeof full));
  return amla_accept(detail);
}
