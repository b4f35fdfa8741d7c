#!/usr/bin/env bash
# The runs of docs/finding.md: what moves a pair in training, itself or others, and whether a data set without its most harmful pairs keeps chosen up.
# SmolLM2-135M-Instruct, LoRA, DPO on three sets of sentiment pairs (after one epoch on their chosen responses) and on 512 pairs of hh-rlhf.
#
#     finding.sh BINARY MODEL DATA OUT [PYTHON]     DATA holds senti-tweet-{single,short,long}.jsonl and hh-harmless-test.jsonl.gz; PYTHON has polars
# SETS="long" does some of the sentiment sets, HH= leaves hh-rlhf out, SEEDS="1 2" repeats every run in other orders of the pairs.
set -euo pipefail
binary=$1 model=$2 data=$3 out=$4 python=${5:-python3}
here=$(dirname "$0")
mkdir -p "$out"

train() { "$binary" train --device cpu --model "$model" --scope lora --lora-r 16 --batch-size 8 "$@"; }

dpo() { # RUN PAIRS HELD-OUT ADAPTER-WORDS…
  local run=$1 pairs=$2 held=$3
  shift 3
  train --data "$pairs" --eval-data "$held" --out "$out/$run" --objective dpo --learning-rate 1e-4 --schedule constant \
    --save-every 1000 --max-steps 50 --predict-every 5 "$@"
  for step in 0 50; do
    "$binary" analyze --device cpu --model "$model" --adapter "$out/$run/checkpoint-$step" --data "$held" --out "$out/analysis/run=$run/step=$step/dataset=held-out"
  done
}

study() { # SET ADAPTER-WORDS…
  local set=$1
  shift
  dpo "$set" "$out/$set-train.jsonl" "$out/$set-held-out.jsonl" "$@"
  "$binary" interference --device cpu --model "$model" --adapter "$out/$set/checkpoint-0" --data "$out/$set-train.jsonl" --objective dpo \
    --out "$out/interference/$set"
  "$python" "$here/without_harm.py" "$out/$set-train.jsonl" "$out/interference/$set" "$out/$set"
  for kind in harmless random; do
    dpo "$set-$kind" "$out/$set-$kind.jsonl" "$out/$set-held-out.jsonl" "$@"
  done
  for seed in ${SEEDS-}; do
    for kind in train harmless random; do
      dpo "$set-$kind-$seed" "$out/$set-$kind.jsonl" "$out/$set-held-out.jsonl" "$@" --seed "$seed"
    done
  done
}

for set in ${SETS-single short long}; do
  head -n 448 "$data/senti-tweet-$set.jsonl" >"$out/$set-train.jsonl"
  tail -n 64 "$data/senti-tweet-$set.jsonl" >"$out/$set-held-out.jsonl"
  train --data "$out/$set-train.jsonl" --out "$out/sft-$set" --objective sft --learning-rate 2e-4 --save-every 1000
  study "$set" --adapter "$out/sft-$set/checkpoint-56"
done
if [ -n "${HH-yes}" ]; then
  # the first rows of hh-rlhf whose prompt and responses fit into 320 tokens: 512 to train on, 64 held out
  "$binary" rows --model "$model" --data "$data/hh-harmless-test.jsonl.gz" --max-tokens 320 --on-bad-row skip --limit 640 --out "$out/hh.jsonl"
  head -n 512 "$out/hh.jsonl" >"$out/hh-train.jsonl"
  sed -n 513,576p "$out/hh.jsonl" >"$out/hh-held-out.jsonl"
  study hh
fi
