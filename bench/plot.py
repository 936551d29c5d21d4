"""Bars as SVG."""

from xml.sax.saxutils import escape

WIDTH, LABELS, BAR, GAP = 760, 300, 22, 8
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
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">\n'
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n')


def _text(x, y, text, anchor="start", weight="normal", color=INK):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{color}">{escape(text)}</text>')


def _short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
