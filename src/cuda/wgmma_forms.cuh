/* SPDX-License-Identifier: Apache-2.0
 *
 * wgmma in the three forms that the Hopper kernel uses, for bf16 and f16 operands and f32
 * accumulators. Included by cuda_machine.cuh inside its namespace. Fragment layouts and
 * descriptors: PTX ISA, "Asynchronous warpgroup matrix instructions".
 *
 *     wgmma_scores      s[64][64]  (+)= a[64][16] b[64][16]^T   a and b in shared memory, both
 *                                                               K-major
 *     wgmma_scores_reg  the same with a in registers
 *     wgmma_output      o[64][256]  += a[64][16] b[16][256]     a K-major, b MN-major: V as it is
 *                                                               stored
 */

/* A matrix in shared memory with the 128-byte swizzle. K-major: `stride` bytes from eight rows to
 * the next eight, `leading` unused. MN-major: `stride` from eight k to the next eight, `leading`
 * from 64 columns to the next 64. Only the low word depends on the address. */
AMLA_DEVICE uint64_t matrix_descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
  const uint32_t low = (at >> 4) | (leading >> 4) << 16, high = (stride >> 4) | 1u << 30;
  uint64_t d;
  asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "r"(high));
  return d;
}

/* Without swizzle, K-major, as pieces of 8 rows x 16 bytes: `leading` from one piece to the next
 * along k, `stride` along the rows. */
AMLA_DEVICE uint64_t plain_descriptor(uint32_t at, uint32_t leading, uint32_t stride) {
  const uint32_t low = (at >> 4) | (leading >> 4) << 16, high = stride >> 4;
  uint64_t d;
  asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "r"(high));
  return d;
}

#define AMLA_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define AMLA_F16(d, i) AMLA_F4(d, i), AMLA_F4(d, i + 4), AMLA_F4(d, i + 8), AMLA_F4(d, i + 12)
#define AMLA_F64(d, i) AMLA_F16(d, i), AMLA_F16(d, i + 16), AMLA_F16(d, i + 32), AMLA_F16(d, i + 48)
#define AMLA_NAMES_32                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AMLA_NAMES_128                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "               \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "               \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "   \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define AMLA_WGMMA_SCORES(type)                                                                    \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type \
      "." type " {" AMLA_NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                 \
      : AMLA_F16(d, 0), AMLA_F16(d, 16)                                                            \
      : "l"(a), "l"(b), "r"(accumulate))
#define AMLA_WGMMA_SCORES_REG(type)                                                                \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type \
      "." type " {" AMLA_NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"                   \
      : AMLA_F16(d, 0), AMLA_F16(d, 16)                                                            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
#define AMLA_WGMMA_OUTPUT(type)                                                                    \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." type  \
      "." type " {" AMLA_NAMES_128 "}, %128, %129, p, 1, 1, 0, 1;\n}"                              \
      : AMLA_F64(d, 0), AMLA_F64(d, 64)                                                            \
      : "l"(a), "l"(b))

/* d[64][16] += a[64][16] b[16][16]: a K-major (transposed 0) or M-major (1), b K-major. */
#define AMLA_WGMMA_16(type, transposed)                                                            \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"                                        \
               "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type                         \
               " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, " transposed ", 0;\n}"         \
               : AMLA_F4(d, 0), AMLA_F4(d, 4)                                                      \
               : "l"(a), "l"(b), "r"(accumulate))

template <bool F16>
AMLA_DEVICE void wgmma_keys(float (&d)[8], uint64_t a, uint64_t b, int32_t accumulate) {
  if constexpr (F16)
    AMLA_WGMMA_16("f16", "0");
  else
    AMLA_WGMMA_16("bf16", "0");
}
template <bool F16> AMLA_DEVICE void wgmma_columns(float (&d)[8], uint64_t a, uint64_t b) {
  const int32_t accumulate = 1;
  if constexpr (F16)
    AMLA_WGMMA_16("f16", "1");
  else
    AMLA_WGMMA_16("bf16", "1");
}
template <bool F16>
AMLA_DEVICE void wgmma_scores(float (&d)[32], uint64_t a, uint64_t b, int32_t accumulate) {
  if constexpr (F16)
    AMLA_WGMMA_SCORES("f16");
  else
    AMLA_WGMMA_SCORES("bf16");
}
template <bool F16>
AMLA_DEVICE void wgmma_scores_reg(float (&d)[32], const uint32_t *a, uint64_t b,
                                  int32_t accumulate) {
  if constexpr (F16)
    AMLA_WGMMA_SCORES_REG("f16");
  else
    AMLA_WGMMA_SCORES_REG("bf16");
}
template <bool F16> AMLA_DEVICE void wgmma_output(float (&d)[128], uint64_t a, uint64_t b) {
  if constexpr (F16)
    AMLA_WGMMA_OUTPUT("f16");
  else
    AMLA_WGMMA_OUTPUT("bf16");
}
