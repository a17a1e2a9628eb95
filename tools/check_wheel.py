#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the libraries inside a wheel ask of the system that they are loaded on, by `readelf`: prints
the platform tag that it amounts to, such as manylinux_2_17_x86_64. A library that needs anything
but glibc, or a function that glibc got after OLDEST, is a failure.

    check_wheel.py WHEEL [OLDEST]           OLDEST: such as 2.17, the default
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

GLIBC = r"lib(c|m|dl|pthread|rt)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+"  # all that glibc is
MACHINES = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}


def readelf(option, library):
    command = ["readelf", "-W", option, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def of_library(library):
    """Its machine, the functions that it takes from glibc with their versions, and its faults."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", library))
    faults = [f"needs {name}" for name in needed if not re.fullmatch(GLIBC, name)]
    symbols = [
        line.split() for line in readelf("--dyn-syms", library).splitlines() if " UND " in line
    ]
    versions = {}
    for _, _, _, _, bind, _, _, *symbol in symbols[1:]:  # the first one is none
        name, _, version = symbol[0].partition("@")
        found = re.fullmatch(r"GLIBC_([\d.]+)", version.lstrip("@"))
        if found:
            versions[name] = tuple(int(n) for n in found[1].split("."))
        elif version or bind == "GLOBAL":
            faults.append(f"{name} is of {version.lstrip('@') or 'no known library'}")
    machine = re.search(r"Machine: +(.*)", readelf("-h", library))[1]
    return MACHINES[machine], versions, faults


def main(wheel, oldest="2.17"):
    limit, faults, machines, newest = tuple(int(n) for n in oldest.split(".")), [], set(), (0,)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in pathlib.Path(name).name]
        for name in libraries:
            machine, versions, found = of_library(archive.extract(name, folder))
            machines.add(machine)
            newest = max([newest, *versions.values()])
            late = [f"{f} is of glibc {v}" for f, v in sorted(versions.items()) if v > limit]
            faults += [f"{name}: {fault}" for fault in (*found, *late)]
    if len(machines) != 1:
        faults.append(f"{len(libraries)} libraries for {sorted(machines)}: must be for one machine")
    if faults:
        sys.exit("\n".join(faults))
    print(f"manylinux_{'_'.join(oldest.split('.'))}_{machines.pop()}")
    print(f"{len(libraries)} libraries, newest function of glibc {newest}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
