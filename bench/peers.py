#!/usr/bin/env python3
"""Quorate beside its peers: ratios from interleaved runs, with their spread.

On a shared machine a figure of one run says little, and even the figures of two programs taken a
minute apart do not compare. So the two sides run in turn, A B A B, each round gives one ratio, and
what is reported is the median of the ratios with their smallest and largest. Server CPU per
operation is read from the scheduler's account of each thread, which other load on the machine
disturbs least: where throughput and CPU disagree, believe the CPU.

Sections (--only):
  redis   one node with one arbiter beside redis-server without persistence:
          throughput, p50, p99, server CPU per operation, memory per key
  remote  three processes and all keys, one node asked, beside one node that holds everything
  mset    MSET of three keys over three processes beside single SETs over the same processes
"""

import argparse
import csv
import io
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

READY_WITHIN = 30.0  # seconds until a server that was started must answer
STOP_WITHIN = 5.0  # seconds until a server that was asked to stop is killed
GRACE = 60.0  # seconds a generator may take beyond the time it was told to run
NODES = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
SECTIONS = ["redis", "remote", "mset"]

# What we aim at, by (section, metric, pipeline); "most" is a ceiling, "least" a floor.
GOALS = {
    ("redis", "throughput", 1): ("least", 1.05),
    ("redis", "throughput", 16): ("least", 1.8),
    ("redis", "throughput", 64): ("least", 3.5),
    ("redis", "server CPU", 1): ("most", 0.85),
    ("redis", "server CPU", 16): ("most", 0.40),
    ("redis", "server CPU", 64): ("most", 0.25),
    ("redis", "p99", 1): ("most", 1.0),
    ("redis", "p99", 16): ("most", 1.0),
    ("redis", "p99", 64): ("most", 1.0),
    ("redis", "memory a key", None): ("most", 0.75),
    ("remote", "throughput", 16): ("least", 0.35),
    ("mset", "throughput", 1): ("least", 0.25),
}

# redis-benchmark counts requests, not seconds; about two seconds of redis-server each.
REDIS_BENCHMARK_REQUESTS = {1: 200_000, 16: 1_200_000, 64: 2_000_000}


class Failure(Exception):
    """Something that the reader of the message can act on."""


# ---------------------------------------------------------------------------------------- servers


@dataclass
class Server:
    """One or more processes that serve the same keys, asked at one port."""

    name: str
    port: int
    processes: list = field(default_factory=list)

    def cpu(self):
        """Nanoseconds on a CPU, over all threads of all processes."""
        total = 0
        for process in self.processes:
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                try:
                    total += int((task / "schedstat").read_text().split()[0])
                except FileNotFoundError:
                    pass  # a thread that ended between the listing and the reading
        return total

    def resident(self):
        """Bytes of memory in RAM, over all processes."""
        total = 0
        for process in self.processes:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total


class Fleet:
    """Starts servers in a temporary folder and ends them, whatever happens in between."""

    def __init__(self, options):
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="quorate-bench-"))
        self.processes = []
        self.next_base = options.base

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        patience = time.monotonic() + STOP_WITHIN
        for process in self.processes:
            try:
                process.wait(max(0.1, patience - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def free_base(self):
        """A base whose client, peer and HTTP ports are free, as --role local counts them."""
        offsets = [span + node for span in (0, 100, 200) for node in range(1, NODES + 1)]
        while self.next_base + max(offsets) < 65536:
            base = self.next_base
            self.next_base += 10
            if all(is_free(base + offset) for offset in offsets):
                return base
        raise Failure("no free ports: choose others with --base")

    def start(self, server, command, label):
        log = self.folder / f"{label}.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder
            )
        self.processes.append(process)
        server.processes.append(process)
        return log

    def redis(self, name="redis"):
        server = Server(name, self.free_base() + 1)
        command = ["redis-server", "--port", str(server.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no"]
        log = self.start(server, command, f"{name}-{server.port}")
        wait_ready(server, server.port, log)
        return server

    def quorate(self):
        """One node with one arbiter, which keeps nothing on disk: no more does the peer."""
        base = self.free_base()
        server = Server("quorate", base + 1)
        command = [self.options.quorate, "--role", "local", "--nodes", "1", "--port", str(base)]
        command += ["--replicas", "1", "--durability", "none"]
        log = self.start(server, [*command, "--arbiters", "1"], f"quorate-{base}")
        wait_ready(server, server.port, log)
        return server

    def cluster(self):
        """Three processes; the first is the one that is asked."""
        base = self.free_base()
        config = self.folder / f"cluster-{base}.yaml"
        lines = ["cluster: bench", "nodes:"]
        for node in range(1, NODES + 1):
            ports = f"client: {base + node}, peer: {base + 100 + node}, http: {base + 200 + node}"
            lines.append(f"  - {{ id: {node}, host: 127.0.0.1, {ports} }}")
        lines.append("defaults: { mode: strong, replicas: 1, durability: none }")
        lines.append(f'data: "{self.folder / f"data-{base}"}"')
        config.write_text("\n".join(lines) + "\n")
        server = Server("three processes", base + 1)
        logs = []
        for node in range(1, NODES + 1):
            command = [self.options.quorate, "--role", "node", "--id", str(node)]
            command += ["--config", str(config), "--arbiters", "1"]
            logs.append(self.start(server, command, f"node-{base}-{node}"))
        for node, log in enumerate(logs, 1):
            wait_ready(server, base + node, log)
        return server


# A peer to come is a line here and a method above.
PEERS = {"redis": Fleet.redis}


def is_free(port):
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_ready(server, port, log):
    """Asks about a key until the answer is not an error: so any peer can be waited for."""
    patience = time.monotonic() + READY_WITHIN
    answer = "nothing"
    while time.monotonic() < patience:
        for process in server.processes:
            if process.poll() is not None:
                raise Failure(f"{server.name} did not start:\n{tail(log)}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as client:
                client.sendall(b"*2\r\n$6\r\nEXISTS\r\n$16\r\nkey:000000000000\r\n")
                answer = client.recv(256).decode(errors="replace").strip()
                if answer.startswith(":"):
                    return
        except OSError:
            pass
        time.sleep(0.02)  # between two questions; readiness is the answer, not the wait
    raise Failure(f"{server.name} is not ready after {READY_WITHIN:.0f} s: {answer}\n{tail(log)}")


def tail(log):
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


# ------------------------------------------------------------------------------------ measurements


@dataclass
class Run:
    """One generator run against one server."""

    throughput: float  # operations a second
    p50: float  # microseconds
    p99: float
    cpu: float  # server nanoseconds an operation
    generator_busy: float  # share of one core that the generator used


# The metrics of a run: attribute and unit.
METRICS = {
    "throughput": ("throughput", "op/s"),
    "p50": ("p50", "us"),
    "p99": ("p99", "us"),
    "server CPU": ("cpu", "ns/op"),
}


def generate(options, server, test, pipeline, extra=()):
    """Runs our generator and returns its summary."""
    command = [options.quorate, "--role", "bench", "--json", "--port", str(server.port)]
    command += ["--mix", test, "--pipeline", str(pipeline), "--keys", str(options.keys)]
    command += ["--clients", str(options.clients), "--value-size", str(options.value_size)]
    output = called([*command, *extra], options.seconds + GRACE)
    summary = json.loads(output)
    if summary["errors"]:
        raise Failure(f"{server.name} answered {test} with {summary['first_error']}")
    return summary


def called(command, timeout):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failure(f"no result within {timeout:.0f} s: {' '.join(command)}") from None
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def measure(options, server, test, pipeline, seed):
    generator = resource.getrusage(resource.RUSAGE_CHILDREN)
    server_before, began = server.cpu(), time.monotonic()
    if options.generator == "redis-benchmark":
        operations, throughput, p50, p99 = redis_benchmark(options, server, test, pipeline)
    else:
        extra = ["--duration", f"{int(options.seconds * 1000)}ms", "--seed", str(seed)]
        summary = generate(options, server, test, pipeline, extra)
        operations, throughput = summary["ops"], summary["ops_per_second"]
        p50, p99 = summary["p50_us"], summary["p99_us"]
    elapsed, server_after = time.monotonic() - began, server.cpu()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - generator.ru_utime - generator.ru_stime
    cpu = (server_after - server_before) / operations
    return Run(throughput, p50, p99, cpu, busy / elapsed)


def redis_benchmark(options, server, test, pipeline):
    requests = REDIS_BENCHMARK_REQUESTS.get(pipeline, 500_000)
    command = ["redis-benchmark", "-p", str(server.port), "-t", test, "-n", str(requests)]
    command += ["-r", str(options.keys), "-c", str(options.clients), "-P", str(pipeline)]
    output = called([*command, "-d", str(options.value_size), "--csv"], options.seconds + GRACE)
    for row in csv.DictReader(io.StringIO(output)):
        if row["test"].lower().startswith(test):
            p50, p99 = float(row["p50_latency_ms"]), float(row["p99_latency_ms"])
            return requests, float(row["rps"]), p50 * 1000, p99 * 1000
    raise Failure(f"redis-benchmark reports no {test}")


def fill(options, server):
    """Writes every key and returns the memory that each one took."""
    before = server.resident()
    generate(options, server, "get", 64, ["--prefill", "--requests", "1"])
    return (server.resident() - before) / options.keys


# ----------------------------------------------------------------------------------------- reports


class Report:
    """Prints ratios as they come and keeps them for the CSV."""

    COLUMNS = ["section", "test", "pipeline", "metric", "ratio", "min", "max", "goal"]
    COLUMNS += ["ours", "theirs", "unit"]

    def __init__(self, goals):
        self.goals = goals
        self.rows = []
        self.missed = []

    def section(self, title):
        print(f"\n{title}")
        print(f"  {'test':<9}{'P':>3}  {'metric':<13}{'ratio':>6}  {'min-max':<13}{'goal':<10}"
              f"{'(medians: ours, theirs)'}")

    def add(self, section, test, pipeline, metric, ours, theirs, unit):
        ratios = [mine / max(other, 1e-9) for mine, other in zip(ours, theirs)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        goal = self.goals.get((section, metric, pipeline))
        verdict, wanted = "", ""
        if goal:
            bound, value = goal
            wanted = f"{'>=' if bound == 'least' else '<='} {value:.2f}"
            reached = ratio >= value if bound == "least" else ratio <= value
            verdict = "" if reached else "  MISSED"
            if not reached:
                case = f"{test} P={pipeline} " if test else ""
                self.missed.append(f"{section} {case}{metric} {ratio:.2f}, goal {wanted}")
        ours, theirs = statistics.median(ours), statistics.median(theirs)
        shown = "" if pipeline is None else pipeline
        print(f"  {test:<9}{shown:>3}  {metric:<13}{ratio:>6.2f}  {f'{low:.2f}-{high:.2f}':<13}"
              f"{wanted:<10}{ours:,.0f} {theirs:,.0f} {unit}{verdict}", flush=True)
        row = [section, test, shown, metric, f"{ratio:.3f}", f"{low:.3f}", f"{high:.3f}"]
        self.rows.append([*row, wanted, f"{ours:.1f}", f"{theirs:.1f}", unit])

    def add_runs(self, section, test, pipeline, ours, theirs):
        for metric, (attribute, unit) in METRICS.items():
            mine = [getattr(run, attribute) for run in ours]
            other = [getattr(run, attribute) for run in theirs]
            self.add(section, test, pipeline, metric, mine, other, unit)
        busiest = max(statistics.median(run.generator_busy for run in side)
                      for side in (ours, theirs))
        if busiest > 0.9:
            print(f"            the generator used {busiest:.0%} of a core: "
                  "it bounds the throughput, so look at the CPU")

    def write(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(self.COLUMNS)
            writer.writerows(self.rows)


def in_turn(options, ours, theirs):
    """Runs two measurements A B A B; the first round warms up and is dropped."""
    rounds = [(ours(seed), theirs(seed)) for seed in range(options.rounds + 1)]
    return [mine for mine, _ in rounds[1:]], [other for _, other in rounds[1:]]


def beside_peer(options, report, peer):
    start_peer = PEERS[peer]
    with Fleet(options) as fleet:
        if options.calibrate:
            ours, theirs = start_peer(fleet, f"{peer}-a"), start_peer(fleet, f"{peer}-b")
        else:
            ours, theirs = fleet.quorate(), start_peer(fleet)
        report.section(f"{ours.name} / {theirs.name}, {options.clients} connections, "
                       f"{options.keys:,} keys of 16 B, values of {options.value_size} B")
        memory = [[fill(options, server)] for server in (ours, theirs)]
        report.add(peer, "", None, "memory a key", *memory, "B")
        for pipeline in options.pipelines:
            for test in options.tests:
                runs = in_turn(
                    options,
                    lambda seed: measure(options, ours, test, pipeline, seed),
                    lambda seed: measure(options, theirs, test, pipeline, seed),
                )
                report.add_runs(peer, test, pipeline, *runs)


def remote(options, report):
    with Fleet(options) as fleet:
        cluster, alone = fleet.cluster(), fleet.quorate()
        report.section("one of three processes asked for all keys / one node that holds them all")
        for server in (cluster, alone):
            fill(options, server)
        for test in options.tests:
            runs = in_turn(
                options,
                lambda seed: measure(options, cluster, test, 16, seed),
                lambda seed: measure(options, alone, test, 16, seed),
            )
            report.add_runs("remote", test, 16, *runs)


def mset(options, report):
    # The SETs go to one node for all keys, so a third of them is not forwarded: that favours the
    # SETs, and the ratio is the stricter for it.
    with Fleet(options) as fleet:
        cluster = fleet.cluster()
        report.section("MSET of 3 keys over three processes / single SETs over the same")
        fill(options, cluster)
        runs = in_turn(
            options,
            lambda seed: measure(options, cluster, "multiput", 1, seed),
            lambda seed: measure(options, cluster, "set", 1, seed),
        )
        report.add_runs("mset", "multiput", 1, *runs)


# -------------------------------------------------------------------------------------------- main


def numbers(text):
    return [int(part) for part in text.split(",")]


def names(known):
    def parse(text):
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no '{name}'; there are {', '.join(known)}")
        return chosen

    return parse


def arguments():
    parser = argparse.ArgumentParser(
        prog="bench/peers.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", type=names(SECTIONS), metavar="SECTION,..", help="sections to run; default all")
    add("--rounds", type=int, default=5, help="rounds after the warm-up (5)")
    add("--seconds", type=float, default=2.0, help="of each run (2)")
    add("--pipelines", type=numbers, default=[1, 16, 64], help="depths (1,16,64)")
    add("--tests", type=names(["set", "get"]), default=["set", "get"], help="(set,get)")
    add("--clients", type=int, default=50, help="connections (50)")
    add("--keys", type=int, default=1_000_000, help="(1000000)")
    add("--value-size", type=int, default=64, help="bytes (64)")
    add("--generator", choices=["quorate", "redis-benchmark"], default="quorate",
        help="who asks in section redis; redis-benchmark is itself the limit from P=16 on")
    add("--calibrate", action="store_true",
        help="the peer on both sides: the ratios are 1 but for the noise of this machine")
    add("--quorate", default="target/release/quorate", help="the binary")
    add("--base", type=int, default=17000, help="ports are looked for from here (17000)")
    add("--limit", type=int, default=1800, help="seconds after which it gives up (1800)")
    add("--csv", type=Path, default=Path("bench/results/peers.csv"), help="where ratios are kept")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("there must be a round, and it must take time")
    if options.calibrate and options.only not in (None, ["redis"]):
        parser.error("--calibrate compares the peer with itself: there is only the section redis")
    if options.generator != "quorate" and options.only != ["redis"] and not options.calibrate:
        parser.error("--generator redis-benchmark goes with --only redis or --calibrate")
    # Servers run in a folder of their own.
    options.quorate = str(Path(options.quorate).resolve())
    return options


def main():
    options = arguments()

    def give_up(number, _frame):
        # Raised, not returned: on the way out every Fleet stops what it started, undisturbed.
        for number_to_come in SIGNALS:
            signal.signal(number_to_come, signal.SIG_IGN)
        raise Failure(f"over the limit of {options.limit} s" if number == signal.SIGALRM
                      else "told to stop")

    for number in SIGNALS:
        signal.signal(number, give_up)
    signal.alarm(options.limit)

    # Nobody aims at being faster than itself.
    report = Report({} if options.calibrate else GOALS)
    sections = ["redis"] if options.calibrate else options.only or SECTIONS
    try:
        for section in sections:
            if section in PEERS:
                beside_peer(options, report, section)
            else:
                {"remote": remote, "mset": mset}[section](options, report)
        for missed in report.missed:
            print(f"missed: {missed}")
        return 0
    except (Failure, FileNotFoundError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    finally:
        if report.rows:
            report.write(options.csv)
            print(f"ratios in {options.csv}")


if __name__ == "__main__":
    sys.exit(main())
