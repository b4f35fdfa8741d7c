"""What a real NVRTC made of kernels, as a table: registers and spills of each kernel and number type, and how many of a multiprocessor's threads they leave room for.

    CUDA_ON_CPU_REAL_NVRTC=… CUDA_ON_CPU_REAL_LOG=MESSAGES CUDA_ON_CPU_LOG=LAUNCHES … (a run of a program)
    python registers.py CAPABILITY MESSAGES LAUNCHES

A kernel that is compiled in several ways has the worst of each figure. Shared memory is the larger of what the compiler and the launch say.
"""

import re
import sys

from table import TYPES, kernel_and_type

# of a multiprocessor: registers, bytes of shared memory that blocks can have, threads, blocks (CUDA C++ Programming Guide, compute capabilities)
LIMITS = {"80": (65536, 164 << 10, 2048, 32), "90": (65536, 228 << 10, 2048, 32)}
# what the system keeps of shared memory for each block
RESERVED = 1 << 10


def occupancy(capability, registers, shared, threads):
    """Share of a multiprocessor's threads that fit (registers are given to a warp 256 at a time)."""
    of_registers, of_shared, most, blocks = LIMITS[capability]
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    fit = [blocks, most // (32 * warps), of_registers // of_warp // warps]
    if shared:
        fit.append(of_shared // (shared + RESERVED))
    return 32 * warps * min(fit) / most


def launches(path):
    """Threads and shared memory of each kernel's launches."""
    of = {}
    for line in open(path):
        what, name, *rest = line.rstrip("\n").split("\t")
        if what == "kernel":
            fields = dict(field.split(" ", 1) for field in rest if " " in field)
            x, y, z = map(int, fields["block"].split(","))
            of[name] = (x * y * z, int(fields["shared"]))
    return of


def main(capability, messages, launched):
    if capability not in LIMITS:
        sys.exit(f"no limits are known of capability {capability}; expected one of {', '.join(LIMITS)}")
    of_launch = launches(launched)
    refused, rows = 0, {}
    name = spilled = None
    for line in open(messages):
        refused += line.startswith("refused")
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found.group(1)
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(found.group(1)) + int(found.group(2))
        elif found := re.search(r"Used (\d+) registers", line):
            registers = int(found.group(1))
            static = re.search(r"(\d+) bytes smem", line)
            threads, shared = of_launch.get(name, (0, 0))
            if not threads:
                continue
            shared = max(shared, int(static.group(1)) if static else 0)
            key = kernel_and_type(name)
            worst = rows.setdefault(key, [0, 0, 0, 0, 1.0, 0])
            worst[0] = max(worst[0], threads)
            worst[1] = max(worst[1], registers)
            worst[2] = max(worst[2], spilled)
            worst[3] = max(worst[3], shared)
            worst[4] = min(worst[4], occupancy(capability, registers, shared, threads))
            worst[5] += 1
    print("| kernel | type | programs | threads | registers | bytes spilled | shared, KiB | occupancy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (kernel, kind), (threads, registers, spilled, shared, share, programs) in sorted(
        rows.items(), key=lambda row: (row[0][0], TYPES.index(row[0][1]) if row[0][1] else -1)
    ):
        print(f"| `{kernel}` | {kind} | {programs} | {threads} | {registers} | {spilled} | {shared / 1024:.1f} | {share:.0%} |")
    print(f"\n{refused} programs refused", file=sys.stderr)


main(*sys.argv[1:])
