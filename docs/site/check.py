# SPDX-License-Identifier: Apache-2.0
"""Is the built site whole, and can it be read? Links and the reference are checked in the files;
then every page is opened in headless Chromium, narrow and wide, light and dark.

    check.py TREE HTML [SCREENSHOTS]
"""

from __future__ import annotations

import ast
import html.parser
import pathlib
import re
import shutil
import sys
import urllib.parse

from playwright.sync_api import sync_playwright

WIDTHS = (400, 1400)

# What is wrong with the page as it is shown, as words.
LOOK = r"""() => {
  const wrong = [], root = document.scrollingElement;
  if (root.scrollWidth > root.clientWidth)
    wrong.push(`${root.scrollWidth} px of content on ${root.clientWidth} px`);
  for (const i of document.images) {
    const box = i.getBoundingClientRect();
    if (!i.complete || i.naturalWidth === 0 || box.width < 300 || box.height < 100)
      wrong.push(`figure not shown: ${i.getAttribute('src')}, ${box.width} x ${box.height}`);
    const shown = getComputedStyle(i).visibility === 'visible' && i.checkVisibility();
    if (!shown) wrong.push(`figure hidden: ${i.getAttribute('src')}`);
  }
  for (const e of document.querySelectorAll('article td :is(code, a)'))
    if (/^\w+$/.test(e.textContent) && e.getClientRects().length > 1)
      wrong.push(`word of a table broken: ${e.textContent}`);
  for (const e of document.querySelectorAll('article pre'))
    if (root.clientWidth === 1400 && e.scrollWidth > e.clientWidth)
      wrong.push(`code of ${e.scrollWidth} px in ${e.clientWidth}: ${e.textContent.slice(0, 40)}`);
  for (const e of document.querySelectorAll('article dl.simple > dt'))
    if (e.textContent.includes(' = ')) wrong.push(`a formula as a name: ${e.textContent}`);
  const light = c => {
    const [r, g, b] = c.match(/[\d.]+/g).map(x => x / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\)$/.test(c)) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  for (const e of document.querySelectorAll('article :is(p, li, td, th, dt, dd, pre, h1, h2)')) {
    if (!e.checkVisibility() || !e.textContent.trim()) continue;
    const style = getComputedStyle(e), a = light(style.color), b = light(ground(e));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5)
      wrong.push(`contrast ${contrast.toFixed(1)}: ${e.textContent.slice(0, 30)}`);
    if (parseFloat(style.fontSize) < 11)
      wrong.push(`text of ${style.fontSize}: ${e.textContent.slice(0, 40)}`);
  }
  return wrong;
}"""


class Page(html.parser.HTMLParser):
    """Where a page's links lead, and what can be linked to in it."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src"):
                self.links.append(value)


def broken_links(root: pathlib.Path, pages: dict[pathlib.Path, Page]) -> list[str]:
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme in ("http", "https"):
                continue
            name = urllib.parse.unquote(url.path)
            target = (path.parent / name).resolve() if name else path
            found = target.is_file() and root in target.parents and not url.scheme
            fragment = urllib.parse.unquote(url.fragment)
            if found and fragment and target in pages:
                found = fragment in pages[target].ids
            if not found:
                wrong.append(f"{path.relative_to(root)}: broken link {link}")
    return wrong


def keep_name(pointer: re.Match) -> str:
    """A pointer to a function is a name, its arguments are nothing."""
    return pointer[0].strip("(*)") if pointer[0].startswith("(*") else ""


def not_documented(tree: pathlib.Path, pages: dict[pathlib.Path, Page]) -> list[str]:
    """Names of the headers that the reference lacks, looked for without its parser."""
    known = {i for page in pages.values() for i in page.ids}
    wrong = []
    for header in sorted((tree / "include/amla").glob("*.h")):
        code = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
        names = re.findall(r"AMLA_API [^;(]*?\b(amla_\w+)\(", code)
        for struct, body in re.findall(r"typedef struct (\w+) \{(.*?)\n\}", code, re.DOTALL):
            while (
                bare := re.sub(r"\((?!\*\w+\))[^()]*\)|\(\*\w+\)(?=\()", keep_name, body)
            ) != body:
                body = bare
            fields = re.findall(r"(\w+)(?:\[[^\]]*\])?(?:,|;)", body)
            names += [struct, *(f"{struct}.{f}" for f in fields if not f.isdigit())]
        for body in re.findall(r"typedef enum \w+ \{(.*?)\}", code, re.DOTALL):
            names += re.findall(r"\b(AMLA_\w+)\b", body)
        wrong += [f"{header.name}: {n} is not in the reference" for n in names
                  if not any(i == f"c.{n}" or i.endswith(f".{n}") for i in known)]  # fmt: skip
    return wrong


def python_not_documented(tree: pathlib.Path, pages: dict[pathlib.Path, Page]) -> list[str]:
    """Names in `__all__` of the package's public modules that the reference lacks."""
    known = {i for page in pages.values() for i in page.ids}
    wrong = []
    for path in sorted((tree / "python/amla").glob("*.py")):
        module = "amla" if path.stem == "__init__" else f"amla.{path.stem}"
        if "._" in module:
            continue
        (names,) = (
            ast.literal_eval(node.value)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        wrong += [f"{path.name}: {n} is not in the reference" for n in names
                  if f"{module}.{n}" not in known]  # fmt: skip
    return wrong


def read_otherwise(tree: pathlib.Path) -> list[str]:
    """Prose that Markdown takes for a row of the table above it, or for an item of a list."""
    wrong = []
    for page in (p for kind in ("*.md", "docs/**/*.md", "*/README.md") for p in tree.glob(kind)):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        lines = re.findall(r"^\|.*\n([^|\n].*)|^( {0,3}[+*] .*)", text, re.MULTILINE)
        wrong += [f"{page.relative_to(tree)}: no prose on the site: {a or b}" for a, b in lines]
    return wrong


def not_told(tree: pathlib.Path) -> list[str]:
    """Committed runs that the page of results does not name."""
    page = (tree / "docs/site/results.md").read_text()
    files = sorted((tree / "docs/results").iterdir())
    return [f"results.md: {f.name} is not named" for f in files if f"`{f.name}`" not in page]


def shown_wrong(root: pathlib.Path, pages, screenshots: pathlib.Path | None) -> list[str]:
    wrong = []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        where = ""
        page.on("console", lambda m: wrong.append(f"{where}: console: {m.type}: {m.text}")
                if m.type in ("error", "warning") else None)  # fmt: skip
        page.on("pageerror", lambda e: wrong.append(f"{where}: script: {e}"))
        page.on("request", lambda r: wrong.append(f"{where}: asks for {r.url}")
                if not r.url.startswith(("file:", "data:")) else None)  # fmt: skip
        for path in pages:
            name = str(path.relative_to(root))
            where = name
            page.goto(path.as_uri(), wait_until="load")
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                for width in WIDTHS:
                    page.set_viewport_size({"width": width, "height": 900})
                    where = f"{name}, {width} px, {theme}"
                    wrong += [f"{where}: {w}" for w in page.evaluate(LOOK)]
                    if screenshots:
                        file = f"{name.replace('/', '_')}_{width}_{theme}.png"
                        page.screenshot(path=screenshots / file, full_page=width == WIDTHS[0])
        browser.close()
    return wrong


def main() -> None:
    tree, root, *more = (pathlib.Path(a).resolve() for a in sys.argv[1:])
    pages = {path: Page(path) for path in sorted(root.rglob("*.html")) if path.stem != "search"}
    del pages[root / "index.html"]  # a redirect
    if not pages:
        sys.exit(f"{root} has no pages")
    wrong = broken_links(root, pages)
    wrong += not_documented(tree, pages) + python_not_documented(tree, pages)
    wrong += read_otherwise(tree) + not_told(tree)
    for folder in more:
        folder.mkdir(exist_ok=True)
    wrong += shown_wrong(root, pages, more[0] if more else None)
    print(*wrong, sep="\n")
    figures = sum(link.endswith(".svg") for page in pages.values() for link in page.links)
    print(f"{len(pages)} pages, {figures} figures, {len(wrong)} faults")
    sys.exit(bool(wrong))


main()
