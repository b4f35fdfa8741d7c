"""What a call tells while it works: through `logging`, on a bar, or to a function."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("tanglescope")


@dataclass(frozen=True)
class Progress:
    """How far a call is.

    Attributes:
        pairs: Pairs that are done, with those of earlier calls.
        total_pairs: All of them.
        rows: Forward rows that are done; pairs run in the order of their length, so that rows tell the time left.
        total_rows: All of them.
        seconds: Since the call began to work.
        seconds_left: Estimated from the rows; None until some are done.
        about: What is being measured, where a call measures several things.
    """

    pairs: int
    total_pairs: int
    rows: int
    total_rows: int
    seconds: float
    seconds_left: float | None
    about: str


#: `None` for nothing but the log, `True` for a bar, or a function that is called with a `Progress`.
ProgressLike = bool | Callable[[Progress], object] | None

_LEVELS = {"note": logging.INFO, "resumed": logging.INFO, "left_out": logging.WARNING, "fell_back": logging.WARNING}


class Listener:
    """Is told of a call's events by the engine, on the thread that made the call."""

    def __init__(self, progress: ProgressLike = None, completed: Callable[[str], object] | None = None) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress: expected None, True or a function, found {type(progress).__name__}")
        self._function = progress if callable(progress) else None
        self._wants_bar = progress is True
        self._bar: Any = None
        self._completed = completed
        self._about = ""
        self._total = self._before = self._done = (0, 0)
        self._start = time.monotonic()
        self.checks: list[dict[str, Any]] = []

    def __call__(self, event: str, *of: Any) -> None:
        if event in _LEVELS:
            logger.log(_LEVELS[event], "%s", of[0])
        elif event == "completed":
            if self._completed is not None:
                self._completed(of[0])
        elif event == "begin":
            self._begin(of[0:2], of[2:4])
        elif event == "about":
            self._about = str(of[0]).rstrip(": ")
        elif event == "advance":
            self._advance(of[0], of[1])
        elif event == "end":
            self.close()
        elif event == "checked":
            self.checks.append(json.loads(of[0]))

    def _begin(self, total: tuple[Any, ...], before: tuple[Any, ...]) -> None:
        self._total, self._before = (int(total[0]), int(total[1])), (int(before[0]), int(before[1]))
        self._done, self._start = self._before, time.monotonic()
        if self._wants_bar:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                logger.warning("progress=True shows a bar where tqdm is installed (pip install tqdm)")
                self._wants_bar = False
                return
            self._bar = tqdm(total=self._total[1], initial=self._before[1], unit="row", leave=False)

    def _advance(self, pairs: int, rows: int) -> None:
        self._done = (self._done[0] + pairs, self._done[1] + rows)
        if self._bar is not None:
            self._bar.set_description(f"{self._about} {self._done[0]} of {self._total[0]} pairs".strip(), refresh=False)
            self._bar.update(rows)
        if self._function is not None:
            seconds, rows_done = time.monotonic() - self._start, self._done[1] - self._before[1]
            left = seconds * (self._total[1] - self._done[1]) / rows_done if rows_done else None
            self._function(Progress(self._done[0], self._total[0], self._done[1], self._total[1], seconds, left, self._about))

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
