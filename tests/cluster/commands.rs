//! Every command, asked of every node, for keys that every node leads.

use crate::harness::{Client, Cluster, Protocol};

/// A conversation: lines with `>` are sent, the others are the replies. `K` stands for a key that
/// one node leads, `A`, `B` and `C` for keys of nodes 1, 2 and 3, `~100` for what may be left of
/// 100 seconds on a slow machine.
const STORY: &str = r#"
> PING
PONG
> PING hello
"hello"
> ECHO hello
"hello"

> GET K
nil
> SET K one
OK
> GET K
"one"
> TYPE K
string
> TYPE nothing
none
> STRLEN K
3
> STRLEN nothing
0
> SET K two NX
nil
> SET K two XX
OK
> SET nothing x XX
nil
> SET K three GET
"two"
> SET K four EX 100
OK
> TTL K
~100
> SET K five KEEPTTL
OK
> TTL K
~100
> SET K six PX 100000
OK
> TTL K
~100
> SET K seven EXAT 4102444800
OK
> GET K
"seven"
> SET K eight PXAT 4102444800000
OK
> SET K nine
OK
> TTL K
-1
> PTTL nothing
-2
> SET K x EX 0
-ERR invalid expire time in 'set' command
> SET K x NX XX
-ERR syntax error
> SET K x EX ten
-ERR value is not an integer or out of range
> GET K
"nine"

> SETNX K x
0
> GETSET K ten
"nine"
> GETDEL K
"ten"
> GETDEL K
nil
> SETNX K x
1
> APPEND K yz
3
> GET K
"xyz"
> DEL K
1
> APPEND K new
3
> INCR K
-ERR value is not an integer or out of range
> DEL K
1

> INCR K
1
> INCRBY K 41
42
> DECR K
41
> DECRBY K 41
0
> INCRBY K 9223372036854775807
9223372036854775807
> INCR K
-ERR increment or decrement would overflow
> GET K
"9223372036854775807"

> EXPIRE K 100
1
> TTL K
~100
> PERSIST K
1
> PERSIST K
0
> TTL K
-1
> PEXPIRE K 100000
1
> TTL K
~100
> EXPIRE nothing 100
0
> EXPIRE K -1
1
> EXISTS K
0

> MSET A 1 B 2 C 3
OK
> MGET A B C nothing
["1" "2" "3" nil]
> MGET C A C
["3" "1" "3"]
> MSET A 1 B 2 A 4
OK
> GET A
"4"
> EXISTS A B C A nothing
4
> MSETNX A 9 nothing 9
0
> EXISTS nothing
0
> DEL A B nothing B
2
> UNLINK C
1
> MSETNX A 5 B 6 C 7
1
> MGET A B C
["5" "6" "7"]
> UNLINK A B C
3
> MSET A 1 B
-ERR wrong number of arguments for 'mset' command
> MGET
-ERR wrong number of arguments for 'mget' command
> GET A B
-ERR wrong number of arguments for 'get' command
> NOSUCH A
-ERR unknown command 'NOSUCH', with args beginning with: 'A' 

> SELECT 15
OK
> SET K elsewhere
OK
> DBSIZE
1
> SELECT 16
-ERR DB index is out of range
> SELECT 0
OK
> EXISTS K
0
> SELECT 15
OK
> MSET A 1 B 2 C 3
OK
> DBSIZE
4
> FLUSHDB
OK
> DBSIZE
0
> SELECT 0
OK

> CLIENT SETNAME tester
OK
> CLIENT GETNAME
"tester"
> CLIENT SETINFO LIB-NAME story
OK
> CONFIG GET nosuchparameter
EMPTY
"#;

/// The story's commands and replies, in order.
fn turns() -> Vec<(&'static str, &'static str)> {
    let mut lines = STORY.lines().filter(|line| !line.is_empty());
    let mut turns = Vec::new();
    while let Some(line) = lines.next() {
        let command = line.strip_prefix("> ").expect("a command");
        turns.push((command, lines.next().expect("a reply")));
    }
    turns
}

fn is_about(got: &str, seconds: &str) -> bool {
    let number = |text: &str| text.parse::<i64>().expect("seconds");
    (number(seconds) - 10..=number(seconds)).contains(&number(got))
}

#[test]
fn every_command_at_every_node_for_keys_of_every_node() {
    let cluster = Cluster::start();
    let turns = turns();
    assert!(turns.len() > 80, "the story was read");
    for (node, protocol) in
        cluster.ids().flat_map(|node| [(node, Protocol::Resp2), (node, Protocol::Resp3)])
    {
        let mut client = Client::connect(cluster.ports(node).client, protocol).expect("served");
        for leader in cluster.ids() {
            let prefix = format!("{node}:{protocol:?}:{leader}");
            let key = |id: u16, name: &str| cluster.key_on(id, &format!("{prefix}:{name}"));
            let [k, a, b, c] = [key(leader, "k"), key(1, "a"), key(2, "b"), key(3, "c")];
            let nothing = format!("{prefix}:nothing");
            for (command, reply) in &turns {
                let words: Vec<&str> = command
                    .split(' ')
                    .map(|word| match word {
                        "K" => &k,
                        "A" => &a,
                        "B" => &b,
                        "C" => &c,
                        "nothing" => &nothing,
                        other => other,
                    })
                    .collect();
                let reply = match *reply {
                    "EMPTY" if protocol == Protocol::Resp3 => "{}",
                    "EMPTY" => "[]",
                    other => other,
                };
                // Only the unknown command's reply repeats a key.
                let reply = reply.replace("'A'", &format!("'{a}'"));
                let got = client.say(&words.join(" "));
                if let Some(about) = reply.strip_prefix('~') {
                    assert!(is_about(&got, about), "{got} is not about {about}: {words:?}");
                    continue;
                }
                assert_eq!(got, reply, "{words:?} at node {node}, {protocol:?}");
            }
        }
    }
}

#[test]
fn what_a_node_tells_of_itself() {
    let cluster = Cluster::start();
    for node in cluster.ids() {
        let mut client = cluster.connect(node);
        let info: String = redis::from_redis_value(client.ask(&["INFO"]).unwrap()).unwrap();
        for line in ["cluster_enabled:0", "role:master", "redis_version:7."] {
            assert!(info.contains(line), "{line} in {info}");
        }
        let port = format!("tcp_port:{}", cluster.ports(node).client);
        assert!(info.contains(&port), "{port} in {info}");

        let hello = client.say("HELLO 3");
        for word in ["server", "proto", "standalone", "master"] {
            assert!(hello.contains(word), "{word} in {hello}");
        }
        assert_eq!(client.say("HELLO 4"), "-NOPROTO unsupported protocol version");
        client.say("HELLO 2");

        let count: i64 = client.say("COMMAND COUNT").parse().expect("a count");
        let redis::Value::Array(rows) = client.ask(&["COMMAND"]).unwrap() else {
            panic!("COMMAND answers a list")
        };
        assert_eq!(rows.len() as i64, count);
        assert!(client.say("COMMAND DOCS get").contains("summary"));

        let first: i64 = client.say("CLIENT ID").parse().expect("an id");
        let second: i64 = cluster.connect(node).say("CLIENT ID").parse().expect("an id");
        assert_ne!(first, second);
        assert_eq!(client.say("QUIT"), "OK");
    }
}

#[test]
fn a_key_is_gone_once_its_time_is_up() {
    let cluster = Cluster::start();
    for leader in cluster.ids() {
        let key = cluster.key_on(leader, "short");
        let (mut near, mut far) = (cluster.connect(leader), cluster.connect(leader % 3 + 1));
        assert_eq!(far.say(&format!("SET {key} x PX 150")), "OK");
        crate::harness::eventually("the key expires", crate::harness::PATIENCE, || {
            (near.say(&format!("GET {key}")) == "nil").then_some(())
        });
        assert_eq!(far.say(&format!("PTTL {key}")), "-2");
        assert_eq!(far.say(&format!("SETNX {key} y")), "1");
    }
}

#[test]
fn flushall_empties_all_tables_of_all_nodes() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    for table in [0, 7] {
        client.say(&format!("SELECT {table}"));
        client.mset_all(&cluster.keys_everywhere("flush", 4), "x").unwrap();
        assert_eq!(client.say("DBSIZE"), "12");
    }
    assert_eq!(cluster.connect(2).say("FLUSHALL"), "OK");
    assert_eq!(client.say("DBSIZE"), "0");
    assert_eq!(cluster.connect(3).say("DBSIZE"), "0");
}

#[test]
fn large_values_and_long_commands_cross_nodes_whole() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("large", 1);
    let value = "0123456789abcdef".repeat(128 * 1024);
    cluster.connect(1).mset_all(&keys, &value).unwrap();
    for node in cluster.ids() {
        let values = cluster.connect(node).mget(&keys).unwrap();
        assert!(values.iter().all(|held| held.as_ref() == Some(&value)), "at node {node}");
    }

    let many: Vec<String> = (0..5_000).map(|n| format!("many:{n}")).collect();
    cluster.connect(2).mset_all(&many, "x").unwrap();
    let values = cluster.connect(3).mget(&many).unwrap();
    assert!(values.iter().all(|held| held.as_deref() == Some("x")));
    assert_eq!(values.len(), many.len());
}
