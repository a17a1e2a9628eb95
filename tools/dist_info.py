#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What pip and importlib.metadata know the Python package by, where no pip installs it: folder
amla-VERSION.dist-info, of what pyproject.toml says.

    dist_info.py PYPROJECT VERSION FOLDER
"""

import pathlib
import sys

import tomllib


def metadata(project, version):
    yield "Metadata-Version", "2.1"
    yield "Name", project["name"]
    yield "Version", version
    yield "Summary", project["description"]
    yield "License", project["license"]
    yield from (("Classifier", classifier) for classifier in project["classifiers"])
    yield "Requires-Python", project["requires-python"]
    yield from (("Requires-Dist", wanted) for wanted in project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        yield "Provides-Extra", extra
        yield from (("Requires-Dist", f"{name}; extra == '{extra}'") for name in wanted)


def entry_points(project):
    for group, entries in project["entry-points"].items():
        yield f"[{group}]"
        yield from (f"{name} = {value}" for name, value in entries.items())


def main():
    pyproject, version, folder = sys.argv[1:]
    project = tomllib.loads(pathlib.Path(pyproject).read_text())["project"]
    files = {
        "METADATA": [f"{field}: {value}" for field, value in metadata(project, version)],
        "entry_points.txt": entry_points(project),
        "INSTALLER": ["debian"],
    }
    to = pathlib.Path(folder, f"{project['name']}-{version}.dist-info")
    to.mkdir()
    for name, lines in files.items():
        (to / name).write_text("".join(f"{line}\n" for line in lines))


main()
