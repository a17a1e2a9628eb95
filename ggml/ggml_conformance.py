# SPDX-License-Identifier: Apache-2.0
"""ggml's own conformance tests, of Debian sid, with the plug-in: all pass, and it takes part.

    python ggml_conformance.py LIBGGML_AMLA_SO FOLDER

FOLDER is what ggml_hosts.sh has filled. test-backend-ops compares attention, operation by
operation, with the CPU backend; test-llama-archs decodes a random model of every architecture, with
the plug-in and without. Exit code 77: there is no sid here.
"""

import os
import re
import subprocess
import sys

SKIPPED = 77
LIMIT_SECONDS = 540


def run(plugin, folder, *command):
    """What a program of sid prints, both streams, without colours; it must end well."""
    environment = {**os.environ, "GGML_BACKEND_PATH": plugin, "AMLA_LOG": "1"}
    done = subprocess.run(
        [os.path.join(folder, "sid", "run"), *command],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=LIMIT_SECONDS,
    )  # fmt: skip
    text = re.sub("\x1b\\[[0-9;]*m", "", done.stdout)
    if done.returncode != 0:
        sys.exit(f"{text[-4000:]}\n{command[0]} ended with {done.returncode}")
    return text


def number(pattern, text):
    """A number that the program prints, perhaps with lines of the plug-in in the middle."""
    found = re.search(pattern, re.sub(r"amla: [^\n]*\n", "", text))
    return int(found[1]) if found else -1


def taken(text):
    return sum(
        int(n) for n in re.findall(r"amla: (\d+) (?:attention|indexer) operations done", text)
    )


def refused_version(text):
    found = re.search(r"amla: not used: (ggml \S+ is not one it was tried with)", text)
    return found and found[1]


# ggml's own code takes minutes for the indexer's large cases.
OPERATIONS = (("FLASH_ATTN_EXT", "hsv=512"), ("LIGHTNING_INDEXER", "nb=1,|nb=32"))


def operations(plugin, folder, name, pattern):
    text = run(plugin, folder, "test-backend-ops", *["-b", "AMLA", "-o", name, "-p", pattern])
    if refused_version(text):
        print("skipped:", refused_version(text))
        sys.exit(SKIPPED)
    passed, cases = number(r"(\d+)/\d+ tests passed", text), number(r"\d+/(\d+) tests passed", text)
    left = len(re.findall(r"not supported \[AMLA\]", text))
    print(
        f"test-backend-ops {name}: {passed} of {cases} cases passed, {taken(text)} operations "
        f"taken by AMLA, {left} cases left to the CPU"
    )
    return passed == cases > 0 and taken(text) >= cases


# A row of its table, which a line of the plug-in interrupts:
# | kimi-k3|AMLA ...| MoE|amla: 2 attention operations done
DECODED = re.compile(r"\| *([\w-]+)\|AMLA [^|]*\|[^|]*\|amla: [1-9]\d* attention operations done")


def architectures(plugin, folder):
    text = run(plugin, folder, "test-llama-archs", "-b", "AMLA", "-s", "1")
    text = re.sub(r"amla: plan [^\n]*\n", "", text)
    # Its exit status is its verdict (run asks for it); its last line gets lost now and then.
    cases, failed = len(re.findall(r"\bOK\b", text)), text.count("FAIL")
    names = sorted(set(DECODED.findall(text)))
    print(
        f"test-llama-archs: {cases} comparisons OK, {failed} failed, {taken(text)} operations "
        "taken by AMLA"
    )
    print(f"architectures that decode through AMLA: {len(names)}: {', '.join(names)}")
    return cases > 0 and failed == 0 and taken(text) > 0 and len(names) > 0


def why_not(folder):
    path = os.path.join(folder, "sid", "why_not")
    if not os.path.exists(path):
        return "ggml_hosts.sh has not fetched Debian sid"
    with open(path) as file:
        return file.read().strip()


def main(plugin, folder):
    if not os.path.exists(os.path.join(folder, "sid", "ready")):
        print("skipped:", why_not(folder))
        return SKIPPED
    results = [operations(plugin, folder, *names) for names in OPERATIONS]
    return 0 if all([*results, architectures(plugin, folder)]) else 1


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])))
