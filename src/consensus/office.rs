//! Who is to lead: when this replica stands for election, hands over, yields to a replica with a
//! faster disk, or stops leading.

use super::rules::{GroupRule, kept};
use super::{Group, ReplicaId};
use crate::ids::NodeId;
use raft::StateRole;

impl Group {
    /// Stands for election at once: for the designated first leader of a new group, and for the
    /// only voter of one. Does nothing where a promise forbids it, and lets votes under way come in.
    pub fn campaign(&mut self) {
        if matches!(self.raw.raft.state, StateRole::Leader | StateRole::Candidate)
            || !self.raw.raft.promotable()
            || !self.may_stand()
        {
            return;
        }
        if let Err(e) = self.raw.campaign() {
            ::log::debug!("replica {} cannot stand for election: {e}", self.id);
        }
        self.settle();
    }

    /// The process on `node` is known to be dead. If its replica leads the present term as far as
    /// this one knows, it is not waited for: this replica votes for any candidate, and may stand
    /// itself. Tells whether that is so.
    ///
    /// **Why that is safe.** A promise protects reads that a leader answers under its lease. Votes
    /// given while it binds do harm only if the process that it was made to still answers. So it
    /// takes certainty that the process does not: its own side closed its streams here, after
    /// everything on them was read, and after that no process listened where it listens for as long
    /// as it lives. Silence, a reset or a timeout are no such evidence, and neither is a refusal
    /// alone: a firewall refuses in the name of a process that lives. Each voter needs evidence of
    /// its own, for the others keep their promises. Promises to leaders before this one need no
    /// keeping: that it was elected shows their leases to be over. And a later process of the node
    /// has to be elected before it has a lease.
    pub fn leader_is_dead(&mut self, node: NodeId) -> bool {
        let leader = self.leader().filter(|leader| leader.node() == node && *leader != self.id);
        if leader.is_none() || self.raw.raft.state != StateRole::Follower {
            return false;
        }
        self.promise.release();
        // The raft crate refuses votes as well while it has heard a leader lately.
        self.raw.raft.leader_id = 0;
        true
    }

    /// Hands leadership over to a voter as soon as that has the whole log; says whether it was
    /// begun. Until then, or until an election timeout has passed, nothing is proposed and there is
    /// no lease; once the successor was told, there is none in this term any more.
    pub fn transfer(&mut self, to: ReplicaId) -> bool {
        let leads = self.raw.raft.state == StateRole::Leader;
        // Not to one that leaves with a joint configuration: it is gone.
        if !leads || to == self.id || !self.latest_members().voters.contains(&to) {
            return false;
        }
        if kept(GroupRule::HandingOverEndsLease) {
            self.lease.pause();
        }
        self.raw.transfer_leader(to.0);
        self.settle();
        true
    }

    /// Leads no more because a majority does not answer: reads could not be confirmed nor writes
    /// committed, and replicas that hear this leader would go on promising it their votes. The
    /// replica that lags least, as far as is known, may stand for election at once. Tells whether
    /// this replica led.
    ///
    /// The lease ends here, so that a vote against the promise breaks nothing.
    pub fn resign(&mut self) -> bool {
        if self.raw.raft.state != StateRole::Leader {
            return false;
        }
        if kept(GroupRule::HandingOverEndsLease) {
            self.lease.hand_over();
        }
        let others = self.progress().into_iter().filter(|one| one.id != self.id);
        let heir = others.filter(|one| self.latest_members().votes(one.id));
        let heir = heir.max_by_key(|one| (!one.awaits_snapshot, one.matched));
        let raft = &mut self.raw.raft;
        if let Some(heir) = heir {
            raft.send_timeout_now(heir.id.0);
        }
        raft.become_follower(raft.term, 0);
        self.settle();
        true
    }

    /// Whether leadership is being handed over.
    pub fn is_transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Whether the disk has not answered for an election timeout. Counted in ticks, so that a pause
    /// of the process is no hanging disk.
    pub fn disk_hangs(&self) -> bool {
        let oldest = self.held.iter().find(|held| held.on_disk);
        oldest
            .is_some_and(|held| self.ticks.count().wrapping_sub(held.since) >= self.election_ticks)
    }

    /// Gives leadership up where nothing but this replica's disk holds the group up: the others have
    /// an entry that is not safe here after an election timeout. The most advanced of them is asked
    /// to lead; if it does not within a further election timeout, this replica stops leading, and
    /// the others elect. Where their disks are no faster, another leader would be no better. Tells
    /// whether there is anything to bring out.
    pub(super) fn yield_to_a_faster_disk(&mut self) -> bool {
        let log = &self.raw.raft.raft_log;
        let leads = self.raw.raft.state == StateRole::Leader;
        let hangs = self.disk_hangs() && kept(GroupRule::HungDisksYield);
        if !leads || log.committed <= log.persisted || !hangs {
            self.yields = false;
            return false;
        }
        if self.is_transferring() {
            return false;
        }
        let others = self.progress().into_iter().filter(|one| one.id != self.id && one.is_active);
        let voters = others.filter(|one| self.latest_members().votes(one.id));
        let best = voters.max_by_key(|one| one.matched).map(|one| one.id);
        if !std::mem::replace(&mut self.yields, true)
            && let Some(to) = best
            && self.transfer(to)
        {
            ::log::warn!("replica {}: its disk hangs, replica {to} is asked to lead", self.id);
            return true;
        }
        ::log::warn!("replica {}: its disk hangs, it stops leading", self.id);
        self.lease.give_up();
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, 0);
        self.settle();
        true
    }

    /// Whether it may stand for election without being asked to: no promise is broken by its own
    /// vote, its log is whole, and its disk answers.
    pub(super) fn may_stand(&self) -> bool {
        !self.promise.binds(self.now.mono) && self.log_is_whole() && !self.disk_hangs()
    }

    /// Whether the log can be stood on. While a snapshot is being installed, the raft crate dies of
    /// looking through the entries that it replaces. And a sole voter wins at once, before the disk
    /// has what its log ends with, which the crate takes for impossible.
    pub(super) fn log_is_whole(&self) -> bool {
        let installs = self.held.iter().any(|held| held.snapshot.is_some());
        !installs && (!self.latest_members().is_sole() || self.held.is_empty())
    }
}
