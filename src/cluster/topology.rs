//! Who holds what, and who leads what: the one owner of both on a node.
//!
//! **Placement** says which nodes hold a copy of each partition, and which of them should lead it. It is
//! data: made once, when the cluster is formed, and kept in the data directory. Nothing works it out
//! again, so a cluster may one day be placed in another way than a new one would be.
//!
//! A **topology** adds who leads, as far as is known here. News of leaders come late, twice and out of
//! order; each names a term, and only a later term changes anything. Every change raises the
//! **epoch**, so that what is derived from a topology (routes, for one) knows when to look again.
//!
//! ```text
//!  groups, other nodes ── news(partition, node, term) ──▶ Topology ──▶ routes, by epoch
//!                                                            │
//!                                        views: Coordinator, partitions of an arbiter
//! ```
//!
//! All actors of a node share one topology. The cores that decide by it have a view of their own,
//! a copy that hears the same news by message: what such a core knows changes between two of its
//! messages and never within one.

use crate::ids::{NodeId, PartitionId, Term};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which nodes hold a copy of each partition; the one that should lead it comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    replicas: Vec<Vec<NodeId>>,
}

impl Placement {
    /// Places partitions, by number.
    ///
    /// # Panics
    /// When a partition is placed nowhere, or twice on a node.
    pub fn new(replicas: Vec<Vec<NodeId>>) -> Placement {
        assert!(replicas.iter().all(|nodes| is_sound(nodes)), "a partition has nodes, each once");
        Placement { replicas }
    }

    /// How many partitions there are.
    pub fn len(&self) -> usize {
        self.replicas.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.replicas.is_empty()
    }

    /// The nodes that hold a partition; none if there is no such partition.
    #[inline]
    pub fn replicas(&self, partition: PartitionId) -> &[NodeId] {
        self.replicas.get(partition.index()).map_or(&[], Vec::as_slice)
    }

    /// The node that should lead a partition.
    pub fn preferred(&self, partition: PartitionId) -> Option<NodeId> {
        self.replicas(partition).first().copied()
    }

    /// Whether a partition has copies, so that another leader will come if one is lost.
    pub fn is_replicated(&self, partition: PartitionId) -> bool {
        self.replicas(partition).len() > 1
    }

    /// All partitions, by number.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.replicas.len() as u16).map(PartitionId)
    }

    /// Those that a node holds.
    pub fn held_by(&self, node: NodeId) -> impl Iterator<Item = PartitionId> {
        self.partitions().filter(move |id| self.replicas(*id).contains(&node))
    }

    /// Which of a node's Buckets holds each partition; none where the node does not. What the node
    /// should lead is divided evenly, and so is the rest.
    pub fn over_buckets(&self, node: NodeId, buckets: usize) -> Vec<Option<usize>> {
        let mut turns = [0, 0];
        let mut next = |nodes: &Vec<NodeId>| {
            nodes.contains(&node).then(|| {
                let turn = &mut turns[usize::from(nodes.first() == Some(&node))];
                *turn += 1;
                (*turn - 1) % buckets
            })
        };
        self.replicas.iter().map(&mut next).collect()
    }

    /// Whether this may be how a cluster's partitions are placed: as many of them as `made` has, on
    /// nodes that there are, each with as many copies as there.
    ///
    /// # Errors
    /// In a few words, what does not fit.
    pub fn check(&self, made: &Placement, is_node: impl Fn(NodeId) -> bool) -> Result<(), String> {
        if self.len() != made.len() {
            return Err(format!("it has {} partitions, not {}", self.len(), made.len()));
        }
        for id in self.partitions() {
            let (nodes, copies) = (self.replicas(id), made.replicas(id).len());
            if let Some(node) = nodes.iter().find(|node| !is_node(**node)) {
                return Err(format!("it names node {node}, which cluster.yaml does not"));
            }
            if nodes.len() != copies {
                let found = nodes.len();
                return Err(format!("partition {id} has {found} copies in it, not {copies}"));
            }
        }
        Ok(())
    }

    /// What [`Placement`]'s text says. The text is one that was displayed.
    ///
    /// # Errors
    /// In a few words, when it is not.
    pub fn parse(text: &str) -> Result<Placement, String> {
        let node =
            |word: &str| word.parse().map(NodeId).map_err(|_| format!("{word:?} is no node"));
        let mut replicas = Vec::new();
        for (partition, nodes) in text.split_whitespace().enumerate() {
            let nodes: Vec<NodeId> = nodes.split(',').map(node).collect::<Result<_, _>>()?;
            if !is_sound(&nodes) {
                return Err(format!("partition {partition} is twice on a node"));
            }
            replicas.push(nodes);
        }
        Ok(Placement { replicas })
    }
}

fn is_sound(nodes: &[NodeId]) -> bool {
    !nodes.is_empty() && (1..nodes.len()).all(|at| !nodes[..at].contains(&nodes[at]))
}

/// The nodes of each partition, as they are kept in a data directory: `1,2,3 2,3,1 3,1,2`.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, nodes) in self.replicas.iter().enumerate() {
            let nodes: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{}", nodes.join(","))?;
        }
        Ok(())
    }
}

/// A leader and its term as one number that is greater for later terms.
#[derive(Clone, Copy)]
struct Leadership(u64);

impl Leadership {
    fn new(node: NodeId, term: Term) -> Leadership {
        Leadership(term.0 << 16 | u64::from(node.0))
    }

    fn node(self) -> NodeId {
        NodeId(self.0 as u16)
    }

    fn term(self) -> Term {
        Term(self.0 >> 16)
    }
}

/// Who holds and who leads each partition, as far as is known here.
#[derive(Debug)]
pub struct Topology {
    placement: Arc<Placement>,
    /// A [`Leadership`] each.
    leaders: Vec<AtomicU64>,
    /// Counts the changes of leaders.
    epoch: AtomicU64,
}

impl Topology {
    /// Nothing is known but the placement: each partition's first leader is the preferred one.
    pub fn new(placement: Arc<Placement>) -> Topology {
        let first = |id| placement.preferred(id).map_or(0, |node| Leadership::new(node, Term(0)).0);
        let leaders = placement.partitions().map(|id| AtomicU64::new(first(id))).collect();
        Topology { placement, leaders, epoch: AtomicU64::new(0) }
    }

    /// Partitions that these nodes lead, without copies.
    #[cfg(test)]
    pub fn of_leaders(nodes: impl IntoIterator<Item = NodeId>) -> Arc<Topology> {
        let replicas = nodes.into_iter().map(|node| vec![node]).collect();
        Arc::new(Topology::new(Arc::new(Placement::new(replicas))))
    }

    /// A view of one's own, which knows what this one knows now.
    pub fn view(&self) -> Topology {
        let copy = |one: &AtomicU64| AtomicU64::new(one.load(Ordering::Acquire));
        Topology {
            placement: self.placement.clone(),
            leaders: self.leaders.iter().map(copy).collect(),
            epoch: copy(&self.epoch),
        }
    }

    /// Which nodes hold what.
    #[inline]
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// How often a leader has changed.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    #[inline]
    fn leadership(&self, partition: PartitionId) -> Option<Leadership> {
        let leader = self.leaders.get(partition.index())?;
        Some(Leadership(leader.load(Ordering::Relaxed)))
    }

    /// Who leads a partition, the preferred leader until another is heard of; none if there is no such
    /// partition.
    #[inline]
    pub fn leader(&self, partition: PartitionId) -> Option<NodeId> {
        self.leadership(partition).map(Leadership::node)
    }

    /// The term in which it leads.
    pub fn term(&self, partition: PartitionId) -> Term {
        self.leadership(partition).map_or(Term(0), Leadership::term)
    }

    /// Learns who leads a partition in a term. False if that is no news: the term is not later than
    /// the one that is known.
    pub fn learn(&self, partition: PartitionId, node: NodeId, term: Term) -> bool {
        let Some(leader) = self.leaders.get(partition.index()) else { return false };
        if Leadership(leader.load(Ordering::Relaxed)).term() >= term {
            return false;
        }
        let news = Leadership::new(node, term).0;
        let before = Leadership(leader.fetch_max(news, Ordering::Relaxed));
        let is_news = before.term() < term;
        if is_news {
            // After the news itself: what sees the new epoch finds the new leader.
            self.epoch.fetch_add(1, Ordering::Release);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(1);

    fn placement() -> Placement {
        Placement::parse("1,2,3 2,3,1 3").unwrap()
    }

    #[test]
    fn a_placement_is_what_its_text_says() {
        let placement = placement();
        assert_eq!(placement.to_string(), "1,2,3 2,3,1 3");
        assert_eq!(placement.replicas(P), [NodeId(2), NodeId(3), NodeId(1)]);
        assert_eq!(placement.preferred(P), Some(NodeId(2)));
        assert!(placement.is_replicated(P) && !placement.is_replicated(PartitionId(2)));
        assert_eq!(placement.over_buckets(NodeId(3), 2), [Some(0), Some(1), Some(0)]);
        assert_eq!(placement.over_buckets(NodeId(1), 2), [Some(0), Some(0), None]);
        let held: Vec<u16> = placement.held_by(NodeId(2)).map(|id| id.0).collect();
        assert_eq!(held, [0, 1]);
        assert_eq!((placement.len(), placement.replicas(PartitionId(3))), (3, &[][..]));
        for (text, why) in
            [("1,x", "\"x\" is no node"), ("1 2,2", "partition 1 is twice on a node")]
        {
            assert_eq!(Placement::parse(text), Err(why.to_owned()));
        }
    }

    #[test]
    fn what_a_placement_must_have_is_checked() {
        let check = |text: &str| {
            Placement::parse(text).unwrap().check(&placement(), |node| (1..=4).contains(&node.0))
        };
        assert_eq!(check("4,2,1 3,2,1 2"), Ok(()), "moved");
        for (text, why) in [
            ("1,2,3 2,3,1", "it has 2 partitions, not 3"),
            ("1,2,3 2,3,1 5", "it names node 5, which cluster.yaml does not"),
            ("1,2,3 2,3 3", "partition 1 has 2 copies in it, not 3"),
            ("1,2,3 2,3,1 3,1", "partition 2 has 2 copies in it, not 1"),
        ] {
            assert_eq!(check(text), Err(why.to_owned()));
        }
    }

    #[test]
    fn only_a_later_term_is_news() {
        let topology = Topology::new(Arc::new(placement()));
        assert_eq!((topology.leader(P), topology.term(P)), (Some(NodeId(2)), Term(0)));
        assert!(topology.learn(P, NodeId(1), Term(4)));
        assert_eq!((topology.leader(P), topology.term(P)), (Some(NodeId(1)), Term(4)));
        assert!(!topology.learn(P, NodeId(3), Term(3)), "it comes late");
        assert!(!topology.learn(P, NodeId(1), Term(4)), "it comes twice");
        assert_eq!((topology.leader(P), topology.epoch()), (Some(NodeId(1)), 1));
        assert!(!topology.learn(PartitionId(9), NodeId(1), Term(5)), "no such partition");
        assert_eq!(topology.leader(PartitionId(9)), None);
    }

    #[test]
    fn a_view_hears_news_for_itself() {
        let topology = Topology::new(Arc::new(placement()));
        topology.learn(P, NodeId(3), Term(1));
        let view = topology.view();
        topology.learn(P, NodeId(1), Term(2));
        assert_eq!((view.leader(P), view.epoch()), (Some(NodeId(3)), 1));
        assert!(view.learn(P, NodeId(1), Term(2)));
        assert_eq!((view.leader(P), view.epoch()), (topology.leader(P), topology.epoch()));
    }
}
