"""SVG charts, written by hand: bars with ranges for the comparison, curves for growth."""

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
