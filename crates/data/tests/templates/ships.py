#!/usr/bin/env python3
"""The chat templates that TRL ships, and what transformers renders of ten conversations with each: python3 ships.py trl.json.gz

Made with trl 1.16.0, transformers 5.24.0 and jinja2 3.1.6; TRL's templates are under the Apache License 2.0."""
import glob
import gzip
import json
import os
import sys

import trl
from transformers.utils.chat_template_utils import render_jinja_template

user = lambda content: {"role": "user", "content": content}
assistant = lambda content, **more: {"role": "assistant", "content": content, **more}
typed = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}
filled = lambda role, text: {"role": role, "content": text, "tool_calls": None, "name": None}
call = lambda **arguments: [{"type": "function", "function": {"name": "get", "arguments": arguments}}]
CASES = {
    "single": ([user('Hi é <&> "q"')], [assistant("Yes.")], [assistant(" No\n")]),
    "system": ([{"role": "system", "content": "Be brief."}, user("2+2?")], [assistant("4")], [assistant("5")]),
    "multi": ([user("a"), assistant("b"), user("c")], [assistant("d")], [assistant("e")]),
    "think": ([user("2+2?")], [assistant("<think>\nadd\n</think>\n\n4")], [assistant("5")]),
    "reason_key": ([user("2+2?")], [assistant("4", reasoning_content="add")], [assistant("5")]),
    "null_keys": ([filled("user", "Hi")], [filled("assistant", "A")], [filled("assistant", "B")]),
    "typed": ([typed("user", "Hi")], [typed("assistant", "A")], [typed("assistant", "B")]),
    "tool": (
        [user("weather?"), assistant("", tool_calls=call(city="Köln", n=1.0, ok=True)), {"role": "tool", "name": "get", "content": '{"t": 3}'}],
        [assistant("3 degrees")],
        [assistant("4")],
    ),
    "null_content": ([user("weather?")], [assistant(None, tool_calls=call(city="Köln"))], [assistant("no idea")]),
    "assistant_last": ([user("Say it."), assistant("Sure,")], [assistant(" yes")], [assistant(" no")]),
    # with schemas of tools, nested as people write them
    "tools": ([user("weather?")], [assistant("3 degrees")], [assistant("4")]),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get",
            "description": "Weather of a \"city\".",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name"}, "days": {"type": ["integer", "null"], "enum": [1, 2.5, None]}},
                "required": ["city"],
            },
            "return": {"type": "object", "description": "° and wind"},
        },
    }
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def render(source, messages, generation, tools):
    try:
        return render_jinja_template(
            conversations=[messages], chat_template=source, tools=tools, documents=None, add_generation_prompt=generation, **TOKENS
        )[0][0]
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"[:160]}


out = {"tools": TOOLS, "tokens": TOKENS, "cases": {name: dict(zip(("prompt", "chosen", "rejected"), turns)) for name, turns in CASES.items()}, "templates": {}}
for path in sorted(glob.glob(f"{os.path.dirname(trl.__file__)}/chat_templates/*.jinja")):
    source, rendered = open(path).read(), {}
    for case, (prompt, chosen, rejected) in CASES.items():
        tools = TOOLS if case == "tools" else None
        rendered[case] = {
            "prompt": render(source, prompt, True, tools),
            "chosen": render(source, prompt + chosen, False, tools),
            "rejected": render(source, prompt + rejected, False, tools),
        }
    out["templates"][os.path.basename(path)[:-6]] = {"source": source, "rendered": rendered}
# the same bytes for the same content
with open(sys.argv[1], "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
    packed.write(json.dumps(out, ensure_ascii=False, sort_keys=False).encode())
