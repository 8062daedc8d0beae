"""redis-server with Ferry's malloc: the same data, the same dumps, under load and repeated BGSAVE, as without.

  redis_test.py BUILD_DIRECTORY

Three servers, each on a unix socket of its own: as it is; under `ferry run --malloc`; and with all of its heap managed
memory from the start, where every BGSAVE is a fork that Ferry has to get right. Every dump is loaded by a server
without Ferry. FERRY_REDIS_ROUNDS (3): BGSAVEs under load. Exit status 77: there is no redis here.
"""
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

PATIENCE = 60  # seconds; a bound, far above what anything here takes
KEYS = 20_000


def wait(condition, what):
    for _ in range(PATIENCE * 100):
        if condition():
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"still waiting for {what} after {PATIENCE} s")


class Server:
    def __init__(self, name, folder, before=(), environment=None):
        self.name = name
        self.folder = os.path.join(folder, name)
        os.makedirs(self.folder, exist_ok=True)
        self.path = os.path.join(self.folder, "socket")
        self.log = open(os.path.join(self.folder, "log"), "ab")
        command = [*before, "redis-server", "--port", "0", "--unixsocket", self.path, "--dir", self.folder, "--save", "",
                   "--appendonly", "no", "--enable-debug-command", "yes", "--dbfilename", "dump.rdb"]
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=self.log,
                                        stderr=self.log, stdin=subprocess.DEVNULL)
        self.socket = None
        try:
            wait(self.connect, f"{name} to answer")
        except BaseException:
            self.process.kill()
            raise

    def connect(self):
        assert self.process.poll() is None, f"{self.name} ended: {self.said()}"
        try:
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(PATIENCE)
            s.connect(self.path)
            self.socket = s
            self.file = s.makefile("rb")
            return self.ask("PING") == b"PONG"
        except (OSError, AssertionError):
            return False

    def send(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def answer(self):
        line = self.file.readline()
        assert line, f"{self.name} closed the connection: {self.said()}"
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            if rest == b"-1":
                return None
            return self.file.read(int(rest) + 2)[:-2]
        assert kind != b"-", (self.name, rest)
        return rest

    def ask(self, *words):
        self.send(*words)
        return self.answer()

    def info(self, field):
        for line in self.ask("INFO", "persistence").split(b"\r\n"):
            if line.startswith(field + b":"):
                return line.split(b":")[1]
        raise AssertionError(field)

    def save(self):
        self.ask("BGSAVE")
        wait(lambda: self.info(b"rdb_bgsave_in_progress") == b"0", f"BGSAVE of {self.name}")
        assert self.info(b"rdb_last_bgsave_status") == b"ok", f"BGSAVE of {self.name} failed: {self.said()}"
        return os.path.join(self.folder, "dump.rdb")

    def digest(self):
        return self.ask("DEBUG", "DIGEST")

    def said(self):
        self.log.flush()
        with open(self.log.name, "rb") as log:
            return log.read().decode(errors="replace")[-3000:]

    def stop(self):
        if self.process.poll() is None:
            self.send("SHUTDOWN", "NOSAVE")
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
                raise
        self.log.close()


def fill(server):
    """The same data each time."""
    count = 0
    for i in range(KEYS):
        server.send("SET", f"string:{i}", f"{i}:" * (i % 200 + 1))
        count += 1
        if i % 10 == 0:
            server.send("HSET", f"hash:{i % 500}", f"field:{i}", i * 31)
            server.send("RPUSH", f"list:{i % 70}", "x" * (i % 1000))
            server.send("SADD", f"set:{i % 90}", i, f"member:{i}")
            server.send("ZADD", f"sorted:{i % 50}", i % 977, f"member:{i}")
            count += 4
        if count > 500:
            while count:
                server.answer()
                count -= 1
    while count:
        server.answer()
        count -= 1


def loaded(folder, dump, number):
    """The digest that a server without Ferry has of the dump."""
    name = f"loads{number}"
    os.makedirs(os.path.join(folder, name))
    shutil.copy(dump, os.path.join(folder, name, "dump.rdb"))
    server = Server(name, folder)
    try:
        wait(lambda: server.info(b"loading") == b"0", "the dump to be loaded")
        return server.digest(), int(server.ask("DBSIZE"))
    finally:
        server.stop()


def run(server, folder, rounds, number):
    try:
        fill(server)
        digests = [server.digest()]
        dump = server.save()
        digest, _ = loaded(folder, dump, f"{number}a")
        assert digest == digests[0], f"{server.name}: a dump of memory at rest differs from the memory"
        load = subprocess.Popen(["redis-benchmark", "-s", server.path, "-q", "-n", "100000000", "-r", "5000", "-c", "8",
                                 "-d", "300", "-t", "set,incr,lpush,rpush,lpop,sadd,hset"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for round_number in range(rounds):
                dump = server.save()
                _, keys = loaded(folder, dump, f"{number}b{round_number}")
                assert keys >= KEYS, f"{server.name}: only {keys} keys in a dump under load"
        finally:
            load.kill()
            load.wait()
        server.ask("FLUSHALL")
        fill(server)
        digests.append(server.digest())
        digest, _ = loaded(folder, server.save(), f"{number}c")
        assert digest == digests[1], f"{server.name}: the last dump differs from the memory"
        return digests
    finally:
        server.stop()


def main():
    if shutil.which("redis-server") is None or shutil.which("redis-benchmark") is None:
        print("SKIPPED: redis-server and redis-benchmark are not installed (Debian: redis-server, redis-tools)")
        return 77
    build = os.path.abspath(sys.argv[1])
    rounds = int(os.environ.get("FERRY_REDIS_ROUNDS", "3"))
    malloc = os.path.join(build, "lib", "libferry_malloc.so")
    opener = os.path.join(build, "lib", "libe2e_opens_session.so")
    private = {"FERRY_SOCKET": "", "FERRY_VRAM": "64M"}
    with tempfile.TemporaryDirectory(prefix="ferry-redis-") as folder:
        plain = run(Server("plain", folder), folder, 1, "p")
        for name, before, environment in (
                ("run", [os.path.join(build, "bin", "ferry"), "run", "--malloc", "--"], {}),
                ("managed", [], {**private, "LD_PRELOAD": f"{malloc}:{opener}"})):
            digests = run(Server(name, folder, before, environment), folder, rounds, name)
            assert digests == plain, f"{name}: other data than without Ferry"
            print(f"{name}: as without Ferry, {rounds + 2} dumps load")
    return 0


if __name__ == "__main__":
    sys.exit(main())
