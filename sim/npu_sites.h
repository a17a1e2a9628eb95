/* SPDX-License-Identifier: Apache-2.0
 *
 * Included by npu_isa.h: before each call of the instruction set, tells the simulator where in the
 * kernel's text it stands, so that reports can name file and line, and waits can be counted and
 * dropped one by one. Each name stands for itself after a comma. A build for silicon defines
 * NPU_NO_SITES. */
#ifndef NPU_SITES_H
#define NPU_SITES_H

#ifdef __cplusplus
extern "C"
#endif
    void
    npu_site(const char *file, int32_t line);

#define npu_notify (npu_site(__FILE__, __LINE__), npu_notify)
#define npu_notify_unit (npu_site(__FILE__, __LINE__), npu_notify_unit)
#define npu_wait (npu_site(__FILE__, __LINE__), npu_wait)
#define npu_barrier (npu_site(__FILE__, __LINE__), npu_barrier)
#define npu_cross_set (npu_site(__FILE__, __LINE__), npu_cross_set)
#define npu_cross_wait (npu_site(__FILE__, __LINE__), npu_cross_wait)
#define npu_barrier_all (npu_site(__FILE__, __LINE__), npu_barrier_all)
#define npu_read_ub_s32 (npu_site(__FILE__, __LINE__), npu_read_ub_s32)
#define npu_read_ub_f32 (npu_site(__FILE__, __LINE__), npu_read_ub_f32)
#define npu_read_gm_s32 (npu_site(__FILE__, __LINE__), npu_read_gm_s32)
#define npu_copy_gm_l1 (npu_site(__FILE__, __LINE__), npu_copy_gm_l1)
#define npu_copy_gm_l1_nd2nz_bf16 (npu_site(__FILE__, __LINE__), npu_copy_gm_l1_nd2nz_bf16)
#define npu_fill_l1_bf16 (npu_site(__FILE__, __LINE__), npu_fill_l1_bf16)
#define npu_load_l0a_bf16 (npu_site(__FILE__, __LINE__), npu_load_l0a_bf16)
#define npu_load_l0a_t_bf16 (npu_site(__FILE__, __LINE__), npu_load_l0a_t_bf16)
#define npu_load_l0b_bf16 (npu_site(__FILE__, __LINE__), npu_load_l0b_bf16)
#define npu_load_l0b_t_bf16 (npu_site(__FILE__, __LINE__), npu_load_l0b_t_bf16)
#define npu_mmad_bf16 (npu_site(__FILE__, __LINE__), npu_mmad_bf16)
#define npu_mmad_f16 (npu_site(__FILE__, __LINE__), npu_mmad_f16)
#define npu_copy_l0c_gm_f32 (npu_site(__FILE__, __LINE__), npu_copy_l0c_gm_f32)
#define npu_copy_l0c_gm_add_f32 (npu_site(__FILE__, __LINE__), npu_copy_l0c_gm_add_f32)
#define npu_copy_l0c_gm_bf16 (npu_site(__FILE__, __LINE__), npu_copy_l0c_gm_bf16)
#define npu_copy_l0c_ub_f32 (npu_site(__FILE__, __LINE__), npu_copy_l0c_ub_f32)
#define npu_copy_ub_l1 (npu_site(__FILE__, __LINE__), npu_copy_ub_l1)
#define npu_copy_gm_ub (npu_site(__FILE__, __LINE__), npu_copy_gm_ub)
#define npu_copy_ub_gm (npu_site(__FILE__, __LINE__), npu_copy_ub_gm)
#define npu_copy_ub_gm_add_f32 (npu_site(__FILE__, __LINE__), npu_copy_ub_gm_add_f32)
#define npu_copy_ub_gm_add_s32 (npu_site(__FILE__, __LINE__), npu_copy_ub_gm_add_s32)
#define npu_add_f32 (npu_site(__FILE__, __LINE__), npu_add_f32)
#define npu_sub_f32 (npu_site(__FILE__, __LINE__), npu_sub_f32)
#define npu_mul_f32 (npu_site(__FILE__, __LINE__), npu_mul_f32)
#define npu_div_f32 (npu_site(__FILE__, __LINE__), npu_div_f32)
#define npu_max_f32 (npu_site(__FILE__, __LINE__), npu_max_f32)
#define npu_min_f32 (npu_site(__FILE__, __LINE__), npu_min_f32)
#define npu_adds_f32 (npu_site(__FILE__, __LINE__), npu_adds_f32)
#define npu_muls_f32 (npu_site(__FILE__, __LINE__), npu_muls_f32)
#define npu_maxs_f32 (npu_site(__FILE__, __LINE__), npu_maxs_f32)
#define npu_mins_f32 (npu_site(__FILE__, __LINE__), npu_mins_f32)
#define npu_exp_f32 (npu_site(__FILE__, __LINE__), npu_exp_f32)
#define npu_ln_f32 (npu_site(__FILE__, __LINE__), npu_ln_f32)
#define npu_abs_f32 (npu_site(__FILE__, __LINE__), npu_abs_f32)
#define npu_dup_f32 (npu_site(__FILE__, __LINE__), npu_dup_f32)
#define npu_add_s32 (npu_site(__FILE__, __LINE__), npu_add_s32)
#define npu_max_s32 (npu_site(__FILE__, __LINE__), npu_max_s32)
#define npu_min_s32 (npu_site(__FILE__, __LINE__), npu_min_s32)
#define npu_and_s32 (npu_site(__FILE__, __LINE__), npu_and_s32)
#define npu_or_s32 (npu_site(__FILE__, __LINE__), npu_or_s32)
#define npu_adds_s32 (npu_site(__FILE__, __LINE__), npu_adds_s32)
#define npu_shl_s32 (npu_site(__FILE__, __LINE__), npu_shl_s32)
#define npu_shr_s32 (npu_site(__FILE__, __LINE__), npu_shr_s32)
#define npu_dup_s32 (npu_site(__FILE__, __LINE__), npu_dup_s32)
#define npu_cast_f32_bf16_rna (npu_site(__FILE__, __LINE__), npu_cast_f32_bf16_rna)
#define npu_cast_f32_bf16_rne (npu_site(__FILE__, __LINE__), npu_cast_f32_bf16_rne)
#define npu_cast_bf16_f32 (npu_site(__FILE__, __LINE__), npu_cast_bf16_f32)
#define npu_cast_f32_f16_rne (npu_site(__FILE__, __LINE__), npu_cast_f32_f16_rne)
#define npu_cast_f16_f32 (npu_site(__FILE__, __LINE__), npu_cast_f16_f32)
#define npu_cast_s8_f16 (npu_site(__FILE__, __LINE__), npu_cast_s8_f16)
#define npu_cast_f32_s32_rna (npu_site(__FILE__, __LINE__), npu_cast_f32_s32_rna)
#define npu_cast_s32_f32 (npu_site(__FILE__, __LINE__), npu_cast_s32_f32)
#define npu_round_f32_rna (npu_site(__FILE__, __LINE__), npu_round_f32_rna)
#define npu_block_max_f32 (npu_site(__FILE__, __LINE__), npu_block_max_f32)
#define npu_block_sum_f32 (npu_site(__FILE__, __LINE__), npu_block_sum_f32)
#define npu_brcb_f32 (npu_site(__FILE__, __LINE__), npu_brcb_f32)
#define npu_cmp_f32 (npu_site(__FILE__, __LINE__), npu_cmp_f32)
#define npu_cmps_f32 (npu_site(__FILE__, __LINE__), npu_cmps_f32)
#define npu_sel_f32 (npu_site(__FILE__, __LINE__), npu_sel_f32)
#define npu_sels_f32 (npu_site(__FILE__, __LINE__), npu_sels_f32)
#endif
