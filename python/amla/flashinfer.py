# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's interface for MLA over AMLA, for CPU tensors:

    from amla import flashinfer         # instead of: import flashinfer

`BatchMLAPagedAttentionWrapper` (also as `mla.BatchMLAPagedAttentionWrapper`), `merge_state`,
`merge_state_in_place` and `merge_states` have FlashInfer's argument names and its LSE, base 2
unless asked for otherwise. What FlashInfer has and this has not raises NotImplementedError by name.
More than FlashInfer: float32, any number of heads, any page size, any widths that AMLA takes.
"""

from __future__ import annotations

import types
from typing import Any, NoReturn

import torch

from ._arrays import integers, is_torch, refuse_unplain
from ._decode import decode
from ._library import checked_flag, checked_int, checked_number
from ._merge import merge_parts

__all__ = [
    "BatchDecodeMlaWithPagedKVCacheWrapper",
    "BatchMLAPagedAttentionWrapper",
    "merge_state",
    "merge_state_in_place",
    "merge_states",
    "mla",
    "trtllm_batch_decode_with_kv_cache_mla",
    "xqa_batch_decode_with_kv_cache_mla",
]

# ---- What tensors must be ----


def _expect(name: str, x: Any, shape: tuple[Any, ...], dtype: torch.dtype | None = None) -> None:
    """A plain CPU tensor of that shape, in which words stand for any size."""
    if not is_torch(x):
        raise TypeError(f"{name}: {type(x).__name__}: must be a torch tensor")
    refuse_unplain(name, x)
    if x.device.type != "cpu":
        raise NotImplementedError(f"{name}: device {x.device}: amla.flashinfer takes CPU tensors")
    sizes = tuple(x.shape)
    if len(sizes) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, sizes)):
        wanted = ", ".join(str(n) for n in shape)
        raise ValueError(f"{name}: shape {list(sizes)}: must be [{wanted}]")
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"{name}: dtype {x.dtype}: must be {dtype}")


def _refuse_given(**arguments: Any) -> None:
    """What another backend of FlashInfer takes."""
    for name, x in arguments.items():
        if x is not None and x is not False:
            raise NotImplementedError(f"{name}: not supported by amla.flashinfer")


def _copied(name: str, x: Any, axis: str | int) -> torch.Tensor:
    """A copy of integers, which the caller may write to afterwards."""
    _expect(name, x, (axis,))
    if x.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: dtype {x.dtype}: must be torch.int32")
    return integers(name, x).clone()


def _rising(name: str, ends: torch.Tensor) -> None:
    """An indptr starts at 0 and does not fall."""
    if int(ends[0]) != 0:
        raise ValueError(f"{name}[0]={int(ends[0])}: must be 0")
    falls = (ends[1:] < ends[:-1]).nonzero()
    if len(falls):
        i = int(falls[0]) + 1
        raise ValueError(
            f"{name}[{i}]={int(ends[i])}: must be >= {name}[{i - 1}]={int(ends[i - 1])}"
        )


# ---- Attention ----


class BatchMLAPagedAttentionWrapper:
    """MLA over a paged cache, for decoding and incremental prefill: `plan` once per step, `run` in
    every layer.

    float_workspace_buffer is not used; AMLA has scratch of its own. backend "auto", "fa2" and "fa3"
    are the same here; "cutlass", which takes other arguments, and use_cuda_graph=True are
    NotImplementedError. qo_indptr, kv_indptr, kv_indices and kv_len_arr are buffers of CUDA graphs,
    hence ignored.
    """

    def __init__(
        self,
        float_workspace_buffer: torch.Tensor,
        use_cuda_graph: bool = False,
        qo_indptr: torch.Tensor | None = None,
        kv_indptr: torch.Tensor | None = None,
        kv_indices: torch.Tensor | None = None,
        kv_len_arr: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        if not is_torch(float_workspace_buffer):
            kind = type(float_workspace_buffer).__name__
            raise TypeError(f"float_workspace_buffer: {kind}: must be a torch tensor")
        self.device = float_workspace_buffer.device
        if self.device.type != "cpu":
            raise NotImplementedError(
                f"float_workspace_buffer: device {self.device}: amla.flashinfer takes CPU tensors"
            )
        if backend not in ("auto", "fa2", "fa3"):
            raise NotImplementedError(f"backend={backend!r}: must be 'auto', 'fa2' or 'fa3'")
        _refuse_given(use_cuda_graph=use_cuda_graph)
        self._planned: dict[str, Any] | None = None

    def plan(
        self,
        qo_indptr: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_len_arr: torch.Tensor,
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        use_profiler: bool = False,
        *,
        metadata: Any = None,
        cum_seq_lens_q: Any = None,
        block_tables: Any = None,
        seq_lens: Any = None,
        max_q_len: Any = None,
        query_layout: str | None = None,
        kv_cache_layout: str | None = None,
        lse_mode: str | None = None,
        output_dtype: torch.dtype | None = None,
        output_scale: str | None = None,
        scale_mode: str | None = None,
        skip_softmax: bool = False,
    ) -> None:
        """What `run` attends to. The tensors are copied.

        Arguments
            qo_indptr     [b + 1] int32: sequence i has queries [qo_indptr[i], qo_indptr[i + 1])
            kv_indptr     [b + 1] int32, likewise of its pages in kv_indices
            kv_indices    [kv_indptr[-1]] or more int32 page ids
            kv_len_arr    [b] int32 tokens of each sequence, 0 allowed
            num_heads, head_dim_ckv (512), head_dim_kpe (64), page_size
            causal        the last query of a sequence sees all of its tokens, the one before it
                          one less
            sm_scale      factor of q . k, of the width before absorption: 192^-0.5 in DeepSeek-V3
            q_data_type, kv_data_type  float32, bfloat16 or float16
        The rest must be absent: NotImplementedError by name.

        Raises ValueError with field, value and rule; then the plan that was is kept.
        """
        _refuse_given(
            use_profiler=use_profiler,
            metadata=metadata,
            cum_seq_lens_q=cum_seq_lens_q,
            block_tables=block_tables,
            seq_lens=seq_lens,
            max_q_len=max_q_len,
            query_layout=query_layout,
            kv_cache_layout=kv_cache_layout,
            lse_mode=lse_mode,
            output_dtype=output_dtype,
            output_scale=output_scale,
            scale_mode=scale_mode,
            skip_softmax=skip_softmax,
        )
        sizes = dict(
            num_heads=num_heads,
            head_dim_ckv=head_dim_ckv,
            head_dim_kpe=head_dim_kpe,
            page_size=page_size,
        )
        for name, n in sizes.items():
            if checked_int(name, n) < 1:
                raise ValueError(f"{name}={n}: must be >= 1")
        for name, dtype in (("q_data_type", q_data_type), ("kv_data_type", kv_data_type)):
            if dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise NotImplementedError(f"{name}={dtype}: must be float32, bfloat16 or float16")
        self._planned = dict(
            lists=_lists(qo_indptr, kv_indptr, kv_indices, kv_len_arr, page_size),
            options=dict(
                causal=bool(checked_flag("causal", causal)),
                scale=checked_number("sm_scale", sm_scale),
                d_v=head_dim_ckv,
            ),
            q_dtype=q_data_type,
            kv_dtype=kv_data_type,
            **sizes,
        )

    def run(
        self,
        q_nope: torch.Tensor,
        q_pe: torch.Tensor,
        ckv_cache: torch.Tensor,
        kpe_cache: torch.Tensor,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        profiler_buffer: torch.Tensor | None = None,
        kv_len: torch.Tensor | None = None,
        page_table: torch.Tensor | None = None,
        return_lse_base_on_e: bool = False,
        *,
        query: Any = None,
        kv_cache: Any = None,
        o_scale: Any = None,
        ckv_scale: Any = None,
        ckv_scale_arr: Any = None,
        kpe_scale: Any = None,
    ) -> Any:
        """Attention as planned.

        Arguments
            q_nope      [qo_indptr[-1], num_heads, head_dim_ckv], the absorbed query
            q_pe        [qo_indptr[-1], num_heads, head_dim_kpe]
            ckv_cache   [n_pages, page_size, head_dim_ckv], key and value
            kpe_cache   [n_pages, page_size, head_dim_kpe]
            out, lse    tensors to write into: like q_nope, and [qo_indptr[-1], num_heads] float32
            return_lse  True: (out, lse), else out
            return_lse_base_on_e  True: lse is the natural logarithm, else of base 2
        Last axes are contiguous, of lse all; other strides are free. The rest must be absent:
        NotImplementedError by name.

        A row that sees no token has out 0 and lse -inf. Whatever lies behind the last token of a
        sequence reaches no result. ValueError with field, value and rule before any work.
        """
        _refuse_given(
            profiler_buffer=profiler_buffer,
            kv_len=kv_len,
            page_table=page_table,
            query=query,
            kv_cache=kv_cache,
            o_scale=o_scale,
            ckv_scale=ckv_scale,
            ckv_scale_arr=ckv_scale_arr,
            kpe_scale=kpe_scale,
        )
        p = self._planned
        if p is None:
            raise RuntimeError("run: plan must be called first")
        rows = (int(p["lists"]["q_indptr"][-1]), p["num_heads"])
        pages = ("n_pages", p["page_size"])
        _expect("q_nope", q_nope, (*rows, p["head_dim_ckv"]), p["q_dtype"])
        _expect("q_pe", q_pe, (*rows, p["head_dim_kpe"]), p["q_dtype"])
        _expect("ckv_cache", ckv_cache, (*pages, p["head_dim_ckv"]), p["kv_dtype"])
        n_pages = ckv_cache.shape[0]
        _expect("kpe_cache", kpe_cache, (n_pages, *pages[1:], p["head_dim_kpe"]), p["kv_dtype"])
        if out is not None:
            _expect("out", out, (*rows, p["head_dim_ckv"]), p["q_dtype"])
        if lse is not None:
            _expect("lse", lse, rows, torch.float32)
        found = decode(
            q_nope,
            ckv_cache,
            q_rope=q_pe,
            kv_rope=kpe_cache,
            out=out,
            lse=lse,
            lse_base="e" if return_lse_base_on_e else 2,
            **p["lists"],
            **p["options"],
        )
        return found[:2] if return_lse else found[0]


def _lists(qo_indptr: Any, kv_indptr: Any, kv_indices: Any, kv_len_arr: Any, page_size: int) -> Any:
    """The lists of a plan as decode takes them, checked against each other."""
    lengths = _copied("kv_len_arr", kv_len_arr, "b")
    q_ends = _copied("qo_indptr", qo_indptr, len(lengths) + 1)
    page_ends = _copied("kv_indptr", kv_indptr, len(lengths) + 1)
    pages = _copied("kv_indices", kv_indices, "n")
    _rising("qo_indptr", q_ends)
    _rising("kv_indptr", page_ends)
    if int(page_ends[-1]) > len(pages):
        raise ValueError(
            f"kv_indptr[{len(lengths)}]={int(page_ends[-1])}: must be <= {len(pages)}, the entries "
            "of kv_indices"
        )
    room = (page_ends[1:] - page_ends[:-1]).long() * page_size
    for i in ((lengths < 0) | (lengths > room)).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"kv_len_arr[{i}]={int(lengths[i])}: must be 0 to {int(room[i])}, the room in its pages"
        )
    return dict(seqlens=lengths, q_indptr=q_ends, kv_indptr=page_ends, kv_indices=pages)


# ---- Merging ----


def _merged(v: Any, s: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """v [n_parts, seq_len, num_heads, head_dim] and s [n_parts, seq_len, num_heads] as one."""
    n_parts, *rows, d = v.shape
    out, lse = merge_parts(
        v.float().reshape(n_parts, -1, d),
        s.float().reshape(n_parts, -1),
        lse_base=2,
        out_dtype=dtype,
    )
    return out.view(*rows, d), lse.view(rows)


def merge_state(
    v_a: torch.Tensor, s_a: torch.Tensor, v_b: torch.Tensor, s_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to disjoint keys, merged: v_a, v_b [seq_len, num_heads, head_dim] of one dtype,
    s_a, s_b [seq_len, num_heads] their LSE, base 2. Returns v of that dtype and s float32. Parts
    that saw no key have -inf."""
    _expect("v_a", v_a, ("seq_len", "num_heads", "head_dim"))
    _expect("s_a", s_a, tuple(v_a.shape[:2]))
    _expect("v_b", v_b, tuple(v_a.shape), v_a.dtype)
    _expect("s_b", s_b, tuple(v_a.shape[:2]))
    return _merged(torch.stack((v_a, v_b)), torch.stack((s_a, s_b)), v_a.dtype)


def merge_state_in_place(
    v: torch.Tensor,
    s: torch.Tensor,
    v_other: torch.Tensor,
    s_other: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> None:
    """`merge_state` into v and s; with mask [seq_len] bool only where it is True."""
    _expect("v", v, ("seq_len", "num_heads", "head_dim"))
    _expect("s", s, tuple(v.shape[:2]), torch.float32)
    _expect("v_other", v_other, tuple(v.shape), v.dtype)
    _expect("s_other", s_other, tuple(v.shape[:2]))
    if mask is not None:
        _expect("mask", mask, (v.shape[0],), torch.bool)
    for x, merged in zip((v, s), merge_state(v, s, v_other, s_other)):
        if mask is not None:
            merged = torch.where(mask.view(-1, *[1] * (x.dim() - 1)), merged, x)
        x.copy_(merged)


def merge_states(v: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of many parts: v [seq_len, num_states, num_heads, head_dim], s [seq_len, num_states,
    num_heads], base 2. Returns v [seq_len, num_heads, head_dim] of v's dtype and s [seq_len,
    num_heads] float32."""
    _expect("v", v, ("seq_len", "num_states", "num_heads", "head_dim"))
    _expect("s", s, tuple(v.shape[:3]))
    return _merged(v.transpose(0, 1), s.transpose(0, 1), v.dtype)


# ---- What is not here ----


def _absent(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name}: not supported by amla.flashinfer: use BatchMLAPagedAttentionWrapper"
    )


class BatchDecodeMlaWithPagedKVCacheWrapper:
    """FlashInfer's old wrapper: NotImplementedError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _absent(type(self).__name__)


def trtllm_batch_decode_with_kv_cache_mla(*args: Any, **kwargs: Any) -> NoReturn:
    """NotImplementedError."""
    _absent("trtllm_batch_decode_with_kv_cache_mla")


def xqa_batch_decode_with_kv_cache_mla(*args: Any, **kwargs: Any) -> NoReturn:
    """NotImplementedError."""
    _absent("xqa_batch_decode_with_kv_cache_mla")


#: FlashInfer's module of that name. :meta hide-value:
mla = types.SimpleNamespace(
    BatchMLAPagedAttentionWrapper=BatchMLAPagedAttentionWrapper,
    trtllm_batch_decode_with_kv_cache_mla=trtllm_batch_decode_with_kv_cache_mla,
    xqa_batch_decode_with_kv_cache_mla=xqa_batch_decode_with_kv_cache_mla,
)
