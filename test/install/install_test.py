"""Installs the build into an empty folder, moves that folder, and builds and runs an outside program against it: once
through find_package(ferry), once through pkg-config. Every public header has to compile alone.

usage: install_test.py BUILD_FOLDER
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONSUMER = Path(__file__).resolve().parent / "consumer"
SOURCES = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 300


def run(*command, **options):
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], timeout=LIMIT_S, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"exit status {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def expect(condition, message):
    if not condition:
        sys.exit(message)


def check_program(program, environment):
    expect("sum of squares on the device: 333328333350000" in run(program, env=environment),
           f"{program} did not say what it should")


def check_progress(program, environment):
    expect("deadlock: fence 2 waits for fence 1; fence 1 waits for fence 2" in run(program, env=environment),
           f"{program} did not say what it should")
    needed = run("readelf", "-d", program)
    expect("libferry_progress.so" in needed and "libferry.so" not in needed, f"{program} needs another library")


def documented_program(page):
    """The first whole program of a page, as a reader would copy it."""
    for block in re.findall(r"^```cpp\n(.*?)^```", (SOURCES / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if "int main(" in block:
            return block
    sys.exit(f"{page} has no program")


def main():
    build = Path(sys.argv[1]).resolve()
    # Nothing of the build tree or of this process may help the installed tree along.
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("LD_LIBRARY_PATH", "CMAKE_PREFIX_PATH", "PKG_CONFIG_PATH", "CPATH", "LIBRARY_PATH")}
    with tempfile.TemporaryDirectory(prefix="ferry-install-") as scratch:
        scratch = Path(scratch)
        run("cmake", "--install", build, "--prefix", scratch / "first")
        prefix = scratch / "moved"
        shutil.move(scratch / "first", prefix)

        for program in ("ferry", "ferryd"):
            run(prefix / "bin" / program, "--help", env=environment)

        for header in sorted((prefix / "include/ferry").iterdir()):
            compilers = [("g++", "-std=c++20", "-x", "c++")]
            if header.suffix == ".h":
                compilers += [("gcc", "-std=c11", "-x", "c"), ("g++", "-std=c++17", "-x", "c++")]
            for compiler in compilers:
                run(*compiler, "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", prefix / "include",
                    "-include", header, "/dev/null", env=environment)

        tree = scratch / "with-cmake"
        run("cmake", "-S", CONSUMER, "-B", tree, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", env=environment)
        run("cmake", "--build", tree, env=environment)
        check_program(tree / "consumer", environment)
        check_program(tree / "consumer_c", environment)
        check_progress(tree / "progress", environment)

        asks = dict(environment, PKG_CONFIG_PATH=str(next(prefix.glob("lib*/**/pkgconfig"))))
        flags = run("pkg-config", "--cflags", "--libs", "ferry", env=asks).split()
        library = run("pkg-config", "--variable=libdir", "ferry", env=asks).strip()
        run("g++", "-std=c++20", CONSUMER / "main.cpp", "-o", scratch / "consumer", *flags, f"-Wl,-rpath,{library}",
            env=environment)
        check_program(scratch / "consumer", environment)
        for page, says in (("README.md", "1 1000"), ("docs/API.md", "")):
            (scratch / "program.cpp").write_text(documented_program(page), encoding="utf-8")
            run("g++", "-std=c++20", "-O2", scratch / "program.cpp", "-o", scratch / "program", *flags, f"-Wl,-rpath,{library}",
                env=environment)
            expect(says in run(scratch / "program", env=environment), f"the program of {page} did not say {says}")
        flags = run("pkg-config", "--cflags", "--libs", "ferry_progress", env=asks).split()
        run("g++", "-std=c++20", CONSUMER / "progress.cpp", "-o", scratch / "progress", *flags,
            f"-Wl,-rpath,{library}", env=environment)
        check_progress(scratch / "progress", environment)


if __name__ == "__main__":
    main()
