# SPDX-License-Identifier: Apache-2.0
"""Public headers as pages of Sphinx's C domain: every declaration with the comment that stands
before it, every field and enumerator with its own.

The headers have plain comments, for who reads them in an editor: Doxygen would skip them, or take
their `|V| <=` and `[b][s_q]` for markup. What is not understood here is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

COMMENT = re.compile(r"/\*(.*?)\*/", re.DOTALL)
SECTION = re.compile(r"/\* ---- (.*?) ---- \*/")


def text_of(comment: str) -> list[str]:
    """Lines of a comment, without its stars."""
    lines = [re.sub(r"^ *\* ?", "", line) for line in comment.split("\n")[1:]]
    lines = [comment.split("\n")[0].strip(), *lines]
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]


def escaped(text: str) -> str:
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"`{part}`" if i % 2 else re.sub(r"([\\*_|`])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def prose(lines: list[str], indent: str) -> list[str]:
    """Paragraphs; what is indented is shown as it stands."""
    out, literal = [], False
    for line in lines:
        inside = line.startswith("  ") and not line.lstrip().startswith("- ")
        if inside and not literal:
            out += ["", f"{indent}::", ""]
        elif literal and not inside:
            out.append("")
        literal = inside
        out.append(indent + ("    " + line.strip() if inside else escaped(line)) if line else "")
    return ["", *out, ""]


def directive(kind: str, signatures: list[str], comment: list[str], indent: str = "") -> list[str]:
    head = f"{indent}.. c:{kind}:: "
    rest = [" " * len(head) + s for s in signatures[1:]]
    return [head + signatures[0], *rest, *prose(comment, indent + "   ")]


def one_line(code: str) -> str:
    return re.sub(r"\s+", " ", code).replace("AMLA_API ", "").strip()


def declarators(field: str) -> list[str]:
    """`int32_t a, *b` -> `int32_t a`, `int32_t *b`."""
    if "(" in field:
        return [field]
    first, *others = [part.strip() for part in field.split(",")]
    base = re.sub(r"[*\s]*\w+(\[.*\])?$", "", first)
    return [first, *(f"{base} {other}" for other in others)]


def members(body: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """Fields or enumerators, each with its comment: before it, or behind it on its line."""
    pending: list[str] = []
    found: list[tuple[str, list[str]]] = []
    code, behind = "", False  # behind: is a member's end on this line?
    for part in re.split(r"(/\*.*?\*/|\n)", body, flags=re.DOTALL):
        if part == "\n":
            code, behind = code + " ", False
        elif not part.startswith("/*"):
            *whole, code = (code + part).split(separator)
            for one in whole:
                found.append((one_line(one), pending))
                pending, behind = [], True
        elif code.strip():  # the last enumerator has no comma
            found.append((one_line(code), pending + text_of(part[2:-2])))
            code, pending = "", []
        else:
            notes = found[-1][1] if behind else pending
            notes += ([""] if notes else []) + text_of(part[2:-2])
    if code.strip():
        found.append((one_line(code), pending))
    yield from found


def type_page(code: str, comment: list[str]) -> list[str]:
    kind, name, body = re.match(r"typedef (enum|struct) (\w+) \{(.*)\}", code, re.DOTALL).groups()
    out = directive(kind, [name], comment)
    for one, note in members(body, "," if kind == "enum" else ";"):
        if kind == "enum":
            out += directive("enumerator", [one], note, "   ")
        else:
            out += directive("member", declarators(one), note, "   ")
    return out


def declaration(code: str, comment: list[str]) -> list[str]:
    plain = one_line(COMMENT.sub("", code)).rstrip(";")
    if re.match(r"typedef (enum|struct) \w+ \{", code):
        return type_page(code, comment)
    behind = COMMENT.search(code)
    if behind:
        comment = [*comment, *text_of(behind.group(1))]
    constant = re.match(r"enum \{ (\w+) = (\w+) \}", plain)
    if constant:
        return declaration("#define {} {}".format(*constant.groups()), comment)
    if plain.startswith("typedef struct"):
        return directive("type", [plain.split()[-1]], comment)
    if plain.startswith("typedef"):
        return directive("type", [plain.removeprefix("typedef ")], comment)
    if plain.startswith("#define"):
        name, _, value = plain.removeprefix("#define ").partition(" ")
        shown = [f"``{value}``"] if value and not name.endswith("_INIT") else []
        return [f".. c:macro:: {name}", "", *(f"   {s}" for s in shown), *prose(comment, "   ")]
    if "(" not in plain:
        raise ValueError(f"not understood: {plain}")
    return directive("function", [plain], comment)


def pieces(header: str) -> Iterator[tuple[str, str]]:
    """Comments and declarations of the top level, in order."""
    rest = header
    patterns = [
        ("comment", re.compile(r"/\*.*?\*/(?P<end>\n*)", re.DOTALL)),
        ("code", re.compile(r"#define (?:[^\n]*\\\n)*[^\n]*\n")),
        ("skip", re.compile(r"#if defined\(AMLA_STATIC\).*?#endif\n", re.DOTALL)),
        ("skip", re.compile(r'#[^\n]*\n|extern "C" \{\n|\}\n|\n')),
        ("code", re.compile(r"typedef (?:enum|struct) \w+ \{.*?\n\} \w+;[^\n]*\n", re.DOTALL)),
        ("code", re.compile(r"(?:typedef|enum|AMLA_API)[^;]*;(?: */\*.*?\*/)?\n", re.DOTALL)),
    ]
    while rest:
        for kind, pattern in patterns:
            match = pattern.match(rest)
            if match:
                yield kind, match.group(0)
                rest = rest[match.end() :]
                break
        else:
            raise ValueError(f"not understood: {rest[:80]!r}")


def page(header: str, name: str) -> str:
    title = f"<amla/{name}>"
    out = [title, "=" * len(title), ""]
    pending: list[str] = []
    for kind, code in pieces(header):
        section = SECTION.match(code)
        if kind == "skip" or "clang-format" in code or code.startswith(f"#define {guard(name)}"):
            continue
        if section:
            out += ["", section.group(1), "-" * len(section.group(1)), ""]
            continue
        if kind == "code":
            out += declaration(code, pending)
            pending = []
            continue
        lines = [n for n in text_of(code.strip()[2:-2]) if not n.startswith("SPDX")]
        if code.endswith("\n\n") or len(out) == 3:
            out += prose(lines, "")
        else:
            pending = lines
    return "\n".join(out) + "\n"


def guard(name: str) -> str:
    return "AMLA_" + name.replace(".", "_").upper()
