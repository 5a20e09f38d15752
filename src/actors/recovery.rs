//! What a node finds on its disk when it starts, and the partitions made of it.

use crate::actors::coordinator::Kept;
use crate::cluster::topology::Placement;
use crate::command::Redis;
use crate::config::{Config, Durability};
use crate::consensus::{
    Group, Recovered as RecoveredGroup, ReplicaId, Setup, SnapshotMeta, Survivor, survive,
};
use crate::error::{Corrupt, Error, Result};
use crate::ids::{Incarnation, Millis, NodeId, PartitionId, TableIndex};
use crate::partition::Partition;
use crate::partition::replica::Replica;
use crate::partition::snapshot::Restorer;
use crate::storage::directory::PLACEMENT;
use crate::storage::reserve;
use crate::storage::{
    Directory, GroupLog, Identity, Options, RealDisk, Records, SegmentLog, Snapshot,
    SnapshotReader, Snapshots, Torn,
};
use crate::store::tables::KeyHasher;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::time::Instant;

/// Ticks of a group's clock between two heartbeats.
const HEARTBEAT_TICKS: usize = 2;

/// A segment is preallocated by so many bytes at a time.
const STEP_BYTES: u64 = 4 << 20;

/// A node's disk, opened.
pub struct Found {
    /// The data directory, in use by this process.
    pub directory: Directory,
    /// Which nodes hold what.
    pub placement: Arc<Placement>,
    /// The log, ready to be appended to.
    pub log: SegmentLog,
    /// The snapshots.
    pub snapshots: Snapshots,
    /// The node's life.
    pub life: Incarnation,
    groups: BTreeMap<PartitionId, GroupLog>,
    latest: BTreeMap<PartitionId, Snapshot>,
    begun: Instant,
    /// Log records that were read, and the tail that was cut.
    records: u64,
    torn: Option<Torn>,
    /// Partitions and their items made of it so far.
    partitions: usize,
    items: usize,
}

/// Opens a node's data directory and reads its log, with the room set aside for it if need be.
///
/// # Errors
/// When it is another's, in use, damaged or cannot be written: with the file named.
pub fn open(config: &Config, node: NodeId, boot: &str, clock: Millis) -> Result<Found> {
    let dir = config.data_of(node);
    let found = match open_as_it_is(config, node, boot, clock) {
        Err(error @ Error::Full(_)) if reserve::give_up(&RealDisk, &dir) => {
            log::warn!(target: "node", "{error}; the room set aside is used to start");
            open_as_it_is(config, node, boot, clock)
        }
        outcome => outcome,
    }?;
    if let Err(error) = reserve::keep(&RealDisk, &dir) {
        log::warn!(target: "node", "no room is set aside for another start: {error}");
    }
    Ok(found)
}

fn open_as_it_is(config: &Config, node: NodeId, boot: &str, clock: Millis) -> Result<Found> {
    let begun = Instant::now();
    let owner = owner(config, node);
    let mut directory =
        Directory::open(RealDisk, &config.data_of(node), owner.clone(), &layout(config))?;
    let placement = Arc::new(stored_placement(config, node, &directory)?);
    let snapshots = Snapshots::open(RealDisk, &directory.snapshots_dir())?;
    let latest = choose(&snapshots, KeyHasher::new(config.hash_seed()))?;
    let timing = config.replication;
    let options = Options {
        segment_bytes: timing.segment,
        step_bytes: STEP_BYTES.min(timing.segment),
        retain_bytes: timing.retain,
        direct: relaxed(config, &placement, node).next().is_none(),
        newest: directory.segment(),
        synced: Some(directory.synced_file()),
        ..Options::new(owner)
    };
    let (mut log, found) = SegmentLog::open(RealDisk, &directory.log_dir(), options)?;
    match_up(&latest, &found.groups, &mut log, &directory.snapshots_dir())?;
    directory.mark_segment(log.newest())?;
    let life = directory.mark_running(boot, clock, unsynced(config, &placement, node))?;
    Ok(Found {
        directory,
        placement,
        log,
        snapshots,
        life,
        groups: found.groups,
        latest,
        begun,
        records: found.records,
        torn: found.torn,
        partitions: 0,
        items: 0,
    })
}

/// A copy that is to go on without a majority of its group.
pub struct Alone {
    /// The partition.
    pub id: PartitionId,
    /// What it has to log for that.
    pub survivor: Survivor,
}

/// The partitions on a stopped node that have lost their majority with the `lost` nodes. If
/// `accepted`, the copies here are the only ones that count when the node starts.
///
/// # Errors
/// When the data directory is in use or cannot be read, or when the cluster was never formed.
pub fn go_on_alone(
    config: &Config,
    node: NodeId,
    lost: &[NodeId],
    boot: &str,
    clock: Millis,
    accepted: bool,
) -> Result<Vec<Alone>> {
    let mut found = open(config, node, boot, clock)?;
    if !found.directory.is_formed() {
        let problem = format!("node {node} was never part of a formed cluster");
        return Err(Error::Directory(problem));
    }
    let logged = (0..config.groups()).map(PartitionId).filter(|id| {
        let replicas = found.placement.replicas(*id);
        is_logged(config.class_of(*id).durability) && replicas.contains(&node) && replicas.len() > 1
    });
    let mut all = Vec::new();
    let mut records = Records::default();
    for id in logged {
        let log = found.groups.remove(&id).unwrap_or_default();
        let snapshot = match found.latest.get(&id) {
            Some(snapshot) => Some(meta_of(&found.snapshots.read(snapshot)?)?),
            None => None,
        };
        let generation = found.directory.replica_of(id);
        let placement = &found.placement;
        let setup =
            setup(config, placement, id, node, generation, Incarnation(0), KeyHasher::new(0));
        let recovered =
            RecoveredGroup { state: log.state.map(Into::into), snapshot, entries: log.entries };
        let survivor = survive(&setup, recovered, lost)
            .map_err(|why| Error::Config(format!("partition {id} cannot go on here: {why}")))?;
        let Some(survivor) = survivor else { continue };
        records.state(id, &survivor.state);
        for entry in &survivor.entries {
            records.entry(id, entry.index, &[&entry.head, &entry.data]);
        }
        all.push(Alone { id, survivor });
    }
    if accepted && !all.is_empty() {
        found.log.write(&records)?;
        found.log.sync()?;
        // No node is left that could verify them.
        let suspects = found.directory.suspects();
        let trusted = all.iter().map(|one| one.id).filter(|id| suspects.contains(id));
        let trusted: Vec<PartitionId> = trusted.collect();
        found.directory.settle(&[], &trusted, 0)?;
    }
    Ok(all)
}

/// Opens the data directory of a node that logs nothing: it remembers the node's lives.
///
/// # Errors
/// As [`open`].
pub fn open_record(
    config: &Config,
    node: NodeId,
    boot: &str,
    clock: Millis,
) -> Result<(Directory, Incarnation)> {
    let mut directory =
        Directory::open(RealDisk, &config.data_of(node), owner(config, node), &layout(config))?;
    let life = directory.mark_running(boot, clock, [])?;
    Ok((directory, life))
}

/// How a new cluster is placed.
pub fn new_placement(config: &Config) -> Placement {
    let partitions = (0..config.groups()).map(PartitionId);
    Placement::new(partitions.map(|id| config.replicas_of(id)).collect())
}

/// What a data directory is to know of what lies in it. How it is placed is written into a new one;
/// one that knows its placement keeps it.
fn layout(config: &Config) -> Vec<(&'static str, String)> {
    let mut layout = config.layout();
    if !layout.is_empty() {
        layout.push((PLACEMENT, new_placement(config).to_string()));
    }
    layout
}

/// The placement that a data directory knows.
fn stored_placement(config: &Config, node: NodeId, directory: &Directory) -> Result<Placement> {
    let Some(stored) = directory.placement() else { return Ok(new_placement(config)) };
    let wrong = |why: String| {
        let dir = config.data_of(node);
        Error::Directory(format!(
            "the placement (layout.placement) in {} is wrong: {why}. Put the directory back as it \
             was, or move it away and start the node again: what others have copies of, it is given \
             by them",
            dir.display()
        ))
    };
    let placement = Placement::parse(stored).map_err(wrong)?;
    let is_node = |node| config.node(node).is_some();
    placement.check(&new_placement(config), is_node).map_err(wrong)?;
    Ok(placement)
}

fn owner(config: &Config, node: NodeId) -> Identity {
    Identity { cluster: config.cluster().to_owned(), node }
}

/// The snapshot that each partition is made of again: the newest. Where one stands before it, it may
/// have come from another node and not have been restored yet: one that cannot be is removed.
fn choose(snapshots: &Snapshots, hasher: KeyHasher) -> Result<BTreeMap<PartitionId, Snapshot>> {
    let mut all: BTreeMap<PartitionId, Vec<Snapshot>> = BTreeMap::new();
    for snapshot in snapshots.all()? {
        all.entry(snapshot.partition).or_default().push(snapshot);
    }
    let mut latest = BTreeMap::new();
    for (id, mut found) in all {
        while let [.., newest] = found[..] {
            let restored = match found.len() {
                1 => Ok(()),
                _ => snapshots.read(&newest).and_then(|read| restore(read, id, hasher)).map(drop),
            };
            match restored {
                Ok(()) => {
                    latest.insert(id, newest);
                    break;
                }
                Err(error @ Error::Corrupt(_)) => {
                    log::warn!(target: "archive", "the snapshot before it is taken: {error}");
                    snapshots.remove(&newest)?;
                    found.pop();
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(latest)
}

/// Sees to it that log and snapshots belong together.
///
/// A log that begins behind a snapshot needs that one or a later one. The other way round, a node
/// may have died between a snapshot and the word of it in the log, which is said now: what is
/// appended next has to follow something.
fn match_up(
    latest: &BTreeMap<PartitionId, Snapshot>,
    groups: &BTreeMap<PartitionId, GroupLog>,
    log: &mut SegmentLog,
    dir: &Path,
) -> Result<()> {
    let index = |id: &PartitionId| latest.get(id).map_or(0, |snapshot| snapshot.index);
    if let Some((id, group)) = groups.iter().find(|(id, group)| group.covered > index(id)) {
        let covered = group.covered;
        let problem = format!("the snapshot of partition {id} at entry {covered} is missing");
        return Err(Error::Corrupt(Corrupt { file: dir.to_owned(), offset: 0, problem }));
    }
    let mut records = Records::default();
    for (id, snapshot) in latest {
        if groups.get(id).is_none_or(|group| group.covered < snapshot.index) {
            records.covered(*id, snapshot.index);
        }
    }
    log.write(&records).and_then(|()| log.sync())
}

fn meta_of(reader: &SnapshotReader) -> Result<SnapshotMeta> {
    let meta = SnapshotMeta::from_bytes(reader.meta());
    meta.ok_or_else(|| reader.damaged("what it says about itself makes no sense"))
}

/// The replica that a snapshot holds, and what the snapshot says about itself.
///
/// # Errors
/// [`Error::Corrupt`] names file and offset.
pub fn restore(
    mut reader: SnapshotReader,
    id: PartitionId,
    hasher: KeyHasher,
) -> Result<(SnapshotMeta, Replica<Redis>)> {
    let meta = meta_of(&reader)?;
    let mut restorer = Restorer::new(id, hasher, reader.snapshot().bytes);
    while let Some(chunk) = reader.next_chunk()? {
        restorer.push(&chunk).map_err(|damaged| reader.damaged(&damaged.to_string()))?;
    }
    let replica = restorer.finish().map_err(|damaged| reader.damaged(&damaged.to_string()))?;
    Ok((meta, replica))
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
        let latest = self.latest.remove(&id);
        let restored = match &latest {
            Some(snapshot) => Some(restore(self.snapshots.read(snapshot)?, id, hasher)?),
            None => None,
        };
        let (snapshot, replica) = restored.unzip();
        let replica = replica.unwrap_or_else(|| Replica::new(id, hasher));
        let generation = self.directory.replica_of(id);
        let setup = setup(config, &self.placement, id, node, generation, life, hasher);
        let recovered = RecoveredGroup {
            state: log.state.map(Into::into),
            snapshot: snapshot.clone(),
            entries: log.entries,
        };
        let group = Group::new(&setup, recovered, 0)
            .map_err(|why| Error::Config(format!("partition {id} cannot be recovered: {why}")))?;
        self.partitions += 1;
        self.items += TableIndex::all().map(|table| replica.tables().len(table)).sum::<usize>();
        let mut partition = Partition::replicated(id, node, life, replica, group);
        if let (Some(meta), Some(latest)) = (snapshot, latest) {
            partition.recovered_from(meta, latest.bytes);
        }
        Ok(partition)
    }

    /// What the disk says of the replica of a partition that `bucket` has on `node`.
    pub fn kept(&self, id: PartitionId, bucket: usize, node: NodeId) -> Kept {
        let mut others = self.placement.replicas(id).to_vec();
        others.retain(|other| *other != node);
        Kept {
            id,
            bucket,
            generation: self.directory.replica_of(id),
            suspects: self.directory.suspects().contains(&id) && !others.is_empty(),
            others,
        }
    }

    /// Says what was found, once all partitions are made of it.
    pub fn tell(&self) {
        let suspects = self.directory.suspects().len();
        if suspects > 0 {
            log::warn!(
                target: "log",
                "the machine went down while this node ran: {suspects} partitions whose writes are \
                 not synced before they are acknowledged keep silent here until enough other nodes \
                 are there"
            );
        }
        let torn = self.torn.as_ref().map(|torn| format!(", {torn}")).unwrap_or_default();
        let Found { items, records, partitions, .. } = self;
        if *items > 0 || *records > 0 || self.torn.is_some() {
            let seconds = self.begun.elapsed().as_secs_f64();
            log::info!(
                target: "log",
                "recovered {items} items of {partitions} partitions and {records} log records in \
                 {seconds:.1} s{torn}"
            );
        }
    }
}

/// A partition whose replica begins with nothing, in this generation.
///
/// # Errors
/// When it cannot be begun, which no configuration leads to.
pub fn newborn(
    config: &Config,
    placement: &Placement,
    id: PartitionId,
    node: NodeId,
    generation: u32,
    life: Incarnation,
    hasher: KeyHasher,
) -> Result<Partition<Redis>> {
    if !placement.is_replicated(id) {
        log::error!(target: "log", "partition {id} had its only copy on the disk that was lost");
    }
    let setup = setup(config, placement, id, node, generation, life, hasher);
    let group = Group::new(&setup, RecoveredGroup::default(), 0)
        .map_err(|why| Error::Config(format!("partition {id} cannot be begun: {why}")))?;
    Ok(Partition::replicated(id, node, life, Replica::new(id, hasher), group))
}

/// The partitions in which the node acknowledges what it has not synced.
fn relaxed<'a>(
    config: &'a Config,
    placement: &'a Placement,
    node: NodeId,
) -> impl Iterator<Item = PartitionId> + 'a {
    let is_relaxed = |id: &PartitionId| config.class_of(*id).durability == Durability::Interval;
    placement.held_by(node).filter(is_relaxed)
}

/// Those of them in which other nodes rely on it.
fn unsynced<'a>(
    config: &'a Config,
    placement: &'a Placement,
    node: NodeId,
) -> impl Iterator<Item = PartitionId> + 'a {
    relaxed(config, placement, node).filter(|id| placement.is_replicated(*id))
}

/// What a partition's replica on a node is born with, in this generation.
pub fn setup(
    config: &Config,
    placement: &Placement,
    id: PartitionId,
    node: NodeId,
    generation: u32,
    life: Incarnation,
    hasher: KeyHasher,
) -> Setup {
    let replicas = placement.replicas(id);
    // A sole replica has promised nothing that another node relies on.
    let generation = if replicas.len() == 1 { 1 } else { generation };
    let voters = replicas.iter().map(|node| ReplicaId::new(*node, 1)).collect();
    let seed = [life.0, u64::from(node.0), u64::from(id.0)].map(u64::to_le_bytes).concat();
    let mut setup = Setup::new(ReplicaId::new(node, generation), voters, hasher.hash(&seed));
    let timing = config.replication;
    setup.tick_ms = (timing.heartbeat.as_millis() as u64 / HEARTBEAT_TICKS as u64).max(1);
    setup.heartbeat_ticks = HEARTBEAT_TICKS;
    setup.election_ticks =
        (timing.election_timeout.as_millis() as u64).div_ceil(setup.tick_ms) as usize;
    setup.retain_bytes = share(config, placement, node, timing.retain);
    setup
}

/// A partition's part of what is allowed to a node.
pub fn share(config: &Config, placement: &Placement, node: NodeId, bytes: u64) -> u64 {
    let kept = placement.held_by(node).filter(|id| is_logged(config.class_of(*id).durability));
    bytes / (kept.count() as u64).max(1)
}

/// Whether partitions of a class are kept in a log at all.
pub fn is_logged(durability: Durability) -> bool {
    durability != Durability::None
}
