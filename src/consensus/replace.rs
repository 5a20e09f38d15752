//! How a replica that lost what it promised is replaced by its node's next one.
//!
//! What acknowledged an entry or a vote and forgot it must not be asked again under the same name:
//! its node comes back under an id of a higher generation. The leader brings that id into the group
//! step by step, and each of them is committed by the voters that lost nothing, whatever becomes of
//! the new replica meanwhile:
//!
//! ```text
//!                      voters               learners   a majority of
//!                      1 2 3.1                         1 2 3.1
//! 1  the new one       1 2 3.1              3.5        1 2 3.1
//!    learns
//! 2  it takes the      1 2 3.5 and 1 2 3.1             both
//!    old one's place
//! 3  alone             1 2 3.5                         1 2 3.5
//! 4  that counts       1 2 3.5                         1 2 3.5
//!    after a restart
//! ```
//!
//! Adding it as a fourth voter first would ask for three of four: if its disk is lost once more, two
//! healthy copies are a majority of nothing. In the joint configuration (Ongaro 2014, 4.3) they are
//! a majority of the voters before and after, so it is always left, and the next id then replaces
//! one that never came.
//!
//! A learner counts for nothing. One whose disk is lost as well leaves when the next one learns.

use super::rules::{GroupRule, kept};
use super::{Group, MemberChange, ReplicaId};

/// A learner that is so many entries behind at most has caught up.
const CAUGHT_UP_ENTRIES: u64 = 256;

impl Group {
    /// The next change towards a group in which `new` is the one replica of its node, if there is
    /// one to be made now. For a leader, which passes it to [`Group::change`].
    pub fn replacement(&self, new: ReplicaId) -> Option<MemberChange> {
        let members = self.members();
        let of_node = members.of_node(new.node());
        // A leader that was away may not have heard of the latest id yet.
        if members.is_joint() || of_node.last().is_none_or(|latest| *latest > new) {
            return None;
        }
        if !members.contains(new) {
            return Some(MemberChange::AddLearner(new));
        }
        let older = |list: &[ReplicaId]| {
            list.iter().copied().find(|id| id.node() == new.node() && *id < new)
        };
        if let Some(abandoned) = older(&members.learners) {
            return Some(MemberChange::Remove(abandoned));
        }
        let old = older(&members.voters);
        if members.votes(new) {
            return old.map(MemberChange::Remove);
        }
        if !self.has_caught_up(new) {
            return None;
        }
        match old {
            Some(old) if kept(GroupRule::ReplacedInOneChange) => {
                Some(MemberChange::Replace { old, new })
            }
            _ => Some(MemberChange::Promote(new)),
        }
    }

    fn has_caught_up(&self, learner: ReplicaId) -> bool {
        let known = self.progress().into_iter().find(|progress| progress.id == learner);
        known.is_some_and(|known| {
            let behind = self.last_index().saturating_sub(known.matched);
            let follows = known.is_active && !known.awaits_snapshot && known.matched > 0;
            follows && behind <= CAUGHT_UP_ENTRIES
        })
    }
}
