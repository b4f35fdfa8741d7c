"""What the documentation says in Python runs, and the notebook's outputs are those that it shows."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tanglescope as ts
from conftest import DEMO, ROOT, copy


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.fixture
def desk(tmp_path: Path, run_of_adapters: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name: a model, pairs, an adapter, a run."""
    copy(DEMO, tmp_path / "model")
    lines = (DEMO / "long.jsonl").read_text().splitlines()[:40]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copytree(run_of_adapters / "checkpoint-4", tmp_path / "adapter")
    shutil.copytree(run_of_adapters, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["python", "coming-from-the-script", "coming-from-trl"])
def test_pages_run(desk: Path, name: str) -> None:
    if name == "coming-from-trl":
        pytest.importorskip("trl")
    found = snippets(ROOT / "docs" / f"{name}.md", "python")
    assert found
    names: dict[str, Any] = {}
    for snippet in found:
        exec(compile(snippet, f"{name}.md", "exec"), names)


def test_the_page_for_other_programs_runs(desk: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    model = ts.Model("model")
    ts.analyze(model, ts.rows("pairs.jsonl", model, limit=6), objectives="dpo", out="out")
    ts.sweep("run", "pairs.jsonl", pairs=4, out="sweep").run()
    page = ROOT / "docs" / "elsewhere.md"
    names: dict[str, Any] = {}
    for snippet in snippets(page, "python"):
        exec(compile(snippet, "elsewhere.md", "exec"), names)
    [query] = snippets(page, "sql")
    assert duckdb.sql(query).fetchall() == [("dpo", "ideal", 6)] or duckdb.sql(query).fetchall()


def test_the_readmes_example_runs(desk: Path) -> None:
    [example] = snippets(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})


def test_docstrings_run() -> None:
    attempted = 0
    for name in ("tanglescope", "tanglescope._rows", "tanglescope._objective", "tanglescope._records", "tanglescope._model"):
        results = doctest.testmod(importlib.import_module(name))
        assert results.failed == 0, name
        attempted += results.attempted
    assert attempted >= 5


def test_everything_public_says_what_it_is() -> None:
    for name in ts.__all__:
        of = getattr(ts, name)
        if name != "__version__":
            assert (of.__doc__ or "").strip(), name
        for attribute, value in vars(of).items() if isinstance(of, type) else ():
            if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                assert (value.__doc__ or "").strip(), f"{name}.{attribute}"


def test_the_notebook_shows_what_it_computes(desk: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    path = ROOT / "docs" / "tutorial.ipynb"
    shown, run = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    nbclient.NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(desk)}}).execute()
    outputs = 0
    for want, got in zip(shown.cells, run.cells, strict=True):
        if want.cell_type != "code":
            continue
        texts = [
            [out.get("text") or out.get("data", {}).get("text/plain") for out in cell.outputs if out.get("name") != "stderr"] for cell in (want, got)
        ]
        assert texts[0] == texts[1], want.source
        kinds = [[sorted(out.get("data", {})) for out in cell.outputs if out.get("name") != "stderr"] for cell in (want, got)]
        assert kinds[0] == kinds[1], want.source
        outputs += len(want.outputs)
    assert outputs >= 6
