//! The data directory of one node: whose it is, that one process uses it, and how it was left.
//!
//! A node that starts on another's directory, or beside a process that already uses its own, would
//! break promises of the data there. So the directory carries an identity, in a file that an
//! operator can read, and a lock that the kernel gives back however the process ends.
//!
//! It names the **layout** of what lies in it as well: of how many partitions, on which nodes. With
//! another one the node would look for its keys in the wrong places.
//!
//! It also remembers what must outlive the process and is no part of the log:
//! - that the node was **ready** for the cluster's formation, before it says so to another node:
//!   a cluster is formed once every node has said so, and until then no node promises anything. So a
//!   directory that was ready and is not formed has lost nothing, and one that was never ready has
//!   no part in a cluster that is formed: it stands in the place of one that was lost;
//! - that the cluster was **formed**, so that a restart waits for a majority and not for all nodes;
//! - which **replica** of each partition this is: another one when the node must rejoin as a new
//!   member, because what it acknowledged may be lost;
//! - the **suspect** partitions: their log may lack what was acknowledged, and until that is
//!   settled the node takes no part in them;
//! - the newest **segment** of the log, so that a log without it is refused, and whether a **note**
//!   beside it says how far it is synced, so that a log without the note is refused too;
//! - its **life**, so that the next one is later whatever the clock says, and what was **seen** of
//!   the other nodes, to be told to a node that has lost its directory;
//! - the **boot** of the machine it last ran in and whether it **stopped** cleanly: a process that
//!   dies leaves its unsynced writes to the kernel, a machine that goes down takes them along.

use super::disk::{Disk, File, RealDisk, failed, no_room};
use crate::error::{Corrupt, Error, Result};
use crate::ids::{Incarnation, LastSeen, Millis, NodeId, PartitionId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Whose data it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name in `cluster.yaml`.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

/// The data directory of one node, in use by this process until it is dropped.
pub struct Directory<D: Disk = RealDisk> {
    disk: D,
    path: PathBuf,
    is_new: bool,
    /// The cluster was formed when the directory was opened, and this was the last life.
    was_formed: bool,
    last_life: Incarnation,
    /// As it is in the file.
    record: Record,
    _lock: D::Lock,
}

/// What the identity file says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    owner: Identity,
    /// Names and values, in order.
    layout: Vec<(String, String)>,
    life: Incarnation,
    segment: u32,
    /// Whether there is a note of how far the log is synced.
    noted: bool,
    replica: u32,
    /// The partitions whose replica is a later one.
    replaced: BTreeMap<PartitionId, u32>,
    suspects: BTreeSet<PartitionId>,
    ready: bool,
    formed: bool,
    seen: BTreeMap<NodeId, LastSeen>,
    boot: Option<String>,
    clean: bool,
}

/// What is written and read. Of the formats before, nothing is read: values were encoded otherwise.
const FORMAT: &str = "3";
const EARLIER: [&str; 2] = ["1", "2"];
const IDENTITY: &str = "identity";
const SYNCED: &str = "synced";
const HEAD: &str = "# Whose data this directory holds. Kept by the node; do not edit.\n";

/// What stands before the name of a field of the layout.
const LAYOUT: &str = "layout.";

/// The field of the layout that says which nodes hold what. A directory that has one keeps it, whatever
/// a new one would be given.
pub const PLACEMENT: &str = "placement";

/// No identity is longer: it may name the most partitions that a cluster has twice.
const IDENTITY_BYTES_MAX: u64 = 4 << 20;

impl<D: Disk> Directory<D> {
    /// Opens a node's directory, and makes it if there is none. `layout` names what must be as it was
    /// for its data to be found; it is empty where nothing is to be kept.
    ///
    /// # Errors
    /// [`Error::Directory`] names the directory and both sides when it belongs to another node or
    /// cluster or is of another layout, when a process uses it, when a newer version made it, or
    /// when it holds a log but does not say whose. [`Error::Corrupt`] when its identity cannot be
    /// read.
    pub fn open(
        disk: D,
        path: &Path,
        owner: Identity,
        layout: &[(&str, String)],
    ) -> Result<Directory<D>> {
        let shown = path.display();
        disk.make_dir(path).map_err(no_room(path, 0))?;
        let lock = disk.lock(&path.join("lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::Directory(format!(
                "data directory {shown} is in use by another process (wanted by {owner})"
            )),
            _ => failed("lock", &path.join("lock"))(error),
        })?;
        let names = disk.list(path).map_err(failed("list", path))?;
        let is_new = !names.iter().any(|name| name == IDENTITY);
        let layout: Vec<(String, String)> =
            layout.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let new = Record {
            owner,
            layout,
            life: Incarnation::default(),
            segment: 0,
            replica: 1,
            replaced: BTreeMap::new(),
            suspects: BTreeSet::new(),
            noted: false,
            ready: false,
            formed: false,
            seen: BTreeMap::new(),
            boot: None,
            clean: true,
        };
        let mut record = if is_new { new.clone() } else { read(&disk, path)? };
        if record.owner != new.owner {
            let (found, wanted) = (record.owner, new.owner);
            let problem = format!("data directory {shown} belongs to {found}, not to {wanted}");
            return Err(Error::Directory(problem));
        }
        if let Some(problem) = record.moved(&new.layout) {
            return Err(Error::Directory(format!(
                "data directory {shown} is laid out otherwise: {problem}. Keys would be looked for \
                 where they are not. Put it back as it was; to change it, save the cluster with \
                 --role admin backup and restore that into a new one"
            )));
        }
        let note = path.join(SYNCED);
        if record.noted && is_absent(&disk, &note) {
            let problem = "the file is missing, and the log's end cannot be told without it";
            return Err(Error::Corrupt(Corrupt { file: note, offset: 0, problem: problem.into() }));
        }
        let placement = record.layout.iter().find(|(name, _)| name == PLACEMENT).cloned();
        record.layout = new.layout;
        if let (Some(kept), Some(field)) =
            (placement, record.layout.iter_mut().find(|(name, _)| name == PLACEMENT))
        {
            *field = kept;
        }
        let (path, was_formed, last_life) = (path.to_owned(), record.formed, record.life);
        let directory =
            Directory { disk, path, is_new, was_formed, last_life, record, _lock: lock };
        let path = &directory.path;
        for dir in [directory.log_dir(), directory.snapshots_dir()] {
            if is_new && has_files(&directory.disk, &dir) {
                return Err(Error::Directory(format!(
                    "{} holds data, but {shown} does not say whose: its file {IDENTITY} is missing. \
                     Put that back, or move the directory away and start the node again, which then \
                     begins empty and is given what others have copies of",
                    dir.display()
                )));
            }
            directory.disk.make_dir(&dir).map_err(no_room(&dir, 0))?;
        }
        if is_new {
            directory.save(&directory.record)?;
            // The directory's own name, and those above it that may be as new.
            for above in path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
                if directory.disk.sync_dir(above).is_err() {
                    break;
                }
            }
        }
        Ok(directory)
    }

    /// Which nodes hold what, if anything is kept.
    pub fn placement(&self) -> Option<&str> {
        let field = self.record.layout.iter().find(|(name, _)| name == PLACEMENT)?;
        Some(&field.1)
    }

    /// Where the log is.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the snapshots are.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Where it is noted how far the log is synced.
    pub fn synced_file(&self) -> PathBuf {
        self.path.join(SYNCED)
    }

    /// The newest segment of the log; 0 if there was none.
    pub fn segment(&self) -> u32 {
        self.record.segment
    }

    /// This segment of the log is written to, and nothing in it counts yet.
    pub fn mark_segment(&mut self, segment: u32) -> Result<()> {
        self.change(|record| record.segment = segment)
    }

    /// Whether this process made the directory.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether the node was ready for the cluster's formation, in this process or an earlier one.
    pub fn is_ready(&self) -> bool {
        self.record.ready
    }

    /// The node has met all others and is about to say so.
    pub fn mark_ready(&mut self) -> Result<()> {
        self.change(|record| record.ready = true)
    }

    /// Whether the cluster has been formed.
    pub fn is_formed(&self) -> bool {
        self.record.formed
    }

    /// The cluster is formed, for good.
    pub fn mark_formed(&mut self) -> Result<()> {
        self.change(|record| record.formed = true)
    }

    /// Which replica of a partition the node is, from 1.
    pub fn replica_of(&self, partition: PartitionId) -> u32 {
        let replaced = self.record.replaced.get(&partition).copied();
        self.record.replica.max(replaced.unwrap_or_default())
    }

    /// The latest generation of any of its replicas.
    pub fn latest_replica(&self) -> u32 {
        self.record.replaced.values().copied().fold(self.record.replica, u32::max)
    }

    /// All that the node acknowledged is lost, in a cluster that is formed: it goes on as another
    /// replica of each partition, whose number this answers. A directory that is lost again does not
    /// know the number that the one before it chose: `seen` is the latest one that other nodes know,
    /// `second` is the wall clock's, for what none of them has seen.
    pub fn begin_anew(&mut self, second: u64, seen: u32) -> Result<u32> {
        let last = self.latest_replica().max(seen);
        self.change(|record| {
            record.replica = later(last, second);
            record.replaced.clear();
            record.suspects.clear();
            record.formed = true;
        })?;
        Ok(self.record.replica)
    }

    /// The partitions whose log may lack what was acknowledged.
    pub fn suspects(&self) -> &BTreeSet<PartitionId> {
        &self.record.suspects
    }

    /// The suspicion of these partitions is settled: the node goes on as another replica of those
    /// in `replaced`, and as the same replica of those in `trusted`. `second` as for
    /// [`Directory::begin_anew`].
    pub fn settle(
        &mut self,
        replaced: &[PartitionId],
        trusted: &[PartitionId],
        second: u64,
    ) -> Result<()> {
        let mut next = self.record.clone();
        for &partition in replaced {
            next.replaced.insert(partition, later(self.replica_of(partition), second));
        }
        let settled: BTreeSet<PartitionId> = replaced.iter().chain(trusted).copied().collect();
        next.suspects.retain(|partition| !settled.contains(partition));
        self.change(|record| *record = next)
    }

    /// What was seen of another node.
    pub fn last_seen(&self, node: NodeId) -> LastSeen {
        self.record.seen.get(&node).copied().unwrap_or_default()
    }

    /// Another node was seen in this life, with replicas of this generation.
    pub fn mark_seen(&mut self, node: NodeId, seen: LastSeen) -> Result<()> {
        self.change(|record| {
            let known = record.seen.entry(node).or_default();
            *known = known.and(seen);
        })
    }

    /// The last life that no other node can have seen a later one than, before this process; none if
    /// the directory cannot know.
    pub fn last_life(&self) -> Option<Incarnation> {
        (self.was_formed && self.last_life != Incarnation::default()).then_some(self.last_life)
    }

    /// Node `by` has seen this node in a later life, or replicas of it of a later generation. Answers
    /// the life that the node goes on in.
    ///
    /// # Errors
    /// [`Error::Directory`] when the directory is of a node that was formed: then an earlier copy of
    /// it is in its place, and what was acknowledged since is not there.
    pub fn outlived(&mut self, by: NodeId, seen: LastSeen) -> Result<Incarnation> {
        if self.was_formed {
            let (shown, owner) = (self.path.display(), &self.record.owner);
            let own = self.last_life.0;
            return Err(Error::Directory(format!(
                "data directory {shown} is older than what node {by} has seen of {owner} (life \
                 {own} and {}, replicas of generation {} and {}): an earlier copy is in its place, \
                 and what was acknowledged since is missing. Move it away and start the node again, \
                 which then rejoins with new replicas",
                seen.life.0,
                self.latest_replica(),
                seen.generation
            )));
        }
        let late = seen.generation > self.latest_replica();
        self.change(|record| {
            // It may have been heard before.
            if late || record.life <= seen.life {
                record.life = Incarnation(record.life.max(seen.life).0.saturating_add(1));
            }
            if late && record.formed {
                record.replica = seen.generation.saturating_add(1);
                record.replaced.clear();
            }
        })?;
        Ok(self.record.life)
    }

    /// The node runs in this boot of the machine. Where the boot is not known it is empty, and may
    /// be another than the last; `clock` is the wall clock's, in milliseconds. Answers the life
    /// that begins, later than any before. If the node ran when the machine went down, the
    /// partitions of which it acknowledged what was `unsynced` are suspect from now on.
    pub fn mark_running(
        &mut self,
        boot: &str,
        clock: Millis,
        unsynced: impl IntoIterator<Item = PartitionId>,
    ) -> Result<Incarnation> {
        let boot: String = boot.chars().filter(|c| !c.is_control()).collect();
        let boot = boot.trim().to_owned();
        let noted = !is_absent(&self.disk, &self.synced_file());
        if noted && !self.record.noted {
            // Its name must last before anything relies on it.
            self.disk.sync_dir(&self.path).map_err(failed("sync", &self.path))?;
        }
        self.change(|record| {
            record.noted |= noted;
            let went_down = boot.is_empty() || record.boot.as_deref() != Some(boot.as_str());
            if went_down && !record.clean && record.formed {
                record.suspects.extend(unsynced);
            }
            record.boot = Some(boot).filter(|boot| !boot.is_empty());
            record.clean = false;
            record.life = record.life.next(clock);
        })?;
        Ok(self.record.life)
    }

    /// The node has synced everything and stops.
    pub fn mark_clean(&mut self) -> Result<()> {
        self.change(|record| record.clean = true)
    }

    fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        if record != self.record {
            self.save(&record)?;
            self.record = record;
        }
        Ok(())
    }

    /// Writes the identity aside and puts it in place: there is always a whole one.
    fn save(&self, record: &Record) -> Result<()> {
        let (aside, place) = (self.path.join("identity.new"), self.path.join(IDENTITY));
        let text = record.text();
        let needed = text.len() as u64;
        let file = self.disk.create(&aside).map_err(no_room(&aside, needed))?;
        file.write_at(text.as_bytes(), 0).map_err(no_room(&aside, needed))?;
        file.sync_data().map_err(failed("sync", &aside))?;
        self.disk.rename(&aside, &place).map_err(failed("write", &place))?;
        self.disk.sync_dir(&self.path).map_err(failed("sync", &self.path))
    }
}

/// The latest second that names a replica, in the year 2065: a clock that is ahead of that must not
/// use up all numbers that there are.
const SECOND_MAX: u64 = 3_000_000_000;

/// A replica's number that was never given before: the second it is given in, or the next.
fn later(last: u32, second: u64) -> u32 {
    (second.min(SECOND_MAX) as u32).max(last.saturating_add(1))
}

fn is_absent<D: Disk>(disk: &D, path: &Path) -> bool {
    disk.open(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn has_files<D: Disk>(disk: &D, dir: &Path) -> bool {
    disk.list(dir).is_ok_and(|names| !names.is_empty())
}

fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Record> {
    let path = dir.join(IDENTITY);
    let bytes = disk.open(&path).and_then(|file| file.read_range(0, IDENTITY_BYTES_MAX));
    let bytes = bytes.map_err(failed("read", &path))?;
    let damaged = |problem: &str| {
        Error::Corrupt(Corrupt { file: path.clone(), offset: 0, problem: problem.to_owned() })
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is no text"))?;
    let format = field(text, "format").ok_or_else(|| damaged("it names no format"))?;
    if !sealed(text) {
        return Err(damaged("its checksum is wrong"));
    }
    if EARLIER.contains(&format) {
        return Err(Error::Directory(format!(
            "data directory {} is of format {format}, which this version does not read. Save the \
             cluster with the version that wrote it (--role admin backup) and restore that into a \
             new one",
            dir.display()
        )));
    }
    if format != FORMAT {
        let problem = format!("{} is of format {format}, which is not known", path.display());
        return Err(Error::Directory(problem));
    }
    Record::parse(text).ok_or_else(|| damaged("a field is missing or makes no sense"))
}

/// What was changed, in the words of `cluster.yaml`, which has no field for how tables are kept
/// together. Whether a log is synced or written at intervals may change, and is not kept.
fn told_moved(name: &str, was: &str, now: &str) -> String {
    let (what, words): (_, fn(&str) -> String) = match name {
        // Tables that are kept alike share their partitions: kinds can neither be joined nor divided.
        "classes" => ("in how many ways tables are kept (mode, replicas, durability)", |classes| {
            let class = |class: &str| match class.split(',').collect::<Vec<_>>()[..] {
                [mode, replicas, "disk"] => {
                    format!("{mode} with replicas: {replicas} and a log (sync or interval)")
                }
                [mode, replicas, _] => format!("{mode} with replicas: {replicas} and none"),
                _ => class.to_owned(),
            };
            let ways: Vec<String> = classes.split(' ').map(class).collect();
            format!("{} ({})", ways.len(), ways.join("; "))
        }),
        "tables" => ("which tables are kept alike", |tables| {
            let mut alike = BTreeMap::<&str, Vec<String>>::new();
            for (index, class) in tables.split(' ').enumerate() {
                alike.entry(class).or_default().push(index.to_string());
            }
            let groups = alike.into_values().map(|group| group.join(" "));
            groups.collect::<Vec<_>>().join(" | ")
        }),
        name => (name, str::to_owned),
    };
    let (was, now) = (words(was), words(now));
    format!("{what} was {was} when it was made, and cluster.yaml says {now}")
}

impl Record {
    /// Which field of the layout is not what it was, if any. A record that has none is of a node that
    /// kept nothing.
    fn moved(&self, layout: &[(String, String)]) -> Option<String> {
        let now = |name: &String| {
            let field = layout.iter().find(|(other, _)| other == name);
            field.map_or("nothing", |(_, value)| value.as_str())
        };
        let mut fixed = self.layout.iter().filter(|(name, _)| name != PLACEMENT);
        let moved = fixed.find(|(name, was)| now(name) != was);
        moved.map(|(name, was)| told_moved(name, was, now(name)))
    }

    fn text(&self) -> String {
        let Record { owner: Identity { cluster, node }, life, replica, .. } = self;
        let Record { formed, boot, clean, .. } = self;
        let layout = self.layout.iter().map(|(name, value)| format!("{LAYOUT}{name}: {value}\n"));
        let layout: String = layout.collect();
        let boot = boot.as_deref().unwrap_or("none");
        let formed = if *formed { "yes" } else { "no" };
        let stopped = if *clean { "cleanly" } else { "not yet" };
        let text = format!(
            "{HEAD}format: {FORMAT}\ncluster: {cluster}\nnode: {node}\n{layout}{}{}{}replica: {replica}\n\
             {}{}{}formed: {formed}\n{}boot: {boot}\nstopped: {stopped}\n",
            line("life", (life.0 > 0).then(|| life.0.to_string()).into_iter()),
            line("segment", (self.segment > 0).then(|| self.segment.to_string()).into_iter()),
            line("noted", self.noted.then(|| "yes".to_owned()).into_iter()),
            line("replaced", self.replaced.iter().map(|(id, number)| format!("{id}={number}"))),
            line("suspect", self.suspects.iter().map(PartitionId::to_string)),
            line("ready", self.ready.then(|| "yes".to_owned()).into_iter()),
            line(
                "seen",
                self.seen.iter().map(|(node, LastSeen { life, generation })| {
                    format!("{node}={}/{generation}", life.0)
                })
            ),
        );
        let crc = crc32fast::hash(text.as_bytes());
        format!("{text}crc: {crc:08x}\n")
    }

    fn parse(text: &str) -> Option<Record> {
        let word = |name| field(text, name);
        let record = Record {
            owner: Identity {
                cluster: word("cluster")?.to_owned(),
                node: NodeId(word("node")?.parse().ok()?),
            },
            layout: text
                .lines()
                .filter_map(|line| line.strip_prefix(LAYOUT)?.split_once(": "))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            life: Incarnation(word("life").map_or(Some(0), |life| life.parse().ok())?),
            segment: word("segment").map_or(Some(0), |segment| segment.parse().ok())?,
            noted: word("noted").is_some(),
            replica: word("replica")?.parse().ok()?,
            replaced: list(word("replaced"), |word| {
                let (id, number) = word.split_once('=')?;
                Some((PartitionId(id.parse().ok()?), number.parse().ok()?))
            })?,
            suspects: list(word("suspect"), |id| Some(PartitionId(id.parse().ok()?)))?,
            ready: word("ready").is_some(),
            formed: word("formed")? == "yes",
            seen: list(word("seen"), |word| {
                let (node, seen) = word.split_once('=')?;
                let (life, generation) = seen.split_once('/')?;
                let life = Incarnation(life.parse().ok()?);
                let seen = LastSeen { life, generation: generation.parse().ok()? };
                Some((NodeId(node.parse().ok()?), seen))
            })?,
            boot: word("boot").filter(|boot| *boot != "none").map(str::to_owned),
            clean: word("stopped")? == "cleanly",
        };
        // A field that was not understood would be lost by the next write.
        (record.text() == text).then_some(record)
    }
}

/// A line of the identity that is there only if it says something.
fn line(name: &str, words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    if words.is_empty() { String::new() } else { format!("{name}: {}\n", words.join(" ")) }
}

fn list<T, C: FromIterator<T>>(words: Option<&str>, read: fn(&str) -> Option<T>) -> Option<C> {
    words.unwrap_or_default().split_whitespace().map(read).collect()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Whether the last line is the checksum of those before it.
fn sealed(text: &str) -> bool {
    text.rfind("crc: ").is_some_and(|at| {
        let crc = crc32fast::hash(&text.as_bytes()[..at]);
        text[at..] == format!("crc: {crc:08x}\n")
    })
}

#[cfg(test)]
mod tests;
