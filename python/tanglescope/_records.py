"""What calls found: folders of tables, as the command line writes them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from . import _native
from ._errors import InputError
from ._progress import Listener
from ._words import words

if TYPE_CHECKING:
    import polars as pl

Path = "str | os.PathLike[str]"
SummaryBy = Literal["run", "metric", "regime", "objective", "layer", "module", "expert", "mean", "relation", "bin", "outlier", "token"]


def frame(native: _native.Frame) -> pl.DataFrame:
    """A table of the engine as a polars frame."""
    import polars as pl

    return pl.DataFrame(native)


class Records:
    """A folder of records. Its tables are polars frames, which any library that knows Arrow's C stream takes.

    Attributes:
        folder: Where it is; records that were not written to a folder of the user's go with this object.
    """

    def __init__(self, folder: str, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.folder = folder
        self._where = "in passing" if temporary is not None else folder
        if temporary is not None:
            # as long as this object, or until the interpreter ends
            self._cleanup = weakref.finalize(self, temporary.cleanup)
        self._tables: dict[str, pl.DataFrame | None] = {}

    @property
    def manifest(self) -> dict[str, Any]:
        """What the records were made from, and by what plan (docs/formats.md)."""
        with open(os.path.join(self.folder, "manifest.json"), encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def table(self, name: str) -> pl.DataFrame | None:
        """A table by its name, such as `groups` for groups.parquet; None where it was not written."""
        if name not in self._tables:
            found = _native.table(self.folder, f"{name}.parquet")
            self._tables[name] = None if found is None else frame(found)
        return self._tables[name]

    def _needed(self, name: str, how: str) -> pl.DataFrame:
        found = self.table(name)
        if found is None:
            raise InputError(f"{self.folder}: has no {name}.parquet; {how} writes it", file=self.folder)
        return found

    def save(self, out: str | os.PathLike[str]) -> str:
        """Copies the records to a folder, which must not be there yet: what the command line would have written, bit for bit."""
        out = os.path.realpath(out) if os.fspath(out) else ""
        if not out or out.startswith(os.path.realpath(self.folder) + os.sep):
            raise InputError(f"{out or 'out'}: is no folder outside of the records; name another", file=out, option="out")
        if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
            raise InputError(f"{out}: is there already; name a new folder", file=out, option="out")
        parent = os.path.dirname(os.path.abspath(out))
        os.makedirs(parent, exist_ok=True)
        # whole or not at all
        with tempfile.TemporaryDirectory(prefix=".tanglescope-", dir=parent) as passing:
            copy = os.path.join(passing, "records")
            shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns(".lock*"))
            if os.path.isdir(out):
                os.rmdir(out)
            os.replace(copy, out)
        return out

    def figures(self) -> dict[str, str]:
        """The figures of a report of these records, as SVG by their names."""
        return dict(_native.figures([self.folder]))


class Analysis(Records):
    """What `analyze` found of every pair."""

    @property
    def pairs(self) -> pl.DataFrame:
        """One row a pair: log-probabilities in nats, inner products, cosine, lengths."""
        return self._needed("pairs", "analyze")

    @property
    def params(self) -> pl.DataFrame:
        """One row a pair and parameter tensor: `ww`, `wl`, `ll`."""
        return self._needed("params", "analyze")

    @property
    def responses(self) -> pl.DataFrame:
        """One row a pair: the tokens of both responses, their log-probabilities and entropies."""
        return self._needed("responses", "analyze")

    @property
    def objectives(self) -> pl.DataFrame:
        """One row a pair and objective: what one step on that loss would do to both log-probabilities."""
        return self._needed("objectives", "analyze with objectives=")

    def summary(self, by: SummaryBy = "metric") -> pl.DataFrame:
        """What the records amount to: medians with intervals, regimes, layers and so on."""
        return summarize(self, by=by)

    def digest(self) -> dict[str, Any]:
        """Quartiles of the cosine, counts of regimes and cosines by layer."""
        found: dict[str, Any] = json.loads(_native.summary(self.folder)[1])
        return found

    def __str__(self) -> str:
        return _native.summary(self.folder)[0]

    def __repr__(self) -> str:
        return f"<tanglescope.Analysis: {self._where}>"

    def _repr_html_(self) -> str:
        from ._html import analysis

        return analysis(self)


class TokenMatrices:
    """The token-level matrices of one pair.

    Attributes:
        pair: Number of the row in the data.
    """

    def __init__(self, pair: int, records: Tokens) -> None:
        self.pair = pair
        self._records = records

    def _block(self, name: str) -> Any:
        import numpy as np
        import polars as pl

        entries = self._records.entries.filter((pl.col("pair") == self.pair) & (pl.col("block") == name))
        rows = int(entries["row"].max()) + 1 if entries.height else 0  # type: ignore[arg-type]
        return np.asarray(entries["inner"].to_numpy()).reshape(rows, -1)

    @property
    def wl(self) -> Any:
        """⟨∇log π(chosen token i), ∇log π(rejected token j)⟩ as a NumPy array `[n_w, n_l]` of f64."""
        return self._block("wl")

    @property
    def ww(self) -> Any:
        """The same of chosen tokens, `[n_w, n_w]`."""
        return self._block("ww")

    @property
    def ll(self) -> Any:
        """The same of rejected tokens, `[n_l, n_l]`."""
        return self._block("ll")

    @property
    def positions(self) -> pl.DataFrame:
        """One row a response token: `branch` (w or l), `position`, `token`, `text`, `logp`, `shared`."""
        import polars as pl

        return self._records._needed("positions", "tokens").filter(pl.col("pair") == self.pair)

    def texts(self, branch: Literal["w", "l"]) -> list[str]:
        """Texts of the tokens of a response; their ids without a tokenizer."""
        of = self.positions
        rows = of.filter(of["branch"] == branch).sort("position")
        return [str(token) if text is None else text for token, text in zip(rows["token"], rows["text"], strict=True)]

    def __repr__(self) -> str:
        return f"<tanglescope.TokenMatrices of pair {self.pair}: {len(self.texts('w'))} × {len(self.texts('l'))} tokens>"

    def _repr_html_(self) -> str:
        from ._html import heat_map

        return heat_map(self)


class Tokens(Records):
    """What `tokens` found: the matrices of single response tokens, by pair. `tokens[0]` is those of the first pair; where there is one pair
    alone, its `wl`, `ww` and `ll` are here too."""

    @property
    def entries(self) -> pl.DataFrame:
        """One row a pair and matrix entry: `pair`, `block`, `row`, `column`, `inner`."""
        return self._needed("tokens", "tokens")

    @property
    def pairs(self) -> list[int]:
        """Numbers of the pairs, in the order of the data."""
        numbers: list[int] = self.entries["pair"].unique(maintain_order=True).to_list()
        return numbers

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> TokenMatrices:
        return TokenMatrices(self.pairs[place], self)

    def _only(self) -> TokenMatrices:
        if len(self) != 1:
            raise InputError(f"these are the matrices of {len(self)} pairs; name one: t[0]")
        return self[0]

    @property
    def wl(self) -> Any:
        """See `TokenMatrices.wl`."""
        return self._only().wl

    @property
    def ww(self) -> Any:
        """See `TokenMatrices.ww`."""
        return self._only().ww

    @property
    def ll(self) -> Any:
        """See `TokenMatrices.ll`."""
        return self._only().ll

    def __repr__(self) -> str:
        return f"<tanglescope.Tokens: {len(self)} pairs, {self._where}>"

    def _repr_html_(self) -> str:
        return self[0]._repr_html_()


class Interference(Analysis):
    """What `interference` found: an `Analysis` of the pairs, and how they meet."""

    @property
    def couples(self) -> pl.DataFrame:
        """One row every two pairs, and a pair with itself: `a`, `b`, and `ww`, `wl`, `lw`, `ll`; the first letter is the response of `a`."""
        return self._needed("interference", "interference")

    @property
    def against(self) -> pl.DataFrame:
        """The same of a pair of the data and a pair of the second data set."""
        return self._needed("against", "interference with `against`")

    @property
    def effects(self) -> pl.DataFrame:
        """One row a pair and objective: what steps on itself and on others do to it, and what it does to others (`harm`)."""
        return self._needed("effects", "interference with `objectives`")

    @property
    def batch_sizes(self) -> pl.DataFrame:
        """One row an objective and size of random batches."""
        return self._needed("batch_sizes", "interference with `objectives`")

    @property
    def drags(self) -> pl.DataFrame:
        """The ten pairs that pull a pair's chosen response down most, and the ten whose it pulls down."""
        return self._needed("drags", "interference with `objectives`")

    @property
    def batches(self) -> pl.DataFrame:
        """One row a batch, objective and pair: its own part and that of the others."""
        return self._needed("batches", "interference with `objectives` and `batches` or `batch_size`")

    @property
    def spectrum(self) -> pl.DataFrame:
        """The eigenvalues of the Gram of all responses, the largest first."""
        return self._needed("spectrum", "interference")

    @property
    def clusters(self) -> pl.DataFrame:
        """The pairs in the order of a dendrogram: those together that move the model alike."""
        return self._needed("clusters", "interference")

    @property
    def matrix(self) -> Any:
        """The Gram of all responses as a NumPy array `[2N, 2N]` of f64: chosen and rejected of each pair in turn, in the order of `pairs`."""
        import numpy as np

        place = {pair: at for at, pair in enumerate(self.pairs["pair"].to_list())}
        found = np.zeros((2 * len(place), 2 * len(place)))
        couples = self.couples
        a, b = (np.array([2 * place[pair] for pair in couples[name].to_list()]) for name in ("a", "b"))
        for at, name in enumerate(("ww", "wl", "lw", "ll")):
            found[a + at // 2, b + at % 2] = found[b + at % 2, a + at // 2] = couples[name].to_numpy()
        return found


class SweepRecords(Records):
    """Records of a sweep: one `Analysis` a run, step and data set."""

    def leaves(self) -> list[tuple[str, int, str, Analysis]]:
        """Run, step and data set of every record, in this order, with the record."""
        found = []
        for run in _entries(self.folder, "run="):
            for step in _entries(run[1], "step="):
                for dataset in _entries(step[1], "dataset="):
                    if os.path.isdir(os.path.join(dataset[1], "pairs.parquet")):
                        found.append((run[0], int(step[0]), dataset[0], Analysis(dataset[1])))
        return sorted(found, key=lambda leaf: leaf[:3])

    def summary(self, by: SummaryBy = "run") -> pl.DataFrame:
        """What the records amount to."""
        return summarize(self, by=by)

    def __repr__(self) -> str:
        return f"<tanglescope.SweepRecords: {len(self.leaves())} records, {self.folder}>"


class Training(Records):
    """A run of `train`.

    Attributes:
        checkpoint: Folder of its last checkpoint, where the call that made this object trained.
    """

    def __init__(self, folder: str, checkpoint: str | None = None) -> None:
        super().__init__(folder)
        self.checkpoint = checkpoint

    @property
    def steps(self) -> pl.DataFrame:
        """One row a step and pair, as the step saw it before it was taken."""
        return self._needed("steps", "train")

    @property
    def predictions(self) -> pl.DataFrame:
        """One row a predicted change of a log-probability, beside the measured one."""
        return self._needed("predictions", "train with predict_every=")

    def __repr__(self) -> str:
        return f"<tanglescope.Training: {self.folder}>"


def _entries(folder: str, prefix: str) -> list[tuple[str, str]]:
    names = [name for name in os.listdir(folder) if name.startswith(prefix)]
    return [(name[len(prefix) :], os.path.join(folder, name)) for name in names]


def open_records(folder: str | os.PathLike[str]) -> Records:
    """Opens a folder of records: an `Analysis`, `Tokens`, `SweepRecords` or `Training`, as it was made. `tanglescope.open` is the same.

    Raises:
        InputError: Where it is no such folder.
    """
    path = os.fspath(folder)
    try:
        with open(os.path.join(path, "manifest.json"), encoding="utf-8") as file:
            kind = json.load(file).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is no folder of records ({error})", file=path) from None
    if kind == "sweep":
        return SweepRecords(path)
    if kind == "train":
        return Training(path)
    if os.path.isdir(os.path.join(path, "pairs.parquet")):
        return Analysis(path)
    return Tokens(path)


def folders(records: Records | str | os.PathLike[str] | Sequence[Records | str | os.PathLike[str]]) -> list[str]:
    """The folders of some records."""
    if isinstance(records, (str, os.PathLike, Records)):
        records = [records]
    return [of.folder if isinstance(of, Records) else os.fspath(of) for of in records]


def summarize(records: Any, by: SummaryBy = "run") -> pl.DataFrame:
    """What records amount to, as one table: a row a run, metric, regime, objective, layer, module, expert or pair.

    Args:
        records: Records, or folders of them.
        by: What a row is of.
    """
    return frame(_native.summarize(["summarize", *words(by=by), *folders(records)], Listener()))


def compare(before: Any, after: Any) -> pl.DataFrame:
    """Two records of the same pairs, metric by metric: means of both, the spread of the differences, how many rose and fell, a sign test.

    Args:
        before: What is compared with.
        after: What is compared.
    """
    one = folders(before)
    if len(one) != 1:
        raise InputError(f"before: is {len(one)} records; give one", option="before")
    [other] = one
    return frame(_native.summarize(["summarize", f"--against={other}", *folders(after)], Listener()))


class Report:
    """A report that was written.

    Attributes:
        path: Its file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def show(self, height: int = 800) -> Any:
        """Shows it in a notebook."""
        from IPython.display import IFrame

        return IFrame(src=os.path.relpath(self.path), width="100%", height=height)

    def __repr__(self) -> str:
        return f"<tanglescope.Report: {self.path}>"


def report(records: Any, out: str | os.PathLike[str]) -> Report:
    """Writes one page of any set of records, which works offline; `.md` gives Markdown with figures.

    Args:
        records: Records, or folders of them.
        out: The file: `.html` or `.md`.
    """
    path = os.fspath(out)
    form = "md" if path.endswith(".md") else "html"
    return Report(_native.report(["report", *words(out=path, format=form), *folders(records)], Listener()))


def watch(records: Any, port: int = 8600) -> None:
    """Shows the page of some records on this machine alone while they are written, until it is interrupted.

    Args:
        records: Records, or folders of them or of training runs, which may still be at work.
        port: The port; any that is free where it is 0. The page's address is printed.
    """

    def say(event: str, *of: Any) -> None:
        if event == "note":
            print(of[0], flush=True)

    _native.watch(["report", f"--watch={port}", *folders(records)], say)
