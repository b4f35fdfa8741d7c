"""Rows of preference data as the tokens that are measured."""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from . import _native
from ._data import DataLike, as_file
from ._errors import InputError
from ._progress import Listener
from ._words import words

Recipe = Literal["trl", "trl-0.29", "trl-0.24", "openrlhf", "llama-factory", "official", "apart"]


class Ids(NamedTuple):
    """Token ids of a row: the prompt, and each response after it (chosen and rejected, or all of a group)."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def chosen(self) -> list[int]:
        """Ids of the first response."""
        return self.responses[0]

    @property
    def rejected(self) -> list[int]:
        """Ids of the second response."""
        return self.responses[1]


class Rows:
    """Rows of preference data as token ids, looked at before anything is computed. Made by `rows`.

    `rows[0]`, `rows[:8]` and `rows[[0, 3]]` are rows as well; a loop goes over single ones.

    >>> import tanglescope as ts
    >>> rows = ts.rows([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}])
    >>> len(rows), rows.ids(0)
    (1, Ids(prompt=[1, 2], responses=[[3], [4, 5]]))
    """

    def __init__(self, native: _native.Rows, folder: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self._native = native
        #: Where their tokenizer is, if that is only in passing.
        self._folder = folder

    def __len__(self) -> int:
        return len(self._native)

    def ids(self, row: int) -> Ids:
        """Token ids of a row, by its place among the usable ones."""
        return Ids(*self._native.ids(self._place(row)))

    def texts(self, row: int) -> dict[str, Any]:
        """A row with the text of every token: `row`, `id`, `prompt`, `responses` (lists of {id, text}) and what was cut."""
        found: dict[str, Any] = json.loads(self._native.row(self._place(row)))
        return found

    @property
    def dropped(self) -> list[tuple[int, str]]:
        """Rows that were left out: their numbers in the data, and why."""
        return self._native.dropped

    @property
    def notes(self) -> list[str]:
        """What was recognised, taken or cut, in words."""
        return self._native.notes

    @property
    def tokenize(self) -> str | None:
        """How texts became tokens; None where no row is text."""
        return self._native.tokenize

    @property
    def content_hash(self) -> str:
        """SHA-256 of the rows' numbers and token ids."""
        return self._native.content_hash

    def _place(self, row: int) -> int:
        if not isinstance(row, int) and not hasattr(row, "__index__"):
            raise TypeError(f"row: expected a number, found {type(row).__name__}")
        place = row.__index__()
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place}: there are {len(self)} rows, numbered from 0")
        return place % len(self)

    def __getitem__(self, which: int | slice | Sequence[int]) -> Rows:
        if isinstance(which, slice):
            places = list(range(*which.indices(len(self))))
        elif isinstance(which, Sequence) or getattr(which, "ndim", 0) == 1:
            places = [self._place(row) for row in which]  # type: ignore[union-attr]
        else:
            places = [self._place(which)]
        return Rows(self._native.select(places), self._folder)

    def __iter__(self) -> Iterator[Rows]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        dropped = f", {len(self.dropped)} left out" if self.dropped else ""
        return f"<tanglescope.Rows: {len(self)} rows{dropped}, tokens by {self.tokenize or 'their ids'}>"

    def _repr_html_(self) -> str:
        lines = [f"<p>{html.escape(repr(self))}</p>"]
        for row in range(min(3, len(self))):
            of = self.texts(row)
            parts = [("prompt", of["prompt"])] + [(f"response {k}", r) for k, r in enumerate(of["responses"])]
            for name, tokens in parts:
                spans = "".join(
                    f'<span style="background:{("#eef", "#fee")[at % 2]}" title="{token["id"]}">'
                    f"{html.escape(token['text'] if token['text'] is not None else str(token['id']))}</span>"
                    for at, token in enumerate(tokens)
                )
                lines.append(f'<div style="white-space:pre-wrap"><b>row {of["row"]}, {name}:</b> {spans}</div>')
        return "".join(lines)

    def save_ids(self, path: str | os.PathLike[str]) -> None:
        """Writes the ids of all rows as JSON lines, which every call reads as data."""
        self._native.write_ids(os.fspath(path))


class _Unset:
    """The recipe's own value."""

    def __repr__(self) -> str:
        return "RECIPE"


RECIPE = _Unset()
#: A `Model`, a folder, a hub name, or a fast tokenizer of transformers.
TokenizerLike = str | os.PathLike[str] | Any | None


def rows(
    data: DataLike,
    tokenizer: TokenizerLike = None,
    *,
    tokenize: Recipe = "trl",
    max_length: int | None | _Unset = RECIPE,
    max_prompt_length: int | None | _Unset = RECIPE,
    truncate: Literal["response", "prompt", "both", "refuse"] | None = None,
    chat: bool = False,
    join: str | None = None,
    eos: str | None = None,
    add_special_tokens: bool | None = None,
    implicit_prompt: str | None = None,
    assistant_last: str | None = None,
    date: Any = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    on_bad_row: Literal["stop", "skip"] = "stop",
) -> Rows:
    """Reads preference data as a measurement would, without computing anything.

    Args:
        data: A path, the name of a data set on the hub (`org/name[@revision]`), dicts, a `datasets.Dataset`, or a polars, pandas or
            Arrow table, with the usual columns (docs/formats.md).
        tokenizer: Whose: a `Model`, the folder or hub name of a model, or a fast tokenizer of `transformers`. Rows of ids need none.
        tokenize: Whose tokens: as TRL makes them unless another recipe is named (docs/tokens.md).
        max_length: Most tokens of prompt and response together; None for no limit; the recipe's where it is not given.
        max_prompt_length: Most tokens of a prompt; None for no limit; the recipe's where it is not given.
        truncate: What is cut of a row that is too long.
        chat: Render plain-text rows with the chat template.
        join, eos, add_special_tokens, implicit_prompt, assistant_last: Single settings in place of the recipe's.
        date: The day that chat templates write.
        columns: Where the usual columns are, such as `{"prompt": "info.post"}`; recognised by their names where not given.
        split: Part of a data set that has several.
        limit: Only the first rows.
        on_bad_row: `stop` with the first row that cannot be used, or `skip` and list it in `Rows.dropped`.

    Raises:
        InputError: Where a row, a file or the tokenizer cannot be used; `row` and `file` say which.
    """

    def limits(most: int | None | _Unset) -> int | str | None:
        return None if isinstance(most, _Unset) else "none" if most is None else most

    said = words(
        split=split,
        columns=columns,
        limit=limit,
        on_bad_row=on_bad_row,
        tokenize=tokenize,
        chat=chat,
        join=join,
        eos=eos,
        add_special_tokens=add_special_tokens,
        implicit_prompt=implicit_prompt,
        assistant_last=assistant_last,
        max_length=limits(max_length),
        max_prompt_length=limits(max_prompt_length),
        truncate=truncate,
        date=date,
    )
    from ._model import Model

    folder = tempfile.TemporaryDirectory(prefix="tanglescope-")
    with as_file(data) as (path, called):
        given = [f"--data={path}", *said]
        if isinstance(tokenizer, Model):
            native = tokenizer._engine.rows(given, called, Listener())
        else:
            native = _native.Rows.read(given, tokenizer_folders(tokenizer, folder.name), called, Listener())
    return Rows(native, folder)


def tokenizer_folders(tokenizer: Any, folder: str) -> list[str]:
    """The folders whose tokenizer it is; one that lives in memory is saved into a folder in passing."""
    if tokenizer is None:
        return []
    if isinstance(tokenizer, (str, os.PathLike)):
        path = os.fspath(tokenizer)
        return [path if os.path.exists(path) else _native.resolve(path, "model")]
    if not hasattr(tokenizer, "save_pretrained"):
        raise InputError(
            f"tokenizer: found {type(tokenizer).__name__}; expected a folder, a hub name, a Model or a tokenizer of transformers",
            option="tokenizer",
        )
    if getattr(tokenizer, "is_fast", True) is False:
        raise InputError("tokenizer: is a slow one of transformers, which has no tokenizer.json; load it with use_fast=True", option="tokenizer")
    tokenizer.save_pretrained(folder)
    return [folder]
