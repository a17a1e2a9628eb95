# SPDX-License-Identifier: Apache-2.0
"""Arrays as the library sees them: a pointer, a shape, strides in elements, a dtype name and a
device. Nothing is copied but integers that are too wide.

NumPy arrays and torch tensors are read directly; whatever else speaks DLPack becomes a NumPy view
of the same memory. `signature` is all of an array but its pointer, hashable and cheap: equal
signatures need to be checked only once.
"""

from __future__ import annotations

import ctypes
import functools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ._numpy import np

BFLOAT16_HELP = "bfloat16 in NumPy needs the package ml_dtypes (pip install ml_dtypes)"


class View(NamedTuple):
    """What a signature means. Strides count elements; dtype is a name such as "bfloat16", device
    "cpu" or "cuda:0"."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str


def loaded_torch() -> Any:
    """The module torch if the program has imported it, else None: who has no torch pays nothing for
    it."""
    return sys.modules.get("torch")


def is_torch(x: Any) -> bool:
    """Is x a torch tensor?"""
    torch = loaded_torch()
    return torch is not None and isinstance(x, torch.Tensor)


def is_traced(x: Any) -> bool:
    """Is the call part of a graph, or x a tensor without memory of its own, such as a fake one?
    Then it goes through torch's dispatcher."""
    torch = loaded_torch()
    if torch is None:
        return False
    is_plain = not isinstance(x, torch.Tensor) or type(x) in (torch.Tensor, torch.nn.Parameter)
    return torch.compiler.is_compiling() or not is_plain


def call_operator(name: str, arrays: Sequence[str], arguments: dict[str, Any]) -> Any:
    """torch.ops.amla.name with these arguments, of which `arrays` are arrays or None."""
    given = {array: arguments[array] for array in arrays}
    if not all(x is None or is_torch(x) for x in given.values()):
        raise ValueError("inside torch.compile all arrays must be torch tensors")
    refuse_gradients(**given)
    register_operators()
    return getattr(loaded_torch().ops.amla, name)(**arguments)


OPERATORS = f"{__package__}._torch_op"


def register_operators() -> None:
    """Makes torch.ops.amla, with the first tensor where amla was imported before torch. The package
    puts its own in place of this one, as operators lie above arrays."""


def native(name: str, x: Any, dtype: str | None = None) -> Any:
    """x itself if it is a NumPy array, a torch tensor or None; else a NumPy view of its memory
    through DLPack. Python lists of numbers are copied into an array of `dtype` where that is given,
    ValueError if that would change one. TypeError for anything else."""
    if type(x) in _signatures:
        return x
    if is_torch(x):
        _signatures[type(x)] = _torch_signature
        return x
    if isinstance(x, np.ndarray):
        _signatures[_plain_type(name, x)] = _numpy_signature
        return x
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(name, x)
    if dtype is not None and isinstance(x, (list, tuple)):
        return _from_list(name, x, np.dtype(dtype))
    raise TypeError(
        f"{name}: {type(x).__name__}: must be a NumPy array, a torch tensor or an object with "
        "__dlpack__"
    )


def _plain_type(name: str, x: Any) -> type:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: MaskedArray: must be a plain array, its mask would be ignored")
    return type(x)


def _from_list(name: str, x: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Numbers in nested lists, each checked: NumPy would round 0.6, read "100", and take True for
    1."""
    try:
        items = np.array(x, object)
    except ValueError:
        raise ValueError(f"{name}={x!r:.60}: all rows must be equally long") from None
    integer = dtype.kind == "i"
    allowed = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    for index, item in np.ndenumerate(items):
        at = name + "".join(f"[{i}]" for i in index)
        if isinstance(item, (list, tuple, np.ndarray)):
            raise ValueError(f"{at}={item!r:.60}: all rows must be equally long")
        if isinstance(item, (bool, np.bool_)) or not isinstance(item, allowed):
            raise ValueError(
                f"{at}={item!r:.60}: must be {'an integer' if integer else 'a number'}"
            )
        if integer and not -(2**31) <= item < 2**31:
            raise ValueError(f"{at}={item}: must fit into int32")
    return items.astype(dtype)


def integers(name: str, x: Any) -> Any:
    """block_table or seqlens: `native`, and int64 as a copy in int32. ValueError if a number does
    not fit. Numbers on a device are not looked at, that would wait for it: there those that do not
    fit become the nearest that do, which no page id or length is."""
    x = native(name, x, "int32")
    return x if x is None or x.itemsize != 8 else _narrowed(name, x)


def _narrowed(name: str, x: Any) -> Any:
    narrow: Any
    if isinstance(x, np.ndarray):
        if x.dtype != np.int64 or not x.dtype.isnative:
            return x  # refused later, by its dtype
        narrow = x.astype(np.int32)
        wide = np.argwhere(narrow != x)
    else:
        refuse_unplain(name, x)
        torch = loaded_torch()
        if x.dtype is not torch.int64:
            return x
        if x.device.type != "cpu":
            return x.clamp(-(2**31), 2**31 - 1).to(torch.int32)
        narrow = x.to(torch.int32)
        wide = (narrow != x).nonzero()
    if len(wide):
        first = tuple(int(i) for i in wide[0])
        raise ValueError(
            f"{name}{''.join(f'[{i}]' for i in first)}={int(x[first])}: must fit into int32"
        )
    return narrow


def refuse_unplain(name: str, x: Any) -> None:
    """ValueError if x is a tensor whose numbers do not lie in memory of its own, at its shape and
    strides."""
    torch = loaded_torch()
    if torch is None or not isinstance(x, torch.Tensor) or torch.compiler.is_compiling():
        return
    if x.is_nested:
        raise ValueError(
            f"{name}: a nested tensor: must be a plain one; pad it, seqlens says how long each "
            "sequence is"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise ValueError(
            f"{name}: a tensor inside torch.vmap or another transform of torch.func: must be a "
            "plain one; "
            "decode a batch by its axis b instead"
        )
    if str(x.layout) != "torch.strided":
        raise ValueError(f"{name}: layout {x.layout}: must be torch.strided, call to_dense()")
    if x.device.type == "meta":
        raise ValueError(
            f"{name}: device meta: must be on the CPU or on a CUDA device, a meta tensor has no "
            "numbers"
        )


def refuse_gradients(**arrays: Any) -> None:
    """ValueError if one of them is a tensor that requires a gradient while gradients are recorded:
    it would be lost silently."""
    torch = loaded_torch()
    if torch is not None and torch.is_grad_enabled():
        for name, x in arrays.items():
            if isinstance(x, torch.Tensor) and x.requires_grad:
                raise ValueError(
                    f"{name} requires a gradient: decoding has no backward pass, use "
                    "torch.no_grad()"
                )


def signature(x: Any) -> Any:
    """Everything about a native array except where it lies; hashable; None for None."""
    return _signatures[type(x)](x)


def _numpy_signature(x: Any) -> Any:
    return x.shape, x.strides, x.dtype


def _torch_signature(x: Any) -> Any:
    return _describe(x), x.stride(), x.is_neg()


_describe = operator.attrgetter("shape", "dtype", "device")
_signatures: dict[type, Callable[[Any], Any]] = {
    type(None): lambda x: None,
    np.ndarray: _numpy_signature,
}  # of the types seen so far


def pointer(x: Any) -> int:
    """The address of a native array's first element; 0 for None."""
    if x is None:
        return 0
    if isinstance(x, np.ndarray):
        return x.__array_interface__["data"][0]
    return x.data_ptr()


def view_of(name: str, x: Any) -> View:
    """The View of a native array. ValueError where strides are no whole elements, bytes are swapped
    or signs are still to be swapped."""
    if x is None:
        raise TypeError(f"{name}=None: must be an array")
    if not isinstance(x, np.ndarray):
        refuse_unplain(name, x)
        if x.is_neg():
            raise ValueError(
                f"{name}: a tensor with its negative bit set: must be resolved, call resolve_neg()"
            )
        return View(
            tuple(x.shape), tuple(x.stride()), str(x.dtype).removeprefix("torch."), str(x.device)
        )
    if not x.dtype.isnative:
        raise ValueError(f"{name}: dtype {x.dtype.str}: must be in native byte order")
    if any(s % x.itemsize for s in x.strides):
        raise ValueError(
            f"{name}: strides {x.strides} bytes: must be multiples of the element's {x.itemsize}"
        )
    return View(x.shape, tuple(s // x.itemsize for s in x.strides), x.dtype.name, "cpu")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError(BFLOAT16_HELP) from None
    return np.dtype(ml_dtypes.bfloat16)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a torch dtype or a NumPy dtype or scalar type."""
    name = str(dtype)
    if isinstance(dtype, str) or name.startswith("torch."):
        return name.removeprefix("torch.")
    try:
        return np.dtype(dtype).name
    except (TypeError, ImportError):
        raise ValueError(
            f"out_dtype={dtype!r:.60}: must be one of float32, bfloat16, float16, as a name or a "
            "dtype of torch or NumPy"
        ) from None


def maker_like_kind(like: Any, shape: tuple[int, ...], dtype: str) -> Callable[[], Any]:
    """Makes uninitialised arrays of the library that `like` is of, on its device."""
    if isinstance(like, np.ndarray):
        return functools.partial(np.empty, shape, numpy_dtype(dtype))
    torch = loaded_torch()
    strides = tuple(math.prod(n or 1 for n in shape[i + 1 :]) for i in range(len(shape)))
    return functools.partial(
        torch.empty_strided, shape, strides, dtype=getattr(torch, dtype), device=like.device
    )  # 0.5 us less than empty


# ---- DLPack: the structs of its C ABI, version 0, as far as they are read ----


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DL_CPU, _DL_CUDA_HOST = 1, 3
_DL_DTYPES = {
    (0, 32): "int32",
    (0, 64): "int64",
    (2, 32): "float32",
    (2, 16): "float16",
    (4, 16): "bfloat16",
}
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """Memory that someone else owns, for np.asarray, which keeps this object and through it the
    owner's capsule."""

    def __init__(self, capsule: Any, interface: dict[str, Any]):
        self.capsule = capsule  # never consumed: its own destructor gives the memory back
        self.__array_interface__ = interface


def _from_dlpack(name: str, x: Any) -> Any:
    device_type, device_id = x.__dlpack_device__()
    if device_type not in (_DL_CPU, _DL_CUDA_HOST):
        raise NotImplementedError(
            f"{name}: DLPack device type {int(device_type)}: only host memory; pass device memory "
            "as a torch tensor"
        )
    capsule = x.__dlpack__()
    t = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    dtype = _DL_DTYPES.get((t.code, t.bits))
    if dtype is None or t.lanes != 1:
        raise ValueError(
            f"{name}: DLPack type code {t.code} with {t.bits} bits: must be int32, int64, float32, "
            "float16 or bfloat16"
        )
    size = t.bits // 8
    strides = tuple(s * size for s in t.strides[: t.ndim]) if t.strides else None
    unsigned = {
        "shape": tuple(t.shape[: t.ndim]),
        "strides": strides,
        "typestr": f"<u{size}",
        "version": 3,
        "data": ((t.data or 0) + t.byte_offset, False),
    }
    return np.asarray(_Memory(capsule, unsigned)).view(numpy_dtype(dtype))
