#!/usr/bin/env python3
"""What docs/INVARIANTS.md and docs/KERNEL.md refer to exists: each assertion, test, file and planted bug that a row of
an invariant names; each planted bug is named by the page; each kernel fact has one contract test, and each such test a
fact; each scenario of ferry check has its row of verdicts in docs/PROGRESS.md."""

import re

import source_tree

INVARIANTS = "docs/INVARIANTS.md"
FACTS = "docs/KERNEL.md"
VERDICTS = "docs/PROGRESS.md"
CONFIG = "src/core/config.h"
CODE = re.compile(r"`([^`\n]+)`")
INVARIANT_ROW = re.compile(r"^\| (I-\d+) \|")
FACT = re.compile(r"(?<!\w)K(\d\d)(?!\d)")
TEST = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)", re.MULTILINE)
IDENTIFIER = re.compile(r"\w+(?:::\w+)*")
PATH = re.compile(r"[\w/.]+\.(?:cpp|h|py|txt)")
TEST_PROGRAM = re.compile(r"NAME\s+(\w+)")
# A row that has no planted bug says in its last cell how else it is known that the check can fail.
ELSEWISE = ("mutation", "seed", "test", ".cpp", "checker")


def planted_bugs(root):
    if not (root / CONFIG).is_file():
        return set()
    match = re.search(r"enum class PlantedBug[^{]*\{(.*?)\};", source_tree.text(root, CONFIG), re.DOTALL)
    names = re.findall(r"^\s*(\w+),", match.group(1), re.MULTILINE) if match else []
    return set(names) - {"none"}


class Tree:
    def __init__(self, root):
        self.files = {path.as_posix() for path in source_tree.walk(root)}
        self.words = set()
        self.tests = {}
        self.programs = set()
        for path in source_tree.walk(root, ("include", "src", "test")):
            text = source_tree.text(root, path)
            if path.name == "CMakeLists.txt":
                self.programs.update(TEST_PROGRAM.findall(text))
            if path.suffix not in source_tree.CODE_SUFFIXES:
                continue
            self.words.update(re.findall(r"\w+", source_tree.without_comments_and_strings(text)))
            if path.parts[0] == "test":
                for suite, test in TEST.findall(text):
                    self.tests.setdefault(test, []).append((path.as_posix(), suite))

    def has(self, name):
        if PATH.fullmatch(name):
            return any(file == name or file.endswith("/" + name) for file in self.files)
        if name in self.programs:
            return True
        return all(word in self.words for word in name.split("::"))


def check_invariants(root, tree, complaints):
    bugs = planted_bugs(root)
    named = set()
    for number, line in enumerate(source_tree.text(root, INVARIANTS).splitlines(), 1):
        names = CODE.findall(line)
        named.update(bugs.intersection(names))
        row = INVARIANT_ROW.match(line)
        if not row:
            continue
        where = f"{INVARIANTS}:{number}: {row.group(1)}"
        for name in names:
            if (IDENTIFIER.fullmatch(name) or PATH.fullmatch(name)) and not tree.has(name):
                complaints.append(f"{where} names {name}, which is nowhere in the tree")
        last = line.rstrip(" |").rsplit("|", 1)[-1]
        if not bugs.intersection(names) and not any(word in last for word in ELSEWISE):
            complaints.append(f"{where} does not say how it is known that its check can fail")
    for bug in sorted(bugs - named):
        complaints.append(f"{INVARIANTS}: nothing is said about the planted bug {bug} of {CONFIG}")


def check_facts(root, tree, complaints):
    tests = {}
    for test, places in tree.tests.items():
        match = re.match(r"K(\d\d)_", test)
        if match:
            tests.setdefault(match.group(1), []).extend(f"{path}, {suite}.{test}" for path, suite in places)
    rows = {}
    for number, line in enumerate(source_tree.text(root, FACTS).splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 3 and re.fullmatch(r"K\d\d", cells[1]):
            rows.setdefault(cells[1][1:], number)
    for name, places in sorted(tests.items()):
        if len(places) > 1:
            complaints.append(f"{FACTS}: K{name} is the number of several tests: {'; '.join(sorted(places))}")
        if name not in rows:
            complaints.append(f"{FACTS}: no row for K{name} ({places[0]})")
    for name, number in sorted(rows.items()):
        if name not in tests:
            complaints.append(f"{FACTS}:{number}: there is no test K{name}_...")
    for path in source_tree.walk(root):
        if path.suffix not in source_tree.CODE_SUFFIXES | {".md"} or path.as_posix() == FACTS:
            continue
        for number, line in enumerate(source_tree.text(root, path).splitlines(), 1):
            for name in FACT.findall(line):
                if name not in rows and name not in tests:
                    complaints.append(f"{path}:{number}: K{name} is not in {FACTS}")


def check_verdicts(root, tree, complaints):
    rows = set(re.findall(r"^\| `(\w+)` \|", source_tree.text(root, VERDICTS).partition("## Verdicts")[2], re.MULTILINE))
    scenarios = {name[len("scenarios/"):-len(".scn")] for name in tree.files if re.fullmatch(r"scenarios/\w+\.scn", name)}
    for name in sorted(scenarios - rows):
        complaints.append(f"{VERDICTS}: no row for scenarios/{name}.scn (scripts/verdict_table.py makes the table)")
    for name in sorted(rows - scenarios):
        complaints.append(f"{VERDICTS}: there is no scenario {name}")


def check(root):
    complaints = []
    tree = Tree(root)
    if (root / INVARIANTS).is_file():
        check_invariants(root, tree, complaints)
    if (root / FACTS).is_file():
        check_facts(root, tree, complaints)
    if (root / VERDICTS).is_file():
        check_verdicts(root, tree, complaints)
    return complaints


if __name__ == "__main__":
    source_tree.main(check)
