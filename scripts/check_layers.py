#!/usr/bin/env python3
"""Which layer may include which (docs/ARCHITECTURE.md), and that base and core know no system, thread or clock."""

import re

import source_tree

# From the bottom up. A layer sees itself and those before it, unless SEES says less.
ORDER = ("ferry", "base", "graph", "progress", "core", "wire", "linux", "sim", "check", "device", "client", "manager", "cli")
SEES = {
    "ferry": {"ferry"},
    "base": {"base"},
    "graph": {"graph", "base"},
    "progress": {"progress", "graph", "base", "ferry"},
    "core": {"core", "graph", "base"},
    "wire": {"wire", "base"},
    "sim": {"sim", "wire", "core", "graph", "base", "ferry"},
    "check": {"check", "core", "graph", "base", "ferry"},
}
# The simulator stands in for the layers that make system calls; of the product only the command line may start it.
SIM_IS_SEEN_BY = {"sim", "cli"}

# What base and core may include of the standard library: nothing that reaches the system, another thread or a clock,
# and nothing whose results differ between implementations (<random>).
PURE_HEADERS = set(
    """algorithm array bit bitset cassert charconv cinttypes climits cmath compare concepts cstdarg cstddef cstdint cstdio
    cstdlib cstring deque functional initializer_list iterator limits list map memory memory_resource new numeric numbers
    optional queue ranges set source_location span stack string string_view tuple type_traits typeinfo unordered_map
    unordered_set utility variant vector version""".split()
)
IMPURE_CALL = re.compile(
    r"""(?<![\w.>:])(?:::)?(?:mmap|munmap|mremap|madvise|mprotect|memfd_create|ioctl|syscall|fork|vfork|execv\w*|posix_spawn\w*
        |usleep|nanosleep|clock_nanosleep|clock_gettime|gettimeofday|getenv|getpid|gettid|sigaction|raise|rand|srand|random
        |pthread_\w+|epoll_\w+|eventfd|futex|fopen|system)\s*\(
      |(?<!\w)::(?:read|write|open|close|poll|kill|signal|sleep|time|clock|send|recv|pipe|dup)\s*\(
      |\bstd::(?:this_thread|thread|jthread|mutex|chrono|atomic\w*|random_device|mt19937\w*|getenv|system|time|clock|rand)\b
      |\b(?:__rdtsc|__builtin_ia32_\w+|asm|__asm__)\b""",
    re.VERBOSE,
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(<([^>]+)>|"([^"]+)")', re.MULTILINE)


def seen_by(layer):
    sees = set(SEES.get(layer, ORDER[: ORDER.index(layer) + 1]))
    if layer not in SIM_IS_SEEN_BY:
        sees.discard("sim")
    return sees


def layer_of(path):
    parts = path.parts
    if parts[0] == "include":
        return "ferry"
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    return None


def check(root):
    complaints = []
    for path in source_tree.code(root):
        source = source_tree.text(root, path)
        layer = layer_of(path)
        example = path.parts[0] == "examples"
        if path.parts[0] == "src" and layer not in ORDER[1:]:
            complaints.append(f"{path}: src/ has no layer of this name")
            continue

        def complain(position, what):
            complaints.append(f"{path}:{source.count(chr(10), 0, position) + 1}: {what}")

        for match in INCLUDE.finditer(source):
            at = match.start(1)
            angled, quoted = match.group(2), match.group(3)
            target = (angled or quoted).split("/")[0] if "/" in (angled or quoted) else None
            if angled and target in ORDER[1:] and target != "linux":
                complain(at, f"<{angled}> is Ferry's own: write it in quotes")
            if target == "ferry" and quoted:
                complain(at, f'"{quoted}" is public: write it in angle brackets')
            names_layer = target == "ferry" if angled else target in ORDER
            if layer:
                if quoted and not names_layer:
                    complain(at, f'"{quoted}": written from the root of src, as in "core/core.h"')
                elif quoted and not (root / "src" / quoted).is_file() and target != "ferry":
                    complain(at, f'"{quoted}" does not exist below src')
                elif names_layer and target not in seen_by(layer):
                    complain(at, f"{layer} may not include {target} ({angled or quoted})")
                elif angled and not names_layer and layer in ("base", "core") and angled not in PURE_HEADERS:
                    complain(at, f"{layer} may not include <{angled}>: no system, thread or clock here")
            elif example and quoted and names_layer:
                complain(at, f'"{quoted}": an example uses the public interface alone')

        if layer in ("base", "core"):
            bare = source_tree.without_comments_and_strings(source)
            for match in IMPURE_CALL.finditer(bare):
                line = bare.count("\n", 0, match.start()) + 1
                complaints.append(f"{path}:{line}: {layer} may not use {match.group(0).strip()}: no system, thread or clock here")
    return complaints


if __name__ == "__main__":
    source_tree.main(check)
