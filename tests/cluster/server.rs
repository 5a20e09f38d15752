//! Commands about the node and its connections, and the limits of what clients may do to it.

use crate::harness::{
    Client, Cluster, PATIENCE, Protocol, dial, eventually, expect, read_on, read_to_end,
};
use quorate::cluster::barrier::Hello;
use quorate::ids::NodeId;
use quorate::net::frame;
use quorate::net::packet::{self, Packet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Two arbiters a node: whatever is about all clients has to find those of both.
const TWO: &str = "";

/// A field of `INFO` as a number.
fn figure(client: &mut Client, field: &str) -> Option<u64> {
    let info = client.say("INFO all");
    let begin = info.find(&format!("\\n{field}:"))? + field.len() + 3;
    let rest: String = info[begin..].chars().take_while(char::is_ascii_digit).collect();
    rest.parse().ok()
}

/// A field of a line of `CLIENT LIST`.
fn field<'l>(line: &'l str, name: &str) -> &'l str {
    let found = line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// The lines of `CLIENT LIST`.
fn clients(client: &mut Client) -> Vec<String> {
    let list = client.say("CLIENT LIST");
    list.trim_matches('"').split("\\n").filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

#[test]
fn clients_of_all_arbiters_are_listed_named_and_killed() {
    let cluster = Cluster::start_with(TWO);
    let mut all: Vec<Client> = (0..6).map(|_| cluster.connect(1)).collect();
    for (n, client) in all.iter_mut().enumerate() {
        assert_eq!(client.say(&format!("CLIENT SETNAME c{n}")), "OK");
    }
    all[3].say("SELECT 5");
    all[3].say("GET x");
    let lines = clients(&mut all[0]);
    assert_eq!(lines.len(), 6, "{lines:?}");
    let of = |name: &str| lines.iter().find(|line| field(line, "name") == name).unwrap().clone();
    assert_eq!((field(&of("c3"), "db"), field(&of("c3"), "cmd")), ("5", "get"));
    assert_eq!(field(&of("c0"), "cmd"), "client|list");
    assert_eq!(field(&of("c1"), "flags"), "N");
    let ids: Vec<u64> = lines.iter().map(|line| field(line, "id").parse().unwrap()).collect();
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");

    // The old form, the new form, and oneself.
    let victim = of("c1");
    assert_eq!(all[0].say(&format!("CLIENT KILL {}", field(&victim, "addr"))), "OK");
    assert_eq!(
        all[0].say(&format!("CLIENT KILL {}", field(&victim, "addr"))),
        "-ERR No such client"
    );
    assert_eq!(all[0].say(&format!("CLIENT KILL ID {}", field(&of("c2"), "id"))), "1");
    assert!(all[1].ask(&["PING"]).is_err() && all[2].ask(&["PING"]).is_err());
    assert_eq!(clients(&mut all[0]).len(), 4, "the killed are gone from the list at once");
    eventually("their connections are closed", PATIENCE, || {
        (figure(&mut all[0], "connected_clients") == Some(4)).then_some(())
    });
    assert_eq!(all[0].say("CLIENT KILL TYPE pubsub"), "0");
    assert_eq!(all[0].say("CLIENT KILL TYPE normal"), "3");
    assert_eq!(all[0].say("PING"), "PONG");
    assert_eq!(all[0].say("CLIENT KILL TYPE normal SKIPME no"), "1");
    assert!(all[0].ask(&["PING"]).is_err());
}

#[test]
fn client_list_shows_what_is_buffered() {
    let cluster = Cluster::start();
    let mut watcher = cluster.connect(1);
    let mut half = dial(cluster.ports(1).client);
    half.write_all(b"*2\r\n$3\r\nGET\r\n$100\r\nabc").unwrap();
    eventually("the half request is seen", PATIENCE, || {
        clients(&mut watcher).iter().any(|line| field(line, "qbuf") == "22").then_some(())
    });
    // One who does not read has replies waiting.
    let key = cluster.key_on(1, "big");
    watcher.say(&format!("SET {key} {}", "x".repeat(1 << 20)));
    let request = format!("GET {key}\r\n").repeat(40);
    half.write_all(&[&[b'k'; 97][..], b"\r\n", request.as_bytes()].concat()).unwrap();
    eventually("replies wait", PATIENCE, || {
        let waits = |line: &String| field(line, "omem").parse::<u64>().unwrap() > 0;
        clients(&mut watcher).iter().any(waits).then_some(())
    });
}

#[test]
fn a_pause_holds_commands_back_and_ends() {
    let cluster = Cluster::start_with(TWO);
    let key = cluster.key_on(2, "pause");
    let (mut one, mut two, mut three) =
        (cluster.connect(1), cluster.connect(1), cluster.connect(1));
    assert_eq!(one.say("CLIENT PAUSE 60000 WRITE"), "OK");
    assert_eq!(two.say(&format!("GET {key}")), "nil");
    let writer = std::thread::spawn({
        let key = key.clone();
        move || (three.say(&format!("SET {key} 1")), three)
    });
    for _ in 0..20 {
        assert_eq!(two.say(&format!("GET {key}")), "nil", "the write is held back");
    }
    assert_eq!(one.say("CLIENT UNPAUSE"), "OK");
    let (reply, mut three) = writer.join().unwrap();
    assert_eq!(reply, "OK");
    let begun = Instant::now();
    assert_eq!(one.say("CLIENT PAUSE 300"), "OK");
    assert_eq!(three.say("PING"), "PONG");
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    assert_eq!(one.say("CLIENT PAUSE x"), "-ERR timeout is not an integer or out of range");
    assert_eq!(one.say("CLIENT PAUSE -1"), "-ERR timeout is negative");
}

#[test]
fn a_client_may_do_without_replies() {
    let cluster = Cluster::start();
    let [a, b, c] = [1, 2, 3].map(|id| cluster.key_on(id, "reply"));
    let mut stream = dial(cluster.ports(1).client);
    let request = format!(
        "CLIENT REPLY SKIP\r\nRESET\r\nCLIENT REPLY SKIP\r\nSET {a} 1\r\nGET {a}\r\nCLIENT REPLY OFF\r\nSET {b} 2\r\nnosuch\r\n\
         MSET {a} 3 {b} 4 {c} 5\r\nPING\r\nCLIENT REPLY ON\r\nMGET {a} {b} {c}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    expect(&mut stream, "$1\r\n1\r\n+OK\r\n*3\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n5\r\n");
    for last in ["QUIT\r\n", "*1\r\n$x\r\n"] {
        let mut stream = dial(cluster.ports(1).client);
        stream.write_all(format!("PING\r\nCLIENT REPLY OFF\r\nPING\r\n{last}").as_bytes()).unwrap();
        assert_eq!(read_to_end(&mut stream), "+PONG\r\n", "{last:?}");
    }
}

#[test]
fn a_monitor_sees_what_all_clients_ask() {
    let cluster = Cluster::start_with(TWO);
    let mut monitor = dial(cluster.ports(1).client);
    monitor.write_all(b"MONITOR\r\n").unwrap();
    expect(&mut monitor, "+OK\r\n");
    let mut all: Vec<Client> = (0..4).map(|_| cluster.connect(1)).collect();
    for (n, client) in all.iter_mut().enumerate() {
        client.ask(&["SET", &format!("seen:{n}"), "a \"b\"\n\u{1}"]).unwrap();
    }
    let mut seen = String::new();
    let mut piece = [0; 4096];
    while !(0..4).all(|n| seen.contains(&format!("seen:{n}"))) {
        let n = read_on(&mut monitor, &mut piece).expect("the monitor is told");
        assert!(n > 0, "closed after {seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    assert!(seen.contains(r#"] "SET" "seen:2" "a \"b\"\n\x01""#), "{seen}");
    let line = clients(&mut all[0]).into_iter().find(|line| field(line, "flags") == "O");
    assert_eq!(field(&line.expect("a monitor"), "cmd"), "monitor");
    monitor.write_all(b"GET seen:1\r\n").unwrap();
    seen.clear();
    while !seen.contains("-ERR Replica can't interact with the keyspace\r\n") {
        let n = read_on(&mut monitor, &mut piece).expect("a monitor is refused");
        assert!(n > 0, "closed after {seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    assert!(!seen.contains("GET"), "{seen}");
    // It can go back to being a client like others.
    monitor.write_all(b"RESET\r\n").unwrap();
    eventually("the monitor is none any more", PATIENCE, || {
        clients(&mut all[0]).iter().all(|line| field(line, "flags") == "N").then_some(())
    });
}

#[test]
fn settings_are_the_nodes_and_of_all_its_arbiters() {
    let cluster = Cluster::start_with(TWO);
    let mut all: Vec<Client> = (0..4).map(|_| cluster.connect(1)).collect();
    assert_eq!(all[0].say("CONFIG GET maxclients"), r#"["maxclients" "10000"]"#);
    assert_eq!(all[0].say("CONFIG SET maxclients 5 hash-max-listpack-entries 7"), "OK");
    for client in &mut all {
        assert_eq!(client.say("CONFIG GET maxclients"), r#"["maxclients" "5"]"#);
    }
    assert_eq!(cluster.connect(2).say("CONFIG GET maxclients"), r#"["maxclients" "10000"]"#);
    all.push(cluster.connect(1));
    let mut late = dial(cluster.ports(1).client);
    assert_eq!(read_to_end(&mut late), "-ERR max number of clients reached\r\n");
    assert!(figure(&mut all[1], "rejected_connections") >= Some(1));
    assert_eq!(
        all[0].say("CONFIG SET appendonly yes"),
        "-ERR CONFIG SET failed (possibly related to argument 'appendonly') - nothing is written \
         to disk"
    );
    // A word that is longer than what is set now.
    assert_eq!(all[0].say("CONFIG SET proto-max-bulk-len 1048576"), "OK");
    let long = "x".repeat((1 << 20) + 1);
    assert!(all[3].ask(&["SET", "long", &long]).is_err(), "as if it had been set in the file");
}

#[test]
fn info_counts_what_clients_do_and_forgets_when_told() {
    let cluster = Cluster::start_with(TWO);
    let mut client = cluster.connect(1);
    let mut other = cluster.connect(1);
    let (here, there) = (cluster.key_on(1, "info"), cluster.key_on(2, "info"));
    let before = |client: &mut Client, name: &str| figure(client, name).unwrap_or_default();
    let commands = before(&mut client, "total_commands_processed");
    let (bytes_in, bytes_out) = (
        before(&mut client, "total_net_input_bytes"),
        before(&mut client, "total_net_output_bytes"),
    );
    let errors = before(&mut client, "total_error_replies");
    let memory = before(&mut client, "used_memory");
    for _ in 0..10 {
        assert_eq!(other.say(&format!("SET {here} {}", "v".repeat(1000))), "OK");
        assert_eq!(client.say(&format!("SET {there} {}", "v".repeat(1000))), "OK");
    }
    other.say("nosuchcommand");
    assert!(before(&mut client, "total_commands_processed") >= commands + 20);
    assert!(before(&mut client, "total_net_input_bytes") >= bytes_in + 20_000);
    assert!(before(&mut client, "total_net_output_bytes") >= bytes_out + 20 * 5);
    assert!(before(&mut client, "total_error_replies") > errors);
    assert!(before(&mut client, "used_memory") >= memory + 1000);
    assert!(before(&mut client, "used_memory_peak") >= memory + 1000);
    let info = client.say("INFO commandstats");
    assert!(info.contains("cmdstat_set:calls=20,usec="), "{info}");
    // The node holds its own keys and copies of the others'.
    eventually("the copy is there", PATIENCE, || {
        client.say("INFO keyspace").contains("db0:keys=2,expires=0").then_some(())
    });
    other.say(&format!("DEL {here} {there}"));
    // The tables themselves stay.
    eventually("both values are gone", PATIENCE, || {
        (before(&mut client, "used_memory") < memory + 2000).then_some(())
    });
    assert!(before(&mut client, "used_memory_peak") >= memory + 1000);

    assert_eq!(client.say("CONFIG RESETSTAT"), "OK");
    assert!(before(&mut client, "total_commands_processed") < 5);
    assert_eq!(before(&mut client, "total_error_replies"), 0);
    assert!(!client.say("INFO commandstats").contains("cmdstat_set"));
}

/// What follows `name` in `INFO`, up to the end of its line.
fn line(client: &mut Client, name: &str) -> String {
    let info = client.say("INFO all");
    let begin = info.find(name).unwrap_or_else(|| panic!("no {name} in {info}")) + name.len();
    info[begin..].split("\\r").next().unwrap_or_default().to_owned()
}

#[test]
fn info_tells_hits_errors_and_how_long_commands_take() {
    let cluster = Cluster::start_with(TWO);
    let (mut client, mut other) = (cluster.connect(1), cluster.connect(1));
    let keys = cluster.keys_on(1, "figures", 4);
    assert_eq!(client.say("CONFIG RESETSTAT"), "OK");
    client.say(&format!("SET {} x", keys[0]));
    client.say(&format!("SET {} x PX 1", keys[1]));
    for client in [&mut client, &mut other] {
        client.say(&format!("GET {}", keys[0]));
        client.say(&format!("GET {}", keys[2]));
    }
    other.say(&format!("MGET {} {} {}", keys[0], keys[2], keys[3]));
    assert_eq!(figure(&mut client, "keyspace_hits"), Some(3));
    assert_eq!(figure(&mut client, "keyspace_misses"), Some(4));
    assert_eq!(figure(&mut client, "evicted_keys"), Some(0));
    eventually("the key expires", PATIENCE, || {
        (figure(&mut client, "expired_keys") == Some(1)).then_some(())
    });

    other.say(&format!("INCR {}", keys[0]));
    other.say("GET");
    other.say("nosuchcommand");
    other.say("CONFIG SET nonsense 1");
    other.say("EXEC");
    let incr = line(&mut client, "cmdstat_incr:");
    assert!(incr.starts_with("calls=1,usec="), "{incr}");
    assert!(incr.ends_with(",rejected_calls=0,failed_calls=1"), "{incr}");
    let get = line(&mut client, "cmdstat_get:");
    assert!(get.starts_with("calls=4,usec=") && get.contains(",rejected_calls=1,"), "{get}");
    assert_eq!(line(&mut client, "errorstat_ERR:"), "count=5");
    assert_eq!(figure(&mut client, "total_error_replies"), Some(5));

    // Time is measured: a long command takes longer than a short one.
    client.say(&format!("SETRANGE {} 40000000 x", keys[3]));
    let usec = |client: &mut Client, name: &str| -> u64 {
        let all = line(client, &format!("cmdstat_{name}:"));
        let usec = all.split(',').find_map(|pair| pair.strip_prefix("usec=")).unwrap();
        usec.parse().unwrap()
    };
    other.say(&format!("BITCOUNT {}", keys[3]));
    assert!(usec(&mut client, "bitcount") >= 500, "{}", usec(&mut client, "bitcount"));
    assert_eq!(client.say("DEBUG SLEEP 0.02"), "OK");
    assert!((20_000..10_000_000).contains(&usec(&mut client, "debug")));

    // The process: at least the value above is in memory, and time was spent.
    assert!(figure(&mut client, "used_memory_rss") >= Some(40_000_000));
    let cpu = |client: &mut Client| line(client, "used_cpu_user:").parse::<f64>().unwrap();
    let before = cpu(&mut client);
    eventually("work takes processor time", PATIENCE, || {
        other.say(&format!("BITCOUNT {}", keys[3]));
        (cpu(&mut client) > before).then_some(())
    });
    eventually("the second's commands are seen", PATIENCE, || {
        other.say("PING");
        (figure(&mut client, "instantaneous_ops_per_sec") > Some(0)).then_some(())
    });

    // A paused client is blocked.
    assert_eq!(figure(&mut client, "blocked_clients"), Some(0));
    assert_eq!(client.say("CLIENT PAUSE 60000 WRITE"), "OK");
    let writer = std::thread::spawn({
        let key = keys[0].clone();
        move || other.say(&format!("SET {key} 1"))
    });
    eventually("the writer is blocked", PATIENCE, || {
        (figure(&mut client, "blocked_clients") == Some(1)).then_some(())
    });
    assert_eq!(client.say("CLIENT UNPAUSE"), "OK");
    assert_eq!(writer.join().unwrap(), "OK");
    assert_eq!(figure(&mut client, "blocked_clients"), Some(0));

    assert_eq!(client.say("CONFIG RESETSTAT"), "OK");
    for name in ["keyspace_hits", "keyspace_misses", "expired_keys", "total_error_replies"] {
        assert_eq!(figure(&mut client, name), Some(0), "{name}");
    }
    assert!(!client.say("INFO errorstats").contains("errorstat_"));
}

#[test]
fn time_goes_on_in_microseconds() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    let mut micros = || -> u64 {
        let time = client.say("TIME");
        let mut parts = time.split('"').filter_map(|part| part.parse::<u64>().ok());
        let (seconds, micros) = (parts.next().unwrap(), parts.next().unwrap());
        assert!(micros < 1_000_000, "{time}");
        seconds * 1_000_000 + micros
    };
    let since = |epoch: std::time::SystemTime| epoch.elapsed().unwrap().as_micros() as u64;
    let before = since(std::time::UNIX_EPOCH);
    let times: Vec<u64> = (0..50).map(|_| micros()).collect();
    let after = since(std::time::UNIX_EPOCH);
    assert!(times.is_sorted(), "{times:?}");
    // The node compares its count with the clock's milliseconds.
    assert!(times[0] + 3_000 >= before && times[49] <= after + 3_000, "{before} {times:?} {after}");
    assert!(times.iter().any(|time| time % 1000 != times[0] % 1000), "{times:?}");
}

#[test]
fn slow_commands_are_logged_whichever_arbiter_served_them() {
    let cluster = Cluster::start_with(TWO);
    let mut all: Vec<Client> = (0..4).map(|_| cluster.connect(1)).collect();
    assert_eq!(all[0].say("SLOWLOG RESET"), "OK");
    assert_eq!(
        all[0].say("CONFIG SET slowlog-log-slower-than 20000 latency-monitor-threshold 20"),
        "OK"
    );
    all[1].say("CLIENT SETNAME sleeper");
    for client in &mut all[1..3] {
        assert_eq!(client.say("DEBUG SLEEP 0.05"), "OK");
    }
    assert_eq!(all[0].say("SLOWLOG LEN"), "2");
    let entries = all[3].say("SLOWLOG GET -1");
    assert_eq!(entries.matches(r#"["DEBUG" "SLEEP" "0.05"]"#).count(), 2, "{entries}");
    assert!(entries.contains(r#""sleeper""#), "{entries}");
    assert_eq!(all[0].say("SLOWLOG GET 1").matches("DEBUG").count(), 1);
    let latest = all[0].say("LATENCY LATEST");
    let words: Vec<&str> = latest.trim_matches(['[', ']']).split(' ').collect();
    assert_eq!(words[0], r#""command""#, "{latest}");
    assert!(words[2].parse::<u64>().unwrap() >= 50, "{latest}");
    assert!(all[0].say("LATENCY HISTORY command").len() > 4);
    assert!(all[0].say("LATENCY DOCTOR").contains("command: "));
    assert!(all[0].say("LATENCY GRAPH command").contains("ms"));
    assert_eq!(all[0].say("LATENCY GRAPH x"), "-ERR No samples available for event 'x'");
    assert_eq!(all[2].say("SLOWLOG RESET"), "OK");
    assert_eq!(all[1].say("SLOWLOG LEN"), "0");
    assert_ne!(all[1].say("LATENCY RESET"), "0");
    assert_eq!(all[1].say("LATENCY LATEST"), "[]");
    // Everything is slow, commands on keys with the others that came along included.
    assert_eq!(all[0].say("CONFIG SET slowlog-log-slower-than 0"), "OK");
    all[2].pipeline(&["SET slow 1".into(), "GET slow".into(), "GET slow".into()]);
    let entries = all[0].say("SLOWLOG GET");
    assert!(
        entries.contains(r#"["set" "slow" "1" "... (and 2 more commands with it)"]"#),
        "{entries}"
    );
}

#[test]
fn memory_usage_is_that_of_the_key() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    for id in [1, 2, 3] {
        let key = cluster.key_on(id, "memory");
        assert_eq!(client.say(&format!("MEMORY USAGE {key}")), "nil");
        client.say(&format!("SET {key} x"));
        let small: u64 = client.say(&format!("MEMORY USAGE {key}")).parse().unwrap();
        client.say(&format!("SET {key} {}", "x".repeat(10_000)));
        let large: u64 = client.say(&format!("MEMORY USAGE {key} SAMPLES 0")).parse().unwrap();
        assert!(small < 100 && large >= small + 9_000, "{small} {large}");
    }
    // Of the node: its own keys and copies of the others'.
    eventually("the copies are there", PATIENCE, || {
        client.say("MEMORY STATS").contains(r#""keys.count" 3"#).then_some(())
    });
    assert!(client.say("MEMORY DOCTOR").contains("3 keys take"));
}

#[test]
fn the_cluster_commands_tell_where_keys_are() {
    let mut cluster = Cluster::start();
    let mut client = cluster.connect(1);
    assert_eq!(client.say("CLUSTER KEYSLOT somekey"), "11058");
    assert_eq!(client.say("CLUSTER KEYSLOT {user1000}.following"), "3443");
    for id in [1, 2, 3] {
        let key = cluster.key_on(id, "slot");
        let slot = client.say(&format!("CLUSTER KEYSLOT {key}"));
        assert_eq!(client.say(&format!("CLUSTER COUNTKEYSINSLOT {slot}")), "0");
        client.say(&format!("MSET {key} 1 {{{key}}}b 2"));
        assert_eq!(client.say(&format!("CLUSTER COUNTKEYSINSLOT {slot}")), "2");
        let keys = client.say(&format!("CLUSTER GETKEYSINSLOT {slot} 10"));
        assert!(keys.contains(&format!("\"{key}\"")) && keys.contains("}b\""), "{keys}");
        let one = client.say(&format!("CLUSTER GETKEYSINSLOT {slot} 1"));
        assert_eq!(one.matches('"').count(), 2, "{one}");
        // The node that CLUSTER SLOTS names for the slot is the one that leads it.
        let port = cluster.ports(id).client;
        let slots = client.say("CLUSTER SLOTS");
        let slot: u64 = slot.parse().unwrap();
        let entry = slots.trim_matches(['[', ']']).split("]] [").find(|entry| {
            // What begins with two numbers begins an entry, with its leader; the rest follows.
            let mut words = entry.split(' ').map(|word| word.trim_matches(['[', ']']));
            let mut next = || words.next().and_then(|word| word.parse::<u64>().ok());
            let (Some(first), Some(last)) = (next(), next()) else { return false };
            (first..=last).contains(&slot)
        });
        assert!(entry.unwrap().contains(&format!(" {port} ")), "{slots}");
    }
    assert_eq!(client.say("CLUSTER COUNTKEYSINSLOT 16384"), "-ERR Invalid slot");
    let myid = client.say("CLUSTER MYID");
    let nodes = cluster.connect(2).say("CLUSTER NODES");
    assert!(nodes.contains(myid.trim_matches('"')), "node 2 knows node 1 by its name: {nodes}");
    assert!(client.say("CLUSTER INFO").contains("cluster_state:ok"));
    cluster.kill(3);
    eventually("node 3 is seen to fail", PATIENCE, || {
        client.say("CLUSTER NODES").contains("master,fail").then_some(())
    });
    eventually("others lead what it led", PATIENCE, || {
        client.say("CLUSTER INFO").contains("cluster_state:ok").then_some(())
    });
}

#[test]
fn small_commands_answer_as_redis_does() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    for (line, reply) in [
        (
            "AUTH secret",
            "-ERR AUTH <password> called without any password configured for the default user. Are \
             you sure your configuration is correct?",
        ),
        ("AUTH default secret", "OK"),
        ("AUTH other x", "-WRONGPASS invalid username-password pair or user is disabled."),
        ("CLIENT NO-EVICT on", "OK"),
        ("CLIENT NO-TOUCH maybe", "-ERR syntax error"),
        ("CLIENT GETREDIR", "-1"),
        ("CLIENT TRACKINGINFO", r#"["flags" ["off"] "redirect" -1 "prefixes" []]"#),
        ("CLIENT KILL ID 0", "-ERR client-id should be greater than 0"),
        ("CLIENT KILL USER nobody", "-ERR No such user 'nobody'"),
        // One of its two followers has whatever was acknowledged.
        ("WAIT 0 0", "1"),
        ("WAIT 1 -1", "-ERR timeout is negative"),
        ("FUNCTION FLUSH", "OK"),
        ("SCRIPT FLUSH SYNC", "OK"),
        ("SCRIPT FLUSH x", "-ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
        ("SLOWLOG GET -2", "-ERR count should be greater than or equal to -1"),
        (
            "DEBUG SEGFAULT",
            "-ERR unknown subcommand or wrong number of arguments for 'SEGFAULT'. Try DEBUG HELP.",
        ),
        ("DEBUG SET-ACTIVE-EXPIRE 1", "OK"),
        ("MEMORY PURGE", "OK"),
        ("COMMAND GETKEYSANDFLAGS SET k v", r#"[["k" [OW update]]]"#),
        ("COMMAND GETKEYS MEMORY USAGE k", r#"["k"]"#),
    ] {
        assert_eq!(client.say(line), reply, "{line}");
    }
    let time = client.say("TIME");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let told: u64 = time.trim_start_matches("[\"").split('"').next().unwrap().parse().unwrap();
    assert!(now.abs_diff(told) <= 2, "{time}");
    assert!(client.say("LASTSAVE").parse::<u64>().unwrap() <= now + 1);
    let mut three = Client::connect(cluster.ports(1).client, Protocol::Resp3).unwrap();
    assert!(three.say("CONFIG GET maxmemory").contains("\"maxmemory\": \"0\""));
}

/// A raw conversation that the node ends with this error.
fn refused(port: u16, request: &[u8], error: &str) {
    let mut stream = dial(port);
    // The node may have closed before it has got all.
    let _ = stream.write_all(request);
    assert_eq!(read_to_end(&mut stream), error);
}

#[test]
fn limits_of_requests_are_told_and_kept() {
    let cluster = Cluster::start_with(
        "limits: { key: 16, value: 1024, arguments: 8, inline: 64, query_buffer: 2KiB, \
         transaction: 1KiB, pipeline: 3 }\n",
    );
    let port = cluster.ports(1).client;
    let mut client = cluster.connect(1);
    let key = "k".repeat(17);
    assert_eq!(client.say(&format!("SET {key} 1")), "-ERR key is longer than 16 bytes");
    assert_eq!(client.say(&format!("MSET a 1 {key} 1")), "-ERR key is longer than 16 bytes");
    assert_eq!(client.say(&format!("SET {} 1", &key[1..])), "OK");
    let protocol = |error: &str| format!("-ERR Protocol error: {error}\r\n");
    refused(port, b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1025\r\n", &protocol("invalid bulk length"));
    refused(port, b"*9\r\n", &protocol("invalid multibulk length"));
    refused(port, &[b'x'; 100], &protocol("too big inline request"));
    let mut many = b"*8\r\n$3\r\nDEL\r\n".to_vec();
    (0..3).for_each(|_| many.extend([b"$900\r\n".as_slice(), &[b'v'; 900], b"\r\n"].concat()));
    refused(port, &many, &protocol("too big request"));
    // A transaction that is too long is refused, and nothing of it done.
    let [a, b, c] = [1, 2, 3].map(|id| cluster.key_on(id, "t"));
    let value = "v".repeat(400);
    assert_eq!(client.say(&format!("MSET {a} {value} {b} {value}")), "OK");
    let reply = client.say(&format!("MSET {a} x{value} {b} x{value} {c} {value}"));
    assert!(reply.starts_with("-ERR the transaction has 1"), "{reply}");
    assert_eq!(client.say(&format!("GET {c}")), "nil");
    // A pipeline deeper than what is served together is served all the same, in order.
    let lines: Vec<String> = (0..500).map(|_| "INCR n".to_owned()).collect();
    let replies: Vec<String> = (1..=500).map(|n: u32| n.to_string()).collect();
    assert_eq!(client.pipeline(&lines), replies);
}

/// Of two pauses the later end and the stricter mode win, and what a transaction has queued counts.
#[test]
fn a_shorter_pause_does_not_end_a_longer_one() {
    const LONG: Duration = Duration::from_millis(600);
    let cluster = Cluster::start_in_memory_with(TWO);
    let key = cluster.key_on(2, "pause");
    let (mut one, mut other) = (cluster.connect(1), cluster.connect(1));
    let mut held = |pauses: &[&str], last: &str| {
        let begun = Instant::now();
        for pause in pauses {
            assert_eq!(one.say(pause), "OK");
        }
        let said = other.say(last);
        assert!(!said.starts_with('-'), "{said}");
        assert!(begun.elapsed() >= LONG - Duration::from_millis(2), "{pauses:?}, {last}");
    };
    held(&["CLIENT PAUSE 600 WRITE", "CLIENT PAUSE 1 ALL"], &format!("GET {key}"));
    held(&["CLIENT PAUSE 600 WRITE", "CLIENT PAUSE 1 WRITE"], &format!("SET {key} 1"));
    held(&["CLIENT PAUSE 1 WRITE", "CLIENT PAUSE 600 ALL"], "PING");
    assert_eq!(other.say("MULTI"), "OK");
    assert_eq!(other.say(&format!("SET {key} 2")), "QUEUED");
    let begun = Instant::now();
    assert_eq!(one.say("CLIENT PAUSE 600 WRITE"), "OK");
    assert_eq!(other.say("EXEC"), "[OK]");
    assert!(begun.elapsed() >= LONG - Duration::from_millis(2));
}

#[test]
fn quiet_connections_and_unread_replies_are_closed() {
    let cluster = Cluster::start_with("limits: { idle: 700, unread: 700 }\n");
    let key = cluster.key_on(1, "unread");
    let mut client = cluster.connect(1);
    assert_eq!(client.say(&format!("SET {key} {}", "x".repeat(1 << 20))), "OK");
    let mut quiet = dial(cluster.ports(1).client);
    assert_eq!(read_to_end(&mut quiet), "");
    let mut deaf = dial(cluster.ports(1).client);
    deaf.write_all(format!("GET {key}\r\n").repeat(100).as_bytes()).unwrap();
    cluster.wait_log(1, &["closing client", "it has left replies unread for 700 ms"]);
    eventually("only one is left", PATIENCE, || {
        // Which keeps talking, and so is left alone.
        let mut client = cluster.connect(1);
        (clients(&mut client).len() == 1).then_some(())
    });
}

#[test]
fn replies_that_are_too_long_close_the_connection() {
    let cluster = Cluster::start_with("limits: { output_buffer: 4KiB }\n");
    let keys = cluster.keys_everywhere("long", 2);
    let mut client = cluster.connect(1);
    client.mset_all(&keys, &"x".repeat(1000)).unwrap();
    assert_eq!(client.mget(&keys[..3]).unwrap().len(), 3);
    assert!(client.mget(&keys).is_err());
    cluster.wait_log(1, &["closing client", "its replies take 6", "where 4096 are allowed"]);
    assert_eq!(cluster.connect(1).say("PING"), "PONG");
}

#[test]
fn writes_are_refused_while_memory_is_at_its_limit() {
    const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.";
    let cluster = Cluster::start_in_memory_with("limits: { memory: 4MiB }\n");
    let mut clients: Vec<Client> = cluster.ids().map(|id| cluster.connect(id)).collect();
    // Node 2 is filled, by way of node 1.
    let keys = cluster.keys_on(2, "fill", 600);
    let value = "x".repeat(20_000);
    let refused = eventually("node 2 is full", PATIENCE, || {
        let full = |key: &&String| clients[0].say(&format!("SET {key} {value}")) == OOM;
        keys.iter().find(full).cloned()
    });
    for client in &mut clients {
        assert_eq!(client.say(&format!("SET {refused} {value}")), OOM);
        assert_eq!(client.say(&format!("APPEND {refused} x")), OOM);
        assert_eq!(client.say(&format!("EXISTS {}", keys[0])), "1");
    }
    // Other nodes have room; and who makes room may write again.
    assert_eq!(clients[1].say(&format!("SET {} x", cluster.key_on(1, "free"))), "OK");
    let held: u64 = figure(&mut clients[1], "used_memory").unwrap();
    assert!((4 << 20..16 << 20).contains(&held), "{held}");
    assert_eq!(clients[1].say(&format!("MSET {} x {} y", keys[0], cluster.key_on(1, "m"))), OOM);
    // Whichever node is asked, it is the node with the data that refuses, all or nothing.
    let (near, far) = (cluster.key_on(1, "near"), &keys[0]);
    let absent = cluster.key_on(2, "absent");
    for client in &mut clients {
        assert_eq!(client.say(&format!("MSET {near} x {far} y")), OOM);
        assert_eq!(client.say(&format!("MSETNX {near} x {absent} y")), OOM);
        assert_eq!(client.say(&format!("COPY {far} {absent}")), OOM);
        assert_eq!(client.say(&format!("EXISTS {near} {absent}")), "0");
        // What frees memory goes on.
        assert_eq!(client.say(&format!("DEL {near} {absent}")), "0");
        assert_eq!(client.say(&format!("MSET {near} x {} y", cluster.key_on(3, "near"))), "OK");
        assert_eq!(client.say(&format!("DEL {near}")), "1");
    }
    let exec = |client: &mut Client| {
        assert_eq!(client.say("MULTI"), "OK");
        let queued = client.say(&format!("SET {near} x"));
        assert_eq!(queued, "QUEUED", "node 1 has room");
        let queued = client.say(&format!("SET {far} y"));
        (queued, client.say("EXEC"))
    };
    const ABORTED: &str = "-EXECABORT Transaction discarded because of";
    for (index, client) in clients.iter_mut().enumerate() {
        let (queued, ended) = exec(client);
        match index {
            // Node 2 knows at once; the others learn it from node 2.
            1 => {
                assert_eq!(queued, OOM);
                assert_eq!(ended, format!("{ABORTED} previous errors."));
            }
            _ => {
                assert_eq!(queued, "QUEUED");
                assert_eq!(ended, format!("{ABORTED}: {}", &OOM[1..]));
            }
        }
        assert_eq!(client.say(&format!("EXISTS {near}")), "0");
    }
    keys.iter().for_each(|key| drop(clients[0].say(&format!("DEL {key}"))));
    eventually("there is room again", PATIENCE, || {
        (clients[0].say(&format!("SET {refused} x")) == "OK").then_some(())
    });
    // The limit can be changed while the node runs.
    assert_eq!(clients[1].say("CONFIG SET maxmemory 1"), "OK");
    assert_eq!(clients[0].say(&format!("SET {refused} y")), OOM);
    assert_eq!(clients[1].say("CONFIG SET maxmemory 0"), "OK");
    assert_eq!(clients[0].say(&format!("SET {refused} y")), "OK");
}

#[test]
fn odd_clients_are_served_or_shown_out() {
    let cluster = Cluster::start();
    let port = cluster.ports(1).client;
    let mut bystander = cluster.connect(1);
    // Binary and empty keys and values.
    let mut stream = dial(port);
    stream
        .write_all(
            b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\n\0\r\n\xff\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        )
        .unwrap();
    let mut got = [0; 15];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"+OK\r\n$4\r\n\0\r\n\xff\r\n");
    // A byte at a time.
    for byte in b"*2\r\n$4\r\nECHO\r\n$5\r\nhello\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    expect(&mut stream, "$5\r\nhello\r\n");
    // One who says all and closes its half gets all its replies.
    stream.write_all(b"PING\r\nGET nothing\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream), "+PONG\r\n$-1\r\n");
    // One who leaves in the middle of a word is forgotten.
    let mut stream = dial(port);
    stream.write_all(b"*2\r\n$3\r\nGET\r\n$500000000\r\nabc").unwrap();
    drop(stream);
    // Arrays in arrays are no requests.
    refused(port, b"*1\r\n*1\r\n$4\r\nPING\r\n", "-ERR Protocol error: expected '$', got '*'\r\n");
    eventually("they are gone", PATIENCE, || (clients(&mut bystander).len() == 1).then_some(()));
}

/// A frame as nodes send it.
fn frame(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn peer(cluster: &Cluster, bytes: &[u8]) -> TcpStream {
    let mut stream = dial(cluster.ports(1).peer);
    let _ = stream.write_all(bytes);
    stream
}

/// A node that introduced itself well and then talks nonsense is cut off like any other.
#[test]
fn a_peer_that_goes_on_with_nonsense_is_cut_off_with_a_reason() {
    let mut cluster = Cluster::new(2);
    let listener = std::net::TcpListener::bind(("127.0.0.1", cluster.ports(2).peer)).unwrap();
    cluster.spawn(1);
    for (nonsense, reason) in [
        (frame(b"garbage"), "lost node 2: a frame that is no packet"),
        (u32::MAX.to_le_bytes().to_vec(), "lost node 2: a frame of 4294967295 bytes"),
    ] {
        // Node 1 dials node 2, which is us, and so tells how a node of its cluster begins.
        let (mut dialled, _) = listener.accept().unwrap();
        let Packet::Hello(hello) = read_packet(&mut dialled) else { panic!("an introduction") };
        assert_eq!(hello.node, NodeId(1), "it introduces itself as node 1");
        let nonce = hello.nonce;
        let own = Hello { node: NodeId(2), ..hello };
        dialled.write_all(&framed(&Packet::Hello(own.clone()))).unwrap();
        let mut stream = peer(&cluster, &framed(&Packet::Hello(own)));
        assert!(matches!(read_packet(&mut stream), Packet::Hello(_)));
        // What was said to the address of node 2 alone proves that we are it.
        stream.write_all(&framed(&Packet::Claim(nonce))).unwrap();
        let links = |log: &str| log.matches("linked with node 2").count();
        let losses = |log: &str| log.matches("lost node 2").count();
        eventually("they are linked", PATIENCE, || {
            let log = cluster.log(1);
            (links(&log) > losses(&log)).then_some(())
        });
        stream.write_all(&nonsense).unwrap();
        read_to_end(&mut stream);
        cluster.wait_log(1, &[reason]);
    }
    assert!(cluster.process(1).ended().is_none(), "node 1 goes on");
}

fn framed(packet: &Packet) -> Vec<u8> {
    let mut out = Vec::new();
    frame::push(packet, &mut out).expect("a packet");
    out
}

fn read_packet(stream: &mut TcpStream) -> Packet {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut bytes).unwrap();
    packet::decode(&bytes).expect("a packet")
}

const VERSION: u8 = quorate::cluster::barrier::PROTOCOL_VERSION as u8;

/// What a node says when it introduces itself: version, cluster, node, life, digest, formed. As one
/// of version 1 did, which did not say what it cannot verify.
fn hello(version: u8, cluster: &str, node: u8) -> Vec<u8> {
    let mut bytes = vec![0x81, 0xa5];
    bytes.extend(b"Hello");
    bytes.extend([0x96, version, 0xd9, cluster.len() as u8]);
    bytes.extend(cluster.as_bytes());
    bytes.extend([node, 9, 7, 0xc2]);
    bytes
}

#[test]
fn a_peer_that_speaks_nonsense_is_cut_off_with_a_reason() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    for (bytes, reason) in [
        (frame(b"garbage"), "a frame that is no packet"),
        (u32::MAX.to_le_bytes().to_vec(), "its introduction is too long"),
        ((100_000u32).to_le_bytes().to_vec(), "its introduction is too long"),
        (frame(&hello(99, cluster.name(), 2)), "speaks protocol version 99"),
        (frame(&hello(1, cluster.name(), 2)), "speaks protocol version 1,"),
        (frame(&hello(VERSION, "elsewhere", 2)), "cluster"),
        (frame(&hello(VERSION, cluster.name(), 9)), "node 9 is not in the cluster file"),
        (frame(b"\xa5Ready"), "it does not introduce itself"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "its introduction is too long"),
    ] {
        let lines = |log: &str| log.lines().filter(|line| line.contains("refused")).count();
        let before = lines(&cluster.log(1));
        let mut stream = peer(&cluster, &bytes);
        read_to_end(&mut stream);
        let log = eventually(&format!("a reason is logged: {reason}"), PATIENCE, || {
            let log = cluster.log(1);
            (lines(&log) > before).then_some(log)
        });
        let last = log.lines().rfind(|line| line.contains("refused")).unwrap();
        assert!(last.contains(reason), "{last}");
    }
    // One who says nothing is cut off too.
    let mut silent = peer(&cluster, b"");
    assert_eq!(read_to_end(&mut silent), "");
    cluster.wait_log(1, &["refused", "does not introduce itself in time"]);
    let keys = cluster.keys_everywhere("after", 1);
    client.mset_all(&keys, "1").unwrap();
    assert_eq!(client.mget(&keys).unwrap().len(), 3);
}
