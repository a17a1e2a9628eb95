# SPDX-License-Identifier: Apache-2.0
"""Run x86-64 machine code for a CPU that this machine does not have.

The code runs on the Bochs CPU of the ``bochscpu-python`` wheel (AVX-512 with
BF16, FP16 and VNNI) with AMX added by ``emulator_shim__fma.c``.  It is a CPU and memory
alone: no operating system, so the code may make no system call.

    machine = Machine()
    machine.load_elf("kernel.o")
    c = np.zeros(16, np.float32)
    result = machine.call("kernel", a, b, c, 16)   # c now holds the result
    print(result.instructions)

Arrays and code lie in blocks of whole pages with an unmapped page on either
side.  An array's end touches the page after it (to within its alignment), so
that reading or writing past it faults instead of going unnoticed.
"""

import ctypes
import importlib.metadata
import importlib.util
import mmap
import os
import pathlib

import numpy as np

PAGE = 4096
BASE = 0x1000_0000  # guest address of the memory; below 2 GiB for 32-bit relocations
TABLES = 0x10_0000  # physical address of the page tables; not mapped
PRESENT, WRITABLE, NO_EXECUTE = 1, 2, 1 << 63
PAGE_READ, PAGE_WRITE = 1, 2  # as in emulator_shim__fma.c
RUNNING, RETURNED, FAULTED, OUT_OF_BUDGET = range(4)  # as in emulator_shim__fma.c
INTEGER_ARGUMENTS = (7, 6, 2, 1, 8, 9)  # rdi rsi rdx rcx r8 r9
RAX, RSP = 0, 4
VECTORS = {
    0: "divide error", 1: "debug", 3: "breakpoint", 6: "invalid opcode",
    7: "device not available", 13: "general protection", 14: "page fault",
    17: "alignment check", 19: "SIMD floating point",
}  # fmt: skip

# Models of this version's Bochs (2025-02), by their place in its cpudb.h.
WHEEL = "0.4.0"
MODELS = {
    "haswell": 24,
    "skylake_x": 26,
    "icelake_u": 28,
    "tigerlake": 29,
    "sapphire_rapids": 30,
    "arrow_lake": 31,
}


class EmulationError(Exception):
    pass


class Fault(EmulationError):
    def __init__(self, message, vector, rip, address):
        super().__init__(message)
        self.vector, self.rip, self.address = vector, rip, address


RESULTS = "budget emulate_amx status instructions amx_instructions rip vector error address"


class _MachineState(ctypes.Structure):
    """The public part of ``struct machine`` of emulator_shim__fma.c."""

    _fields_ = [("cpu", ctypes.c_void_p), ("memory", ctypes.c_void_p)] + [
        (name, ctypes.c_uint64) for name in ("base", "size")
    ] + [("pages", ctypes.c_void_p)] + [
        (name, ctypes.c_uint64)
        for name in RESULTS.split()
    ]  # fmt: skip


HOOKS = """
context reset hlt mwait cnear_branch_taken cnear_branch_not_taken ucnear_branch far_branch opcode
interrupt exception hw_interrupt tlb_cntrl cache_cntrl prefetch_hint clflush before_execution
after_execution repeat_iteration inp inp2 outp lin_access phy_access wrmsr vmexit
"""


class _Hooks(ctypes.Structure):
    """bochscpu's table of callbacks; a null one is not called."""

    _fields_ = [(name, ctypes.c_void_p) for name in HOOKS.split()]


def available():
    """Is the wheel here in the version that MODELS is for?"""
    try:
        return importlib.metadata.version("bochscpu-python") == WHEEL
    except importlib.metadata.PackageNotFoundError:
        return False


def _load_bochs():
    """The shim and the wheel's library (not as a Python module), bound together."""
    if not available():
        raise EmulationError(f"bochscpu-python {WHEEL} is not installed")
    shim = ctypes.CDLL(os.environ["AMLA_EMULATOR_SHIM"], mode=ctypes.RTLD_GLOBAL)
    package = importlib.util.find_spec("bochscpu")
    (folder,) = package.submodule_search_locations
    (path,) = pathlib.Path(folder).glob("_bochscpu*.so")
    bochs = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    if not shim.machine_bind(ctypes.c_void_p(bochs._handle)):
        raise EmulationError(f"{path} lacks functions that the shim needs")
    bochs.bochscpu_cpu_new.restype = ctypes.c_void_p
    bochs.sim_get_param_enum.restype = ctypes.c_void_p
    bochs.cpu_get_reg64.restype = ctypes.c_uint64
    shim.machine_size.restype = ctypes.c_size_t
    return shim, bochs


class Result:
    """What a call left behind: counts, and both registers of return values."""

    def __init__(self, state, rax, zmm0):
        self.instructions = state.instructions
        self.amx_instructions = state.amx_instructions
        self.integer = rax
        self.zmm0 = zmm0

    @property
    def float32(self):
        return self.zmm0.view(np.float32)[0]

    @property
    def float64(self):
        return self.zmm0.view(np.float64)[0]


class Machine:
    """One CPU with its memory.  Bochs holds one CPU a process: so does this."""

    _current = None

    def __init__(self, model="sapphire_rapids", memory=64 << 20, amx=True):
        if Machine._current is not None:
            raise EmulationError("one Machine a process: call reset() to reuse it")
        self._shim, self._bochs = _load_bochs()
        self._select(model)
        self._cpu = ctypes.c_void_p(self._bochs.bochscpu_cpu_new(0))
        self._size = -(-memory // (2 << 20)) * (2 << 20)
        self._host = mmap.mmap(-1, self._size)
        self._bytes = np.frombuffer(self._host, np.uint8)
        self._pages = np.zeros(self._size // PAGE, np.uint8)
        self._storage = ctypes.create_string_buffer(self._shim.machine_size() + 64)
        start = -ctypes.addressof(self._storage) % 64
        self._state = _MachineState.from_buffer(self._storage, start)
        self._state.cpu = self._cpu
        self._state.memory = self._bytes.ctypes.data
        self._state.base, self._state.size = BASE, self._size
        self._state.pages = self._pages.ctypes.data
        self._state.emulate_amx = amx
        self._build_tables()
        self._inserted = set()
        Machine._current = self
        self.reset()

    def _select(self, model):
        # The binding has no call for this: Bochs asks its parameter store for
        # the model's number when it makes the CPU, and this sets that number.
        parameter = self._bochs.sim_get_param_enum(b"cpu.model")
        set_value = self._bochs._ZN14bx_param_num_c15set_initial_valEl
        set_value(ctypes.c_void_p(parameter), ctypes.c_int64(MODELS[model]))

    def _build_tables(self):
        """Page tables for the memory at BASE, with no page present yet."""
        count = self._size // (2 << 20)
        self._table_host = mmap.mmap(-1, (3 + count) * PAGE)
        tables = np.frombuffer(self._table_host, np.uint64).reshape(-1, 512)
        link = PRESENT | WRITABLE
        tables[0, 0] = (TABLES + PAGE) | link
        tables[1, 0] = (TABLES + 2 * PAGE) | link
        first = BASE >> 21
        for i in range(count):
            tables[2, first + i] = (TABLES + (3 + i) * PAGE) | link
        self._entries = tables[3:].reshape(-1)
        for i in range(len(tables)):
            self._insert(TABLES + i * PAGE, tables.ctypes.data + i * PAGE)

    def _insert(self, physical, host):
        self._bochs.bochscpu_mem_page_insert(ctypes.c_uint64(physical), ctypes.c_void_p(host))

    def reset(self):
        """Forget all code and data."""
        self._next = 1  # page number; page 0 stays unmapped
        self._entries[:] = 0
        self._pages[:] = 0
        self._bytes[:] = 0
        self.symbols = {}
        self._halt = self.load_code(b"\xf4")  # where functions return to
        self._stack_size = 256 << 10
        self._stack = self.allocate(self._stack_size)

    # ---- memory -----------------------------------------------------------

    def allocate(self, size, align=64, write=True, execute=False, flush=True):
        """A fresh zeroed block; its guest address.  `flush`: see the module."""
        pages = max(1, -(-size // PAGE))
        first = self._next
        if first + pages + 1 > len(self._pages):
            raise MemoryError("the guest's memory is full")
        self._next = first + pages + 1
        flags = PRESENT | (WRITABLE if write else 0) | (0 if execute else NO_EXECUTE)
        for page in range(first, first + pages):
            self._entries[page] = (BASE + page * PAGE) | flags
            if page not in self._inserted:
                self._inserted.add(page)
                self._insert(BASE + page * PAGE, self._bytes.ctypes.data + page * PAGE)
        self._pages[first : first + pages] = PAGE_READ | (PAGE_WRITE if write else 0)
        offset = (pages * PAGE - size) // align * align if flush else 0
        return BASE + first * PAGE + offset

    def view(self, address, size):
        """The bytes at a guest address, as a writable array."""
        start = address - BASE
        if start < 0 or start + size > self._size:
            raise IndexError(f"{address:#x} is outside the guest's memory")
        return self._bytes[start : start + size]

    def place(self, array):
        """A copy of the array that ends at an unmapped page; its address. None, a null pointer, and
        an address stay as they are."""
        if array is None:
            return 0
        if not isinstance(array, np.ndarray):
            return int(array)
        address = self.allocate(array.nbytes, array.itemsize)
        self.view(address, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return address

    def unmap(self, address, size):
        """Make whole pages fault, until their block is released."""
        first = (address - BASE) // PAGE
        self._entries[first : first + size // PAGE] = 0
        self._pages[first : first + size // PAGE] = 0

    def load_code(self, code, align=64):
        """Place position-independent machine code; its address."""
        address = self.allocate(len(code), align, write=False, execute=True, flush=False)
        self.view(address, len(code))[:] = np.frombuffer(code, np.uint8)
        return address

    def load_elf(self, path):
        """Load an x86-64 .o or .so; its symbols join self.symbols."""
        import elf

        self.symbols.update(elf.load(self, path))

    # ---- execution --------------------------------------------------------

    def start_trace(self, base, size, capacity=1 << 24):
        """Record from now on which instructions are executed in base to base + size."""
        self._trace = np.zeros(capacity, np.uint32)
        self._shim.machine_trace(
            ctypes.c_void_p(self._trace.ctypes.data),
            *map(ctypes.c_uint64, (capacity, base, size)),
        )

    def stop_trace(self):
        """Their addresses, less base, in order."""
        self._shim.machine_trace.restype = ctypes.c_uint64
        return self._trace[: self._shim.machine_trace(None, *[ctypes.c_uint64(0)] * 3)]

    def call(self, function, *arguments, budget=2_000_000_000):
        """Call a function (name or address) as the System V ABI says.

        An int goes in an integer register or on the stack, a numpy.float32 or
        float in a vector register.  An array is copied in and passed as a
        pointer, and copied back if it is writable.
        """
        entry = self.symbols[function] if isinstance(function, str) else function
        restore = self.mark()
        integers, vectors, arrays = [], [], []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise ValueError("arrays have to be contiguous")
                address = self.allocate(argument.nbytes)
                raw = argument.reshape(-1).view(np.uint8)
                self.view(address, raw.size)[:] = raw
                arrays.append((argument, address))
                integers.append(address)
            elif isinstance(argument, (int, np.integer)):
                integers.append(int(argument) & (1 << 64) - 1)
            elif isinstance(argument, np.float32):
                vectors.append(argument.tobytes())
            elif isinstance(argument, float):
                vectors.append(np.float64(argument).tobytes())
            else:
                raise TypeError(f"cannot pass {type(argument).__name__}")
        if len(vectors) > 8:
            raise TypeError("more than 8 floating-point arguments")

        on_stack = integers[len(INTEGER_ARGUMENTS) :]
        stack = np.array([self._halt, *on_stack], np.uint64)
        top = (self._stack + self._stack_size - stack.nbytes) & ~63
        rsp = top - 8  # 16-byte aligned before the call pushed the return address
        self.view(rsp, stack.nbytes)[:] = stack.view(np.uint8)

        self._set_registers(entry, rsp, integers, vectors)
        state = self._state
        state.budget = budget
        state.status = RUNNING
        state.instructions = state.amx_instructions = 0
        state.vector = state.error = state.address = 0
        self._run()
        try:
            self._check(state)
            for array, address in arrays:
                if array.flags.writeable:
                    raw = array.reshape(-1).view(np.uint8)
                    raw[:] = self.view(address, raw.size)
        finally:
            self.release(restore)
        zmm0 = np.zeros(8, np.uint64)
        self._bochs.cpu_get_zmm(0, 0, ctypes.c_void_p(zmm0.ctypes.data))
        state.instructions -= 1  # the hlt
        return Result(state, self._bochs.cpu_get_reg64(0, RAX), zmm0)

    def _set_registers(self, entry, rsp, integers, vectors):
        bochs = self._bochs
        for register in range(16):
            bochs.cpu_set_reg64(0, register, ctypes.c_uint64(0))
        for register, value in zip(INTEGER_ARGUMENTS, integers):
            bochs.cpu_set_reg64(0, register, ctypes.c_uint64(value))
        for register in range(32):
            value = vectors[register] if register < len(vectors) else b""
            zmm = ctypes.create_string_buffer(value, 64)
            bochs.cpu_set_zmm(0, register, zmm)
        for segment in range(6):  # es cs ss ds fs gs; cs (1) is 64-bit code
            bochs.cpu_set_seg(
                0, segment, 1, 8 if segment == 1 else 16, ctypes.c_uint64(0),
                ctypes.c_uint32(0xFFFFFFFF), 0xA09B if segment == 1 else 0xC093,
            )  # fmt: skip
        bochs.cpu_set_eflags(0, 2)
        bochs.cpu_set_cr0(0, ctypes.c_uint32(0x80010033))  # PG WP NE ET MP PE
        bochs.cpu_set_cr3(0, ctypes.c_uint64(TABLES))
        bochs.cpu_set_cr4(0, 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18)  # PAE, SSE, OSXSAVE
        bochs.cpu_set_efer(0, 1 << 8 | 1 << 10 | 1 << 11)  # LME LMA NXE
        bochs.cpu_set_xcr0(0, 0xE7)  # x87, SSE, AVX, AVX-512
        bochs.cpu_set_mxcsr(0, 0x1F80)
        bochs.cpu_set_sp(0, ctypes.c_uint64(rsp))
        bochs.bochscpu_cpu_set_rip(self._cpu, ctypes.c_uint64(entry))
        bochs.cpu_set_mode(0)

    def _run(self):
        function = ctypes.cast
        hooks = _Hooks()
        hooks.context = ctypes.addressof(self._state)
        hooks.before_execution = function(self._shim.hook_before, ctypes.c_void_p).value
        hooks.hlt = function(self._shim.hook_halt, ctypes.c_void_p).value
        hooks.exception = function(self._shim.hook_exception, ctypes.c_void_p).value
        chain = (ctypes.POINTER(_Hooks) * 2)(ctypes.pointer(hooks), None)
        self._bochs.bochscpu_cpu_run(self._cpu, chain)

    def _check(self, state):
        if state.status == RETURNED:
            return
        where = self.describe(state.rip)
        if state.status == OUT_OF_BUDGET:
            raise EmulationError(f"still running after {state.budget} instructions, {where}")
        name = VECTORS.get(state.vector, f"exception {state.vector}")
        if state.vector == 14:
            name += f" at address {state.address:#x}"
        code = bytes(self.view(state.rip, 8)).hex(" ")
        raise Fault(f"{name}, {where}: {code}", state.vector, state.rip, state.address)

    def describe(self, rip):
        below = [(a, n) for n, a in self.symbols.items() if a <= rip]
        address, name = max(below, default=(0, ""))
        return f"in {name}+{rip - address:#x}" if name else f"at {rip:#x}"

    def mark(self):
        """To `release` all blocks that are allocated from now on."""
        return self._next

    def release(self, page):
        self._entries[page : self._next] = 0
        self._pages[page : self._next] = 0
        start, end = page * PAGE, min(self._next * PAGE, self._size)
        self._bytes[start:end] = 0
        self._next = page
