# SPDX-License-Identifier: Apache-2.0
"""Sphinx's configuration. Nothing of a page comes from another machine."""

import pathlib
import re

from docutils import nodes
from sphinx import addnodes

project = "AMLA"
author = copyright = "the AMLA authors, Apache-2.0"
root_doc = "docs/site/index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "AMLA"
html_domain_indices = False
html_show_sourcelink = html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"footer_icons": [], "top_of_page_buttons": []}
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
highlight_language = "none"
smartquotes = False
autodoc_mock_imports = ["amla._torch_op", "torch", "transformers", "vllm"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"


# ---- The tree's Markdown names files, it does not link them: here a name is a link ----


def link_names(app, doctree) -> None:
    here = pathlib.PurePosixPath(app.env.docname).parent
    known = app.env.found_docs
    for text in list(doctree.findall(nodes.Text)):
        parents = (nodes.reference, addnodes.pending_xref, nodes.literal_block, nodes.title)
        if any(isinstance(p, parents) for p in ancestors(text)):
            continue
        parts = re.split(r"([\w./-]+\.md)\b", text)
        if len(parts) > 1:
            text.parent.replace(text, [piece(p, here, known) for p in parts if p])


def ancestors(node):
    while node.parent is not None:
        node = node.parent
        yield node


def piece(text: str, here: pathlib.PurePosixPath, known) -> nodes.Node:
    for name in (text, str(here / text)):
        if name.endswith(".md") and name.removesuffix(".md") in known:
            target = "/" + name.removesuffix(".md")
            return addnodes.pending_xref(
                "", nodes.inline("", text), refdomain="std", reftype="doc", refexplicit=True,
                reftarget=target, refdoc=str(here / "x"), refwarn=True)  # fmt: skip
    return nodes.Text(text)


# ---- Docstrings are laid out for terminals ----


def entries(block: list[str]) -> list[str] | None:
    """`name  meaning` lines as a definition list; None if the block is something else."""
    out: list[str] = []
    for line in block:
        if line.startswith(" "):
            if not out:
                return None
            out.append("   " + escaped(line.strip()))
            continue
        match = re.match(r"(\S+(?:,? \S+)*)(?:  +(.+))?$", line)
        known = match and (match[2] or line.endswith((",", "type")) or "_" in line)
        known = known and "=" not in match[1]  # a formula
        if not known:
            return None
        out += ["", f"``{match[1]}``", *([f"   {escaped(match[2])}"] if match[2] else [])]
    return [*out, ""]


def escaped(text: str) -> str:
    parts = re.split(r"`+([^`]+)`+", text)
    plain = [re.sub(r"([\\*_|])", r"\\\1", p) for p in parts]
    return "".join(f"``{parts[i]}``" if i % 2 else p for i, p in enumerate(plain))


def docstring(app, what, name, obj, options, lines) -> None:
    out: list[str] = []
    source, lines[:] = [*lines, ""], []
    while source:
        n = next((i for i, s in enumerate(source) if not s.startswith(" ")), len(source))
        if n:
            indent = min(len(s) - len(s.lstrip()) for s in source[:n])
            block = [s[indent:].rstrip() for s in source[:n]]
            out += entries(block) or ["", "::", "", *(f"    {s}" for s in block), ""]
            source = source[n:]
            continue
        line = source.pop(0)
        heading = bool(line) and source and source[0].startswith(" ")
        out.append(f"**{escaped(line)}**" if heading else escaped(line))
    lines.extend(out)


def setup(app) -> None:
    app.connect("doctree-read", link_names)
    app.connect("autodoc-process-docstring", docstring)
