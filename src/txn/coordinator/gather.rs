//! What a gathered transaction comes to: its script, run on scratch tables with the images that its
//! partitions have sent, and which of their keys it has changed.

use super::{Grant, Phase, Transactions, TxnEffect};
use crate::batch::machine::{AnswerBytes, Effort, Machine, Scope, effort_of};
use crate::batch::refusal::Refusal;
use crate::batch::{Op, Replies};
use crate::ids::{Millis, Now, PartitionId, TableIndex, TxnId};
use crate::rules::{Rule, kept};
use crate::store::key_state::KeyState;
use crate::store::tables::{Access, KeyHasher, Tables};
use crate::txn::claims::share_claims;
use crate::txn::protocol::{Ended, Granule, Prepared, Work};
use smallvec::SmallVec;
use std::collections::BTreeMap;

impl<M: Machine> Transactions<M> {
    /// Runs the script of a gathered transaction on a scratch table and prepares what it changed.
    pub(super) fn evaluate(
        &mut self,
        id: TxnId,
        grants: BTreeMap<PartitionId, Grant>,
        now: Now,
        effects: &mut Vec<TxnEffect>,
    ) {
        let mut scratch = Tables::new(self.hasher);
        let mut versions = BTreeMap::new();
        let mut moments = Moments::default();
        for Grant { stamp, images, .. } in grants.values() {
            let stamp = if kept(Rule::LeadersDecideExpiry) { *stamp } else { now.wall };
            moments.latest = moments.latest.max(stamp);
            scratch.begin(stamp, Access::Write);
            for image in images {
                scratch.install(image.clone());
                let hash = scratch.hasher().hash(&image.key);
                let version = scratch.watches_mut().watch(image.table, hash, false, stamp);
                versions.insert((image.table, &image.key), version);
                moments.of.insert((image.table, &image.key), stamp);
            }
        }
        let Some(txn) = self.current(id) else { return };
        let mut replies = Replies::default();
        let (mut effort, mut answers) = (Effort::default(), AnswerBytes::default());
        let too_much = txn.work.script.iter().any(|op| {
            let bytes = effort_of::<M>(&op, |table, key| {
                scratch.value_bytes(table, scratch.hasher().hash(key), key)
            });
            if effort.add(bytes).is_err() {
                return true;
            }
            moments.run::<M>(&op, &mut scratch, &mut replies.bytes);
            answers.end(&mut replies).is_err()
        });
        if too_much {
            self.on_obstacle(id, Ended::Refused(Refusal::TooMuch), effects);
            return;
        }
        let mut bare = bare::<M>(scratch.hasher(), &txn.work, &grants, moments.latest);
        let mut outcome: BTreeMap<PartitionId, Vec<KeyState>> = BTreeMap::new();
        let mut changed = false;
        for (partition, share) in &txn.work.shares {
            let images = outcome.entry(*partition).or_default();
            changed |= !share.batch.is_empty();
            for claim in share_claims::<M>(share) {
                let Granule::Key(table, key) = &claim.granule else { continue };
                // A key that gets the value that it had is written all the same.
                let version = scratch.watches().version(*table, scratch.hasher().hash(key));
                let mut written = version.as_ref() != versions.get(&(*table, key));
                let moment = moments.at(*table, key);
                scratch.begin(moment, Access::Write);
                if let Some(bare) = &mut bare {
                    bare.begin(moment, Access::Write);
                    written |= bare.image(*table, key) != scratch.image(*table, key);
                }
                if claim.access == Access::Write && written {
                    images.push(scratch.image(*table, key));
                }
            }
            changed |= !images.is_empty();
        }
        if !changed {
            self.confirm(id, grants, Some(replies), effects);
            return;
        }
        let waiting = grants.keys().copied().collect();
        let replies = SmallVec::from_iter([(txn.primary, replies)]);
        txn.phase = Phase::Preparing { waiting, replies };
        let shares = txn.work.shares.iter().map(|(partition, share)| {
            let images = outcome.remove(partition).unwrap_or_default();
            let term = grants.get(partition).map(|grant| grant.term);
            match share.batch.is_empty() {
                true => (*partition, term, Prepared::Images(images)),
                false => (*partition, term, Prepared::Whole(share.batch.clone(), images)),
            }
        });
        let work: Vec<_> = shares.collect();
        self.prepare(id.sequence, work.into_iter(), effects);
    }
}

/// What time it is for the keys of a script: for each of them the stamp of its partition's leader,
/// as of which nothing that the leader has shown is expired.
#[derive(Default)]
struct Moments<'a> {
    of: BTreeMap<(TableIndex, &'a Vec<u8>), Millis>,
    latest: Millis,
}

impl Moments<'_> {
    fn at(&self, table: TableIndex, key: &Vec<u8>) -> Millis {
        self.of.get(&(table, key)).copied().unwrap_or(self.latest)
    }

    /// Runs an operation at the moment of its keys. Those of several partitions, whose leaders'
    /// clocks differ, are brought to the latest of their moments with what is left of their times to
    /// live, and back: what is moved from one to the other lives on for as long as it would have.
    fn run<M: Machine>(&self, op: &Op<'_>, scratch: &mut Tables, reply: &mut Vec<u8>) {
        let mut keys = Vec::new();
        M::keys(op, &mut |table, key| keys.push((table, key.to_vec())));
        keys.sort_unstable();
        keys.dedup();
        let of_keys = || keys.iter().map(|(table, key)| self.at(*table, key));
        let now = of_keys().max().unwrap_or(self.latest);
        let differ = of_keys().any(|moment| moment != now);
        let rebase = |scratch: &mut Tables, there: bool| {
            for (table, key) in keys.iter().filter(|_| differ) {
                let own = self.at(*table, key);
                let (from, to) = if there { (own, now) } else { (now, own) };
                scratch.rebase(*table, key, from, to);
            }
        };
        rebase(scratch, true);
        scratch.begin(now, M::access(op.head.code));
        M::run(op, scratch, now, reply);
        rebase(scratch, false);
    }
}

/// The keys that a script names, after its operations on whole partitions, if it has any. What the
/// script itself makes of them comes on top.
fn bare<M: Machine>(
    hasher: KeyHasher,
    work: &Work,
    grants: &BTreeMap<PartitionId, Grant>,
    now: Millis,
) -> Option<Tables> {
    let whole = |op: &Op<'_>| M::scope(op.head.code) == Scope::Partition;
    if !work.script.iter().any(|op| whole(&op)) {
        return None;
    }
    let mut bare = Tables::new(hasher);
    bare.begin(now, Access::Write);
    for image in grants.values().flat_map(|grant| &grant.images) {
        bare.install(image.clone());
    }
    for op in work.script.iter().filter(whole) {
        M::run(&op, &mut bare, now, &mut Vec::new());
    }
    Some(bare)
}
