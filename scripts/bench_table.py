#!/usr/bin/env python3
"""The table of docs/BENCH.md's Measured, from what ferry bench measured:

    ferry bench --json | scripts/bench_table.py
"""

import json
import sys

# Benches with many rows of the same kind: one line each in the table.
FAMILIES = ("policy_",)


def figure(value):
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = 3 if abs(value) < 100 else 0
    return f"{value:.{digits}g}" if digits else f"{value:,.0f}"


def bound(row):
    """A rate has to be at least its target, anything else at most."""
    at_least = row["meets"] == (row["ratio"] >= row["target"]) if row["ratio"] is not None and row["ratio"] != row["target"] else False
    return f"{'>=' if at_least else '<='} {row['target']:g}"


def line(row):
    if row["ratio"] is None:
        return f"| {row['name']} | {figure(row['ferry'])} {row['unit']} | {figure(row['floor'])} | - | {row['target']:g} | not measured |"
    verdict = "meets" if row["meets"] else "**missed**"
    return (f"| {row['name']} | {figure(row['ferry'])} {row['unit']} | {figure(row['floor'])} | {row['ratio']:.3g} | {bound(row)} | {verdict} |")


def family_line(family, rows):
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    met = sum(1 for row in rows if row["meets"])
    verdict = f"all {met} meet" if met == len(rows) else f"**{len(rows) - met} of {len(rows)} missed**"
    spread = f"{min(ratios):.2g} to {max(ratios):.2g}" if ratios else "-"
    return f"| {family}* | | | {spread} | by row | {verdict} |"


def table(rows):
    lines = ["| row | Ferry | floor | ratio | target | |", "|---|---|---|---|---|---|"]
    done = set()
    for row in rows:
        family = next((name for name in FAMILIES if row["name"].startswith(name)), None)
        if family is None:
            lines.append(line(row))
        elif family not in done:
            done.add(family)
            members = [other for other in rows if other["name"].startswith(family)]
            lines.append(family_line(family, members))
            lines += [line(other) for other in members if not other["meets"]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.load(sys.stdin)))
