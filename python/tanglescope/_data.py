"""Preference data in any of Python's forms, as a file that the engine reads as it reads any other."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ._errors import InputError

#: A path, the name of a data set on the hub, dicts, a `datasets.Dataset`, or a polars, pandas or Arrow table.
DataLike = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Any


def _default(value: Any) -> Any:
    """What JSON does not know of a row's values."""
    if hasattr(value, "tolist"):  # NumPy and torch
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, (set, tuple)):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no value of a row")


def write_rows(rows: Iterable[Any], path: str) -> int:
    """Writes dicts as JSON lines; returns how many."""
    number = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            if not isinstance(row, Mapping):
                raise InputError(
                    f"data: row {number} is a {type(row).__name__}; expected a dict with prompt, chosen and rejected",
                    row=number,
                    option="data",
                )
            try:
                file.write(json.dumps(dict(row), default=_default) + "\n")
            except (TypeError, ValueError) as error:
                raise InputError(f"data: row {number}: {error}", row=number, option="data") from None
            number += 1
    if number == 0:
        raise InputError("data: has no rows", option="data")
    return number


def _is_module(data: Any, module: str) -> bool:
    return type(data).__module__.split(".")[0] == module


@contextmanager
def as_file(data: DataLike) -> Iterator[tuple[str, str | None]]:
    """The file or folder that data is, with what it is called where the file is only in passing."""
    if isinstance(data, (str, os.PathLike)):
        yield os.fspath(data), None
        return
    if isinstance(data, (bytes, int, float)) or data is None or (isinstance(data, Mapping) and not _is_module(data, "datasets")):
        raise InputError(f"data: found {type(data).__name__}; expected a path, a list of dicts, a datasets.Dataset or a table", option="data")
    with tempfile.TemporaryDirectory(prefix="tanglescope-") as folder:
        if _is_module(data, "datasets"):
            if isinstance(data, Mapping) or hasattr(data, "keys"):  # a DatasetDict
                names = ", ".join(map(str, data))
                raise InputError(f"data: is several parts ({names}); give one of them", option="data")
            rows: Any = data
            path = os.path.join(folder, "rows.parquet" if hasattr(data, "to_parquet") else "rows.jsonl")
            if path.endswith(".parquet"):
                rows.with_format(None).to_parquet(path)
            else:  # an IterableDataset
                write_rows(data, path)
            yield path, f"datasets.{type(data).__name__}"
        elif hasattr(data, "__arrow_c_stream__") or _is_module(data, "pandas") or _is_module(data, "polars"):
            import polars as pl

            frame = _frame(data, pl)
            if frame.height == 0:
                raise InputError("data: has no rows", option="data")
            path = os.path.join(folder, "rows.parquet")
            frame.write_parquet(path)
            yield path, f"{type(data).__module__.split('.')[0]}.{type(data).__name__}"
        else:
            try:
                rows = iter(data)
            except TypeError:
                raise InputError(
                    f"data: found {type(data).__name__}; expected a path, a list of dicts, a datasets.Dataset or a table",
                    option="data",
                ) from None
            path = os.path.join(folder, "rows.jsonl")
            number = write_rows(rows, path)
            yield path, f"{number} rows in memory"


def _frame(data: Any, pl: Any) -> Any:
    """A table of another library as a polars frame."""
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if _is_module(data, "pandas") and not hasattr(data, "columns"):
        raise InputError(f"data: is a pandas.{type(data).__name__}; expected a DataFrame", option="data")
    try:
        return pl.DataFrame(data)
    except Exception as error:  # what a library says of its own table
        if _is_module(data, "pandas"):
            # without pyarrow polars does not take columns of objects, such as chats
            return pl.DataFrame(data.to_dict("records"), infer_schema_length=None)
        raise InputError(f"data: {type(data).__name__} cannot be read as a table: {error}", option="data") from None
