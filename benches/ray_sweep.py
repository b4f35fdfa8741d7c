#!/usr/bin/env python3
"""What a checkpoint costs in a sweep on Ray, beside a sweep of one process, and how it grows with nodes of one core.

    python3 ray_sweep.py [CHECKPOINTS] [PAIRS]

in an environment of python/requirements-test.txt with the wheel; adapters of the demo's model, all of them the same. Prints one line of JSON."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"

import ray
from ray.cluster_utils import Cluster

import tanglescope as ts
import tanglescope.ray

number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 4
demo = pathlib.Path(__file__).resolve().parents[1] / "crates/tanglescope/demo"
desk = pathlib.Path(tempfile.mkdtemp())
ts.train(demo, demo / "short.jsonl", out=desk / "one", objective="dpo", lora_r=2, batch_size=2, max_steps=1, device="cpu")
for step in range(number):
    shutil.copytree(desk / "one" / "checkpoint-1", desk / "run" / f"checkpoint-{step}")
asked = {"pairs": pairs, "model": demo, "device": "cpu"}
data = {"long": demo / "long.jsonl"}
start = time.monotonic()
ts.sweep(desk / "run", data, out=desk / "alone", **asked).run()
found = {"checkpoints": number, "pairs": pairs, "one_process_s": time.monotonic() - start}
for nodes in (1, 2):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    ray.init(address=cluster.address, log_to_driver=False)
    start = time.monotonic()
    first = []
    tanglescope.ray.sweep(desk / "run", data, out=desk / f"ray-{nodes}", progress=lambda *of: first or first.append(time.monotonic()), **asked)
    found[f"nodes_{nodes}_s"] = time.monotonic() - start
    found[f"nodes_{nodes}_first_s"] = first[0] - start
    ray.shutdown()
    cluster.shutdown()
print(json.dumps(found))
