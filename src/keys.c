/* SPDX-License-Identifier: Apache-2.0
 *
 * See keys.h.
 */
#include "keys.h"

#include <stddef.h>
#include <string.h>

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

/* ---- Scopes ---- */

amla_problem amla_second_problem(const amla_problem *p) {
  amla_problem s = *p;
  s.sk = p->extra_sk;
  s.topk = p->extra_topk;
  s.page_size = p->extra_page_size;
  s.max_pages = p->extra_max_pages;
  s.n_pages = p->extra_n_pages;
  s.kv_stride_page = p->extra_kv_stride_page;
  s.kv_stride_token = p->extra_kv_stride_token;
  s.indices_stride_batch = p->extra_indices_stride_batch;
  s.indices_stride_query = p->extra_indices_stride_query;
  s.kv_rope_stride_page = s.kv_rope_stride_token = 0;
  s.causal = s.window = s.kv_d_rope = 0;
  s.extra_sk = s.extra_topk = 0;
  return s;
}

amla_tensors amla_second_tensors(const amla_tensors *t) {
  amla_tensors s = *t;
  s.kv = t->extra_kv, s.kv_bytes = t->extra_kv_bytes;
  s.block_table = t->extra_block_table, s.block_table_bytes = t->extra_block_table_bytes;
  s.seqlens_k = t->extra_seqlens_k, s.seqlens_k_bytes = t->extra_seqlens_k_bytes;
  s.visible_k = t->extra_visible_k, s.visible_k_bytes = t->extra_visible_k_bytes;
  s.indices = t->extra_indices, s.indices_bytes = t->extra_indices_bytes;
  s.topk_length = t->extra_topk_length, s.topk_length_bytes = t->extra_topk_length_bytes;
  s.kv_rope = NULL;
  s.kv_indptr = s.kv_indices = NULL;
  return s;
}

amla_scopes amla_scopes_create(const amla_problem *p, const amla_tensors *t) {
  return (amla_scopes){.n = amla_has_second_scope(p) ? 2 : 1,
                       .problem = {*p, amla_second_problem(p)},
                       .tensors = {*t, amla_second_tensors(t)}};
}

static int32_t longest_segment(const amla_problem *p) {
  if (p->topk > 0)
    return p->topk;
  return p->window > 0 ? min(p->window, p->sk) : p->sk;
}

int32_t amla_longest_line(const amla_problem *p) {
  const amla_problem second = amla_second_problem(p);
  return longest_segment(p) + (amla_has_second_scope(p) ? longest_segment(&second) : 0);
}

/* ---- Lines ---- */

static int32_t count_valid(const int32_t *entries, int32_t n) {
  int32_t valid = 0;
  for (int32_t i = 0; i < n; i++)
    valid += entries[i] >= 0;
  return valid;
}

static void begin_list(amla_segment *s, int32_t sequence, int32_t query) {
  int32_t n = amla_list_length(s->problem, s->tensors, sequence, query);
  s->entries = amla_list(s->problem, s->tensors, sequence, query);
  while (n > 0 && s->entries[n - 1] < 0)
    n--;
  const int32_t valid = count_valid(s->entries, n);
  s->gaps = valid < n;
  s->end = s->begin + valid;
}

/* What one query sees, or the whole sequence. */
static void begin_dense(amla_segment *s, int32_t sequence, int32_t query, int whole) {
  const amla_problem *p = s->problem;
  const int32_t length = amla_seqlen(p, s->tensors, sequence);
  const int32_t end = whole ? length : amla_visible(p, s->tensors, sequence, query);
  s->first = p->window > 0 && end > p->window ? end - p->window : 0;
  s->end = s->begin + (end - s->first);
}

amla_line amla_line_create(const amla_scopes *scopes, int32_t sequence, int32_t query) {
  const int whole = !amla_has_lines(scopes->problem);
  amla_line line = {.sequence = sequence};
  for (int32_t i = 0; i < scopes->n; i++) {
    amla_segment *s = &line.segments[i];
    *s = (amla_segment){.problem = &scopes->problem[i], .tensors = &scopes->tensors[i]};
    s->begin = line.n;
    if (s->problem->topk > 0)
      begin_list(s, sequence, query);
    else
      begin_dense(s, sequence, query, whole);
    line.n = line.seen = s->end;
  }
  return line;
}

/* ---- Masks ---- */

enum { STRIPE = 64 }; /* positions at a time */

/* Which of n positions a query sees. */
static inline __attribute__((always_inline)) void see(int32_t n, const uint16_t *mask,
                                                      uint8_t *seen) {
  for (int32_t i = 0; i < n; i++)
    seen[i] = mask[i] != AMLA_MASK_HIDDEN;
}

/* Bit i: position at + i is a key. The last query sees most, often all. */
static uint64_t stripe_bits(const amla_line *line, int32_t at) {
  const amla_segment *s = &line->segments[0];
  uint64_t bits = 0;
  for (int32_t query = s->last_query; ~bits && query >= s->first_query; query--) {
    const uint16_t *mask = amla_mask_row(s->problem, s->tensors, line->sequence, query) + at;
    const int32_t n = amla_visible(s->problem, s->tensors, line->sequence, query) - at;
    uint8_t seen[STRIPE] = {0};
    if (n >= STRIPE) /* the compiler knows how many */
      see(STRIPE, mask, seen);
    else
      see(n, mask, seen);
    for (int i = 0; i < STRIPE; i += 8) { /* the lowest bits of 8 bytes, the first one lowest */
      uint64_t eight;
      memcpy(&eight, seen + i, sizeof eight);
      bits |= (eight * 0x0102040810204080u >> 56) << i;
    }
  }
  return bits;
}

/* Without libgcc's, which the emulated build has not. */
static int32_t count_bits(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return (int32_t)(x * 0x0101010101010101u >> 56);
}

static int32_t seen_end(const amla_line *line) {
  const amla_segment *s = &line->segments[0];
  return amla_seen_end(s->problem, s->tensors, line->sequence, s->first_query, s->last_query);
}

/* How many of the positions [begin, end) a query sees. */
static int32_t count_seen(const amla_line *line, int32_t query, int32_t begin, int32_t end) {
  const amla_segment *s = &line->segments[0];
  const uint16_t *mask = amla_mask_row(s->problem, s->tensors, line->sequence, query);
  const int32_t stop = min(end, amla_visible(s->problem, s->tensors, line->sequence, query));
  int32_t n = 0;
  for (int32_t i = begin, next; i < stop; i = next) {
    uint16_t some = 0; /* as wide as the mask's elements: no conversions */
    next = min(stop, i + (1 << 15));
    for (int32_t j = i; j < next; j++)
      some += mask[j] != AMLA_MASK_HIDDEN;
    n += some;
  }
  return n;
}

int32_t amla_line_count(const amla_line *line, int64_t begin, int64_t end) {
  const int32_t stop = end < seen_end(line) ? (int32_t)end : seen_end(line);
  if (begin >= stop)
    return 0;
  const amla_segment *s = &line->segments[0];
  const int32_t seen = count_seen(line, s->last_query, (int32_t)begin, stop);
  if (s->first_query == s->last_query || seen == stop - begin)
    return seen;
  int32_t n = 0;
  for (int64_t at = begin / STRIPE * STRIPE; at < stop; at += STRIPE) {
    uint64_t bits = stripe_bits(line, (int32_t)at);
    if (at < begin)
      bits = bits >> (begin - at) << (begin - at);
    if (stop - at < STRIPE)
      bits &= ((uint64_t)1 << (stop - at)) - 1;
    n += count_bits(bits);
  }
  return n;
}

amla_line amla_line_of_queries(const amla_scopes *scopes, int32_t sequence, int32_t first,
                               int32_t last) {
  const amla_tensors *t = &scopes->tensors[0];
  amla_line line = amla_line_create(scopes, sequence, first);
  line.segments[0].first_query = first, line.segments[0].last_query = last;
  const int32_t end = seen_end(&line), n = t->mask ? amla_line_count(&line, 0, end) : end;
  line.seen = n;
  line.masked = n < end;
  line.n -= end - n;
  return line;
}

void amla_line_positions(const amla_line *line, int32_t begin, int32_t n, amla_cursor *cursor,
                         int32_t *positions) {
  amla_cursor c = *cursor;
  if (c.key >= begin)
    c = (amla_cursor)AMLA_CURSOR_INIT;
  int32_t stripe = c.entry < 0 ? -STRIPE : c.entry / STRIPE * STRIPE;
  for (int32_t i = c.key + 1 - begin; i < n; i++) {
    while (!c.bits)
      c.bits = stripe_bits(line, stripe += STRIPE);
    c.entry = stripe + __builtin_ctzll(c.bits);
    c.bits &= c.bits - 1;
    if (i >= 0)
      positions[i] = c.entry;
  }
  *cursor = (amla_cursor){begin + n - 1, c.entry, c.bits};
}

/* ---- Where keys lie ---- */

/* The entry of a key of a list. */
static int32_t seek(const amla_segment *s, int32_t key, amla_cursor *c) {
  if (!s->gaps)
    return key - s->begin;
  if (c->key < s->begin || c->key > key)
    *c = (amla_cursor){s->begin - 1, -1, 0};
  while (c->key < key)
    c->key += s->entries[++c->entry] >= 0;
  return c->entry;
}

static void locate_listed(const amla_line *line, const amla_segment *s, int32_t begin, int32_t end,
                          amla_cursor *cursor, amla_token_ref *refs) {
  const amla_problem *p = s->problem;
  const int by_division = !amla_has_slots(p) || !amla_pages_are_seamless(p);
  int32_t entry = seek(s, begin, cursor);
  for (int32_t key = begin; key < end; key++, refs++) {
    for (; s->entries[entry] < 0; entry++)
      ;
    const int32_t index = s->entries[entry];
    amla_place at = {0, index, 1};
    if (by_division)
      at = amla_place_of_index(p, s->tensors, line->sequence, index);
    *refs = amla_slot_at(p, s->tensors, at.page, at.slot);
    *cursor = (amla_cursor){key, entry++, 0};
  }
}

/* Tokens [slot, slot + n) of a page. */
static void locate_neighbours(const amla_segment *s, int64_t page, int64_t slot, int32_t n,
                              amla_token_ref *refs) {
  const amla_token_ref first = amla_slot_at(s->problem, s->tensors, page, slot);
  const amla_token_ref second = amla_slot_at(s->problem, s->tensors, page, slot + (n > 1));
  const int64_t step_bytes = (const char *)second.row - (const char *)first.row;
  const char *row = first.row;
  const int apart = first.rope || first.scales;
  for (int32_t i = 0; apart && i < n; i++)
    refs[i] = amla_slot_at(s->problem, s->tensors, page, slot + i);
#pragma GCC unroll 8
  for (int32_t i = 0; !apart && i < n; i++, row += step_bytes)
    refs[i] = (amla_token_ref){row, NULL, NULL};
}

/* Page by page. */
static void locate_dense(const amla_line *line, const amla_segment *s, int32_t begin, int32_t end,
                         amla_token_ref *refs) {
  const amla_problem *p = s->problem;
  for (int32_t key = begin; key < end;) {
    const int32_t position = s->first + (key - s->begin);
    const amla_place at = amla_place_of(p, s->tensors, line->sequence, position);
    const int32_t n = min(at.n, end - key);
    locate_neighbours(s, at.page, at.slot, n, refs);
    refs += n;
    key += n;
  }
}

/* Page by page, as positions rise. */
void amla_line_locate_at(const amla_line *line, int32_t n, const int32_t *positions,
                         amla_token_ref *refs) {
  const amla_segment *s = &line->segments[0];
  const amla_problem *p = s->problem;
  const int64_t step_bytes = amla_elems_bytes(p->kv_type, p->kv_stride_token);
  for (int32_t i = 0; i < n;) {
    const int64_t begin = positions[i];
    const amla_place at = amla_place_of(p, s->tensors, line->sequence, positions[i]);
    const amla_token_ref first = amla_slot_at(p, s->tensors, at.page, at.slot);
    const char *row = (const char *)first.row - begin * step_bytes;
    const int apart = first.rope || first.scales;
    refs[i++] = first;
    for (; !apart && i < n && positions[i] < begin + at.n; i++)
      refs[i] = (amla_token_ref){row + positions[i] * step_bytes, NULL, NULL};
  }
}

static void locate_masked(const amla_line *line, int32_t begin, int32_t n, amla_cursor *cursor,
                          amla_token_ref *refs) {
  int32_t positions[STRIPE];
  for (int32_t i = 0, some; i < n; i += some) {
    some = min(n - i, STRIPE);
    amla_line_positions(line, begin + i, some, cursor, positions);
    amla_line_locate_at(line, some, positions, refs + i);
  }
}

void amla_line_locate(const amla_line *line, int32_t begin, int32_t n, amla_cursor *cursor,
                      amla_token_ref *refs) {
  if (line->masked) {
    locate_masked(line, begin, n, cursor, refs);
    return;
  }
  for (int32_t key = begin, end; key < begin + n; refs += end - key, key = end) {
    const amla_segment *s = &line->segments[key >= line->segments[0].end];
    end = min(begin + n, s->end);
    if (s->entries)
      locate_listed(line, s, key, end, cursor, refs);
    else
      locate_dense(line, s, key, end, refs);
  }
}
