#!/usr/bin/env python3
"""How seconds and memory grow with the work: prompt and response length, rank, pairs.

    python3 growth.py [--binary target/release/tanglescope] [--shape smollm2-135m] [--layers 4] [--figure growth.png]

Runs `tanglescope bench` at each point (made-up weights, one pair a pass unless pairs are what grows) and prints a table of
seconds, counted operations and memory, and for each step the growth of seconds over the growth of operations: about 1 where
nothing grows faster than the count. The figure needs matplotlib."""
import argparse, json, subprocess

SERIES = {
    "prompt": ("--prompt", [32, 128, 512, 2048, 4096], ["--response", "32"]),
    "response": ("--response", [16, 64, 256, 1024], ["--prompt", "64"]),
    "rank": ("--lora-r", [4, 16, 64, 256], ["--prompt", "128", "--response", "64"]),
    "pairs": ("--pairs", [4, 16, 64], ["--prompt", "48", "--response", "24"]),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default="target/release/tanglescope")
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--layers", default="4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scopes", default="lora,full")
    parser.add_argument("--figure")
    args = parser.parse_args()
    found = {}
    print("| grows | to | scope | s | GFLOP | s over GFLOP, against the row before | MiB |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, (option, values, rest) in SERIES.items():
        for scope in args.scopes.split(","):
            if name == "rank" and scope != "lora":
                continue
            before = None
            for value in values:
                command = [args.binary, "bench", "--shape", args.shape, "--layers", args.layers, "--device", args.device, "--scope", scope,
                           "--pass-only", "--repeats", "8", "--format", "json", option, str(value), *rest]
                if name != "pairs":
                    command += ["--pairs", "1"]
                done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["pass"]
                seconds, work = min(done["seconds"]), done["operations_per_pair"] * done["pairs"] / 1e9
                step = f"{seconds / before[0] * before[1] / work:.2f}" if before else ""
                print(f"| {name} | {value} | {scope} | {seconds:.3f} | {work:.1f} | {step} | {(done['memory_bytes'] or 0) >> 20} |", flush=True)
                before = seconds, work
                found.setdefault((name, scope), []).append((value, seconds, work))
    if args.figure:
        draw(found, args.figure)


def draw(found, path):
    import matplotlib
    matplotlib.use("svg" if path.endswith(".svg") else "agg")
    import matplotlib.pyplot as plt
    names = list(SERIES)
    figure, axes = plt.subplots(1, len(names), figsize=(11, 3), layout="constrained")
    for axis, name in zip(axes, names):
        for (of, scope), points in found.items():
            if of != name:
                continue
            x, seconds, work = zip(*points)
            line, = axis.loglog(x, seconds, "o-", label=scope)
            axis.loglog(x, [w * seconds[0] / work[0] for w in work], ":", color=line.get_color())
        axis.set_xlabel({"prompt": "prompt tokens", "response": "response tokens", "rank": "LoRA rank", "pairs": "pairs"}[name])
        # one scale of seconds for all, so that what hardly grows looks flat
        axis.set_ylim(0.02, 10)
        ticks = sorted({x for (of, _), points in found.items() if of == name for x, *_ in points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axis.set_xticks([], minor=True)
        axis.tick_params(axis="x", labelrotation=45)
        axis.legend(frameon=False)
    axes[0].set_ylabel("seconds a pass")
    figure.savefig(path, dpi=110)


main()
