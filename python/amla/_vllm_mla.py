# SPDX-License-Identifier: Apache-2.0
"""vLLM's attention backend CPU_MLA over AMLA. vLLM imports this file by name when it has chosen the
backend (amla.vllm); nothing else does.

Decode steps attend to the paged cache where it lies. Prefill of a prompt is vLLM's own, but where a
part of the prompt is cached already, by chunked prefill or as a prefix: that attends to the cache
with absorbed queries, as a decode step with many queries per sequence.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.model_executor.layers.attention.mla_attention import MLACommonMetadataBuilder
from vllm.model_executor.layers.quantization.utils.quant_utils import get_and_maybe_dequant_weights
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend, CPUMLAImpl

from ._cache_write import cache_write
from ._decode import decode


class AmlaMLABackend(CPUMLABackend):
    """CPU_MLA with any block size and the row widths of all models with latent attention."""

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return [576, 320, 288]  # DeepSeek and most others; Mistral 4; MiniCPM3

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [MultipleOf(1)]

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        return block_size is None or block_size >= 1

    @staticmethod
    def get_impl_cls() -> type[AmlaMLAImpl]:
        return AmlaMLAImpl

    @staticmethod
    def get_builder_cls() -> type[AmlaMLAMetadataBuilder]:
        return AmlaMLAMetadataBuilder


class AmlaMLAMetadataBuilder(MLACommonMetadataBuilder):
    """Adds the lengths of prefilled sequences, cached tokens included."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if metadata.prefill is not None:
            first, n = metadata.num_decodes, metadata.num_prefills
            metadata.prefill.amla_seqlens = common_attn_metadata.seq_lens[first : first + n]
        return metadata


class AmlaMLAImpl(CPUMLAImpl):
    """forward_mqa, prefill behind cached tokens, and the write of new rows."""

    can_return_lse_for_decode: ClassVar[bool] = True

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """kv_b_proj's halves, by head, for prefill behind cached tokens: the queries of a decode
        step come absorbed."""
        weight = get_and_maybe_dequant_weights(self.kv_b_proj, out_dtype=act_dtype)
        per_head = weight.view(self.num_heads, -1, self.kv_lora_rank)
        self.w_uk, self.w_uv = per_head.split((self.qk_nope_head_dim, self.v_head_dim), dim=1)

    def forward_mqa(
        self, q: Any, kv_c_and_k_pe_cache: torch.Tensor, attn_metadata: Any, layer: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """q [tokens, heads, 576] or its two parts, of one or more tokens per sequence -> out
        [tokens, heads, 512] and its natural LSE [tokens, heads]."""
        if not isinstance(q, tuple):
            q = q.split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        table, lengths = attn_metadata.decode.block_table, attn_metadata.decode.seq_lens
        nope, rope = (x.unflatten(0, (len(lengths), -1)) for x in q)
        out, lse = decode(
            nope,
            kv_c_and_k_pe_cache,
            table,
            lengths,
            q_rope=rope,
            scale=self.scale,
            causal=True,
            d_v=self.kv_lora_rank,
        )
        return out.flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)

    def forward_mha(
        self,
        q: torch.Tensor,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: Any,
        k_scale: torch.Tensor,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
    ) -> None:
        prefill = attn_metadata.prefill
        if prefill.chunked_context is None:
            arrays = (q, kv_c_normed, k_pe, kv_c_and_k_pe_cache, attn_metadata, k_scale)
            super().forward_mha(*arrays, output, output_scale)
            return
        nope, rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
        out = decode(  # new tokens are in the cache already
            torch.einsum("thn,hnr->thr", nope, self.w_uk),
            kv_c_and_k_pe_cache,
            prefill.block_table,
            prefill.amla_seqlens,
            q_rope=rope,
            q_indptr=prefill.query_start_loc,
            scale=self.scale,
            causal=True,
            d_v=self.kv_lora_rank,
        )[0]
        rows = output.view(len(q), self.num_heads, self.v_head_dim)
        rows.copy_(torch.einsum("thr,hvr->thv", out, self.w_uv))

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache_dtype: str,
        k_scale: torch.Tensor,
    ) -> None:
        if kv_cache.numel() > 0:
            n = slot_mapping.numel()
            cache_write(kv_c_normed[:n], k_pe[:n].squeeze(1), kv_cache, slot_mapping.flatten())
