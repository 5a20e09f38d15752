//! A replica's state as a whole: written to a snapshot, restored from one, compared.

use super::ends::Finished;
use super::{Intent, Outcome, Replica, Write, Writes};
use crate::batch::machine::Machine;
use crate::batch::runs::Runs;
use crate::ids::{NodeId, TABLES, TableIndex, TxnId};
use crate::partition::snapshot::{self, SnapshotHead};
use crate::store::pages;
use crate::store::tables::Tables;

impl<M: Machine> Replica<M> {
    /// Begins a snapshot of the replica as it is now, and appends the beginning of its stream to
    /// `out`. One that is under way is given up.
    pub fn begin_snapshot(&mut self, out: &mut Vec<u8>) {
        let mut items = [0; TABLES];
        for table in TableIndex::all() {
            items[table.index()] = self.tables.len(table) as u64;
        }
        snapshot::put_head(out, &SnapshotHead { partition: self.id, stamp: self.stamp, items });
        self.intents.iter().for_each(|intent| snapshot::put_intent(out, &intent));
        self.outcomes.iter().for_each(|outcome| snapshot::put_outcome(out, &outcome));
        self.finished.of.iter().for_each(|ends| snapshot::put_ends(out, &ends));
        self.tables.begin_snapshot();
        self.snapshot = Some(items.iter().sum());
    }

    /// Appends some more of the stream, about `budget` bytes; false once it is complete. The
    /// replica may change in between as it likes.
    pub fn snapshot_step(&mut self, out: &mut Vec<u8>, budget: usize) -> bool {
        let Some(items) = self.snapshot else { return false };
        if self.tables.snapshot_step(out, budget) {
            return true;
        }
        pages::put_end(out, items);
        self.snapshot = None;
        false
    }

    /// Gives up the snapshot, if one is under way.
    pub fn abandon_snapshot(&mut self) {
        self.tables.abandon_snapshot();
        self.snapshot = None;
    }

    /// Whether a snapshot is under way.
    pub fn is_in_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// If a backup's copy is under way: whether it was pulled from since this was last asked.
    pub fn backup_was_pulled(&mut self) -> Option<bool> {
        self.tables.backup_was_pulled()
    }

    /// Gives up the backup's copy, if there is one.
    pub fn abandon_backup(&mut self) {
        self.tables.abandon_backup();
    }

    pub(in crate::partition) fn restore_head(&mut self, head: &SnapshotHead) {
        self.stamp = head.stamp;
        for table in TableIndex::all() {
            self.tables.reserve(table, head.items[table.index()] as usize);
        }
    }

    pub(in crate::partition) fn restore_intent(&mut self, content: &[u8]) -> Result<(), String> {
        let (txn, intent): (TxnId, Box<Intent>) = pages::read_value(content)?;
        let known = match &intent.writes {
            Writes::Share(bytes) => {
                let ops = Runs::read(bytes, 0).and_then(|runs| runs.lay_out(&mut self.layout).ok());
                ops.is_some_and(|ops| M::knows_all(ops.heads(0, ops.len())))
            }
            Writes::Outcome(writes) => writes.iter().all(|write| match write {
                Write::State(_) => true,
                Write::Run(batch) => M::knows_all(batch.heads()),
            }),
        };
        if !known || self.intents.contains_key(&txn) {
            return Err(format!("an intent of {txn} that is not known, or twice"));
        }
        self.add_intent(txn, intent);
        Ok(())
    }

    pub(in crate::partition) fn restore_outcome(&mut self, content: &[u8]) -> Result<(), String> {
        let (txn, outcome): (TxnId, Outcome) = pages::read_value(content)?;
        match self.outcomes.insert(txn, outcome) {
            None => Ok(()),
            Some(_) => Err(format!("two outcomes of {txn}")),
        }
    }

    pub(in crate::partition) fn restore_ends(&mut self, content: &[u8]) -> Result<(), String> {
        let (node, ends): (NodeId, Finished) = pages::read_value(content)?;
        match self.finished.of.insert(node, ends) {
            None => Ok(()),
            Some(_) => Err(format!("the ends of node {node} twice")),
        }
    }

    pub(in crate::partition) fn tables_to_restore(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// A number that tells replicas apart which do not hold the same: equal for all that have
    /// applied the same log, however they came by it. Takes time for every item.
    ///
    /// What may differ is left out: when items were used last.
    pub fn digest(&self) -> u64 {
        let hasher = self.tables.hasher();
        let mut digest: u64 = 0;
        self.describe(&mut |line| {
            // Added up, so that the order in which items are met does not matter.
            digest = digest.wrapping_add(hasher.hash(line));
        });
        digest
    }

    /// Shows all that a replica is to have alike with others, a line for each thing.
    fn describe(&self, show: &mut dyn FnMut(&[u8])) {
        show(format!("partition {} stamp {}", self.id, self.stamp.0).as_bytes());
        for (txn, intent) in &self.intents {
            let Intent { age, primary, participants, primary_life, claims, since, writes, .. } =
                &**intent;
            let line = format!(
                "intent {txn} {age} {primary} {participants:?} {primary_life:?} {claims:?} \
                 {since:?} {writes:?}"
            );
            show(line.as_bytes());
        }
        for (txn, Outcome { unconfirmed, since }) in &self.outcomes {
            show(format!("outcome {txn} {unconfirmed:?} {since:?}").as_bytes());
        }
        for (node, Finished { incarnation, below, ended, earlier }) in &self.finished.of {
            show(format!("ends {node} {incarnation:?} {below} {ended:?} {earlier:?}").as_bytes());
        }
        let mut line = Vec::new();
        for table in TableIndex::all() {
            self.tables.for_each(table, &mut |item| {
                line.clear();
                line.extend_from_slice(&[table.into(), item.encoding().number()]);
                line.extend_from_slice(&item.expires().map_or(u64::MAX, |at| at.0).to_le_bytes());
                line.extend_from_slice(&(item.key().len() as u32).to_le_bytes());
                line.extend_from_slice(item.key());
                line.extend_from_slice(item.content());
                show(&line);
            });
        }
    }

    /// All that [`Replica::digest`] is about, to be read by people and compared by tests.
    #[cfg(test)]
    pub fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.describe(&mut |line| lines.push(line.escape_ascii().to_string()));
        lines.sort_unstable();
        lines
    }
}
