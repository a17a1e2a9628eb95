/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory of the simulated NPU: sizes, pieces of GM, bounds and alignment of operands.
 */
#include "npu_core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

const char *const npu_space_name[SPACES] = {"GM", "L1", "L0A", "L0B", "L0C", "UB"};

enum { LINE_BYTES = 512 };

/* ---- Buffers of a core ---- */

int32_t npu_buffer_bytes(const npu_chip *chip, npu_space space) {
  switch (space) {
  case SPACE_L1: return NPU_L1_BYTES;
  case SPACE_L0A: return NPU_L0A_BYTES;
  case SPACE_L0B: return NPU_L0B_BYTES;
  case SPACE_L0C: return chip->preset.l0c_kb * 1024;
  case SPACE_UB: return chip->preset.ub_kb * 1024;
  default: return 0;
  }
}

npu_core *npu_owner(const npu_core *core, const npu_range *r) {
  npu_core *aic = &core->chip->core[core->id / CORES_PER_BLOCK * CORES_PER_BLOCK];
  if (r->space != SPACE_UB)
    return aic;
  if (core->subcore >= 0)
    return aic + 1 + core->subcore;
  const uintptr_t in_second = r->base - (uintptr_t)aic[2].local[SPACE_UB];
  return in_second < (uintptr_t)npu_buffer_bytes(core->chip, SPACE_UB) ? aic + 2 : aic + 1;
}

void *npu_map(size_t bytes) {
  void *p =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

void npu_unmap(void *memory, size_t bytes) {
  if (memory)
    munmap(memory, bytes);
}

/* ---- Pieces of GM ---- */

static bool overlaps_any(const npu_chip *chip, const char *base, size_t bytes) {
  for (int32_t r = 0; r < chip->n_regions; r++)
    if (base < chip->region[r].base + chip->region[r].bytes && chip->region[r].base < base + bytes)
      return true;
  return false;
}

static int add_region(npu_chip *chip, char *base, size_t bytes, const char *name, bool writable,
                      bool owned) {
  if (bytes == 0)
    return 0;
  if (!base || overlaps_any(chip, base, bytes))
    return -1;
  if (chip->n_regions == chip->region_capacity) {
    const int32_t capacity = chip->region_capacity ? 2 * chip->region_capacity : 16;
    npu_region *grown = realloc(chip->region, (size_t)capacity * sizeof *grown);
    if (!grown)
      return -1;
    chip->region = grown, chip->region_capacity = capacity;
  }
  npu_region *r = &chip->region[chip->n_regions++];
  memset(r, 0, sizeof *r);
  r->base = base, r->bytes = bytes, r->writable = writable, r->owned = owned,
  r->first_line = chip->lines;
  r->host_written = !writable;
  snprintf(r->name, sizeof r->name, "%s", name ? name : "?");
  chip->lines += (int64_t)(bytes / LINE_BYTES) + 2; /* a piece may start and end inside a line */
  return 0;
}

void *npu_gm_alloc(npu_chip *chip, size_t bytes, const char *name) {
  char *base = npu_map(bytes ? bytes : 1);
  if (base && add_region(chip, base, bytes ? bytes : 1, name, true, true)) {
    npu_unmap(base, bytes);
    return NULL;
  }
  if (base && chip->mode == NPU_FUNCTIONAL)
    memset(base, 0xff, bytes);
  return base;
}

int npu_gm_register(npu_chip *chip, void *memory, size_t bytes, const char *name, int writable) {
  return add_region(chip, memory, bytes, name, writable != 0, false);
}

int npu_gm_register_const(npu_chip *chip, const void *memory, size_t bytes, const char *name) {
  return add_region(chip, (char *)(uintptr_t)memory, bytes, name, false,
                    false); /* never written: not writable */
}

void npu_gm_written(npu_chip *chip, const void *memory) {
  npu_region *region = npu_find_region(chip, (uintptr_t)memory);
  if (region)
    region->host_written = true;
}

void npu_gm_forget_all(npu_chip *chip) {
  for (int32_t r = 0; r < chip->n_regions; r++) {
    npu_unmap(chip->region[r].written, npu_bitmap_bytes(chip->region[r].bytes));
    if (chip->region[r].owned)
      npu_unmap(chip->region[r].base, chip->region[r].bytes);
  }
  chip->n_regions = 0;
  chip->lines = 0;
}

npu_region *npu_find_region(npu_chip *chip, uintptr_t address) {
  for (int32_t r = 0; r < chip->n_regions; r++)
    if (address - (uintptr_t)chip->region[r].base < chip->region[r].bytes)
      return &chip->region[r];
  return NULL;
}

/* ---- Operands ---- */

static int32_t last_lane(uint64_t mask) {
  int32_t last = -1;
  for (; mask; mask >>= 1)
    last++;
  return last;
}

/* One past the last byte that counts, from the range's base. */
static int64_t extent(const npu_range *r) {
  int64_t most = 0;
  if (!r->lane_bytes)
    return (r->outer - 1) * r->outer_stride + (r->inner - 1) * r->inner_stride + r->run_bytes;
  for (int32_t back = 0; back < 2 && back < r->outer;
       back++) { /* the last repeat, and the last one of full mask */
    const int32_t lane = last_lane(back ? r->mask : r->last_mask), per_run = 32 / r->lane_bytes;
    const int64_t end = (r->outer - 1 - back) * r->outer_stride + lane / per_run * r->inner_stride +
                        (lane % per_run + 1) * r->lane_bytes;
    if (lane >= 0 && end > most)
      most = end;
  }
  return most;
}

static bool check_gm(npu_core *core, const npu_instr *i, const npu_range *r, int64_t bytes) {
  const npu_region *region = npu_find_region(core->chip, r->base);
  char rule[200];
  if (!region)
    return npu_refuse(core, i, r->field, (long long)r->base, "not in any piece of global memory");
  const int64_t offset = (int64_t)(r->base - (uintptr_t)region->base);
  if (offset + bytes > (int64_t)region->bytes) {
    snprintf(rule, sizeof rule,
             "the offset in GM piece %s, of %zu bytes; this touches %lld bytes from there",
             region->name, region->bytes, (long long)bytes);
    return npu_refuse(core, i, r->field, offset, rule);
  }
  if (r->access != ACCESS_READ && !region->writable) {
    snprintf(rule, sizeof rule, "the offset in GM piece %s, which is read-only", region->name);
    return npu_refuse(core, i, r->field, offset, rule);
  }
  return true;
}

bool npu_check_range(npu_core *core, const npu_instr *i, const npu_range *r) {
  const int64_t bytes = extent(r);
  char rule[200];
  const int32_t size = npu_buffer_bytes(core->chip, r->space);
  const uintptr_t from = r->space == SPACE_GM ? 0 : (uintptr_t)npu_owner(core, r)->local[r->space];
  if (r->base % (uintptr_t)r->align) {
    snprintf(rule, sizeof rule, "the address in %s must be a multiple of %d",
             npu_space_name[r->space], r->align);
    return npu_refuse(core, i, r->field, (long long)(r->base - from), rule);
  }
  if (r->space == SPACE_GM)
    return check_gm(core, i, r, bytes);
  const int64_t offset = (int64_t)(r->base - from);
  if (offset >= 0 && offset + bytes <= size)
    return true;
  snprintf(rule, sizeof rule, "the offset in %s, of %d bytes; this touches %lld bytes from there",
           npu_space_name[r->space], size, (long long)bytes);
  return npu_refuse(core, i, r->field, offset, rule);
}

const char *npu_describe_bytes(const npu_core *core, const npu_range *r, uintptr_t first,
                               uintptr_t end, char *text, size_t capacity) {
  const npu_region *region = r->space == SPACE_GM ? npu_find_region(core->chip, first) : NULL;
  const uintptr_t origin =
      region ? (uintptr_t)region->base : (uintptr_t)npu_owner(core, r)->local[r->space];
  const char *const gap = region ? " " : "";
  const char *const name = region ? region->name : "";
  snprintf(text, capacity, "%s%s%s [%lld, %lld)", npu_space_name[r->space], gap, name,
           (long long)(first - origin), (long long)(end - origin));
  return text;
}

/* ---- Runs of bytes ---- */

/* Lanes lane, lane + 1, ... of one run: visits each stretch of set bits. */
static void walk_lanes(uintptr_t run, uint64_t lanes, int32_t lane_bytes, npu_visit *visit,
                       void *context) {
  for (int32_t first = 0; lanes >> first;) {
    int32_t end = first;
    while (lanes >> end & 1)
      end++;
    if (end > first)
      visit(context, run + (uintptr_t)(first * lane_bytes), (int64_t)(end - first) * lane_bytes);
    first = end + 1;
  }
}

void npu_walk(const npu_range *r, npu_visit *visit, void *context) {
  const bool dense = r->inner_stride == r->run_bytes;
  for (int32_t o = 0; o < r->outer; o++) {
    const uintptr_t base = r->base + (uintptr_t)(o * r->outer_stride);
    const uint64_t mask = o + 1 < r->outer ? r->mask : r->last_mask;
    if (dense && (!r->lane_bytes || mask == NPU_MASK_ALL)) {
      visit(context, base, (int64_t)r->inner * r->run_bytes);
      continue;
    }
    const int32_t per_run = r->lane_bytes ? 32 / r->lane_bytes : 0;
    for (int32_t n = 0; n < r->inner; n++) {
      const uintptr_t run = base + (uintptr_t)(n * r->inner_stride);
      if (!r->lane_bytes)
        visit(context, run, r->run_bytes);
      else
        walk_lanes(run, (uint32_t)(mask >> n * per_run & (((uint64_t)1 << per_run) - 1)),
                   r->lane_bytes, visit, context);
    }
  }
}
