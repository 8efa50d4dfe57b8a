"""Results as JSON, as a Markdown table and as a chart."""

import json
from statistics import median

from . import chart


def figures(values):
    return {"median": median(values), "low": min(values), "high": max(values)}


def ratios(of, to):
    """Medians of what belongs together: the same round of both, so that drift of the machine cancels out."""
    return median([a / b for a, b in zip(of, to)])


def bars(row, values):
    """Weir's bars in this row: (other's label, factor, ratio found, met)."""
    found = []
    for other, factor in row.bars:
        if "weir" in values and other in values:
            ratio = ratios(values["weir"], values[other])
            found.append({"other": other, "bar": factor, "ratio": ratio, "met": ratio <= factor})
    return found


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(result):
    machine, options = result["machine"], result["options"]
    lines = [
        f"{machine['date']} · {machine['processor']}, {machine['cores']} cores, {machine['memory']} · {machine['system']}, Linux {machine['kernel']}",
        "",
        "Median of the rounds (lowest–highest), which take the servers in shuffled order, each after and before a check of the answers. "
        f"Server on core {options['server_core']}, load and origin on core {options['load_core']}. Access logs and metrics are on.",
        "",
    ]
    for row in result["rows"]:
        lines += [f"**{row['title']}** – {row['unit']}", "", f"{row['measured']}: {', '.join(f'{name} {version}' for name, version in row['versions'].items())}", ""]
        memory = any("memory" in entry for entry in row["products"])
        lines += ["| | median (range) | × Weir | answers/s |" + (" resident MB |" if memory else ""), "|---|---|---|---|" + ("---|" if memory else "")]
        weir = next((entry for entry in row["products"] if entry["name"] == "weir"), None)
        for entry in sorted(row["products"], key=lambda entry: entry["median"]):
            ratio = number(ratios(entry["values"], weir["values"])) if weir else "–"
            line = f"| {entry['label']} | {number(entry['median'])} ({number(entry['low'])}–{number(entry['high'])}) | {ratio} | {entry['rate']:,.0f} |"
            lines.append(line + (f" {entry['memory'] / 1e6:,.0f} |" if memory and "memory" in entry else " – |" if memory else ""))
        lines.append("")
        for note in row["notes"]:
            lines += [note, ""]
        for bar in row["bars"]:
            verdict = "met" if bar["met"] else "**missed**"
            lines.append(f"- bar: at most {bar['bar']:g} × {bar['other']}; found {bar['ratio']:.2f} ×: {verdict}")
        if row["bars"]:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def keep_others(result, folder):
    """Takes over rows of an earlier result that this one does not have, in the order of that one."""
    try:
        earlier = json.loads((folder / "results.json").read_text())["rows"]
    except FileNotFoundError:
        return
    new = {row["name"]: row for row in result["rows"]}
    result["rows"] = [new.pop(row["name"], row) for row in earlier] + list(new.values())


def write(result, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(result))
    (folder / "chart.svg").write_text(chart.comparison(result))
