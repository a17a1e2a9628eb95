/* SPDX-License-Identifier: Apache-2.0
 *
 * What the C code of a kernel asks for itself: reads of UB and GM, who and where it is.
 */
#include "npu_core.h"

void npu_site(const char *file, int32_t line) { npu_self->file = file, npu_self->line = line; }

/* ---- Reads of the C code ---- */

static void read_scalar(npu_opcode op, npu_space space, const void *src) {
  npu_core *core = npu_self;
  npu_chip *chip = core->chip;
  npu_instr i = npu_make_sync(core, op, NPU_PIPE_S, NPU_PIPE_S, 0);
  const npu_range range = {space, ACCESS_READ, "src", (uintptr_t)src, 1, 1, 4, 0, 0, 4, 0,
                           0,     0,           0,     false};
  if (op == OP_READ_UB && core->subcore < 0) {
    npu_refuse(core, &i, "core", core->subcore, "an instruction of the AIV");
    npu_stop_here(core);
  }
  if (!npu_check_range(core, &i, &range))
    npu_stop_here(core);
  npu_append(core, NPU_PIPE_S, &i); /* its cycles */
  if (chip->checks_written)
    npu_written_check(core, NPU_PIPE_S, &i, &range, 1);
  if (!chip->race)
    return;
  core->pipe[NPU_PIPE_S].started++;
  npu_clock_release(core->known);
  core->known = NULL;
  npu_race_check(core, NPU_PIPE_S, &i, &range, 1);
}

int32_t npu_read_ub_s32(NPU_UB const int32_t *src, int32_t assumed) {
  read_scalar(OP_READ_UB, SPACE_UB, src);
  return npu_self->chip->mode == NPU_FUNCTIONAL ? *src : assumed;
}

float npu_read_ub_f32(NPU_UB const float *src, float assumed) {
  read_scalar(OP_READ_UB, SPACE_UB, src);
  return npu_self->chip->mode == NPU_FUNCTIONAL ? *src : assumed;
}

int32_t npu_read_gm_s32(NPU_GM const int32_t *src) {
  read_scalar(OP_READ_GM, SPACE_GM, src);
  return *src;
}

/* ---- Who and where ---- */

int32_t npu_block_index(void) { return npu_self->block; }
int32_t npu_block_count(void) { return npu_self->chip->blocks; }
int32_t npu_subcore(void) { return npu_self->subcore > 0 ? 1 : 0; }

static void *local(npu_space space, uint32_t offset_bytes) {
  return (void *)((uintptr_t)npu_self->local[space] + offset_bytes);
}

/* Core 0 of this AI core: the AIC. */
static const npu_core *core_of_block(int32_t i) {
  return &npu_self->chip->core[npu_self->block * CORES_PER_BLOCK + i];
}

NPU_L1 void *npu_l1(uint32_t offset_bytes) {
  return (void *)((uintptr_t)core_of_block(0)->local[SPACE_L1] + offset_bytes);
}
NPU_UB void *npu_ub_of(int32_t subcore, uint32_t offset_bytes) {
  return (void *)((uintptr_t)core_of_block(subcore > 0 ? 2 : 1)->local[SPACE_UB] + offset_bytes);
}
NPU_L0A void *npu_l0a(uint32_t offset_bytes) { return local(SPACE_L0A, offset_bytes); }
NPU_L0B void *npu_l0b(uint32_t offset_bytes) { return local(SPACE_L0B, offset_bytes); }
NPU_L0C void *npu_l0c(uint32_t offset_bytes) { return local(SPACE_L0C, offset_bytes); }
NPU_UB void *npu_ub(uint32_t offset_bytes) { return local(SPACE_UB, offset_bytes); }
