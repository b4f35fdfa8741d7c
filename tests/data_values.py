"""Makes tests/golden/data: the same preferences in every format and layout, by the libraries that people use.

    python tests/data_values.py        (datasets 5.2.0, pandas 3.1.1, pyarrow 26.0.1)

expected.json has, for each file or folder, the rows that come out: [row, id, prompt, responses, scores], of a pair the chosen
response first and no scores.
"""
import gzip, json, pathlib, shutil
import datasets, pandas as pd

OUT = pathlib.Path(__file__).parent / "golden" / "data"
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)
expected = {}

rows = [
    dict(id="a", prompt="Say hello.", chosen="Hello!", rejected="No."),
    dict(id="b", prompt="Zwei Zeilen,\n\"bitte\"", chosen="Eins,\nzwei", rejected="é → 漢字"),
    dict(id="c", prompt="[not a list", chosen="[1, 2", rejected="a\tb"),
]
pairs = [[i, r["id"], r["prompt"], [r["chosen"], r["rejected"]], None] for i, r in enumerate(rows)]
frame = pd.DataFrame(rows)
frame.to_parquet(OUT / "pandas.parquet")
frame.to_json(OUT / "pandas.json", orient="records")
frame.to_json(OUT / "pretty.json", orient="records", indent=2)
frame.to_csv(OUT / "pandas.csv", index=False)
frame.to_csv(OUT / "pandas.tsv", index=False, sep="\t")
frame.to_csv(OUT / "packed.csv.gz", index=False)
frame.to_feather(OUT / "pandas.feather")
frame.to_json(OUT / "pandas.jsonl", orient="records", lines=True)
with gzip.open(OUT / "packed.jsonl.gz", "wt") as f:
    f.write(frame.to_json(orient="records", lines=True))
names = ["pandas.parquet", "pandas.json", "pretty.json", "pandas.csv", "pandas.tsv", "packed.csv.gz", "pandas.feather",
         "pandas.jsonl", "packed.jsonl.gz"]

data = datasets.Dataset.from_pandas(frame)
data.save_to_disk(OUT / "saved", num_shards=2)
datasets.DatasetDict(train=data, test=data.select([2])).save_to_disk(OUT / "parts")
hub = OUT / "hub" / "data"
hub.mkdir(parents=True)
data.select([0, 1]).to_parquet(hub / "train-00000-of-00002.parquet")
data.select([2]).to_parquet(hub / "train-00001-of-00002.parquet")
data.select([0]).to_parquet(hub / "test-00000-of-00001.parquet")
names += ["saved", "parts", "hub"]
expected.update({name: pairs for name in names})

turn = lambda role, content: dict(role=role, content=content)
chats = [dict(prompt="Q", prompt_id=str(i), score_chosen=8.0, score_rejected=5.5,
              chosen=[turn("user", f"Q{i}"), turn("assistant", "A")], rejected=[turn("user", f"Q{i}"), turn("assistant", "B")])
         for i in range(2)]
datasets.Dataset.from_list(chats).to_parquet(OUT / "ultrafeedback_binarised.parquet")
expected["ultrafeedback_binarised.parquet"] = [[i, None, f"<user>Q{i}<assistant>", ["A", "B"], None] for i in range(2)]
ids = [dict(prompt_ids=[1, 2], chosen_ids=[3], rejected_ids=[4, 5])]
datasets.Dataset.from_list(ids).to_parquet(OUT / "ids.parquet")


def layout(name, rows, out):
    datasets.Dataset.from_list(rows).to_parquet(OUT / f"{name}.parquet")
    (OUT / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected[f"{name}.parquet"] = expected[f"{name}.jsonl"] = out


layout("comparisons", [
    dict(info=dict(id="t1", post="Long post", title="T", subreddit="x"), choice=1, worker="w",
         summaries=[dict(text=" short", policy="p"), dict(text=" shorter", policy="q")]),
], [[0, None, "SUBREDDIT: r/x\n\nTITLE: T\n\nPOST: Long post\n\nTL;DR:", [" shorter", " short"], None]])
layout("ultrafeedback", [
    dict(instruction="Do", completions=[dict(response=r, overall_score=s, model="m") for r, s in
                                        (("a", 5.0), ("b", 8.5), ("c", 1.0))]),
], [[0, None, "Do", ["a", "b", "c"], [5.0, 8.5, 1.0]]])
hh = "\n\nHuman: Hi\n\nAssistant:"
layout("hh", [dict(chosen=hh + " Hello", rejected=hh + " Go")], [[0, None, hh, [" Hello", " Go"], None]])
layout("helpsteer", [
    dict(prompt="P", response="x", helpfulness=2, correctness=3), dict(prompt="P", response="y", helpfulness=4, correctness=3),
    dict(prompt="alone", response="z", helpfulness=1, correctness=1),
], [[0, None, "P", ["x", "y"], [2.0, 4.0]]])
layout("helpsteer_preference", [
    dict(prompt="P", response_1="x", response_2="y", preference_strength=-2, preference_statement="s"),
    dict(prompt="P", response_1="x", response_2="y", preference_strength=1, preference_statement="s"),
], [[0, None, "P", ["x", "y"], None], [1, None, "P", ["y", "x"], None]])
layout("shp", [dict(history="H", human_ref_A="x", human_ref_B="y", labels=1, score_ratio=2.0),
               dict(history="H", human_ref_A="x", human_ref_B="y", labels=0, score_ratio=2.0)],
       [[0, None, "H", ["x", "y"], None], [1, None, "H", ["y", "x"], None]])
layout("saferlhf", [dict(prompt="P", response_0="x", response_1="y", better_response_id=1, safer_response_id=0,
                         is_response_0_safe=True)], [[0, None, "P", ["y", "x"], None]])
layout("nectar", [dict(prompt="P", answers=[dict(answer="x", model="m", rank=2.0), dict(answer="y", model="n", rank=1.0)])],
       [[0, None, "P", ["x", "y"], [-2.0, -1.0]]])
layout("kto", [dict(prompt="P", completion="x", label=False), dict(prompt="Q", completion="u", label=True),
               dict(prompt="P", completion="y", label=True), dict(prompt="R", completion="v", label=True)],
       [[0, None, "P", ["x", "y"], [0.0, 1.0]]])
layout("group", [dict(id="g", prompt="P", responses=["x", "y", "z"], scores=[1.0, 3.0, 2.0])],
       [[0, "g", "P", ["x", "y", "z"], [1.0, 3.0, 2.0]]])

for path in list(OUT.rglob("*")):
    # names of this machine's folders, and caches
    if path.name.startswith("cache-"):
        path.unlink()
json.dump(expected, open(OUT / "expected.json", "w"), indent=1, ensure_ascii=False)
