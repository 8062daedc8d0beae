"""scripts/check_trace.py accepts what the format allows and rejects each way of breaking it."""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import check_trace  # noqa: E402

GOOD = {
    "displayTimeUnit": "ns",
    "traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "a"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 2, "args": {"sort_index": 3}},
        {"ph": "X", "name": "outer", "pid": 1, "tid": 2, "ts": 0, "dur": 10},
        {"ph": "X", "name": "inner", "pid": 1, "tid": 2, "ts": 2.5, "dur": 7.5},
        {"ph": "X", "name": "after", "pid": 1, "tid": 2, "ts": 10, "dur": 0},
        {"ph": "B", "name": "b", "pid": 1, "tid": 3, "ts": 1},
        {"ph": "E", "pid": 1, "tid": 3, "ts": 2},
        {"ph": "b", "name": "move", "cat": "m", "id": 7, "pid": 1, "tid": 1, "ts": 1},
        {"ph": "e", "name": "move", "cat": "m", "id": 7, "pid": 1, "tid": 1, "ts": 4},
        {"ph": "i", "s": "t", "name": "fault", "pid": 1, "tid": 4, "ts": 5, "args": {"page": 1}},
        {"ph": "C", "name": "VRAM", "pid": 1, "ts": 5, "args": {"MiB": 3.5}},
    ],
}


def complaints(events=None, **top):
    document = copy.deepcopy(GOOD)
    if events is not None:
        document["traceEvents"] += events
    document.update(top)
    return check_trace.examine_text(json.dumps(document))[0]


class CheckTrace(unittest.TestCase):
    def rejected(self, event, part):
        found = complaints([event])
        self.assertEqual(len(found), 1, found)
        self.assertIn(part, found[0])

    def test_good_traces(self):
        self.assertEqual(complaints(), [])
        self.assertEqual(check_trace.check(GOOD["traceEvents"]), [])

    def test_counts(self):
        self.assertEqual(check_trace.examine(GOOD)[1:], (11, 5))

    def test_not_json(self):
        for text in ("", "{", '{"traceEvents":[}', '{"traceEvents":[{"ph":"i","ts":NaN}]}', '{"a":1,"a":2}'):
            self.assertIn("not JSON", check_trace.examine_text(text)[0][0], text)

    def test_no_events(self):
        for document in (3, {}, {"traceEvents": {}}):
            self.assertEqual(check_trace.check(document), ["no array of traceEvents"])
        self.assertEqual(check_trace.check({"traceEvents": []}), ["no events"])

    def test_phase(self):
        self.rejected({"ph": "Q", "name": "x", "ts": 1, "pid": 1, "tid": 1}, "no phase")
        self.rejected({"name": "x", "ts": 1, "pid": 1, "tid": 1}, "no phase")
        self.rejected(3, "not an object")

    def test_fields(self):
        self.rejected({"ph": "X", "name": "x", "ts": 1, "pid": 1, "tid": 1}, "without dur")
        self.rejected({"ph": "i", "name": "x", "ts": 1}, "without pid")
        self.rejected({"ph": "i", "name": 3, "ts": 1, "pid": 1}, "name is not a string")
        self.rejected({"ph": "i", "name": "x", "ts": "1", "pid": 1}, "not a time")
        self.rejected({"ph": "i", "name": "x", "ts": -1, "pid": 1}, "not a time")
        self.rejected({"ph": "i", "name": "x", "ts": True, "pid": 1}, "not a time")
        self.rejected({"ph": "X", "name": "x", "ts": 1, "dur": -1, "pid": 1, "tid": 1}, "not a time")
        self.rejected({"ph": "i", "name": "x", "ts": 1, "pid": 2**32 - 1}, "31 bits")
        self.rejected({"ph": "i", "name": "x", "ts": 1, "pid": "1"}, "31 bits")
        self.rejected({"ph": "i", "name": "x", "ts": 1, "pid": 1, "args": 3}, "args is not an object")
        self.rejected({"ph": "i", "name": "x", "ts": 1, "pid": 1, "s": "q"}, "scope")
        self.rejected({"ph": "C", "name": "x", "ts": 1, "pid": 1, "args": {}}, "counter")
        self.rejected({"ph": "C", "name": "x", "ts": 1, "pid": 1, "args": {"a": "1"}}, "counter")

    def test_metadata(self):
        self.rejected({"ph": "M", "name": "colour", "pid": 1, "args": {"name": "x"}}, "no metadata")
        self.rejected({"ph": "M", "name": "process_name", "pid": 1, "args": {}}, "needs args.name")
        self.rejected({"ph": "M", "name": "thread_name", "pid": 1, "args": {"name": "x"}}, "without tid")

    def test_pairs(self):
        self.rejected({"ph": "E", "pid": 1, "tid": 9, "ts": 1}, "did not begin")
        self.rejected({"ph": "B", "name": "x", "pid": 1, "tid": 9, "ts": 1}, "never ends")
        self.rejected({"ph": "e", "name": "x", "cat": "m", "id": 8, "pid": 1, "ts": 1}, "did not begin")
        self.rejected({"ph": "b", "name": "x", "cat": "m", "id": 8, "pid": 1, "ts": 1}, "never ends")
        begin = {"ph": "B", "name": "x", "pid": 1, "tid": 9, "ts": 5}
        self.assertIn("is open", complaints([begin, {"ph": "E", "name": "y", "pid": 1, "tid": 9, "ts": 6}])[0])
        self.assertIn("before it begins", complaints([begin, {"ph": "E", "pid": 1, "tid": 9, "ts": 4}])[0])

    def test_overlap(self):
        self.rejected({"ph": "X", "name": "x", "pid": 1, "tid": 2, "ts": 9, "dur": 5}, "overlaps")
        other_track = {"ph": "X", "name": "x", "pid": 1, "tid": 8, "ts": 9, "dur": 5}
        self.assertEqual(complaints([other_track]), [])

    def test_display_unit(self):
        self.assertIn("neither", complaints(displayTimeUnit="s")[0])

    def test_command(self):
        script = ROOT / "scripts" / "check_trace.py"
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "t.json"
            path.write_text(json.dumps(GOOD))
            done = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("11 events on 5 tracks", done.stdout)
            path.write_text('{"traceEvents":[{"ph":"X"}]}')
            self.assertEqual(subprocess.run([sys.executable, script, path], capture_output=True).returncode, 1)
            gone = pathlib.Path(folder) / "gone"
            self.assertEqual(subprocess.run([sys.executable, script, gone], capture_output=True).returncode, 2)


if __name__ == "__main__":
    unittest.main()
