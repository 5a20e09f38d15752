//! From a command to the partitions that serve it, and from their replies back to one.
//!
//! Most commands have one key and go to its partition as they are ([`route_one`]). Those whose
//! keys happen to lie in one partition do too. The others are cut up as their row's
//! [`Split`] says: an operation a key, so that each partition runs its own in the command's order
//! (`MSET a 1 a 2` leaves 2, `DEL a a` counts 1), and a [`PieceLayout`] that remembers where each reply
//! belongs.

use super::Redis;
use super::argv::Argv;
use super::rename;
use super::reply::Reply;
use super::scan::{self, Walk};
use super::spec::{Data, Merge, NodeFn, Over, Run, SessionFn, Spec, Split};
use crate::batch::machine::Machine;
use crate::batch::{Batch, OpHead, Replies};
use crate::cluster::slots::{Atlas, Partitions};
use crate::ids::{PartitionId, Slot, TableIndex};
use crate::store::number::parse_int;
use crate::store::tables::Access;
use crate::store::tables::KeyHasher;
use crate::txn::protocol::{Claim, Granule, Mode, Share, Work};
use std::collections::BTreeMap;

/// Where a command is asked: what turns its keys into places.
#[derive(Clone, Copy)]
pub struct Placing<'a> {
    /// Which partition holds a table's key.
    pub atlas: &'a Atlas,
    /// The placing hash inside it.
    pub hasher: KeyHasher,
    /// The table the connection works on.
    pub table: TableIndex,
    /// Whether the connection speaks RESP3.
    pub resp3: bool,
    /// The longest key.
    pub key_bytes_max: usize,
}

/// How a command is served.
#[derive(Debug)]
pub enum Plan {
    /// By the session itself.
    Session(SessionFn),
    /// By the session, which asks the other arbiters of its node.
    Node(NodeFn),
    /// By one partition: the command as it is, its arguments as the operation's.
    One(OpHead),
    /// By several partitions at one moment: a transaction.
    Spread {
        /// What the Coordinator is asked.
        work: Work,
        /// How its replies become one.
        layout: PieceLayout,
    },
    /// By several partitions, each at its own moment.
    Each {
        /// A batch a partition, in the order of partitions.
        batches: Vec<(PartitionId, Batch)>,
        /// How their replies become one.
        layout: PieceLayout,
    },
    /// By one partition after the other, in steps of bounded work.
    Walk(Walk),
    /// Not at all.
    Refused(String),
}

/// The operation of a command with one key; nothing if it has none, several, or one that is too
/// long: then [`plan`] knows. The usual case, so it costs two hashes and no allocation.
#[inline]
pub fn route_one(spec: &Spec, argv: Argv<'_>, place: &Placing<'_>) -> Option<OpHead> {
    let Run::Data(data) = &spec.run else { return None };
    if data.split != Split::Single {
        return None;
    }
    let key = argv.get(spec.keys.first as usize);
    (key.len() <= place.key_bytes_max).then(|| place.head(data, key))
}

impl Placing<'_> {
    #[inline]
    pub(super) fn head(&self, data: &Data, key: &[u8]) -> OpHead {
        OpHead {
            code: data.code,
            partition: self.partition_of(key),
            table: self.table,
            resp3: self.resp3,
            hash: self.hasher.hash(key),
        }
    }

    /// The partition that holds a key of the table.
    #[inline]
    pub(super) fn partition_of(&self, key: &[u8]) -> PartitionId {
        self.atlas.partition_of_key(self.table, key)
    }

    /// The partitions that the table lies in.
    pub(super) fn partitions(&self) -> Partitions {
        self.atlas.partitions_of(self.table)
    }

    fn head_without_keys(&self, data: &Data, partition: PartitionId) -> OpHead {
        OpHead { code: data.code, partition, table: self.table, resp3: self.resp3, hash: 0 }
    }
}

/// How a command is served whose number of words its arity admits.
pub fn plan(spec: &Spec, argv: Argv<'_>, place: &Placing<'_>) -> Plan {
    if !spec.pairs_up(argv.len()) {
        return Plan::Refused(super::wrong_arity_text(spec.name));
    }
    let Some(data) = &spec.data() else {
        return match (&spec.run, spec.session()) {
            (Run::Node(run), _) => Plan::Node(*run),
            (_, Some(run)) => Plan::Session(run),
            (_, None) => Plan::Refused("ERR syntax error".into()),
        };
    };
    let mut keys = spec.keys.positions(argv.len()).map(|at| argv.get(at));
    if keys.any(|key| key.len() > place.key_bytes_max) {
        return key_too_long(place);
    }
    match data.split {
        Split::Everywhere { over, merge, locked } => {
            let partitions = match over {
                Over::Table => place.partitions(),
                Over::AllTables => place.atlas.all(),
                Over::Two => match rename::swapped(argv) {
                    Some((one, other)) if !place.atlas.lie_together(one, other) => {
                        return Plan::Refused(format!(
                            "ERR tables {one} and {other} are of different storage classes and \
                             cannot be swapped: every key would have to move to another partition"
                        ));
                    }
                    Some((one, _)) => place.atlas.partitions_of(one),
                    // The partition that is asked tells.
                    None => place.partitions(),
                },
            };
            return everywhere(spec, data, merge, locked, partitions, argv, place);
        }
        Split::Scan => {
            let partition = scan::route(argv, place.partitions());
            return Plan::One(place.head_without_keys(data, partition));
        }
        Split::Walk => {
            let partitions = place.partitions();
            let walk = Walk::new(data.code, argv, place.table, partitions, place.hasher);
            return Plan::Walk(walk);
        }
        Split::Slot => {
            return match parse_int(argv.get(2)) {
                Some(slot @ 0..16384) => {
                    let partition = place.atlas.partition_of(place.table, Slot(slot as u16));
                    Plan::One(place.head_without_keys(data, partition))
                }
                Some(_) => Plan::Refused("ERR Invalid slot".into()),
                None => Plan::Refused(super::NOT_AN_INTEGER.into()),
            };
        }
        Split::Partition => {
            let all = place.atlas.all();
            let number = parse_int(argv.get(2)).and_then(|number| u16::try_from(number).ok());
            return match number.map(PartitionId).filter(|partition| all.contains(*partition)) {
                Some(partition) => Plan::One(place.head_without_keys(data, partition)),
                None => Plan::Refused(format!(
                    "ERR there is no such partition: they are 0 to {}",
                    all.last()
                )),
            };
        }
        Split::Single | Split::PerKey(_) | Split::Gather => {}
    }
    if data.reach.is_some() {
        return gather(spec, data, argv, place);
    }
    let mut partitions = spec.keys.positions(argv.len()).map(|at| place.partition_of(argv.get(at)));
    let first = partitions.next();
    if partitions.all(|partition| Some(partition) == first) {
        return Plan::One(place.head(data, argv.get(spec.keys.first as usize)));
    }
    match data.split {
        Split::PerKey(merge) => per_key(spec, data, merge, argv, place),
        _ => gather(spec, data, argv, place),
    }
}

fn key_too_long(place: &Placing<'_>) -> Plan {
    Plan::Refused(format!("ERR key is longer than {} bytes", place.key_bytes_max))
}

fn mode(spec: &Spec) -> Mode {
    match spec.access() {
        Access::Read => Mode::Read,
        Access::Write => Mode::Write,
    }
}

fn everywhere(
    spec: &Spec,
    data: &Data,
    merge: Merge,
    locked: bool,
    partitions: Partitions,
    argv: Argv<'_>,
    place: &Placing<'_>,
) -> Plan {
    let batches: Vec<(PartitionId, Batch)> = partitions
        .iter()
        .map(|partition| {
            let mut batch = Batch::new();
            batch.push(place.head_without_keys(data, partition), argv.from(1));
            (partition, batch)
        })
        .collect();
    if let [(partition, _)] = batches[..] {
        return Plan::One(place.head_without_keys(data, partition));
    }
    let ops = (0..batches.len() as u32).map(|share| Piece { share, op: 0 }).collect();
    let layout = PieceLayout { merge, pieces: ops };
    if !locked {
        return Plan::Each { batches, layout };
    }
    let shares =
        batches.into_iter().map(|(partition, batch)| (partition, Share::from(batch))).collect();
    Plan::Spread { work: Work { mode: mode(spec), shares, script: Batch::new() }, layout }
}

fn per_key(spec: &Spec, data: &Data, merge: Merge, argv: Argv<'_>, place: &Placing<'_>) -> Plan {
    let step = spec.keys.step as usize;
    let mut shares: BTreeMap<PartitionId, Share> = BTreeMap::new();
    let mut placed: Vec<(PartitionId, u32)> = Vec::new();
    for at in spec.keys.positions(argv.len()) {
        let head = place.head(data, argv.get(at));
        let batch = &mut shares.entry(head.partition).or_default().batch;
        placed.push((head.partition, batch.len() as u32));
        batch.push(head, argv.from(at).take(step));
    }
    let order: BTreeMap<PartitionId, u32> = shares.keys().copied().zip(0..).collect();
    let piece = |(partition, op)| Piece { share: order[&partition], op };
    let layout = PieceLayout { merge, pieces: placed.into_iter().map(piece).collect() };
    let shares = shares.into_iter().collect();
    Plan::Spread { work: Work { mode: mode(spec), shares, script: Batch::new() }, layout }
}

fn gather(spec: &Spec, data: &Data, argv: Argv<'_>, place: &Placing<'_>) -> Plan {
    let head = place.head(data, argv.get(spec.keys.first as usize));
    let mut script = Batch::new();
    script.push(head, argv.from(1));
    let mut shares: BTreeMap<PartitionId, Share> = BTreeMap::new();
    let mut too_long = false;
    Redis::keys(&script.op(0), &mut |table, key| {
        too_long |= key.len() > place.key_bytes_max;
        let granule = Granule::Key(table, key.to_vec());
        let partition = place.atlas.partition_of_key(table, key);
        let claims = &mut shares.entry(partition).or_default().claims;
        claims.push(Claim { granule, access: spec.access() });
    });
    if too_long {
        return key_too_long(place);
    }
    if shares.len() == 1 {
        return Plan::One(head);
    }
    for share in shares.values_mut() {
        share.claims.sort_unstable();
        share.claims.dedup();
    }
    let layout = PieceLayout { merge: Merge::Status, pieces: vec![Piece { share: 0, op: 0 }] };
    Plan::Spread {
        work: Work { mode: Mode::Gather, shares: shares.into_iter().collect(), script },
        layout,
    }
}

/// Where the replies to a command's pieces are, in the order of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceLayout {
    pub(super) merge: Merge,
    pub(super) pieces: Vec<Piece>,
}

/// The reply to one piece: which share, which operation of its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) share: u32,
    pub(super) op: u32,
}

impl Piece {
    pub(super) fn reply<'r>(&self, replies: &'r [Replies]) -> Option<&'r [u8]> {
        let share = replies.get(self.share as usize)?;
        let op = self.op as usize;
        (op < share.len()).then(|| share.get(op))
    }
}

/// What a client is told when a partition's reply cannot be used.
pub(super) const DAMAGED: &str = "ERR a partition's reply is missing or damaged";

impl PieceLayout {
    /// Makes one reply of those of the shares, in the order of [`Work::shares`] (or of
    /// [`Plan::Each`]'s batches). An error among them is the reply, whatever the others say.
    pub fn merge(&self, replies: &[Replies], reply: &mut Reply<'_>) {
        let Some(pieces) = self.collect(replies) else {
            return reply.error(DAMAGED);
        };
        match pieces {
            Merged::Error(error) => reply.raw(error),
            Merged::First(first) => reply.raw(first),
            Merged::Sum(sum) => reply.int(sum),
            Merged::Elements(elements) => {
                reply.array(elements.len());
                elements.into_iter().for_each(|element| reply.raw(element));
            }
        }
    }

    fn collect<'r>(&self, replies: &'r [Replies]) -> Option<Merged<'r>> {
        let mut encoded = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            encoded.push(piece.reply(replies)?);
        }
        if let Some(error) = encoded.iter().find(|reply| reply.first() == Some(&b'-')) {
            return Some(Merged::Error(error));
        }
        Some(match self.merge {
            Merge::Status => Merged::First(encoded.first()?),
            Merge::Sum => {
                let mut numbers = encoded.iter().map(|reply| integer(reply));
                Merged::Sum(numbers.try_fold(0i64, |sum, number| sum.checked_add(number?))?)
            }
            Merge::Array => {
                let elements = encoded.iter().map(|reply| reply.strip_prefix(b"*1\r\n"));
                Merged::Elements(elements.collect::<Option<_>>()?)
            }
        })
    }
}

enum Merged<'r> {
    Error(&'r [u8]),
    First(&'r [u8]),
    Sum(i64),
    Elements(Vec<&'r [u8]>),
}

/// The number of an encoded integer reply.
pub(super) fn integer(reply: &[u8]) -> Option<i64> {
    parse_int(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?)
}
