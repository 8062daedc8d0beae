#!/usr/bin/env python3
"""Every test that a row of docs/SVM.md names is one of the tree's, and no row of its tables is without one."""

import re

import source_tree

PAGE = "docs/SVM.md"
# As GoogleTest has it: Suite.Test; SVM.md is none.
NAME = re.compile(r"(?<![\w:.])([A-Z]\w+)\.(\w{3,})(?![\w(])")
MADE = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)", re.MULTILINE)


def check(root):
    if not (root / PAGE).is_file():
        return []
    made = set()
    for path in source_tree.walk(root):
        if path.parts[0] == "test" and path.suffix == ".cpp":
            made.update(MADE.findall(source_tree.text(root, path)))
    complaints = []
    table = False
    for number, line in enumerate(source_tree.text(root, PAGE).splitlines(), 1):
        names = NAME.findall(line)
        for suite, test in names:
            if (suite, test) not in made:
                complaints.append(f"{PAGE}:{number}: there is no test {suite}.{test}")
        row = line.startswith("|")
        # The head of a table and the line under it name none.
        if row and "shown by" in line:
            table = True
        elif not row:
            table = False
        elif table and not line.startswith("|---") and not names:
            complaints.append(f"{PAGE}:{number}: a row without a test")
    return complaints


if __name__ == "__main__":
    source_tree.main(check)
