"""Runs the snippets of docs/elsewhere.md, in a folder with `out` of analyze (with --objective) and `sweep` of sweep.

    python tests/elsewhere.py FOLDER        (polars 2.1.0, pandas 3.1.1, pyarrow 26.0.1, duckdb 2.0.1)
"""
import os, pathlib, re, sys
import duckdb

text = (pathlib.Path(__file__).parent.parent / "docs" / "elsewhere.md").read_text()
os.chdir(sys.argv[1])
for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.S):
    print(f"--- {language}")
    if language == "python":
        exec(code, {})
    elif language == "sql":
        print(duckdb.sql(code))
    else:
        print("not run")
