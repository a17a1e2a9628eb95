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

from ._arrays import integers, signature
from ._cache_write import cache_write
from ._decode import decode
from ._plan import Call, find_call, remember
from ._problem import Arguments, options_of


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
        nope, rope = q if isinstance(q, tuple) else q.split(self._parts(), dim=-1)
        lengths = integers("seq_lens", attn_metadata.decode.seq_lens)
        table = integers("block_table", attn_metadata.decode.block_table)
        call = self._find_call(nope, rope, kv_c_and_k_pe_cache, table, lengths)
        out, lse, tensors = call.make_out(), call.make_lse(), call.new_tensors()
        tensors.q, tensors.q_rope = nope.data_ptr(), rope.data_ptr()
        tensors.kv = kv_c_and_k_pe_cache.data_ptr()
        tensors.block_table, tensors.seqlens_k = table.data_ptr(), lengths.data_ptr()
        tensors.out, tensors.lse = out.data_ptr(), lse.data_ptr()
        call.run_tensors(tensors)
        rows = nope.shape[:2]
        return out.view(*rows, self.kv_lora_rank), lse.transpose(1, 2).reshape(rows)

    def _parts(self) -> tuple[int, int]:
        return self.kv_lora_rank, self.qk_rope_head_dim

    def _find_call(
        self,
        nope: torch.Tensor,
        rope: torch.Tensor,
        cache: torch.Tensor,
        table: torch.Tensor,
        lengths: torch.Tensor,
    ) -> Call:
        """What `decode` would work out for tensors of these shapes, strides and types, by a shorter
        way: its checks and its view of [tokens, ...] as [b, s_q, ...] only for new ones."""
        tensors = nope, rope, cache, table, lengths
        key = (*map(signature, tensors), self.scale, _get_num_threads())
        call = _calls.get(key)
        if call is None:
            q, q_rope = (x.unflatten(0, (len(lengths), -1)) for x in (nope, rope))
            arguments = Arguments(q, cache, table, lengths, more=dict(q_rope=q_rope))
            options = options_of(self.scale, causal=True, d_v=self.kv_lora_rank)
            call = find_call(arguments, options)
            remember(_calls, key, call)
        return call

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
        n = slot_mapping.numel()
        if n < len(kv_c_normed):  # padding
            kv_c_normed, k_pe = kv_c_normed[:n], k_pe[:n]
        if kv_cache.numel() > 0:
            cache_write(kv_c_normed, k_pe.squeeze(1), kv_cache, slot_mapping.flatten())


_get_num_threads = torch.get_num_threads
_calls: dict[tuple[Any, ...], Call] = {}
