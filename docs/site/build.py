# SPDX-License-Identifier: Apache-2.0
"""The site, into FOLDER/html: the tree's Markdown, the reference from the headers and docstrings,
and the figures.

    build.py TREE FOLDER BUILD      BUILD has libamla.so and the program
"""

from __future__ import annotations

import os
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys

import amla
import c_reference
import figures
import numpy as np

PICTURES = {  # of the gallery: file -> what draws it
    "bench": "bench sk=256 sk=1024 sk=4096 --threads 1 --for 1",
    "accuracy": "accuracy --quick",
    "sim": "sim b=96,sq=2,h=128,sk=4096 --schedule preload --rescale amla",
}
PLAN_KEYS = 4096
REDIRECT = (
    '<!doctype html><html lang="en"><title>AMLA</title>'
    '<meta http-equiv="refresh" content="0; url=docs/site/index.html">'
    '<a href="docs/site/index.html">AMLA</a></html>\n'
)


def copy_pages(tree: pathlib.Path, source: pathlib.Path) -> None:
    kinds = ("*.md", "docs/*.md", "docs/site/*.md", "*/README.md", "docs/results/*.svg")
    for pattern in kinds:
        for page in tree.glob(pattern):
            to = source / page.relative_to(tree)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, to)
    list_the_rest(source)
    shutil.copytree(tree / "docs/site/_static", source / "_static")
    shutil.copy(tree / "docs/site/conf.py", source)


def list_the_rest(source: pathlib.Path) -> None:
    """Pages that docs/site/index.md does not list stand at the end of the menu."""
    index = source / "docs/site/index.md"
    listed = {(index.parent / line).resolve() for line in index.read_text().splitlines()}
    pages = (page.with_suffix("") for page in sorted(source.rglob("*.md")) if page != index)
    rest = [f"/{page.relative_to(source)}" for page in pages if page not in listed]
    if rest:
        with index.open("a") as file:
            print("\n```{toctree}\n:hidden:\n:caption: More\n", *rest, "```", sep="\n", file=file)


def python_modules() -> dict[str, str]:
    """Public modules of the package -> what autodoc is told more of them."""
    found = (module.name for module in pkgutil.iter_modules(amla.__path__))
    more = {f"amla.{name}": "" for name in found if not name.startswith("_")}
    return {"amla": ":imported-members:", **more}


def write_reference(tree: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir()
    names = []
    for header in sorted((tree / "include/amla").glob("*.h")):
        page = c_reference.page(header.read_text(), header.name)
        (folder / f"{header.stem}.rst").write_text(page)
        names.append(header.stem)
    for module, more in python_modules().items():
        options = "".join(f"   {o}\n" for o in (":members:", more) if o)
        page = f"{module}\n{'=' * len(module)}\n\n.. automodule:: {module}\n{options}"
        (folder / f"python_{module}.rst").write_text(page)
        names.append(f"python_{module}")
    title = "Reference\n=========\n\nBy header and by module: shapes, units and errors.\n"
    toc = "\n.. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {n}\n" for n in names)
    (folder / "index.rst").write_text(title + toc)


def plan_info() -> dict[str, int]:
    """What the library says of a plan of PLAN_KEYS keys."""
    q = np.zeros((1, 1, 128, 576), np.float32)
    kv = np.zeros((1, PLAN_KEYS, 576), np.float32)
    text = amla.Plan.like(q, kv, scale=1.0).describe()
    numbers = re.search(r"(\d+) rows x (\d+) tokens,.* split (\d+) of", text).groups()
    return dict(zip(("block_rows", "tile_tokens", "split_tokens"), map(int, numbers)))


def draw(tree: pathlib.Path, folder: pathlib.Path, build: pathlib.Path) -> None:
    folder.mkdir()
    for name, function in figures.RESULTS.items():
        function(tree / "docs/results", folder / f"{name}.svg")
    info = plan_info()
    figures.loop(info, (tree / "src/cpu/decode.c").read_text(), folder / "loop.svg")
    figures.tree(info, PLAN_KEYS, folder / "tree.svg")
    for name, command in PICTURES.items():
        picture = folder / f"program_{name}.svg"
        program = [build / "amla", *command.split(), "--plot", picture]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    tree, folder, build = (pathlib.Path(a).resolve() for a in sys.argv[1:])
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(folder / "html", ignore_errors=True)
    copy_pages(tree, source)
    write_reference(tree, source / "api")
    draw(tree, source / "docs/site/figures", build)
    # The same tree gives the same pages: no date is in them.
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "doctrees"]
    done = subprocess.run([*sphinx, source, folder / "html"], env=os.environ)
    if done.returncode:
        sys.exit(done.returncode)
    (folder / "html/index.html").write_text(REDIRECT)
    print(folder / "html/index.html")


main()
