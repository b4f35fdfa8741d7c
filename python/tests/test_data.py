"""Preference data in all of its forms, and what cannot be used of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tanglescope as ts


@pytest.fixture(scope="module")
def model(demo: Path) -> ts.Model:
    return ts.Model(demo, device="cpu")


def test_every_form_of_data_gives_the_rows_of_the_file(model: ts.Model, demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from datasets import Dataset

    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    want = ts.rows(path, model)
    chats = [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair["rejected"]}],
        }
        for pair in pairs
    ]
    of_chats = ts.rows(chats, model)
    for rows, want_rows in ((pairs, want), (chats, of_chats)):
        forms = {
            "list": rows,
            "tuple": tuple(rows),
            "generator": (row for row in rows),
            "datasets": Dataset.from_list(rows),
            "selected": Dataset.from_list(rows[::-1]).select(range(len(rows) - 1, -1, -1)),
            "polars": pl.DataFrame(rows),
            "lazy": pl.LazyFrame(rows),
            "pandas": pd.DataFrame(rows),
            "arrow": pa.Table.from_pylist(rows),
        }
        for name, data in forms.items():
            found = ts.rows(data, model)
            assert found.content_hash == want_rows.content_hash, name
            assert [found.ids(row) for row in range(len(found))] == [want_rows.ids(row) for row in range(len(want_rows))]


def test_every_form_of_tokenizer_gives_the_same_rows(model: ts.Model, demo: Path, pairs: list[dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo)
    found = [ts.rows(pairs, of).content_hash for of in (model, demo, str(demo), tokenizer)]
    assert len(set(found)) == 1
    ids = ts.rows([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}])
    assert ids.ids(0) == ts.Ids([1, 2], [[3], [4, 5]]) and ids.tokenize is None


def test_rows_are_looked_at_cut_and_chosen(model: ts.Model, demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = ts.rows(pairs, model)
    assert len(rows) == 6 and len(rows[1:4]) == 3 and len(list(rows)) == 6
    assert rows[-1].ids(0) == rows.ids(5) == rows[[5]].ids(0)
    # numbers stay those of the data
    assert rows[[4, 2]].texts(0)["row"] == 4
    assert ts.analyze(model, rows[[4, 2]]).pairs["pair"].to_list() == [4, 2]
    with pytest.raises(IndexError, match="6 rows"):
        rows.ids(6)
    with pytest.raises(TypeError, match="expected a number"):
        rows.ids("0")  # type: ignore[arg-type]
    cut = ts.rows(pairs, model, max_length=20)
    assert all(len(ids.prompt) + max(map(len, ids.responses)) <= 20 for ids in map(cut.ids, range(len(cut))))
    assert len(ts.rows(pairs, model, max_length=None)) == 6
    assert ts.rows(pairs, model, limit=2).content_hash == ts.rows(pairs[:2], model).content_hash
    path = tmp_path / "ids.jsonl"
    rows.save_ids(path)
    assert ts.rows(path).ids(3) == rows.ids(3)
    renamed = [{"question": pair["prompt"], "good": pair["chosen"], "bad": pair["rejected"]} for pair in pairs]
    found = ts.rows(renamed, model, columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert found.content_hash == rows.content_hash


def test_bad_rows_are_named_or_left_out(model: ts.Model, pairs: list[dict[str, Any]]) -> None:
    bad = [*pairs[:2], {"prompt": "x", "chosen": 3, "rejected": "y"}, *pairs[2:]]
    with pytest.raises(ts.InputError) as raised:
        ts.rows(bad, model)
    assert raised.value.row == 2 and "row 2" in str(raised.value)
    rows = ts.rows(bad, model, on_bad_row="skip")
    assert len(rows) == 6 and [row for row, _ in rows.dropped] == [2]
    # ids that the model does not know are found before the first pass
    rows = ts.rows([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}, {"prompt_ids": [1], "chosen_ids": [99999], "rejected_ids": [3]}])
    with pytest.raises(ts.InputError) as raised:
        ts.analyze(model, rows)
    assert raised.value.row == 1 and "vocabulary" in str(raised.value)
    rows = ts.rows([{"prompt_ids": [1] * 600, "chosen_ids": [2], "rejected_ids": [3]}])
    with pytest.raises(ts.InputError, match="positions"):
        ts.analyze(model, rows)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (3, "found int"),
        (None, "found NoneType"),
        (b"x", "found bytes"),
        ({"prompt": ["x"]}, "found dict"),
        ([], "has no rows"),
        ([1, 2], "row 0 is a int"),
        ([{"prompt": "x", "chosen": "y", "rejected": object()}], "row 0"),
        ([{"question": "x"}], "row 0"),
        ("no/such/file.jsonl", "no such file|no hub|offline|cannot"),
    ],
)
def test_what_is_no_data_is_refused_with_what_was_found(model: ts.Model, data: Any, part: str) -> None:
    with pytest.raises(ts.TanglescopeError, match=part):
        ts.rows(data, model)


def test_frames_without_columns_or_rows_are_refused(model: ts.Model) -> None:
    import pandas as pd
    import polars as pl

    for frame in (pl.DataFrame(), pd.DataFrame(), pl.DataFrame({"prompt": []}), pd.Series([1, 2])):
        with pytest.raises(ts.InputError, match="data"):
            ts.rows(frame, model)
    with pytest.raises(ts.InputError, match="chosen|columns"):
        ts.rows(pl.DataFrame({"prompt": ["x"], "text": ["y"]}), model)


def test_a_slow_tokenizer_and_other_things_are_refused(pairs: list[dict[str, Any]]) -> None:
    class Slow:
        is_fast = False

        def save_pretrained(self, folder: str) -> None: ...

    with pytest.raises(ts.InputError, match="use_fast=True"):
        ts.rows(pairs, Slow())
    with pytest.raises(ts.InputError, match="found int"):
        ts.rows(pairs, 3)
    with pytest.raises(ts.InputError, match="tokenizer"):
        ts.rows(pairs)


def test_paths_may_be_any(model: ts.Model, demo: Path) -> None:
    class Path_:
        def __fspath__(self) -> str:
            return str(demo / "single.jsonl")

    assert len(ts.rows(Path_(), model, limit=2)) == len(ts.rows(os.fspath(demo / "single.jsonl"), model, limit=2)) == 2
