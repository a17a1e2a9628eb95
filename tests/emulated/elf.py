# SPDX-License-Identifier: Apache-2.0
"""Load x86-64 ELF objects (.o) and shared libraries (.so) into a Machine."""

import struct

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

WRITE, ALLOCATE, EXECUTE = 1, 2, 4  # sh_flags
SEGMENT_EXECUTE = 1  # p_flags
# Relocation types
R_64, R_PC32, R_PLT32, R_GLOB_DAT, R_JUMP_SLOT, R_RELATIVE = 1, 2, 4, 6, 7, 8
R_GOTPCREL, R_32, R_32S, R_PC64, R_GOTPCRELX, R_REX_GOTPCRELX = 9, 10, 11, 24, 41, 42


class LinkError(Exception):
    pass


def load(machine, path):
    """Load and link the file; the addresses of its symbols, by name."""
    with open(path, "rb") as stream:
        elf = ELFFile(stream)
        if elf["e_machine"] != "EM_X86_64":
            raise LinkError(f"{path} is not x86-64")
        kind = elf["e_type"]
        if kind == "ET_REL":
            return _load_object(machine, elf)
        if kind == "ET_DYN":
            return _load_library(machine, elf)
        raise LinkError(f"cannot load {kind}")


def _write(machine, address, form, value):
    data = struct.pack(form, value)
    machine.view(address, len(data))[:] = list(data)


def _load_object(machine, elf):
    bases = {}
    for index, section in enumerate(elf.iter_sections()):
        flags, size = section["sh_flags"], section["sh_size"]
        if not flags & ALLOCATE or not size:
            continue
        address = machine.allocate(
            size,
            max(64, section["sh_addralign"]),
            write=bool(flags & WRITE),
            execute=bool(flags & EXECUTE),
            flush=False,
        )
        bases[index] = address
        if section["sh_type"] != "SHT_NOBITS":
            machine.view(address, size)[:] = list(section.data())

    table = elf.get_section_by_name(".symtab")
    addresses, named = [], {}
    for symbol in table.iter_symbols():
        where = symbol["st_shndx"]
        if isinstance(where, int) and where in bases:
            address = bases[where] + symbol["st_value"]
            if symbol.name:
                named[symbol.name] = address
        elif where == "SHN_ABS":
            address = symbol["st_value"]
        else:
            address = machine.symbols.get(symbol.name)
        addresses.append(address)

    slots = {}

    def slot(number):
        """The address of a cell that holds the symbol's address."""
        if number not in slots:
            slots[number] = machine.allocate(8, write=False, flush=False)
            _write(machine, slots[number], "<Q", addresses[number])
        return slots[number]

    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection) or section["sh_info"] not in bases:
            continue
        base = bases[section["sh_info"]]
        for entry in section.iter_relocations():
            kind, number = entry["r_info_type"], entry["r_info_sym"]
            place, addend = base + entry["r_offset"], entry["r_addend"]
            symbol = addresses[number]
            if symbol is None:
                raise LinkError(f"undefined symbol {table.get_symbol(number).name}")
            if kind in (R_PC32, R_PLT32):
                _write(machine, place, "<i", symbol + addend - place)
            elif kind == R_64:
                _write(machine, place, "<Q", symbol + addend)
            elif kind == R_PC64:
                _write(machine, place, "<q", symbol + addend - place)
            elif kind in (R_32, R_32S):
                _write(machine, place, "<I", symbol + addend)
            elif kind in (R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX):
                _write(machine, place, "<i", slot(number) + addend - place)
            else:
                raise LinkError(f"relocation type {kind} is not supported")
    return named


def _load_library(machine, elf):
    segments = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    size = max(s["p_vaddr"] + s["p_memsz"] for s in segments)
    # One block: the segments address each other, so they keep their distances.
    base = machine.allocate(size, 4096, execute=True, flush=False)
    for segment in segments:
        data = segment.data()
        machine.view(base + segment["p_vaddr"], len(data))[:] = list(data)

    table = elf.get_section_by_name(".dynsym")
    named = {
        s.name: base + s["st_value"]
        for s in table.iter_symbols()
        if s.name and s["st_shndx"] != "SHN_UNDEF"
    }
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection):
            continue
        for entry in section.iter_relocations():
            kind, place = entry["r_info_type"], base + entry["r_offset"]
            if kind == R_RELATIVE:
                value = base + entry["r_addend"]
            elif kind in (R_64, R_GLOB_DAT, R_JUMP_SLOT):
                symbol = table.get_symbol(entry["r_info_sym"])
                value = named.get(symbol.name, machine.symbols.get(symbol.name))
                if value is None:
                    if symbol["st_info"]["bind"] != "STB_WEAK":
                        raise LinkError(f"undefined symbol {symbol.name}")
                    value = 0
                if kind == R_64:
                    value += entry["r_addend"]
            else:
                raise LinkError(f"relocation type {kind} is not supported")
            _write(machine, place, "<Q", value)
    return named
