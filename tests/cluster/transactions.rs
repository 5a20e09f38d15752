//! MULTI, EXEC and WATCH over keys of all nodes.

use crate::harness::{Client, Cluster, PATIENCE, StopAtEnd, dial, eventually, expect};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn multi(client: &mut Client, commands: &[String]) -> String {
    assert_eq!(client.say("MULTI"), "OK");
    for command in commands {
        assert_eq!(client.say(command), "QUEUED", "{command}");
    }
    client.say("EXEC")
}

#[test]
fn exec_spans_nodes_and_answers_in_order() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("exec", 1);
    let [a, b, c] = &keys[..] else { panic!("a key a node") };
    for node in cluster.ids() {
        let mut client = cluster.connect(node);
        client.say(&format!("DEL {a} {b} {c}"));
        let commands = [
            format!("SET {a} 1"),
            format!("INCR {b}"),
            "PING".into(),
            format!("APPEND {c} xyz"),
            format!("STRLEN {c}"),
            format!("MGET {c} {b} {a} nosuch"),
        ];
        let reply = multi(&mut client, &commands);
        let expected = ["OK", "1", "PONG", "3", "3", "xyz", "1", "1", "nil"];
        let mut rest = reply.as_str();
        for word in expected {
            let at = rest.find(word).unwrap_or_else(|| panic!("{word} in {reply}"));
            rest = &rest[at + word.len()..];
        }
        assert_eq!(cluster.connect(node % 3 + 1).say(&format!("GET {a}")), "\"1\"");
    }
}

#[test]
fn a_command_that_fails_fails_alone() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("alone", 1);
    let mut stream = dial(cluster.ports(1).client);
    let [a, b, c] = &keys[..] else { panic!("a key a node") };
    let lines = format!("MULTI\r\nSET {a} x\r\nINCR {a}\r\nSET {b} 2\r\nINCR {c}\r\nEXEC\r\n");
    std::io::Write::write_all(&mut stream, lines.as_bytes()).unwrap();
    let queued = "+QUEUED\r\n".repeat(4);
    let replies = "+OK\r\n-ERR value is not an integer or out of range\r\n+OK\r\n:1\r\n";
    expect(&mut stream, &format!("+OK\r\n{queued}*4\r\n{replies}"));
}

#[test]
fn a_result_that_needs_keys_of_several_nodes_is_one_with_the_rest() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("gather", 1);
    let mut client = cluster.connect(1);
    let all = keys.iter().map(|key| format!("{key} 1")).collect::<Vec<_>>().join(" ");
    let commands = [format!("MSETNX {all}"), format!("INCR {}", keys[0]), format!("MSETNX {all}")];
    let first = multi(&mut client, &commands);
    assert!(first.contains('1') && first.contains('2') && first.contains('0'), "{first}");
    let values = cluster.connect(2).mget(&keys).unwrap();
    let values: Vec<&str> = values.iter().map(|value| value.as_deref().unwrap()).collect();
    assert_eq!(values, ["2", "1", "1"]);
}

#[test]
fn a_watched_key_that_changes_anyhow_stops_exec() {
    let cluster = Cluster::start();
    let key = cluster.key_on(3, "watched");
    let other = cluster.key_on(2, "other");
    let changes: &[(&str, &[&str])] = &[
        ("set", &["SET K 2"]),
        ("set to the same value", &["SET K 1"]),
        ("deleted", &["DEL K"]),
        ("deleted and made again", &["DEL K", "SET K 1"]),
        ("given an expiry", &["EXPIRE K 100"]),
        ("appended to", &["APPEND K x"]),
        ("flushed", &["FLUSHALL"]),
        ("written with others", &["MSET K 5 O 5"]),
        ("written with others to the same value", &["MSET K 1 O 1"]),
        ("swapped for another table's", &["SWAPDB 0 1"]),
    ];
    for (how, commands) in changes {
        let (mut watcher, mut writer) = (cluster.connect(1), cluster.connect(2));
        writer.mset_all(&[&key, &other], "1").unwrap();
        assert_eq!(watcher.say(&format!("WATCH {other} {key}")), "OK");
        for command in *commands {
            let command = command.replace('K', &key).replace('O', &other);
            let command = if *how == "flushed" { "FLUSHALL".to_owned() } else { command };
            writer.say(&command);
        }
        let reply = multi(&mut watcher, &[format!("SET {other} executed")]);
        assert_eq!(reply, "nil", "{how}");
        assert_ne!(writer.say(&format!("GET {other}")), "executed", "{how}");
        // EXEC has forgotten the keys.
        let reply = multi(&mut watcher, &[format!("SET {other} executed")]);
        assert!(reply.contains("OK"), "{how}: {reply}");
    }
}

#[test]
fn a_watched_key_that_stays_lets_exec_through() {
    let cluster = Cluster::start();
    let key = cluster.key_on(3, "watched");
    let mut writer = cluster.connect(2);
    writer.say(&format!("SET {key} 1"));
    for (how, command) in [
        ("read", format!("GET {key}")),
        ("a missing key deleted", "DEL nosuch".into()),
        ("a write that failed", format!("SETNX {key} 2")),
    ] {
        let mut watcher = cluster.connect(1);
        watcher.say(&format!("WATCH {key} nosuch"));
        writer.say(&command);
        let reply = multi(&mut watcher, &[format!("GET {key}")]);
        assert!(reply.contains('1'), "{how}: {reply}");
    }
    let mut watcher = cluster.connect(1);
    watcher.say(&format!("WATCH {key}"));
    watcher.say("UNWATCH");
    writer.say(&format!("SET {key} 7"));
    let reply = multi(&mut watcher, &[format!("GET {key}")]);
    assert!(reply.contains('7'), "{reply}");
}

#[test]
fn a_watched_key_that_expires_has_changed() {
    let cluster = Cluster::start();
    let key = cluster.key_on(2, "brief");
    let (mut watcher, mut reader) = (cluster.connect(1), cluster.connect(3));
    reader.say(&format!("SET {key} 1 PX 60"));
    assert_eq!(watcher.say(&format!("WATCH {key}")), "OK");
    eventually("the key expires", PATIENCE, || {
        (reader.say(&format!("EXISTS {key}")) == "0").then_some(())
    });
    assert_eq!(multi(&mut watcher, &["PING".into()]), "nil");
}

/// Nothing removes the watched key: the one that tells the time lies beside it.
#[test]
fn a_watched_key_that_has_expired_has_changed_though_nobody_looked() {
    for cluster in [Cluster::start(), Cluster::start_in_memory()] {
        let keys = cluster.keys_on(2, "brief", 3);
        let [key, clock, done] = &keys[..] else { panic!("three keys") };
        let other = cluster.key_on(3, "done");
        let (mut watcher, mut reader) = (cluster.connect(1), cluster.connect(2));
        let queues = [
            vec![format!("GET {key}")],
            vec![format!("GET {key}"), format!("SET {done} x")],
            vec![format!("SET {done} x"), format!("SET {other} x")],
            vec![format!("RENAME {clock} {other}")],
        ];
        for queue in &queues {
            reader.pipeline(&[format!("SET {key} 1 PX 80"), format!("SET {clock} 1 PX 80")]);
            assert_eq!(watcher.say(&format!("WATCH {key}")), "OK");
            eventually("its time has come", PATIENCE, || {
                (reader.say(&format!("EXISTS {clock}")) == "0").then_some(())
            });
            assert_eq!(multi(&mut watcher, queue), "nil", "{queue:?}");
        }
        assert_eq!(reader.say(&format!("EXISTS {done} {other}")), "0");
    }
}

#[test]
fn what_had_expired_when_it_was_watched_has_not_changed() {
    let cluster = Cluster::start();
    let key = cluster.key_on(2, "past");
    let (mut watcher, mut writer) = (cluster.connect(1), cluster.connect(3));
    for _ in 0..4 {
        writer.say(&format!("SET {key} 1 PX 1"));
        eventually("it expires", PATIENCE, || {
            watcher.say(&format!("WATCH {key}"));
            let seen = multi(&mut watcher, &[format!("GET {key}")]);
            assert!(["[nil]", "nil", "[\"1\"]"].contains(&seen.as_str()), "{seen}");
            (seen == "[nil]").then_some(())
        });
    }
    // A set in the past is a change even of a key that is not there.
    writer.say(&format!("DEL {key}"));
    watcher.say(&format!("WATCH {key}"));
    writer.say(&format!("SET {key} 1 PXAT 1000"));
    assert_eq!(multi(&mut watcher, &[format!("GET {key}")]), "nil");
}

/// Who watches takes bounded memory that is counted, gives it back, and harms no other watcher.
#[test]
fn watched_keys_are_counted_bounded_and_forgotten() {
    let cluster = Cluster::start_in_memory();
    let watched = |cluster: &Cluster| -> u64 {
        let of = |node| {
            let info = cluster.connect(node).say("INFO clients");
            let (_, figure) = info.split_once("total_watched_keys:").expect("the field");
            figure.split("\\r").next().unwrap().parse::<u64>().unwrap()
        };
        cluster.ids().map(of).sum()
    };
    let used = |cluster: &Cluster| -> u64 {
        let of = |node| {
            let info = cluster.connect(node).say("INFO memory");
            let (_, figure) = info.split_once("used_memory:").expect("the field");
            figure.split("\\r").next().unwrap().parse::<u64>().unwrap()
        };
        cluster.ids().map(of).sum()
    };
    let mut patient = cluster.connect(3);
    assert_eq!(patient.say("WATCH mine"), "OK");
    let ends = ["UNWATCH", "EXEC", "DISCARD", "EXEC now", "RESET", "close"];
    for end in ends {
        let mut client = cluster.connect(1);
        for number in 0..40 {
            let long = "k".repeat(2000);
            client.say(&format!("WATCH {long}{number} again again {number}"));
        }
        assert_eq!(watched(&cluster), 1 + 40 * 2 + 1, "{end}");
        assert!(used(&cluster) > 40 * 2 * 16, "{end}: what is watched takes memory");
        if matches!(end, "EXEC" | "DISCARD") {
            client.say("MULTI");
        }
        match end {
            "close" => drop(client),
            end => drop(client.say(end)),
        }
        let forgotten = || (watched(&cluster) == 1).then_some(());
        eventually(end, PATIENCE, forgotten);
    }
    let mut greedy = cluster.connect(1);
    let mut refused = String::new();
    for turn in 0..40 {
        let keys: Vec<String> = (0..1000).map(|number| format!("{turn}:{number}")).collect();
        refused = greedy.say(&format!("WATCH {}", keys.join(" ")));
        if refused != "OK" {
            break;
        }
    }
    assert!(refused.starts_with("-ERR a client can watch"), "{refused}");
    let reply = multi(&mut patient, &["SET mine x".into()]);
    assert_eq!(reply, "[OK]");
}

#[test]
fn errors_while_queueing_are_remembered() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    assert!(client.say("EXEC").contains("EXEC without MULTI"));
    assert!(client.say("DISCARD").contains("DISCARD without MULTI"));
    client.say("MULTI");
    assert!(client.say("MULTI").contains("MULTI calls can not be nested"));
    assert!(client.say("WATCH x").contains("WATCH inside MULTI is not allowed"));
    assert_eq!(client.say("SET spoilt 1"), "QUEUED");
    assert!(client.say("NOSUCH").contains("unknown command"));
    assert!(client.say("EXEC").contains("EXECABORT"));
    assert_eq!(client.say("EXISTS spoilt"), "0");
    client.say("MULTI");
    assert_eq!(client.say("SET spoilt 1"), "QUEUED");
    assert_eq!(client.say("DISCARD"), "OK");
    assert_eq!(client.say("EXISTS spoilt"), "0");
    client.say("MULTI");
    assert!(client.say("EXEC now").contains("EXECABORT"));
    assert!(client.say("EXEC").contains("EXEC without MULTI"));
}

/// A table is counted as the transaction sees it, and what is about a node or a walk answers in its
/// place.
#[test]
fn exec_counts_what_it_has_done_and_serves_the_rest_in_place() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("count", 1);
    let [a, b, c] = &keys[..] else { panic!("a key a node") };
    let mut client = cluster.connect(1);
    client.say(&format!("SET {a} 0"));
    let mut stream = dial(cluster.ports(2).client);
    let lines = format!(
        "MULTI\r\nDBSIZE\r\nMSET {a} 1 {b} 2\r\nDBSIZE\r\nFLUSHDB\r\nDBSIZE\r\n\
         SET {c} 3\r\nDBSIZE\r\nCONFIG SET hz 11\r\nCONFIG GET hz\r\nKEYS *\r\nEXEC\r\n"
    );
    std::io::Write::write_all(&mut stream, lines.as_bytes()).unwrap();
    let queued = "+QUEUED\r\n".repeat(10);
    let counts = ":1\r\n+OK\r\n:2\r\n+OK\r\n:0\r\n+OK\r\n:1\r\n";
    let rest = "+OK\r\n*2\r\n$2\r\nhz\r\n$2\r\n11\r\n";
    let all = format!("*1\r\n${}\r\n{c}\r\n", c.len());
    expect(&mut stream, &format!("+OK\r\n{queued}*10\r\n{counts}{rest}{all}"));

    // Each count goes on from the one before it, table by table.
    let size = "DBSIZE".to_owned();
    let mut commands = Vec::new();
    let mut expected = Vec::new();
    let mut say = |command: String, reply: &str| {
        commands.push(command);
        expected.push(reply.to_owned());
    };
    for (command, reply, count) in [
        (format!("SET {c} 4"), "OK", 1),
        (format!("DEL {c} {c}"), "1", 0),
        (format!("MSET {a} 1 {b} 1"), "OK", 2),
        ("SELECT 3".into(), "OK", 0),
        (format!("SET {a} 1"), "OK", 1),
        ("SELECT 0".into(), "OK", 2),
        (format!("SETNX {a} 1"), "0", 2),
        ("FLUSHALL".into(), "OK", 0),
        (format!("APPEND {a} x"), "1", 1),
        ("SELECT 3".into(), "OK", 0),
        (format!("APPEND {b} x"), "1", 1),
        (format!("DEL {b} {a}"), "1", 0),
        (format!("INCR {b}"), "1", 1),
        ("SELECT 0".into(), "OK", 1),
    ] {
        say(command, reply);
        say(size.clone(), &count.to_string());
        say(size.clone(), &count.to_string());
    }
    assert_eq!(multi(&mut client, &commands), format!("[{}]", expected.join(" ")));
    assert_eq!(client.say("DBSIZE"), "1");
}

/// Commands on whole tables beside one whose result needs keys of several nodes: each sees what
/// those before it have done, and keys that nobody names share the tables' fate.
#[test]
fn exec_flushes_and_swaps_tables_between_commands_that_gather() {
    let cluster = Cluster::start();
    let keys = cluster.keys_everywhere("whole", 2);
    let [a, b, c, d, ..] = &keys[..] else { panic!("keys of all nodes") };
    let mut client = cluster.connect(2);
    let set_up = |client: &mut Client| {
        client.say("FLUSHALL");
        client.say("SELECT 2");
        client.mset_all(&[b, d], "two").unwrap();
        client.say("SELECT 0");
        client.mset_all(&[a, c], "zero").unwrap();
        client.mset_all(&["bystander:1", "bystander:2", "bystander:3"], "here").unwrap();
    };
    set_up(&mut client);
    let renamed = format!("RENAME {a} {b}");
    let after = [
        renamed.clone(),
        "FLUSHDB".into(),
        format!("EXISTS {b} {c}"),
        format!("SET {c} fresh"),
        format!("COPY {c} {d}"),
    ];
    assert_eq!(multi(&mut client, &after), "[OK OK 0 OK 1]");
    assert_eq!(client.say("DBSIZE"), "2");
    assert_eq!(client.say(&format!("GET {d}")), "\"fresh\"");
    client.say("SELECT 2");
    assert_eq!(client.say(&format!("GET {d}")), "\"two\"", "FLUSHDB empties one table");
    client.say("SELECT 0");

    set_up(&mut client);
    let swapped = [
        renamed.clone(),
        "SWAPDB 0 2".into(),
        format!("GET {b}"),
        format!("RENAME {d} {a}"),
        "SWAPDB 2 5".into(),
        format!("SET {c} last"),
    ];
    assert_eq!(multi(&mut client, &swapped), "[OK OK \"two\" OK OK OK]");
    let mut held = |table: u8| {
        client.say(&format!("SELECT {table}"));
        let count = client.say("DBSIZE");
        let [a, b, c, d] = [a, b, c, d].map(|key| client.say(&format!("GET {key}")));
        format!("{count}: {a} {b} {c} {d}")
    };
    assert_eq!(held(0), "3: \"two\" \"two\" \"last\" nil");
    assert_eq!(held(2), "0: nil nil nil nil");
    assert_eq!(held(5), "5: nil \"zero\" \"zero\" nil");

    set_up(&mut client);
    let reply = multi(&mut client, &["FLUSHALL".into(), renamed, format!("SET {a} 1")]);
    assert!(reply.contains("no such key"), "{reply}");
    for node in cluster.ids() {
        assert_eq!(cluster.connect(node).say("DBSIZE"), "1");
    }
    // A watched key that was only named has not changed; one that was flushed has.
    let (mut watcher, mut other) = (cluster.connect(1), cluster.connect(3));
    for (key, seen) in [(b, "[nil]"), (a, "nil")] {
        watcher.say(&format!("WATCH {key}"));
        let named = multi(&mut other, &["FLUSHDB".into(), format!("RENAMENX {b} {c}")]);
        assert!(named.contains("no such key"), "{named}");
        assert_eq!(multi(&mut watcher, &[format!("GET {b}")]), seen);
        other.say(&format!("SET {a} 1"));
    }
}

/// Transfers by WATCH, MULTI and EXEC, with retries, from all nodes: money is neither made nor
/// lost, and whoever looks sees all of it.
#[test]
fn money_moved_under_watch_is_never_made_or_lost() {
    const EACH: u64 = 40;
    let cluster = Cluster::start();
    let accounts = cluster.keys_everywhere("money", 1);
    cluster.connect(1).mset_all(&accounts, "100").unwrap();
    let (done, checks, retries) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&done);
        let movers: Vec<_> = cluster
            .ids()
            .map(|node| {
                let mut client = cluster.connect(node);
                let (accounts, retries) = (&accounts, &retries);
                scope.spawn(move || {
                    for turn in 0..EACH {
                        let from = &accounts[(turn as usize + usize::from(node)) % 3];
                        let to = &accounts[(turn as usize + usize::from(node) + 1) % 3];
                        loop {
                            client.say(&format!("WATCH {from} {to}"));
                            let read = client.mget(&[from, to]).unwrap();
                            let amount = |at: usize| -> i64 {
                                read[at].as_deref().unwrap().parse().unwrap()
                            };
                            let commands = [
                                format!("SET {from} {}", amount(0) - 1),
                                format!("SET {to} {}", amount(1) + 1),
                            ];
                            if multi(&mut client, &commands) != "nil" {
                                break;
                            }
                            retries.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        for node in cluster.ids() {
            let mut client = cluster.connect(node);
            let (accounts, done, checks) = (&accounts, &done, &checks);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let seen = client.mget(accounts).unwrap();
                    let sum: i64 =
                        seen.iter().map(|v| v.as_deref().unwrap().parse::<i64>().unwrap()).sum();
                    assert_eq!(sum, 300, "{seen:?}");
                    checks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let moved: Vec<_> = movers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        drop(at_end);
        assert!(moved.into_iter().all(|mover| mover.is_ok()), "every transfer got through");
    });
    assert!(checks.load(Ordering::Relaxed) > 10, "the sum was looked at");
}

/// Its one evaluation would hold up the node's links: the next smaller one is served.
#[test]
fn a_command_that_gathers_too_many_keys_is_refused() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    let pairs = |count: usize| (0..count).map(|key| format!(" g{key} 1")).collect::<String>();
    let refused = client.say(&format!("MSETNX{}", pairs(32_769)));
    assert_eq!(refused, "-ERR the command gathers 32769 keys at one node, where 32768 are allowed");
    assert_eq!(client.say(&format!("MSETNX{}", pairs(4_096))), "1");
    assert_eq!(client.say(&format!("MSET{}", pairs(32_769))), "OK");
}

/// A request of a few kilobytes must not make gigabytes of reply in one turn.
#[test]
fn one_value_many_times_is_too_long_a_reply() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    assert_eq!(client.say(&format!("SET big {}", "x".repeat(1 << 20))), "OK");
    assert_eq!(client.say("SET other 1"), "OK");
    let refused = "-ERR the request or its reply is too long";
    let together = client.say(&format!("MGET other{}", " big".repeat(130)));
    assert!(together.starts_with("-ERR what is to be executed together"), "{together}");
    assert_eq!(client.say(&format!("MGET{}", " big".repeat(129))), refused);
    assert_eq!(client.say("GET other"), "\"1\"");
}

/// Values that one request makes and goes through are counted before it begins, wherever it runs:
/// more than 128 MiB of them beside the greatest are refused at once, and nothing is done.
#[test]
fn what_an_exec_goes_through_is_bounded() {
    const LENGTH: usize = 4 << 20;
    const MANY: usize = 40;
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    let value = "v".repeat(LENGTH);
    let chain: Vec<String> = (0..MANY).map(|n| format!("COPY {{x}}{n} {{x}}{}", n + 1)).collect();
    let apart: Vec<String> = (1..=MANY).map(|n| format!("COPY {{x}}0 apart{n}")).collect();
    let over: Vec<String> = (0..MANY).map(|_| "BITOP NOT {x}over {x}0".to_owned()).collect();
    // A value that the transaction itself sets counts as one that was there.
    let first = format!("SET {{x}}0 {value}");
    let set: Vec<String> = std::iter::once(first.clone()).chain(chain.iter().cloned()).collect();
    assert_eq!(multi(&mut client, &set), refused_together());
    assert_eq!(client.say("DBSIZE"), "0");

    assert_eq!(client.say(&first), "OK");
    for commands in [&apart, &over] {
        assert_eq!(multi(&mut client, commands), refused_together());
        assert_eq!(client.say("DBSIZE"), "1");
    }
    // A quarter of it is not too much, in one partition and in several.
    let few = |commands: &[String]| commands[..MANY / 4].to_vec();
    for commands in [few(&chain), few(&apart)] {
        assert_eq!(multi(&mut client, &commands), format!("[{}]", ["1"; MANY / 4].join(" ")));
    }
    assert_eq!(client.say("DBSIZE"), (1 + MANY / 2).to_string());
    assert_eq!(client.say(&format!("STRLEN {{x}}{}", MANY / 4)), LENGTH.to_string());

    // What a command gathers is counted too.
    let mut sum = vec!["BITOP".to_owned(), "OR".into(), "sum".into()];
    for n in 0..MANY {
        assert_eq!(client.say(&format!("SET {{y}}{n} {value}")), "OK");
        sum.push(format!("{{y}}{n}"));
    }
    let refused = client.say(&sum.join(" "));
    assert!(refused.starts_with("-ERR what is to be executed together"), "{refused}");
    assert_eq!(client.say("EXISTS sum"), "0");
}

/// A few kilobytes ask for two gibibytes of replies: the nodes make no more than a part of them, others
/// are served meanwhile, and nothing of it is done.
#[test]
fn what_an_exec_answers_is_bounded() {
    const LENGTH: usize = 1 << 20;
    const READS: usize = 140;
    const GROWTH_MAX: u64 = 512 << 20;
    let mut cluster = Cluster::start();
    let mut client = cluster.connect(1);
    let value = "v".repeat(LENGTH);
    let keys = cluster.keys_everywhere("answer", 5);
    for key in &keys {
        assert_eq!(client.say(&format!("SET {key} {value}")), "OK");
    }
    let gets = || keys.iter().flat_map(|key| (0..READS).map(move |_| format!("GET {key}")));
    let reads: Vec<String> = gets().collect();
    let writes: Vec<String> = std::iter::once("INCR counter".to_owned()).chain(gets()).collect();
    let ids = cluster.ids();
    let before: Vec<u64> = ids.clone().map(|id| cluster.process(id).peak_memory()).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&done);
        let mut other = cluster.connect(2);
        let (done, own) = (&done, &keys[0]);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(other.say(&format!("STRLEN {own}")), LENGTH.to_string());
            }
        });
        for commands in [&reads, &writes] {
            assert_eq!(multi(&mut client, commands), refused_together());
        }
        drop(at_end);
    });
    assert_eq!(client.say("EXISTS counter"), "0");
    for (id, before) in ids.zip(before) {
        let grown = cluster.process(id).peak_memory() - before;
        assert!(grown < GROWTH_MAX, "node {id} has grown by {grown} bytes");
    }
    let few: Vec<String> = keys.iter().map(|key| format!("GET {key}")).collect();
    let given = vec![format!("\"{value}\""); few.len()];
    assert!(multi(&mut client, &few) == format!("[{}]", given.join(" ")), "what is short is given");
}

/// What an `EXEC` is told that goes through too much.
fn refused_together() -> String {
    format!(
        "-EXECABORT Transaction discarded because of: ERR what is to be executed together goes \
         through, or answers with, more than {} bytes of values: nothing was executed",
        128 << 20
    )
}
