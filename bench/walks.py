#!/usr/bin/env python3
"""Instructions an operation, counted by callgrind on every node that takes part.

Time on a shared machine differs by tens of percent from run to run. The instructions that a node
executes for an operation hardly differ, so they can judge a change of a percent or two. They do not
tell the kernel's part, nor how long an instruction takes.

Each run starts its nodes anew under valgrind, each a process with one arbiter. One connection asks
node 1: it sends a pipeline in one write and waits for all replies. After a warm-up, windows of a
fixed number of operations are counted. A node's timers go on in real time, and valgrind stretches
the window; so idle windows are counted too, and their rate is taken off. A run's figure is the
median of its windows. Told are the median of the runs, and as their spread the largest less the
smallest, in percent of the median.

Nodes and client share one CPU and do not preempt each other, so that the order of events hardly
differs between runs.

Walks (--walk):
  get             GET of a key in memory, on the node that leads it (one node, one copy, no log)
  set             SET over such a key, with a value of the same length
  set-new         SET of a key that is not there; the table's growth is part of it
  set-replicated  SET over a key of three replicas, synced; node 1 leads, nodes 2 and 3 follow
  mset            MSET over two keys of three replicas, synced; node 1 leads the first key and
                  coordinates, node 2 leads the second, node 3 follows
  mset-memory     the same with one copy in memory; node 3 takes no part and has no row
  memory          bytes that a key takes in a table in memory; needs no valgrind
"""

import argparse
import binascii
import csv
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import peers
from peers import Failure, Fleet, Server, called, tail

KEYS = 10_000  # in the table beforehand; walks go through them over and over
VALUE = b"value:0123456789"
FILL_PIPELINE = 100
WARM_UP = 4_000  # operations
WINDOWS = 11  # a run
IDLE = 2.0  # seconds of an idle window
SLOTS = 16384
READY_WITHIN = 120.0  # seconds until nodes under valgrind must serve
ANSWER_WITHIN = 60.0
STEADY = 20  # equal answers in a row, PAUSE apart, are taken for the last word
PAUSE = 0.05


@dataclass(frozen=True)
class Walk:
    """An operation, the cluster it is asked of, and which nodes take part."""

    request: object  # makes the request with this number: bytes and the expected reply
    operations: dict  # in a window, by pipeline
    nodes: int = 1
    taking_part: int = 1
    partitions: int = 12
    kept: str = "replicas: 1, durability: none"


# ------------------------------------------------------------------------------------------ client


class Client:
    """A connection that sends what was encoded beforehand and compares the replies."""

    def __init__(self, port):
        self.stream = socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.stream.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.replies.close()
        self.stream.close()

    def ask(self, *words):
        self.stream.sendall(encoded(*words))
        return self.reply()

    def reply(self):
        line = self.replies.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"$":
            return self.replies.read(int(rest) + 2)[:-2]
        return int(rest) if kind == b":" else line

    def walk(self, batches):
        for requests, expected in batches:
            self.stream.sendall(requests)
            replies = b""
            while replies != expected:
                piece = self.replies.read1(len(expected) - len(replies))
                replies += piece
                if not piece or not expected.startswith(replies):
                    raise Failure(f"not what was expected: {replies[:100]!r}")


def encoded(*words):
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%b" % (len(words), b"".join(parts))


def key(number):
    return b"key:%012d" % number


def slot(name):
    return binascii.crc_hqx(name, 0) % SLOTS


def get(number, _pairs):
    return encoded(b"GET", key(number % KEYS)), b"$%d\r\n%b\r\n" % (len(VALUE), VALUE)


def put(number, _pairs):
    return encoded(b"SET", key(number % KEYS), VALUE), b"+OK\r\n"


def put_new(number, _pairs):
    return encoded(b"SET", key(KEYS + number), VALUE), b"+OK\r\n"


def put_two(number, pairs):
    first, second = pairs[number % len(pairs)]
    return encoded(b"MSET", first, VALUE, second, VALUE), b"+OK\r\n"


def batched(request, start, count, pipeline, pairs=()):
    """Requests from number `start` on, a pipeline in each batch, with the replies to them."""
    batches = []
    for first in range(start, start + count, pipeline):
        both = [request(number, pairs) for number in range(first, first + pipeline)]
        batches.append(tuple(b"".join(part) for part in zip(*both)))
    return batches


SYNCED = "replicas: 3, durability: sync"
WALKS = {
    "get": Walk(get, {1: 10_000, 16: 40_000}),
    "set": Walk(put, {1: 10_000, 16: 40_000}),
    "set-new": Walk(put_new, {1: 10_000, 16: 40_000}),
    "set-replicated": Walk(put, {1: 2_000, 16: 16_000}, 3, 3, 1, SYNCED),
    "mset": Walk(put_two, {1: 1_000, 16: 3_200}, 3, 3, 3, SYNCED),
    "mset-memory": Walk(put_two, {1: 2_000, 16: 8_000}, 3, 2, 3),
}
MEMORY = "memory"


# ------------------------------------------------------------------------------------------- nodes


class Node(Server):
    """A node, a process of its own; under callgrind, unless it is to be measured as it is."""

    def __init__(self, fleet, config, number, port, under_callgrind):
        super().__init__(f"node {number}", port)
        self.number = number
        self.pipes = fleet.folder / "vgdb"
        self.dumps = fleet.folder / f"callgrind-{number}"
        self.dumped = 0
        command = [fleet.options.binary, "--role", "node", "--id", str(number)]
        command += ["--config", str(config), "--arbiters", "1"]
        if under_callgrind:
            under = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.dumps}"]
            # Its threads take turns, rather than that the one that runs goes on.
            command = [*under, "--fair-sched=yes", f"--vgdb-prefix={self.pipes}", *command]
        self.log = fleet.start(self, command, f"node-{number}")

    def instructions(self):
        """Executed since this was last asked."""
        pid = self.processes[0].pid
        called(["vgdb", f"--vgdb-prefix={self.pipes}", f"--pid={pid}", "dump"], ANSWER_WITHIN)
        self.dumped += 1
        total = re.search(r"^totals: (\d+)$", self.last_dump().read_text(), re.MULTILINE)
        if not total:
            raise Failure(f"{self.name}: callgrind's dump has no total")
        return int(total[1])

    def last_dump(self):
        return Path(f"{self.dumps}.{self.dumped}")

    def is_ready(self):
        if self.processes[0].poll() is not None:
            raise Failure(f"{self.name} ended:\n{tail(self.log)}")
        try:
            with Client(self.port) as client:
                # One key in every partition, most likely.
                return all(client.ask(b"EXISTS", key(number)) == 0 for number in range(64))
        except OSError:
            return False


class Cluster(Fleet):
    """The nodes of a walk, which lead as it wants them to."""

    def __init__(self, options, walk, under_callgrind=True):
        super().__init__(options)
        self.walk = walk
        self.under_callgrind = under_callgrind

    def __enter__(self):
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self):
        base = self.free_base()
        numbers = range(1, self.walk.nodes + 1)
        config = self.folder / "cluster.yaml"
        lines = ["cluster: walks", "nodes:"]
        for node in numbers:
            ports = f"client: {base + node}, peer: {base + 100 + node}, http: {base + 200 + node}"
            lines.append(f"  - {{ id: {node}, host: 127.0.0.1, {ports} }}")
        lines += [f'data: "{self.folder}/data"', f"partitions: {self.walk.partitions}"]
        lines.append(f"defaults: {{ mode: strong, {self.walk.kept} }}")
        # Under valgrind everything takes long, and more so where the machine is busy. Yet no election
        # is to begin, no snapshot to be made, and no transaction to be refused.
        lines.append("replication:")
        lines.append("  { election_timeout: 60s, heartbeat: 2s, snapshot_after: 8GiB }")
        lines.append("limits: { lock_wait: 60s, failover_wait: 60s }")
        config.write_text("\n".join(lines) + "\n")
        self.nodes = [Node(self, config, number, base + number, self.under_callgrind)
                      for number in numbers]
        for node in self.nodes:
            wait_until(f"{node.name} is ready", node.is_ready, node.log)
        self.expected = {node.port for node in self.nodes[: self.walk.partitions]}
        wait_until("each node leads its share", lambda: set(self.leaders().values()) == self.expected,
                   self.nodes[0].log)
        self.led = self.leaders()

    def leaders(self):
        """The client port of the leader of each slot."""
        with Client(self.nodes[0].port) as client:
            shares = client.ask(b"CLUSTER", b"SLOTS")
        return {slot: leader[1] for first, last, leader, *_ in shares
                for slot in range(first, last + 1)}

    def pairs(self):
        """Keys that node 1 leads, each with one that node 2 leads."""
        led = [[name for name in map(key, range(KEYS)) if self.led[slot(name)] == node.port]
               for node in self.nodes[:2]]
        return list(zip(*led))

    def counted(self, action):
        """What each node that takes part executes meanwhile, and for how many seconds."""
        taking_part = self.nodes[: self.walk.taking_part]
        began, told = [], []
        for node in taking_part:
            node.instructions()
            began.append(time.monotonic())
        action()
        for node, beginning in zip(taking_part, began):
            count = node.instructions()
            told.append((count, time.monotonic() - beginning))
        return told


def wait_until(what, condition, log):
    patience = time.monotonic() + READY_WITHIN
    while not condition():
        if time.monotonic() > patience:
            raise Failure(f"not in time: {what}\n{tail(log)}")
        time.sleep(PAUSE)


# ------------------------------------------------------------------------------------ measurements


def run(options, name, walk):
    """One run of a walk: instructions an operation, by pipeline and node; "all" is their sum."""
    figures = {}
    with Cluster(options, walk) as cluster, Client(cluster.nodes[0].port) as client:
        client.walk(batched(put, 0, KEYS, FILL_PIPELINE))
        pairs = cluster.pairs() if walk.request is put_two else ()
        number = 0
        for pipeline, operations in walk.operations.items():
            client.walk(batched(walk.request, number, WARM_UP, pipeline, pairs))
            number += WARM_UP
            idle, windows = [idle_rates(cluster)], []
            for _ in range(WINDOWS):
                batches = batched(walk.request, number, operations, pipeline, pairs)
                number += operations
                windows.append(cluster.counted(lambda: client.walk(batches)))
            keep_dumps(options, cluster, f"{name}-p{pipeline}")
            idle.append(idle_rates(cluster))
            rates = [statistics.mean(both) for both in zip(*idle)]
            # By window, then by node.
            counts = [[(count - rate * seconds) / operations
                       for (count, seconds), rate in zip(window, rates)] for window in windows]
            for node, of_node in enumerate(zip(*counts), 1):
                figures[pipeline, node] = statistics.median(of_node)
            if walk.taking_part > 1:
                figures[pipeline, "all"] = statistics.median(map(sum, counts))
        if cluster.leaders() != cluster.led:
            raise Failure(f"{name}: another node leads than at first")
    return figures


def idle_rates(cluster):
    """Instructions a second of each node with nothing to do: idleness is what is measured."""
    return [count / seconds for count, seconds in cluster.counted(lambda: time.sleep(IDLE))]


def keep_dumps(options, cluster, name):
    if options.dumps:
        options.dumps.mkdir(parents=True, exist_ok=True)
        for node in cluster.nodes[: cluster.walk.taking_part]:
            shutil.copy(node.last_dump(), options.dumps / f"{name}-node{node.number}.callgrind")


def memory(options):
    """Bytes a key of 16 bytes with a value of 16: as the tables count, and resident."""
    with Cluster(options, Walk(put_new, {}), False) as cluster:
        node = cluster.nodes[0]
        with Client(node.port) as client:
            before = steady_memory(client), node.resident()
            client.walk(batched(put_new, 0, options.memory_keys, FILL_PIPELINE))
            after = steady_memory(client), node.resident()
    return {measure: (last - first) / options.memory_keys
            for measure, first, last in zip(["used", "resident"], before, after)}


def steady_memory(client):
    """`used_memory`, which a node takes some times a second, once it does not change any more."""
    answers = []
    while len(answers) < STEADY or len(set(answers[-STEADY:])) > 1:
        info = client.ask(b"INFO", b"memory")
        answers.append(int(re.search(rb"used_memory:(\d+)", info)[1]))
        time.sleep(PAUSE)
    return answers[-1]


def summed_up(runs):
    """The median of the runs, and their spread in percent of it."""
    median = statistics.median(runs)
    return median, (max(runs) - min(runs)) / median * 100


# ----------------------------------------------------------------------------------------- reports


def report_walk(options, name, walk, writer):
    runs = []
    for number in range(options.runs):
        began = time.monotonic()
        runs.append(run(options, name, walk))
        seconds = time.monotonic() - began
        last = [f"P={pipeline} {count:,.0f}" for (pipeline, node), count in runs[-1].items()
                if node == "all" or walk.taking_part == 1]
        tell(f"{name}: run {number + 1} of {options.runs} in {seconds:.0f} s: {', '.join(last)}")
    for pipeline, node in runs[0]:
        median, spread = summed_up([figures[pipeline, node] for figures in runs])
        operations = walk.operations[pipeline] * WINDOWS
        writer.writerow([name, pipeline, node, operations, f"{median:.0f}", f"{spread:.2f}"])


def report_memory(options, writer):
    runs = [memory(options) for _ in range(options.runs)]
    writer.writerow(["walk", "keys", "measure", "bytes_per_key", "spread"])
    for measure in runs[0]:
        median, spread = summed_up([figures[measure] for figures in runs])
        writer.writerow([MEMORY, options.memory_keys, measure, f"{median:.1f}", f"{spread:.2f}"])


def tell(text):
    print(text, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(prog="bench/walks.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--walk", action="append", choices=[*WALKS, MEMORY], help="repeatable; default all")
    add("--runs", type=int, default=3, help="of each walk (3)")
    add("--binary", help="what is measured, instead of a release build of this tree")
    add("--out", type=Path, help="where the CSV goes, instead of standard output")
    add("--dumps", type=Path, metavar="DIR",
        help="keep each node's last window here, for callgrind_annotate")
    add("--memory-keys", type=int, default=200_000, help="in walk memory (200000)")
    add("--base", type=int, default=27000, help="ports are looked for from here (27000)")
    add("--limit", type=int, default=3600, help="seconds after which it gives up (3600)")
    options = parser.parse_args()
    if options.runs < 1 or options.memory_keys < FILL_PIPELINE:
        parser.error("there must be a run, and a hundred keys to measure")
    # Replies to whole pipelines are waited for.
    options.memory_keys -= options.memory_keys % FILL_PIPELINE
    options.walk = options.walk or [*WALKS, MEMORY]
    return options


def built():
    """The release build of this tree."""
    if subprocess.run(["cargo", "build", "--release", "--locked"]).returncode:
        raise Failure("there is nothing to measure: the build failed")
    return Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/quorate"


def take_turns():
    """From now on this process, and those that it starts, share a CPU and do not preempt."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        os.nice(-10)
    except PermissionError:
        pass  # what else runs here slows them down then, and timers have a larger part in a window


def measure(options):
    if set(options.walk) != {MEMORY}:
        for needed in ("valgrind", "vgdb"):
            if shutil.which(needed) is None:
                raise Failure(f"there is no {needed}, which counts the instructions: install "
                              f"valgrind, or measure --walk {MEMORY} alone")
    # Servers run in a folder of their own.
    options.binary = str(Path(options.binary or built()).resolve())
    if not os.access(options.binary, os.X_OK):
        raise Failure(f"{options.binary} cannot be executed")
    take_turns()
    target = options.out or sys.stdout.fileno()
    with open(target, "w", newline="", closefd=options.out is not None) as out:
        writer = csv.writer(out, lineterminator="\n")
        walks = [name for name in WALKS if name in options.walk]
        if walks:
            writer.writerow(["walk", "pipeline", "node", "operations", "instructions_per_op",
                             "spread"])
        for name in walks:
            report_walk(options, name, WALKS[name], writer)
            out.flush()
        if MEMORY in options.walk:
            if walks:
                out.write("\n")  # a table of its own
            report_memory(options, writer)


def main():
    options = arguments()

    def give_up(number, _frame):
        # Raised, not returned: on the way out the cluster stops what it started, undisturbed.
        for number_to_come in peers.SIGNALS:
            signal.signal(number_to_come, signal.SIG_IGN)
        raise Failure(f"over the limit of {options.limit} s" if number == signal.SIGALRM
                      else "told to stop")

    for number in peers.SIGNALS:
        signal.signal(number, give_up)
    signal.alarm(options.limit)
    try:
        measure(options)
    except (Failure, OSError) as failure:
        tell(f"error: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
