//! Clients that write down what they asked, when, and what they were told.

use crate::checker::Call;
use crate::dice::Dice;
use crate::harness::{Client, Cluster, PATIENCE, Protocol, eventually, show};
use crate::model::{Key, Op, Ret};
use redis::{RedisResult, Value};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Refusals: what was asked did not happen and will not. A history leaves them out, so that a
/// refusal of something that happened after all makes it impossible.
const REFUSALS: [&str; 3] = ["CLUSTERDOWN", "TRYAGAIN", "LOADING"];

/// How long a client waits after a refusal before it asks something else.
const BACKOFF: Duration = Duration::from_millis(5);

/// What became of something that was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Answered(Value),
    /// It did not happen.
    Refused,
    /// It may have happened.
    Unknown,
}

/// Reads a reply as what it says about the command.
///
/// # Panics
/// When it is an error that no fault excuses.
#[track_caller]
pub fn outcome(asked: &str, reply: RedisResult<Value>) -> Outcome {
    match reply {
        Ok(value) => Outcome::Answered(value),
        Err(error) => match error.code() {
            Some(code) if REFUSALS.contains(&code) => Outcome::Refused,
            Some("UNKNOWN") | None => Outcome::Unknown,
            Some(_) => panic!("{asked}: {}", show(&Err(error))),
        },
    }
}

/// A history while it is made.
pub struct Recording {
    names: Vec<String>,
    /// Gives every call and return a moment of its own. A call's is drawn before it is sent and a
    /// return's after it came, so what the history says of order is true.
    clock: AtomicU64,
    clients: AtomicU64,
    values: AtomicI64,
    /// Calls that were answered.
    pub answered: AtomicU64,
    stop: AtomicBool,
}

impl Recording {
    /// A recording over these keys.
    pub fn new(names: Vec<String>) -> Recording {
        Recording {
            names,
            clock: AtomicU64::new(1),
            clients: AtomicU64::new(1),
            // INCRs of different values should not meet.
            values: AtomicI64::new(1_000),
            answered: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        (0..self.names.len()).collect()
    }

    /// A value that was not used before and that no INCR will reach.
    pub fn value(&self) -> i64 {
        self.values.fetch_add(100_000, Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Lets every client end after what it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether clients are to go on.
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Waits until so many more calls were answered.
    #[track_caller]
    pub fn more(&self, calls: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually(&format!("{calls} more calls are answered"), PATIENCE, || {
            (self.answered.load(Ordering::Relaxed) >= before + calls || !self.goes_on())
                .then_some(())
        });
    }

    /// A client of one node.
    pub fn client<'a>(&'a self, cluster: &Cluster, node: u16) -> Recorder<'a> {
        Recorder {
            recording: self,
            port: cluster.ports(node).client,
            id: self.clients.fetch_add(1, Ordering::Relaxed),
            connection: None,
            calls: Vec::new(),
        }
    }

    /// The words of a command; what a transaction holds is sent by [`Recorder::run`].
    fn words(&self, op: &Op) -> Vec<String> {
        let name = |key: &Key| self.names[*key].clone();
        let mut words = Vec::new();
        let mut line = |command: &str, rest: Vec<String>| {
            words.push(command.to_owned());
            words.extend(rest);
        };
        let pairs = |pairs: &[(Key, i64)]| {
            pairs.iter().flat_map(|(key, value)| [name(key), value.to_string()]).collect()
        };
        match op {
            Op::Get(key) => line("GET", vec![name(key)]),
            Op::Set(key, value) => line("SET", vec![name(key), value.to_string()]),
            Op::Incr(key) => line("INCR", vec![name(key)]),
            Op::Del(keys) => line("DEL", keys.iter().map(name).collect()),
            Op::Mget(keys) => line("MGET", keys.iter().map(name).collect()),
            Op::Mset(all) => line("MSET", pairs(all)),
            Op::Msetnx(all) => line("MSETNX", pairs(all)),
            Op::Rename(from, to) => line("RENAME", vec![name(from), name(to)]),
            Op::Exec { .. } => line("EXEC", Vec::new()),
        }
        words
    }
}

/// A client that keeps a record.
pub struct Recorder<'a> {
    recording: &'a Recording,
    port: u16,
    id: u64,
    connection: Option<Client>,
    /// What it asked so far.
    pub calls: Vec<Call>,
}

impl Recorder<'_> {
    /// Asks, waits, writes down; the reply, if one came.
    pub fn run(&mut self, op: Op) -> Option<Ret> {
        let mut client = self.connected()?;
        if let Op::Exec { body, .. } = &op {
            // Until EXEC nothing of it can happen.
            let queued = std::iter::once(vec!["MULTI".to_owned()])
                .chain(body.iter().map(|op| self.recording.words(op)))
                .try_for_each(|words| match outcome(&words.join(" "), client.ask(&words)) {
                    Outcome::Answered(_) => Some(()),
                    _ => None,
                });
            if queued.is_none() {
                // The connection goes, and what was queued and watched with it.
                self.pause();
                return None;
            }
        }
        let words = self.recording.words(&op);
        let called = self.recording.now();
        let reply = client.ask(&words);
        let returned = self.recording.now();
        if let (Op::Rename(..), Err(error)) = (&op, &reply)
            && error.detail().is_some_and(|detail| detail.contains("no such key"))
        {
            self.connection = Some(client);
            return Some(self.note(op, called, returned, Ret::NoSuchKey));
        }
        // A connection that broke has no code; one that did not is used again.
        if reply.is_ok() || reply.as_ref().is_err_and(|error| error.code().is_some()) {
            self.connection = Some(client);
        }
        match outcome(&format!("{op:?}"), reply) {
            Outcome::Answered(value) => {
                let ret = read(&op, &value);
                Some(self.note(op, called, returned, ret))
            }
            Outcome::Refused => {
                self.pause();
                None
            }
            Outcome::Unknown => {
                if !op.only_reads() {
                    self.calls.push(Call { client: self.id, op, called, returned: None });
                }
                self.id = self.recording.clients.fetch_add(1, Ordering::Relaxed);
                self.pause();
                None
            }
        }
    }

    /// Begins to watch; whether that was granted.
    pub fn watch(&mut self, keys: &[Key]) -> bool {
        let Some(mut client) = self.connected() else { return false };
        let mut words = vec!["WATCH".to_owned()];
        words.extend(keys.iter().map(|key| self.recording.names[*key].clone()));
        let granted = outcome("WATCH", client.ask(&words)) == Outcome::Answered(Value::Okay);
        if granted {
            self.connection = Some(client);
        }
        granted
    }

    fn connected(&mut self) -> Option<Client> {
        if self.connection.is_none() {
            match Client::connect(self.port, Protocol::Resp2) {
                Ok(client) => self.connection = Some(client),
                Err(_) => self.pause(),
            }
        }
        self.connection.take()
    }

    fn pause(&self) {
        std::thread::sleep(BACKOFF);
    }

    fn note(&mut self, op: Op, called: u64, returned: u64, ret: Ret) -> Ret {
        self.recording.answered.fetch_add(1, Ordering::Relaxed);
        let returned = Some((returned, ret.clone()));
        self.calls.push(Call { client: self.id, op, called, returned });
        ret
    }
}

/// A reply in the model's terms.
#[track_caller]
fn read(op: &Op, value: &Value) -> Ret {
    match (op, value) {
        (Op::Exec { .. }, Value::Nil) => Ret::Aborted,
        (Op::Exec { body, .. }, Value::Array(values)) if body.len() == values.len() => {
            Ret::Each(body.iter().zip(values).map(|(op, value)| read(op, value)).collect())
        }
        (Op::Get(_), value) => Ret::Value(number(value)),
        (Op::Mget(keys), Value::Array(values)) if keys.len() == values.len() => {
            Ret::Values(values.iter().map(number).collect())
        }
        (_, Value::Okay) => Ret::Ok,
        (_, Value::Int(number)) => Ret::Int(*number),
        (op, value) => panic!("{op:?} was answered with {value:?}"),
    }
}

#[track_caller]
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Nil => None,
        Value::BulkString(bytes) => {
            let text = std::str::from_utf8(bytes).expect("digits");
            Some(text.parse().expect("a number"))
        }
        other => panic!("a value of {other:?}"),
    }
}

/// Whether the cluster has a command; so a test of one that is not there yet begins by itself.
pub fn has(cluster: &Cluster, command: &str) -> bool {
    let reply = cluster.connect(1).ask(&["COMMAND", "INFO", command]);
    matches!(reply, Ok(Value::Array(rows)) if matches!(rows.first(), Some(Value::Array(_))))
}

/// What the clients of a recording do.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Commands over several keys, which tie the keys together.
    pub several: bool,
    /// MULTI and EXEC are there.
    pub exec: bool,
    /// RENAME is there.
    pub rename: bool,
    /// A client stops by itself after so many calls.
    pub calls: usize,
    /// The longest rest between two calls, in microseconds.
    pub rest: usize,
}

impl Habits {
    /// What the cluster has, short and without rest.
    pub fn of(cluster: &Cluster) -> Habits {
        let (exec, rename) = (has(cluster, "exec"), has(cluster, "rename"));
        Habits { several: true, exec, rename, calls: 100, rest: 0 }
    }
}

/// One client asks what its dice say until it is stopped.
pub fn ask_about(client: &mut Recorder<'_>, mut dice: Dice, habits: Habits) {
    let recording = client.recording;
    let keys = recording.keys();
    for _ in 0..habits.calls {
        if !recording.goes_on() {
            break;
        }
        if habits.rest > 0 {
            let rest = dice.below(habits.rest) as u64;
            std::thread::sleep(Duration::from_micros(rest));
        }
        let key = *dice.pick(&keys);
        let count = if habits.several { 1 + dice.below(keys.len().min(4)) } else { 1 };
        let some = dice.some(&keys, count);
        let pairs = || some.iter().map(|key| (*key, recording.value())).collect();
        let op = match dice.below(if habits.several { 14 } else { 5 }) {
            0 | 1 => Op::Get(key),
            2 => Op::Set(key, recording.value()),
            3 => Op::Incr(key),
            4 => Op::Del(some),
            5 | 6 => Op::Mget(some),
            7 | 8 => Op::Mset(pairs()),
            9 => Op::Msetnx(pairs()),
            10 if habits.rename && count > 1 => Op::Rename(some[0], some[1]),
            11 if habits.exec => Op::Exec {
                watched: Vec::new(),
                body: vec![Op::Mget(some.clone()), Op::Mset(pairs()), Op::Incr(key)],
            },
            12 if habits.exec => {
                overwrite(client, &some);
                continue;
            }
            _ => Op::Mget(keys.clone()),
        };
        client.run(op);
    }
}

/// Reads some keys and overwrites them, unless somebody else did meanwhile.
fn overwrite(client: &mut Recorder<'_>, keys: &[Key]) {
    if !client.watch(keys) {
        return;
    }
    let Some(Ret::Values(values)) = client.run(Op::Mget(keys.to_vec())) else {
        // What is watched would tie the next transaction of this connection to these keys.
        client.connection = None;
        return;
    };
    let body = keys.iter().map(|key| Op::Set(*key, client.recording.value())).collect();
    let watched = keys.iter().copied().zip(values).collect();
    client.run(Op::Exec { watched, body });
}
