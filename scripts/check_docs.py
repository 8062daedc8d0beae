#!/usr/bin/env python3
"""Links in the documentation lead somewhere, its examples are those that a test runs, and every invariant (I-1) and kernel fact (K-1) that is referred to is
defined: once, at the start of a heading, list item or table row of docs/INVARIANTS.md or docs/KERNEL.md."""

import re
from urllib.parse import unquote

import source_tree

LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
IDENTIFIER = re.compile(r"(?<![\w-])([IK]-\d+)(?![\w-])")
DEFINITION = re.compile(r"^[ \t]*(?:[|#*+-]+|\d+\.)[ \t]*(?:<a [^>]*>(?:</a>)?)?[*`_\[]*([IK]-\d+)(?![\w-])", re.MULTILINE)
HOMES = {"I": "docs/INVARIANTS.md", "K": "docs/KERNEL.md"}
EXAMPLE = re.compile(r"^```cpp\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES_OF = ("docs/API.md", "docs/SVM.md")
EXAMPLES_IN = "test/client/documented_test.cpp"
EXEMPT = {"scripts/check_docs.py", "test/checks/checks_test.py"}


def blank(match):
    return "\n" * match.group(0).count("\n")


def anchors(markdown):
    """The names that a heading can be linked by, as the usual forges make them."""
    found = {}
    names = set()
    for heading in HEADING.findall(FENCE.sub(blank, markdown)):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    names.update(re.findall(r'<a (?:id|name)="([^"]+)"', markdown))
    return names


def check_links(root, path, complaints):
    source = INLINE_CODE.sub("", FENCE.sub(blank, source_tree.text(root, path)))
    for match in LINK.finditer(source):
        target = match.group(1)
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        line = source.count("\n", 0, match.start()) + 1
        file, _, anchor = unquote(target).partition("#")
        to = (root / path).parent / file if file else root / path
        if not to.exists():
            complaints.append(f"{path}:{line}: link to {target}: there is no such file")
        elif anchor and to.suffix == ".md" and anchor not in anchors(to.read_text(encoding="utf-8")):
            complaints.append(f"{path}:{line}: link to {target}: there is no such heading")


def check_examples(root, complaints):
    """Whole programs are built by test/install, which takes them from the page."""
    if not (root / EXAMPLES_IN).is_file():
        return
    tested = {line.strip() for line in source_tree.text(root, EXAMPLES_IN).splitlines()}
    for page in EXAMPLES_OF:
        source = source_tree.text(root, page)
        for match in EXAMPLE.finditer(source):
            if "int main(" in match.group(1):
                continue
            first = source.count("\n", 0, match.start(1)) + 1
            for number, line in enumerate(match.group(1).splitlines(), first):
                if line.strip() and line.strip() not in tested:
                    complaints.append(f"{page}:{number}: this line of an example is not in {EXAMPLES_IN}")


def check(root):
    complaints = []
    for path in source_tree.walk(root):
        if path.suffix == ".md":
            check_links(root, path, complaints)

    check_examples(root, complaints)

    defined = {}
    for kind, home in HOMES.items():
        if not (root / home).is_file():
            continue
        source = (root / home).read_text(encoding="utf-8")
        for match in DEFINITION.finditer(source):
            name = match.group(1)
            if name[0] != kind:
                continue
            line = source.count("\n", 0, match.start(1)) + 1
            if name in defined:
                complaints.append(f"{home}:{line}: {name} is defined a second time (first in line {defined[name]})")
            defined.setdefault(name, line)

    for path in source_tree.walk(root):
        if path.as_posix() in EXEMPT or path.suffix not in source_tree.CODE_SUFFIXES | {".md", ".py"}:
            continue
        for number, line in enumerate(source_tree.text(root, path).splitlines(), 1):
            for name in IDENTIFIER.findall(line):
                if name not in defined:
                    complaints.append(f"{path}:{number}: {name} is not defined in {HOMES[name[0]]}")
    return complaints


if __name__ == "__main__":
    source_tree.main(check)
