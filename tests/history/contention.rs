//! Everybody wants the same eight keys.
//!
//! Wound-wait promises that the oldest transaction is never made to start again, so nobody starves
//! and nothing deadlocks; the queues promise that nobody is passed by for long. Both show in how
//! long the unluckiest waits. Figures here are of a busy machine: the bounds are generous and catch
//! what waits for a timeout, starves or stands still, while the figures themselves are printed.
//! Tables are in memory, so that they are about locks and not about disks.

use crate::dice::Dice;
use crate::harness::{Client, Cluster, PATIENCE, StopAtEnd, eventually};
use crate::recorder::has;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;

/// The longest wait in medians, and what no wait is held against: processes and clients share the
/// machine's few cores with whatever else runs there.
const MEDIANS_MAX: u32 = 50;
const WAIT_EXCUSED: Duration = Duration::from_secs(2);

/// The latencies of some clients.
struct Waits {
    /// Sorted, of all.
    all: Vec<Duration>,
    /// How many each client had.
    each: Vec<usize>,
}

impl Waits {
    fn of(clients: Vec<Vec<Duration>>) -> Waits {
        let each = clients.iter().map(Vec::len).collect();
        let mut all = clients.concat();
        all.sort_unstable();
        assert!(!all.is_empty(), "nobody was served");
        Waits { all, each }
    }

    fn at(&self, share: f64) -> Duration {
        let last = self.all.len() - 1;
        self.all[(last as f64 * share) as usize]
    }

    fn median(&self) -> Duration {
        self.at(0.5)
    }

    fn longest(&self) -> Duration {
        self.at(1.0)
    }

    fn tell(&self, what: &str) {
        println!(
            "{what}: {} waits, median {:?}, p99 {:?}, longest {:?} ({:.1} medians); {} to {} a client",
            self.all.len(),
            self.median(),
            self.at(0.99),
            self.longest(),
            self.longest().as_secs_f64() / self.median().as_secs_f64(),
            self.each.iter().min().expect("a client"),
            self.each.iter().max().expect("a client"),
        );
    }

    #[track_caller]
    fn assert_fair(&self, what: &str) {
        let bound = (self.median() * MEDIANS_MAX).max(WAIT_EXCUSED);
        let longest = self.longest();
        assert!(longest <= bound, "{what}: {longest:?}, with a median of {:?}", self.median());
    }
}

/// What a contending client asks for.
#[derive(Clone, Copy, Debug)]
struct Menu {
    exec: bool,
    rename: bool,
}

/// One transaction over some of the keys in an order of its own.
fn contend(client: &mut Client, dice: &mut Dice, keys: &[String], menu: Menu, value: &str) {
    let count = 2 + dice.below(keys.len() - 1);
    let some = dice.some(keys, count);
    match dice.below(4) {
        0 if menu.exec => {
            assert_eq!(client.say("MULTI"), "OK");
            for key in &some {
                assert_eq!(client.say(&format!("SET {key} {value}")), "QUEUED");
            }
            let reply = client.say("EXEC");
            assert_eq!(reply, format!("[{}]", vec!["OK"; some.len()].join(" ")));
        }
        1 if menu.rename => {
            let reply = client.say(&format!("RENAME {} {}", some[0], some[1]));
            assert!(reply == "OK" || reply.contains("no such key"), "{reply}");
        }
        _ => client.mset_all(&some, value).expect("MSET"),
    }
}

/// Clients of all nodes in turn that contend for the keys until they are stopped.
fn crowd<'scope>(
    scope: &'scope Scope<'scope, '_>,
    cluster: &Cluster,
    keys_of: impl Fn(usize) -> &'scope [String],
    menu: Menu,
    shared: &'scope Shared,
) -> Vec<ScopedJoinHandle<'scope, Vec<Duration>>> {
    let clients = (0..CLIENTS).map(|n| {
        let mut client = cluster.connect((n % 3) as u16 + 1);
        let keys = keys_of(n);
        scope.spawn(move || {
            let mut dice = Dice::new(n as u64);
            let mut waits = Vec::new();
            shared.begin.wait();
            while !shared.stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                contend(&mut client, &mut dice, keys, menu, &n.to_string());
                waits.push(begun.elapsed());
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
            waits
        })
    });
    clients.collect()
}

struct Shared {
    begin: Barrier,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn new(clients: usize) -> Shared {
        Shared {
            begin: Barrier::new(clients),
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Waits for so much, and lets everybody finish.
    fn run(&self, transactions: u64, threads: &[ScopedJoinHandle<'_, Vec<Duration>>]) {
        let _at_end = StopAtEnd(&self.stop);
        eventually("transactions commit", 3 * PATIENCE, || {
            let failed = threads.iter().any(ScopedJoinHandle::is_finished);
            (failed || self.done.load(Ordering::Relaxed) >= transactions).then_some(())
        });
    }
}

fn join(threads: Vec<ScopedJoinHandle<'_, Vec<Duration>>>) -> Waits {
    Waits::of(threads.into_iter().map(|thread| thread.join().expect("a client")).collect())
}

/// No transaction is under way, nothing is locked and nobody waits, on any node.
#[track_caller]
pub fn assert_settled(cluster: &Cluster, keys: &[String]) {
    for node in cluster.ids() {
        let mut client = cluster.connect(node);
        for key in keys {
            let reply = client.say(&format!("SET {key} 0"));
            assert_eq!(reply, "OK", "{key} at node {node}");
        }
        client.mset_all(keys, "1").expect("all keys at once");
    }
    cluster.wait_at_rest();
}

#[test]
fn nobody_starves_for_eight_keys() {
    let cluster = Cluster::start_in_memory();
    let keys = cluster.keys_everywhere("wanted", 3)[..8].to_vec();
    let menu = Menu { exec: has(&cluster, "exec"), rename: has(&cluster, "rename") };
    let shared = Shared::new(CLIENTS);
    let waits = std::thread::scope(|scope| {
        let threads = crowd(scope, &cluster, |_| &keys, menu, &shared);
        shared.run(64 * 100, &threads);
        join(threads)
    });
    waits.tell(&format!("{CLIENTS} clients over eight keys, {menu:?}"));
    waits.assert_fair("eight keys");
    assert!(waits.each.iter().all(|count| *count >= 5), "served: {:?}", waits.each);
    assert_settled(&cluster, &keys);
}

/// Single commands wait for transactions too.
#[test]
fn single_commands_get_through_the_crowd() {
    let cluster = Cluster::start_in_memory();
    let keys = cluster.keys_everywhere("crowded", 3)[..8].to_vec();
    let menu = Menu { exec: false, rename: false };
    let shared = Shared::new(CLIENTS + 3);
    let (crowded, single) = std::thread::scope(|scope| {
        let crowd = crowd(scope, &cluster, |_| &keys, menu, &shared);
        let singles = cluster.ids().map(|node| {
            let mut client = cluster.connect(node);
            let (keys, shared) = (&keys, &shared);
            scope.spawn(move || {
                let mut dice = Dice::new(1_000 + u64::from(node));
                let mut waits = Vec::new();
                shared.begin.wait();
                while !shared.stop.load(Ordering::Relaxed) {
                    let key = dice.pick(keys);
                    let begun = Instant::now();
                    assert_eq!(client.say(&format!("SET {key} single")), "OK");
                    waits.push(begun.elapsed());
                }
                waits
            })
        });
        let singles: Vec<_> = singles.collect();
        shared.run(64 * 50, &crowd);
        (join(crowd), join(singles))
    });
    crowded.tell("the crowd");
    single.tell("SETs of the same keys");
    single.assert_fair("SETs");
    assert!(single.longest() <= 5 * crowded.longest().max(WAIT_EXCUSED), "SETs fall behind");
    assert_settled(&cluster, &keys);
}

/// How long transactions on keys of their own take beside a crowd, and beside the same crowd when
/// each of it has keys of its own too.
#[test]
fn transactions_on_other_keys_do_not_pay() {
    const APART: usize = 3;
    let cluster = Cluster::start_in_memory();
    let wanted = cluster.keys_everywhere("wanted", 3)[..8].to_vec();
    let own: Vec<Vec<String>> = (0..CLIENTS + APART)
        .map(|n| cluster.keys_everywhere(&format!("own:{n}"), 3)[..8].to_vec())
        .collect();
    let menu = Menu { exec: has(&cluster, "exec"), rename: false };
    let measure = |contended: bool| {
        let shared = Shared::new(CLIENTS + APART);
        std::thread::scope(|scope| {
            let keys_of = |n: usize| if contended { &wanted[..] } else { &own[n][..] };
            let crowd = crowd(scope, &cluster, keys_of, menu, &shared);
            let apart = (0..APART).map(|n| {
                let mut client = cluster.connect(n as u16 + 1);
                let (keys, shared) = (&own[CLIENTS + n], &shared);
                scope.spawn(move || {
                    let mut waits = Vec::new();
                    shared.begin.wait();
                    while !shared.stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        client.mset_all(&keys[..3], "apart").expect("MSET");
                        waits.push(begun.elapsed());
                    }
                    waits
                })
            });
            let apart: Vec<_> = apart.collect();
            shared.run(64 * 50, &crowd);
            (join(crowd), join(apart))
        })
    };
    let (crowd, alone) = measure(false);
    crowd.tell("a crowd with keys of its own");
    alone.tell("  transactions beside it");
    let (crowd, beside) = measure(true);
    crowd.tell("a crowd over eight keys");
    beside.tell("  transactions beside it");
    let ratio = beside.median().as_secs_f64() / alone.median().as_secs_f64();
    println!("  the median is {ratio:.2} of what it is beside the crowd without conflicts");
    assert!(ratio < 10.0, "transactions on other keys take {ratio:.1} times as long");
    assert_settled(&cluster, &wanted);
}
