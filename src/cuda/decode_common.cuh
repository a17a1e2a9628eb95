/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernels share: finding work, the reference of a row, storing a row, leaving partial
 * results and merging them. Everything is written with the functions of cuda_machine.cuh, so that
 * it runs on a GPU and in the emulation.
 */
#ifndef AMLA_DECODE_COMMON_CUH
#define AMLA_DECODE_COMMON_CUH

#include "cuda_machine.cuh"
#include "cuda_params.h"

#include <amla/amla_cuda.h>
#include <math.h>

namespace amla_kernel {

using namespace machine;

/* ---- Work ---- */

struct item {
  int32_t sequence, block, split, n_splits; /* n_splits 0: no work is left */
  int32_t place;                            /* in the line of all items that need a slot */
  int32_t length;                           /* of the sequence, clamped */
};

/* The keys of an item. */
struct span {
  int32_t first_row, n_rows; /* of the sequence's rows */
  int32_t end;               /* no row of the block sees a key from here on */
  int32_t common;            /* every row sees the keys before */
  int32_t tile_begin, tile_end;
};

/* What a block knows of its work, in shared memory: the item, its span, and the finder. Registers
 * are O's. */
enum { ITEM_AT = 0, SPAN_AT = 24, FINDER_AT = 48, WORK_BYTES = 68 };

/* The block's place in the line of items: tickets only grow, so it looks forward only. Kept in
 * shared memory: registers are O's. */
struct finder {
  int32_t sequence, items, places; /* items and places of all sequences before */
  int32_t base_tokens;
  int32_t ticket; /* the next one, in a cluster */
};

AMLA_DEVICE int32_t raw_length(const amla_cuda_params &p, int32_t sequence) {
  return p.seqlens_k ? p.seqlens_k[sequence] : p.sk;
}

AMLA_DEVICE int32_t sum_over_warp(int32_t x) { /* inclusive prefix sum over lanes */
  const int32_t lane = thread_id() & 31;
  for (int32_t by = 1; by < 32; by *= 2) {
    const int32_t left = shuffle_up(x, by);
    if (lane >= by)
      x += left;
  }
  return x;
}

AMLA_DEVICE void write_finder(uint32_t at, const finder &f) {
  sts_u32(at, (uint32_t)f.sequence);
  sts_u32(at + 4, (uint32_t)f.items);
  sts_u32(at + 8, (uint32_t)f.places);
  sts_u32(at + 12, (uint32_t)f.base_tokens);
  sts_u32(at + 16, (uint32_t)f.ticket);
}
AMLA_DEVICE finder read_finder(uint32_t at) {
  return {(int32_t)lds_u32(at), (int32_t)lds_u32(at + 4), (int32_t)lds_u32(at + 8),
          (int32_t)lds_u32(at + 12), (int32_t)lds_u32(at + 16)};
}

/* By a whole warp, once; at `at` lies the block's work. */
AMLA_DEVICE void start_finding(const amla_cuda_params &p, uint32_t at) {
  finder f = {0, 0, 0, p.split_base_tokens, block_index()};
  if (p.auto_items > 0) { /* needs the lengths of the whole batch */
    int64_t tokens = 0;
    for (int32_t first = 0; first < p.b; first += 32) {
      const int32_t sequence = first + (thread_id() & 31);
      const int32_t n = sequence < p.b ? amla_cuda_clamp_length(raw_length(p, sequence), p.sk) : 0;
      tokens += shuffle(sum_over_warp(n >> 5), 31) *
                INT64_C(32); /* in units of 32: 32 lengths may leave int32 */
    }
    f.base_tokens = amla_cuda_auto_base(tokens * p.n_blocks, p.auto_items, p.tile_tokens);
  }
  if ((thread_id() & 31) == 0) {
    write_finder(at + FINDER_AT, f);
    sts_u32(at + ITEM_AT + 12, 0); /* no item yet: no splits */
  }
  sync_warp();
}

/* By a whole warp: the item of a ticket, tickets in ascending order. */
AMLA_DEVICE item find_item(const amla_cuda_params &p, finder &f, int32_t ticket) {
  item w = {0, 0, 0, 0, 0, 0};
  const int32_t lane = thread_id() & 31;
  for (; f.sequence < p.b; f.sequence += 32) {
    const int32_t sequence = f.sequence + lane;
    const int32_t length =
        sequence < p.b ? amla_cuda_clamp_length(raw_length(p, sequence), p.sk) : 0;
    const int32_t n_splits =
        sequence < p.b ? amla_cuda_n_splits(length, f.base_tokens, p.max_splits) : 0;
    const int32_t items = n_splits * p.n_blocks, places = n_splits > 1 ? items : 0;
    const int32_t items_to = f.items + sum_over_warp(items),
                  places_to = f.places + sum_over_warp(places);
    const uint32_t beyond = vote(ticket < items_to);
    if (beyond) {
      int32_t at = 0;
      while (!(beyond >> at & 1u))
        at++;
      const int32_t within = ticket - shuffle(items_to - items, at);
      w.sequence = f.sequence + at;
      w.split = within / p.n_blocks;
      w.block = within % p.n_blocks;
      w.n_splits = shuffle(n_splits, at);
      w.place = shuffle(places_to - places, at) + within;
      w.length = shuffle(length, at);
      return w;
    }
    f.items = shuffle(items_to, 31);
    f.places = shuffle(places_to, 31);
  }
  return w;
}

AMLA_DEVICE span span_of(const amla_cuda_params &p, const item &w) {
  span s;
  s.first_row = w.block * p.block_rows;
  s.n_rows = amla_cuda_min(p.rows - s.first_row, p.block_rows);
  /* Thread blocks of a cluster walk over the same keys: those that the last of their rows sees. */
  const int32_t last_block = p.n_clusters > 0 ? w.block | 1 : w.block;
  const int32_t last_row = amla_cuda_min(p.rows, (last_block + 1) * p.block_rows) - 1;
  s.end = amla_cuda_visible(w.length, p.s_q, last_row / p.h_q, p.causal);
  /* The first row sees least. */
  s.common = amla_cuda_visible(w.length, p.s_q, s.first_row / p.h_q, p.causal);
  const int32_t n_tiles = amla_cuda_ceil_div(s.end, p.tile_tokens);
  s.tile_begin = amla_cuda_split_begin(n_tiles, w.n_splits, w.split);
  s.tile_end = amla_cuda_split_begin(n_tiles, w.n_splits, w.split + 1);
  return s;
}

/* By one warp: takes a ticket and leaves the item in shared memory at `at`, to be read after a
 * barrier. Where none is left, what is there stays. `work` is where start_finding began. */
AMLA_DEVICE void take_item(const amla_cuda_params &p, uint32_t work, uint32_t at) {
  const int32_t lane = thread_id() & 31;
  finder f = read_finder(work + FINDER_AT);
  int32_t ticket = f.ticket;
  f.ticket += 2 * p.n_clusters;
  if (lane == 0 && p.n_clusters == 0)
    ticket = (int32_t)atomic_add(p.ticket, 1u);
  const item w = find_item(p, f, shuffle(ticket, 0));
  if (lane != 0)
    return;
  write_finder(work + FINDER_AT, f);
  if (w.n_splits == 0)
    return;
  sts_u32(at, (uint32_t)w.sequence);
  sts_u32(at + 4, (uint32_t)w.block);
  sts_u32(at + 8, (uint32_t)w.split);
  sts_u32(at + 12, (uint32_t)w.n_splits);
  sts_u32(at + 16, (uint32_t)w.place);
  sts_u32(at + 20, (uint32_t)w.length);
  const span s = span_of(p, w);
  sts_u32(at + SPAN_AT, (uint32_t)s.first_row);
  sts_u32(at + SPAN_AT + 4, (uint32_t)s.n_rows);
  sts_u32(at + SPAN_AT + 8, (uint32_t)s.end);
  sts_u32(at + SPAN_AT + 12, (uint32_t)s.common);
  sts_u32(at + SPAN_AT + 16, (uint32_t)s.tile_begin);
  sts_u32(at + SPAN_AT + 20, (uint32_t)s.tile_end);
  if (w.split == 0 && w.block == 0 && raw_length(p, w.sequence) != w.length)
    atomic_or(p.status, AMLA_CUDA_STATUS_LENGTH);
}

/* Did the last ticket have an item? */
AMLA_DEVICE bool has_item(const amla_cuda_params &p, uint32_t at) {
  return (int32_t)lds_u32(at + FINDER_AT) < p.b;
}

AMLA_DEVICE item read_item(uint32_t at) {
  return {(int32_t)lds_u32(at),      (int32_t)lds_u32(at + 4),  (int32_t)lds_u32(at + 8),
          (int32_t)lds_u32(at + 12), (int32_t)lds_u32(at + 16), (int32_t)lds_u32(at + 20)};
}

AMLA_DEVICE span read_span(uint32_t at) {
  at += SPAN_AT;
  return {(int32_t)lds_u32(at),      (int32_t)lds_u32(at + 4),  (int32_t)lds_u32(at + 8),
          (int32_t)lds_u32(at + 12), (int32_t)lds_u32(at + 16), (int32_t)lds_u32(at + 20)};
}

/* Keys that row r of the block sees; rows past the last see none. */
AMLA_DEVICE int32_t row_limit(const amla_cuda_params &p, int32_t length, const span &s, int32_t r) {
  return r < s.n_rows ? amla_cuda_visible(length, p.s_q, (s.first_row + r) / p.h_q, p.causal) : 0;
}

/* An entry of the table, or -1 with a mark in the status word when there is no such page. */
AMLA_DEVICE int32_t valid_page(const amla_cuda_params &p, int32_t page) {
  if (page >= 0 && page < p.n_pages)
    return page;
  atomic_or(p.status, AMLA_CUDA_STATUS_PAGE);
  return -1;
}

/* The page that holds a token of a sequence. */
AMLA_DEVICE int32_t page_of(const amla_cuda_params &p, int32_t sequence, int32_t token) {
  return p.page_size == 0
             ? sequence
             : valid_page(p, p.block_table[(int64_t)sequence * p.max_pages + token / p.page_size]);
}

/* ---- The reference of a row and its two sums ---- */

struct row_state {
  float ref, sum, sum_rounded; /* log2 units; sum of P; sum of P as the matrix unit sees it */
};
AMLA_DEVICE row_state empty_row() { return {-INFINITY, 0.0f, 0.0f}; }

AMLA_DEVICE amla_cuda_factor factor_of(float shift, bool flash) {
  if (flash)
    return {exp2_approx(shift), 1.0f};
  return amla_cuda_shift_factor(shift);
}

/* Step 2: the next reference, given the largest visible score in log2 units. What O must be shifted
 * by: 0, or a negative number of powers of two (integers unless flash). */
template <bool F16> AMLA_DEVICE float advance(row_state &r, float max, bool flash) {
  const float next =
      flash ? fmaxf(r.ref, max) : amla_cuda_next_reference(r.ref, max, ceilf(max), F16);
  if (next == r.ref)
    return 0.0f;
  const float shift = r.ref - next;
  const amla_cuda_factor f = factor_of(shift, flash);
  r.sum = r.sum * f.a * f.b;
  r.sum_rounded = r.sum_rounded * f.a * f.b;
  r.ref = next;
  return shift;
}

/* Step 3, one element: t is a score in log2 units. A score that is not finite poisons the row; a
 * hidden one is selected away. */
AMLA_DEVICE float weight(float t, float ref, bool visible) {
  const float p = fmaf(0.0f, t, exp2_approx(t - ref));
  return visible ? p : 0.0f;
}

struct row_result {
  float factor; /* of the row of O; 0 = the row sees no key */
  float lse;
};

AMLA_DEVICE row_result finish_row(const amla_cuda_params &p, int32_t head, const row_state &r) {
  const float log2e = 1.44269504f, ln2 = 0.69314718f;
  if (r.sum == 0.0f)
    return {0.0f, -INFINITY};
  const float lse2 = r.ref + log2f(r.sum);
  const float sink = p.sinks ? 1.0f / (1.0f + exp2f(p.sinks[head] * log2e - lse2)) : 1.0f;
  return {sink / r.sum_rounded, p.lse_base2 ? lse2 : lse2 * ln2};
}

/* ---- Rows of results ---- */

AMLA_DEVICE float times(float o, float factor) {
  return factor == 0.0f ? 0.0f : o * factor;
} /* a row without keys is 0 even if a hidden V was NaN */

/* Element at of out. */
AMLA_DEVICE void store_one(const amla_cuda_params &p, int64_t at, float x) {
  if (p.out_type == AMLA_F32)
    ((float *)p.out)[at] = x;
  else
    ((uint16_t *)p.out)[at] =
        (uint16_t)(p.out_type == AMLA_F16 ? pack<true>(x, x) : pack<false>(x, x));
}

/* Elements at, at + 1 of out. */
AMLA_DEVICE void store_pair(const amla_cuda_params &p, int64_t at, float x, float y) {
  if (p.out_type == AMLA_F32) {
    float *out = (float *)p.out + at;
    out[0] = x;
    out[1] = y;
  } else {
    const uint32_t both = p.out_type == AMLA_F16 ? pack<true>(x, y) : pack<false>(x, y);
    if (p.vector_out) {
      *(uint32_t *)((uint16_t *)p.out + at) = both;
    } else {
      ((uint16_t *)p.out)[at] = (uint16_t)both;
      ((uint16_t *)p.out)[at + 1] = (uint16_t)(both >> 16);
    }
  }
}

AMLA_DEVICE void store_lse(const amla_cuda_params &p, const item &w, int32_t row, float lse) {
  if (p.lse)
    p.lse[amla_cuda_lse_offset(&p, w.sequence, row)] = lse;
}

/* ---- Partial results ---- */

AMLA_DEVICE int32_t slot_of(const amla_cuda_params &p, int32_t place) { return place % p.n_slots; }
AMLA_DEVICE float *slot_o(const amla_cuda_params &p, int32_t slot, int32_t row) {
  return p.partial_o + ((int64_t)slot * p.block_rows + row) * AMLA_CUDA_D_V;
}
AMLA_DEVICE float *slot_refs(const amla_cuda_params &p, int32_t slot) {
  return p.partial_ref + (int64_t)slot * 3 * p.block_rows;
}

/* Waits until the slot's last tenant has left. No deadlock: that tenant stands n_slots places
 * earlier, so all splits of its group have been taken, in order, by thread blocks that run; n_slots
 * is at least the places of a whole sequence. */
AMLA_DEVICE void wait_for_slot(const amla_cuda_params &p, int32_t place) {
  if (place < p.n_slots)
    return;
  const uint32_t wanted = (uint32_t)(place - p.n_slots + 1);
  const uint32_t *freed = &p.freed[slot_of(p, place)];
  for (uint32_t now = load_acquire(freed); now != wanted; now = load_acquire(freed))
    pause_while(freed, now);
}

/* ---- Merging: in pieces of a row's 128 columns, by warps of any thread block ---- */

enum { PIECES_OF_ROW = 4, SPLITS_AT_ONCE = 8 };

AMLA_DEVICE uint32_t *group_of(const amla_cuda_params &p, const item &w) {
  return p.groups + ((int64_t)w.sequence * p.n_blocks + w.block) * AMLA_CUDA_GROUP_WORDS;
}

/* What a split has of a row: its reference and sums, and four columns of O. */
struct row_part {
  row_state state;
  float o[4];
};
AMLA_DEVICE row_part load_part(const amla_cuda_params &p, int32_t slot, int32_t r, int32_t column) {
  const float *refs = slot_refs(p, slot);
  row_part x = {{refs[r], refs[p.block_rows + r], refs[2 * p.block_rows + r]}, {}};
  load_f32x4(slot_o(p, slot, r) + column, x.o);
  return x;
}
AMLA_DEVICE void add_part(const amla_cuda_params &p, row_part &total, const row_part &x) {
  if (x.state.sum == 0.0f)
    return; /* the row sees no key of this split */
  const float shift = x.state.ref == total.state.ref ? 0.0f : x.state.ref - total.state.ref;
  const amla_cuda_factor f = factor_of(shift, p.flash != 0);
  total.state.sum += x.state.sum * f.a * f.b;
  total.state.sum_rounded += x.state.sum_rounded * f.a * f.b;
#pragma unroll
  for (int32_t c = 0; c < 4; c++)
    total.o[c] += x.o[c] * f.a * f.b;
}

/* A piece of the group: its splits in ascending order, whoever wrote them. */
AMLA_DEVICE void merge_piece(const amla_cuda_params &p, const item &w, const span &s,
                             int32_t piece) {
  const int32_t r = piece / PIECES_OF_ROW, row = s.first_row + r;
  const int32_t column = piece % PIECES_OF_ROW * 128 + 4 * (thread_id() & 31);
  const int32_t first_place = w.place - w.split * p.n_blocks;
  row_part total = {empty_row(), {0.0f, 0.0f, 0.0f, 0.0f}};
  for (int32_t i = thread_id() & 31; i < w.n_splits; i += 32)
    total.state.ref =
        fmaxf(total.state.ref, slot_refs(p, slot_of(p, first_place + i * p.n_blocks))[r]);
#pragma unroll
  for (int32_t mask = 1; mask < 32; mask *= 2)
    total.state.ref = fmaxf(total.state.ref, shuffle_xor(total.state.ref, mask));
#pragma unroll 1
  for (int32_t i = 0; i < w.n_splits; i += SPLITS_AT_ONCE) {
    row_part x[SPLITS_AT_ONCE]; /* loaded before the first is used */
#pragma unroll
    for (int32_t k = 0; k < SPLITS_AT_ONCE; k++) {
      const int32_t split = amla_cuda_min(i + k, w.n_splits - 1);
      x[k] = load_part(p, slot_of(p, first_place + split * p.n_blocks), r, column);
    }
#pragma unroll
    for (int32_t k = 0; k < SPLITS_AT_ONCE; k++)
      if (i + k < w.n_splits)
        add_part(p, total, x[k]);
  }
  const row_result result = finish_row(p, row % p.h_q, total.state);
  const int64_t at = amla_cuda_out_offset(&p, w.sequence, row) + column;
#pragma unroll
  for (int32_t c = 0; c < 4; c += 2)
    store_pair(p, at + c, times(total.o[c], result.factor), times(total.o[c + 1], result.factor));
  if (column == 0)
    store_lse(p, w, row, result.lse);
}

/* By a warp, when all splits of the group have arrived: pieces, until none is left. Who does the
 * last one frees the slots. */
AMLA_DEVICE void merge_group(const amla_cuda_params &p, const item &w, const span &s) {
  const int32_t lane = thread_id() & 31, pieces = s.n_rows * PIECES_OF_ROW;
  uint32_t *group = group_of(p, w);
  int32_t mine = 0, all = 0;
  fence_device();
  for (;; mine++) {
    const int32_t piece =
        shuffle(lane == 0 ? (int32_t)atomic_add(&group[AMLA_CUDA_TAKEN], 1u) : 0, 0);
    if (piece >= pieces)
      break;
    merge_piece(p, w, s, piece);
  }
  sync_warp();
  if (lane == 0 && mine > 0) {
    fence_device(); /* what has been read may be overwritten */
    all = (int32_t)atomic_add(&group[AMLA_CUDA_MERGED], (uint32_t)mine) + mine == pieces;
  }
  if (shuffle(all, 0) == 0)
    return;
  fence_device();
  for (int32_t i = lane; i < w.n_splits; i += 32) {
    const int32_t place = w.place + (i - w.split) * p.n_blocks;
    store_release(&p.freed[slot_of(p, place)], (uint32_t)place + 1);
  }
}

/* By the whole block, after all its threads have written the item's partial result: says so, and
 * whoever is last begins to merge the group. `flag` is a word of shared memory. */
AMLA_DEVICE void arrive_and_merge(const amla_cuda_params &p, const item &w, const span &s,
                                  uint32_t flag) {
  fence_device();
  sync_block();
  if (thread_id() == 0) {
    const uint32_t before = atomic_add(&group_of(p, w)[AMLA_CUDA_ARRIVED], 1u);
    sts_u32(flag, before == (uint32_t)w.n_splits - 1);
  }
  sync_block();
  if (lds_u32(flag) != 0)
    merge_group(p, w, s);
}

/* By the whole block when no item is left: helps to merge the group of its last one. All splits of
 * that have been taken by thread blocks that run, so that waiting ends. */
AMLA_DEVICE void help_to_merge(const amla_cuda_params &p, uint32_t at) {
  const item w = read_item(at);
  if (w.n_splits <= 1)
    return;
  const uint32_t *arrived = &group_of(p, w)[AMLA_CUDA_ARRIVED];
  for (uint32_t now = load_acquire(arrived); now < (uint32_t)w.n_splits;
       now = load_acquire(arrived))
    pause_while(arrived, now);
  merge_group(p, w, read_span(at));
}

} // namespace amla_kernel
#endif
