/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads of bytes that nobody wrote. One bit per byte of every buffer and of every piece of GM that
 * the host has not written: set by what an instruction writes, looked at by what it reads. Bits of
 * GM live as long as the piece; bits of a core's buffers for one launch. What a load into L0 pads a
 * fractal with counts as written.
 */
#include "npu_core.h"

#include <string.h>

typedef struct operand { /* being looked at */
  uint64_t *bits;
  uintptr_t origin, first, end; /* of the bytes that nobody wrote; none while first == end */
} operand;

/* ---- Bits ---- */

/* Bits [begin, end) of word w. */
static uint64_t part(size_t w, uintptr_t begin, uintptr_t end) {
  const uint64_t from = w == begin / 64 ? ~(uint64_t)0 << begin % 64 : ~(uint64_t)0;
  return w == end / 64 ? from & (((uint64_t)1 << end % 64) - 1) : from;
}

static void write_run(void *context, uintptr_t base, int64_t bytes) {
  const operand *o = context;
  const uintptr_t begin = base - o->origin, end = begin + (uintptr_t)bytes;
  for (size_t w = begin / 64; w * 64 < end; w++)
    o->bits[w] |= part(w, begin, end);
}

static int lowest_bit(uint64_t x) {
  int bit = 0;
  while (!(x >> bit & 1))
    bit++;
  return bit;
}

static int highest_bit(uint64_t x) {
  int bit = 63;
  while (!(x >> bit & 1))
    bit--;
  return bit;
}

static void read_run(void *context, uintptr_t base, int64_t bytes) {
  operand *o = context;
  const uintptr_t begin = base - o->origin, end = begin + (uintptr_t)bytes;
  for (size_t w = begin / 64; w * 64 < end; w++) {
    const uint64_t missing = part(w, begin, end) & ~o->bits[w];
    if (!missing)
      continue;
    const uintptr_t first = o->origin + w * 64 + (uintptr_t)lowest_bit(missing);
    const uintptr_t last = o->origin + w * 64 + (uintptr_t)highest_bit(missing);
    if (o->first == o->end || first < o->first)
      o->first = first;
    if (last + 1 > o->end)
      o->end = last + 1;
  }
}

/* ---- Operands ---- */

/* Where the bits of a range are; bits NULL: all of it counts as written. */
static operand operand_of(npu_core *core, const npu_range *r) {
  npu_region *region = r->space == SPACE_GM ? npu_find_region(core->chip, r->base) : NULL;
  npu_core *owner = npu_owner(core, r);
  operand o = {NULL, region ? (uintptr_t)region->base : (uintptr_t)owner->local[r->space], 0, 0};
  uint64_t **bits = region ? &region->written : &owner->written[r->space];
  if (region && region->host_written)
    return o;
  if (!*bits)
    *bits = npu_map(
        npu_bitmap_bytes(region ? region->bytes : (size_t)npu_buffer_bytes(core->chip, r->space)));
  if (!*bits)
    core->chip->stopped = core->chip->out_of_memory = true;
  o.bits = *bits;
  return o;
}

static bool is_told(npu_chip *chip, npu_place p) {
  for (int32_t t = 0; t < chip->n_told_unwritten; t++) {
    const npu_place *told = &chip->told_unwritten[t];
    if (told->file == p.file && told->line == p.line && told->field == p.field)
      return true;
  }
  if (chip->n_told_unwritten < TOLD_UNWRITTEN)
    chip->told_unwritten[chip->n_told_unwritten++] = p;
  return false;
}

/* In words once for each operand in the kernel's text. */
static void report(npu_core *core, npu_pipe pipe, const npu_instr *i, const npu_range *r,
                   uintptr_t first, uintptr_t end) {
  char who[160], where[96];
  if (is_told(core->chip, (npu_place){i->file, r->field, i->line})) {
    core->chip->report->errors[NPU_ERROR_UNWRITTEN]++;
    return;
  }
  npu_describe_instr(core, pipe, core->pipe[pipe].started, npu_ops[i->op].name, i->file, i->line,
                     who, sizeof who);
  npu_report_error(core->chip, NPU_ERROR_UNWRITTEN, "unwritten: %s reads %s=%s, which nobody wrote",
                   who, r->field, npu_describe_bytes(core, r, first, end, where, sizeof where));
}

static bool reads(const npu_range *r) {
  return r->access == ACCESS_READ || r->access == ACCESS_ADD_S32 || r->access == ACCESS_ADD_F32 ||
         r->reads_old;
}

static void check_read(npu_core *core, npu_pipe pipe, const npu_instr *i, const npu_range *r) {
  npu_range used = *r;
  operand o = operand_of(core, r);
  if (!o.bits)
    return;
  if (r->used_bytes)
    used.run_bytes = r->used_bytes;
  npu_walk(&used, read_run, &o);
  if (o.first != o.end)
    report(core, pipe, i, r, o.first, o.end);
}

void npu_written_check(npu_core *core, npu_pipe pipe, const npu_instr *i, const npu_range *ranges,
                       int32_t n) {
  for (int32_t r = 0; r < n; r++)
    if (reads(&ranges[r]))
      check_read(core, pipe, i, &ranges[r]);
  for (int32_t r = 0; r < n; r++) {
    operand o =
        ranges[r].access == ACCESS_WRITE ? operand_of(core, &ranges[r]) : (operand){NULL, 0, 0, 0};
    if (o.bits)
      npu_walk(&ranges[r], write_run, &o);
  }
}

/* ---- Begin, end ---- */

/* What a launch that does not look writes, later launches cannot know: all counts as written then.
 */
void npu_written_begin(npu_chip *chip) {
  for (int32_t r = 0; r < chip->n_regions && !chip->checks_written; r++)
    if (chip->region[r].writable)
      chip->region[r].host_written = true;
}

void npu_written_forget_core(npu_core *core) {
  for (int s = SPACE_L1; s < SPACES; s++)
    npu_unmap(core->written[s],
              npu_bitmap_bytes((size_t)npu_buffer_bytes(core->chip, (npu_space)s)));
}
