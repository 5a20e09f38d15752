//! Money moves between accounts on all nodes. Whoever adds up all accounts at once finds the same
//! sum, and in the end each account holds what its transfers say: no update was lost.

use crate::contention::assert_settled;
use crate::dice::Dice;
use crate::harness::{Client, Cluster, PATIENCE, eventually};
use crate::recorder::{Outcome, has, outcome};
use redis::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const START: i64 = 1_000;
const TELLERS: u16 = 9;

/// How a transfer keeps others out.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Takes both accounts' lock keys by MSETNX, reads, writes by MSET, gives them back by DEL.
    LockKeys,
    /// Watches both accounts, reads them, writes in a transaction; begins again when it aborts.
    Watch,
    /// A transaction of DECRBY and INCRBY: nobody has to be kept out.
    Increments,
}

struct Bank {
    accounts: Vec<String>,
    way: Way,
    transfers: AtomicU64,
    retries: AtomicU64,
    stop: AtomicBool,
}

impl Bank {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Asks until the answer is not a refusal. Nothing here is cut off for so long that an outcome
    /// could be unknown.
    fn ask(&self, client: &mut Client, words: &[String]) -> Value {
        eventually(&format!("{words:?} is answered"), PATIENCE, || {
            match outcome(&words.join(" "), client.ask(words)) {
                Outcome::Answered(value) => Some(value),
                Outcome::Refused => None,
                Outcome::Unknown => panic!("{words:?}: the outcome is unknown"),
            }
        })
    }

    fn say(&self, client: &mut Client, line: &str) -> Value {
        self.ask(client, &line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    /// Moves an amount; whether it was moved.
    fn transfer(&self, client: &mut Client, from: &str, to: &str, amount: i64, id: &str) -> bool {
        match self.way {
            Way::LockKeys => {
                let taken = format!("MSETNX lock:{from} {id} lock:{to} {id}");
                if self.say(client, &taken) == Value::Int(0) {
                    return false;
                }
                let [a, b] = self.balances(client, from, to);
                let moved = format!("MSET {from} {} {to} {}", a - amount, b + amount);
                assert_eq!(self.say(client, &moved), Value::Okay);
                let given = format!("DEL lock:{to} lock:{from}");
                assert_eq!(self.say(client, &given), Value::Int(2), "the locks were ours");
                true
            }
            Way::Watch => {
                assert_eq!(self.say(client, &format!("WATCH {from} {to}")), Value::Okay);
                let [a, b] = self.balances(client, from, to);
                assert_eq!(self.say(client, "MULTI"), Value::Okay);
                self.say(client, &format!("SET {from} {}", a - amount));
                self.say(client, &format!("SET {to} {}", b + amount));
                match self.exec(client) {
                    Some(Value::Array(replies)) => {
                        assert_eq!(replies, [Value::Okay, Value::Okay]);
                        true
                    }
                    None | Some(Value::Nil) => false,
                    Some(other) => panic!("EXEC: {other:?}"),
                }
            }
            Way::Increments => {
                assert_eq!(self.say(client, "MULTI"), Value::Okay);
                self.say(client, &format!("DECRBY {from} {amount}"));
                self.say(client, &format!("INCRBY {to} {amount}"));
                match self.exec(client) {
                    Some(Value::Array(replies)) => {
                        assert!(matches!(replies[..], [Value::Int(_), Value::Int(_)]));
                        true
                    }
                    None => false,
                    Some(other) => panic!("EXEC: {other:?}"),
                }
            }
        }
    }

    /// What EXEC answers, unless it is refused: it ends the transaction even then.
    fn exec(&self, client: &mut Client) -> Option<Value> {
        match outcome("EXEC", client.ask(&["EXEC"])) {
            Outcome::Answered(value) => Some(value),
            Outcome::Refused => None,
            Outcome::Unknown => panic!("EXEC: the outcome is unknown"),
        }
    }

    fn balances(&self, client: &mut Client, from: &str, to: &str) -> [i64; 2] {
        let values = self.say(client, &format!("MGET {from} {to}"));
        let values: Vec<i64> = redis::from_redis_value(values).expect("two balances");
        [values[0], values[1]]
    }

    fn all(&self, client: &mut Client) -> Vec<i64> {
        let words = std::iter::once("MGET".to_owned()).chain(self.accounts.iter().cloned());
        let values = self.ask(client, &words.collect::<Vec<_>>());
        redis::from_redis_value(values).expect("all balances")
    }

    /// Transfers until stopped; what they say of each account.
    fn teller(&self, mut client: Client, n: u16) -> Vec<i64> {
        let mut dice = Dice::new(n.into());
        let mut moved = vec![0; self.accounts.len()];
        let accounts: Vec<usize> = (0..self.accounts.len()).collect();
        while self.goes_on() {
            let pair = dice.some(&accounts, 2);
            let amount = 1 + dice.below(20) as i64;
            let (from, to) = (&self.accounts[pair[0]], &self.accounts[pair[1]]);
            while !self.transfer(&mut client, from, to, amount, &n.to_string()) {
                self.retries.fetch_add(1, Ordering::Relaxed);
                // As a client would: those who collide should not collide again at once.
                std::thread::sleep(Duration::from_micros(dice.below(2_000) as u64));
            }
            moved[pair[0]] -= amount;
            moved[pair[1]] += amount;
            self.transfers.fetch_add(1, Ordering::Relaxed);
        }
        moved
    }

    fn auditor(&self, mut client: Client) -> u64 {
        let sum = START * self.accounts.len() as i64;
        let mut checks = 0;
        while self.goes_on() {
            let balances = self.all(&mut client);
            assert_eq!(balances.iter().sum::<i64>(), sum, "{balances:?}");
            checks += 1;
        }
        checks
    }
}

#[track_caller]
fn balance_under(cluster: &mut Cluster, way: Way) {
    let accounts = cluster.keys_everywhere(&format!("account:{way:?}"), 2);
    cluster.connect(1).mset_all(&accounts, &START.to_string()).expect("accounts");
    let counters = || (AtomicU64::new(0), AtomicU64::new(0));
    let ((transfers, retries), stop) = (counters(), AtomicBool::new(false));
    let bank = Bank { accounts, way, transfers, retries, stop };
    let (moved, checks) = std::thread::scope(|scope| {
        let bank = &bank;
        let tellers: Vec<_> = (0..TELLERS)
            .map(|n| {
                let client = cluster.connect(n % 3 + 1);
                scope.spawn(move || bank.teller(client, n))
            })
            .collect();
        let auditors: Vec<_> = cluster
            .ids()
            .map(|node| {
                let client = cluster.connect(node);
                scope.spawn(move || bank.auditor(client))
            })
            .collect();
        let more = |transfers: u64| {
            let before = bank.transfers.load(Ordering::Relaxed);
            let what = format!("{transfers} more transfers, {way:?}");
            eventually(&what, PATIENCE, || {
                let failed = tellers.iter().any(|teller| teller.is_finished())
                    || auditors.iter().any(|auditor| auditor.is_finished());
                let done = bank.transfers.load(Ordering::Relaxed) >= before + transfers;
                (failed || done).then_some(())
            });
        };
        // A fault that panics must not leave the clients running for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut dice = Dice::new(99);
            for _ in 0..6 {
                more(60);
                let node = 1 + dice.below(3) as u16;
                cluster.pause(node);
                std::thread::sleep(Duration::from_millis(20 + dice.below(200) as u64));
                cluster.resume(node);
            }
            more(200);
        }));
        bank.stop.store(true, Ordering::Relaxed);
        if let Err(cause) = outcome {
            std::panic::resume_unwind(cause);
        }
        let mut moved = vec![START; bank.accounts.len()];
        for teller in tellers {
            let of_teller = teller.join().expect("a teller");
            moved.iter_mut().zip(of_teller).for_each(|(sum, amount)| *sum += amount);
        }
        let checks = auditors.into_iter().map(|auditor| auditor.join().expect("an auditor"));
        (moved, checks.collect::<Vec<u64>>())
    });
    let (transfers, retries) = (bank.transfers, bank.retries);
    println!("{way:?}: {transfers:?} transfers, {retries:?} retries, {checks:?} audits");
    assert!(checks.iter().all(|checks| *checks > 5), "auditors looked on: {checks:?}");
    for node in cluster.ids() {
        let held = cluster.connect(node).mget(&bank.accounts).expect("MGET");
        let held: Vec<i64> =
            held.into_iter().flatten().map(|held| held.parse().expect("a number")).collect();
        assert_eq!(held, moved, "node {node} against the tellers' books");
    }
    assert_settled(cluster, &bank.accounts);
}

#[test]
fn a_bank_with_lock_keys_balances() {
    balance_under(&mut Cluster::start_in_memory(), Way::LockKeys);
}

#[test]
fn a_bank_with_transactions_balances() {
    let mut cluster = Cluster::start_in_memory();
    if has(&cluster, "exec") {
        balance_under(&mut cluster, Way::Watch);
        balance_under(&mut cluster, Way::Increments);
    }
}
