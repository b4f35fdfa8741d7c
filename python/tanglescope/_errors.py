"""What can be wrong, as exceptions: one small tree under `TanglescopeError`, with the command line's sentence."""

from __future__ import annotations


class TanglescopeError(Exception):
    """Anything that ended a call.

    Attributes:
        file: The file or folder that it is about, where there is one.
        row: The row of the data, from 0.
        tensor: The tensor of a checkpoint or a live model.
        key: The key of a config.
        option: The argument of the call.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        tensor: str | None = None,
        key: str | None = None,
        option: str | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.row = row
        self.tensor = tensor
        self.key = key
        self.option = option


class InputError(TanglescopeError, ValueError):
    """Something that was given and cannot be used: a row, a tensor, a file, an argument."""


class Unsupported(InputError):
    """A model, an adapter or a trainer asks for something that is not computed; `key` and `file` say where."""


class DeviceError(TanglescopeError, RuntimeError):
    """A device that is not there, lacks its driver, or failed."""
