/* SPDX-License-Identifier: Apache-2.0
 *
 * A backend in a shared object that computes nothing and says how often it was asked. Built twice:
 * as npu, and with FAKE_PLAN_BYTES of another library's plan as cuda, which the loader must refuse.
 */
#include <stdio.h>

#include "src/plan.h"

#ifndef FAKE_PLAN_BYTES
#define FAKE_PLAN_BYTES sizeof(amla_plan)
#endif

static int prepared, released;

static const char *absent(void) { return NULL; }

static const char *isa(amla_isa cap) {
  (void)cap;
  return "fake";
}

static amla_status prepare(amla_plan *plan, amla_detail *detail) {
  (void)plan, (void)detail;
  prepared++;
  return AMLA_OK;
}

static void release(amla_plan *plan) {
  (void)plan;
  released++;
}

static void query(const amla_plan *plan, amla_plan_info *info) { (void)plan, (void)info; }

static int describe(const amla_plan *plan, char *text, size_t capacity_bytes) {
  (void)plan;
  return snprintf(text, capacity_bytes, "fake, %d prepared, %d released", prepared, released);
}

static amla_status run(const amla_plan *plan, const amla_tensors *tensors, void *scratch,
                       amla_detail *detail) {
  (void)plan, (void)tensors, (void)scratch, (void)detail;
  return AMLA_OK;
}

const amla_backend_ops *amla_backend_entry_1(const char *library_version);

#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const amla_backend_ops *
amla_backend_entry_1(const char *library_version) {
  static const amla_backend_ops ops = {.plan_bytes = FAKE_PLAN_BYTES,
                                       .id = AMLA_BACKEND_NPU,
                                       .name = "npu",
                                       .absent = absent,
                                       .isa = isa,
                                       .prepare = prepare,
                                       .release = release,
                                       .query = query,
                                       .describe = describe,
                                       .run = run};
  (void)library_version;
  return &ops;
}
