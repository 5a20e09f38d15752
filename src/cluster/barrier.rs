//! The startup barrier: no node serves before all are ready.
//!
//! A node that is not formed yet says `Hello` to every other. Once it has met all of them it says
//! so (`Ready`), and once all have said so the cluster is formed: everybody can reach everybody.
//! Formation happens once. A node that meets a formed one is admitted at once, whoever else is
//! missing: a running cluster is never held up by a barrier.
//!
//! A node notes on its disk that it is ready before it says so. So a node whose disk has that note
//! takes part in the formation whenever it hears of it, also after a power cut in the middle: it has
//! promised nothing before. A node without that note that meets a formed one has lost its disk.

use crate::ids::{Incarnation, LastSeen, NodeId, PartitionId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The version of the messages between nodes. Nodes of different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 6;

/// How a node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The cluster's name.
    pub cluster: String,
    /// Who it is.
    pub node: NodeId,
    /// Its life.
    pub life: Incarnation,
    /// Digest of what all nodes must agree on: ids, hosts, ports, partitions, tables.
    pub digest: u64,
    /// Whether it is formed.
    pub formed: bool,
    /// The partitions whose replica there cannot verify what it acknowledged: it is suspect, or
    /// it still learns. Where the node is not formed, none of them can.
    ///
    /// Nodes of an earlier version do not say it, and are to be refused for that version.
    #[serde(default)]
    pub unsound: Vec<PartitionId>,
    /// What it has seen of the node that it introduces itself to. A node that has lost its data
    /// directory learns from it what it may not be again.
    #[serde(default)]
    pub seen: LastSeen,
    /// Names the dial that it introduces, so that the node can be asked about it at the address
    /// that the cluster's file names ([`crate::cluster::link`]); 0 in an answer to a dial.
    #[serde(default)]
    pub nonce: u64,
}

impl Hello {
    /// What two introductions of the same life say together: either may be the older one. In a life
    /// a node is formed once, and what cannot verify becomes less from then on.
    pub fn latest(&self, other: &Hello) -> Hello {
        let mut latest = if self.formed { self.clone() } else { other.clone() };
        if self.formed == other.formed {
            latest.unsound.retain(|id| other.unsound.contains(id) && self.unsound.contains(id));
        }
        latest
    }

    /// Judges another node's introduction, as the node that this one is of.
    ///
    /// # Errors
    /// Why the two cannot be nodes of one cluster, in words for this node's log. They are for no
    /// stranger's ears.
    pub fn judge(&self, other: &Hello) -> Result<(), String> {
        if other.version != self.version {
            return Err(format!(
                "node {} speaks protocol version {}, node {} speaks version {}",
                other.node, other.version, self.node, self.version
            ));
        }
        if other.cluster != self.cluster {
            return Err(format!(
                "node {} belongs to cluster '{}', node {} to cluster '{}'",
                other.node, other.cluster, self.node, self.cluster
            ));
        }
        if other.node == self.node {
            return Err(format!("two processes say they are node {}", self.node));
        }
        if other.digest != self.digest {
            return Err(format!(
                "nodes {} and {} differ in what the cluster is (digests {:016x} and {:016x}): in \
                 their cluster.yaml files the nodes, ports, partitions or tables, or in their data \
                 directories the layout.placement",
                other.node, self.node, other.digest, self.digest
            ));
        }
        Ok(())
    }
}

/// Whether a node may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not yet: these are missing.
    Waiting(Vec<NodeId>),
    /// It may.
    Formed,
}

/// What the barrier wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BarrierEffect {
    /// Note that this node is ready, then tell every other node that it has met all.
    SayReady,
    /// Serve: all were ready, this node as it is now among them.
    Form,
    /// Serve, in a cluster that was formed without this node as it is now.
    Join,
}

/// The barrier of one node.
#[derive(Debug)]
pub struct Barrier {
    own: Hello,
    others: BTreeSet<NodeId>,
    met: BTreeMap<NodeId, Incarnation>,
    ready: BTreeMap<NodeId, Incarnation>,
    /// Since all were met last.
    said: bool,
    /// Ever, in an earlier life too.
    was_ready: bool,
}

impl Barrier {
    /// The barrier of the node that introduces itself by `own`, before it met any of `others`.
    /// `was_ready`: whether its disk says that it was ready in an earlier life.
    pub fn new(own: Hello, others: impl IntoIterator<Item = NodeId>, was_ready: bool) -> Barrier {
        let others = others.into_iter().filter(|node| *node != own.node).collect();
        let (met, ready) = (BTreeMap::new(), BTreeMap::new());
        Barrier { own, others, met, ready, said: false, was_ready }
    }

    /// How this node introduces itself now.
    pub fn hello(&self) -> &Hello {
        &self.own
    }

    /// Whether all others are linked.
    pub fn has_met_all(&self) -> bool {
        self.met.len() == self.others.len()
    }

    /// The node goes on in a later life, before it was formed.
    pub fn relive(&mut self, life: Incarnation) {
        self.own.life = life;
    }

    /// Starts: a cluster of one node is formed at once.
    pub fn start(&mut self, effects: &mut Vec<BarrierEffect>) {
        self.advance(effects);
    }

    /// Whether the node may serve.
    pub fn standing(&self) -> Standing {
        if self.own.formed {
            return Standing::Formed;
        }
        let without = |known: &BTreeMap<NodeId, Incarnation>| -> Vec<NodeId> {
            self.others.iter().filter(|node| !known.contains_key(node)).copied().collect()
        };
        let unmet = without(&self.met);
        // No node is ready before all are met, so it is the missing ones that are waited for.
        Standing::Waiting(if unmet.is_empty() { without(&self.ready) } else { unmet })
    }

    /// Whether all are met, and are told so.
    pub fn says_ready(&self) -> bool {
        self.said
    }

    /// A node introduced itself, [`Hello::judge`] accepted it, and both can reach each other.
    pub fn met(&mut self, hello: &Hello, effects: &mut Vec<BarrierEffect>) {
        self.met.insert(hello.node, hello.life);
        // What an earlier life of it said is worth nothing; what this one said may come first.
        self.ready.retain(|node, life| *node != hello.node || *life == hello.life);
        if hello.formed && !self.own.formed {
            self.own.formed = true;
            effects.push(if self.was_ready { BarrierEffect::Form } else { BarrierEffect::Join });
        }
        self.advance(effects);
    }

    /// A node said, in this life of it, that it has met all.
    pub fn ready(&mut self, node: NodeId, life: Incarnation, effects: &mut Vec<BarrierEffect>) {
        self.ready.insert(node, life);
        self.advance(effects);
    }

    /// A node cannot be reached any more.
    pub fn lost(&mut self, node: NodeId) {
        self.met.remove(&node);
        self.ready.remove(&node);
        if !self.own.formed {
            self.said = false;
        }
    }

    fn advance(&mut self, effects: &mut Vec<BarrierEffect>) {
        if self.own.formed || !self.has_met_all() {
            return;
        }
        if !self.said {
            self.said = true;
            self.was_ready = true;
            effects.push(BarrierEffect::SayReady);
        }
        if self.ready.len() == self.others.len() {
            self.own.formed = true;
            effects.push(BarrierEffect::Form);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Args;
    use std::fmt::Write;

    fn hello(node: u16, life: u64, formed: bool) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            cluster: "quorate".into(),
            node: NodeId(node),
            life: Incarnation(life),
            digest: 0xabc,
            formed,
            unsound: Vec::new(),
            seen: LastSeen::default(),
            nonce: 0,
        }
    }

    /// Scripts of what one node's barrier hears, and what it does.
    struct Script(Option<Barrier>);

    impl goldenscript::Runner for Script {
        type Command = goldenscript::Command;

        fn run(
            &mut self,
            command: &goldenscript::Command,
            _: &goldenscript::Context,
        ) -> Result<String, Box<dyn std::error::Error>> {
            let mut args = Args::new(command);
            let mut effects = Vec::new();
            let mut told = String::new();
            match command.name.as_str() {
                "node" => {
                    let own: u16 = args.next()?;
                    let others: u16 = args.key("of", 3)?;
                    let was_ready: bool = args.key("was_ready", false)?;
                    let all = (1..=others).map(NodeId);
                    let mut barrier = Barrier::new(hello(own, 1, false), all, was_ready);
                    barrier.start(&mut effects);
                    self.0 = Some(barrier);
                }
                "meet" => {
                    let node: u16 = args.next()?;
                    let life: u64 = args.key("life", 1)?;
                    let formed: bool = args.key("formed", false)?;
                    self.barrier()?.met(&hello(node, life, formed), &mut effects);
                }
                "ready" => {
                    let node: u16 = args.next()?;
                    let life = Incarnation(args.key("life", 1)?);
                    self.barrier()?.ready(NodeId(node), life, &mut effects);
                }
                "lose" => {
                    let node: u16 = args.next()?;
                    self.barrier()?.lost(NodeId(node));
                }
                "judge" => {
                    let mut other = hello(args.key("node", 2)?, 1, false);
                    other.version = args.key("version", other.version)?;
                    other.cluster = args.key("cluster", other.cluster)?;
                    other.digest = args.key("digest", other.digest)?;
                    match self.barrier()?.hello().judge(&other) {
                        Ok(()) => writeln!(told, "accepted")?,
                        Err(why) => writeln!(told, "refused: {why}")?,
                    }
                }
                name => return Err(format!("no command {name}").into()),
            }
            args.end()?;
            for effect in effects {
                writeln!(told, "{effect:?}")?;
            }
            writeln!(told, "{:?}", self.barrier()?.standing())?;
            Ok(told)
        }
    }

    impl Script {
        fn barrier(&mut self) -> Result<&mut Barrier, String> {
            self.0.as_mut().ok_or_else(|| "no node yet".to_owned())
        }
    }

    #[test]
    fn scripts() {
        for name in ["formation", "restart", "strangers"] {
            let path = format!("tests/scripts/barrier/{name}");
            goldenscript::run(&mut Script(None), path).unwrap();
        }
    }
}
