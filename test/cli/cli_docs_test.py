"""The documentation of the command line has every option that the programs have, and no row of an option that they lack."""

import re
import subprocess
import sys
import unittest
from pathlib import Path

PROGRAMS = Path(sys.argv.pop(1))
DOCS = Path(sys.argv.pop(1))
# Help is an option of everything, and said once.
EVERYWHERE = {"--help", "--version"}
DEMOS = ("deadlock", "policies", "soak", "stress")


def options_of(*command):
    done = subprocess.run([str(PROGRAMS / command[0]), *command[1:], "--help"], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"{command}: {done.stderr}")
    return set(re.findall(r"^  (?:-\w,)?(--[a-z-]+)", done.stdout, re.MULTILINE)) - EVERYWHERE


def section(page, heading):
    text = (DOCS / page).read_text(encoding="utf-8")
    match = re.search(rf"^# {re.escape(heading)}$.*?(?=^## )|^## {re.escape(heading)}$.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise AssertionError(f"docs/{page} has no section {heading}")
    return match.group(0)


def named(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


class Documented(unittest.TestCase):
    def same(self, have, page, heading, besides=()):
        text = section(page, heading)
        self.assertEqual(sorted(have - named(text)), [], f"not in docs/{page}, {heading}")
        rows = "".join(line for line in text.splitlines(True) if line.startswith("| `"))
        first = {name for row in rows.splitlines() for name in named(row.split("|")[1])}
        self.assertEqual(sorted(first - have - set(besides)), [], f"docs/{page}, {heading} tells of what there is not")

    def test_run(self):
        self.same(options_of("ferry", "run"), "CLI.md", "ferry run")

    def test_doctor_and_explain(self):
        for command in ("doctor", "explain"):
            self.same(options_of("ferry", command), "CLI.md", f"ferry {command}")

    def test_sim(self):
        self.same(options_of("ferry", "sim"), "CLI.md", "ferry sim")

    def test_check(self):
        self.same(options_of("ferry", "check"), "CHECK.md", "ferry check")

    def test_bench(self):
        self.same(options_of("ferry", "bench"), "CLI.md", "ferry bench")

    def test_demo(self):
        have = set().union(*(options_of("ferry", "demo", demo) for demo in DEMOS))
        self.same(have, "CLI.md", "ferry demo")

    def test_ferryd(self):
        run = options_of("ferry", "run")
        self.same(options_of("ferryd") - run, "CLI.md", "ferryd", besides=run)


if __name__ == "__main__":
    unittest.main()
