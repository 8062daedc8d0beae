#!/usr/bin/env python3
"""Is this file a trace that Perfetto and chrome://tracing read (the Trace Event Format, JSON)?

usage: check_trace.py FILE
"""

import json
import numbers
import sys
from collections import Counter

# Phase -> what an event of that phase must have besides its name and process.
PHASES = {
    "X": ("ts", "dur"), "B": ("ts",), "E": ("ts",), "i": ("ts",), "I": ("ts",), "C": ("ts", "args"), "M": ("args",),
    "b": ("ts", "id"), "n": ("ts", "id"), "e": ("ts", "id"), "s": ("ts", "id"), "t": ("ts", "id"), "f": ("ts", "id"),
}


def is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def fault_in(event, open_slices):
    if not isinstance(event, dict):
        return "not an object"
    phase = event.get("ph")
    if phase not in PHASES:
        return f"unknown phase {phase!r}"
    if phase != "E" and not isinstance(event.get("name"), str):
        return "no name"
    if not isinstance(event.get("pid"), int):
        return "pid is not a number"
    for key in PHASES[phase]:
        if key not in event:
            return f"phase {phase} needs {key}"
    for key in ("ts", "dur"):
        if key in event and not (is_number(event[key]) and event[key] >= 0):
            return f"{key} is not a time"
    if "args" in event and not isinstance(event["args"], dict):
        return "args is not an object"
    if phase == "C" and not all(is_number(value) for value in event["args"].values()):
        return "a counter's values are numbers"
    track = (event["pid"], event.get("tid"))
    if phase == "B":
        open_slices[track] += 1
    if phase == "E":
        open_slices[track] -= 1
        if open_slices[track] < 0:
            return "ends a slice that never began"
    return None


def check(trace):
    """The complaints about a decoded trace, at most twenty."""
    events = trace.get("traceEvents") if isinstance(trace, dict) else trace
    if not isinstance(events, list):
        return ["no list of events"]
    if not events:
        return ["no events"]
    complaints = []
    open_slices = Counter()
    for index, event in enumerate(events):
        fault = fault_in(event, open_slices)
        if fault:
            complaints.append(f"event {index}: {fault}")
        if len(complaints) == 20:
            return complaints
    for (pid, tid), count in open_slices.items():
        if count > 0:
            complaints.append(f"{count} slices of process {pid}, thread {tid} never end")
    return complaints


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            trace = json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    complaints = check(trace)
    for complaint in complaints:
        print(f"{sys.argv[1]}: {complaint}", file=sys.stderr)
    if complaints:
        sys.exit(1)
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    kinds = Counter(event["ph"] for event in events)
    print(f"{sys.argv[1]}: {len(events)} events, well formed ({', '.join(f'{k} {n}' for k, n in sorted(kinds.items()))})")


if __name__ == "__main__":
    main()
