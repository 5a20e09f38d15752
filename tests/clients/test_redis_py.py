"""redis-py, unchanged and with no cluster mode, at every node in both protocols."""

import threading

import pytest
import redis


def test_ping_and_echo(client):
    assert client.ping() is True
    assert client.echo("hello") == "hello"


def test_strings(client, cluster):
    for key in cluster.keys("string"):
        assert client.get(key) is None
        assert client.set(key, "one") is True
        assert client.get(key) == "one"
        assert client.set(key, "two", nx=True) is None
        assert client.set(key, "two", xx=True, get=True) == "one"
        assert client.append(key, "!") == 4
        assert client.strlen(key) == 4
        assert client.getset(key, "three") == "two!"
        assert client.type(key) == "string"
        assert client.getdel(key) == "three"
        assert client.setnx(key, "four") is True
        assert client.exists(key) == 1
        assert client.delete(key) == 1


def test_bytes_come_back_as_they_went(cluster, node, protocol):
    client = cluster.connect(node, protocol=protocol)
    value = bytes(range(256)) * 5
    for key in cluster.keys("binary"):
        name = key.encode() + b"\x00\r\n\xff"
        assert client.set(name, value)
        assert client.get(name) == value
        assert client.delete(name) == 1
    client.close()


def test_counters(client, cluster):
    for key in cluster.keys("counter"):
        assert client.incr(key) == 1
        assert client.incrby(key, 41) == 42
        assert client.decr(key) == 41
        assert client.decrby(key, 50) == -9
        client.set(key, "text")
        with pytest.raises(redis.ResponseError, match="value is not an integer or out of range"):
            client.incr(key)


def test_expiry(client, cluster):
    for key in cluster.keys("expiry"):
        assert client.ttl(key) == -2
        client.set(key, "x")
        assert client.ttl(key) == -1
        assert client.expire(key, 100) is True
        assert 98 <= client.ttl(key) <= 100
        assert client.persist(key) is True
        assert client.pexpire(key, 100_000) is True
        assert 98_000 <= client.pttl(key) <= 100_000
        client.set(key, "y", px=100_000, keepttl=False)
        assert 98_000 <= client.pttl(key) <= 100_000
        assert client.expire(key, -1) is True
        assert client.exists(key) == 0


def test_many_keys_of_many_nodes(client, cluster):
    keys = cluster.keys("many", each=4)
    values = {key: f"value of {key}" for key in keys}
    assert client.mset(values) is True
    assert client.mget(keys) == list(values.values())
    assert client.mget(keys[0], "nothing", keys[1]) == [values[keys[0]], None, values[keys[1]]]
    assert client.exists(*keys, "nothing", keys[0]) == len(keys) + 1
    assert client.msetnx({keys[0]: "no", "nothing": "no"}) is False
    assert client.exists("nothing") == 0
    assert client.dbsize() == len(keys)
    assert client.delete(*keys[:6], "nothing") == 6
    assert client.unlink(*keys) == len(keys) - 6
    assert client.msetnx(values) is True
    assert client.mget(keys) == list(values.values())


def test_what_one_node_writes_the_others_read(cluster, protocol):
    keys = cluster.keys("shared", each=2)
    clients = [cluster.connect(n, protocol=protocol, decode_responses=True) for n in (1, 2, 3)]
    for n, writer in enumerate(clients):
        writer.mset({key: str(n) for key in keys})
        for reader in clients:
            assert reader.mget(keys) == [str(n)] * len(keys)
    for client in clients:
        client.close()


def test_pipeline(client, cluster):
    a, b, c = cluster.keys("pipeline")
    pipe = client.pipeline(transaction=False)
    expected = []
    for n in range(200):
        pipe.set(a, n)
        pipe.mset({a: f"{n}!", b: f"{n}!", c: f"{n}!"})
        pipe.get(a)
        pipe.mget(c, b)
        pipe.incr(f"{b}:count")
        pipe.delete(a, c)
        expected += [True, True, f"{n}!", [f"{n}!", f"{n}!"], n + 1, 2]
    assert pipe.execute() == expected


def test_an_error_in_a_pipeline_spoils_nothing_else(client, cluster):
    a, b, _ = cluster.keys("errors")
    pipe = client.pipeline(transaction=False)
    pipe.set(a, "text").incr(a).execute_command("NOSUCHCOMMAND", b).set(b, "text").get(a)
    replies = pipe.execute(raise_on_error=False)
    assert replies[0] is True and replies[3] is True and replies[4] == "text"
    assert "not an integer" in str(replies[1])
    assert "unknown command" in str(replies[2])


def test_tables(cluster, node, protocol):
    keys = cluster.keys("table")
    first = cluster.connect(node, protocol=protocol, db=0, decode_responses=True)
    other = cluster.connect(node, protocol=protocol, db=9, decode_responses=True)
    first.flushall()
    other.mset({key: "x" for key in keys})
    assert first.mget(keys) == [None] * len(keys)
    assert first.dbsize() == 0 and other.dbsize() == len(keys)
    assert other.flushdb() is True
    assert other.dbsize() == 0
    first.close()
    other.close()


def test_client_name_and_library(cluster, node, protocol):
    client = cluster.connect(
        node, protocol=protocol, client_name="tester", decode_responses=True, single_connection_client=True
    )
    assert client.client_getname() == "tester"
    assert client.client_setname("other") is True
    assert client.client_getname() == "other"
    assert client.client_id() > 0
    client.close()


def test_info_and_config(client, cluster, node):
    info = client.info()
    assert info["redis_version"].startswith("7.")
    assert info["tcp_port"] == cluster.client_ports[node - 1]
    assert info["cluster_enabled"] == 0
    assert info["role"] == "master"
    assert "uptime_in_seconds" in client.info("server")
    client.set("a", 1)
    # Each node tells of the keys that it holds itself.
    held = 0
    for port in cluster.client_ports:
        with redis.Redis(port=port) as each:
            held += each.info("keyspace").get("db0", {}).get("keys", 0)
    assert held == 1
    assert client.config_get("nosuchparameter") == {}


def test_commands(client):
    commands = client.command()
    assert client.command_count() == len(commands)
    assert commands["get"]["arity"] == 2
    assert commands["mset"]["step_count"] == 2


def test_hello(client, protocol):
    hello = client.execute_command("HELLO", protocol)
    fields = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2]))
    assert fields["proto"] == protocol
    assert fields["mode"] == "standalone"
    assert fields["server"] == "redis"


def test_wrong_arguments(client):
    with pytest.raises(redis.ResponseError, match="wrong number of arguments for 'get' command"):
        client.execute_command("GET")
    with pytest.raises(redis.ResponseError, match="unknown command 'NOSUCH'"):
        client.execute_command("NOSUCH", "x")
    with pytest.raises(redis.ResponseError, match="DB index is out of range"):
        client.select(16)


def test_writers_and_readers_see_no_mixed_values(cluster):
    keys = cluster.keys("mixed", each=2)
    stop = threading.Event()
    mixed, failed, checks = [], [], []

    def write(node):
        client = cluster.connect(node, decode_responses=True)
        try:
            for n in range(150):
                client.mset({key: f"{node}-{n}" for key in keys})
        except redis.RedisError as error:
            failed.append(error)
        client.close()

    def read(node):
        client = cluster.connect(node, protocol=3, decode_responses=True)
        try:
            while not stop.is_set():
                values = client.mget(keys)
                checks.append(1)
                if len(set(values)) != 1:
                    mixed.append(values)
        except redis.RedisError as error:
            failed.append(error)
        client.close()

    writers = [threading.Thread(target=write, args=(node,)) for node in (1, 2, 3)]
    readers = [threading.Thread(target=read, args=(node,)) for node in (1, 2, 3)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert failed == [] and mixed == []
    assert len(checks) > 10
