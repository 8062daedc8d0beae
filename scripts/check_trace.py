#!/usr/bin/env python3
"""Checks a trace file against the rules of the Chrome / Perfetto JSON trace format: what a viewer would drop, misplace
or refuse is told by event number.

usage: check_trace.py [--has NAME[:FIELD,FIELD...]]... FILE...
--has: some event of that name, or category, must be there, and each such event must have these fields in its args.
Exit codes: 0 every file is well; 1 some rule is broken; 2 a file cannot be read."""

import json
import sys

# Phases of the format, with the fields that each needs beside ph.
NEEDS = {
    "B": ("name", "ts", "pid", "tid"),
    "E": ("ts", "pid", "tid"),
    "X": ("name", "ts", "dur", "pid", "tid"),
    "i": ("name", "ts", "pid"),
    "I": ("name", "ts", "pid"),
    "C": ("name", "ts", "pid", "args"),
    "b": ("name", "ts", "pid", "cat", "id"),
    "n": ("name", "ts", "pid", "cat", "id"),
    "e": ("name", "ts", "pid", "cat", "id"),
    "s": ("name", "ts", "pid", "tid", "id"),
    "t": ("name", "ts", "pid", "tid", "id"),
    "f": ("name", "ts", "pid", "tid", "id"),
    "P": ("name", "ts", "pid", "tid"),
    "N": ("name", "ts", "pid", "id"),
    "O": ("name", "ts", "pid", "id", "args"),
    "D": ("name", "ts", "pid", "id"),
    "M": ("name", "pid", "args"),
}
METADATA = {
    "process_name": ("name", str),
    "process_labels": ("labels", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}
SCOPES = ("g", "p", "t")
# A start and an end that were rounded to nanoseconds apart may differ by this much, in microseconds.
ROUNDING = 0.0011


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


class Checker:
    def __init__(self):
        self.complaints = []
        self.open = {}      # (pid, tid): names of B without E
        self.slices = {}    # (pid, tid): complete events
        self.pending = {}   # (pid, cat, id): async begins without an end
        self.tracks = set()

    def complain(self, where, what):
        self.complaints.append(f"{where}: {what}")

    def event(self, number, event):
        where = f"event {number}"
        if not isinstance(event, dict):
            return self.complain(where, "is not an object")
        phase = event.get("ph")
        if phase not in NEEDS:
            return self.complain(where, f"ph {phase!r} is no phase of the format")
        missing = [field for field in NEEDS[phase] if field not in event]
        if missing:
            return self.complain(where, f"ph {phase} without {', '.join(missing)}")
        if "name" in event and not isinstance(event["name"], str):
            return self.complain(where, "name is not a string")
        for field in ("pid", "tid"):
            # The format has whole numbers; viewers hold them in 32 bits, signed.
            if field in event and not (is_integer(event[field]) and 0 <= event[field] < 2**31):
                return self.complain(where, f"{field} {event[field]!r} is not a whole number of 31 bits")
        for field in ("ts", "dur"):
            if field in event and not (is_number(event[field]) and event[field] >= 0):
                return self.complain(where, f"{field} {event[field]!r} is not a time in microseconds")
        if "args" in event and not isinstance(event["args"], dict):
            return self.complain(where, "args is not an object")
        if "cat" in event and not isinstance(event["cat"], str):
            return self.complain(where, "cat is not a string")
        track = (event["pid"], event.get("tid", 0))
        if phase != "M":
            self.tracks.add(track)
        getattr(self, "phase_" + phase, lambda *_: None)(where, event, track)

    def phase_M(self, where, event, _track):
        if event["name"] not in METADATA:
            return self.complain(where, f"{event['name']!r} is no metadata of the format")
        field, kind = METADATA[event["name"]]
        value = event["args"].get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.complain(where, f"{event['name']} needs args.{field}")
        if event["name"].startswith("thread") and "tid" not in event:
            self.complain(where, f"{event['name']} without tid")

    def phase_C(self, where, event, _track):
        if not event["args"] or not all(is_number(value) for value in event["args"].values()):
            self.complain(where, "a counter needs args that are numbers")

    def phase_i(self, where, event, _track):
        if event.get("s", "t") not in SCOPES:
            self.complain(where, f"scope {event['s']!r} is not one of g, p, t")

    def phase_X(self, where, event, track):
        self.slices.setdefault(track, []).append((event["ts"], -event["dur"], where))

    def phase_B(self, where, event, track):
        self.open.setdefault(track, []).append((event["name"], event["ts"], where))

    def phase_E(self, where, event, track):
        stack = self.open.get(track)
        if not stack:
            return self.complain(where, "ends what did not begin on its track")
        name, begin, _ = stack.pop()
        if event.get("name", name) != name:
            self.complain(where, f"ends {event['name']!r}, but {name!r} is open")
        if event["ts"] < begin:
            self.complain(where, "ends before it begins")

    def phase_b(self, where, event, _track):
        self.pending.setdefault((event["pid"], event["cat"], str(event["id"])), []).append((event["ts"], where))

    def phase_e(self, where, event, _track):
        begun = self.pending.get((event["pid"], event["cat"], str(event["id"])))
        if not begun:
            return self.complain(where, "ends what did not begin with its id")
        if event["ts"] < begun.pop()[0]:
            self.complain(where, "ends before it begins")

    def finish(self):
        for stack in self.open.values():
            for name, _, where in stack:
                self.complain(where, f"{name!r} begins and never ends")
        for begun in self.pending.values():
            for _, where in begun:
                self.complain(where, "begins and never ends")
        # Slices of one track stand beside or within each other; a viewer drops one that sticks out of another.
        for track, slices in self.slices.items():
            ends = []
            for begin, negative, where in sorted(slices):
                end = begin - negative
                while ends and ends[-1] <= begin + ROUNDING:
                    ends.pop()
                if ends and end > ends[-1] + ROUNDING:
                    self.complain(where, f"overlaps another on pid {track[0]}, tid {track[1]} without lying in it")
                ends.append(end)


def no_constant(text):
    raise ValueError(f"{text} is no JSON")


def no_duplicates(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def examine(document):
    """(complaints, events, tracks) of a decoded trace."""
    checker = Checker()
    if isinstance(document, dict):
        if document.get("displayTimeUnit", "ms") not in ("ms", "ns"):
            checker.complain("displayTimeUnit", "is neither ms nor ns")
        document = document.get("traceEvents")
    if not isinstance(document, list):
        return ["no array of traceEvents"], 0, 0
    if not document:
        return ["no events"], 0, 0
    for number, event in enumerate(document):
        checker.event(number, event)
    checker.finish()
    return checker.complaints, len(document), len(checker.tracks)


def check(document):
    """The complaints about a decoded trace."""
    return examine(document)[0]


def examine_text(text):
    """(complaints, events, tracks) of a trace as its file has it."""
    try:
        document = json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        return [f"not JSON: {error}"], 0, 0
    return examine(document)


def missing(document, wants):
    """What of `wants` (NAME:FIELD,FIELD...) a decoded trace does not have."""
    events = document.get("traceEvents", []) if isinstance(document, dict) else document
    complaints = []
    for want in wants:
        name, _, fields = want.partition(":")
        found = [event for event in events if name in (event.get("name"), event.get("cat")) and event.get("ph") != "M"]
        if not found:
            complaints.append(f"there is no event {name!r}")
        for field in filter(None, fields.split(",")):
            without = [event for event in found if field not in event.get("args", {})]
            if without:
                complaints.append(f"{len(without)} of {len(found)} events {name!r} are without {field!r}")
    return complaints


def main(paths):
    wants = []
    while len(paths) > 1 and paths[0] == "--has":
        wants.append(paths[1])
        paths = paths[2:]
    if not paths or paths[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if paths else 2
    status = 0
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="strict") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
        complaints, events, tracks = examine_text(text)
        if wants and not complaints:
            complaints = missing(json.loads(text), wants)
        for complaint in complaints[:20]:
            print(f"{path}: {complaint}", file=sys.stderr)
        if complaints:
            print(f"{path}: {len(complaints)} complaints about {events} events", file=sys.stderr)
            status = 1
        else:
            print(f"{path}: {events} events on {tracks} tracks, as the format has it")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
