"""Runs a program as on a processor without AVX-512, to measure on one that has it.

    gdb -batch -x benches/without_avx512.py --args target/release/tanglescope bench --device cpu

At `main` it has Rust's standard library find out what the processor can (`std_detect`), and clears AVX-512's bits of what that keeps: `gemm` and
`pulp`, which choose their loops by it, take those for AVX2. In `perf` they are `V3` then, not `V4`. gdb brings the Python that runs this.
"""

import os
import struct
import subprocess

import gdb

# of std_detect::detect::Feature (Rust 1.95): avx512f to avx512vbmi2
AVX512 = sum(1 << bit for bit in range(19, 30))

SETTINGS = ["confirm off", "pagination off", "print thread-events off", "debuginfod enabled off", "language c"]
for command in [*(f"set {setting}" for setting in SETTINGS), "break main", "run"]:
    gdb.execute(command, to_string=True)
program = gdb.selected_inferior()
path = os.path.realpath(f"/proc/{program.pid}/exe")
with open(f"/proc/{program.pid}/maps") as maps:
    base = min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))


def address(name):
    """Where the program's only symbol is that ends in a name of std_detect's cache."""
    listed = subprocess.check_output(["nm", "--defined-only", path], text=True).splitlines()
    (found,) = [line.split()[0] for line in listed if "std_detect" in line and line.endswith(name)]
    return base + int(found, 16)


gdb.execute(f"call ((void (*)(void)) {address('detect_and_initialize')})()", to_string=True)
cache = address("5CACHE")
(first,) = struct.unpack("<Q", bytes(program.read_memory(cache, 8)))
if not first & AVX512:
    print("this processor has no AVX-512 that could be hidden")
program.write_memory(cache, struct.pack("<Q", first & ~AVX512))
gdb.execute("delete", to_string=True)
gdb.execute("continue")
