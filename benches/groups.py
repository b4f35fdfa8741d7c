"""Time of a group against the number of its responses: K = 2, 4, 8, 16, beside the operations that --dry-run counts.

    python benches/groups.py BINARY MODEL          (a model with a vocabulary of at least 40,000)

Prompts of 60 tokens, responses of 60, four groups each; on the CPU.
"""
import json, random, re, subprocess, sys, tempfile, time

binary, model = sys.argv[1:3]
random.seed(0)
ids = lambda n: [random.randrange(10, 40000) for _ in range(n)]
print("| K | scope | seconds | operations counted | seconds a T operation | seconds a response |")
print("|--:|---|--:|--:|--:|--:|")
for scope in ("lora", "full"):
    for k in (2, 4, 8, 16):
        with tempfile.TemporaryDirectory() as folder:
            data = f"{folder}/groups.jsonl"
            with open(data, "w") as f:
                for _ in range(4):
                    row = dict(prompt_ids=ids(60), responses_ids=[ids(60) for _ in range(k)], scores=list(range(k)))
                    f.write(json.dumps(row) + "\n")
            args = [binary, "analyze", "--model", model, "--data", data, "--scope", scope, "--device", "cpu"]
            dry = subprocess.run([*args, "--out", f"{folder}/dry", "--dry-run"], capture_output=True, text=True, check=True).stdout
            counted = re.search(r"operations\s+(\S+)", dry)
            best = 1e9
            for turn in range(2):
                done = subprocess.run([*args, "--out", f"{folder}/out{turn}"], capture_output=True, text=True, check=True)
                best = min(best, float(re.search(r"pairs in ([0-9.]+) s", done.stderr).group(1)))
            total = float(counted.group(1)) / 1e12
            print(f"| {k} | {scope} | {best:.1f} | {total:.2f} T | {best / total:.2f} | {best / (4 * k):.3f} |", flush=True)
