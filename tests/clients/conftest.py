"""Starts a cluster of three processes of the built binary for the tests of this folder.

QUORATE_BINARY names the binary; test.sh sets it.
"""

import http.client
import itertools
import os
import pathlib
import socket
import subprocess
import tempfile
import time

import pytest
import redis

NODES = 3
PARTITIONS = 12
PATIENCE = 20.0


def crc16(data):
    """CRC16/XMODEM, by which Redis Cluster finds a key's slot."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc


def leader_of(key):
    """The node that leads a key without a {tag}: each node leads a run of partitions."""
    slot = crc16(key.encode()) % 16384
    return slot * PARTITIONS // 16384 // (PARTITIONS // NODES) + 1


def free_ports(count):
    """Free ports below those that the kernel gives to outgoing connections."""
    first = 15000 + os.getpid() * 61 % 4000
    ports = []
    for port in itertools.chain(range(first, 20000), range(15000, first)):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


class Cluster:
    """Three nodes, reached by their ids."""

    def __init__(self, client_ports):
        self.client_ports = client_ports

    def connect(self, node, **options):
        """A client of redis-py. Everything that it would hide by a retry is shown."""
        return redis.Redis(
            host="127.0.0.1", port=self.client_ports[node - 1], socket_timeout=PATIENCE, **options
        )

    @staticmethod
    def keys(prefix, each=1):
        """`each` keys of every node, the nodes in turn."""
        found = {node: [] for node in range(1, NODES + 1)}
        for n in itertools.count():
            key = f"{prefix}:{n}"
            keys = found[leader_of(key)]
            if len(keys) < each:
                keys.append(key)
            if all(len(keys) == each for keys in found.values()):
                return [keys[n] for n in range(each) for keys in found.values()]


def ready(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def wait_ready(process, port):
    deadline = time.monotonic() + PATIENCE
    while not ready(port):
        assert process.poll() is None, f"a node ended: exit code {process.returncode}"
        assert time.monotonic() < deadline, f"no node is ready at HTTP port {port}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def cluster():
    binary = os.environ.get("QUORATE_BINARY")
    assert binary, "QUORATE_BINARY must name the binary to test"
    ports = free_ports(3 * NODES)
    client, peer, web = ports[:NODES], ports[NODES : 2 * NODES], ports[2 * NODES :]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        lines = ["cluster: clients", "nodes:"]
        for n in range(NODES):
            lines.append(
                f"  - {{ id: {n + 1}, host: 127.0.0.1, "
                f"client: {client[n]}, peer: {peer[n]}, http: {web[n]} }}"
            )
        lines.append(f"partitions: {PARTITIONS}")
        lines.append("defaults: { mode: strong, replicas: 1, durability: none }")
        lines.append(f'data: "{folder / "data"}"')
        file = folder / "cluster.yaml"
        file.write_text("\n".join(lines) + "\n")
        processes = []
        logs = [folder / f"node-{n + 1}.log" for n in range(NODES)]
        try:
            for n in range(NODES):
                args = [binary, "--role", "node", "--id", str(n + 1), "--config", str(file)]
                with logs[n].open("wb") as log:
                    processes.append(subprocess.Popen(args, stdout=log, stderr=log))
            for n in range(NODES):
                wait_ready(processes[n], web[n])
            yield Cluster(client)
        finally:
            for process in processes:
                process.terminate()
            try:
                codes = [process.wait(timeout=PATIENCE) for process in processes]
            finally:
                for process in processes:
                    process.kill()
                for log in logs:
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
        assert codes == [0] * NODES, f"exit codes after SIGTERM: {codes}"


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request):
    return request.param


@pytest.fixture(params=[1, 2, 3], ids=["node1", "node2", "node3"])
def node(request):
    return request.param


@pytest.fixture
def client(cluster, node, protocol):
    """A client of one node that decodes its replies, with empty tables."""
    client = cluster.connect(node, protocol=protocol, decode_responses=True)
    client.flushall()
    yield client
    client.close()
