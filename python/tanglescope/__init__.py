"""Tanglescope measures gradient entanglement in preference-tuned language models: for every preference pair, how the gradients of
log π(chosen) and log π(rejected) pull on each other, and what every margin-based loss would therefore do to both probabilities.

    import tanglescope as ts

    model = ts.Model("HuggingFaceTB/SmolLM2-135M-Instruct")
    rows = ts.rows("pairs.jsonl", model)
    found = ts.analyze(model, rows, objectives=["dpo:beta=0.1"])
    print(found, found.pairs)

| call | what it does |
|---|---|
| `Model`, `Model.from_torch` | a model that stays loaded, from a folder, a hub, or as it lives in PyTorch |
| `rows` | preference data as the tokens that are measured |
| `analyze` | log-probabilities and inner products of every pair |
| `tokens` | inner products of the gradients of single response tokens |
| `interference` | inner products of the gradients of different pairs |
| `gram` | inner products of any responses to a prompt |
| `sweep` | every checkpoint of runs on data sets |
| `train` | training on any objective, with every step's entanglement |
| `objective` | a loss by itself |
| `summarize`, `compare`, `report`, `watch` | what records amount to |
| `verify`, `inspect`, `devices` | checks before you rely on it |

`tanglescope.trl` has a callback for TRL's trainers, `tanglescope.ray` a sweep on a Ray cluster.
"""

from ._calls import Sweep, analyze, devices, gram, inspect, interference, sweep, tokens, train, verify
from ._errors import DeviceError, InputError, TanglescopeError, Unsupported
from ._model import Model
from ._native import version as __version__
from ._objective import Objective, Outcome, objectives
from ._progress import Progress
from ._records import (
    Analysis,
    Interference,
    Records,
    Report,
    SweepRecords,
    TokenMatrices,
    Tokens,
    Training,
    compare,
    report,
    summarize,
    watch,
)
from ._records import open_records as open
from ._rows import Ids, Rows, rows

objective = Objective

__all__ = [
    "Analysis",
    "DeviceError",
    "Ids",
    "InputError",
    "Interference",
    "Model",
    "Objective",
    "Outcome",
    "Progress",
    "Records",
    "Report",
    "Rows",
    "Sweep",
    "SweepRecords",
    "TanglescopeError",
    "TokenMatrices",
    "Tokens",
    "Training",
    "Unsupported",
    "__version__",
    "analyze",
    "compare",
    "devices",
    "gram",
    "inspect",
    "interference",
    "objective",
    "objectives",
    "open",
    "report",
    "rows",
    "summarize",
    "sweep",
    "tokens",
    "train",
    "verify",
    "watch",
]
