#!/usr/bin/env python3
"""What clang-format does not see: length of files, include guards, words that stand for unfinished work or for one
person's machine, tests that wait for time to pass."""

import re

import source_tree

MAX_LINES = 600
EXCUSE = "Longer than 600 lines because"
HEAD_LINES = 30

WORDS = [
    (re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b"), "unfinished: finish it, or write down the limit as it is"),
    (re.compile(r"\bnot (?:yet )?implemented\b", re.IGNORECASE), "unfinished: finish it, or write down the limit as it is"),
    (re.compile(r"(?<![\w.$}])/(?:work|home/\w+|root)/"), "a path on one person's machine"),
    (re.compile(r"\bissues?\s+#?\d+\b|\b(?:fixes|closes|see)\s+#\d+\b", re.IGNORECASE), "a tracker's number: say what it is about"),
]
SLEEPS = re.compile(r"\b(?:sleep_for|sleep_until|usleep|nanosleep|clock_nanosleep)\s*\(|(?<![\w.>])(?:::)?sleep\s*\(")
READABLE = source_tree.CODE_SUFFIXES | {".md", ".py", ".txt", ".cmake", ".sh", ".bash", ".toml", ".in", ".json"}
# The lists of words are in these.
EXEMPT = {"scripts/check_style.py", "test/checks/checks_test.py", "LICENSE"}


def check(root):
    complaints = []
    code = set(source_tree.code(root))
    for path in source_tree.walk(root):
        if path.suffix not in READABLE and path.name not in ("dev", "run"):
            continue
        if path.as_posix() in EXEMPT:
            continue
        source = source_tree.text(root, path)
        lines = source.splitlines()
        if path in code or path.suffix == ".py":
            if len(lines) > MAX_LINES and not any(EXCUSE in line for line in lines[:HEAD_LINES]):
                complaints.append(f'{path}: {len(lines)} lines: cut it by verb or noun, or say at its top "{EXCUSE} ..."')
        if path in code and path.suffix in (".h", ".hpp") and "#pragma once" not in source:
            complaints.append(f"{path}: no #pragma once")
        for number, line in enumerate(lines, 1):
            for pattern, why in WORDS:
                match = pattern.search(line)
                if match:
                    complaints.append(f"{path}:{number}: '{match.group(0)}': {why}")
        if path.parts[0] == "test" and path in code:
            bare = source_tree.without_comments_and_strings(source)
            for match in SLEEPS.finditer(bare):
                line = bare.count("\n", 0, match.start()) + 1
                complaints.append(f"{path}:{line}: a test waits for an event, with a bound; it does not sleep")
    return complaints


if __name__ == "__main__":
    source_tree.main(check)
