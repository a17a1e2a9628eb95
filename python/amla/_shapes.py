# SPDX-License-Identifier: Apache-2.0
"""Shapes, types and strides of arrays, checked: each ValueError has the array's name, what it is
and what it must be."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from . import _library as c
from ._arrays import View, pointer, view_of

INTEGERS = (
    "int32",
    "int64",
)  # of ids, lengths and lists; those of lists are int32 when they are here


def expect(
    name: str, view: View, shape: Sequence[int | str], values: dict[str, int] | None = None
) -> None:
    """The view has these dimensions: a number must be equal, a word says what stands there."""
    named = (f"{k}={values[k]}" if values and k in values else str(k) for k in shape)
    wanted = "[" + ", ".join(named) + "]"
    if len(view.shape) != len(shape):
        raise ValueError(f"{name}: shape {list(view.shape)}: must be {wanted}")
    for have, want in zip(view.shape, shape):
        number = values.get(want, have) if values and isinstance(want, str) else want
        if isinstance(number, int) and have != number:
            raise ValueError(f"{name}: shape {list(view.shape)}: must be {wanted}")


def expect_dtype(name: str, view: View, allowed: dict[str, int] | Sequence[str]) -> str:
    """The view's dtype, one of these."""
    if view.dtype not in allowed:
        raise ValueError(f"{name}: dtype {view.dtype}: must be {' or '.join(allowed)}")
    return view.dtype


def expect_contiguous(name: str, view: View, axis: int) -> None:
    """The axes from `axis` on are packed in order."""
    inner = 1
    for i in range(len(view.shape) - 1, axis - 1, -1):
        if view.shape[i] > 1 and view.strides[i] != inner and 0 not in view.shape:
            raise ValueError(
                f"{name}: strides {list(view.strides)}: must be contiguous from axis {axis} on"
            )
        inner *= view.shape[i]


def one_device(**views: View | None) -> str:
    """The device that all views are on."""
    devices = {view.device for view in views.values() if view}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {view.device}" for name, view in views.items() if view)
        raise ValueError(f"all arrays must be on one device: {where}")
    return devices.pop()


def stride(name: str, view: View, axis: int) -> int:
    """For a stride field of amla_problem, where 0 means packed and is right for an axis of one
    element and for no elements."""
    if view.shape[axis] <= 1 or 0 in view.shape:
        return 0
    if view.strides[axis] == 0:
        raise ValueError(
            f"{name}: stride 0 along axis {axis}: "
            "a broadcast array cannot be described to the library, copy it"
        )
    return view.strides[axis]


def strides(name: str, view: View, prefix: str, axes: Sequence[str]) -> dict[str, int]:
    """The stride fields of the view's first axes. Its last axis is contiguous."""
    fields = {f"{prefix}_stride_{axis}": stride(name, view, i) for i, axis in enumerate(axes)}
    expect_contiguous(name, view, len(view.shape) - 1)
    return fields


def extent_bytes(view: View) -> int:
    """Bytes from the first element to the end of the last one; 0 for an empty array."""
    if 0 in view.shape:
        return 0
    last = sum((n - 1) * stride for n, stride in zip(view.shape, view.strides))
    return max(0, 1 + last) * c.DTYPE_BYTES[view.dtype]


def expect_packed(
    name: str,
    view: View | None,
    shape: Sequence[str],
    dtypes: Sequence[str],
    known: dict[str, int],
) -> None:
    """`view`, if there is one, has these dimensions, one of these types, and no gaps."""
    if view:
        expect(name, view, shape, known)
        expect_dtype(name, view, dtypes)
        expect_contiguous(name, view, 0)


# ---- Functions that are no plans: host arrays of names to a struct of them ----


def host_views(arrays: dict[str, Any], needed: Sequence[str]) -> dict[str, View]:
    """The views of those that are there, in host memory; those that are needed must be."""
    views = {name: view_of(name, x) for name, x in arrays.items() if x is not None}
    for name in needed:
        if name not in views:
            raise TypeError(f"{name}=None: must be an array")
    if one_device(**views) != "cpu":
        first = needed[0]
        raise NotImplementedError(f"{first}: device {views[first].device}: must be on the CPU")
    return views


def put_arrays(
    args: ctypes.Structure, arrays: dict[str, Any], views: dict[str, View], fields: dict[str, str]
) -> None:
    """Pointers and capacities into the struct. fields: names there, of those that differ."""
    for name, x in arrays.items():
        field = fields.get(name, name)
        setattr(args, field, pointer(x))
        setattr(args, f"{field}_bytes", extent_bytes(views[name]) if name in views else 0)
