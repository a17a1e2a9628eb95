# SPDX-License-Identifier: Apache-2.0
"""The ctypes structs and constants against include/amla/amla.h, by a C compiler."""

import ctypes
import pathlib
import re
import shutil
import subprocess

import pytest

from amla import _library
from amla._options import LIBRARY, Option, is_named_by_library

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ROOT / "include/amla/amla.h"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_structs_and_constants_match_the_header(tmp_path):
    lines = ["#include <stddef.h>", "#include <amla/amla.h>"]
    for struct, name in _library.C_NAMES.items():
        lines.append(
            f'_Static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "size of {name}");'
        )
        for field, *_ in struct._fields_:
            where = getattr(struct, field)
            lines.append(
                f'_Static_assert(offsetof({name}, {field}) == {where.offset}, "{name}.{field}");'
            )
            lines.append(
                f'_Static_assert(sizeof((({name} *)0)->{field}) == {where.size}, "size of '
                f'{name}.{field}");'
            )
    for prefix, values in (("", {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}),):
        for c_name, key in values.items():
            lines.append(
                f'_Static_assert(AMLA_{prefix}{c_name} == {_library.DTYPES[key]}, "{key}");'
            )
    for prefix, values in (
        ("", _library.FP8_TYPES),
        ("INDEX_", _library.INDEX_KINDS),
        ("INDEX_KEYS_", _library.INDEX_KEYS),
        ("EMPTY_", {"minus_inf": _library.EMPTY_LSE["-inf"], "plus_inf": 1}),
        ("LSE_", {"without_sink": 0, "with_sink": 1}),
    ):
        lines += [
            f'_Static_assert(AMLA_{prefix}{name.upper()} == {number}, "{name}");'
            for name, number in values.items()
        ]
    for kind, choices in _library.CHOICES.items():
        if not is_named_by_library(LIBRARY.get(kind, Option(None))):
            continue
        prefix = kind.split("_")[0].upper()  # AMLA_P_BF16 of p_form
        enum = HEADER.read_text().split(f"typedef enum amla_{kind} {{")[1].split("}")[0]
        assert len(choices) == len(re.findall(r"^ +AMLA_\w+ = \d", enum, re.M))
        for key, number in choices.items():
            lines.append(
                f'_Static_assert(AMLA_{prefix}_{key.upper()} == {number}, "{prefix} {key}");'
            )
    lines.append(
        f"_Static_assert(AMLA_LSE_NATURAL == {_library.LSE_BASES['e']} && AMLA_LSE_BASE2 == "
        f'{_library.LSE_BASES[2]}, "lse base");'
    )
    lines.append(f'_Static_assert(AMLA_MAX_SHARDS == {_library.MAX_SHARDS}, "shards");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n")
    result = subprocess.run(
        ["cc", "-std=c11", "-fsyntax-only", f"-I{ROOT}/include", str(source)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_version_is_the_headers():
    text = HEADER.read_text()
    parts = [
        text.split(f"AMLA_VERSION_{part} ")[1].split()[0] for part in ("MAJOR", "MINOR", "PATCH")
    ]
    assert _library.version == ".".join(parts)
