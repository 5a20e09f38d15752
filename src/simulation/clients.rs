//! Clients: what they ask for, and what they are told.

use super::lists::{
    APPEND, APPEND_ALONE, APPEND_IF_EVEN, APPEND_REST_IF_EVEN, READ, READ_AND_APPEND, batch,
    key_name, key_word, read_and_append,
};
use super::network::{Actor, Message};
use super::pipelines::Asker;
use super::world::{DATA, World, partition_of};
use crate::batch::{Batch, OpCode, Replies};
use crate::ids::{PartitionId, TableIndex};
use crate::store::tables::Access;
use crate::txn::protocol::{Claim, Ended, Granule, Mode, Share, Watched, Work};
use std::collections::{BTreeMap, BTreeSet};

/// How a request ended, as its client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Open,
    Done,
    Refused,
    Unknown,
}

/// What a client asked for, and what it knows by now. Its number is its tag.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) tag: u32,
    pub(super) keys: Vec<usize>,
    pub(super) code: OpCode,
    /// The steps in which it began and ended.
    pub(super) begun: usize,
    pub(super) ended: usize,
    pub(super) outcome: Outcome,
    /// What it saw of each key.
    pub(super) seen: BTreeMap<usize, Vec<u32>>,
    /// Which node was asked.
    pub(super) node: usize,
    /// How often it asked a node that did not lead.
    turned_away: usize,
}

impl Request {
    /// A request that begins in this step.
    pub(super) fn begun(
        tag: u32,
        keys: Vec<usize>,
        code: OpCode,
        step: usize,
        node: usize,
    ) -> Request {
        Request {
            tag,
            keys,
            code,
            begun: step,
            ended: usize::MAX,
            outcome: Outcome::Open,
            seen: BTreeMap::new(),
            node,
            turned_away: 0,
        }
    }
}

/// A request on several partitions, as its Session asks for it.
pub(super) fn work_of(keys: &[usize], code: OpCode, tag: u32, watched: &[(usize, u64)]) -> Work {
    let mode = match code {
        READ => Mode::Read,
        APPEND | APPEND_ALONE | READ_AND_APPEND => Mode::Write,
        _ => Mode::Gather,
    };
    let partitions: BTreeSet<PartitionId> = keys.iter().map(|key| partition_of(*key)).collect();
    let shares = partitions.into_iter().map(|id| {
        let own: Vec<usize> = keys.iter().copied().filter(|key| partition_of(*key) == id).collect();
        if mode == Mode::Gather {
            let claims = own.iter().map(|key| Claim {
                granule: Granule::Key(TableIndex::default(), key_name(*key)),
                access: match code == APPEND_REST_IF_EVEN && *key == keys[0] {
                    true => Access::Read,
                    false => Access::Write,
                },
            });
            return (id, Share { claims: claims.collect(), ..Share::default() });
        }
        let mine = watched.iter().filter(|(key, _)| partition_of(*key) == id);
        let watched = mine.map(|&(key, version)| Watched {
            table: TableIndex::default(),
            key: key_name(key),
            version,
        });
        let batch = match code {
            READ_AND_APPEND => read_and_append(id, keys[0], &own, tag),
            APPEND_ALONE => batch(APPEND, id, &own, tag),
            code => batch(code, id, &own, tag),
        };
        let whole = Claim { granule: Granule::Whole, access: Access::Write };
        let claims = Vec::from_iter((code == APPEND_ALONE).then_some(whole));
        (id, Share { watched: watched.collect(), claims, ..Share::from(batch) })
    });
    let shares = shares.collect();
    let script = match mode {
        Mode::Gather => batch(code, PartitionId(0), keys, tag),
        _ => Batch::new(),
    };
    Work { mode, shares, script }
}

impl World {
    /// A client asks a node.
    pub(super) fn ask_for(
        &mut self,
        keys: &[usize],
        code: OpCode,
        node: usize,
        watched: &[(usize, u64)],
    ) {
        let tag = self.requests.len() as u32;
        let partitions: BTreeSet<PartitionId> = keys.iter().map(|key| partition_of(*key)).collect();
        let request = tag as usize;
        let alone = partitions.len() == 1;
        self.requests.push(Request::begun(tag, keys.to_vec(), code, self.step, node));
        if alone {
            self.ask_alone(request, self.leader(node, partition_of(keys[0])));
            return;
        }
        let work = work_of(keys, code, tag, watched);
        let to = Actor::Coordinator(node);
        self.send(Actor::Client(request), to, Message::Begin(request, work));
    }

    /// Asks a node for a request on one partition.
    fn ask_alone(&mut self, request: usize, node: usize) {
        let Request { code, keys, tag, .. } = &self.requests[request];
        let batch = batch(*code, partition_of(keys[0]), keys, *tag);
        self.requests[request].node = node;
        let execute = Message::Execute(Asker::Client(request), batch);
        let to = self.home(node, partition_of(self.requests[request].keys[0]));
        self.send(Actor::Client(request), to, execute);
    }

    /// A node does not lead the partition: another one may.
    fn ask_again(&mut self, request: usize) {
        self.requests[request].turned_away += 1;
        if self.requests[request].turned_away > 200 {
            self.end(request, Outcome::Refused);
            return;
        }
        let node = self.rng.roll(DATA);
        self.ask_alone(request, node);
    }

    /// A node answers a request on one partition.
    pub(super) fn on_replied(&mut self, request: usize, replies: Replies) {
        if !replies.not_leader.is_empty() {
            self.ask_again(request);
            return;
        }
        self.on_reply(request, replies.get(0));
    }

    /// A request on one partition has its reply.
    pub(super) fn on_reply(&mut self, request: usize, reply: &[u8]) {
        let outcome = match reply {
            b"refused" => Outcome::Refused,
            b"unknown" => Outcome::Unknown,
            _ => {
                self.saw(request, reply);
                Outcome::Done
            }
        };
        self.end(request, outcome);
    }

    /// A Coordinator says how a request ended.
    pub(super) fn on_ended(&mut self, request: usize, ended: Ended) {
        let outcome = match ended {
            Ended::Done(replies) => {
                let bytes: Vec<u8> = replies.iter().flat_map(|one| one.bytes.clone()).collect();
                self.saw(request, &bytes);
                Outcome::Done
            }
            Ended::Refused(_) | Ended::Changed => Outcome::Refused,
            Ended::Unknown(_) => Outcome::Unknown,
        };
        self.end(request, outcome);
        self.on_flown(request);
    }

    pub(super) fn end(&mut self, request: usize, outcome: Outcome) {
        let step = self.step;
        let request = &mut self.requests[request];
        if request.outcome == Outcome::Open {
            request.outcome = outcome;
            request.ended = step;
        }
    }

    /// Notes what a request's replies say of its keys. Shares come by partition, keys within one
    /// in the order asked.
    fn saw(&mut self, request: usize, bytes: &[u8]) {
        let request = &mut self.requests[request];
        let mut keys = request.keys.clone();
        if !matches!(request.code, APPEND_IF_EVEN | APPEND_REST_IF_EVEN) {
            keys.sort_by_key(|key| partition_of(*key));
        }
        let mut words = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        for key in keys {
            let told = (words.next(), words.next());
            let (Some(word), Some(length)) = told else {
                self.strange = Some(format!("not answered: {request:?}"));
                return;
            };
            if word != key_word(key) {
                self.strange = Some(format!("another key's reply: {request:?}"));
                return;
            }
            let list = words.by_ref().take(length as usize).collect();
            request.seen.insert(key, list);
        }
    }
}
