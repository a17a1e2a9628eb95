#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The table of docs/dependencies.md, as a bill of materials or held against the tree.

sbom.py TABLE VERSION       a CycloneDX document on standard output
sbom.py --check TABLE ROOT  every package that ROOT's scripts install is a row, of their version
"""

import datetime
import json
import os
import pathlib
import re
import sys

SCOPES = {
    "library": "required",
    "program": "required",
    "libamla_mpi": "required",
    "Python package, optional": "optional",
}
KINDS = {"Debian": "deb/debian", "PyPI": "pypi", "npm": "npm"}


def rows(table):
    """{name: (version, licence, origin, purpose)}"""
    cells = re.findall(r"^\| (.+) \|$", pathlib.Path(table).read_text(), re.MULTILINE)[1:]
    return {name: rest for name, *rest in (line.split(" | ") for line in cells)}


def component(name, version, licence, origin, purpose):
    kind = purpose.split(":")[0]
    return {
        "type": "library",
        "name": name,
        "version": version,
        "scope": SCOPES.get(kind, "excluded"),
        "licenses": [{"expression": licence}],
        "purl": f"pkg:{KINDS[origin]}/{name.replace('@', '%40')}@{version}",
        "description": purpose,
    }


def bill(table, version):
    when = datetime.datetime.fromtimestamp(
        int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc
    )
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "library",
                "name": "amla",
                "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": [component(name, *row) for name, row in rows(table).items()],
    }


def installed(root):
    """(name, version or "") of what the tree's scripts install, and where they say so."""
    cases = re.search(r"^has\(\).*?^\}", (root / "dev").read_text(), re.MULTILINE | re.DOTALL)[0]
    for names in re.findall(r"^  ([a-z0-9+ |-]+)\) ", cases, re.MULTILINE):
        yield from ((name, "", "dev") for name in names.split(" | "))
    requirements = [*root.glob("*/*requirements*.txt"), *root.glob("*/*/*requirements*.txt")]
    scripts = [root / "dev", root / "ggml/ggml_hosts.sh", root / "tests/test_vllm.sh"]
    for path in (path for path in requirements if "build" not in path.parts[len(root.parts)]):
        for name, pin in re.findall(
            r"^([A-Za-z][\w.-]*)(?:==(\S+))?", path.read_text(), re.MULTILINE
        ):
            yield name, pin, path.name
    for path in scripts:
        text = path.read_text()
        for name, version in re.findall(r"([\w@/.-]+?)(?:==|(?<=[a-z0-9])@)(\d[\w.]*)", text):
            yield name, version, path.name


def check(table, root):
    known = rows(table)
    faults, n = [], 0
    for name, version, where in installed(root):
        n += 1
        if name not in known:
            faults.append(f"{where} installs {name}, which {table} does not have")
        elif version and version not in (known[name][0], *re.findall(r"\d[\w.]*", known[name][3])):
            faults.append(f"{where} installs {name} {version}, {table} has {known[name][0]}")
    if faults:
        sys.exit("\n".join(sorted(set(faults))))
    print(f"ok: {n} mentions of {len(known)} dependencies")


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        check(sys.argv[2], pathlib.Path(sys.argv[3]).resolve())
    else:
        json.dump(bill(*sys.argv[1:3]), sys.stdout, indent=2)
        print()
