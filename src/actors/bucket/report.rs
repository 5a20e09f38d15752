//! What a Bucket has counted and holds, and how its partitions are, for operators: the rows of
//! `/status`.

use super::{Bucket, Move, Observe, core};
use crate::actors::local::Tally;
use crate::batch::machine::Machine;
use crate::consensus::Role;
use crate::ids::{NodeId, TABLES, TableIndex};
use crate::partition::Partition;
use actix::{Context, Handler, MessageResult};
use serde::Serialize;
use std::collections::BTreeSet;

/// The answer to [`Observe`].
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Counted by its Sessions.
    pub tally: Tally,
    /// Nodes that it has met.
    pub met: BTreeSet<NodeId>,
    /// Nodes that it cannot reach.
    pub unreachable: BTreeSet<NodeId>,
    /// Linked nodes that do not answer.
    pub suspected: BTreeSet<NodeId>,
    /// Counted by its core.
    pub core: core::BucketCounts,
    /// Bytes of its tables.
    pub bytes: usize,
    /// Keys that clients watch in them.
    pub watched: usize,
    /// Items and volatile items by table.
    pub tables: Vec<(usize, usize)>,
    /// Intents and outcomes that are not settled.
    pub unsettled: usize,
    /// Each of its partitions.
    pub partitions: Vec<PartitionReport>,
    /// The latest changes of leaders that it saw.
    pub moves: Vec<Move>,
}

/// A replica of a partition.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionReport {
    /// Which partition.
    pub id: u16,
    /// What this node is to it: `leader`, `follower` or `candidate`.
    pub role: &'static str,
    /// Whether this node leads and serves it.
    pub serves: bool,
    /// The node that leads it, as far as this one knows.
    pub leader: Option<u16>,
    /// The node that is to lead it while all is well.
    pub preferred: Option<u16>,
    /// The term it is led in.
    pub term: u64,
    /// The nodes that vote in it, and those that only follow.
    pub voters: Vec<u16>,
    /// See `voters`.
    pub learners: Vec<u16>,
    /// The last entry of its log, the last that is known to be committed, and the last applied.
    pub last: u64,
    /// See `last`.
    pub commit: u64,
    /// See `last`.
    pub applied: u64,
    /// Bytes of the log's entries in memory.
    pub log_bytes: u64,
    /// Bytes of log applied since the last snapshot.
    pub since_snapshot: u64,
    /// The followers; told by the leader only.
    pub followers: Vec<FollowerReport>,
    /// Items of all tables.
    pub items: usize,
    /// Bytes of all tables.
    pub bytes: usize,
    /// Intents and outcomes that are not settled.
    pub unsettled: usize,
    /// Locks that no log knows, and requests that wait.
    pub at_rest: bool,
}

/// How far a follower is, as the leader knows.
#[derive(Clone, Debug, Serialize)]
pub struct FollowerReport {
    /// Its node.
    pub node: u16,
    /// Entries that it is not known to hold.
    pub lag: u64,
    /// Whether it was heard within the last election timeout.
    pub active: bool,
    /// Whether it waits for a snapshot.
    pub awaits_snapshot: bool,
}

impl PartitionReport {
    /// The report on one partition.
    pub fn of<M: Machine>(partition: &Partition<M>, preferred: Option<u16>) -> PartitionReport {
        let replica = partition.replica();
        let tables = replica.tables();
        let mut report = PartitionReport {
            id: partition.id().0,
            role: "leader",
            serves: partition.is_led_here(),
            leader: Some(partition.node().0),
            preferred,
            term: partition.term().0,
            voters: vec![partition.node().0],
            learners: Vec::new(),
            last: 0,
            commit: 0,
            applied: 0,
            log_bytes: 0,
            since_snapshot: 0,
            followers: Vec::new(),
            items: TableIndex::all().map(|table| tables.len(table)).sum(),
            bytes: tables.bytes(),
            unsettled: replica.intents().len() + replica.outcomes().len(),
            at_rest: partition.is_at_rest(),
        };
        let Some(journal) = partition.journal() else { return report };
        let group = journal.group();
        report.role = match group.role() {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
        };
        report.leader = group.leader().map(|leader| leader.node().0);
        report.term = group.term();
        let nodes = |list: &[crate::consensus::ReplicaId]| {
            list.iter().map(|id| id.node().0).collect::<Vec<u16>>()
        };
        report.voters = nodes(&group.members().voters);
        report.learners = nodes(&group.members().learners);
        report.last = group.last_index();
        report.commit = group.commit_index();
        report.applied = group.applied_index();
        report.log_bytes = group.log_bytes();
        report.since_snapshot = partition.log_since_snapshot();
        let others = group.progress().into_iter().filter(|one| one.id != group.id());
        let follower = |one: crate::consensus::Progress| FollowerReport {
            node: one.id.node().0,
            lag: report.last.saturating_sub(one.matched),
            active: one.is_active,
            awaits_snapshot: one.awaits_snapshot,
        };
        report.followers = others.map(follower).collect();
        report
    }
}

impl Handler<Observe> for Bucket {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> MessageResult<Observe> {
        let mut report = Report { core: self.core.counts(), ..Report::default() };
        if let Some(local) = &self.local {
            report.tally = local.tally();
        }
        report.met = self.core.neighbours().lives.keys().copied().collect();
        report.unreachable = self.core.neighbours().unreachable.clone();
        report.suspected = self.core.neighbours().suspected.clone();
        report.moves = self.moves.latest().collect();
        report.tables = vec![(0, 0); TABLES];
        for partition in self.core.partitions() {
            let replica = partition.replica();
            report.bytes += replica.tables().bytes();
            report.watched += replica.tables().watches().len();
            report.unsettled += replica.intents().len() + replica.outcomes().len();
            let preferred = self.core.preferred(partition.id()).map(|node| node.0);
            report.partitions.push(PartitionReport::of(partition, preferred));
            for table in TableIndex::all() {
                let (items, volatile) = &mut report.tables[table.index()];
                *items += replica.tables().len(table);
                *volatile += replica.tables().volatile(table);
            }
        }
        MessageResult(report)
    }
}
