//! Writers and readers on all nodes, and what must hold of what they see.
//!
//! Every writer sets all keys to one value by MSET; every reader gets the keys by MGET. Whatever
//! the interleaving, strict serialisability allows only two things to be seen: one value in all
//! keys, and the values of one writer in the order in which it wrote them.

use crate::harness::{Client, Cluster, Protocol, StopAtEnd, show};
use redis::{RedisError, RedisResult};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

/// How a write or a read may fail while nodes fail: everything else is a bug.
pub const EXCUSES: [&str; 4] = ["CLUSTERDOWN", "UNKNOWN", "TRYAGAIN", "LOADING"];

/// What the load is told and tells while it runs.
#[derive(Default)]
pub struct Progress {
    stop: AtomicBool,
    /// MSETs that were answered with OK.
    pub writes: AtomicU64,
    /// MGETs that were answered, and found whole.
    pub checks: AtomicU64,
}

impl Progress {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Writes and checks so far, to wait for more of both.
    pub fn count(&self) -> (u64, u64) {
        (self.writes.load(Ordering::Relaxed), self.checks.load(Ordering::Relaxed))
    }
}

/// What went wrong and is none of the [`EXCUSES`].
pub type Complaints = Vec<String>;

/// A load over one set of keys.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub progress: &'a Progress,
    /// What the writers set.
    pub written: &'a [String],
    /// What the readers get: keys among those written.
    pub read: &'a [String],
    /// The node whose connections may break, because the test kills it.
    pub mortal: Option<u16>,
}

impl<'a> Load<'a> {
    /// Starts one writer and one reader for every node, which stop at the latest when what is
    /// returned is dropped.
    pub fn start<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        cluster: &Cluster,
    ) -> Running<'scope, 'a>
    where
        'a: 'scope,
    {
        let mut threads = Vec::new();
        for node in cluster.ids() {
            let port = cluster.ports(node).client;
            threads.push(scope.spawn(move || self.write(node, port)));
            threads.push(scope.spawn(move || self.check(node, port)));
        }
        Running { threads, stop: StopAtEnd(&self.progress.stop) }
    }

    fn write(self, node: u16, port: u16) -> Complaints {
        let mut complaints = Vec::new();
        let mut client = None;
        for n in 1.. {
            if !self.progress.goes_on() {
                break;
            }
            let value = format!("{node}-{n}");
            match with(&mut client, port, |client| client.mset_all(self.written, &value)) {
                Ok(()) => drop(self.progress.writes.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.judge(node, "MSET", error, &mut client, &mut complaints),
            }
        }
        complaints
    }

    fn check(self, node: u16, port: u16) -> Complaints {
        let mut complaints = Vec::new();
        let mut client = None;
        let mut newest = BTreeMap::new();
        while self.progress.goes_on() {
            match with(&mut client, port, |client| client.mget(self.read)) {
                Ok(values) => match whole(&values, &mut newest) {
                    Ok(()) => drop(self.progress.checks.fetch_add(1, Ordering::Relaxed)),
                    Err(complaint) => complaints.push(format!("through node {node}: {complaint}")),
                },
                Err(error) => self.judge(node, "MGET", error, &mut client, &mut complaints),
            }
        }
        complaints
    }

    fn judge(
        self,
        node: u16,
        command: &str,
        error: RedisError,
        client: &mut Option<Client>,
        complaints: &mut Complaints,
    ) {
        if error.code().is_some_and(|code| EXCUSES.contains(&code)) {
            return;
        }
        if self.mortal == Some(node) && error.code().is_none() {
            // The connection went with the node; there will be another when it is back.
            *client = None;
            std::thread::sleep(Duration::from_millis(10));
            return;
        }
        complaints.push(format!("{command} through node {node}: {}", show(&Err(error))));
        *client = None;
    }
}

/// Runs a command on a connection that is made when there is none.
fn with<T>(
    client: &mut Option<Client>,
    port: u16,
    run: impl FnOnce(&mut Client) -> RedisResult<T>,
) -> RedisResult<T> {
    if client.is_none() {
        *client = Some(Client::connect(port, Protocol::Resp2)?);
    }
    run(client.as_mut().expect("it was just made"))
}

/// Whether all values are one, and no older than what this reader saw of its writer before.
fn whole(values: &[Option<String>], newest: &mut BTreeMap<u16, u64>) -> Result<(), String> {
    if values.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(format!("mixed values {values:?}"));
    }
    let Some(Some(value)) = values.first() else { return Ok(()) };
    let (writer, n) = value.split_once('-').expect("writer-number");
    let (writer, n) = (writer.parse().expect("a node"), n.parse().expect("a number"));
    let seen = newest.entry(writer).or_insert(n);
    if n < *seen {
        return Err(format!("write {n} of writer {writer} seen after its write {seen}"));
    }
    *seen = n;
    Ok(())
}

/// The threads of a load.
pub struct Running<'scope, 'a> {
    threads: Vec<ScopedJoinHandle<'scope, Complaints>>,
    stop: StopAtEnd<'a>,
}

impl Running<'_, '_> {
    /// Whether one of them has ended though nobody stopped it.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(|thread| thread.is_finished())
    }

    /// Lets writers and readers finish what they are at, and fails the test with what they
    /// complain of.
    #[track_caller]
    pub fn settle(self) {
        drop(self.stop);
        let joined = self.threads.into_iter().map(|thread| thread.join().expect("a load thread"));
        let complaints: Vec<String> = joined.flatten().collect();
        let first = &complaints[..complaints.len().min(10)];
        assert!(complaints.is_empty(), "{} complaints, such as {first:#?}", complaints.len());
    }
}

#[test]
fn threads_end_with_the_test_that_fails_beside_them() {
    let stop = AtomicBool::new(false);
    let outcome = std::panic::catch_unwind(|| {
        std::thread::scope(|scope| {
            let _at_end = StopAtEnd(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            });
            panic!("as planned");
        })
    });
    assert!(outcome.is_err());
}

#[test]
fn the_checker_sees_mixed_and_stale_values() {
    let value = |text: &str| Some(text.to_owned());
    let mut newest = BTreeMap::new();
    assert!(whole(&[None, None], &mut newest).is_ok());
    assert!(whole(&[value("1-5"), value("1-5")], &mut newest).is_ok());
    assert!(whole(&[value("1-5"), value("2-1")], &mut newest).is_err());
    assert!(whole(&[value("1-5"), None], &mut newest).is_err());
    assert!(whole(&[value("2-9"), value("2-9")], &mut newest).is_ok());
    assert!(whole(&[value("1-4"), value("1-4")], &mut newest).is_err());
}
