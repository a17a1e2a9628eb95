# SPDX-License-Identifier: Apache-2.0
"""The emulator against numpy models of the instructions, and that it notices mistakes."""

import numpy as np
import pytest

import instructions as ins
from conftest import same
from emulate import EmulationError, Fault

FULL = ins.tile_config((16, 64), (16, 64), (16, 64))


def any_floats(rng, *shape):
    return rng.integers(0, 1 << 32, shape).astype(np.uint32).view(np.float32)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def small_floats(rng, *shape):
    """Subnormal, or hardly more."""
    return rng.integers(0, 1 << 24, shape).astype(np.uint32).view(np.float32)


def normal(rng, *shape):
    return ins.round_to_bf16(floats(rng, *shape))


def any_bits(rng, *shape):
    """Subnormals, infinities, NaNs, all exponents."""
    return rng.integers(0, 1 << 16, shape).astype(np.uint16)


def tiny(rng, *shape):
    """bfloat16 whose products straddle the subnormal range."""
    sign = rng.integers(0, 2, shape) << 15
    return (sign | rng.integers(50, 72, shape) << 7 | rng.integers(0, 128, shape)).astype(np.uint16)


INPUTS = [(normal, floats), (any_bits, any_floats), (tiny, small_floats)]


def test_arguments(machine):
    assert machine.call("nine", *range(1, 10)).integer == 285


def test_flushing_of_subnormals(machine):
    a, b = np.float32(2.0**-126 * 1.5), np.float32(2.0**-126)
    assert machine.call("subtract_flushing", a, b).float32 == 0


@pytest.mark.parametrize("name", ["avx2_saxpy", "avx512_saxpy"])
def test_saxpy(machine, rng, name):
    x, y, a = floats(rng, 1003), floats(rng, 1003), np.float32(1.5)
    got = y.copy()
    machine.call(name, x, got, 1003, a)
    assert same(got, (np.float64(a) * x + y).astype(np.float32))


def test_permute(machine, rng):
    index, values = rng.permutation(16).astype(np.int32), np.arange(16, dtype=np.int32)
    got = np.zeros(16, np.int32)
    machine.call("avx512_permute", index, values, got)
    assert same(got, values[index])


@pytest.mark.parametrize("make, make_sum", INPUTS)
def test_vdpbf16ps(machine, rng, make, make_sum):
    for _ in range(200):
        a, b, c = make(rng, 32), make(rng, 32), make_sum(rng, 16)
        got = c.copy()
        machine.call("bf16_dot", a, b, got)
        assert same(got, ins.vdpbf16ps(a, b, c))


def test_wrong_models_of_vdpbf16ps_are_told_apart(machine, rng):
    def swap(x):
        return x.reshape(-1, 2)[:, ::-1].ravel()

    swapped = unflushed = 0
    for _ in range(50):
        a, b, c = normal(rng, 32), normal(rng, 32), floats(rng, 16)
        got = c.copy()
        machine.call("bf16_dot", a, b, got)
        swapped += same(got, ins.vdpbf16ps(swap(a), swap(b), c))
        a, b, got = tiny(rng, 32), tiny(rng, 32), np.zeros(16, np.float32)
        machine.call("bf16_dot", a, b, got)
        exact = (ins.widen(a).astype(np.float64) * ins.widen(b)).reshape(-1, 2).sum(1)
        unflushed += same(got, exact.astype(np.float32))
    assert swapped < 50 and unflushed < 50


@pytest.mark.parametrize("make", [any_floats, floats, small_floats])
def test_rounding_to_bf16(machine, rng, make):
    for _ in range(100):
        x, y = make(rng, 16), make(rng, 16)
        got, both = np.zeros(16, np.uint16), np.zeros(32, np.uint16)
        machine.call("bf16_round", x, got)
        machine.call("bf16_round_two", x, y, both)
        assert same(got, ins.round_to_bf16(x))
        assert same(both, ins.round_to_bf16(np.concatenate([x, y])))


@pytest.mark.parametrize("make, make_sum", INPUTS)
@pytest.mark.parametrize("shape", [(16, 16, 16), (1, 16, 1), (5, 7, 3), (16, 1, 16), (13, 16, 9)])
def test_tdpbf16ps(machine, rng, make, make_sum, shape):
    rows, n, k = shape
    config = ins.tile_config((rows, 4 * n), (rows, 4 * k), (k, 4 * n))
    for _ in range(4):
        a, b, c = make(rng, rows, 2 * k), make(rng, k, 2 * n), make_sum(rng, rows, n)
        got = c.copy()
        machine.call("amx_bf16", config, a, b, got, 4 * k, 4 * n, 4 * n)
        assert same(got, ins.tdpbf16ps(a, b, c))


def test_product_of_many_tiles(machine, rng):
    k = 128
    a, b = normal(rng, 32, k), normal(rng, k, 32)
    pairs = np.ascontiguousarray(b.reshape(k // 2, 2, 32).transpose(0, 2, 1)).reshape(k // 2, 64)
    got = np.zeros((32, 32), np.float32)
    machine.call("amx_bf16_32x32", ins.tile_config(*[(16, 64)] * 8), a, pairs, got, k)
    want = ins.widen(a).astype(np.float64) @ ins.widen(b)
    assert np.abs(got - want).max() < 1e-4


@pytest.mark.parametrize("signs", ["ss", "su", "us", "uu"])
def test_amx_int8(machine, rng, signs):
    types = {"s": np.int8, "u": np.uint8}
    a = rng.integers(0, 256, (16, 64)).astype(np.uint8).view(types[signs[0]])
    b = rng.integers(0, 256, (16, 64)).astype(np.uint8).view(types[signs[1]])
    c = rng.integers(-(2**31), 2**31, (16, 16)).astype(np.int32)
    got = c.copy()
    machine.call(f"amx_int8_{signs}", FULL, a, b, got)
    assert same(got, ins.tdpb(a, b, c))


@pytest.mark.parametrize("name, saturate", [("vnni_dot", False), ("vnni_dot_saturating", True)])
def test_vnni(machine, rng, name, saturate):
    for _ in range(50):
        a = rng.integers(0, 256, 64).astype(np.uint8)
        b = rng.integers(-128, 128, 64).astype(np.int8)
        c = rng.integers(-(2**31), 2**31, 16).astype(np.int32)
        c[:4] = [2**31 - 1, -(2**31), 2**31 - 20000, 20000 - 2**31]
        got = c.copy()
        machine.call(name, a, b, got)
        assert same(got, ins.vpdpbusd(a, b, c, saturate))


def test_tile_config_round_trip(machine):
    config, got = ins.tile_config((16, 64), (3, 8), (7, 20)), np.full(64, 255, np.uint8)
    machine.call("amx_config_roundtrip", config, got)
    assert same(got, config)


@pytest.mark.parametrize("form", ["plain", "scaled", "displaced_8", "displaced_32", "rip_relative"])
def test_addresses_of_tiles(machine, rng, form):
    config = ins.tile_config(*[(0, 0)] * 7, (16, 64))
    x, got = rng.integers(0, 256, (16, 80)).astype(np.uint8), np.zeros((16, 64), np.uint8)
    machine.call(f"amx_address_{form}", config, x, 80, got)
    assert same(got, x[:, :64])


def test_reading_past_an_array_faults(machine, rng):
    with pytest.raises(Fault) as fault:
        machine.call("read_past_end", floats(rng, 64), floats(rng, 16), 64)
    assert fault.value.vector == 14 and "in read_past_end+" in str(fault.value)


@pytest.mark.parametrize("case", ["shapes", "load", "palette"])
def test_bad_tiles_fault(machine, rng, case):
    config, rows, vector = FULL.copy(), 16, {"shapes": 6, "load": 14, "palette": 13}[case]
    if case == "shapes":
        config = ins.tile_config((16, 64), (16, 64), (15, 64))
    elif case == "load":
        rows = 15
    else:
        config[0] = 9
    a, b, c = normal(rng, 16, 32), normal(rng, rows, 32), floats(rng, 16, 16)
    with pytest.raises(Fault) as fault:
        machine.call("amx_bf16", config, a, b, c, 64, 64, 64)
    assert fault.value.vector == vector
    assert machine.call("nine", *range(1, 10)).integer == 285  # it goes on after a fault


def test_budget_stops_a_loop(machine):
    with pytest.raises(EmulationError, match="still running"):
        machine.call("count_down", 1 << 40, budget=10000)


def test_trace_and_counts(machine):
    start = machine.symbols["count_down"]
    machine.start_trace(start, 4096)
    result = machine.call("count_down", 1000)
    trace = machine.stop_trace()
    assert len(trace) == result.instructions and trace[0] == 0
