//! A nemesis kills, pauses and cuts off nodes by a seeded schedule while clients go on, and the
//! checkers judge what the clients saw.
//!
//! `QUORATE_FAULT_SECONDS` says how long each test does so, `QUORATE_FAULT_SEED` where its dice
//! begin. The schedule is printed; it is the same for the same seed, what meets it is not.

use crate::appends::judged;
use crate::checker::assert_linearizable;
use crate::dice::Dice;
use crate::harness::{Client, Cluster, PATIENCE, Protocol, StopAtEnd, eventually};
use crate::recorder::{Habits, Outcome, Recording, outcome};
use crate::registers::{record, unknown};
use redis::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long each test goes on.
fn duration() -> Duration {
    Duration::from_secs(number("QUORATE_FAULT_SECONDS").unwrap_or(12))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// The faults of a test, one after the other.
struct Nemesis {
    dice: Dice,
    begun: Instant,
}

impl Nemesis {
    fn new(of_test: u64) -> Nemesis {
        let seed = number("QUORATE_FAULT_SEED").unwrap_or(1);
        println!("QUORATE_FAULT_SEED={seed}");
        Nemesis { dice: Dice::new(seed * 1_000 + of_test), begun: Instant::now() }
    }

    fn goes_on(&self) -> bool {
        self.begun.elapsed() < duration()
    }

    /// A time between a moment and longer than peers put up with silence.
    fn rest(&mut self, most: usize) -> Duration {
        let most = if self.dice.one_in(2) { most / 4 } else { most };
        Duration::from_millis(20 + self.dice.below(most) as u64)
    }

    fn tell(&self, what: &str) {
        println!("{:>7.3} s: {what}", self.begun.elapsed().as_secs_f64());
    }

    /// One fault, and its end.
    fn strike(&mut self, cluster: &mut Cluster) {
        let id = 1 + self.dice.below(3) as u16;
        let other = id % 3 + 1;
        match self.dice.below(8) {
            0..3 => {
                let rest = self.rest(2_000);
                self.tell(&format!("kill node {id}, start it after {rest:?}"));
                cluster.kill(id);
                std::thread::sleep(rest);
                cluster.spawn(id);
            }
            3 | 4 => {
                let rest = self.rest(4_500);
                self.tell(&format!("pause node {id} for {rest:?}"));
                cluster.pause(id);
                std::thread::sleep(rest);
                cluster.resume(id);
            }
            5 => {
                let (rest, reset) = (self.rest(4_500), self.dice.one_in(2));
                self.tell(&format!("cut node {id} off for {rest:?}, reset: {reset}"));
                cluster.network().isolate(id);
                std::thread::sleep(rest);
                if reset {
                    cluster.network().reset();
                }
                cluster.network().heal();
            }
            6 => {
                let rest = self.rest(4_500);
                self.tell(&format!("node {other} hears nothing of node {id} for {rest:?}"));
                cluster.network().cut(id, other, true);
                std::thread::sleep(rest);
                cluster.network().heal();
            }
            _ => {
                self.tell("kill all nodes at once and start them");
                cluster.ids().for_each(|id| cluster.process(id).signal("KILL"));
                cluster.ids().for_each(|id| cluster.kill(id));
                cluster.ids().for_each(|id| cluster.spawn(id));
            }
        }
        let calm = self.rest(1_500);
        std::thread::sleep(calm);
    }

    /// Everybody is back.
    fn rest_in_peace(&self, cluster: &mut Cluster) {
        self.tell("peace");
        cluster.network().heal();
        cluster.start_all();
    }
}

#[test]
fn registers_are_strictly_serialisable_whatever_happens() {
    let mut cluster = Cluster::start_networked();
    let mut nemesis = Nemesis::new(1);
    let mut round = 0;
    while nemesis.goes_on() {
        round += 1;
        let recording = Recording::new(cluster.keys_everywhere(&format!("nemesis:{round}"), 2));
        let habits = Habits { calls: usize::MAX, rest: 20_000, ..Habits::of(&cluster) };
        let nodes = [1, 2, 3, 1, 2, 3];
        let history = record(&mut cluster, &recording, &nodes, round, habits, |cluster| {
            for _ in 0..2 {
                nemesis.strike(cluster);
            }
            nemesis.rest_in_peace(cluster);
            recording.more(60);
            recording.stop();
        });
        println!("{} calls, {} unknown", history.len(), unknown(&history));
        assert_linearizable(&format!("round {round}"), &history);
    }
    cluster.wait_at_rest();
}

#[test]
fn lists_show_no_cycle_whatever_happens() {
    let mut cluster = Cluster::start_networked();
    let names = cluster.keys_everywhere("list", 2);
    judged(&mut cluster, &names, |cluster, book| {
        let mut nemesis = Nemesis::new(2);
        while nemesis.goes_on() {
            nemesis.strike(cluster);
        }
        nemesis.rest_in_peace(cluster);
        book.more(100);
    });
    cluster.wait_at_rest();
}

const ACCOUNTS: usize = 2;
const START: i64 = 1_000;

/// A client that moves money, every second time under WATCH, until stopped.
fn teller(port: u16, accounts: &[String], mut dice: Dice, stop: &AtomicBool, moved: &AtomicU64) {
    let mut connection: Option<Client> = None;
    let places: Vec<usize> = (0..accounts.len()).collect();
    while !stop.load(Ordering::Relaxed) {
        let Some(client) = connected(&mut connection, port) else { continue };
        let pair = dice.some(&places, 2);
        let (from, to) = (&accounts[pair[0]], &accounts[pair[1]]);
        let amount = 1 + dice.below(20) as i64;
        match transfer(client, from, to, amount, dice.one_in(2)) {
            Some(true) => drop(moved.fetch_add(1, Ordering::Relaxed)),
            Some(false) => {}
            // The connection may be gone, or half in a transaction.
            None => connection = None,
        }
    }
}

fn connected(connection: &mut Option<Client>, port: u16) -> Option<&mut Client> {
    if connection.is_none() {
        *connection = Client::connect(port, Protocol::Resp2).ok();
        if connection.is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    connection.as_mut()
}

/// Whether the money was moved; `None` when that is not known.
fn transfer(client: &mut Client, from: &str, to: &str, amount: i64, watch: bool) -> Option<bool> {
    let mut answered = |line: String| {
        let words: Vec<&str> = line.split(' ').collect();
        match outcome(&line, client.ask(&words)) {
            Outcome::Answered(value) => Some(value),
            Outcome::Refused | Outcome::Unknown => None,
        }
    };
    let [take, give] = match watch {
        true => {
            answered(format!("WATCH {from} {to}"))?;
            let held = answered(format!("MGET {from} {to}"))?;
            let held: Vec<i64> = redis::from_redis_value(held).expect("two balances");
            [format!("SET {from} {}", held[0] - amount), format!("SET {to} {}", held[1] + amount)]
        }
        false => [format!("DECRBY {from} {amount}"), format!("INCRBY {to} {amount}")],
    };
    answered("MULTI".into())?;
    answered(take)?;
    answered(give)?;
    Some(answered("EXEC".into())? != Value::Nil)
}

#[test]
fn money_is_neither_made_nor_lost_whatever_happens() {
    let mut cluster = Cluster::start_networked();
    let accounts = cluster.keys_everywhere("account", ACCOUNTS);
    let sum = START * accounts.len() as i64;
    cluster.connect(1).mset_all(&accounts, &START.to_string()).expect("accounts");
    let (stop, moved, audits) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let at_end = StopAtEnd(&stop);
        let (accounts, stop, moved, audits) = (&accounts, &stop, &moved, &audits);
        for n in 0..6u16 {
            let port = cluster.ports(n % 3 + 1).client;
            scope.spawn(move || teller(port, accounts, Dice::new(n.into()), stop, moved));
        }
        let auditors: Vec<_> = cluster
            .ids()
            .map(|id| {
                let port = cluster.ports(id).client;
                scope.spawn(move || {
                    let mut connection = None;
                    while !stop.load(Ordering::Relaxed) {
                        let Some(client) = connected(&mut connection, port) else { continue };
                        match client.mget(accounts) {
                            Ok(held) => {
                                let held = held.iter().flatten().map(|held| held.parse::<i64>());
                                let held: Vec<i64> =
                                    held.map(|held| held.expect("a number")).collect();
                                assert_eq!(held.iter().sum::<i64>(), sum, "node {id}: {held:?}");
                                audits.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) if error.code().is_none() => connection = None,
                            Err(_) => {}
                        }
                    }
                })
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut nemesis = Nemesis::new(3);
            while nemesis.goes_on() {
                nemesis.strike(&mut cluster);
            }
            nemesis.rest_in_peace(&mut cluster);
            let before = moved.load(Ordering::Relaxed);
            eventually("transfers go on", PATIENCE, || {
                (moved.load(Ordering::Relaxed) > before + 50).then_some(())
            });
        }));
        drop(at_end);
        if let Err(cause) = outcome {
            std::panic::resume_unwind(cause);
        }
        auditors.into_iter().for_each(|auditor| auditor.join().expect("an auditor"));
    });
    println!("{moved:?} transfers, {audits:?} audits");
    for id in cluster.ids() {
        let held = cluster.connect(id).mget(&accounts).expect("MGET");
        let held: i64 =
            held.iter().flatten().map(|held| held.parse::<i64>().expect("a number")).sum();
        assert_eq!(held, sum, "node {id}");
    }
    cluster.wait_at_rest();
}
