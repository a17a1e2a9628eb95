/* SPDX-License-Identifier: Apache-2.0
 *
 * L2, HBM and the bandwidth that all cores of a die share. Transfers move whole pieces of 128 bytes
 * (vendor documentation, hardware constraints: moves are cut to 128, 256 or 512 bytes, rounded up).
 * L2 keeps the 512-byte lines used last (LRU), write-back, empty at launch; a line written is
 * allocated without being fetched, a line added to is fetched. Bandwidth is a queue: transfers are
 * served in the order in which they start, each at the full rate of the shared resource, so many at
 * once get their share over time, and none is ever faster than its own pipe. The dies do not share:
 * every tensor is taken to lie in the HBM of the die that asks for it.
 */
#include "npu_core.h"

#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 512, PIECE_BYTES = 128, FRACTION = 256 };

/* Of the LRU list. Line 0 is no line but the ring's seam: its older is the newest line, its newer
 * the oldest. */
typedef struct npu_link {
  int32_t older, newer;
} npu_link;

typedef struct npu_cache { /* of one die */
  npu_link *link;          /* by line number + 1, as is state */
  uint8_t *state;
  int64_t resident, capacity, lines;
  npu_server read, total, hbm;
} npu_cache;

enum { IN_L2 = 1, DIRTY = 2 };

static npu_server make_server(double bytes_per_second, double ghz) {
  const npu_server s = {0, bytes_per_second / (ghz * 1e9)};
  return s;
}

bool npu_cache_begin(npu_chip *chip) {
  const npu_preset *p = &chip->preset;
  chip->cache = calloc((size_t)p->dies, sizeof *chip->cache);
  if (!chip->cache)
    return false;
  for (int32_t die = 0; die < p->dies; die++) {
    npu_cache *c = &chip->cache[die];
    c->lines = chip->lines + 1;
    c->capacity = p->l2_bytes / LINE_BYTES;
    c->read = make_server(p->l2_read_bytes_per_second, p->ghz);
    c->total = make_server(p->l2_bytes_per_second, p->ghz);
    c->hbm = make_server(p->hbm_bytes_per_second, p->ghz);
    c->link = npu_map((size_t)c->lines * sizeof *c->link);
    c->state = npu_map((size_t)c->lines);
    if (!c->link || !c->state)
      return false;
  }
  return true;
}

void npu_cache_end(npu_chip *chip) {
  for (int32_t die = 0; chip->cache && die < chip->preset.dies; die++) {
    npu_unmap(chip->cache[die].link,
              (size_t)chip->cache[die].lines * sizeof *chip->cache[die].link);
    npu_unmap(chip->cache[die].state, (size_t)chip->cache[die].lines);
  }
  free(chip->cache);
  chip->cache = NULL;
}

/* ---- Residency ---- */

static void unlink_line(npu_cache *c, int32_t line) {
  c->link[c->link[line].older].newer = c->link[line].newer;
  c->link[c->link[line].newer].older = c->link[line].older;
}

static void link_newest(npu_cache *c, int32_t line) {
  const int32_t newest = c->link[0].older;
  c->link[line].older = newest, c->link[line].newer = 0;
  c->link[newest].newer = line;
  c->link[0].older = line;
}

/* Touches a line; returns whether it has to be fetched, and counts what is written back to make
 * room in *written. */
static bool touch(npu_cache *c, int32_t line, npu_access access, int64_t *written) {
  const bool resident = c->state[line] & IN_L2;
  if (resident && c->link[0].older == line) {
    if (access != ACCESS_READ)
      c->state[line] |= DIRTY;
    return false;
  }
  if (resident)
    unlink_line(c, line);
  else if (c->resident < c->capacity)
    c->resident++;
  else {
    const int32_t oldest = c->link[0].newer;
    if (c->state[oldest] & DIRTY)
      *written += LINE_BYTES;
    c->state[oldest] = 0;
    unlink_line(c, oldest);
  }
  link_newest(c, line);
  c->state[line] |= access == ACCESS_READ ? IN_L2 : IN_L2 | DIRTY;
  return !resident && access != ACCESS_WRITE;
}

/* ---- Bandwidth ---- */

static int64_t serve(npu_server *s, int64_t now, int64_t bytes) {
  const int64_t start = now * FRACTION > s->free_at ? now * FRACTION : s->free_at;
  s->free_at = start + (int64_t)((double)bytes * FRACTION / s->bytes_per_cycle);
  return (s->free_at + FRACTION - 1) / FRACTION;
}

typedef struct transfer {
  npu_chip *chip;
  npu_cache *cache;
  npu_region *region;
  npu_access access;
  int64_t bytes, pieces, fetched, written;
} transfer;

static void touch_run(void *context, uintptr_t base, int64_t bytes) {
  transfer *t = context;
  const uintptr_t origin = (uintptr_t)t->region->base / LINE_BYTES;
  const int64_t first = (int64_t)(base / LINE_BYTES - origin),
                last = (int64_t)((base + (uintptr_t)bytes - 1) / LINE_BYTES - origin);
  t->bytes += bytes;
  t->pieces += (int64_t)((base + (uintptr_t)bytes - 1) / PIECE_BYTES - base / PIECE_BYTES) + 1;
  for (int64_t line = first; line <= last; line++)
    if (touch(t->cache, (int32_t)(t->region->first_line + line) + 1, t->access, &t->written))
      t->fetched += LINE_BYTES;
}

npu_moved npu_cache_transfer(npu_chip *chip, const npu_core *core, const npu_range *range) {
  npu_cache *c = &chip->cache[core->block / chip->preset.cores_per_die];
  transfer t = {chip, c, npu_find_region(chip, range->base), range->access, 0, 0, 0, 0};
  npu_walk(range, touch_run, &t);

  const int64_t moved = t.pieces * PIECE_BYTES;
  const int is_add = range->access == ACCESS_ADD_S32 || range->access == ACCESS_ADD_F32;
  const double times = is_add ? 1 / chip->cost[COST_L2_ATOMIC].rate : 1;
  int64_t end = serve(&c->total, chip->now, (int64_t)((double)moved * times));
  if (range->access == ACCESS_READ) {
    const int64_t read_end = serve(&c->read, chip->now, moved);
    if (read_end > end)
      end = read_end;
    chip->report->l2_read_bytes += t.bytes;
  } else {
    chip->report->l2_write_bytes += t.bytes;
  }
  if (t.fetched + t.written) {
    const int64_t hbm_end = serve(&c->hbm, chip->now, t.fetched + t.written);
    if (t.fetched && hbm_end > end)
      end = hbm_end; /* nobody waits for a write-back */
  }
  chip->report->hbm_read_bytes += t.fetched, chip->report->hbm_write_bytes += t.written;
  return (npu_moved){end, moved, t.fetched > 0};
}
