//! Tables, and what is promised for the keys in them.

use crate::ids::TableIndex;
use std::fmt;

/// How many nodes may hold each key: odd, since an even number outlives no more failures than the
/// odd one below it.
pub const REPLICAS: [u8; 4] = [1, 3, 5, 7];

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What `SELECT` chooses it by.
    pub index: TableIndex,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// How its keys are kept.
    pub class: Class,
}

/// A storage class. Tables of one class share partitions.
///
/// Ordered by strength. Replicas come before durability: a transaction's decision lies with the
/// strongest class it touches and is synced if any of its classes is, so what remains to choose by
/// is how many nodes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Which guarantee its commands have.
    pub mode: Mode,
    /// How many nodes hold each key: one of [`REPLICAS`].
    pub replicas: u8,
    /// What an acknowledged write has survived.
    pub durability: Durability,
}

/// A table's guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Strict serialisability.
    Strong,
}

/// What an acknowledged write has survived; the strongest is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing: it is in the memory of one node.
    None,
    /// Processes, but not the power of a majority: it is in the memory of a majority, and on their
    /// disks at most a second later.
    Interval,
    /// Power: it is on the disks of a majority.
    Sync,
}

impl Mode {
    /// Its name in `cluster.yaml`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Strong => "strong",
        }
    }
}

impl Durability {
    /// All of them, the weakest first.
    pub const ALL: [Durability; 3] = [Durability::None, Durability::Interval, Durability::Sync];

    /// Its name in `cluster.yaml`.
    pub fn name(self) -> &'static str {
        match self {
            Durability::None => "none",
            Durability::Interval => "interval",
            Durability::Sync => "sync",
        }
    }

    /// The one of this name, if there is one.
    pub fn named(name: &str) -> Option<Durability> {
        Durability::ALL.into_iter().find(|durability| durability.name() == name)
    }
}

impl Class {
    /// What a table of a cluster of so many nodes is by default: as safe as can be.
    pub(super) fn by_default(nodes: usize) -> Class {
        let replicas = if nodes < 3 { 1 } else { 3 };
        Class { mode: Mode::Strong, replicas, durability: Durability::Sync }
    }

    /// What is wrong with so many replicas in a cluster of so many nodes.
    pub(super) fn check_replicas(replicas: i128, nodes: usize) -> Result<u8, String> {
        let possible = REPLICAS.into_iter().filter(|replicas| usize::from(*replicas) <= nodes);
        if let Some(replicas) = possible.clone().find(|one| i128::from(*one) == replicas) {
            return Ok(replicas);
        }
        let mut names: Vec<String> = possible.map(|replicas| replicas.to_string()).collect();
        let last = names.pop().unwrap_or_default();
        let right = match names.is_empty() {
            true => last,
            false => format!("{} or {last}", names.join(", ")),
        };
        let plural = if nodes == 1 { "" } else { "s" };
        Err(format!(
            "{replicas} is out of range; in a cluster of {nodes} node{plural} it may be {right}"
        ))
    }

    /// What is wrong with the durability of so many replicas.
    pub(super) fn check(self) -> Result<Class, String> {
        // A follower that forgets what it acknowledged can elect a leader that never had it.
        if self.replicas > 1 && self.durability == Durability::None {
            return Err("durability none keeps no log, and acknowledged writes of replicated \
                        tables need one; use sync or interval, or 1 replica"
                .to_owned());
        }
        Ok(self)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Class { mode, replicas, durability } = self;
        write!(f, "{},{replicas},{}", mode.name(), durability.name())
    }
}
