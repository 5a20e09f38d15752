//! Every field of `INFO` is measured: something moves it, or tells what it is.

use crate::harness::{Client, Cluster, PATIENCE, StopAtEnd, eventually};

/// The value of a field of `INFO`.
fn field(client: &mut Client, name: &str) -> String {
    let info = client.say("INFO all");
    let start = format!("\\n{name}:");
    let begin = info.find(&start).unwrap_or_else(|| panic!("no {name} in {info}")) + start.len();
    info[begin..].split("\\r").next().unwrap_or_default().to_owned()
}

fn number(client: &mut Client, name: &str) -> f64 {
    let text = field(client, name);
    text.parse().unwrap_or_else(|_| panic!("{name} is {text}"))
}

#[test]
fn info_tells_which_node_it_is_and_for_how_long() {
    let mut cluster = Cluster::start();
    let mut clients: Vec<Client> = cluster.ids().map(|id| cluster.connect(id)).collect();
    let mut of_nodes =
        |name: &str| clients.iter_mut().map(|client| field(client, name)).collect::<Vec<_>>();
    assert_eq!(of_nodes("quorate_node"), ["1", "2", "3"]);
    assert_eq!(of_nodes("quorate_nodes"), ["3", "3", "3"]);
    let ports = cluster.ids().map(|id| cluster.ports(id).client.to_string());
    assert_eq!(of_nodes("tcp_port"), ports.collect::<Vec<_>>());
    for (name, value) in [
        ("redis_mode", "standalone"),
        ("quorate_version", env!("CARGO_PKG_VERSION")),
        ("arch_bits", &usize::BITS.to_string()),
        ("mem_allocator", "mimalloc"),
        ("maxmemory_policy", "noeviction"),
        ("uptime_in_days", "0"),
        ("loading", "0"),
        ("quorate_class0", "replicas=3,durability=sync,tables=0-15"),
    ] {
        assert_eq!(of_nodes(name), [value; 3], "{name}");
    }
    assert!(of_nodes("os").iter().all(|os| os.ends_with(std::env::consts::ARCH)));
    let file = |path: &String| path.starts_with('/') && path.ends_with("/cluster.yaml");
    assert!(of_nodes("config_file").iter().all(file));
    let ids = of_nodes("process_id");
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[2] != ids[0], "{ids:?}");
    let names = of_nodes("run_id");
    let hex = |name: &String| name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(names.iter().all(hex) && names[0] != names[1], "{names:?}");
    let led = of_nodes("quorate_partitions_led");
    assert_eq!(led.iter().map(|led| led.parse::<u32>().unwrap()).sum::<u32>(), 12, "{led:?}");

    let begun = number(&mut clients[0], "server_time_usec");
    eventually("the node gets older", PATIENCE, || {
        (number(&mut clients[0], "uptime_in_seconds") >= 2.0).then_some(())
    });
    let later = number(&mut clients[0], "server_time_usec");
    assert!((1e5..6e7).contains(&(later - begun)), "from {begun} to {later}");

    // Another life has another name, and others lead in its place.
    drop(clients);
    cluster.kill(3);
    let mut client = cluster.connect(1);
    let mut other = cluster.connect(2);
    eventually("the others lead all partitions", PATIENCE, || {
        let led = [&mut client, &mut other].map(|one| number(one, "quorate_partitions_led"));
        (led.iter().sum::<f64>() == 12.0).then_some(())
    });
    cluster.spawn(3);
    cluster.wait_ready(3);
    let mut again = cluster.connect(3);
    assert_ne!(field(&mut again, "run_id"), names[2]);
    assert_ne!(field(&mut again, "process_id"), ids[2]);
}

#[test]
fn info_tells_what_goes_through_a_node_and_to_its_disk() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(1);
    let connected = number(&mut client, "total_connections_received");
    let more: Vec<Client> = (0..3).map(|_| cluster.connect(1)).collect();
    eventually("connections are counted", PATIENCE, || {
        (number(&mut client, "total_connections_received") >= connected + 3.0).then_some(())
    });
    drop(more);

    let log = ["appended_bytes", "batches", "syncs"].map(|name| format!("quorate_log_{name}"));
    let size = ["quorate_log_segments", "quorate_log_bytes", "aof_current_size"];
    let before = log.each_ref().map(|name| number(&mut client, name));
    let sizes = size.map(|name| number(&mut client, name));
    let cpu = number(&mut client, "used_cpu_sys");
    // More than a segment of the log, which has four mebibytes.
    let value = "v".repeat(1 << 20);
    for n in 0..6 {
        assert_eq!(client.say(&format!("SET large:{n} {value}")), "OK");
    }
    eventually("the log's figures move", PATIENCE, || {
        let now = log.each_ref().map(|name| number(&mut client, name));
        let appended = now[0] >= before[0] + 6.0 * value.len() as f64;
        let grown = size.map(|name| number(&mut client, name));
        let larger = grown.iter().zip(&sizes).all(|(now, before)| now > before);
        (appended && now[1] > before[1] && now[2] > before[2] && larger).then_some(())
    });
    for rate in ["instantaneous_input_kbps", "instantaneous_output_kbps"] {
        eventually("a rate is seen", PATIENCE, || {
            assert_eq!(client.say("GET large:0").len(), value.len() + 2);
            client.say(&format!("SET large:0 {value}"));
            (number(&mut client, rate) > 0.0).then_some(())
        });
    }
    eventually("the kernel's time grows", PATIENCE, || {
        client.say("PING");
        (number(&mut client, "used_cpu_sys") > cpu).then_some(())
    });
}

#[test]
fn info_tells_how_transactions_fare() {
    let mut cluster = Cluster::start();
    let keys = cluster.keys_everywhere("fare", 1);
    let [a, b, c] = &keys[..] else { panic!("a key a node") };
    let mut client = cluster.connect(1);
    let figures = ["transactions_committed", "transaction_attempts_aborted"];
    let figures = figures.map(|name| format!("quorate_{name}"));
    let [committed, aborted] = figures.each_ref().map(|name| number(&mut client, name));
    client.mset_all(&keys, "1").unwrap();
    eventually("a commit is counted", PATIENCE, || {
        (number(&mut client, &figures[0]) > committed).then_some(())
    });
    client.say(&format!("WATCH {a}"));
    cluster.connect(2).say(&format!("SET {a} 2"));
    client.say("MULTI");
    client.say(&format!("SET {b} 2"));
    client.say(&format!("SET {c} 2"));
    assert_eq!(client.say("EXEC"), "nil");
    eventually("an attempt that was in vain is counted", PATIENCE, || {
        (number(&mut client, &figures[1]) > aborted).then_some(())
    });

    // Who meets an older one gives way.
    let wounded = |cluster: &Cluster| -> f64 {
        let of = |id| number(&mut cluster.connect(id), "quorate_transaction_attempts_wounded");
        cluster.ids().map(of).sum()
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&done);
        for node in cluster.ids().chain(cluster.ids()) {
            let (mut client, keys, done) = (cluster.connect(node), &keys, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    client.mset_all(keys, "3").unwrap();
                }
            });
        }
        let begun = std::time::Instant::now();
        while wounded(&cluster) == 0.0 && begun.elapsed() < PATIENCE {}
        drop(at_end);
    });
    assert!(wounded(&cluster) > 0.0, "nobody gave way");

    // A node that is paused keeps a transaction from its end, and others from its keys.
    let waiting = "quorate_requests_waiting_for_locks";
    eventually("all have ended", PATIENCE, || (number(&mut client, waiting) == 0.0).then_some(()));
    cluster.pause(3);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut writer, mut other) = (cluster.connect(1), cluster.connect(1));
    let waited = std::thread::scope(|scope| {
        let at_end = StopAtEnd(&done);
        // Either may be refused in the end: the node is away.
        scope.spawn(|| writer.ask(&["MSET", a, "4", c, "4"]).is_ok());
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = other.ask(&["SET", a, "5"]);
            }
        });
        let begun = std::time::Instant::now();
        let mut waited = 0.0;
        while waited == 0.0 && begun.elapsed() < PATIENCE {
            waited = number(&mut client, waiting);
        }
        drop(at_end);
        cluster.resume(3);
        waited
    });
    assert!(waited >= 1.0, "nobody waited");
    eventually("nobody waits", PATIENCE, || (number(&mut client, waiting) == 0.0).then_some(()));
}
