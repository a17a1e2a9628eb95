/* SPDX-License-Identifier: Apache-2.0
 *
 * The arithmetic that the CUDA kernels and their host share (src/cuda/cuda_params.h): cuts,
 * visibility, offsets, layouts of shared memory and registers, references and exact shifts. The
 * very functions that are compiled for the device, on the CPU; needs neither GPU nor nvcc.
 */
#include "test_support.h"

#include "src/cuda/cuda_params.h"
#include "src/rows.h"

/* ---- Cuts ---- */

static void splits_are_as_many_as_the_rule_says(void **state) {
  (void)state;
  for (int32_t base = 64; base <= 4096; base *= 2)
    for (int32_t most = 1; most <= 64; most *= 4)
      for (int32_t n = 0; n < 20000; n += 1 + n / 7) {
        const int32_t splits = amla_cuda_n_splits(n, base, most);
        assert_true(splits >= 1 && splits <= most);
        /* None longer than base, unless there would be too many. */
        assert_true(splits == most || (int64_t)splits * base >= n);
        assert_true(splits == 1 || (int64_t)(splits - 1) * base < n); /* none for nothing */
      }
  assert_int_equal(amla_cuda_n_splits(INT32_MAX, 1, INT32_MAX), INT32_MAX);
}

static void splits_cover_all_tiles_once_and_equally(void **state) {
  (void)state;
  static const int32_t tiles[] = {0, 1, 2, 3, 7, 64, 511, 1 << 25};
  for (int t = 0; t < LENGTH(tiles); t++)
    for (int32_t n = 1; n <= 64; n++) {
      int32_t at = 0, least = INT32_MAX, most = 0;
      for (int32_t i = 0; i < n; i++) {
        const int32_t begin = amla_cuda_split_begin(tiles[t], n, i),
                      end = amla_cuda_split_begin(tiles[t], n, i + 1);
        assert_int_equal(begin, at);
        at = end;
        if (end - begin < least)
          least = end - begin;
        if (end - begin > most)
          most = end - begin;
      }
      assert_int_equal(at, tiles[t]);
      assert_true(most - least <= 1);
    }
}

/* What the default rule promises: a split's partial result is at most about a twentieth of the
 * keys' traffic, few rows can be cut finer. */
static void default_rule_depends_on_rows_only(void **state) {
  (void)state;
  for (int32_t rows = 1; rows <= 4096; rows++) {
    const int32_t block = rows < 64 ? rows : 64, base = amla_cuda_rule_base(rows, 64),
                  most = amla_cuda_rule_max_splits(rows);
    assert_true(base % 64 == 0 || rows < 64);
    assert_true(base >= 512 && most >= 1 && most <= 64);
    assert_true(2.0 * block * 512 * 4 <= 0.06 * base * 576 * 2 || base == 512);
  }
  assert_int_equal(amla_cuda_rule_max_splits(128), 8);
  assert_int_equal(amla_cuda_rule_base(128, 64), 4096);
  assert_int_equal(amla_cuda_rule_base(16, 64), 1024);
}

static void automatic_base_is_whole_tiles(void **state) {
  (void)state;
  for (int64_t tokens = 0; tokens < INT64_C(1) << 40; tokens = tokens * 3 + 1) {
    const int32_t base = amla_cuda_auto_base(tokens, 132, 64);
    assert_true(base >= 128 && base % 64 == 0);
    /* No more than the items aimed at. */
    assert_true(base == 1 << 30 || (int64_t)base * 132 > tokens);
  }
}

/* ---- What a row sees, and where things lie ---- */

static void visibility_is_the_cpu_backends(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int32_t s_q = 1; s_q <= 16; s_q++)
      for (int32_t n = 0; n < 40; n++)
        for (int32_t query = 0; query < s_q; query++) {
          const amla_problem p = {.s_q = s_q, .causal = causal};
          const amla_tensors t = {.seqlens_k = &n};
          assert_int_equal(amla_cuda_visible(n, s_q, query, causal),
                           amla_visible(&p, &t, 0, query));
        }
  assert_int_equal(amla_cuda_visible(INT32_MAX, 1, 0, 1), INT32_MAX);
  assert_int_equal(amla_cuda_clamp_length(-1, 10), 0);
  assert_int_equal(amla_cuda_clamp_length(INT32_MIN, 10), 0);
  assert_int_equal(amla_cuda_clamp_length(INT32_MAX, 10), 10);
  assert_int_equal(amla_cuda_clamp_length(10, 10), 10);
}

static void offsets_are_64_bit_and_the_cpu_backends(void **state) {
  (void)state;
  const int64_t far = INT64_C(3) << 31;
  const amla_problem p = {.s_q = 3,
                          .h_q = 5,
                          .q_type = AMLA_BF16,
                          .q_stride_batch = far,
                          .q_stride_query = 7000,
                          .q_stride_head = 600};
  const amla_cuda_params k = {.s_q = 3,
                              .h_q = 5,
                              .q_stride_batch = far,
                              .q_stride_query = 7000,
                              .q_stride_head = 600,
                              .out_stride_batch = far,
                              .out_stride_query = 5000,
                              .out_stride_head = 512,
                              .kv_stride_page = far,
                              .kv_stride_token = 576};
  const amla_tensors t = {.q = NULL};
  for (int32_t s = 0; s < 3; s++)
    for (int32_t row = 0; row < 15; row++) {
      assert_true((uintptr_t)amla_q_row(&p, &t, s, row / 5, row % 5) ==
                  (uintptr_t)(2 * amla_cuda_q_offset(&k, s, row)));
      assert_true(amla_cuda_out_offset(&k, s, row) == s * far + row / 5 * 5000 + row % 5 * 512);
      /* lse is [b][h_q][s_q]. */
      assert_true(amla_cuda_lse_offset(&k, s, row) == (s * 5 + row % 5) * 3 + row / 5);
    }
  assert_true(amla_cuda_token_offset(&k, 1 << 29, 63) == (1 << 29) * far + 63 * 576);
}

static void boxes_divide_pages_and_tiles(void **state) {
  (void)state;
  for (int32_t page = 0; page <= 1024; page++) {
    const int32_t box = amla_cuda_box_tokens(page);
    const int takes = page == 16 || page == 32 || page % 64 == 0;
    assert_int_equal(box > 0, takes);
    if (takes)
      assert_true(64 % box == 0 && page % box == 0 &&
                  box * 128 % 1024 == 0); /* whole swizzle patterns */
  }
}

/* ---- Layouts ---- */

static void swizzle_is_a_permutation_without_bank_conflicts(void **state) {
  (void)state;
  static const uint32_t row_bytes[] = {128, 1024, 1152};
  for (int i = 0; i < LENGTH(row_bytes); i++) {
    const uint32_t chunks = row_bytes[i] / 16;
    unsigned char used[64 * 72] = {0};
    for (uint32_t row = 0; row < 64; row++)
      for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        const uint32_t at = amla_cuda_swizzle(row, chunk, row_bytes[i]);
        assert_true(at % 16 == 0 && at / row_bytes[i] == row && !used[at / 16]++);
        if (row_bytes[i] == 128)
          assert_int_equal(at,
                           amla_cuda_swizzle_address(row * 128 + chunk * 16)); /* the hardware's */
      }
    for (uint32_t chunk = 0; chunk < chunks; chunk++)
      for (uint32_t first = 0; first < 64; first += 8) { /* the eight rows of one ldmatrix phase */
        unsigned banks = 0;
        for (uint32_t row = first; row < first + 8; row++)
          banks |= 1u << (amla_cuda_swizzle(row, chunk, row_bytes[i]) / 16 % 8);
        assert_int_equal(banks, 0xff);
      }
  }
}

static void fragments_hold_each_element_once(void **state) {
  (void)state;
  for (int32_t columns = 8; columns <= 256; columns *= 2) {
    static unsigned char used[16][256];
    memset(used, 0, sizeof used);
    for (int32_t lane = 0; lane < 32; lane++)
      for (int32_t pair = 0; pair < columns / 4; pair++)
        for (int32_t i = 0; i < 2; i++)
          used[amla_cuda_fragment_row(lane, pair)][amla_cuda_fragment_column(lane, pair) + i]++;
    for (int32_t row = 0; row < 16; row++)
      for (int32_t column = 0; column < columns; column++)
        assert_int_equal(used[row][column], 1);
  }
}

/* ---- References ---- */

static void shifts_are_exact(void **state) {
  (void)state;
  static const float values[] = {1.0f, -3.0f, 0x1.fffffep127f, 0x1p100f, 0.0f, -0.0f};
  for (int k = -300; k <= 0; k++) {
    const amla_cuda_factor f = amla_cuda_shift_factor((float)k);
    for (int i = 0; i < LENGTH(values); i++) {
      const float got = values[i] * f.a * f.b,
                  want = k < -252 ? values[i] * 0.0f : ldexpf(values[i], k);
      if (fabsf(want) >= 0x1p-126f || k < -252)
        assert_true(to_bits(got) == to_bits(want)); /* a GPU flushes what is below */
    }
  }
  const float beyond[] = {-INFINITY, NAN, -1e30f};
  for (int i = 0; i < LENGTH(beyond); i++)
    assert_true(amla_cuda_shift_factor(beyond[i]).a == 0.0f);
}

static void references_follow_the_lazy_rule(void **state) {
  (void)state;
  for (int f16 = 0; f16 < 2; f16++) {
    const float tau = f16 ? 15.0f : 8.0f;
    const float below = f16 ? 7.0f : 0.0f;
    for (float max = -300.0f; max < 300.0f; max += 0.37f) {
      /* The first visible key. */
      assert_true(amla_cuda_next_reference(-INFINITY, max, ceilf(max), f16) == ceilf(max) - below);
      for (float ref = -280.0f; ref < 280.0f; ref += 40.0f) {
        const float next = amla_cuda_next_reference(ref, max, ceilf(max), f16);
        assert_true(max > ref + tau ? next == ceilf(max) - below : next == ref);
        /* Never down; P stays in range. */
        assert_true(next >= ref && exp2f(max - next) <= exp2f(tau));
      }
    }
    assert_true(amla_cuda_next_reference(-INFINITY, -INFINITY, -INFINITY, f16) ==
                -INFINITY); /* nothing visible yet */
    assert_true(amla_cuda_next_reference(5.0f, -INFINITY, -INFINITY, f16) == 5.0f);
    assert_true(exp2f(tau) <= (f16 ? 65504.0f : 0x1p127f));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(splits_are_as_many_as_the_rule_says),
      cmocka_unit_test(splits_cover_all_tiles_once_and_equally),
      cmocka_unit_test(default_rule_depends_on_rows_only),
      cmocka_unit_test(automatic_base_is_whole_tiles),
      cmocka_unit_test(visibility_is_the_cpu_backends),
      cmocka_unit_test(offsets_are_64_bit_and_the_cpu_backends),
      cmocka_unit_test(boxes_divide_pages_and_tiles),
      cmocka_unit_test(swizzle_is_a_permutation_without_bank_conflicts),
      cmocka_unit_test(fragments_hold_each_element_once),
      cmocka_unit_test(shifts_are_exact),
      cmocka_unit_test(references_follow_the_lazy_rule)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
