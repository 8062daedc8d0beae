"""Uses a little of everything that allocates. Deterministic output."""
import asyncio
import bz2
import collections
import concurrent.futures
import ctypes
import decimal
import hashlib
import json
import lzma
import multiprocessing
import os
import pickle
import random
import re
import sqlite3
import subprocess
import threading
import xml.etree.ElementTree
import zlib


def squares(n):
    return sum(i * i for i in range(n))


def main():
    random.seed(1)
    data = {str(i): [random.random() for _ in range(10)] for i in range(5000)}
    text = json.dumps(data)
    assert json.loads(text) == data
    print(hashlib.md5(text.encode()).hexdigest(), len(pickle.dumps(data)))
    print(zlib.crc32(bz2.compress(text.encode())), len(lzma.compress(text.encode()[:200000])))
    print(sum(len(m) for m in re.findall(r"\d+\.\d*7", text)), decimal.Decimal(2).sqrt())

    done = []

    def allocate(n):
        done.append(sum(len(bytes(1 + (i * n * 7919) % 50000)) for i in range(300)))

    for _ in range(10):
        threads = [threading.Thread(target=allocate, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(sorted(done)[-1], len(done))

    print(subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout, os.popen("echo popen").read())
    child = os.fork()
    if child == 0:
        os._exit(len([str(i) for i in range(100000)]) % 256)
    print(os.waitpid(child, 0)[1] >> 8)
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(squares, [1000, 2000, 3000]))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        print(list(pool.map(squares, range(0, 5000, 500))))

    grown = bytearray()
    for _ in range(3000):
        grown += b"x" * 5000
    print(len(grown), zlib.crc32(grown))

    async def gather():
        return sum(await asyncio.gather(*[asyncio.sleep(0, i) for i in range(1000)]))

    print(asyncio.run(gather()))
    base = sqlite3.connect(":memory:")
    base.execute("create table t (a, b)")
    base.executemany("insert into t values (?, ?)", ((i, str(i) * 20) for i in range(20000)))
    print(base.execute("select count(*), sum(a), max(b) from t").fetchall())
    tree = xml.etree.ElementTree.fromstring("<a>" + "<b c='1'>x</b>" * 10000 + "</a>")
    print(len(tree), collections.Counter(e.text for e in tree))
    print(ctypes.CDLL(None).strlen(b"ctypes"))


if __name__ == "__main__":
    main()
