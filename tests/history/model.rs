//! What one server with one thread would do: the specification both checkers judge by.

use stateright::semantics::SequentialSpec;
use std::collections::BTreeMap;

/// A key, as an index into the names that a recording gives its keys.
pub type Key = usize;

/// A command, or a transaction of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Get(Key),
    Set(Key, i64),
    Incr(Key),
    Del(Vec<Key>),
    Mget(Vec<Key>),
    Mset(Vec<(Key, i64)>),
    Msetnx(Vec<(Key, i64)>),
    Rename(Key, Key),
    /// `MULTI`, the body, `EXEC`, after the watched keys were found to hold these values. Values
    /// are unique in a recording, so a key that holds the same value was not changed.
    Exec {
        watched: Vec<(Key, Option<i64>)>,
        body: Vec<Op>,
    },
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ret {
    Ok,
    Int(i64),
    Value(Option<i64>),
    Values(Vec<Option<i64>>),
    /// RENAME of a key that is not there.
    NoSuchKey,
    /// EXEC whose watched keys had changed.
    Aborted,
    /// What EXEC answers: a reply for each command of the body.
    Each(Vec<Ret>),
}

impl Op {
    /// Every key that it names.
    pub fn keys(&self) -> Vec<Key> {
        match self {
            Op::Get(key) | Op::Set(key, _) | Op::Incr(key) => vec![*key],
            Op::Del(keys) | Op::Mget(keys) => keys.clone(),
            Op::Mset(pairs) | Op::Msetnx(pairs) => pairs.iter().map(|(key, _)| *key).collect(),
            Op::Rename(from, to) => vec![*from, *to],
            Op::Exec { watched, body } => {
                let watched = watched.iter().map(|(key, _)| *key);
                watched.chain(body.iter().flat_map(Op::keys)).collect()
            }
        }
    }

    /// Whether it leaves everything as it was: without a reply it says nothing at all.
    pub fn only_reads(&self) -> bool {
        match self {
            Op::Get(_) | Op::Mget(_) => true,
            Op::Exec { body, .. } => body.iter().all(Op::only_reads),
            _ => false,
        }
    }
}

/// The keys that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Store(BTreeMap<Key, i64>);

impl Store {
    fn set_all(&mut self, pairs: &[(Key, i64)]) {
        self.0.extend(pairs.iter().copied());
    }
}

impl SequentialSpec for Store {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match op {
            Op::Get(key) => Ret::Value(self.0.get(key).copied()),
            Op::Set(key, value) => {
                self.0.insert(*key, *value);
                Ret::Ok
            }
            Op::Incr(key) => {
                let value = self.0.entry(*key).or_insert(0);
                *value += 1;
                Ret::Int(*value)
            }
            Op::Del(keys) => {
                Ret::Int(keys.iter().filter_map(|key| self.0.remove(key)).count() as i64)
            }
            Op::Mget(keys) => {
                Ret::Values(keys.iter().map(|key| self.0.get(key).copied()).collect())
            }
            Op::Mset(pairs) => {
                self.set_all(pairs);
                Ret::Ok
            }
            Op::Msetnx(pairs) if pairs.iter().any(|(key, _)| self.0.contains_key(key)) => {
                Ret::Int(0)
            }
            Op::Msetnx(pairs) => {
                self.set_all(pairs);
                Ret::Int(1)
            }
            Op::Rename(from, to) => match self.0.remove(from) {
                None => Ret::NoSuchKey,
                Some(value) => {
                    self.0.insert(*to, value);
                    Ret::Ok
                }
            },
            Op::Exec { watched, body } => {
                if watched.iter().any(|(key, value)| self.0.get(key) != value.as_ref()) {
                    return Ret::Aborted;
                }
                Ret::Each(body.iter().map(|op| self.invoke(op)).collect())
            }
        }
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        // A watched key may have changed and changed back, or its partition a new leader: EXEC may
        // abort whenever it was asked to watch, as long as it then does nothing.
        if let (Op::Exec { watched, .. }, Ret::Aborted) = (op, ret)
            && !watched.is_empty()
        {
            return true;
        }
        &self.invoke(op) == ret
    }
}
