#!/usr/bin/env python3
"""Kills commands with SIGKILL at random moments, runs them again to their end, and wants the bytes of a run that was left alone, and no
file that was being written: python3 kills.py TANGLESCOPE [KILLS]. Uses the demo's model and data."""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

binary, kills = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = f"{HERE}/../crates/tanglescope/demo"
DATA = f"{MODEL}/pairs.jsonl"
work = tempfile.mkdtemp()
on = ["--model", MODEL, "--data", DATA, "--device", "cpu"]
run = f"{work}/run"
subprocess.run([binary, "train", *on, "--out", run, "--objective", "dpo", "--max-steps", "4", "--batch-size", "4", "--save-every", "2"], check=True, capture_output=True)
COMMANDS = {
    "analyze": ["analyze", *on, "--out", "OUT", "--scope", "full", "--objective", "dpo", "--reference", "self"],
    "tokens": ["tokens", *on, "--out", "OUT", "--limit", "24"],
    "sweep": ["sweep", run, "--model", MODEL, "--data", DATA, "--device", "cpu", "--out", "OUT", "--objective", "dpo"],
    "train": ["train", *on, "--out", "OUT", "--objective", "dpo", "--max-steps", "12", "--batch-size", "4", "--save-every", "3"],
    "rows": ["rows", "--model", MODEL, "--data", DATA, "--out", "OUT/ids.jsonl"],
    "report": ["report", "RECORDS", "--out", "OUT/report.html"],
}


def files(folder):
    found = {}
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            found[os.path.relpath(path, folder)] = open(path, "rb").read()
    # names of folders are in what they hold
    return {name: bytes.replace(folder.encode(), b"OUT") for name, bytes in found.items() if not name.endswith(".lock")}


random.seed(1)
records, done, bad = f"{work}/whole-analyze", 0, 0
for name, words in COMMANDS.items():
    at = lambda out: [binary, *(word.replace("OUT", out).replace("RECORDS", records) for word in words)]
    # a run that is left alone, at the same place, for reports say where they are
    whole, out = f"{work}/whole-{name}", f"{work}/killed"
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    start = time.time()
    subprocess.run(at(out), check=True, capture_output=True)
    seconds, want = time.time() - start, files(out)
    shutil.move(out, whole)
    of_command = 0
    while of_command < kills // len(COMMANDS) + 1:
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        for _ in range(random.randint(1, 4)):
            process = subprocess.Popen(at(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0, seconds))
            process.kill()
            process.wait()
            of_command += 1
        last = subprocess.run(at(out), capture_output=True, text=True)
        got = files(out)
        left = [file for file in got if "unfinished" in file or ".tmp" in file]
        differ = [file for file in want if got.get(file) != want[file]] + [file for file in got if file not in want]
        if last.returncode or left or differ:
            bad += 1
            print(f"{name}: exit {last.returncode}, differ {differ[:4]}, left {left[:4]} {last.stderr[-200:]}")
    done += of_command
    print(f"{name}: {of_command} kills")
print(f"{done} kills, {bad} runs that are not as they should be")
shutil.rmtree(work)
sys.exit(bad > 0)
