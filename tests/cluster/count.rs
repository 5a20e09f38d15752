//! Clients that count what was acknowledged, from outside, and hold the cluster to it.
//!
//! Writers set keys that nobody else sets and increment counters of their own until they are
//! stopped, through whichever node they are told. What they were told they write down: an `OK` must
//! be found again, a refusal must not have happened, and for an unknown outcome either will do.

use crate::harness::{Client, Cluster, PATIENCE, Protocol, eventually};
use redis::{RedisResult, Value};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Errors that say a command was surely not executed.
pub const REFUSALS: [&str; 3] = ["CLUSTERDOWN", "TRYAGAIN", "LOADING"];

/// What a reply says of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Done(Value),
    /// It was not executed and will not be.
    Refused,
    /// It may have been executed.
    Unknown,
}

/// Reads a reply. A connection that broke says nothing.
#[track_caller]
pub fn said(asked: &str, reply: RedisResult<Value>) -> Said {
    match reply {
        Ok(value) => Said::Done(value),
        Err(error) => match error.code() {
            Some(code) if REFUSALS.contains(&code) => Said::Refused,
            Some("UNKNOWN") | None => Said::Unknown,
            Some(_) => panic!("{asked}: {error}"),
        },
    }
}

/// What one writer was told.
pub struct Account {
    prefix: String,
    /// By number of the key: what became of `SET prefix:n n`.
    sets: Vec<Said>,
    counter: String,
    /// Increments acknowledged, and those of unknown fate.
    acknowledged: i64,
    unknown: i64,
    /// What the counter answered last.
    last: i64,
    /// Answers of the counter that cannot be.
    disorder: Vec<String>,
    /// The longest time between two acknowledgements.
    pub gap: Duration,
}

/// Writers that run until stopped.
#[derive(Default)]
pub struct Count {
    stop: AtomicBool,
    pub acknowledged: AtomicU64,
}

impl Count {
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Waits for so many more acknowledgements.
    #[track_caller]
    pub fn more(&self, writes: u64) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually(&format!("{writes} more writes are acknowledged"), PATIENCE, || {
            (self.acknowledged.load(Ordering::Relaxed) >= before + writes).then_some(())
        });
    }

    /// Writes through a node: keys of its own all over the cluster, and the counter of the writer,
    /// until stopped.
    pub fn write(&self, port: u16, prefix: String) -> Account {
        let counter = format!("{prefix}:counter");
        let mut account = Account {
            prefix,
            sets: Vec::new(),
            counter,
            acknowledged: 0,
            unknown: 0,
            last: 0,
            disorder: Vec::new(),
            gap: Duration::ZERO,
        };
        let mut connection: Option<Client> = None;
        let mut last = Instant::now();
        while self.goes_on() {
            let Some(client) = &mut connection else {
                connection = Client::connect(port, Protocol::Resp2).ok();
                if connection.is_none() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                continue;
            };
            let n = account.sets.len();
            let (key, value) = (format!("{}:{n}", account.prefix), n.to_string());
            let words = ["SET", &key, &value];
            let set = said("SET", client.ask(&words));
            let reply = client.ask(&["INCR", &account.counter]);
            let broken = reply.as_ref().is_err_and(|error| error.code().is_none());
            let incremented = said("INCR", reply);
            for said in [&set, &incremented] {
                if let Said::Done(_) = said {
                    account.gap = account.gap.max(last.elapsed());
                    last = Instant::now();
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            }
            account.note(set, incremented);
            if broken {
                connection = None;
            }
        }
        account
    }
}

impl Account {
    fn note(&mut self, set: Said, incremented: Said) {
        self.sets.push(set);
        match incremented {
            Said::Done(Value::Int(value)) => {
                let least = self.acknowledged + 1;
                if !(least..=least + self.unknown).contains(&value) {
                    self.disorder.push(format!(
                        "{value} after {} acknowledged and {} unknown",
                        self.acknowledged, self.unknown
                    ));
                }
                if value <= self.last {
                    self.disorder.push(format!("{value} after {}", self.last));
                }
                // What is unknown stays so: it may be executed as late as it likes.
                (self.acknowledged, self.last) = (self.acknowledged + 1, value);
            }
            Said::Done(other) => self.disorder.push(format!("INCR was answered with {other:?}")),
            Said::Refused => {}
            Said::Unknown => self.unknown += 1,
        }
    }

    /// Writes acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.sets.iter().filter(|set| matches!(set, Said::Done(_))).count()
    }

    /// Compares the books with what a node says; the complaints.
    pub fn audit(&self, client: &mut Client) -> Vec<String> {
        let mut complaints: Vec<String> =
            self.disorder.iter().map(|text| format!("{}: {text}", self.counter)).collect();
        let keys: Vec<String> =
            (0..self.sets.len()).map(|n| format!("{}:{n}", self.prefix)).collect();
        let mut found = Vec::new();
        for some in keys.chunks(200) {
            let what = format!("{} is read", self.prefix);
            found.extend(eventually(&what, PATIENCE, || client.mget(some).ok()));
        }
        for (n, (set, found)) in self.sets.iter().zip(&found).enumerate() {
            let wanted = n.to_string();
            let sound = match (set, found) {
                (Said::Done(_), Some(value)) => *value == wanted,
                (Said::Done(_), None) | (Said::Refused, Some(_)) => false,
                (Said::Refused, None) => true,
                (Said::Unknown, value) => value.as_ref().is_none_or(|value| *value == wanted),
            };
            if !sound {
                complaints.push(format!("{}:{n} holds {found:?} after {set:?}", self.prefix));
            }
        }
        let value = eventually("the counter is read", PATIENCE, || {
            client.ask(&["GET", &self.counter]).ok()
        });
        let value: Option<i64> = redis::from_redis_value(value).expect("a number");
        let value = value.unwrap_or(0);
        if !(self.acknowledged..=self.acknowledged + self.unknown).contains(&value) {
            complaints.push(format!(
                "{} is {value} after {} acknowledged and {} unknown",
                self.counter, self.acknowledged, self.unknown
            ));
        }
        complaints
    }
}

/// Two writers for every node, and `fault` beside them; then every node is asked for everything
/// that was acknowledged.
#[track_caller]
pub fn counted(
    cluster: &mut Cluster,
    prefix: &str,
    fault: impl FnOnce(&mut Cluster, &Count),
) -> Vec<Account> {
    let count = Count::default();
    let accounts = std::thread::scope(|scope| {
        let writers: Vec<_> = cluster
            .ids()
            .flat_map(|id| [(id, 'a'), (id, 'b')])
            .map(|(id, name)| {
                let (count, port) = (&count, cluster.ports(id).client);
                let prefix = format!("{prefix}:{id}{name}");
                scope.spawn(move || count.write(port, prefix))
            })
            .collect();
        // A fault that panics must not leave the writers running for ever.
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fault(cluster, &count)));
        count.stop();
        if let Err(cause) = outcome {
            std::panic::resume_unwind(cause);
        }
        let joined = writers.into_iter().map(|writer| writer.join().expect("a writer"));
        joined.collect::<Vec<Account>>()
    });
    audit(cluster, &accounts);
    accounts
}

/// Asks every node for everything.
#[track_caller]
pub fn audit(cluster: &Cluster, accounts: &[Account]) {
    let mut complaints = Vec::new();
    for id in cluster.ids() {
        let mut client = cluster.connect(id);
        for account in accounts {
            let found = account.audit(&mut client);
            complaints.extend(found.into_iter().map(|text| format!("node {id}: {text}")));
        }
    }
    let writes: usize = accounts.iter().map(Account::acknowledged).sum();
    let unknown =
        |account: &Account| account.sets.iter().filter(|set| **set == Said::Unknown).count();
    let unknown: usize = accounts.iter().map(unknown).sum();
    println!("{writes} SETs acknowledged, {unknown} unknown; audited at every node");
    let first = &complaints[..complaints.len().min(10)];
    assert!(complaints.is_empty(), "{} complaints, such as {first:#?}", complaints.len());
}
