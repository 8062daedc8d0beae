"""The checks of ./dev check find what they are there to find, and pass what is right."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import bench_table
import check_claims
import check_docs
import check_svm_tests
import check_layers
import check_style
import check_trace
import verdict_table


class Tree(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        for layer in ("base", "core", "wire", "linux", "sim", "device", "client", "manager", "cli"):
            self.write(f"src/{layer}/{layer}.h", "#pragma once\n")
        self.write("include/ferry/ferry.hpp", "#pragma once\n")

    def write(self, path, content):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(content)

    def assert_passes(self, check):
        self.assertEqual(check.check(self.root), [])

    def assert_finds(self, check, *parts):
        """Exactly one complaint, with all these parts in it."""
        complaints = check.check(self.root)
        self.assertEqual(len(complaints), 1, complaints)
        for part in parts:
            self.assertIn(part, complaints[0])


class Layers(Tree):
    def test_a_clean_tree_passes(self):
        self.write("src/core/a.cpp", '#include "core/core.h"\n#include "base/base.h"\n#include <vector>\n// mmap(2), "std::thread"\n')
        self.write("src/cli/a.cpp", '#include "sim/sim.h"\n#include <ferry/ferry.hpp>\n#include <chrono>\n')
        self.write("src/linux/a.cpp", '#include <linux/userfaultfd.h>\n#include "wire/wire.h"\n')
        self.write("examples/a/main.cpp", '#include <ferry/ferry.hpp>\n#include "image.h"\n')
        self.assert_passes(check_layers)

    def test_every_forbidden_pair_of_layers(self):
        pairs = [("base", "core"), ("core", "wire"), ("core", "linux"), ("wire", "core"), ("linux", "sim"), ("sim", "linux"),
                 ("linux", "device"), ("device", "client"), ("client", "manager"), ("manager", "cli"), ("manager", "sim"),
                 ("device", "sim")]
        for layer, other in pairs:
            with self.subTest(layer=layer, other=other):
                self.write(f"src/{layer}/bad.cpp", f'\n#include "{other}/{other}.h"\n')
                self.assert_finds(check_layers, f"src/{layer}/bad.cpp:2:", f"{layer} may not include {other}")
                (self.root / f"src/{layer}/bad.cpp").unlink()

    def test_a_public_header_knows_no_layer(self):
        self.write("include/ferry/bad.hpp", '#pragma once\n#include "base/base.h"\n')
        self.assert_finds(check_layers, "ferry may not include base")

    def test_core_and_base_know_no_system_thread_or_clock(self):
        for header in ("unistd.h", "sys/mman.h", "linux/futex.h", "thread", "mutex", "atomic", "chrono", "random", "pthread.h"):
            for layer in ("core", "base"):
                with self.subTest(header=header, layer=layer):
                    self.write(f"src/{layer}/bad.cpp", f"#include <{header}>\n")
                    self.assert_finds(check_layers, f"src/{layer}/bad.cpp:1:", f"<{header}>")
                    (self.root / f"src/{layer}/bad.cpp").unlink()

    def test_core_calls_none_of_them_either(self):
        for call in ("mmap(0, 1, 2, 3, 4, 5)", "::write(1, p, n)", "std::chrono::steady_clock::now()", "getenv(name)", "__rdtsc()",
                     "std::thread t", "syscall(1)"):
            with self.subTest(call=call):
                self.write("src/core/bad.cpp", f"void f() {{\n  {call};\n}}\n")
                self.assert_finds(check_layers, "src/core/bad.cpp:2:")
        self.write("src/core/bad.cpp", "void f(Page p) {\n  p.mmap(1);\n  q->fork(); r.write(2);\n}\n")
        self.assert_passes(check_layers)

    def test_paths_are_written_from_the_root_of_src(self):
        self.write("src/core/bad.cpp", '#include "core.h"\n')
        self.assert_finds(check_layers, "from the root of src")
        self.write("src/core/bad.cpp", '#include "core/gone.h"\n')
        self.assert_finds(check_layers, "does not exist")

    def test_an_example_uses_the_public_interface(self):
        self.write("examples/a/main.cpp", '#include "core/core.h"\n')
        self.assert_finds(check_layers, "public interface")

    def test_a_folder_that_is_no_layer(self):
        self.write("src/util/a.h", "#pragma once\n")
        self.assert_finds(check_layers, "no layer of this name")


class Style(Tree):
    def test_length(self):
        self.write("src/core/long.cpp", "\n" * 600)
        self.assert_passes(check_style)
        self.write("src/core/long.cpp", "\n" * 601)
        self.assert_finds(check_style, "src/core/long.cpp", "601 lines")
        self.write("src/core/long.cpp", "// Longer than 600 lines because it is one table.\n" + "\n" * 601)
        self.assert_passes(check_style)

    def test_include_guard(self):
        self.write("src/core/a.h", "int f();\n")
        self.assert_finds(check_style, "src/core/a.h", "#pragma once")

    def test_words(self):
        for line in ("// TODO: later", "// not implemented", "# /home/someone/ferry/build", "// see issue 12", "// fixes #12"):
            with self.subTest(line=line):
                self.write("src/core/a.cpp", f"\n{line}\n")
                self.assert_finds(check_style, "src/core/a.cpp:2:")
        self.write("src/core/a.cpp", "// /proc/self/maps, /framework/x, tissue 3, frame #0\n")
        self.assert_passes(check_style)

    def test_sleep_in_a_test(self):
        self.write("test/a/a_test.cpp", "void f() {\n  std::this_thread::sleep_for(1s);\n}\n")
        self.assert_finds(check_style, "test/a/a_test.cpp:2:", "does not sleep")
        self.write("test/a/a_test.cpp", "// sleep(1)\nint asleep(int);\n")
        self.assert_passes(check_style)


class Docs(Tree):
    def test_links(self):
        self.write("docs/A.md", "# One `two`, three\n[b](B.md) [c](https://example.org/x) [d](#one-two-three) `[e](gone.md)`\n")
        self.write("docs/B.md", "[a](A.md#one-two-three)\n\n```\n[x](gone.md)\n```\n")
        self.assert_passes(check_docs)
        self.write("docs/B.md", "\n[a](C.md)\n")
        self.assert_finds(check_docs, "docs/B.md:2:", "C.md")
        self.write("docs/B.md", "[a](A.md#four)\n")
        self.assert_finds(check_docs, "docs/B.md:1:", "no such heading")

    def test_invariants(self):
        self.write("docs/INVARIANTS.md", "| I-01 | text, see K-2 |\n## I-02: more\n")
        self.write("docs/KERNEL.md", "- **K-2** fact\n")
        self.write("src/core/a.cpp", "// I-01, I-02 and K-2; not UI-7, nor I-x\n")
        self.assert_passes(check_docs)
        self.write("src/core/a.cpp", "\n// I-03\n")
        self.assert_finds(check_docs, "src/core/a.cpp:2:", "I-03")
        self.write("src/core/a.cpp", "")
        self.write("docs/KERNEL.md", "- K-2: fact\n- K-2: other\n")
        self.assert_finds(check_docs, "docs/KERNEL.md:2:", "second time")


class SvmTests(Tree):
    TABLE = "| attribute | shown by |\n|---|---|\n| A | Flags.Acts |\n"

    def test_names_and_rows(self):
        self.write("test/e2e/a_test.cpp", "TEST_F(Flags, Acts) {\n}\n")
        self.write("docs/SVM.md", self.TABLE)
        self.assert_passes(check_svm_tests)
        self.write("docs/SVM.md", self.TABLE + "| B | Flags.DoesNot |\n")
        self.assert_finds(check_svm_tests, "docs/SVM.md:4:", "Flags.DoesNot")
        self.write("docs/SVM.md", self.TABLE + "| B | |\n")
        self.assert_finds(check_svm_tests, "docs/SVM.md:4:", "without a test")


class Examples(Tree):
    def test_lines_of_an_example_that_no_test_has(self):
        self.write("docs/SVM.md", "```cpp\nf(1);  // so\n\n  g();\n```\n```cpp\nint main() { h(); }\n```\n")
        self.write("docs/API.md", "")
        self.write("test/client/documented_test.cpp", "  f(1);  // so\n  g();\n")
        self.assert_passes(check_docs)
        self.write("test/client/documented_test.cpp", "  f(1);\n  g();\n")
        self.assert_finds(check_docs, "docs/SVM.md:2:")


class TraceHas(unittest.TestCase):
    EVENTS = {"traceEvents": [{"ph": "i", "name": "a", "cat": "x", "args": {"f": 1, "g": 2}}, {"ph": "i", "name": "a", "args": {"f": 1}}]}

    def test_what_is_missing_is_told(self):
        self.assertEqual(check_trace.missing(self.EVENTS, ["a:f", "a", "x:f,g"]), [])
        self.assertEqual(check_trace.missing(self.EVENTS, ["b"]), ["there is no event 'b'"])
        self.assertEqual(check_trace.missing(self.EVENTS, ["a:g"]), ["1 of 2 events 'a' are without 'g'"])


class Claims(Tree):
    CONFIG = "enum class PlantedBug : std::uint8_t {\n  none,\n  // pages\n  lose_dirty,  ///< counts as clean\n};\n"
    INVARIANTS = "| | statement | core | planted bugs |\n|---|---|---|---|\n| I-01 | It is so. | `verify_block` | `lose_dirty` |\n"
    FACTS = "| fact | test | so |\n|---|---|---|\n| It does | K01 | We may |\n"

    def setUp(self):
        super().setUp()
        self.write("src/core/config.h", self.CONFIG)
        self.write("src/core/a.cpp", "void verify_block();\n")
        self.write("docs/INVARIANTS.md", self.INVARIANTS)
        self.write("docs/KERNEL.md", self.FACTS)
        self.write("test/linux/a_test.cpp", "TEST(Facts, K01_ItDoes) {\n}\n")

    def test_what_is_there_passes(self):
        self.assert_passes(check_claims)

    def test_an_assertion_a_test_and_a_file_that_are_not_there(self):
        for name in ("verify_nothing", "Core::verify_nothing", "no_such_test.cpp", "test/sim/none.txt"):
            with self.subTest(name=name):
                self.write("docs/INVARIANTS.md", self.INVARIANTS.replace("verify_block", name))
                self.assert_finds(check_claims, "docs/INVARIANTS.md:3: I-01", name)

    def test_a_name_in_a_comment_is_no_assertion(self):
        self.write("src/core/a.cpp", "// verify_block\n")
        self.assert_finds(check_claims, "I-01", "verify_block")

    def test_a_planted_bug_that_is_not_there_or_that_no_row_names(self):
        self.write("src/core/config.h", self.CONFIG.replace("};", "  leak_chunk,\n};"))
        self.assert_finds(check_claims, "planted bug leak_chunk")
        self.write("src/core/config.h", self.CONFIG.replace("lose_dirty", "leak_chunk"))
        self.assertEqual(len(check_claims.check(self.root)), 3)  # nowhere; so nothing shows that it can fail; the other one

    def test_a_row_that_nothing_shows_to_fail(self):
        self.write("docs/INVARIANTS.md", self.INVARIANTS + "| I-02 | So is this. | `verify_block` | - |\n")
        self.assert_finds(check_claims, "docs/INVARIANTS.md:4: I-02", "can fail")
        self.write("docs/INVARIANTS.md", self.INVARIANTS + "| I-02 | So is this. | `verify_block` | mutation |\n")
        self.assert_passes(check_claims)

    def test_facts_and_tests_that_miss_each_other(self):
        self.write("docs/KERNEL.md", self.FACTS + "| It does not | K02 | We may not |\n")
        self.assert_finds(check_claims, "docs/KERNEL.md:4:", "no test K02")
        self.write("docs/KERNEL.md", self.FACTS)
        self.write("test/linux/b_test.cpp", "TEST_F(More, K03_ItWill) {\n}\n")
        self.assert_finds(check_claims, "no row for K03")

    def test_a_number_that_two_tests_have(self):
        self.write("test/linux/b_test.cpp", "TEST_F(More, K01_ItWill) {\n}\n")
        self.assert_finds(check_claims, "K01", "a_test.cpp, Facts.K01_ItDoes", "b_test.cpp, More.K01_ItWill")

    def test_scenarios_and_rows_of_verdicts(self):
        self.write("docs/PROGRESS.md", "| `none` | a policy |\n## Verdicts\n| `shared` | clean |\n")
        self.write("scenarios/shared.scn", "")
        self.assert_passes(check_claims)
        self.write("scenarios/fork.scn", "")
        self.assert_finds(check_claims, "docs/PROGRESS.md", "scenarios/fork.scn")
        self.write("docs/PROGRESS.md", "## Verdicts\n| `shared` | clean |\n| `fork` | clean |\n| `gone` | clean |\n")
        self.assert_finds(check_claims, "docs/PROGRESS.md", "no scenario gone")

    def test_a_number_that_is_no_fact(self):
        self.write("src/core/a.cpp", "void verify_block();  // K77\n")
        self.assert_finds(check_claims, "src/core/a.cpp:1: K77")


class BenchTable(unittest.TestCase):
    @staticmethod
    def row(name, ratio, target, meets):
        return {"name": name, "ferry": 1234.5, "floor": 2, "ratio": ratio, "target": target, "meets": meets, "unit": "us"}

    def test_a_line_says_which_way_the_target_binds(self):
        for ratio, target, meets, expected in ((1.2, 1.5, True, "1.2 | <= 1.5 | meets"), (1.6, 1.5, False, "1.6 | <= 1.5 | **missed**"),
                                               (0.9, 0.8, True, "0.9 | >= 0.8 | meets"), (0.7, 0.8, False, "0.7 | >= 0.8 | **missed**")):
            self.assertEqual(bench_table.line(self.row("a", ratio, target, meets)), f"| a | 1,234 us | 2 | {expected} |")
        self.assertIn("not measured", bench_table.line(self.row("a", None, 1, False)))

    def test_rows_of_a_family_are_one_line_and_those_that_missed(self):
        rows = [self.row("policy_a", 0.1, 1, True), self.row("policy_b", 1.5, 1, False), self.row("core", 2, 1, True)]
        lines = bench_table.table(rows).splitlines()[2:]
        self.assertEqual([text.split(" | ")[0] for text in lines], ["| policy_*", "| policy_b", "| core"])
        self.assertIn("**1 of 2 missed**", lines[0])


class VerdictTable(unittest.TestCase):
    @staticmethod
    def case(verdict, hardware):
        return {"scenario": "a", "policy": "none", "hardware": hardware, "verdict": verdict}

    def test_a_cell_says_on_which_machines_each_verdict_holds(self):
        alike = [self.case("clean", "units=1,retry=yes"), self.case("clean", "units=2,retry=yes")]
        self.assertEqual(verdict_table.cell(alike), "clean")
        apart = [self.case("deadlock", "units=1,retry=yes"), self.case("clean", "units=2,retry=yes")]
        self.assertEqual(verdict_table.cell(apart), "clean (units=2); deadlock (units=1)")
        some = [self.case("deadlock", "units=1,retry=no"), self.case("clean", "units=2,retry=no"), self.case("clean", "units=1,retry=yes")]
        self.assertEqual(verdict_table.cell(some), "clean; deadlock (retry=no, units=1)")
        self.assertEqual(verdict_table.table([self.case("clean", "-")]).splitlines()[2], "| `a` | clean" + " | -" * 7 + " |")


class Trace(unittest.TestCase):
    GOOD = {"name": "kernel", "ph": "X", "ts": 1.5, "dur": 2, "pid": 1, "tid": 2, "args": {"why": "fault"}}

    def test_what_the_format_allows(self):
        events = [self.GOOD, {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "a"}},
                  {"name": "vram", "ph": "C", "ts": 3, "pid": 1, "args": {"bytes": 7}}]
        self.assertEqual(check_trace.check({"traceEvents": events}), [])
        self.assertEqual(check_trace.check(events), [])

    def test_what_it_does_not(self):
        bad = [{"ph": "?"}, {"ts": -1}, {"ts": "1"}, {"dur": -2}, {"dur": None}, {"pid": "x"}, {"args": []}, {"name": 3}]
        for change in bad:
            with self.subTest(change=change):
                self.assertEqual(len(check_trace.check([{**self.GOOD, **change}])), 1)
        self.assertEqual(len(check_trace.check([{"ph": "C", "name": "c", "ts": 1, "pid": 1, "args": {"a": "b"}}])), 1)
        self.assertEqual(len(check_trace.check([{"ph": "E", "name": "c", "ts": 1, "pid": 1, "tid": 1}])), 1)
        self.assertEqual(len(check_trace.check([{"ph": "B", "name": "c", "ts": 1, "pid": 1, "tid": 1}])), 1)
        self.assertEqual(len(check_trace.check({"traceEvents": []})), 1)
        self.assertEqual(len(check_trace.check("x")), 1)


class LeaveNothing(unittest.TestCase):
    def run_in_shell(self, command):
        return subprocess.run([sys.executable, str(SCRIPTS / "leave_nothing.py"), "--grace", "0.2", "sh", "-c", command], text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)

    def test_the_status_is_the_commands(self):
        self.assertEqual(self.run_in_shell("exit 0").returncode, 0)
        self.assertEqual(self.run_in_shell("exit 3").returncode, 3)
        self.assertEqual(self.run_in_shell("kill -KILL $$").returncode, 137)

    def test_a_file_is_found(self):
        done = self.run_in_shell("touch $TMPDIR/forgotten.sock")
        self.assertEqual(done.returncode, 70)
        self.assertIn("forgotten.sock", done.stderr)

    def test_a_process_is_found_and_ended(self):
        done = self.run_in_shell("(trap '' TERM HUP; exec sleep 1000) >/dev/null 2>&1 & exit 0")
        self.assertEqual(done.returncode, 70)
        self.assertIn("sleep 1000", done.stderr)


if __name__ == "__main__":
    unittest.main()
