//! Which partitions there are, and which nodes hold each.
//!
//! Every storage class has partitions of its own, each of them one consensus group. They are
//! numbered class by class: class `c` of a cluster of `n` partitions owns the ids `c * n` to
//! `(c + 1) * n - 1`, and the `i`-th of each class holds the same slots.
//!
//! Within a class, runs of neighbouring partitions have the same leader: of 12 partitions on three
//! nodes the first four are led by node 1. Dealing them in turn would be as even, but what is
//! evenly spaced over the slots would then meet one node only. The followers are the next nodes in
//! order of ids, round the ring.

use super::Config;
use super::table::{Class, Table};
use crate::ids::{NodeId, PartitionId, TableIndex};

/// The storage classes in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Classes {
    /// In order of the first table of each.
    list: Vec<Class>,
    /// For each table, the place of its class in the list.
    of_table: Vec<usize>,
}

impl Classes {
    /// The classes of these tables, which are listed by index.
    pub(super) fn of(tables: &[Table]) -> Classes {
        let mut list: Vec<Class> = Vec::new();
        let of_table = tables.iter().map(|table| {
            list.iter().position(|class| *class == table.class).unwrap_or_else(|| {
                list.push(table.class);
                list.len() - 1
            })
        });
        let of_table = of_table.collect();
        Classes { list, of_table }
    }
}

impl Config {
    /// The storage classes in use: table 0's first, then each where the first table has it.
    pub fn classes(&self) -> &[Class] {
        &self.classes.list
    }

    /// The place in [`Config::classes`] of a table's class.
    pub fn class_of_table(&self, table: TableIndex) -> usize {
        self.classes.of_table[table.index()]
    }

    /// How many partitions the slots are dealt to, in each storage class.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// How many partitions there are in all classes together: each is one consensus group.
    pub fn groups(&self) -> u16 {
        // `CLASSES_MAX` sees to it that this does not overflow.
        self.classes.list.len() as u16 * self.partitions
    }

    /// The class that a partition of all [`Config::groups`] belongs to.
    pub fn class_of(&self, partition: PartitionId) -> Class {
        self.classes.list[usize::from(partition.0 / self.partitions)]
    }

    /// The nodes that hold a partition, as many as its class has replicas. The one that should
    /// lead it comes first.
    pub fn replicas_of(&self, partition: PartitionId) -> Vec<NodeId> {
        let (nodes, partitions) = (self.nodes.len(), usize::from(self.partitions));
        let (class, place) = (partition.index() / partitions, partition.index() % partitions);
        // Where partitions do not go round evenly, the first few runs of a class are longer by one,
        // and the next class begins at the node behind them.
        let (run, longer) = (partitions / nodes, partitions % nodes);
        let start = class * longer;
        let leader = match place.checked_sub(longer * (run + 1)) {
            None => start + place / (run + 1),
            Some(rest) => start + longer + rest / run,
        };
        let replicas = usize::from(self.class_of(partition).replicas);
        (leader..leader + replicas).map(|node| self.nodes[node % nodes].id).collect()
    }

    /// The node that should lead a partition: the first of [`Config::replicas_of`].
    pub fn leader_of(&self, partition: PartitionId) -> NodeId {
        self.replicas_of(partition)[0]
    }
}

#[cfg(test)]
mod tests;
