"""Makes tests/golden/analytics: random records with nulls, NaN, infinities and a zero gradient, and what numpy and scipy say
that `summarize` has to say of them. Needs polars, numpy and scipy."""

import json
import pathlib

import numpy as np
import polars as pl
from scipy import stats

OUT = pathlib.Path(__file__).parent / "golden/analytics"
random = np.random.default_rng(7)


def regime(ww, wl, ll):
    """Of d_w = d_l = 1: the signs of ww - wl and wl - ll, none where both are lost in rounding (DESIGN, section 1)."""
    terms = [(ww, wl), (wl, ll)]
    if all(abs(a - b) <= 1e-12 * max(abs(a), abs(b)) for a, b in terms):
        return "none"
    up, down = ww - wl >= 0, wl - ll <= 0
    return {(True, True): "ideal", (True, False): "both-up", (False, True): "both-down", (False, False): "inverted"}[up, down]


def records(n, shift):
    """Pairs whose Grams are sums of the Grams of six parameters, two layers with two modules and two tensors outside."""
    names = [("embed.weight", None, "embed"), ("norm.weight", None, "norm")]
    names += [(f"l.{layer}.{module}.{factor}", layer, module) for layer in (0, 1) for module in ("q", "up") for factor in ("A", "B")]
    parts = []
    for pair in range(n):
        for name, layer, module in names:
            a, b = random.normal(size=(2, 3)) * random.lognormal()
            b += shift * a
            zero = pair == 1
            ww, wl, ll = (0.0, 0.0, 0.0) if zero else (a @ a, a @ b, b @ b)
            parts.append(dict(pair=pair, param=name, layer=layer, module=module, ww=ww, wl=wl, ll=ll))
    params = pl.DataFrame(parts, schema_overrides=dict(pair=pl.UInt64, layer=pl.UInt32))
    total = params.group_by("pair", maintain_order=True).agg(pl.col("ww", "wl", "ll").sum())
    ww, wl, ll = (total[name].to_numpy() for name in ("ww", "wl", "ll"))
    with np.errstate(all="ignore"):
        cosine = [None if w * l <= 0 else x / np.sqrt(w * l) for w, x, l in zip(ww, wl, ll)]
        ratio = [None if w <= 0 else np.sqrt(l / w) for w, l in zip(ww, ll)]
    rho = np.array([np.nan if c is None else c for c in cosine])
    low = [None if c is None else (0.0 if c <= 0 else c * r) for c, r in zip(cosine, ratio)]
    high = [None if c is None else (np.inf if c <= 0 else r / c) for c, r in zip(cosine, ratio)]
    count = lambda low, high: random.integers(low, high, n).astype(np.uint32)
    logps = -random.gamma(2.0, 8.0, size=(4, n))
    if n > 3:
        logps[0, 3] = np.nan
    prompt = count(3, 30)
    pairs = pl.DataFrame(dict(
        pair=np.arange(n, dtype=np.uint64), id=[f"p{i}" if i % 3 else None for i in range(n)],
        prompt_tokens=prompt, chosen_tokens=count(1, 40), rejected_tokens=count(1, 40),
        trunk_tokens=prompt + count(0, 4), truncated_tokens=count(0, 1), edit_distance=count(0, 40),
        logp_chosen=logps[0], logp_rejected=logps[1], ref_logp_chosen=logps[2], ref_logp_rejected=logps[3],
        ww=ww, wl=wl, ll=ll, cosine=pl.Series(cosine, dtype=pl.Float64), norm_ratio=pl.Series(ratio, dtype=pl.Float64),
        band_low=pl.Series(low, dtype=pl.Float64), band_high=pl.Series(high, dtype=pl.Float64),
        regime_dpo=[regime(*x) for x in zip(ww, wl, ll)],
    ))
    rows = []
    for pair in range(n):
        for name, scale in (("dpo", 1.0), ("odd:k=2", 2.0)):
            d_w, d_l = random.gamma(2.0, 0.1, 2) * scale
            up, down = d_w * ww[pair] - d_l * wl[pair], d_w * wl[pair] - d_l * ll[pair]
            r = rho[pair]
            slack = None if np.isnan(r) else (np.inf if r <= 0 else -np.log(r) - abs(np.log(d_w * np.sqrt(ww[pair]) / (d_l * np.sqrt(ll[pair])))))
            kind = regime(d_w * ww[pair], d_w * wl[pair], d_w * ll[pair])
            rows.append(dict(pair=pair, objective=name, loss=random.gamma(2.0), d_w=d_w, d_l=d_l, delta_w=up, delta_l=down, regime=kind, band_slack=slack))
    objectives = pl.DataFrame(rows, schema_overrides=dict(pair=pl.UInt64, band_slack=pl.Float64))
    return dict(pairs=pairs, params=params, objectives=objectives)


def finite(x):
    """JSON has no infinities."""
    x = float(x)
    return x if np.isfinite(x) else ("nan" if np.isnan(x) else ("inf" if x > 0 else "-inf"))


def spread(values):
    values = np.array([np.nan if v is None else v for v in values], dtype=float)
    x = np.sort(values[~np.isnan(values)])
    n = len(x)
    out = dict(count=n, undefined=len(values) - n)
    if n == 0:
        return out | {key: None for key in ("mean", "q25", "median", "q75", "low", "high")}
    # where infinitely many resamples would put the 2.5 % and the 97.5 % point of the median: order statistics
    at_most = lambda k: stats.binom.sf(k - 1, n, np.arange(1, n + 1) / n)
    low = x[np.argmax(at_most(-(-n // 2)) >= 0.025)]
    high = x[np.argmax(at_most(n // 2 + 1) >= 0.975)]

    def quarter(q):
        with np.errstate(all="ignore"):
            if np.isfinite(x).all():
                return np.quantile(x, q)
            # numpy's way through infinities ends in NaN: between a number and one it is that one, between two the lower
            at = q * (n - 1)
            a, b = x[int(at)], x[min(int(at) + 1, n - 1)]
            part = at - int(at)
            return b if part > 0 and np.isinf(b) and np.isfinite(a) else a + (b - a) * part if np.isfinite([a, b]).all() else a

    values = dict(mean=x.mean(), q25=quarter(0.25), median=quarter(0.5), q75=quarter(0.75), low=low, high=high)
    return out | {key: finite(value) for key, value in values.items()}


def derived(pairs):
    smaller = pl.min_horizontal("ww", "ll")
    return pairs.with_columns(
        wl_over_min=pl.when(smaller > 0).then(pl.col("wl") / smaller), norm_chosen=pl.col("ww").sqrt(), norm_rejected=pl.col("ll").sqrt(),
        margin=pl.col("logp_chosen") - pl.col("logp_rejected"),
        gain_chosen=pl.col("logp_chosen") - pl.col("ref_logp_chosen"), gain_rejected=pl.col("logp_rejected") - pl.col("ref_logp_rejected"),
        gain_margin=(pl.col("logp_chosen") - pl.col("ref_logp_chosen")) - (pl.col("logp_rejected") - pl.col("ref_logp_rejected")),
        length_difference=pl.col("chosen_tokens").cast(pl.Float64) - pl.col("rejected_tokens"),
        shared_prefix=pl.col("trunk_tokens").cast(pl.Float64) - pl.col("prompt_tokens"),
    )


METRICS = "cosine wl_over_min norm_chosen norm_rejected norm_ratio wl band_low band_high logp_chosen logp_rejected margin gain_chosen gain_rejected gain_margin edit_distance".split()
AGAINST = "length_difference chosen_tokens rejected_tokens prompt_tokens shared_prefix edit_distance logp_chosen logp_rejected margin".split()


def expected(tables):
    pairs, params, objectives = derived(tables["pairs"]), tables["params"], tables["objectives"]
    out = dict(metric={name: spread(pairs[name].to_list()) for name in METRICS})
    shares = {}
    for (name, kind), rows in objectives.group_by("objective", "regime"):
        of = stats.binomtest(rows.height, pairs.height).proportion_ci(method="wilson")
        shares[f"{name}/{kind}"] = dict(count=rows.height, share=rows.height / pairs.height, low=of.low, high=of.high)
    out["regime"] = dict(sorted(shares.items()))
    out["objective"] = {
        f"{name}/{metric}": spread(rows[metric].to_list())
        for (name,), rows in objectives.group_by("objective") for metric in ("loss", "d_w", "d_l", "delta_w", "delta_l", "band_slack")
    }
    total = params["wl"].sum()
    for by, keys in (("layer", ["layer"]), ("module", ["layer", "module"])):
        rows = params if by == "module" else params.drop_nulls("layer")
        whole = {}
        for key, part in rows.group_by(keys):
            sums = part.group_by("pair", maintain_order=True).agg(pl.col("ww", "wl", "ll").sum())
            cosines = [x / np.sqrt(w * l) if w * l > 0 else None for w, x, l in sums.select("ww", "wl", "ll").iter_rows()]
            share = sums["wl"].sum() / total
            whole["/".join(str(k) for k in key)] = spread(cosines) | dict(wl=finite(sums["wl"].sum()), wl_share=finite(share))
        out[by] = whole
    out["relation"] = {}
    for metric in ("cosine", "wl_over_min", "norm_ratio"):
        for against in AGAINST:
            both = pairs.select(a=pl.col(metric).cast(pl.Float64), b=pl.col(against).cast(pl.Float64)).drop_nulls().filter(~pl.col("a").is_nan() & ~pl.col("b").is_nan())
            value = stats.spearmanr(both["a"], both["b"])[0] if both.height > 3 and both["a"].n_unique() > 1 and both["b"].n_unique() > 1 else None
            # Fisher's transform with the standard error of Bonett and Wright (2000), as in SciPy's own documentation of spearmanr
            ends = [None, None]
            if value is not None:
                half = stats.norm.ppf(0.975) * np.sqrt((1 + value**2 / 2) / (both.height - 3))
                with np.errstate(divide="ignore"):
                    ends = [finite(np.tanh(np.arctanh(value) + sign * half)) for sign in (-1, 1)]
            out["relation"][f"{metric}/{against}"] = dict(
                count=both.height, spearman=None if value is None else finite(value), low=ends[0], high=ends[1])
    out["bin"] = {}
    # one with negative values, one with many pairs of one value, one with NaN
    for metric in ("cosine", "norm_ratio"):
        for against in ("length_difference", "shared_prefix", "logp_chosen"):
            x, y = (pairs[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in (metric, against))
            known = y[~np.isnan(y)]
            n = min(10, len(known))
            ends = np.unique(np.quantile(known, np.arange(1, n + 1) / n, method="inverted_cdf"))
            place = np.searchsorted(ends, y)
            for k, end in enumerate(ends):
                here = (place == k) & ~np.isnan(y)
                out["bin"][f"{metric}/{against}/{k + 1}"] = spread(x[here].tolist()) | {"from": y[here].min(), "to": end}
    ww, wl, ll = (pairs[name].to_numpy() for name in ("ww", "wl", "ll"))
    with np.errstate(all="ignore"):
        out["official"] = [finite(x) for x in (wl.mean(), (wl / np.sqrt(ww * ll)).mean(), np.sqrt(ww).mean(), np.sqrt(ll).mean(), np.mean(wl / np.minimum(ww, ww)))]
    return out


def compared(before, after):
    a, b = derived(before), derived(after)
    both = a.join(b, on="pair", suffix="_after")
    out = {}
    for name in METRICS:
        x, y = (both[key].cast(pl.Float64).fill_null(np.nan).to_numpy() for key in (name, f"{name}_after"))
        defined = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[defined], y[defined]
        rises, falls = int((y > x).sum()), int((y < x).sum())
        p = stats.binomtest(rises, rises + falls).pvalue if rises + falls else 1.0
        with np.errstate(all="ignore"):
            gap = np.concatenate([y - x, np.full((~defined).sum(), np.nan)])
        out[name] = spread(gap.tolist()) | dict(rises=rises, falls=falls, p=p)
    return out


all_records = dict(large=(150, 0.8), small=(5, -0.5), one=(1, 0.1))
values = {}
made = {name: records(n, shift) for name, (n, shift) in all_records.items()}
made["empty"] = {table: frame.clear() for table, frame in made["one"].items()}
for name, tables in made.items():
    n = tables["pairs"].height
    for table, frame in tables.items():
        folder = OUT / name / f"{table}.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        # two parts, the second cut between pairs
        cut = frame.filter(pl.col("pair") < max(1, n // 2)).height
        frame[:cut].write_parquet(folder / "00000.parquet")
        if cut < frame.height:
            frame[cut:].write_parquet(folder / "00001.parquet")
    if n > 0:
        values[name] = expected(tables)
values["large against small"] = compared(made["small"]["pairs"], made["large"]["pairs"])
(OUT / "values.json").write_text(json.dumps(values, indent=1) + "\n")
