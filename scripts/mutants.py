#!/usr/bin/env python3
"""Does a test fail where an attribute or a flag is ignored? Builds Ferry once as it is and then once a row of docs/SVM.md,
"Attributes" and "Flags", with the rule of that row taken out of a copy of the sources, and runs the tests that the row names.

    scripts/mutants.py              every row; 1 if the tests of one pass without its rule
    scripts/mutants.py GPU_RO GET   these rows
    scripts/mutants.py --list       what is taken out for each row

The copy and its build are in build/mutants and are used again. Takes about a minute a row with 4 CPUs."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import check_svm_tests
import source_tree

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/SVM.md"
SECTIONS = ("## Attributes", "## Flags")
ATTRIBUTES = "src/core/svm/attributes.cpp"
# A whole test program in some surroundings, such as devices that are linked.
WHOLE_PROGRAM = re.compile(r"`(\w+)`")
ROUTE = "src/core/svm/route.cpp"
REPLICA = "src/core/svm/replica.cpp"
DIRECT = "src/core/block/direct.cpp"
TYPES = "src/core/svm/types.h"
BUILD_JOBS = os.environ.get("FERRY_JOBS", str(os.cpu_count() or 1))
TEST_SECONDS_MAX = 300


def never_set(flag):
    """A flag that is cleared unless it is asked for reads as cleared, wherever it is asked; SET and GET keep it."""
    return [(folder, rf"\b(core::)?{flag}\b(?! =)", "0") for folder in ("src/core", "src/manager")]


# Row: what is taken out, as (file or folder, pattern, replacement). A pattern that is nowhere is an error.
MUTANTS = {
    "list of (type, value), SET": [(
        ATTRIBUTES, r"(if \(!is_valid\(changes\[i\], devices\.size\(\)\)\) \{\n)",
        r"\1 svm_change(*client, span, [&](Attributes& a) { for (unsigned k = 0; k < i; ++k) apply(a, changes[k]); }, "
        "loc_undefined, Cookie{});")],
    "GET": [(ATTRIBUTES, r"sum\.preferred == a\.preferred \? sum\.preferred : loc_undefined", "sum.preferred")],
    "RESET": [(ATTRIBUTES, r"\[\]\(Attributes& a\) \{ a = \{\}; \}", "[](Attributes&) {}")],
    "defaults": [(TYPES, r"svm_default_flags = svm_host_access \| svm_coherent", "svm_default_flags = svm_host_access")],
    "PREFERRED_LOC": [(path, r"\ba\.preferred\b(?! == b)", "Location{loc_undefined}") for path in (ROUTE, REPLICA, DIRECT)],
    "PREFETCH_LOC": [(ATTRIBUTES, r"request\.prefetch = prefetch;", "request.prefetch = loc_undefined;")],
    "PREFETCH_LOC to a device without access": [(
        ATTRIBUTES, r"changes\[i\]\.value < devices\.size\(\) &&\n", "changes[i].value > devices.size() &&\n")],
    "ACCESS": [(ATTRIBUTES, r"(to\.set_access\(a\.device, )static_cast<DeviceAccess>\(a\.value\)",
                r"\1std::min(to.access_of(a.device), static_cast<DeviceAccess>(a.value))")],
    "ACCESS_IN_PLACE": [(path, r"a\.access_of\(f\) == DeviceAccess::in_place", "false") for path in (ROUTE, REPLICA, DIRECT)],
    "NO_ACCESS": [(ATTRIBUTES, r"effect\.takes \|\| \(had && !has\)", "effect.takes")],
    "GRANULARITY": [(ROUTE, r"std::min<unsigned>\(a\.granularity, block_shift\)", "block_shift")],
    # Freed memory is told of when its addresses stay the program's, and forgotten with them when they do not.
    "end of the memory": [(ATTRIBUTES, r"client\.svm\.map\.erase\(span\);", ""),
                          ("src/client/svm/leave.cpp", r"= ask_svm\(.*svm_reset.*\);", "= true;")],
    "HOST_ACCESS": [("src/core", r"\(a\.flags & svm_host_access\) == 0", "false")],
    "COHERENT": [("src/core", r"\(a\.flags & svm_coherent\) == 0", "false")],
    "EXT_COHERENT": never_set("svm_ext_coherent"),
    "GPU_RO": never_set("svm_gpu_ro"),
    "GPU_EXEC": never_set("svm_gpu_exec"),
    "READ_MOSTLY": never_set("svm_read_mostly"),
    "HIVE_LOCAL": never_set("svm_hive_local"),
    "GPU_ALWAYS_MAPPED": never_set("svm_always_mapped"),
}
# Rows with nothing to take out: their tests ask for what holds however it is done.
WITHOUT = {
    "many spans": "merging is the map's representation; its own tests (attribute_map_test) fail without it",
    "unaligned, empty, overflowing spans; unknown attributes, devices, values": "checked in the library and in the core",
    "calls during the free of the same span": "a race, not a rule",
}


def rows():
    """{label: [tests]} of the sections' tables."""
    found = {}
    here = False
    for line in source_tree.text(ROOT, PAGE).splitlines():
        if line.startswith("## "):
            here = line in SECTIONS
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = check_svm_tests.NAME.findall(line)
        if here and line.startswith("|") and names:
            found[cells[0]] = [".".join(name) for name in names] + WHOLE_PROGRAM.findall(cells[-1])
    return found


def copy_of_sources(to):
    """Files that have not changed keep their time, so that only what a mutant changed is built again."""
    wanted = set(source_tree.walk(ROOT))
    for path in source_tree.walk(to) if to.is_dir() else []:
        if path not in wanted:
            (to / path).unlink()
    for path in wanted:
        put(to / path, (ROOT / path).read_bytes(), (ROOT / path).stat().st_mode)


def put(path, content, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_bytes() == content:
        return
    path.write_bytes(content)
    if mode is not None:
        path.chmod(mode)


def take_out(tree, changes):
    """Applies the changes; returns {path: content before}."""
    before = {}
    for place, pattern, replacement in changes:
        paths = [tree / place] if (tree / place).is_file() else sorted(
            tree / path for path in source_tree.walk(tree, (place,)) if path.suffix in (".cpp", ".h"))
        for path in paths:
            text = path.read_text(encoding="utf-8")
            changed, count = re.subn(pattern, replacement, text)
            if count:
                before.setdefault(path, text)
                put(path, changed.encode())
    if not before:
        sys.exit("mutants: there is nothing to take out")
    return before


def run(command, log, **more):
    with open(log, "a", encoding="utf-8") as out:
        return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False, **more).returncode


def build(tree, where, log):
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DFERRY_WERROR=OFF"]
    if shutil.which("ccache"):
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    if not (where / "build.ninja").is_file() and run(["cmake", "-S", tree, "-B", where, *options], log) != 0:
        sys.exit(f"mutants: cmake failed, see {log}")
    return run(["cmake", "--build", where, "-j", BUILD_JOBS], log) == 0


def failing(where, tests, log):
    """Those of the tests that fail; an error if one is not there at all."""
    bad = []
    for test in tests:
        name = r"(^|\.|/)" + re.escape(test) + "$"
        code = run(["ctest", "--test-dir", where, "-R", name, "--no-tests=error", "--timeout", str(TEST_SECONDS_MAX),
                    "--output-on-failure"], log)
        if code != 0:
            bad.append(test)
    return bad


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("rows", nargs="*", metavar="ROW")
    words.add_argument("--list", action="store_true")
    asked = words.parse_args()
    table = rows()
    unknown = (set(table) ^ (set(MUTANTS) | set(WITHOUT))) | (set(asked.rows) - set(MUTANTS))
    if unknown:
        sys.exit(f"mutants: {PAGE} and this script do not agree on: {', '.join(sorted(unknown))}")
    if asked.list:
        for row, changes in MUTANTS.items():
            print(f"{row}: " + "; ".join(sorted({f"{pattern} -> {new or 'nothing'}" for _, pattern, new in changes})))
        return 0
    home = ROOT / "build" / "mutants"
    tree, where, log = home / "tree", home / "build", home / "log"
    home.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    chosen = [row for row in MUTANTS if not asked.rows or row in asked.rows]
    copy_of_sources(tree)
    if not build(tree, where, log):
        sys.exit(f"mutants: the build failed, see {log}")
    survivors = 0
    for row in chosen:
        tests = table[row]
        without_cause = failing(where, tests, log)
        if without_cause:
            sys.exit(f"mutants: {', '.join(without_cause)} fails with nothing taken out, see {log}")
        before = take_out(tree, MUTANTS[row])
        if not build(tree, where, log):
            sys.exit(f"mutants: {row}: the build failed, see {log}")
        bad = failing(where, tests, log)
        survivors += not bad
        print(f"{row}: {', '.join(bad) + ' failed' if bad else 'NO TEST FAILED'}", flush=True)
        for path, text in before.items():
            put(path, text.encode())
        build(tree, where, log)
    for row, why in WITHOUT.items():
        if not asked.rows:
            print(f"{row}: nothing taken out ({why})")
    print(f"{len(chosen) - survivors} of {len(chosen)} rows have a test that fails without their rule")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
