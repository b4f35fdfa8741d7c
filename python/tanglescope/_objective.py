"""Objectives by themselves: the loss of a pair, and the weights of its two gradients, without a model."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from . import _native
from ._errors import InputError


class Outcome(NamedTuple):
    """Loss of a pair, and the weights of both gradients in a descent step: −∇loss = d_w ∇log π(chosen) − d_l ∇log π(rejected).

    Numbers, NumPy arrays where those were given, else lists.
    """

    loss: Any
    d_w: Any
    d_l: Any


class Objective:
    """A preference loss with its hyper-parameters. `tanglescope.objective` is the same.

    >>> import tanglescope as ts
    >>> dpo = ts.objective("dpo", beta=0.1)
    >>> outcome = dpo(-41.25, -63.5, ref_w=-40.0, ref_l=-60.0)
    >>> round(outcome.loss, 4), outcome.d_w == outcome.d_l
    (0.587, True)

    Args:
        name: One of `tanglescope.objectives()`, or a whole text such as `dpo:beta=0.1`, or a sum of them.
        **hyper: Its hyper-parameters; the catalogue's defaults where they are not given.
    """

    def __init__(self, name: str, **hyper: float) -> None:
        if hyper and "+" in name:
            raise InputError(f"{name}: is a sum, whose terms have their own hyper-parameters; write them into the text", option="name")
        given = name + "".join(f"{',' if at or ':' in name else ':'}{key}={float(value)!r}" for at, (key, value) in enumerate(hyper.items()))
        self._native = _native.Objective(given)

    @property
    def given(self) -> str:
        """As the command line and records have it."""
        return self._native.given

    @property
    def uses_reference(self) -> bool:
        """Whether it uses the reference model's log-probabilities."""
        return self._native.uses_reference

    @property
    def needs(self) -> str:
        """What it has to be given beside log-probabilities of a pair: `pair` for nothing."""
        return self._native.needs

    def __call__(
        self,
        logp_w: Any,
        logp_l: Any,
        ref_w: Any = None,
        ref_l: Any = None,
        n_w: Any = None,
        n_l: Any = None,
        *,
        ww: Any = None,
        wl: Any = None,
        ll: Any = None,
    ) -> Outcome:
        """Loss and coefficients of a pair, or of every pair of a batch.

        Args:
            logp_w, logp_l: log π of chosen and rejected responses, in nats, summed over their tokens: numbers, or lists or arrays of them.
            ref_w, ref_l: The same under the reference, where the objective uses one.
            n_w, n_l: Tokens of both responses; 1 where not given.
            ww, wl, ll: Inner products of both gradients, for objectives that need them.
        """
        single = _is_number(logp_w)

        def column(name: str, value: Any, default: float | None = None) -> list[float]:
            if value is None and default is not None:
                value = default
            if value is None:
                raise InputError(f"{name}: is missing", option=name)
            if _is_number(value):
                return [float(value)] * len(chosen)
            try:
                values = [float(of) for of in (value.tolist() if hasattr(value, "tolist") else value)]
            except (TypeError, ValueError):
                raise InputError(f"{name}: expected a number, or a list or array of them in one dimension", option=name) from None
            if len(values) != len(chosen):
                raise InputError(f"{name}: has {len(values)} values, and logp_w {len(chosen)}", option=name)
            return values

        chosen: list[float] = [0.0] if single else [0.0] * len(logp_w)
        chosen = column("logp_w", logp_w)
        logp = (chosen, column("logp_l", logp_l))
        reference = None if ref_w is None and ref_l is None else (column("ref_w", ref_w), column("ref_l", ref_l))
        tokens = tuple([_tokens(name, n) for n in column(name, of, 1.0)] for name, of in (("n_w", n_w), ("n_l", n_l)))
        given_gram = any(of is not None for of in (ww, wl, ll))
        gram = (column("ww", ww), column("wl", wl), column("ll", ll)) if given_gram else None
        try:
            outcomes = self._native.outcomes(logp, reference, (tokens[0], tokens[1]), gram)
        except ValueError as error:
            raise InputError(str(error)) from None
        if single:
            return Outcome(*(of[0] for of in outcomes))
        if hasattr(logp_w, "tolist") and type(logp_w).__module__.split(".")[0] == "numpy":
            import numpy as np

            return Outcome(*(np.asarray(of) for of in outcomes))
        return Outcome(*outcomes)

    @classmethod
    def from_trl(cls, args: Any) -> Objective:
        """The loss of a TRL trainer, from its arguments (`DPOConfig`, `CPOConfig`, `ORPOConfig`, `KTOConfig`, …).

        Raises:
            Unsupported: Where the trainer's loss is none of the catalogue's; `key` names the argument.
        """
        from ._trl_loss import trl_objective

        return cls(trl_objective(args))

    def __repr__(self) -> str:
        return f"tanglescope.objective({self.given!r})"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0


def _tokens(name: str, value: float) -> int:
    if not 1 <= value < 2**32 or value != int(value):
        raise InputError(f"{name}: found {value}; expected a number of tokens", option=name)
    return int(value)


def objectives() -> list[dict[str, Any]]:
    """The catalogue: `name`, `keys` with their defaults, whether a `reference` is used, `formula`, `source`."""
    found: list[dict[str, Any]] = json.loads(_native.objectives())
    return found
