"""Bars and lines as SVG."""

import math
from xml.sax.saxutils import escape

WIDTH, LABELS, BAR, GAP = 820, 360, 22, 8
OURS, THEIRS, INK, LIMIT = "#1f6feb", "#a8b1bd", "#24292f", "#cf222e"


def bars(title, unit, rows, limit=None):
    """A bar for each (label, value, is ours); shorter is better, and a limit is a line across."""
    highest = max([value for _, value, _ in rows] + ([limit[1]] if limit else []))
    scale = (WIDTH - LABELS - 90) / highest
    height = 48 + len(rows) * (BAR + GAP) + (24 if limit else 0)
    parts = [_text(12, 26, title, weight="bold")]
    for place, (label, value, is_ours) in enumerate(rows):
        top = 42 + place * (BAR + GAP)
        color = OURS if is_ours else THEIRS
        length = max(1.5, value * scale)
        parts.append(_text(LABELS - 8, top + 16, label, anchor="end"))
        parts.append(f'<rect x="{LABELS}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{color}"/>')
        parts.append(_text(LABELS + length + 6, top + 16, f"{_short(value)} {unit}"))
    if limit:
        at = LABELS + limit[1] * scale
        bottom = 42 + len(rows) * (BAR + GAP)
        parts.append(f'<path d="M{at:.1f} 36V{bottom}" stroke="{LIMIT}" stroke-dasharray="4 3"/>')
        parts.append(_text(at, bottom + 14, limit[0], anchor="middle", color=LIMIT))
    return _whole(height, parts)


def lines(title, x_unit, y_unit, series, limit=None):
    """A line for each (label, [(x, y)], color), from zero; a limit is a line across."""
    left, top, width, height = 56, 44, WIDTH - 56 - 24, 240
    right = max(x for _, points, _ in series for x, _ in points)
    highest = 1.05 * max([y for _, points, _ in series for _, y in points] + ([limit[1]] if limit else []))
    at = lambda x, y: (left + x / right * width, top + height - y / highest * height)
    parts = [_text(12, 26, title, weight="bold"),
             f'<path d="M{left} {top}V{top + height}H{left + width}" stroke="{INK}" fill="none"/>']
    for tick in _ticks(highest):
        y = at(0, tick)[1]
        parts.append(_text(left - 6, y + 4, f"{tick:g}", anchor="end"))
        parts.append(f'<path d="M{left} {y:.1f}H{left + width}" stroke="{THEIRS}" stroke-width="0.4"/>')
    parts += [_text(at(tick, 0)[0], top + height + 18, f"{tick:g}", anchor="middle") for tick in _ticks(right)]
    parts.append(_text(left + width, top + height + 36, x_unit, anchor="end"))
    parts.append(_text(left + 6, top + 4, y_unit))
    for place, (label, points, color) in enumerate(series):
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts.append(_text(left + place * 170, top + height + 36, f"— {label}", color=color))
    if limit:
        y = at(0, limit[1])[1]
        parts.append(f'<path d="M{left} {y:.1f}H{left + width}" stroke="{LIMIT}" stroke-dasharray="4 3"/>')
        parts.append(_text(left + width, y + 14, limit[0], anchor="end", color=LIMIT))
    return _whole(top + height + 50, parts)


def _ticks(highest):
    """Round numbers up to one, about five."""
    step = 10 ** math.floor(math.log10(highest / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if highest / (step * factor) <= 6)
    return [step * n for n in range(int(highest / step) + 1)]


def _whole(height, parts):
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">\n'
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n')


def _text(x, y, text, anchor="start", weight="normal", color=INK):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{color}">{escape(text)}</text>')


def _short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
