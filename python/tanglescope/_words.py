"""Arguments of calls as the words of the command line, whose names, defaults and checks are those of the calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ._errors import InputError

#: Options whose value is `true` or `false`; the others that are true stand by themselves.
_WITH_TRUTH = {"add_special_tokens"}
#: Options that take several values between commas.
_WITH_COMMAS = {"lora_targets"}


def text(name: str, value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, (int, float)) or hasattr(value, "isoformat"):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        return text(name, value.item())
    raise InputError(f"{name}: found {type(value).__name__}; expected a text, a number or a path", option=name)


def words(**options: Any) -> list[str]:
    """The words of some options: none of those that are None or False, several of lists."""
    said: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "dtype" and value == "tf32":  # f32 whose products round: a flag of its own
            name, flag, value = "tf32", "--tf32", True
        if value is None or (value is False and name not in _WITH_TRUTH):
            continue
        if value is True and name not in _WITH_TRUTH:
            said.append(flag)
        elif isinstance(value, Mapping):
            said.append(f"{flag}=" + ",".join(f"{key}={text(name, of)}" for key, of in value.items()))
        elif isinstance(value, (list, tuple, set, frozenset)):
            values = [text(name, of) for of in value]
            said += [f"{flag}={','.join(values)}"] if name in _WITH_COMMAS and values else [f"{flag}={of}" for of in values]
        else:
            said.append(f"{flag}={text(name, value)}")
    return said
