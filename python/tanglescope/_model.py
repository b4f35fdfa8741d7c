"""Models: loaded from folders and hubs, or taken as they live in PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from types import TracebackType
from typing import Any, Literal

from . import _native
from ._progress import Listener
from ._words import words

Dtype = Literal["f32", "tf32", "f64", "bf16", "f16"]
Derivative = Literal["trainer", "exact"]
PathLike = str | os.PathLike[str]


def device_words(device: str | None, memory: float | str | None) -> dict[str, Any]:
    """Where a call runs: the best device for `auto`."""
    return {"device": None if device in (None, "auto") else device, "memory": memory}


def _absolute(path: PathLike) -> str:
    """A path that stays the same when the process goes to another folder; a hub name as it is."""
    return os.path.abspath(path) if os.path.exists(path) else os.fspath(path)


class Model:
    """A model that stays loaded from one call to the next.

    Args:
        model: Folder of a Hugging Face model, or its name on the hub (`org/name[@revision]`).
        adapter: Folder or hub name of a PEFT adapter.
        dtype: Precision of weights and activations: f32, f64 (CPU), bf16 or f16 (devices); sums are wider. tf32: f32 whose products round (CUDA).
        device: `auto` for the best one, `cpu`, `cuda`, `vulkan`, one by number (`cuda:1`), or several that share the work (`cuda:0,1`, `cuda:all`).
        memory: GiB that weights and activations may take together; beyond it blocks are copied or read when they are used.
        padding_row: Whether the embedding's row of the padding token is left out of gradients as torch does (`trainer`), or not (`exact`).
        dora_norm: Whether DoRA's norms are held fixed in gradients as PEFT does (`trainer`), or gone through (`exact`).

    Raises:
        InputError: Where the folder is none, or a tensor is missing or damaged.
        Unsupported: Where its config asks for something that is not computed.
        DeviceError: Where the device is not there.
    """

    def __init__(
        self,
        model: PathLike,
        *,
        adapter: PathLike | None = None,
        dtype: Dtype = "f32",
        device: str | None = "auto",
        memory: float | str | None = None,
        padding_row: Derivative = "trainer",
        dora_norm: Derivative = "trainer",
    ) -> None:
        self._called = os.fspath(model)
        said = words(
            model=_absolute(model),
            adapter=None if adapter is None else _absolute(adapter),
            # what is measured is chosen by each call
            scope="full",
            dtype=dtype,
            padding_row=padding_row,
            dora_norm=dora_norm,
            **device_words(device, memory),
        )
        self._engine = _native.Model.load(said, Listener())
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._live: Any = None
        self._adapter: str | None = None
        #: Whether its weights are another's, who may change them.
        self._shares = False

    @classmethod
    def from_torch(
        cls,
        module: Any,
        *,
        tokenizer: Any = None,
        dtype: Dtype = "f32",
        device: str | None = "cpu",
        memory: float | str | None = None,
        padding_row: Derivative = "trainer",
        dora_norm: Derivative = "trainer",
        copy: bool = False,
    ) -> Model:
        """Takes a live model of `transformers`, or of `peft` with its active adapter.

        On the CPU weights are used where they lie, by DLPack: nothing is copied but the adapter, tensors whose numbers do not lie one
        behind the other, and those that the engine keeps in another order (stacked experts). What is not copied follows the live model's
        training, and must not change while a call is at work; of 16-bit models the matrices alone do, so take those anew.

        Args:
            module: The model. Quantised ones, and those that are sharded over processes or offloaded, are refused by name.
            tokenizer: Its tokenizer, for data of text.
            copy: Copy all weights, so that the live model may train on meanwhile.

        Raises:
            Unsupported: Where the module is of a kind that cannot be taken; the sentence says what to do.
        """
        from ._torch import take

        taken = take(module, tokenizer, copy=copy)
        self = cls.__new__(cls)
        said = words(scope="full", dtype=dtype, padding_row=padding_row, dora_norm=dora_norm, **device_words(device, memory))
        self._engine = _native.Model.held(taken.called, taken.folder.name, taken.tensors, taken.adapter, said, Listener())
        self._called = taken.called
        self._folder = taken.folder
        self._live = module
        self._adapter = taken.adapter
        self._shares = not copy
        return self

    def load_adapter(self, adapter: PathLike | None) -> None:
        """Puts another saved adapter on the base, or none; the base is not loaded again, unless one of both replaces tensors of it.

        Args:
            adapter: Folder or hub name of a PEFT adapter.
        """
        path = None if adapter is None else _absolute(adapter)
        if path is not None and not os.path.exists(path):
            path = _native.resolve(path, "adapter")
        self._engine.load_adapter(path, Listener())

    def refresh_adapter(self) -> None:
        """Takes the adapter of the live model as it is now; the base is not taken again."""
        from ._torch import save_adapter

        if self._live is None or self._folder is None:
            raise TypeError("refresh_adapter is of models that from_torch took")
        before, self._adapter = self._adapter, save_adapter(self._live, self._folder.name)
        self.load_adapter(self._adapter)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    @property
    def description(self) -> dict[str, Any]:
        """Device, blocks, hidden size, vocabulary, positions, and hashes of base and adapter."""
        found: dict[str, Any] = json.loads(self._engine.describe())
        return found

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self.description["device"])

    @property
    def closed(self) -> bool:
        """Whether its memory was given back."""
        return self._engine.closed

    def close(self) -> None:
        """Gives its memory back; calls with it are refused from then on."""
        self._engine.close()
        self._live = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tanglescope.Model: {self._called}{', closed' if self.closed else ''}>"
