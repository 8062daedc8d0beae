#!/usr/bin/env python3
"""The table of verdicts of docs/PROGRESS.md, from what ferry check found:

    ferry check all --policy all --exhaustive --json | scripts/verdict_table.py
"""

import json
import sys

POLICIES = ("none", "preempt", "reserve", "reserve-in-flight", "exclusive", "query", "track", "pinned")


def hardware_of(case):
    if case["hardware"] == "-":
        return {}
    return dict(part.split("=") for part in case["hardware"].split(","))


def cell(cases):
    """The verdicts of one scenario under one policy, each with what the machines have in common that it holds on."""
    verdicts = {}
    for case in cases:
        verdicts.setdefault(case["verdict"], []).append(hardware_of(case))
    if len(verdicts) == 1:
        return next(iter(verdicts))
    swept = {key: {machine[key] for case in cases if key in (machine := hardware_of(case))} for key in hardware_of(cases[0])}
    texts = []
    for verdict, machines in sorted(verdicts.items()):
        common = [f"{key}={machines[0][key]}" for key in sorted(swept)
                  if len(swept[key]) > 1 and all(machine[key] == machines[0][key] for machine in machines)]
        texts.append(f"{verdict} ({', '.join(common)})" if common else verdict)
    return "; ".join(texts)


def table(cases):
    by_cell = {}
    for case in cases:
        by_cell.setdefault((case["scenario"], case["policy"]), []).append(case)
    lines = ["| scenario | " + " | ".join(f"`{p}`" for p in POLICIES) + " |", "|---" * (len(POLICIES) + 1) + "|"]
    for scenario in sorted({name for name, _ in by_cell}):
        cells = [cell(by_cell[scenario, policy]) if (scenario, policy) in by_cell else "-" for policy in POLICIES]
        lines.append(f"| `{scenario}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.load(sys.stdin)["cases"]))
