"""The kernels of logs as a table: how often each was launched in f32, f16 and bf16 (or without a type), and which faults were told of.

    CUDA_ON_CPU_LOG=LOG … (a run of a program)
    python table.py "HEADING=LOG" …
"""

import re
import sys

TYPES = ["f32", "f16", "bf16"]


def kernel_and_type(name):
    """A kernel's own name, and the number type that it was made for."""
    # what it was made for stands behind its name
    kernel = re.split(r"_(?=(?:bf16|f16|f32|u8|u32|lhs|t|e|f|c|n|r)(?:_|$))", name)[0]
    kind = re.search(r"_(bf16|f16|f32)(?=_|$)", name)
    return kernel, kind.group(1) if kind else ""


def cell(counts):
    if set(counts) == {""}:
        return f"{counts['']:,}"
    return " / ".join(f"{counts.get(kind, 0):,}" for kind in TYPES)


def main(arguments):
    launches, faults, headings = {}, {}, []
    for argument in arguments:
        heading, _, path = argument.rpartition("=")
        headings.append(heading)
        for line in open(path):
            what, name, *rest = line.rstrip("\n").split("\t")
            if what not in ("kernel", "fault"):
                continue
            kernel, kind = kernel_and_type(name)
            if what == "kernel":
                counts = launches.setdefault(kernel, {}).setdefault(heading, {})
                counts[kind] = counts.get(kind, 0) + int(rest[0].removeprefix("launches "))
            else:
                faults.setdefault(kernel, set()).add(rest[0])
    print("| kernel | " + " | ".join(headings) + " | faults |")
    print("| --- | " + " | ".join("---" for _ in headings) + " | --- |")
    for kernel, of in sorted(launches.items()):
        cells = [cell(of[heading]) if heading in of else "" for heading in headings]
        print(f"| `{kernel}` | " + " | ".join(cells) + f" | {', '.join(sorted(faults.get(kernel, ['none'])))} |")


if __name__ == "__main__":
    main(sys.argv[1:])
