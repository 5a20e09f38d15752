#!/usr/bin/env python3
"""How long other clients wait while one asks KEYS * of a million keys; started by keys.sh.

One client asks GET, one at a time, and notes how long each took: for a while by itself, and then
while another client asks KEYS * over and over.
"""

import argparse
import multiprocessing
import random
import shutil
import socket
import subprocess
import tempfile
import time


def connect(target):
    host, port = target.rsplit(":", 1)
    stream = socket.create_connection((host, int(port)))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def encode(*words):
    parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


def load(target, keys):
    stream, replies = connect(target), 0
    for start in range(0, keys, 1000):
        numbers = range(start, min(start + 1000, keys))
        stream.sendall(b"".join(encode("SET", f"key:{n:012}", "value") for n in numbers))
        while replies < numbers.stop:
            piece = stream.recv(1 << 16)
            assert piece and b"-" not in piece, piece
            replies += piece.count(b"\n")


def ask_keys(target, count, started, results):
    """Asks KEYS * so many times; each reply is read to its last line."""
    stream = connect(target)
    started.wait()
    for _ in range(count):
        begun, lines, wanted, size = time.monotonic(), 0, None, 0
        stream.sendall(encode("KEYS", "*"))
        while wanted is None or lines < wanted:
            piece = stream.recv(1 << 20)
            assert piece, "the server closed"
            if wanted is None:
                assert piece.startswith(b"*"), piece[:100]
                wanted = 1 + 2 * int(piece[1 : piece.index(b"\r")])
            lines += piece.count(b"\n")
            size += len(piece)
        results.put((time.monotonic() - begun, (wanted - 1) // 2, size))


def get(stream, key):
    begun = time.perf_counter()
    stream.sendall(encode("GET", key))
    reply = stream.recv(1 << 16)
    took = time.perf_counter() - begun
    assert reply == b"$5\r\nvalue\r\n", reply
    return took * 1000


def measure(stream, keys, goes_on):
    dice, took = random.Random(1), []
    while goes_on():
        took.append(get(stream, f"key:{dice.randrange(keys):012}"))
    return sorted(took)


def tell(what, took):
    at = lambda share: took[min(len(took) - 1, int(len(took) * share))]
    print(
        f"{what:<8} {len(took):>8} GETs   p50 {at(0.5):.3f} ms   p99 {at(0.99):.3f} ms   "
        f"p99.9 {at(0.999):.3f} ms   max {took[-1]:.3f} ms",
        flush=True,
    )


def run(target, options):
    load(target, options.keys)
    stream = connect(target)
    until = time.monotonic() + options.seconds
    tell("alone", measure(stream, options.keys, lambda: time.monotonic() < until))
    started, results = multiprocessing.Event(), multiprocessing.Queue()
    asker = multiprocessing.Process(
        target=ask_keys, args=(target, options.times, started, results)
    )
    asker.start()
    started.set()
    tell("KEYS", measure(stream, options.keys, asker.is_alive))
    asker.join()
    replies = [results.get() for _ in range(options.times)]
    seconds = sorted(reply[0] for reply in replies)
    print(
        f"KEYS * of {replies[0][1]} keys, {replies[0][2]} bytes: {seconds[0] * 1000:.0f} to "
        f"{seconds[-1] * 1000:.0f} ms, {len(replies)} times"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quorate", help="the binary, to be started for the measurement")
    parser.add_argument("--target", help="host:port of a server that runs already; its keys are added to")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the cluster (1)")
    parser.add_argument("--port", type=int, default=7800, help="the cluster's first port, less one (7800)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys (1000000)")
    parser.add_argument("--times", type=int, default=5, help="how often KEYS is asked (5)")
    parser.add_argument("--seconds", type=float, default=5, help="how long GET is measured alone (5)")
    options = parser.parse_args()
    if options.target:
        return run(options.target, options)
    if not options.quorate:
        parser.error("say --quorate or --target")
    folder = tempfile.mkdtemp(prefix="quorate-keys-")
    role = ["--role", "local", "--nodes", options.nodes, "--port", options.port]
    kept = ["--replicas", 1, "--durability", "none", "--data", folder]
    server = subprocess.Popen(
        [options.quorate, *map(str, role + kept)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        target = f"127.0.0.1:{options.port + 1}"
        for _ in range(300):
            try:
                stream = connect(target)
                stream.sendall(encode("DBSIZE"))
                if stream.recv(100).startswith(b":"):
                    break
            except OSError:
                pass
            time.sleep(0.1)
        run(target, options)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
