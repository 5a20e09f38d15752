//! What the voters of a group can tell a new leader of the group's time.
//!
//! A group's time (see [`crate::partition::stamps`]) is counted on by every replica that has heard of a
//! leader since its process started. One that has not may be elected all the same; then it asks with
//! its appends, and the voters answer with their acknowledgements, in a field that raft uses in
//! neither. One answer that tells the time is enough. It is certain that no voter knows once all
//! have said so. One that says nothing for an election timeout is not waited for.

use super::ReplicaId;
use crate::ids::Millis;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Whether a new leader may give out stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeTold {
    /// Some voter has counted on: it is at least this late.
    Time(Millis),
    /// No voter knows, or those that may do not answer.
    Nothing,
    /// Answers are still to come.
    Waiting,
}

/// How a question looks, and how an answer begins, after which comes the time if it is known.
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;

/// A time that no group comes to: the year 200,000.
const TIME_MAX: u64 = 1 << 53;

/// What a replica knows and is told.
#[derive(Debug, Default)]
pub struct Hearsay {
    /// What time it was at a moment of the monotonic clock, if that is known here.
    own: Option<(Millis, u64)>,
    /// The leader that has asked and not been answered.
    asker: Option<ReplicaId>,
    /// The answers since this replica leads.
    told: BTreeMap<ReplicaId, Option<Millis>>,
    /// The tick at which it came to lead.
    since: usize,
}

impl Hearsay {
    /// What this replica knows by itself.
    pub fn note(&mut self, own: Option<(Millis, u64)>) {
        self.own = own;
    }

    /// Term or role have changed.
    pub fn reset(&mut self, ticks: usize) {
        self.told.clear();
        (self.asker, self.since) = (None, ticks);
    }

    /// What a leader's append says beside its entries.
    pub fn question(&self) -> Bytes {
        match self.own {
            Some(_) => Bytes::new(),
            None => Bytes::from_static(&[QUESTION]),
        }
    }

    /// What the acknowledgement says that goes to `to` at `mono`.
    pub fn answer(&mut self, to: ReplicaId, mono: u64) -> Bytes {
        if self.asker.take_if(|asker| *asker == to).is_none() {
            return Bytes::new();
        }
        let mut answer = vec![ANSWER];
        if let Some((stamp, then)) = self.own {
            let time = stamp.0.saturating_add(mono.saturating_sub(then));
            answer.extend(time.to_le_bytes());
        }
        answer.into()
    }

    /// An append came with this beside it.
    pub fn asked(&mut self, from: ReplicaId, context: &[u8]) {
        if context == [QUESTION] {
            self.asker = Some(from);
        }
    }

    /// An acknowledgement came with this beside it. What is no answer says nothing.
    pub fn told(&mut self, from: ReplicaId, context: &[u8]) {
        let Some((&ANSWER, time)) = context.split_first() else { return };
        let time = <[u8; 8]>::try_from(time).ok().map(u64::from_le_bytes);
        self.told.insert(from, time.filter(|time| *time < TIME_MAX).map(Millis));
    }

    /// What has come of the question, among these voters beside this one. `patience` ticks are
    /// waited for those that say nothing.
    pub fn comes_to(
        &self,
        mut others: impl Iterator<Item = ReplicaId>,
        ticks: usize,
        patience: usize,
    ) -> TimeTold {
        let latest = self.told.values().flatten().max();
        match latest {
            Some(time) => TimeTold::Time(*time),
            None if ticks.wrapping_sub(self.since) >= patience => TimeTold::Nothing,
            None if others.all(|voter| self.told.contains_key(&voter)) => TimeTold::Nothing,
            None => TimeTold::Waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn replica(node: u16) -> ReplicaId {
        ReplicaId::new(NodeId(node), 1)
    }

    fn comes_to(leader: &Hearsay, ticks: usize) -> TimeTold {
        leader.comes_to([2, 3].map(replica).into_iter(), ticks, 10)
    }

    /// The follower's answer to the leader's question.
    fn answered(leader: &mut Hearsay, node: u16, own: Option<(Millis, u64)>, mono: u64) {
        let mut follower = Hearsay::default();
        follower.note(own);
        follower.asked(replica(1), &leader.question());
        assert!(follower.answer(replica(7), mono).is_empty(), "it was not asked by that one");
        let answer = follower.answer(replica(1), mono);
        assert!(follower.answer(replica(1), mono).is_empty(), "it was asked once");
        leader.told(replica(node), &answer);
    }

    #[test]
    fn one_who_knows_is_enough_and_counts_on() {
        let mut leader = Hearsay::default();
        leader.reset(5);
        answered(&mut leader, 2, None, 0);
        assert_eq!(comes_to(&leader, 6), TimeTold::Waiting);
        answered(&mut leader, 3, Some((Millis(1_000), 70)), 100);
        assert_eq!(comes_to(&leader, 6), TimeTold::Time(Millis(1_030)));
        // Its next office does not count it.
        leader.reset(7);
        assert_eq!(comes_to(&leader, 8), TimeTold::Waiting);
    }

    #[test]
    fn nobody_knows_once_all_have_said_so_or_time_has_passed() {
        let mut leader = Hearsay::default();
        leader.reset(5);
        answered(&mut leader, 2, None, 0);
        assert_eq!(comes_to(&leader, 14), TimeTold::Waiting);
        assert_eq!(comes_to(&leader, 15), TimeTold::Nothing);
        answered(&mut leader, 3, None, 0);
        assert_eq!(comes_to(&leader, 6), TimeTold::Nothing);
        assert_eq!(leader.comes_to(std::iter::empty(), 5, 10), TimeTold::Nothing);
    }

    #[test]
    fn who_knows_does_not_ask_and_nonsense_is_no_answer() {
        let mut leader = Hearsay::default();
        for nonsense in [&[][..], &[QUESTION], &[9, 9], &[0; 9]] {
            leader.told(replica(2), nonsense);
            leader.told(replica(3), nonsense);
            assert_eq!(comes_to(&leader, 0), TimeTold::Waiting);
        }
        leader.told(replica(2), &[&[ANSWER][..], &[0xff; 8]].concat());
        leader.told(replica(3), &[ANSWER, 1, 2]);
        assert_eq!(comes_to(&leader, 0), TimeTold::Nothing);
        leader.note(Some((Millis(1), 1)));
        assert!(leader.question().is_empty());
    }
}
