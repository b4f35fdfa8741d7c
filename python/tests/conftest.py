"""What tests share: the demo's model, pairs, and the command that the wheel brings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "crates" / "tanglescope" / "demo"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def demo() -> Path:
    """A small Llama with tokenizer and chat template, and pairs of texts."""
    return DEMO


@pytest.fixture(scope="session")
def pairs() -> list[dict[str, Any]]:
    """Pairs of the demo, as dicts."""
    with open(DEMO / "single.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file][:6]


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command `tanglescope` of the package."""

    def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tanglescope._command", *map(str, words)], capture_output=True, text=True, check=check)

    return run


@pytest.fixture(scope="session")
def run_of_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train`: adapters of the demo's model at steps 0, 2 and 4."""
    import tanglescope as ts

    out = tmp_path_factory.mktemp("runs") / "run"
    ts.train(
        DEMO,
        DEMO / "short.jsonl",
        out=out,
        objective="dpo",
        lora_r=2,
        batch_size=2,
        max_steps=4,
        save_every=2,
        warmup_steps=0,
        learning_rate=1e-2,
        device="cpu",
    )
    return out


def copy(source: Path, to: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(source, to)
    return to
