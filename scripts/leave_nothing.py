#!/usr/bin/env python3
"""Runs a command and fails if it leaves a process or a temporary file behind; ends and removes what it left.

usage: leave_nothing.py [--grace SECONDS] COMMAND [ARGUMENTS]

Every process of the command is known by a variable in its environment, so that other people's are never looked at.
Exit status: the command's own; 70 if that was 0 and something was left.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid

MARK = "FERRY_TEST_RUN"


def processes_with(mark):
    """Process numbers and command lines of the living processes that carry the mark."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if mark not in file.read():
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                found[int(entry)] = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--grace", type=float, default=10, metavar="SECONDS",
                         help="a private manager or a device may still be on its way out when its program has ended")
    options.add_argument("command", nargs=argparse.REMAINDER)
    given = options.parse_args()
    if not given.command:
        options.error("no command")
    value = uuid.uuid4().hex
    mark = f"{MARK}={value}".encode()
    # Short, because socket paths are limited to 107 bytes.
    scratch = tempfile.mkdtemp(prefix="ft.", dir="/tmp")
    environment = dict(os.environ, **{MARK: value, "TMPDIR": scratch, "TEST_TMPDIR": scratch})
    try:
        status = subprocess.call(given.command, env=environment)
    except KeyboardInterrupt:
        status = 130

    deadline = time.monotonic() + given.grace
    # A process that is just starting another program shows no environment for a moment: nothing is believed once only.
    missed = 0
    while True:
        left = processes_with(mark)
        missed = 0 if left else missed + 1
        if missed == 3 or (left and time.monotonic() >= deadline):
            break
        time.sleep(0.05)
    for pid, command in left.items():
        print(f"left running: process {pid}: {command}", file=sys.stderr)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    files = [os.path.join(where, name) for where, folders, names in os.walk(scratch) for name in folders + names]
    for file in files:
        print(f"left behind: {file}", file=sys.stderr)
    shutil.rmtree(scratch, ignore_errors=True)
    if (left or files) and status == 0:
        status = 70
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
