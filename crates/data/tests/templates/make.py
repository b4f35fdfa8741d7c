#!/usr/bin/env python3
"""Renders chat templates with transformers and stores what comes out: python3 make.py > renderings.json

The templates use what published ones use; each case names the construct that it is there for.
"""
import json
from transformers.utils.chat_template_utils import render_jinja_template

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

ALTERNATING = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim + '\\n\\n' %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first %}
            {{- '[INST] ' + system_message + message['content'].strip() + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'].strip() + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}"""

HEADERS = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

THINKING = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

MACROS = """{# comments and macros #}
{%- macro show(message, mark='>') -%}
{{ mark ~ ' ' ~ message.role.upper() ~ ': ' ~ message.get('content', '')|replace('\\t', ' ') }}
{%- endmacro -%}
{% for message in messages if message.role != 'system' -%}
  {%- if message.skip is defined and message.skip %}{% continue %}{% endif -%}
  {{ show(message, mark='#' * loop.index) }}
  {%- if not loop.last %}{{ ' | ' }}{% endif -%}
  {%- if loop.index >= 4 %}{% break %}{% endif -%}
{% endfor %}
{{ messages | map(attribute='role') | list | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[-1]['content'][:3] }} {{ messages|last == messages[-1] }}
{% generation %}{{ messages[0].content | tojson }}{% endgeneration %}
{% for key, value in {'b': 1, 'a': [1.5, true, none]}.items() %}{{ key }}={{ value | tojson }};{% endfor %}
{{ {'é': ['<&>', "it's"]} | tojson(indent=2) }}
{{ 'x,y,,z'.split(',') }} {{ {'a': [none, true, 1.5, 'it\\'s \\n']} }} {{ none }}|{{ undefined_name }}| {{ 'Hello'.lower().title() }} {{ 'a-b'.replace('-', '+') }} {{ '  pad '.strip() | length }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }} {{ 'ab' in 'cabd' }} {{ ['b', 'a'] | sort | first }} {{ none is none }} {{ undefined_name is defined }}"""

PARTS = """{% for message in messages %}{{ message.role }}:{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}{% endif %};{% endfor %}"""

TALK = [{"role": "user", "content": " Hi é <&> \"there\" "}, {"role": "assistant", "content": "Hello!\n"},
        {"role": "user", "content": "And\tyou?"}]
SYSTEM = [{"role": "system", "content": " Be brief. "}] + TALK
THOUGHT = TALK + [{"role": "assistant", "content": "<think>\nWell.\n</think>\n\nFine."}]
cases = []
def case(name, source, messages, generation):
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    try:
        text, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=generation, **tokens)
        outcome = {"rendered": text[0]}
    except Exception as error:
        outcome = {"error": str(error)}
    cases.append({"name": name, "source": source, "tokens": tokens, "messages": messages,
                  "add_generation_prompt": generation, **outcome})
for name, source in [("chatml", CHATML), ("alternating", ALTERNATING), ("headers", HEADERS), ("turns", TURNS),
                     ("thinking", THINKING), ("macros", MACROS), ("parts", PARTS)]:
    for label, messages in [("talk", TALK), ("system", SYSTEM), ("thought", THOUGHT), ("twice", TALK + TALK[-1:])]:
        for generation in (True, False):
            case(f"{name}, {label}, {'generation' if generation else 'whole'}", source, messages, generation)
case("parts, list", PARTS, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}], False)
case("skip", MACROS, [{"role": "user", "content": "a\tb"}, {"role": "user", "content": "c", "skip": True},
                      {"role": "assistant", "content": "d"}], False)
print(json.dumps(cases, ensure_ascii=False, indent=1))
