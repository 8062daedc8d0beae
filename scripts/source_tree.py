"""The sources of Ferry as the checks see them: paths relative to the root, without what a build leaves behind."""

import os
import re
import sys
from pathlib import Path

CODE_FOLDERS = ("include", "src", "compat", "examples", "bench", "demo", "test")
CODE_SUFFIXES = {".h", ".hpp", ".c", ".cpp"}
NOT_OURS = {"build", ".git", ".cache", "__pycache__"}


def walk(root, folders=(".",)):
    """Every file below the folders of root, sorted, as paths relative to root."""
    found = []
    for folder in folders:
        for where, directories, files in os.walk(Path(root) / folder):
            directories[:] = [d for d in directories if d not in NOT_OURS]
            found += [Path(where, name).relative_to(root) for name in files]
    return sorted(set(found))


def code(root):
    return [path for path in walk(root, CODE_FOLDERS) if path.suffix in CODE_SUFFIXES]


def text(root, path):
    return (Path(root) / path).read_text(encoding="utf-8", errors="replace")


_NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def without_comments_and_strings(source):
    """The same number of lines, so that positions still say where."""
    return _NOT_CODE.sub(lambda match: "\n" * match.group(0).count("\n") or " ", source)


def main(check):
    """Runs check(root) -> list of complaints over the tree that this script lies in, or the one named as argument."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    complaints = check(root)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    sys.exit(1 if complaints else 0)
