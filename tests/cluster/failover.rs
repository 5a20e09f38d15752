//! Leaders die, hang and are cut off while clients outside count what was acknowledged.

use crate::count::counted;
use crate::harness::{Client, Cluster, PATIENCE, Protocol, eventually};
use std::time::{Duration, Instant};

/// Longer than any election takes, and than peers put up with silence.
const LONG: Duration = Duration::from_millis(4_000);

/// Longer than an election timeout; the link between nodes outlives it.
const PAST_AN_ELECTION: Duration = Duration::from_millis(1_500);

#[test]
fn what_was_acknowledged_outlives_kills() {
    let mut cluster = Cluster::start();
    counted(&mut cluster, "kill", |cluster, count| {
        for id in [1, 2, 3, 1] {
            count.more(100);
            cluster.kill(id);
            count.more(100);
            cluster.spawn(id);
            cluster.wait_ready(id);
        }
        count.more(100);
    });
    cluster.wait_at_rest();
}

#[test]
fn what_was_acknowledged_outlives_pauses() {
    let mut cluster = Cluster::start();
    counted(&mut cluster, "pause", |cluster, count| {
        for (id, pause) in [(1, PAST_AN_ELECTION), (2, LONG), (3, PAST_AN_ELECTION)] {
            count.more(100);
            cluster.pause(id);
            std::thread::sleep(pause);
            cluster.resume(id);
        }
        count.more(100);
    });
    cluster.wait_at_rest();
}

#[test]
fn what_was_acknowledged_outlives_a_kill_of_all() {
    let mut cluster = Cluster::start();
    counted(&mut cluster, "all", |cluster, count| {
        for _ in 0..2 {
            count.more(200);
            cluster.ids().for_each(|id| cluster.process(id).signal("KILL"));
            cluster.ids().for_each(|id| cluster.kill(id));
            cluster.start_all();
        }
        count.more(100);
    });
    cluster.wait_at_rest();
}

#[test]
fn what_was_acknowledged_outlives_a_clean_stop_of_all() {
    let mut cluster = Cluster::start();
    counted(&mut cluster, "stop", |cluster, count| {
        count.more(200);
        cluster.ids().for_each(|id| cluster.process(id).signal("TERM"));
        for id in cluster.ids() {
            let status = cluster.process(id).wait();
            assert_eq!(status.code(), Some(0), "node {id}: {status}");
            cluster.kill(id);
        }
        cluster.start_all();
        count.more(100);
    });
    cluster.wait_at_rest();
}

#[test]
fn what_was_acknowledged_outlives_cuts() {
    let mut cluster = Cluster::start_networked();
    counted(&mut cluster, "cut", |cluster, count| {
        for (id, reset) in [(1, true), (2, false), (3, true)] {
            count.more(100);
            cluster.network().isolate(id);
            std::thread::sleep(PAST_AN_ELECTION);
            if reset {
                cluster.network().reset();
            }
            cluster.network().heal();
        }
        // One direction only: node 1 hears nobody, but is heard.
        count.more(100);
        cluster.network().cut(2, 1, true);
        cluster.network().cut(3, 1, true);
        std::thread::sleep(LONG);
        cluster.network().heal();
        count.more(100);
    });
    cluster.wait_at_rest();
}

/// A leader that was stopped does not know that it leads no more: it must ask before it answers.
#[test]
fn a_leader_that_slept_through_its_successor_serves_nothing_stale() {
    let mut cluster = Cluster::start();
    for round in 0..3 {
        let key = cluster.key_on(1, &format!("stale:{round}"));
        let mut one = cluster.connect(1);
        assert_eq!(one.say(&format!("SET {key} old")), "OK");
        let leader = eventually("somebody leads", PATIENCE, || cluster.leader_now(&key, 2));
        let asker = leader % 3 + 1;
        // Connected before, so that it is the sleeper's own Session that answers.
        let mut sleepers: Vec<Client> = (0..8).map(|_| cluster.connect(leader)).collect();
        sleepers
            .iter_mut()
            .for_each(|client| assert_eq!(client.say(&format!("GET {key}")), "\"old\""));
        cluster.pause(leader);
        let mut other = cluster.connect(asker);
        let value = format!("new:{round}");
        eventually("another node leads", PATIENCE, || {
            (other.say(&format!("SET {key} {value}")) == "OK").then_some(())
        });
        // The questions wait in the sleeper's sockets.
        std::thread::scope(|scope| {
            let asked: Vec<_> = sleepers
                .iter_mut()
                .enumerate()
                .map(|(n, client)| {
                    let line = match n % 2 {
                        0 => format!("GET {key}"),
                        _ => format!("APPEND {key} !"),
                    };
                    scope.spawn(move || (n, client.say(&line)))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(50));
            cluster.resume(leader);
            for asked in asked {
                let (n, reply) = asked.join().expect("a client");
                let sound = match n % 2 {
                    0 => reply.starts_with(&format!("\"{value}")) || reply.starts_with('-'),
                    _ => {
                        reply.parse::<usize>().is_ok_and(|length| length > value.len())
                            || reply.starts_with('-')
                    }
                };
                assert!(sound, "the sleeper answers {reply}");
            }
        });
        cluster.wait_ready(leader);
    }
}

/// A partitioned leader keeps its clients, but not its office: no lease outlives the election.
#[test]
fn a_leader_that_is_cut_off_neither_serves_nor_acknowledges() {
    let cluster = Cluster::start_networked();
    let key = cluster.key_on(1, "cut");
    assert_eq!(cluster.connect(1).say(&format!("SET {key} 0")), "OK");
    let leader = eventually("somebody leads", PATIENCE, || cluster.leader_now(&key, 2));
    let mut inside = cluster.connect(leader);
    let mut outside = cluster.connect(leader % 3 + 1);
    cluster.network().isolate(leader);
    let cut = Instant::now();
    let stale = std::thread::scope(|scope| {
        // The majority moves on and counts; whoever asks the leader that was cut off may get what
        // was true before its lease ended, or nothing.
        let key = &key;
        let reader = scope.spawn(move || {
            let mut seen = Vec::new();
            while cut.elapsed() < LONG {
                let asked = Instant::now();
                seen.push((asked, inside.say(&format!("GET {key}"))));
            }
            seen
        });
        let first = eventually("the majority goes on", PATIENCE, || {
            (outside.say(&format!("SET {key} 1")) == "OK").then(Instant::now)
        });
        println!("acknowledged by the majority {:?} after the cut", first - cut);
        let seen = reader.join().expect("a reader");
        let late = seen.into_iter().filter(|(asked, reply)| *asked > first && reply == "\"0\"");
        late.collect::<Vec<_>>()
    });
    assert!(stale.is_empty(), "{} stale reads", stale.len());
    cluster.network().heal();
    let mut healed =
        Client::connect(cluster.ports(leader).client, Protocol::Resp2).expect("served");
    eventually("the node that was cut off serves again", PATIENCE, || {
        (healed.say(&format!("GET {key}")) == "\"1\"").then_some(())
    });
}

/// How long a client that does nothing but write is without an answer, by rounds of `hurt` and
/// recovery.
fn gaps(rounds: usize, mut hurt: impl FnMut(&mut Cluster, u16)) -> Vec<Duration> {
    let mut cluster = Cluster::start();
    let mut gaps = Vec::new();
    for round in 0..rounds {
        let key = cluster.key_on(1 + (round % 3) as u16, "gap");
        let mut client = cluster.connect(1);
        eventually("the key is written", PATIENCE, || {
            (client.say(&format!("SET {key} x")) == "OK").then_some(())
        });
        let victim = eventually("somebody leads", PATIENCE, || cluster.leader_now(&key, 1));
        let mut client = cluster.connect(victim % 3 + 1);
        assert_eq!(client.say(&format!("SET {key} x")), "OK");
        let begun = Instant::now();
        hurt(&mut cluster, victim);
        let mut last = begun;
        let mut gap = Duration::ZERO;
        // Until it has been served by the next leader for a while.
        while begun.elapsed() < Duration::from_millis(2_500) || gap.is_zero() {
            if client.say(&format!("SET {key} x")) == "OK" {
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
            assert!(begun.elapsed() < PATIENCE, "no write for {PATIENCE:?}");
        }
        gaps.push(gap);
        let _ = cluster.process(victim).wait();
        cluster.kill(victim);
        cluster.start_all();
    }
    gaps.sort_unstable();
    gaps
}

#[test]
fn a_kill_of_a_leader_stops_writes_for_less_than_three_seconds() {
    let rounds = if std::env::var_os("QUORATE_FAULT_SECONDS").is_some() { 20 } else { 5 };
    let gaps = gaps(rounds, |cluster, victim| cluster.process(victim).signal("KILL"));
    println!("gaps over {rounds} kills: median {:?}, {gaps:?}", gaps[rounds / 2]);
    assert!(gaps[rounds - 1] < Duration::from_secs(3), "{gaps:?}");
}

#[test]
fn a_stop_of_a_leader_stops_writes_for_a_moment() {
    let rounds = if std::env::var_os("QUORATE_FAULT_SECONDS").is_some() { 20 } else { 3 };
    let gaps = gaps(rounds, |cluster, victim| cluster.process(victim).signal("TERM"));
    println!("gaps over {rounds} stops: median {:?}, {gaps:?}", gaps[rounds / 2]);
    // Sooner than any election: it was handed over.
    assert!(gaps[rounds / 2] < Duration::from_millis(500), "{gaps:?}");
    assert!(gaps[rounds - 1] < Duration::from_secs(3), "{gaps:?}");
}

/// How long a client at a healthy node is without an answer to its writes while the leader that they
/// need is hurt, and then mended. Prints the figures: they depend on the machine.
fn gaps_at_healthy_nodes(
    what: &str,
    start: impl Fn() -> Cluster,
    mut hurt: impl FnMut(&mut Cluster, u16),
    mut mend: impl FnMut(&mut Cluster, u16),
) {
    let rounds = if std::env::var_os("QUORATE_FAULT_SECONDS").is_some() { 20 } else { 1 };
    let mut cluster = start();
    let mut gaps = Vec::new();
    let (mut unknown, mut refused) = (0, 0);
    let last_node = *cluster.ids().end();
    for round in 0..rounds {
        let victim = 1 + (round % 3) as u16;
        let healthy = if victim == last_node { 1 } else { last_node };
        let key = cluster.key_led_by(victim, &format!("gap{round}"));
        let mut client = cluster.connect(healthy);
        eventually("the key is written", PATIENCE, || {
            (client.say(&format!("SET {key} x")) == "OK").then_some(())
        });
        let begun = Instant::now();
        hurt(&mut cluster, victim);
        let (mut last, mut gap) = (begun, Duration::ZERO);
        while begun.elapsed() < Duration::from_millis(2_500) || gap.is_zero() {
            let reply = client.say(&format!("SET {key} x"));
            match reply.split(' ').next() {
                Some("OK") => {
                    gap = gap.max(last.elapsed());
                    last = Instant::now();
                }
                Some("-UNKNOWN") => unknown += 1,
                Some("-TRYAGAIN" | "-CLUSTERDOWN") => refused += 1,
                _ => panic!("{what}: {reply}"),
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: no write for {PATIENCE:?}");
        }
        gaps.push(gap.max(last.elapsed()));
        mend(&mut cluster, victim);
        cluster.start_all();
    }
    gaps.sort_unstable();
    println!(
        "gaps, {what}, {rounds} rounds: median {:?}, longest {:?}, {unknown} unknown, {refused} \
         refused, {gaps:?}",
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1]
    );
    assert!(gaps[gaps.len() - 1] < PATIENCE / 2, "{what}: {gaps:?}");
}

#[test]
fn gaps_after_a_pause_of_a_leader() {
    gaps_at_healthy_nodes("pause", Cluster::start, Cluster::pause, Cluster::resume);
}

#[test]
fn gaps_after_a_leader_is_isolated() {
    gaps_at_healthy_nodes(
        "isolate",
        Cluster::start_networked,
        |cluster, victim| cluster.network().isolate(victim),
        |cluster, _| cluster.network().heal(),
    );
}

#[test]
fn gaps_after_a_leader_hears_nobody() {
    gaps_at_healthy_nodes(
        "one-way cut into the leader",
        Cluster::start_networked,
        |cluster, victim| {
            let others = cluster.ids().filter(|id| *id != victim);
            others.for_each(|other| cluster.network().cut(other, victim, true));
        },
        |cluster, _| cluster.network().heal(),
    );
}

#[test]
fn gaps_after_nobody_hears_a_leader() {
    gaps_at_healthy_nodes(
        "one-way cut out of the leader",
        Cluster::start_networked,
        |cluster, victim| {
            let others = cluster.ids().filter(|id| *id != victim);
            others.for_each(|other| cluster.network().cut(victim, other, true));
        },
        |cluster, _| cluster.network().heal(),
    );
}

#[test]
fn gaps_after_five_nodes_fall_in_halves() {
    const FIVE_COPIES: &str = "{ mode: strong, replicas: 5, durability: sync }";
    gaps_at_healthy_nodes(
        "halves",
        || Cluster::start_networked_of(5, FIVE_COPIES),
        |cluster, victim| {
            let beside = [0, 2, 1, 4][usize::from(victim)];
            for inside in [victim, beside] {
                for outside in cluster.ids().filter(|id| ![victim, beside].contains(id)) {
                    cluster.network().cut(inside, outside, true);
                    cluster.network().cut(outside, inside, true);
                }
            }
        },
        |cluster, _| cluster.network().heal(),
    );
}

#[test]
fn gaps_while_packets_are_lost() {
    gaps_at_healthy_nodes(
        "a tenth of all packets lost",
        Cluster::start_networked,
        |cluster, _| cluster.network().lose(10),
        |cluster, _| cluster.network().lose(0),
    );
}

/// Nothing is acknowledged to a node that does not wait for it any more: what it said `UNKNOWN` of is
/// done by then, or never.
#[test]
fn what_is_unknown_is_final_once_that_is_said() {
    let mut cluster = Cluster::start();
    for round in 0..2 {
        let key = cluster.key_on(1 + round % 3, &format!("final{round}"));
        let mut client = cluster.connect(1);
        eventually("the key is written", PATIENCE, || {
            (client.say(&format!("SET {key} 0")) == "OK").then_some(())
        });
        let victim = eventually("somebody leads", PATIENCE, || cluster.leader_now(&key, 1));
        let healthy = victim % 3 + 1;
        let mut clients: Vec<Client> = (0..8).map(|_| cluster.connect(healthy)).collect();
        cluster.pause(victim);
        // These lie in the sockets of a process that does nothing.
        let replies: Vec<String> = std::thread::scope(|scope| {
            let asked: Vec<_> = clients
                .iter_mut()
                .map(|client| scope.spawn(|| client.say(&format!("INCR {key}"))))
                .collect();
            asked.into_iter().map(|asked| asked.join().expect("a client")).collect()
        });
        let mut reader = cluster.connect(healthy);
        let read = eventually("the key is read", PATIENCE, || {
            reader.say(&format!("GET {key}")).trim_matches('"').parse::<usize>().ok()
        });
        cluster.resume(victim);
        cluster.wait_ready(victim);
        let later: usize = eventually("the key is read again", PATIENCE, || {
            cluster.connect(victim).say(&format!("GET {key}")).trim_matches('"').parse().ok()
        });
        assert_eq!(read, later, "executed after UNKNOWN was said: {replies:?}");
        let done = replies.iter().filter(|reply| reply.parse::<usize>().is_ok()).count();
        assert!(read >= done, "{read} of {done} acknowledged: {replies:?}");
    }
}
