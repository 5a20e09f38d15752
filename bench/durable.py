#!/usr/bin/env python3
"""What durability and replication cost: replicated Quorate beside servers that keep what they
acknowledge, as ratios of interleaved runs; see peers.py for how they are taken.

Sections (--only):
  writes     SET on 3 replicas (leaders on the node asked; leaders spread) and on 1, synced,
             beside ONE redis-server with appendfsync always
  interval   SET on 3 replicas that answer from memory beside a Redis primary with one replica and
             `WAIT 1 0` after each pipeline
  reads      GET under the leader's lease beside the same of a table without replicas
  mset       MSET of 2 and of 3 keys, of as many partitions as chance has it, beside single SETs
  etcd       SET at 1,000 connections beside three members of etcd, which must be installed
  restart    killed with 1,000,000 keys: time until the first answer, beside Redis with its AOF
  snapshot   writes while partitions of 1,000,000 keys are snapshotted all the time, beside none
  idle       what 1,000 idle groups of 3 replicas cost each node
  growth     syncs, bytes to disk and bytes between nodes for a write as connections grow
  partitions SET over 1, 3, 12 and 48 partitions beside 12
"""

import argparse
import csv
import json
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import peers
from peers import METRICS, NODES, Failure, Fleet, Run, Server, called, tail, wait_ready

SECTIONS = ["writes", "interval", "reads", "mset", "etcd", "restart", "snapshot", "idle",
            "growth", "partitions"]
ETCD_CHANNELS = 20  # HTTP/2 connections that the clients share
IDLE_GROUPS = 1000
MANY_KEYS = 1_000_000

# What we aim at, by (section, case, metric); "most" is a ceiling, "least" a floor.
GOALS = {}
for _case, _lead, _cpu, _spread, _single in [
    ("c=50 P=1", 0.7, 2.4, 0.6, 1.1),
    ("c=200 P=16", 1.2, 1.1, 0.9, 2.5),
    ("c=500 P=1", 0.85, 1.3, 0.75, 1.1),
]:
    GOALS["leaders on one", _case, "throughput"] = ("least", _lead)
    GOALS["leaders on one", _case, "server CPU"] = ("most", _cpu)
    GOALS["leaders spread", _case, "throughput"] = ("least", _spread)
    GOALS["one replica", _case, "throughput"] = ("least", _single)
GOALS["interval", "c=50 P=1", "throughput"] = ("least", 1.2)
GOALS["interval", "c=200 P=16", "throughput"] = ("least", 1.5)
for _case in ("c=50 P=1", "c=200 P=16"):
    GOALS["lease reads", _case, "throughput"] = ("least", 0.9)
for _keys in (2, 3):
    GOALS[f"mset of {_keys}", "c=50 P=1", "throughput"] = ("least", 0.5)
    GOALS[f"mset of {_keys}", "c=50 P=16", "throughput"] = ("least", 0.35)
GOALS["etcd", "16 B and 64 B", "throughput"] = ("least", 15.0)
GOALS["etcd", "256 B and 1,024 B", "throughput"] = ("least", 8.0)
GOALS["restart", "1,000,000 keys", "time"] = ("most", 1.0)
GOALS["snapshot", "c=50 P=1", "p99"] = ("most", 2.0)
GOALS["idle", "1,000 groups", "CPU of a node"] = ("most", 1.5)


# ---------------------------------------------------------------------------------------- servers


class DurableFleet(Fleet):
    """Servers that keep what they are told, all in the same folder and so on the same disk."""

    def quorate_cluster(self, name, partitions=12, replicas=NODES, durability="sync", extra=""):
        """Three processes; the first is the one that is asked. With one partition it leads all."""
        base = self.free_base()
        config = self.folder / f"cluster-{base}.yaml"
        lines = ["cluster: bench", "nodes:"]
        for node in range(1, NODES + 1):
            ports = f"client: {base + node}, peer: {base + 100 + node}, http: {base + 200 + node}"
            lines.append(f"  - {{ id: {node}, host: 127.0.0.1, {ports} }}")
        lines += [f"data: {self.folder}/cluster-{base}", f"partitions: {partitions}", extra]
        kept = f"replicas: {replicas}, durability: {durability}"
        lines.append(f"defaults: {{ mode: strong, {kept} }}")
        config.write_text("\n".join(lines) + "\n")
        server = Server(name, base + 1)
        server.folder = self.folder / f"cluster-{base}"
        server.config = config
        logs = []
        for node in range(1, NODES + 1):
            command = [self.options.quorate, "--role", "node", "--id", str(node)]
            command += ["--config", str(config), "--arbiters", "1"]
            logs.append(self.start(server, command, f"node-{base}-{node}"))
        for node, log in enumerate(logs, 1):
            wait_ready(server, base + node, log)
        wait_for_leaders(server, base, partitions if replicas > 1 else None)
        return server

    def quorate_single(self, name="quorate"):
        base = self.free_base()
        server = Server(name, base + 1)
        server.folder = self.folder / f"single-{base}"
        command = [self.options.quorate, "--role", "local", "--nodes", "1", "--port", str(base)]
        server.command = [*command, "--arbiters", "1", "--data", str(server.folder)]
        self.begin(server)
        return server

    def redis_durable(self, fsync, name="redis"):
        server = Server(name, self.free_base() + 1)
        server.folder = self.folder / f"redis-{server.port}"
        server.folder.mkdir()
        command = ["redis-server", "--port", str(server.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(server.folder), "--save", "", "--appendonly", "yes"]
        server.command = [*command, "--appendfsync", fsync]
        self.begin(server)
        return server

    def begin(self, server):
        """Starts a server of one process, for the first time or again."""
        began = time.monotonic()
        log = self.start(server, server.command, f"{server.name}-{server.port}")
        wait_ready(server, server.port, log)
        return time.monotonic() - began

    def kill(self, server):
        for process in server.processes:
            process.kill()
            process.wait()
            self.processes.remove(process)
        server.processes = []

    def redis_pair(self):
        """A primary and a replica of it, both in memory only."""
        pair = self.redis("redis-primary")
        replica = Server("redis-replica", self.free_base() + 1)
        command = ["redis-server", "--port", str(replica.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--replicaof", "127.0.0.1", str(pair.port)]
        log = self.start(replica, command, "redis-replica")
        wait_ready(replica, replica.port, log)
        wait_until("the replica is linked", log, lambda: b"master_link_status:up"
                   in asked(replica.port, b"INFO replication\r\n"))
        pair.processes += replica.processes
        return pair

    def etcd(self):
        """Three members; asked is the one that leads, which suits etcd best."""
        base = self.free_base()
        members = ",".join(f"m{n}=http://127.0.0.1:{base + 100 + n}" for n in (1, 2, 3))
        server = Server("etcd", base + 1)
        for node in range(1, NODES + 1):
            client, peer = (f"http://127.0.0.1:{base + offset + node}" for offset in (0, 100))
            command = ["etcd", "--name", f"m{node}", "--data-dir", f"{self.folder}/etcd-{node}"]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", members, "--log-level", "error"]
            log = self.start(server, command, f"etcd-{node}")
        leader = []

        def leads():
            for node in range(1, NODES + 1):
                command = ["etcdctl", "--endpoints", f"127.0.0.1:{base + node}"]
                done = subprocess.run([*command, "endpoint", "status", "-w", "json"],
                                      env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/usr/local/bin"},
                                      capture_output=True, text=True, timeout=10)
                if done.returncode == 0:
                    status = json.loads(done.stdout)[0]["Status"]
                    if status["leader"] == status["header"]["member_id"]:
                        leader.append(base + node)
            return leader

        wait_until("etcd has a leader", log, leads)
        server.port = leader[0]
        return server


def wait_until(what, log, condition):
    patience = time.monotonic() + peers.READY_WITHIN
    while not condition():
        if time.monotonic() > patience:
            raise Failure(f"not in time: {what}\n{tail(log)}")
        time.sleep(0.02)


def asked(port, question):
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(question)
        return client.recv(65536)


def status(port):
    """What the node whose clients connect to `port` says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port + 200}/status", timeout=10) as answer:
        return json.load(answer)


def wait_for_leaders(server, base, partitions):
    """Until each node leads its share: elections right after the start move leaders about."""
    if partitions is None:
        return
    share = partitions // NODES

    def settled():
        leads = [len(node["leads"]) for node in status(base + 1)["nodes"]]
        return sum(leads) == partitions and leads[0] >= max(1, share) and min(leads) >= share

    patience = time.monotonic() + peers.READY_WITHIN
    while not settled():
        if time.monotonic() > patience:
            leads = [len(node["leads"]) for node in status(base + 1)["nodes"]]
            print(f"  note: {server.name} leads {leads}")
            return
        time.sleep(0.05)


# ------------------------------------------------------------------------------------ measurements


@dataclass
class Ask:
    """One load."""

    clients: int = 50
    pipeline: int = 1
    mix: str = "set"
    multi: int = 3
    key_size: int = 16
    value_size: int = 64
    wait: int = 0

    @property
    def name(self):
        return f"c={self.clients} P={self.pipeline}"

    def command(self, options, server):
        command = [options.generator, "--role", "bench", "--json", "--port", str(server.port)]
        command += ["--mix", self.mix, "--pipeline", str(self.pipeline), "--multi", str(self.multi)]
        command += ["--keys", str(options.keys), "--clients", str(self.clients)]
        command += ["--key-size", str(self.key_size), "--value-size", str(self.value_size)]
        return [*command, "--wait", str(self.wait)] if self.wait else command


def summary_of(options, server, command):
    summary = json.loads(called(command, options.seconds + peers.GRACE))
    if summary["errors"]:
        raise Failure(f"{server.name} answered with {summary['first_error']}")
    return summary


def measured(options, server, command):
    """Runs a generator; what it says, and what the servers' CPUs did meanwhile."""
    before, cpu_before = resource.getrusage(resource.RUSAGE_CHILDREN), server.cpu()
    began = time.monotonic()
    summary = summary_of(options, server, command)
    elapsed, cpu = time.monotonic() - began, server.cpu() - cpu_before
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(summary["ops_per_second"], summary["p50_us"], summary["p99_us"],
               cpu / summary["ops"], busy / elapsed)


def load(options, server, ask, seed):
    millis = ["--duration", f"{int(options.seconds * 1000)}ms", "--seed", str(seed)]
    return measured(options, server, [*ask.command(options, server), *millis])


def redis_benchmark(options, server, ask):
    """The same SETs by Redis's own tool: operations a second. The first run sizes the second."""
    requests = 20_000
    for seconds in (None, options.seconds):
        command = ["redis-benchmark", "-p", str(server.port), "-t", "set", "-n", str(requests)]
        command += ["-r", str(options.keys), "-c", str(ask.clients), "-P", str(ask.pipeline)]
        rows = csv.DictReader(called([*command, "-d", str(ask.value_size), "--csv"], 120)
                              .splitlines())
        rate = float(next(rows)["rps"])
        requests = int(rate * options.seconds)
    return rate


def fill(options, server, keys=None):
    command = [options.generator, "--role", "bench", "--json", "--port", str(server.port)]
    command += ["--prefill", "--requests", "1", "--mix", "get", "--pipeline", "64"]
    summary_of(options, server, [*command, "--keys", str(keys or options.keys)])


def in_turn(options, *sides):
    """Runs A B C A B C; the first round warms up and is dropped. Lists of runs by side."""
    rounds = [[side(seed) for side in sides] for seed in range(options.rounds + 1)]
    return [list(runs) for runs in zip(*rounds[1:])]


# ----------------------------------------------------------------------------------------- reports


class Report:
    """Prints ratios as they come and keeps them for the CSV and for the table at the end."""

    COLUMNS = ["section", "case", "metric", "ratio", "min", "max", "goal", "ours", "theirs", "unit"]

    def __init__(self):
        self.rows = []
        self.path = None

    def title(self, text):
        print(f"\n{text}", flush=True)

    def add(self, section, case, metric, ours, theirs, unit):
        """Ratios of `ours` to `theirs`; of `ours` alone when there is nothing beside it."""
        ratios = ours if theirs is None else [a / max(b, 1e-9) for a, b in zip(ours, theirs)]
        ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
        goal, wanted, verdict = GOALS.get((section, case, metric)), "", ""
        if goal:
            bound, value = goal
            wanted = f"{'>=' if bound == 'least' else '<='} {value:g}"
            reached = ratio >= value if bound == "least" else ratio <= value
            verdict = "" if reached else "MISSED"
        ours = statistics.median(ours)
        theirs = None if theirs is None else statistics.median(theirs)
        sides = f"{ours:,.2f}" if ours < 100 else f"{ours:,.0f}"
        if theirs is not None:
            sides += f" / {theirs:,.0f}" if theirs >= 100 else f" / {theirs:,.2f}"
        print(f"  {section:<16}{case:<19}{metric:<22}{ratio:>7.2f}  {f'{low:.2f}-{high:.2f}':<13}"
              f"{wanted:<8}{verdict:<8}{sides} {unit}", flush=True)
        shown = "" if theirs is None else f"{theirs:.2f}"
        self.rows.append([section, case, metric, f"{ratio:.3f}", f"{low:.3f}", f"{high:.3f}",
                          wanted, f"{ours:.2f}", shown, unit])
        if self.path:
            self.write()

    def runs(self, section, case, ours, theirs):
        for metric, (attribute, unit) in METRICS.items():
            sides = [[getattr(run, attribute) for run in side] for side in (ours, theirs)]
            self.add(section, case, metric, *sides, unit)
        for runs in (ours, theirs):
            busy = statistics.median(run.generator_busy for run in runs)
            if busy > 0.9:
                print(f"    the generator used {busy:.0%} of a core: look at the CPU rather")

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(self.COLUMNS)
            writer.writerows(self.rows)

    def table(self):
        """The rows that have a goal, once more."""
        print(f"\n{'section':<16}{'case':<19}{'metric':<15}{'goal':<9}{'measured':>9}  range")
        for section, case, metric, ratio, low, high, wanted, *_ in self.rows:
            if wanted:
                bound, value = wanted.split()
                reached = float(ratio) >= float(value) if bound == ">=" else (
                    float(ratio) <= float(value))
                print(f"{section:<16}{case:<19}{metric:<15}{wanted:<9}{float(ratio):>9.2f}  "
                      f"{float(low):.2f}-{float(high):.2f}{'' if reached else '  MISSED'}")


# ---------------------------------------------------------------------------------------- sections


def writes(options, report):
    report.title(f"SET beside redis-server with appendfsync always, {options.keys:,} keys")
    with DurableFleet(options) as fleet:
        ours = {
            "leaders on one": fleet.quorate_cluster("leaders on one", partitions=1),
            "leaders spread": fleet.quorate_cluster("leaders spread"),
            "one replica": fleet.quorate_single("one replica"),
        }
        redis = fleet.redis_durable("always")
        for server in [*ours.values(), redis]:
            fill(options, server)
        for ask in (Ask(50, 1), Ask(200, 16), Ask(500, 1)):
            sides = [lambda seed, server=server: load(options, server, ask, seed)
                     for server in [*ours.values(), redis]]
            *mine, theirs = in_turn(options, *sides)
            for section, runs in zip(ours, mine):
                report.runs(section, ask.name, runs, theirs)
            if options.redis_benchmark:
                rates = in_turn(options, *[
                    lambda _, server=server: redis_benchmark(options, server, ask)
                    for server in [*ours.values(), redis]])
                for section, runs in zip(ours, rates):
                    report.add(section, ask.name, "by redis-benchmark", runs, rates[-1], "op/s")


def interval(options, report):
    report.title("SET acknowledged by two memories / Redis with one replica and WAIT 1 0")
    with DurableFleet(options) as fleet:
        leading = fleet.quorate_cluster("interval", partitions=1, durability="interval")
        spread = fleet.quorate_cluster("interval spread", durability="interval")
        redis = fleet.redis_pair()
        for server in (leading, spread, redis):
            fill(options, server)
        for ask in (Ask(50, 1), Ask(200, 16)):
            waiting = Ask(ask.clients, ask.pipeline, wait=1)
            first, second, theirs = in_turn(
                options,
                lambda seed: load(options, leading, ask, seed),
                lambda seed: load(options, spread, ask, seed),
                lambda seed: load(options, redis, waiting, seed),
            )
            report.runs("interval", ask.name, first, theirs)
            report.runs("interval spread", ask.name, second, theirs)


def reads(options, report):
    report.title("GET under the leader's lease / GET of a table without replicas and log")
    with DurableFleet(options) as fleet:
        ours = fleet.quorate_cluster("replicated", partitions=1)
        plain = fleet.quorate_cluster("plain", partitions=1, replicas=1, durability="none")
        for server in (ours, plain):
            fill(options, server)
        for ask in (Ask(50, 1, "get"), Ask(200, 16, "get")):
            runs = in_turn(options, lambda seed: load(options, ours, ask, seed),
                           lambda seed: load(options, plain, ask, seed))
            report.runs("lease reads", ask.name, *runs)


def mset(options, report):
    report.title("MSET / single SETs of the same cluster, 12 partitions, leaders spread")
    with DurableFleet(options) as fleet:
        cluster = fleet.quorate_cluster("cluster")
        fill(options, cluster)
        for pipeline in (1, 16):
            asks = [Ask(50, pipeline, "multiput", 2), Ask(50, pipeline, "multiput", 3),
                    Ask(50, pipeline)]
            two, three, single = in_turn(options, *[
                lambda seed, ask=ask: load(options, cluster, ask, seed) for ask in asks])
            report.runs("mset of 2", asks[0].name, two, single)
            report.runs("mset of 3", asks[1].name, three, single)


def etcd(options, report):
    report.title("SET at 1,000 connections, leaders on the node asked and spread / PUT on three members "
                 "of etcd, at their leader")
    driver = Path(__file__).resolve().parent / "etcd/target/release/etcd-load"
    for needed in ("etcd", "etcdctl", driver):
        if shutil.which(str(needed)) is None:
            print(f"  left out: there is no {needed} (see bench/README.md)")
            return
    for case, key_size, value_size in [("16 B and 64 B", 16, 64),
                                       ("256 B and 1,024 B", 256, 1024)]:
        with DurableFleet(options) as fleet:
            on_one = fleet.quorate_cluster("leaders on one", partitions=1)
            spread = fleet.quorate_cluster("leaders spread")
            theirs = fleet.etcd()
            ask = Ask(1000, 1, key_size=key_size, value_size=value_size)

            def put(seed):
                words = [f"http://127.0.0.1:{theirs.port}", ask.clients, ETCD_CHANNELS,
                         options.keys, key_size, value_size, int(options.seconds * 1000), seed]
                return measured(options, theirs, [str(driver), *map(str, words)])

            def ours(server):
                return lambda seed: load(options, server, ask, seed)

            one, wide, etcd = in_turn(options, ours(on_one), ours(spread), put)
            report.runs("etcd", case, one, etcd)
            report.runs("etcd", f"{case}, spread", wide, etcd)


def restart(options, report):
    report.title("Killed with 1,000,000 keys of 64 B: seconds until the first answer")
    with DurableFleet(options) as fleet:
        ours, theirs = fleet.quorate_single(), fleet.redis_durable("everysec")
        for server in (ours, theirs):
            fill(options, server, MANY_KEYS)

        def again(server):
            fleet.kill(server)
            return fleet.begin(server)

        times = in_turn(options, lambda _: again(ours), lambda _: again(theirs))
        report.add("restart", "1,000,000 keys", "time", *times, "s")
        for server in (ours, theirs):
            size = sum(file.stat().st_size for file in server.folder.rglob("*") if file.is_file())
            report.add("restart", "1,000,000 keys", f"disk, {server.name}", [size / 2**20], None,
                       "MiB")


def snapshot_names(server):
    return {str(file) for file in server.folder.rglob("*")
            if file.is_file() and "snapshot" in str(file) and "/log/" not in str(file)}


def snapshot(options, report):
    report.title("SET while every node snapshots its 1,000,000 keys / while none does")
    with DurableFleet(options) as fleet:
        never = "replication: { segment: 8MiB, snapshot_after: 8GiB }"
        ours = fleet.quorate_cluster("snapshotting", extra=never)
        quiet = fleet.quorate_cluster("not snapshotting", extra=never)
        for server in (ours, quiet):
            fill(options, server, MANY_KEYS)
        seen, made = snapshot_names(ours), 0

        def busy(seed):
            nonlocal made
            command = [options.quorate, "--role", "admin", "snapshot", "--config", ours.config]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as asked:
                run = load(options, ours, ask, seed)
            assert asked.returncode == 0, "snapshots were refused"
            now = snapshot_names(ours)
            made += len(now - seen)
            seen.update(now)
            return run

        ask = Ask(50, 1)
        runs = in_turn(options, busy, lambda seed: load(options, quiet, ask, seed))
        if made < options.rounds:
            print(f"  left out: only {made} snapshots in all runs, nothing to compare; "
                  "--seconds gives them more time")
            return
        report.runs("snapshot", ask.name, *runs)
        report.add("snapshot", ask.name, "snapshots in a run", [made / (options.rounds + 1)], None,
                   "of 12 partitions on 3 nodes")


def idle(options, report):
    report.title(f"{IDLE_GROUPS:,} groups of 3 replicas and nothing to do")
    with DurableFleet(options) as fleet:
        cluster = fleet.quorate_cluster("idle", partitions=IDLE_GROUPS)
        shares = []
        for _ in range(options.rounds + 1):
            before, began = cluster.cpu(), time.monotonic()
            time.sleep(options.seconds)  # idleness is what is measured
            used = (cluster.cpu() - before) / 1e9 / (time.monotonic() - began)
            shares.append(used / NODES * 100)
        report.add("idle", "1,000 groups", "CPU of a node", shares[1:], None, "% of a core")


def between_nodes(server):
    """Bytes that the nodes have sent each other, as the kernel counts them by connection."""
    ports = {server.port + 100 + node for node in range(NODES)}
    lines = called(["ss", "-tinH", "state", "established"], 10).splitlines()
    total = 0
    for ends, figures in zip(lines[::2], lines[1::2]):
        here, there = (int(end.rsplit(":", 1)[1]) for end in ends.split()[2:4])
        if here in ports or there in ports:
            total += sum(int(word.split(":")[1]) for word in figures.split()
                         if word.startswith("bytes_sent:"))
    return total


def log_figures(server):
    figures = [status(server.port + node)["now"] for node in range(NODES)]
    return [sum(one[name] for one in figures) for name in ("log_syncs", "log_bytes")]


def growth(options, report):
    report.title("What a SET costs in syncs and bytes, three nodes together, leaders on one")
    with DurableFleet(options) as fleet:
        cluster = fleet.quorate_cluster("cluster", partitions=1)
        fill(options, cluster)
        for ask in (Ask(1), Ask(10), Ask(50), Ask(200), Ask(1000), Ask(200, 16)):
            syncs, disk, wire = [], [], []
            for seed in range(options.rounds):
                command = [*ask.command(options, cluster), "--seed", str(seed), "--duration",
                           f"{int(options.seconds * 1000)}ms"]
                before, sent = log_figures(cluster), between_nodes(cluster)
                writes = summary_of(options, cluster, command)["ops"]
                after, sent = log_figures(cluster), between_nodes(cluster) - sent
                syncs.append((after[0] - before[0]) / NODES / writes)
                disk.append((after[1] - before[1]) / NODES / writes / ask.value_size)
                wire.append(sent / writes)
            report.add("growth", ask.name, "syncs a write", syncs, None, "on each node")
            report.add("growth", ask.name, "log bytes/value byte", disk, None, "on each node")
            report.add("growth", ask.name, "bytes between nodes", wire, None, "B a write")


def partitions(options, report):
    report.title("SET over as many partitions / over 12, leaders spread")
    numbers = (1, 3, 12, 48)
    with DurableFleet(options) as fleet:
        clusters = [fleet.quorate_cluster(f"{number} partitions", number) for number in numbers]
        for cluster in clusters:
            fill(options, cluster)
        for ask in (Ask(200, 1), Ask(200, 16)):
            sides = in_turn(options, *[
                lambda seed, cluster=cluster: load(options, cluster, ask, seed)
                for cluster in clusters])
            for number, runs in zip(numbers, sides):
                if number != 12:
                    report.runs(f"{number} partitions", ask.name, runs, sides[2])


# -------------------------------------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(prog="bench/durable.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", type=peers.names(SECTIONS), metavar="SECTION,..", help="default all")
    add("--rounds", type=int, default=3, help="rounds after the warm-up (3)")
    add("--seconds", type=float, default=1.5, help="of each run (1.5)")
    add("--keys", type=int, default=100_000, help="(100000)")
    add("--redis-benchmark", action="store_true",
        help="section writes: the figures of Redis's own tool beside ours")
    add("--quorate", default="target/release/quorate", help="the binary")
    add("--generator", help="the binary that asks, if it is another than --quorate")
    add("--base", type=int, default=27000, help="ports are looked for from here (27000)")
    add("--limit", type=int, default=1800, help="seconds after which it gives up (1800)")
    add("--csv", type=Path, default=Path("bench/results/durable.csv"), help="where ratios are kept")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("there must be a round, and it must take time")
    # Servers run in a folder of their own.
    options.quorate = str(Path(options.quorate).resolve())
    options.generator = str(Path(options.generator or options.quorate).resolve())
    options.csv = options.csv.resolve()
    return options


def main():
    options = arguments()

    def give_up(number, _frame):
        # Raised, not returned: on the way out every Fleet stops what it started, undisturbed.
        for number_to_come in peers.SIGNALS:
            signal.signal(number_to_come, signal.SIG_IGN)
        raise Failure(f"over the limit of {options.limit} s" if number == signal.SIGALRM
                      else "told to stop")

    for number in peers.SIGNALS:
        signal.signal(number, give_up)
    signal.alarm(options.limit)
    report = Report()
    report.path = options.csv
    outcome = 0
    for section in options.only or SECTIONS:
        try:
            globals()[section](options, report)
        except (Failure, OSError) as failure:
            print(f"error in section {section}: {failure}", file=sys.stderr)
            outcome = 1
            if "limit" in str(failure) or "told" in str(failure):
                break
    if report.rows:
        report.table()
        print(f"ratios in {options.csv}")
    return outcome


if __name__ == "__main__":
    sys.exit(main())
