"""SVG charts, written by hand: bars with ranges for the comparison, curves for growth."""

import math
from html import escape

FONT = "font-family='system-ui, sans-serif'"
INK, FAINT, GRID, WEIR, OTHER = "#1f2933", "#52606d", "#d9e2ec", "#0b7285", "#9aa5b1"


def text(x, y, words, size=12, anchor="start", colour=INK, weight="normal"):
    return f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' text-anchor='{anchor}' fill='{colour}' font-weight='{weight}'>{escape(words)}</text>"


def page(width, height, parts):
    body = "\n".join(parts)
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>\n<rect width='100%' height='100%' fill='white'/>\n{body}\n</svg>\n"


def comparison(result):
    """One group of bars a row, each row in its own scale; the thin line over a bar is lowest to highest."""
    left, width, bar, gap = 210, 860, 18, 5
    room = width - left - 130
    parts, y = [], 34
    machine = result["machine"]
    parts.append(text(16, y, "What a request costs", 18, weight="600"))
    y += 20
    parts.append(text(16, y, f"{machine['date']} · {machine['processor']} · Linux {machine['kernel']} · median, line: lowest to highest; shorter is better", 11, colour=FAINT))
    y += 12
    for row in result["rows"]:
        y += 30
        parts.append(text(16, y, row["title"], 13, weight="600"))
        parts.append(text(width - 16, y, row["unit"], 11, "end", FAINT))
        y += 10
        scale = room / max(max(entry["high"], 1e-9) for entry in row["products"])
        for entry in sorted(row["products"], key=lambda entry: entry["median"]):
            colour = WEIR if entry["weir"] else OTHER
            middle = y + bar / 2
            parts.append(text(left - 10, middle + 4, entry["label"], 12, "end", weight="600" if entry["weir"] else "normal"))
            parts.append(f"<rect x='{left}' y='{y}' width='{max(entry['median'] * scale, 1):.1f}' height='{bar}' rx='2' fill='{colour}'/>")
            parts.append(f"<path d='M{left + entry['low'] * scale:.1f} {middle}H{left + entry['high'] * scale:.1f}' stroke='{INK}' stroke-width='1.5'/>")
            parts.append(text(left + entry["high"] * scale + 8, middle + 4, f"{entry['median']:.1f}", 12))
            y += bar + gap
    return page(width, y + 20, parts)


def growth(result, leave_out):
    """One small curve for each thing that grows; both axes logarithmic where the range asks for it."""
    wide, high, columns, margin = 420, 250, 2, 16
    curves = [(name, curve) for name, curve in result["curves"].items() if name != leave_out]
    machine = result["machine"]
    width = margin * 2 + wide * columns
    parts = [text(margin, 34, "How cost grows", 18, weight="600"), text(margin, 54, f"{machine['date']} · {machine['processor']} · Linux {machine['kernel']} · µs of CPU a request, median; below the axis: memory of each, where measured", 11, colour=FAINT)]
    for number, (name, curve) in enumerate(curves):
        left, top = margin + number % columns * wide, 70 + number // columns * high
        parts += one_curve(left, top, wide, high, curve)
    return page(width, 80 + (len(curves) + columns - 1) // columns * high, parts)


def one_curve(left, top, wide, high, curve):
    points = curve["points"]
    x0, x1, y0, y1 = left + 62, left + wide - 24, top + high - 50, top + 44
    xs, ys = [point["x"] for point in points], [point["y"] for point in points]
    by_log = max(xs) / max(min(xs), 1) > 50
    tall = max(ys) / max(min(ys), 1e-9) > 20

    def place(value, values, low, high, log):
        first, last = (0, max(values)) if not log else (min(values), max(values))
        if log:
            return low + (high - low) * (math.log(value / first) / math.log(last / first) if last > first else 0.5)
        return low + (high - low) * (value - first) / (last - first or 1)

    def at(point):
        return place(point["x"], xs, x0, x1, by_log), place(point["y"], ys, y0, y1, tall)

    parts = [text(left, top + 20, curve["title"], 13, weight="600")]
    for share in (0, 0.5, 1):
        y = y0 + (y1 - y0) * share
        first = min(ys) if tall else 0
        value = first * (max(ys) / first) ** share if tall else max(ys) * share
        parts.append(f"<path d='M{x0} {y:.1f}H{x1}' stroke='{GRID}'/>")
        parts.append(text(x0 - 8, y + 4, short(value), 10, "end", FAINT))
    places = [at(point) for point in points]
    parts.append("<path d='M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + f"' fill='none' stroke='{WEIR}' stroke-width='2'/>")
    for point, (x, y) in zip(points, places):
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{WEIR}'><title>{point['x']:,}: {point['y']:.1f} µs</title></circle>")
        parts.append(text(x, y - 8, short(point["y"]), 10, "middle", INK))
        parts.append(text(x, y0 + 16, short(point["x"]), 10, "middle", FAINT))
    memory = [(point, x) for point, (x, _) in zip(points, places) if point.get("memory") is not None]
    for point, x in memory:
        parts.append(text(min(x, left + wide - 40), y0 + 40, bytes_short(point["memory"]), 10, "middle", INK))
    parts.append(text(x0 - 8, y0 + 28, curve["axis"], 10, "start", FAINT))
    if memory:
        parts.append(text(left, y0 + 40, "each", 10, "start", FAINT))
    return parts


def short(value):
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def bytes_short(value):
    return f"{value / 1e3:.1f} KB" if value >= 1e3 else f"{value:.0f} B"
