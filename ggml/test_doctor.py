# SPDX-License-Identifier: Apache-2.0
"""amla doctor on prebuilt llama.cpp, in the layouts that packages give it, and on what cannot work.

    AMLA_GGML_PLUGIN=libggml-amla.so AMLA_GGML_HOSTS=FOLDER AMLA_GGML_DOCTOR=amla pytest
    test_doctor.py

FOLDER is what ggml_hosts.sh has filled.
"""

import json
import os
import shutil
import subprocess
import tempfile

import pytest

from test_llama_prebuilt import hosts, patched_version, plugin  # noqa: F401 (fixtures)

AMLA = os.path.abspath(os.environ["AMLA_GGML_DOCTOR"])


def doctor(plugin, where, start=(AMLA,), **options):
    """Is all well, what the program says of that place, and what stands on stderr."""
    command = [*start, "doctor", "--json", "--plugin", plugin, str(where)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return (
        report["ok"],
        " ".join(f"{f['kind']}: {f['text']}" for f in report["findings"]),
        done.stderr,
    )


def compile_c(path, source, *options):
    path.parent.mkdir(exist_ok=True)
    subprocess.run(
        ["cc", "-fPIC", "-o", str(path), "-xc", "-", "-xnone", *options],
        input=source,
        text=True,
        check=True,
    )
    return path


# ---- Where ggml may lie ----


def test_folder_of_libraries(plugin, hosts):
    ok, text, _ = doctor(plugin, os.path.join(hosts, "new", "lib"))
    assert (
        ok
        and "ok: ggml 0.25.1" in text
        and "ok: device AMLA" in text
        and "-fa on" in text
        and "LLAMA_ARG_FLASH_ATTN=on" in text
    )


@pytest.fixture
def program(tmp_path, hosts):
    """One that is linked with a libggml in another folder."""
    library = os.path.join(hosts, "new", "lib")
    name = [n for n in os.listdir(library) if n.startswith("libggml.")][0]
    options = [
        f"-L{library}",
        "-Wl,--no-as-needed",
        f"-l:{name}",
        f"-Wl,-rpath,{library}",
        "-Wl,--allow-shlib-undefined",
    ]
    return compile_c(tmp_path / "bin" / "llama-server", "int main(void) { return 0; }", *options)


def test_program_in_another_folder(plugin, program):
    ok, text, _ = doctor(plugin, program)
    assert ok and "ok: ggml 0.25.1" in text and "ok: device CPU" in text
    ok, text, _ = doctor(plugin, program.parent)
    assert ok and "ok: ggml 0.25.1" in text and "the one of llama-server" in text


def test_program_whose_ggml_is_gone(plugin, tmp_path):
    library = compile_c(
        tmp_path / "lib" / "libggml.so.0", "int ggml;", "-shared", "-Wl,-soname,libggml.so.0"
    )
    program = compile_c(
        tmp_path / "bin" / "llama-cli",
        "int main(void) { return 0; }",
        "-Wl,--no-as-needed",
        str(library),
    )
    library.unlink()
    for where in (program, program.parent):
        ok, text, _ = doctor(plugin, where)
        assert not ok and "needs libggml.so.0, which the dynamic linker does not find" in text


def test_debian(plugin, hosts):
    """Programs, libraries and backends in three folders, the last one known to ggml alone."""
    root = os.path.join(hosts, "sid", "root", "usr")
    if not os.path.exists(os.path.join(hosts, "sid", "ready")):
        pytest.skip("Debian sid is not here")
    with tempfile.TemporaryDirectory() as folder:
        compiled = (
            b"/usr/lib/x86_64-linux-gnu/ggml/b"  # the rest of backends0 may stand in the code
        )
        libraries = os.path.join(folder, "lib")
        source = os.path.join(root, "lib", "x86_64-linux-gnu")
        shutil.copytree(
            os.path.join(source, "ggml", "backends0"), os.path.join(folder, "backends0")
        )
        shutil.copytree(
            source,
            libraries,
            symlinks=True,
            ignore=shutil.ignore_patterns("ggml", "gconv", "libggml-cpu-*"),
        )
        shutil.copytree(os.path.join(root, "bin"), os.path.join(folder, "bin"))
        path = os.path.realpath(os.path.join(libraries, "libggml.so.0"))
        with open(path, "rb") as file:
            image = file.read()
        assert image.count(compiled) == 1 and len(folder) < len(compiled)
        with open(path, "wb") as file:
            file.write(
                image.replace(compiled, folder.encode().ljust(len(compiled) - 1, b"/") + b"b")
            )
        environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{libraries}/llama"}
        start = [os.path.join(libraries, "ld-linux-x86-64.so.2"), AMLA]
        for where in ("bin/llama-server", "bin", "lib", "lib/libllama.so.0"):
            ok, text, _ = doctor(plugin, os.path.join(folder, where), start, env=environment)
            assert ok and "ok: ggml 0.2" in text and "ok: device CPU" in text, (where, text)


# A ggml that is nothing but what the doctor asks for.
FAKE = """
#include <stddef.h>
void *ggml_backend_load(const char *path) { return (void *)path; }
void ggml_backend_load_all(void) {}
void ggml_backend_load_all_from_path(const char *folder) {}
size_t ggml_backend_dev_count(void) { return 2; }
void *ggml_backend_dev_get(size_t i) { return i == 0 ? "CPU" : "AMLA"; }
const char *ggml_backend_dev_name(void *device) { return device; }
const char *ggml_backend_dev_description(void *device) { return "fake"; }
int ggml_backend_dev_type(void *device) { return *(char *)device == 'C' ? 0 : 3; }
void ggml_log_set(void *callback, void *data) {}
"""
VERSION = 'const char *ggml_version(void) { return "0.26.0"; }\n'


def test_module_of_python(plugin, tmp_path):
    """One file with ggml inside, which needs Python's own symbols (xllamacpp is such a one)."""
    module = "extern void *PyExc_ValueError; void *error(void) { return PyExc_ValueError; }\n"
    file = compile_c(tmp_path / "package" / "xllamacpp.abi3.so", FAKE + VERSION + module, "-shared")
    for where in (file, file.parent):
        ok, text, _ = doctor(plugin, where)
        assert (
            ok
            and "ok: ggml 0.26.0" in text
            and "ok: device CPU" in text
            and "ok: device AMLA" in text
        )


@pytest.mark.parametrize("order", [1, -1])
def test_two_in_a_folder(plugin, hosts, tmp_path, order):
    """The first name, whatever the order of the folder, and a word about the other."""
    names = {
        "libggml.so": ("pypi", "libggml.so"),
        "libggml.v0.5.0.so": ("new", "libggml.v0.5.0.so"),
    }
    for name in sorted(names)[::order]:
        host, file = names[name]
        os.symlink(os.path.join(hosts, host, "lib", file), tmp_path / name)
    ok, text, _ = doctor(plugin, tmp_path)
    assert (
        ok
        and "ok: ggml 0.20.2" in text
        and "another ggml too, libggml.v0.5.0.so; this is about libggml.so" in text
    )
    ok, text, _ = doctor(plugin, tmp_path / "libggml.v0.5.0.so")
    assert ok and "ok: ggml 0.25.1" in text and "another" not in text


# ---- What cannot work, and why ----


def test_old_and_unknown_versions(tmp_path, plugin, hosts):
    ok, text, _ = doctor(plugin, os.path.join(hosts, "old", "lib"))
    assert ok and "ok: ggml 0.9.4" in text
    ok, text, stderr = doctor(plugin, patched_version(hosts, tmp_path, "0.99.1"))
    assert not ok and "did not take" in text and "ggml 0.99.1 is not one it was tried with" in text
    assert "amla: not used: ggml 0.99.1" in stderr


def test_static_build(tmp_path, plugin):
    ok, text, _ = doctor(plugin, tmp_path)
    assert not ok and "static build" in text
    ok, text, _ = doctor(
        plugin, compile_c(tmp_path / "bin" / "llama-cli", "int main(void) { return 0; }", "-static")
    )
    assert not ok and "static build" in text
    ik = 'const char *name = "MOE_FUSED_UP_GATE"; int main(void) { return name == 0; }'
    program = compile_c(tmp_path / "ik" / "llama-server", ik, "-static")
    for where in (program, program.parent):
        ok, text, _ = doctor(plugin, where)
        assert not ok and "it is ik_llama.cpp, a fork" in text and "static build" not in text
    script = tmp_path / "llama.sh"
    script.write_text("#!/bin/sh\n")
    ok, text, _ = doctor(plugin, script)
    assert not ok and "neither a program nor a shared library" in text


@pytest.mark.parametrize(
    "source, says",
    [
        (FAKE, "has no ggml_version: older than autumn 2025"),
        (
            "int ggml_init, ggml_moe_up_gate;",
            "has no ggml_backend_load: it is ik_llama.cpp, a fork of 2024",
        ),
        (
            "int ggml_init;",
            "has no ggml_backend_load: it cannot load backends: older than 2025, or a fork",
        ),
    ],
    ids=["old", "ik", "fork"],
)
def test_other_ggml(tmp_path, plugin, source, says):
    compile_c(tmp_path / "libggml.so", source, "-shared")
    ok, text, _ = doctor(plugin, tmp_path)
    assert not ok and says in text


def test_plugins_that_are_none(tmp_path, hosts):
    folder = os.path.join(hosts, "new", "lib")
    for file, says in (
        (str(tmp_path / "none.so"), "No such file"),
        ("/dev/null", "did not take /dev/null: /dev/null: file too short"),
        (os.path.join(folder, "libggml-base.so"), "failed to find ggml_backend_init"),
        (os.path.join(folder, "libggml-cpu-x64.so"), "is a backend of ggml, but not AMLA"),
    ):
        ok, text, _ = doctor(file, folder)
        assert not ok and says in text, text


def test_unreadable(plugin):
    """As somebody who may not; root may."""
    who = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = shutil.copy(AMLA, folder)
        locked = os.path.join(folder, "locked")
        os.mkdir(locked, 0o000)
        file = os.path.join(folder, "libllama.so")
        os.close(os.open(file, os.O_CREAT, 0o000))
        for where in (locked, file):
            ok, text, _ = doctor(plugin, where, [program], cwd=folder, **who)
            assert not ok and "cannot be read: Permission denied" in text and "static" not in text
