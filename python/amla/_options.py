# SPDX-License-Identifier: Apache-2.0
"""The options of a call, each once: its name, its type, its default, and what it chooses from. The
struct, the checks, the signatures and the torch operator follow from the lists here.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, NamedTuple, TypedDict


class Option(NamedTuple):
    """A default, and what the values of a named option stand for: a dict, or None where the library
    has the names (amla_NAME_name). operator: the type in the torch operator, where it is another.
    """

    default: Any
    choices: dict[Any, int] | None = None
    operator: Any = None


class LibraryOptions(TypedDict, total=False):
    """Fields of amla_options, in the header's order. Text without choices is named by the
    library."""

    backend: Annotated[str, Option("auto")]
    rescale: Annotated[str, Option("lazy")]
    threads: Annotated[int, Option(0)]
    isa: Annotated[str, Option("auto")]
    split_tokens: Annotated[int, Option(0)]
    lse_base: Annotated[str | int, Option("e", {"e": 0, 2: 1, "2": 1}, str)]
    lse_sink: Annotated[bool, Option(False)]
    p_form: Annotated[str, Option("default")]
    q_form: Annotated[str, Option("default")]
    kv_round: Annotated[str, Option("exact")]


class DecodeOptions(LibraryOptions, total=False):
    """What `amla.decode` takes besides arrays and scale: those, and what arrays do not say of the
    problem."""

    causal: Annotated[bool, Option(False)]
    d_v: Annotated[int, Option(512)]
    out_dtype: Annotated[Any, Option(None)]  # of torch in the operator
    index_kind: Annotated[str, Option("slot", {"slot": 0, "position": 1})]
    window: Annotated[int, Option(0)]
    kv_type: Annotated[str | None, Option(None)]
    kv_scale: Annotated[float, Option(1.0)]
    kv_rope_scale: Annotated[float, Option(1.0)]


def _options(listed: Any) -> dict[str, Option]:
    hints = typing.get_type_hints(listed, include_extras=True)
    return {
        name: option._replace(operator=option.operator or hint)
        for name, (hint, option) in ((n, typing.get_args(h)) for n, h in hints.items())
    }


LIBRARY = _options(LibraryOptions)
DECODE = _options(DecodeOptions)
DEFAULTS = {name: option.default for name, option in DECODE.items()}


def is_named_by_library(option: Option) -> bool:
    return isinstance(option.default, str) and option.choices is None
