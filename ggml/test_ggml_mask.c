/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading masks, against the mask's meaning spelled out: every causal one of small size, each with
 * one entry changed. And which work is worth a second thread, which a mask decides.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ggml_attention.h"
#include "ggml_mask.h"

enum { TOKENS = 4, KEYS = 9, STRIDE = 11, HIDDEN = 0xfc00, HALF = 0x3800, MINUS_ZERO = 0x8000 };

static void fill(uint16_t mask[TOKENS][STRIDE], int tokens, int length) {
  for (int i = 0; i < tokens; i++)
    for (int j = 0; j < STRIDE; j++)
      mask[i][j] = j < KEYS && j < length - tokens + i + 1 ? 0 : HIDDEN;
  for (int i = 0; i < tokens; i++)
    mask[i][KEYS] = mask[i][KEYS + 1] = 0; /* beyond the row */
}

/* The definition, key by key. */
static int64_t last_seen(uint16_t mask[TOKENS][STRIDE], int tokens) {
  int64_t length = 0;
  for (int i = 0; i < tokens; i++)
    for (int j = 0; j < KEYS; j++)
      if (mask[i][j] != HIDDEN && j + 1 > length)
        length = j + 1;
  return length;
}

static bool is_causal(uint16_t mask[TOKENS][STRIDE], int tokens, int64_t length) {
  for (int i = 0; i < tokens; i++)
    for (int j = 0; j < KEYS; j++) {
      const bool sees = j < length - tokens + i + 1;
      if (sees ? (mask[i][j] & 0x7fff) != 0 : mask[i][j] != HIDDEN)
        return false;
    }
  return true;
}

static void hold(uint16_t mask[TOKENS][STRIDE], int tokens) {
  const ggml_mask_view view = {mask[0], STRIDE, tokens, KEYS};
  const int64_t length = ggml_mask_length(&view);
  assert_int_equal(length, last_seen(mask, tokens));
  assert_int_equal(ggml_mask_is_causal(&view, length), is_causal(mask, tokens, length));
}

static void test_causal_masks_and_one_change(void **state) {
  static const uint16_t values[] = {0, HIDDEN, HALF, MINUS_ZERO};
  uint16_t mask[TOKENS][STRIDE];
  int n_causal = 0;
  (void)state;
  for (int tokens = 1; tokens <= TOKENS; tokens++)
    for (int length = 0; length <= KEYS; length++) {
      fill(mask, tokens, length);
      hold(mask, tokens);
      n_causal += is_causal(mask, tokens, last_seen(mask, tokens));
      for (int i = 0; i < tokens; i++)
        for (int j = 0; j < KEYS; j++)
          for (int v = 0; v < 4; v++) {
            const uint16_t was = mask[i][j];
            mask[i][j] = values[v];
            hold(mask, tokens);
            mask[i][j] = was;
          }
    }
  assert_int_equal(n_causal, TOKENS * (KEYS + 1));
}

/* Scores of keys behind the last one that a token sees are left alone. */
static void test_masks_are_added(void **state) {
  static const uint16_t mask[] = {0,      0x0001, 0x83ff, 0x3800, HIDDEN, 0xc000, 0x7bff,
                                  0x7c00, HIDDEN, 0x8000, HIDDEN, HIDDEN, /* the other token: */
                                  HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN,
                                  HIDDEN, HIDDEN, HIDDEN, HIDDEN, 0xbc00};
  static const float added[] = {0.0f,  0x1p-24f, -0x1.ff8p-15f, 0.5f,      -INFINITY,
                                -2.0f, 65504.0f, INFINITY,      -INFINITY, 0.0f};
  const ggml_mask_view view = {mask, 12, 2, 12};
  float scores[24] = {0.0f};
  int32_t visible[2];
  (void)state;
  ggml_mask_visible(&view, visible);
  assert_int_equal(visible[0], 10);
  assert_int_equal(visible[1], 12);
  scores[10] = scores[11] = 7.0f;
  ggml_mask_add(&view, visible, scores);
  for (int i = 0; i < 10; i++)
    if (scores[i] != added[i])
      fail_msg("score %d: %a, must be %a", i, (double)scores[i], (double)added[i]);
  assert_true(scores[10] == 7.0f && scores[11] == 7.0f);
  for (int i = 12; i < 23; i++)
    assert_true(scores[i] == -INFINITY);
  assert_true(scores[23] == -1.0f);
}

/* Four slots of a server, 16 heads; llama.cpp pads their caches to 256 tokens. */
static void test_padding_is_no_work(void **state) {
  enum { SLOTS = 4, PADDED = 256 };
  static uint16_t mask[SLOTS][PADDED];
  ggml_abi_tensor q = {.ne = {576, 1, 16, SLOTS}}, k = {.ne = {576, PADDED, 1, SLOTS}}, v = k;
  ggml_abi_tensor m = {.type = GGML_ABI_F16, .ne = {PADDED, 1, 1, SLOTS}, .data = mask};
  ggml_abi_tensor op = {.src = {&q, &k, &v, &m}};
  (void)state;
  v.ne[0] = 512;
  m.nb[0] = 2;
  m.nb[1] = m.nb[2] = m.nb[3] = sizeof mask[0];
  assert_false(ggml_attention_is_small(&op));
  for (int i = 0; i < SLOTS; i++)
    for (int j = 40; j < PADDED; j++)
      mask[i][j] = HIDDEN;
  assert_true(ggml_attention_is_small(&op));
  op.src[3] = NULL;
  assert_false(ggml_attention_is_small(&op));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_causal_masks_and_one_change),
                                     cmocka_unit_test(test_masks_are_added),
                                     cmocka_unit_test(test_padding_is_no_work)};
  return cmocka_run_group_tests_name("ggml_mask", tests, NULL, NULL);
}
