#!/usr/bin/env python3
"""Can the tests fail? Takes one rule at a time out of a copy of the sources, builds that, and runs what has to notice:

  - for each row of docs/SVM.md, "Attributes" and "Flags": the tests that the row names, one of which must fail;
  - for each statement of docs/INVARIANTS.md that is shown by mutation: a simulation, or a test of the core, which must end
    in the check of that number.

    scripts/mutants.py                   all; 1 if one was not noticed
    scripts/mutants.py GPU_RO GET I-35   these
    scripts/mutants.py --list            what is taken out

The copy and its build are in build/mutants and are used again. Takes about 10 s a rule with 4 CPUs."""

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
BLOCK = "src/core/block"
WORK = "src/core/work"
# What has to notice: the program under the build folder, and its arguments.
SIM = ["bin/ferry", "sim", "--runs", "300"]
JOBS = ["bin/test/core_job_test"]
BUFFERS = ["bin/test/core_buffer_test"]
CORE = ["bin/test/core_test"]
INVARIANTS = {
    "I-07": (SIM, [(BLOCK, r"s\.dma_unmapped_pages \+= closed", "s.dma_unmapped_pages += closed - 1")]),
    "I-17": (SIM, [(ROUTE, r"(access_of\(device\) == DeviceAccess::none\) \{\n    return Code::)kernel_fault", r"\1io_error")]),
    "I-23": (JOBS, [(f"{WORK}/timeline.cpp", r"\.done = true;\n  timeline_advance\(at\.timeline\);", ".done = true;")]),
    "I-25": (BUFFERS, [(f"{WORK}/reach.cpp", r"clear = clear && untouched\(m\);", "")]),
    "I-27": (BUFFERS, [(f"{WORK}/reach.cpp", r"if \(m\.cpu_waiting\) \{\n    serve\(no_device\);", "if (false) {")]),
    "I-32": (JOBS, [(f"{WORK}/job.cpp", r"  std::erase\(line, id\);\n  job\.stage = Job::Stage::depends;",
                     "  job.stage = Job::Stage::depends;")]),
    "I-34": (JOBS, [(f"{WORK}/job.cpp", r"if \((fence_wait\(fence, \{FenceWaiter::Who::job, id\}\))\) \{", r"\1; {")]),
    "I-35": (JOBS, [(f"{WORK}/engine.cpp", r"dev\.running\[e\] < slots", "dev.running[e] <= slots")]),
    "I-36": (JOBS, [(f"{WORK}/slice.cpp", r"(    unit\.leaving = true;\n    mask \|= )bit_of\(held\[i\]\)", r"\g<1>0")]),
    "I-37": (JOBS, [(f"{WORK}/circle.cpp", r"unit\.faults\.insert\(token\);", "")]),
    "I-38": (JOBS, [(f"{WORK}/gate.cpp", r"  wait_for_units\(job, 0, 0\);\n  std::erase\(dev\.at_gate, id\);",
                     "  std::erase(dev.at_gate, id);")]),
    "I-44": (CORE, [("src/core/reclaim/shrink.cpp", r"fence_for = front\.id;", "fence_for = front.id + 1;")]),
}
NUMBER = re.compile(r"\bI-\d\d\b")
FAILED_CHECK = re.compile(r"bug: (\S+?):(\d+): ")
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


def by_mutation():
    """The statements of docs/INVARIANTS.md whose last cell says that mutation shows them."""
    found = set()
    for line in source_tree.text(ROOT, "docs/INVARIANTS.md").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if NUMBER.fullmatch(cells[0]) and "mutation" in cells[-1]:
            found.add(cells[0])
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


def rows_look(where, tests, log):
    """Runs the tests; says which failed, or nothing."""

    def look():
        bad = []
        for test in tests:
            code = run(["ctest", "--test-dir", where, "-R", r"(^|\.|/)" + re.escape(test) + r"(/[^/]*)?$", "--no-tests=error",
                        "--timeout", str(TEST_SECONDS_MAX), "--output-on-failure"], log)
            bad += [test] if code != 0 else []
        return f"{', '.join(bad)} failed" if bad else ""

    return look


def number_look(tree, where, number, log):
    """Runs what has to notice; says which check ended it, or nothing if that was none of the number's."""
    command = INVARIANTS[number][0]

    def look():
        try:
            done = subprocess.run([where / command[0], *command[1:]], capture_output=True, text=True, errors="replace",
                                  timeout=TEST_SECONDS_MAX, check=False)
        except subprocess.TimeoutExpired:
            return ""
        said = done.stdout + done.stderr
        with open(log, "a", encoding="utf-8") as out:
            out.write(said)
        for name, line in FAILED_CHECK.findall(said):
            path = next((path for path in (Path(name), tree / name, where / name) if path.is_file()), None)
            # The number stands on the check's own lines, or above the group that it belongs to.
            lines = path.read_text(encoding="utf-8").splitlines() if path is not None else []
            if number in "".join(lines[max(int(line) - 4, 0) : int(line) + 1]):
                return f"{Path(name).name}:{line} ended {' '.join(command[:2])}"
        return f"{' '.join(command[:2])} said {number}" if done.returncode != 0 and number in said else ""

    return look


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("names", nargs="*", metavar="ROW")
    words.add_argument("--list", action="store_true")
    asked = words.parse_args()
    table = rows()
    unknown = (set(table) ^ (set(MUTANTS) | set(WITHOUT))) | (by_mutation() ^ set(INVARIANTS)) | (
        set(asked.names) - set(MUTANTS) - set(INVARIANTS))
    if unknown:
        sys.exit(f"mutants: the documents and this script do not agree on: {', '.join(sorted(unknown))}")
    if asked.list:
        for name, changes in [*MUTANTS.items(), *((name, changes) for name, (_, changes) in INVARIANTS.items())]:
            print(f"{name}: " + "; ".join(sorted({f"{pattern} -> {new or 'nothing'}" for _, pattern, new in changes})))
        return 0
    home = ROOT / "build" / "mutants"
    tree, where, log = home / "tree", home / "build", home / "log"
    home.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    copy_of_sources(tree)
    if not build(tree, where, log):
        sys.exit(f"mutants: the build failed, see {log}")
    unnoticed = chosen = 0
    for name in [*MUTANTS, *INVARIANTS]:
        if asked.names and name not in asked.names:
            continue
        look = rows_look(where, table[name], log) if name in MUTANTS else number_look(tree, where, name, log)
        if (seen := look()):
            sys.exit(f"mutants: {name}: {seen} with nothing taken out, see {log}")
        before = take_out(tree, MUTANTS[name] if name in MUTANTS else INVARIANTS[name][1])
        if not build(tree, where, log):
            sys.exit(f"mutants: {name}: the build failed, see {log}")
        seen = look()
        chosen += 1
        unnoticed += not seen
        print(f"{name}: {seen or 'NOT NOTICED'}", flush=True)
        for path, text in before.items():
            put(path, text.encode())
        build(tree, where, log)
    for row, why in WITHOUT.items():
        if not asked.names:
            print(f"{row}: nothing taken out ({why})")
    print(f"{chosen - unnoticed} of {chosen} were noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
