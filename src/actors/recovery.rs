//! What a node finds on its disk when it starts, and the partitions made of it.

use crate::command::Redis;
use crate::config::{Config, Durability};
use crate::engine::consensus::{Group, Recovered as RecoveredGroup, ReplicaId, Setup};
use crate::engine::partition::Partition;
use crate::engine::replica::Replica;
use crate::engine::tables::KeyHasher;
use crate::error::{Error, Result};
use crate::ids::{Incarnation, NodeId, PartitionId};
use crate::storage::{Directory, GroupLog, Identity, Options, RealDisk, Recovered, SegmentLog};
use std::collections::BTreeMap;

/// Ticks of a group's clock between two heartbeats.
const HEARTBEAT_TICKS: usize = 2;

/// A node's disk, opened.
pub struct Found {
    /// The data directory, in use by this process.
    pub directory: Directory,
    /// The log, ready to be appended to.
    pub log: SegmentLog,
    groups: BTreeMap<PartitionId, GroupLog>,
}

/// Opens a node's data directory and reads its log.
///
/// # Errors
/// When it is another's, in use, damaged or cannot be written: with the file named.
pub fn open(config: &Config, node: NodeId, boot: &str) -> Result<Found> {
    let owner = Identity { cluster: config.cluster().to_owned(), node };
    let path = config.data_of(node);
    let mut directory = Directory::open(RealDisk, &path, owner.clone())?;
    let options =
        Options { segment_bytes: config.replication.segment as u64, ..Options::new(owner) };
    let (log, found) = SegmentLog::open(RealDisk, &directory.log_dir(), options)?;
    tell(&found, &path.display().to_string());
    directory.mark_running(boot)?;
    Ok(Found { directory, log, groups: found.groups })
}

fn tell(found: &Recovered, path: &str) {
    if found.records > 0 {
        let (records, groups) = (found.records, found.groups.len());
        log::info!(target: "log", "recovered {records} records of {groups} partitions from {path}");
    }
    if let Some(torn) = &found.torn {
        let (file, offset) = (torn.file.display(), torn.offset);
        log::warn!(target: "log", "log tail torn at byte {offset} of {file}, cut");
    }
}

impl Found {
    /// A replicated partition as its log has it.
    ///
    /// # Errors
    /// When its log cannot be one.
    pub fn partition(
        &mut self,
        config: &Config,
        id: PartitionId,
        node: NodeId,
        life: Incarnation,
        hasher: KeyHasher,
    ) -> Result<Partition<Redis>> {
        let log = self.groups.remove(&id).unwrap_or_default();
        let voters = config.replicas_of(id);
        let voters = voters.into_iter().map(|node| ReplicaId::new(node, 1)).collect();
        let generation = self.directory.replica() as u32;
        let seed = hasher
            .hash(&[life.0, u64::from(node.0), u64::from(id.0)].map(u64::to_le_bytes).concat());
        let mut setup = Setup::new(ReplicaId::new(node, generation), voters, seed);
        let timing = config.replication;
        setup.tick_ms = (timing.heartbeat.as_millis() as u64 / HEARTBEAT_TICKS as u64).max(1);
        setup.heartbeat_ticks = HEARTBEAT_TICKS;
        setup.election_ticks =
            (timing.election_timeout.as_millis() as u64).div_ceil(setup.tick_ms) as usize;
        setup.retain_bytes = config.replication.retain as u64;
        let recovered = RecoveredGroup {
            state: log.state.map(Into::into),
            snapshot: None,
            entries: log.entries,
        };
        let group = Group::new(&setup, recovered, 0)
            .map_err(|why| Error::Config(format!("partition {id} cannot be recovered: {why}")))?;
        Ok(Partition::replicated(id, node, life, Replica::new(id, hasher), group))
    }
}

/// Whether partitions of a class are kept in a log at all.
pub fn is_logged(durability: Durability) -> bool {
    durability != Durability::None
}
