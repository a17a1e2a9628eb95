/* SPDX-License-Identifier: Apache-2.0
 *
 * e4m3fn and e8m0 (base/float8.h) against a table that another library made, and narrowing against
 * a search in that table in fp64.
 */
#include "test_support.h"

#include "float8_table.h"
#include "src/base/float8.h"

static double e4m3_value(int code) { return (double)of_bits(e4m3_bits[code]); }

static void e4m3_widens_as_the_table_says(void **state) {
  (void)state;
  for (uint32_t code = 0; code < 256; code++) {
    const uint32_t want = e4m3_bits[code & 127] | (code & 128) << 24;
    const uint32_t got = to_bits(amla_e4m3_to_f32((uint8_t)code));
    if (got != want)
      fail_msg("code 0x%02x: 0x%08x, want 0x%08x", code, got, want);
  }
}

static void e8m0_widens_to_powers_of_two(void **state) {
  (void)state;
  for (int code = 0; code < 255; code++)
    assert_true((double)amla_e8m0_to_f32((uint8_t)code) == ldexp(1.0, code - 127));
  assert_true(isnan(amla_e8m0_to_f32(255)));
}

/* The nearest of the codes 0 to 126, of two the even one; 126 for all that is larger. */
static uint8_t search(float x) {
  const double a = fabs((double)x);
  int best = 0;
  if (isnan(x))
    return (uint8_t)(127 | (signbit(x) ? 128 : 0));
  for (int code = 1; code < 127; code++) {
    const double nearer = fabs(e4m3_value(best) - a) - fabs(e4m3_value(code) - a);
    if (nearer > 0 || (nearer == 0 && code % 2 == 0))
      best = code;
  }
  if (a > e4m3_value(126))
    best = 126;
  return (uint8_t)(best | (signbit(x) ? 128 : 0));
}

static void expect_narrows(float x) {
  const int want = search(x), got = amla_f32_to_e4m3(x);
  if (got != want)
    fail_msg("%a (0x%08x): 0x%02x, want 0x%02x", (double)x, to_bits(x), got, want);
}

/* Every code, every midpoint of two, and the floats beside them; all exponents. */
static void e4m3_narrows_to_nearest_even(void **state) {
  uint64_t seed = 5;
  (void)state;
  for (int code = 0; code < 127; code++) {
    const double next = code < 126 ? e4m3_value(code + 1) : 480;
    const float at[] = {(float)e4m3_value(code), (float)((e4m3_value(code) + next) / 2)};
    for (int i = 0; i < LENGTH(at); i++)
      for (int32_t step = -2; step <= 2; step++)
        for (uint32_t sign = 0; sign < 2; sign++)
          if (at[i] > 0.0f || step >= 0)
            expect_narrows(of_bits((to_bits(at[i]) + (uint32_t)step) | sign << 31));
  }
  for (uint32_t i = 0; i < 1 << 16; i++) /* both infinities and many NaN are among them */
    expect_narrows(of_bits(i << 16 | (i % 3 == 0 ? 0 : (uint32_t)random_below(&seed, 1 << 16))));
}

static void powers_of_two_are_rounded_up(void **state) {
  (void)state;
  for (int e = -126; e < 127; e++) {
    const float x = ldexpf(1.0f, e);
    assert_true(amla_power_of_2_above(x) == x);
    assert_true(amla_power_of_2_above(of_bits(to_bits(x) + 1)) == 2 * x);
    assert_true(amla_power_of_2_above(of_bits(to_bits(2 * x) - 1)) == 2 * x);
    assert_int_equal(amla_power_of_2_to_e8m0(x), e + 127);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(e4m3_widens_as_the_table_says),
      cmocka_unit_test(e8m0_widens_to_powers_of_two),
      cmocka_unit_test(e4m3_narrows_to_nearest_even),
      cmocka_unit_test(powers_of_two_are_rounded_up),
  };
  return cmocka_run_group_tests_name("float8", tests, NULL, NULL);
}
