#!/usr/bin/env python3
"""The prepared data sets of TRL's DPOTrainer, for rows of every kind: python3 trl_values.py [FOLDER], with requirements-trl.txt installed.

Writes FOLDER/NAME.jsonl (rows), FOLDER/NAME-ids.jsonl (what `DPOTrainer` makes of them), and the tokenizer's configuration, by
TRL's own `_prepare_dataset` and collator on the demo's tokenizer. FOLDER defaults to golden/trl beside this file, which holds what
TRL 1.16.0 with transformers 5.24.0 made."""
import copy
import json
import os
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = sys.argv[1] if len(sys.argv) > 1 else f"{HERE}/golden/trl"
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ bos_token }}<system>\nBe kind.\n{% endif %}"
    "{% if tools and loop.first %}tools: {{ tools | tojson }}\n{% endif %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}{% endif %}"
)
user = lambda text: {"role": "user", "content": text}
assistant = lambda text: {"role": "assistant", "content": text}
TEXTS = ["the film was good", "a bad film, and a long one", "  two  spaces ", "New\nlines\n", "café", "x" * 40, "1 2 3 4 5 6 7 8 9"]


def pairs(make):
    return [make(TEXTS[i % len(TEXTS)], TEXTS[(i + 1) % len(TEXTS)], TEXTS[(3 * i + 2) % len(TEXTS)] + "!") for i in range(len(TEXTS))]


SETS = {
    "plain": pairs(lambda p, c, r: {"prompt": p, "chosen": " " + c, "rejected": " " + r}),
    # the boundary is inside a token
    "space": pairs(lambda p, c, r: {"prompt": p + " ", "chosen": c, "rejected": r}),
    "ends": pairs(lambda p, c, r: {"prompt": p, "chosen": c + "</s>", "rejected": r}),
    "implicit": pairs(lambda p, c, r: {"chosen": f"Human: {p}\n\nAssistant: {c}", "rejected": f"Human: {p}\n\nAssistant: {r}"}),
    "chat": pairs(lambda p, c, r: {"prompt": [user(p)], "chosen": [assistant(c)], "rejected": [assistant(r)]}),
    "turns": pairs(
        lambda p, c, r: {
            "chosen": [user(p), assistant("ok"), user(c), assistant(c)],
            "rejected": [user(p), assistant("ok"), user(c), assistant(r)],
        }
    ),
    "assistant_last": pairs(lambda p, c, r: {"prompt": [user(p), assistant("Sure,")], "chosen": [assistant(c)], "rejected": [assistant(r)]}),
    "tools": pairs(
        lambda p, c, r: {
            "prompt": [user(p)],
            "chosen": [assistant(c)],
            "rejected": [assistant(r)],
            "tools": json.dumps([{"type": "function", "function": {"name": "get", "description": p}}]),
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ),
}
# sets that are cut
LIMITS = {"plain": [1024, 24, 12], "chat": [1024, 40]}


def tokenizer():
    of = PreTrainedTokenizerFast(tokenizer_file=f"{HERE}/../crates/tanglescope/demo/tokenizer.json")
    of.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    of.chat_template = TEMPLATE
    return of


def prepared(rows, max_length):
    """Rows as the trainer hands them to the model: prepared, and cut by its collator."""
    with tempfile.TemporaryDirectory() as folder:
        of = tokenizer()
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(of), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
        config = DPOConfig(output_dir=folder, max_length=max_length, report_to=[], use_cpu=True, bf16=False)
        trainer = DPOTrainer(model=model, ref_model=copy.deepcopy(model), args=config, train_dataset=Dataset.from_list(rows), processing_class=of)
        out = []
        for row in trainer.train_dataset:
            batch = trainer.data_collator([row])
            ids = []
            for k in range(2):
                kept = batch["attention_mask"][k].bool()
                tokens, scored = batch["input_ids"][k][kept], batch["completion_mask"][k][kept].bool()
                ids.append((tokens[~scored].tolist(), tokens[scored].tolist()))
            (prompt, chosen), (same, rejected) = ids
            assert prompt == same
            out.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        return out


os.makedirs(OUT, exist_ok=True)
write = lambda name, rows: open(f"{OUT}/{name}.jsonl", "w").write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
for name, rows in SETS.items():
    write(name, rows)
    for most in LIMITS.get(name, [1024]):
        write(f"{name}-ids-{most}", prepared(rows, most))
with tempfile.TemporaryDirectory() as folder:
    tokenizer().save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        open(f"{OUT}/{file}", "w").write(open(f"{folder}/{file}").read())
print(torch.__version__)
