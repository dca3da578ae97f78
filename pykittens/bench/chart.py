"""Charts of results as SVG. Bars: a panel for each group of cells, a cluster of bars for each cell, one bar for each
contender. Curves: a line for each contender.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Panel = Mapping[str, Mapping[str, float]]  # cell -> contender -> value

_COLOURS = ("#1b6e53", "#b8c4cc", "#7f95a3", "#d9b382", "#8a6fa8", "#c77d7d")  # ours, then the others as they come
_BAR, _GAP, _HEIGHT, _TOP, _LEFT, _BOTTOM = 26, 22, 190, 46, 20, 40
_MOST = 1400  # pixels across


def bars(title: str, unit: str, panels: Mapping[str, Panel]) -> str:
    """An SVG image. Contenders keep their colours from panel to panel, in the order in which they appear first."""
    names = list(dict.fromkeys(name for panel in panels.values() for cell in panel.values() for name in cell))
    colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    parts, x, y, widest = [], _LEFT, 74, 0
    for heading, panel in panels.items():
        width = sum(len(cell) * _BAR + _GAP for cell in panel.values()) + _LEFT
        if x > _LEFT and x + width > _MOST:
            x, y = _LEFT, y + _TOP + _HEIGHT + _BOTTOM
        parts.append(f'<g transform="translate({x},{y})">{_panel(heading, panel, colour)}</g>')
        x += width
        widest = max(widest, x)
    widest, height, at, legend = max(widest, 480), y + _TOP + _HEIGHT + _BOTTOM, _LEFT, []
    for name in names:
        legend.append(
            f'<rect x="{at}" y="42" width="12" height="12" fill="{colour[name]}"/>'
            f'<text x="{at + 17}" y="52">{escape(name)}</text>'
        )
        at += 40 + 8 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{widest}" height="{height}" viewBox="0 0 {widest} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">'
        '<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{_LEFT}" y="28" font-size="17" font-weight="600">{escape(title)} '
        f'<tspan font-weight="400" font-size="13">({escape(unit)}, higher is better)</tspan></text>'
        f"{''.join(legend)}{''.join(parts)}</svg>\n"
    )


def curves(title: str, across: str, lines: Mapping[str, Sequence[float]]) -> str:
    """An SVG image: every contender's values, one after the other; `across` says what they are counted by. Later lines
    are thinner, so that those below them can be seen.
    """
    width, height, left, top = 720, 300, 50, 74
    low, high = math.floor(min(map(min, lines.values()))), math.ceil(max(map(max, lines.values())))
    steps = max(map(len, lines.values()))
    parts, legend = [], _LEFT

    def y(value: float) -> float:
        return top + height * (high - value) / max(1, high - low)

    for value in range(low, high + 1):
        parts.append(f'<path d="M{left} {y(value):.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    for value in range(0, steps + 1, 10 ** max(1, round(math.log10(steps)) - 1) * 2):
        at = left + width * value / steps
        parts.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{value}</text>')
    for i, (name, values) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        points = " ".join(f"{left + width * (j + 1) / steps:.1f},{y(value):.1f}" for j, value in enumerate(values))
        thick = max(1.0, 4.0 - i)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{thick:g}"/>')
        parts.append(f'<rect x="{legend}" y="42" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{legend + 17}" y="52">{escape(name)}</text>')
        legend += 40 + 8 * len(name)
    across_at = f'x="{left + width / 2:g}" y="{top + height + 38}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 20}" height="{top + height + 50}" '
        f'viewBox="0 0 {left + width + 20} {top + height + 50}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="#222"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{_LEFT}" y="28" font-size="17" font-weight="600">{escape(title)}</text>{"".join(parts)}'
        f'<text {across_at} text-anchor="middle">{escape(across)}</text></svg>\n'
    )


def _panel(heading: str, panel: Panel, colour: Mapping[str, str]) -> str:
    top = max((value for cell in panel.values() for value in cell.values()), default=1.0)
    parts, x = [f'<text y="14" font-weight="600">{escape(heading)}</text>'], 0.0
    for label, cell in panel.items():
        first = x
        for name, value in cell.items():
            height = value / top * _HEIGHT
            y = _TOP - 10 + _HEIGHT - height
            parts.append(
                f'<rect x="{x:g}" y="{y:.1f}" width="{_BAR - 3}" height="{height:.1f}" '
                f'fill="{colour[name]}"><title>{escape(name)}: {value:.4g}</title></rect>'
            )
            parts.append(
                f'<text x="{x + (_BAR - 3) / 2:g}" y="{y - 4:.1f}" font-size="10" '
                f'text-anchor="middle">{_short(value)}</text>'
            )
            x += _BAR
        parts.append(
            f'<text x="{(first + x - 3) / 2:g}" y="{_TOP + _HEIGHT + 8}" text-anchor="middle">{escape(label)}</text>'
        )
        x += _GAP
    return "".join(parts)


def _short(value: float) -> str:
    """At most four figures."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
