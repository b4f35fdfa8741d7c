"""How results show themselves in notebooks."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._records import Analysis, TokenMatrices

#: Tokens of a heat map beyond which it is cut.
_MOST = 60


def analysis(of: Analysis) -> str:
    """A table of medians, and the first two figures of the report."""
    table = of.summary("metric").select("metric", "median", "low", "high", "q25", "q75")._repr_html_()
    # as wide as the page has room for
    figures = [svg.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1) for svg in list(of.figures().values())[:2]]
    pictures = "".join(f'<div style="flex:1;min-width:300px">{svg}</div>' for svg in figures)
    return f'<pre>{html.escape(str(of))}</pre>{table}<div style="display:flex;flex-wrap:wrap;gap:16px">{pictures}</div>'


#: Of the largest positive and negative value, as the report has them.
_MOST_POSITIVE, _MOST_NEGATIVE = (0xB2, 0x18, 0x2B), (0x21, 0x66, 0xAC)


def _colour(value: float) -> str:
    """Red for positive, blue for negative, white at zero; of values in ±1."""
    strength = min(1.0, abs(value)) ** 0.5
    end = _MOST_POSITIVE if value >= 0 else _MOST_NEGATIVE
    red, green, blue = (round(255 + strength * (of - 255)) for of in end)
    return f"rgb({red},{green},{blue})"


def heat_map(of: TokenMatrices) -> str:
    """wl of a pair, token by token."""
    chosen, rejected, values = of.texts("w"), of.texts("l"), of.wl
    most = float(abs(values).max()) if values.size else 0.0
    cut = f", of which the first {_MOST} are shown" if max(values.shape) > _MOST else ""
    head = "".join(f'<th style="writing-mode:vertical-rl;white-space:pre;font-weight:normal">{html.escape(text)}</th>' for text in rejected[:_MOST])
    lines = []
    for text, row in list(zip(chosen, values, strict=True))[:_MOST]:
        cells = "".join(
            f'<td title="{value:.4g}" style="padding:0;min-width:12px;height:14px;background:{_colour(value / most if most else 0.0)}"></td>'
            for value in row[:_MOST]
        )
        lines.append(f'<tr><th style="text-align:right;white-space:pre;font-weight:normal">{html.escape(text)}</th>{cells}</tr>')
    caption = (
        f"pair {of.pair}: inner products of the gradients of chosen tokens (rows) and rejected tokens (columns), "
        f"±{most:.3g}{cut}; red: they rise and fall together"
    )
    return (
        f'<table style="border-collapse:collapse;font-size:10px"><caption>{caption}</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
