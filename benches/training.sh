#!/usr/bin/env bash
# The runs of docs/training.md: SmolLM2-135M-Instruct, tuned on the chosen responses and then by DPO on three sets of sentiment
# pairs, and by DPO on 512 pairs of hh-rlhf. Checkpoints are analysed on pairs held out.
#
#     training.sh BINARY MODEL DATA OUT      DATA holds senti-tweet-{single,short,long}.jsonl and hh-harmless-test.jsonl.gz
set -euo pipefail
binary=$1 model=$2 data=$3 out=$4
mkdir -p "$out"

train() { "$binary" train --device cpu --model "$model" --scope lora --lora-r 16 "$@"; }

analyze() { # RUN DATA STEPS…
  local run=$1 pairs=$2 step
  shift 2
  for step in "$@"; do
    "$binary" analyze --device cpu --model "$model" --adapter "$out/$run/checkpoint-$step" --data "$pairs" \
      --out "$out/analysis/$run/$step"
  done
}

for set in single short long; do
  head -n 448 "$data/senti-tweet-$set.jsonl" >"$out/$set-train.jsonl"
  tail -n 64 "$data/senti-tweet-$set.jsonl" >"$out/$set-held-out.jsonl"
  train --data "$out/$set-train.jsonl" --eval-data "$out/$set-held-out.jsonl" --out "$out/sft-$set" \
    --objective sft --learning-rate 2e-4 --batch-size 8 --save-every 1000
  train --data "$out/$set-train.jsonl" --eval-data "$out/$set-held-out.jsonl" --out "$out/dpo-$set" \
    --adapter "$out/sft-$set/checkpoint-56" --objective dpo --learning-rate 1e-4 --schedule constant --batch-size 8 \
    --save-every 14 --eval-every 14 --predict-every 14
  analyze "dpo-$set" "$out/$set-held-out.jsonl" 0 28 56
done
# 512 pairs to train on, 32 held out
train --data "$data/hh-harmless-test.jsonl.gz" --limit 544 --eval-fraction 0.0588 --out "$out/dpo-hh" --objective dpo \
  --learning-rate 1e-4 --batch-size 8 --save-every 16 --eval-every 16 --predict-every 16 --max-tokens 512 --truncate-prompt --on-bad-row skip
