#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints how dense the tree's C, C++ and CUDA code is: figures to compare, not a verdict.

    tools/style_measures.py [FOLDER]

A token is what a compiler's lexer would make of the text without comments; preprocessor lines are
left out. A function is a brace at file level that follows a closing parenthesis. A nested ?: is a
second question mark in one statement; files named after an instruction set are not asked.
"""

import pathlib
import re
import statistics
import sys

FOLDERS = (
    "bench",
    "cli",
    "examples",
    "fuzz",
    "ggml",
    "harness",
    "include",
    "mpi",
    "sim",
    "spec",
    "src",
    "tests",
)
SUFFIXES = (".c", ".h", ".def", ".cu", ".cuh", ".cpp", ".hpp")
COLUMNS = 100

COMMENT_OR_STRING = re.compile(
    r"""(?P<comment>/\*.*?\*/|//[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""", re.S
)
TOKEN = re.compile(
    r"""[A-Za-z_]\w*|\.?\d(?:[\w.]|(?<=[eEpP])[+-])*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
    r"""|\.\.\.|<<=|>>=|->|\+\+|--|<<|>>|[<>=!+\-*/%&|^]=|&&|\|\||\#\#|[^\s\w]"""
)


def without_comments(text):
    def blank(match):
        if match.group("text"):
            return match.group("text")
        return "\n" * match.group("comment").count("\n") or " "

    text = COMMENT_OR_STRING.sub(blank, text)
    return re.sub(
        r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m.group().count("\n"), text, flags=re.M
    )


def tokens_of(text):
    """(token, line) of all code."""
    line, at = 1, 0
    for match in TOKEN.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        yield match.group(), line


def functions_of(tokens):
    """(lines, tokens) of each function body with its head's last line."""
    depth, last, start, count = 0, "", None, 0
    linkage = 0  # extern "C" { and namespace X { do not nest
    for i, (token, line) in enumerate(tokens):
        if token == "{":
            before = [t for t, _ in tokens[max(0, i - 2) : i]]
            if depth == 0 and (before[:1] == ["extern"] or "namespace" in before):
                linkage += 1
                continue
            if depth == 0 and last == ")":
                start, count = line, 0
            depth += 1
        elif token == "}":
            if depth == 0:
                linkage -= 1
                continue
            depth -= 1
            if depth == 0 and start is not None:
                yield line - start + 1, count
                start = None
        if start is not None:
            count += 1
        last = token


def nested_conditionals(tokens):
    marks = nested = 0
    for token, _ in tokens:
        if token in (";", "{", "}"):
            nested += marks > 1
            marks = 0
        marks += token == "?"
    return nested


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    files = [p for f in FOLDERS for p in sorted((root / f).rglob("*")) if p.suffix in SUFFIXES]
    if not files:
        sys.exit(f"{root}: no source files")
    per_line, lines, sizes, nested, wide, length = [], [], [], 0, 0, []
    for path in files:
        text = path.read_text()
        length.append(text.count("\n"))
        wide += sum(len(line) > COLUMNS for line in text.splitlines())
        tokens = list(tokens_of(without_comments(text)))
        count = {}
        for _, line in tokens:
            count[line] = count.get(line, 0) + 1
        per_line += count.values()
        if not re.search(r"__[a-z0-9]+\.c$", path.name):
            nested += nested_conditionals(tokens)
        for n_lines, n_tokens in functions_of(tokens):
            lines.append(n_lines)
            sizes.append(n_tokens)
    print(f"{len(files)} files, {len(lines)} functions")
    kinds = (("function lines", lines), ("function tokens", sizes), ("file lines", length))
    for name, values in kinds:
        middle, p90 = statistics.median(values), percentile(values, 0.9)
        print(f"{name:28}{middle:6.0f} median {p90:6} p90 {max(values):6} max")
    middle, mean = statistics.median(per_line), statistics.mean(per_line)
    print(f"{'tokens per line':28}{middle:6} median {mean:6.1f} mean")
    print(f"{'statements with nested ?:':28}{nested:6}")
    print(f"{f'lines over {COLUMNS} columns':28}{wide:6}")


if __name__ == "__main__":
    main()
