"""Losses of TRL's trainers by the names of the catalogue (docs/objectives.md)."""

from __future__ import annotations

from typing import Any

from ._errors import InputError, Unsupported


def _get(args: Any, name: str, default: Any) -> Any:
    value = getattr(args, name, default)
    return default if value is None else value


def _spelled(name: str, **hyper: float) -> str:
    keys = ",".join(f"{key}={float(value)!r}" for key, value in hyper.items())
    return f"{name}:{keys}" if keys else name


def trl_objective(args: Any) -> str:
    """The loss of a trainer's arguments, as the catalogue spells it.

    Raises:
        Unsupported: Where the catalogue has none that is the same.
    """
    kind = type(args).__name__
    mro = {of.__name__ for of in type(args).__mro__}
    for name, of in (("DPOConfig", _dpo), ("CPOConfig", _cpo), ("ORPOConfig", _orpo), ("KTOConfig", _kto)):
        if name in mro:
            return of(args)
    raise InputError(f"from_trl: found {kind}; expected the arguments of a DPO, CPO, ORPO or KTO trainer of TRL", option="args")


def _before_1() -> bool:
    """Whether the TRL that is installed is older than 1.0."""
    try:
        from importlib.metadata import version

        return version("trl").startswith("0.")
    except ImportError:
        return False


def _refuse(key: str, value: Any, why: str) -> Unsupported:
    return Unsupported(f"from_trl: `{key}` = {value!r}: {why}", key=key)


def _dpo(args: Any) -> str:
    losses = _get(args, "loss_type", ["sigmoid"])
    losses = [losses] if isinstance(losses, str) else list(losses)
    weights = _get(args, "loss_weights", [1.0] * len(losses))
    if getattr(args, "rpo_alpha", None) is not None:
        raise _refuse("rpo_alpha", args.rpo_alpha, "of TRL before 1.0; `rpo:alpha=…` is its loss")
    terms = [_dpo_term(args, loss) for loss in losses]
    if len(terms) == 1 and weights[0] == 1.0:
        return terms[0]

    def weighted(term: str, weight: float) -> str:
        return f"{term}{',' if ':' in term else ':'}weight={float(weight)!r}"

    return "+".join(weighted(term, weight) for term, weight in zip(terms, weights, strict=True))


def _dpo_term(args: Any, loss: str) -> str:
    beta, eps = _get(args, "beta", 0.1), _get(args, "label_smoothing", 0.0)
    divergence = _get(args, "f_divergence_type", "reverse_kl")
    divergence = getattr(divergence, "value", divergence)
    if divergence != "reverse_kl" and loss != "sigmoid":
        raise _refuse("f_divergence_type", divergence, f"with loss_type {loss!r} is not in the catalogue")
    if _get(args, "use_weighting", False):
        if loss != "sigmoid":
            raise _refuse("use_weighting", True, f"with loss_type {loss!r} is not in the catalogue")
        return _spelled("wpo", beta=beta)
    ld_alpha = getattr(args, "ld_alpha", None)
    if ld_alpha is not None and ld_alpha != 1.0:
        if loss != "sigmoid":
            raise _refuse("ld_alpha", ld_alpha, f"with loss_type {loss!r} is not in the catalogue")
        return _spelled("ld_dpo", beta=beta, alpha=ld_alpha)
    if loss == "sigmoid" and divergence != "reverse_kl":
        names = {"forward_kl": "dpo_forward_kl", "js_divergence": "dpo_js", "alpha_divergence": "dpo_alpha"}
        if divergence not in names:
            raise _refuse("f_divergence_type", divergence, "is not in the catalogue")
        hyper = {"alpha": _get(args, "f_alpha_divergence_coef", 0.5)} if divergence == "alpha_divergence" else {}
        return _spelled(names[divergence], beta=beta, **hyper)
    plain = {
        "hinge": ("hinge", {"beta": beta}),
        "ipo": ("ipo_avg", {"tau": beta}),
        "nca_pair": ("nca_pair", {"beta": beta}),
        "sppo_hard": ("sppo_hard_trl", {"beta": beta}),
        "aot": ("aot", {"beta": beta, "eps": eps}),
        "aot_unpaired": ("aot_unpaired", {"beta": beta, "eps": eps}),
        "apo_zero": ("apo_zero", {"beta": beta}),
        "apo_down": ("apo_down", {"beta": beta}),
        "discopop": ("discopop", {"beta": beta, "tau": _get(args, "discopop_tau", 0.05)}),
        "sigmoid_norm": ("dpo_norm", {"beta": beta}),
        "sft": ("sft_batch", {}),
        "robust": ("robust_dpo", {"beta": beta, "eps": eps}),
        "exo_pair": ("exo_pair", {"beta": beta, "eps": eps or 1e-3}),
        # TRL from 1.0 on has no running shift of rewards
        "bco_pair": ("bco_pair", {"beta": beta}),
    }
    if loss == "sigmoid":
        # TRL from 1.0 on smooths no labels here
        return _spelled("cdpo", beta=beta, eps=eps) if eps and _before_1() else _spelled("dpo", beta=beta)
    if loss in plain:
        name, hyper = plain[loss]
        return _spelled(name, **hyper)
    raise _refuse("loss_type", loss, "is not in the catalogue")


def _cpo(args: Any) -> str:
    loss, beta = _get(args, "loss_type", "sigmoid"), _get(args, "beta", 0.1)
    alpha, eps = _get(args, "cpo_alpha", 1.0), _get(args, "label_smoothing", 0.0)
    if eps:
        raise _refuse("label_smoothing", eps, "of CPO is not in the catalogue")
    if loss == "sigmoid":
        return _spelled("cpo_avg_nll", beta=beta, lam=alpha)
    if loss == "hinge":
        return _spelled("cpo_hinge", beta=beta, lam=alpha)
    if loss == "ipo":
        return _spelled("cpo_ipo", beta=beta, lam=alpha)
    if loss == "simpo":
        if alpha:
            raise _refuse("cpo_alpha", alpha, "with loss_type 'simpo' is not in the catalogue; 0 is SimPO")
        gamma, power = _get(args, "simpo_gamma", 0.5), _get(args, "alpha", 0.0)
        return _spelled("alphapo", beta=beta, gamma=gamma, alpha=power) if power else _spelled("simpo", beta=beta, gamma=gamma)
    raise _refuse("loss_type", loss, "is not in the catalogue")


def _orpo(args: Any) -> str:
    return _spelled("orpo_trl", lam=_get(args, "beta", 0.1))


def _kto(args: Any) -> str:
    loss = _get(args, "loss_type", "kto")
    if loss != "kto":
        raise _refuse("loss_type", loss, "is not in the catalogue")
    return _spelled(
        "kto",
        beta=_get(args, "beta", 0.1),
        lam_w=_get(args, "desirable_weight", 1.0),
        lam_l=_get(args, "undesirable_weight", 1.0),
    )
