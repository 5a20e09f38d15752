//! A disk in memory that does what disks do at the worst moment, under a seed.
//!
//! It keeps two states: what reads see, and what would be there after a power cut. Between them lie
//! the writes and names that were not synced. [`FaultyDisk::cut_power`] lets chance decide about
//! each of them: every block of 512 bytes becomes any of the versions it has had since its last
//! sync, or is torn between two of them at any byte; every name is changed or not.
//!
//! Clones are the same disk: a test keeps one and hands the other over.

use super::disk::{self, Disk, File};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What a power cut leaves whole or tears, but does not mix with its neighbours.
const BLOCK: usize = 512;

/// A disk in memory.
#[derive(Clone)]
pub struct FaultyDisk {
    state: Rc<RefCell<State>>,
}

struct State {
    dice: ChaCha8Rng,
    nodes: BTreeMap<u64, Node>,
    /// Names as they are seen.
    names: BTreeMap<PathBuf, u64>,
    /// Names as they would be after a power cut.
    safe_names: BTreeMap<PathBuf, u64>,
    /// Changes between the two, in order.
    renamings: Vec<Renaming>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeMap<PathBuf, Rc<Cell<bool>>>,
    next_node: u64,
    /// How many bytes all files may have together.
    capacity: u64,
    /// How many more operations succeed.
    fuse: Option<u64>,
    /// How many more syncs succeed.
    sync_fuse: Option<u64>,
    operations: u64,
    syncs: u64,
    /// Whether blocks are too small for it.
    refuses_blocks: bool,
    /// Files that were opened before the power was cut are dead.
    life: u64,
}

#[derive(Default)]
struct Node {
    seen: Vec<u8>,
    /// Bytes as they would be after a power cut, but for `pending`.
    safe: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
struct Renaming {
    dir: PathBuf,
    gone: Option<PathBuf>,
    made: Option<(PathBuf, u64)>,
}

/// An open file of a [`FaultyDisk`].
pub struct FaultyFile {
    disk: FaultyDisk,
    node: u64,
    life: u64,
    /// Opened for whole blocks.
    direct: bool,
}

/// A held lock.
pub struct FaultyLock(Rc<Cell<bool>>);

impl Drop for FaultyLock {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl FaultyDisk {
    /// An empty disk, whose chances come from `seed`.
    pub fn new(seed: u64) -> FaultyDisk {
        let state = State {
            dice: ChaCha8Rng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            renamings: Vec::new(),
            dirs: BTreeSet::new(),
            locks: BTreeMap::new(),
            next_node: 0,
            capacity: u64::MAX,
            fuse: None,
            sync_fuse: None,
            operations: 0,
            syncs: 0,
            refuses_blocks: false,
            life: 0,
        };
        FaultyDisk { state: Rc::new(RefCell::new(state)) }
    }

    /// Cuts the power and gives it back: what was not synced is there, gone or torn. Open files
    /// are dead, locks are free, fuses and limits are as on a new disk.
    pub fn cut_power(&self) {
        self.state.borrow_mut().cut_power();
    }

    /// The process dies, the machine does not: open files are dead, locks are free, nothing else
    /// is lost.
    pub fn kill(&self) {
        let mut state = self.state.borrow_mut();
        state.life += 1;
        state.locks.clear();
        (state.fuse, state.sync_fuse) = (None, None);
    }

    /// All files together may have `bytes` bytes from now on.
    pub fn limit(&self, bytes: u64) {
        self.state.borrow_mut().capacity = bytes;
    }

    /// How many bytes all files have.
    pub fn bytes(&self) -> u64 {
        self.state.borrow().used()
    }

    /// Every operation that changes something fails after `operations` more.
    pub fn fuse(&self, operations: u64) {
        self.state.borrow_mut().fuse = Some(operations);
    }

    /// Files opened for whole blocks refuse them from now on.
    pub fn refuse_blocks(&self) {
        self.state.borrow_mut().refuses_blocks = true;
    }

    /// Takes the fuses out.
    pub fn unfuse(&self) {
        let mut state = self.state.borrow_mut();
        (state.fuse, state.sync_fuse) = (None, None);
    }

    /// The sync after `syncs` more fails, and what it should have written is never written though
    /// it can be read: what Linux does. Those after it succeed.
    pub fn fail_sync(&self, syncs: u64) {
        self.state.borrow_mut().sync_fuse = Some(syncs);
    }

    /// How many operations that change something there have been.
    pub fn operations(&self) -> u64 {
        self.state.borrow().operations
    }

    /// How many syncs of files there have been.
    pub fn syncs(&self) -> u64 {
        self.state.borrow().syncs
    }

    /// The bytes of a file as they are seen.
    pub fn bytes_of(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        Some(state.nodes[state.names.get(path)?].seen.clone())
    }

    /// Puts a file there, safely, whatever else goes on: for tests that damage one.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        let node = state.new_node();
        state
            .nodes
            .insert(node, Node { seen: bytes.to_vec(), safe: bytes.to_vec(), pending: Vec::new() });
        state.names.insert(path.to_owned(), node);
        state.safe_names.insert(path.to_owned(), node);
        if let Some(dir) = path.parent() {
            state.dirs.insert(dir.to_owned());
        }
    }

    /// Flips a bit of a file, on the disk and in what is seen.
    pub fn flip(&self, path: &Path, bit: u64) {
        let mut bytes = self.bytes_of(path).expect("the file is there");
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        self.put(path, &bytes);
    }

    /// All files, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state.borrow().names.keys().cloned().collect()
    }

    /// A disk of its own that holds the same files, all of it safe, with chances from `seed`.
    pub fn copy(&self, seed: u64) -> FaultyDisk {
        let copy = FaultyDisk::new(seed);
        for path in self.files() {
            copy.put(&path, &self.bytes_of(&path).unwrap_or_default());
        }
        copy.state.borrow_mut().dirs = self.state.borrow().dirs.clone();
        copy
    }
}

impl State {
    fn used(&self) -> u64 {
        let nodes: BTreeSet<u64> = self.names.values().copied().collect();
        nodes.iter().map(|node| self.nodes[node].seen.len() as u64).sum()
    }

    fn new_node(&mut self) -> u64 {
        self.next_node += 1;
        self.next_node
    }

    fn chance(&mut self, of: usize) -> usize {
        (self.dice.next_u64() % of as u64) as usize
    }

    /// Counts an operation that changes something, or fails it.
    fn operate(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.fuse {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the power is off"))?;
        }
        self.operations += 1;
        Ok(())
    }

    fn rename(&mut self, dir: PathBuf, gone: Option<PathBuf>, made: Option<(PathBuf, u64)>) {
        let renaming = Renaming { dir, gone, made };
        renaming.apply(&mut self.names);
        self.renamings.push(renaming);
    }

    fn cut_power(&mut self) {
        for renaming in std::mem::take(&mut self.renamings) {
            if self.chance(2) == 0 {
                renaming.apply(&mut self.safe_names);
            }
        }
        self.names = self.safe_names.clone();
        let numbers: Vec<u64> = self.nodes.keys().copied().collect();
        for number in numbers {
            let mut node = self.nodes.remove(&number).unwrap_or_default();
            self.tear(&mut node);
            self.nodes.insert(number, node);
        }
        self.life += 1;
        self.locks.clear();
        (self.fuse, self.sync_fuse, self.capacity) = (None, None, u64::MAX);
    }

    /// Decides what is left of a file.
    fn tear(&mut self, node: &mut Node) {
        let before = node.safe.len();
        let after = node.seen.len().max(before);
        let pending = std::mem::take(&mut node.pending);
        if pending.is_empty() {
            node.seen = node.safe.clone();
            return;
        }
        // The versions that each block went through.
        let mut versions: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        for (offset, bytes) in &pending {
            for block in offset / BLOCK..=(offset + bytes.len()).saturating_sub(1) / BLOCK {
                let start = block * BLOCK;
                let old = versions.entry(block).or_insert_with(|| {
                    let mut first = vec![0; BLOCK];
                    let known = node.safe.len().saturating_sub(start).min(BLOCK);
                    first[..known].copy_from_slice(&node.safe[start.min(before)..][..known]);
                    vec![first]
                });
                let mut new = old.last().cloned().unwrap_or_default();
                let from = (*offset).max(start);
                let to = (offset + bytes.len()).min(start + BLOCK);
                new[from - start..to - start].copy_from_slice(&bytes[from - offset..to - offset]);
                old.push(new);
            }
        }
        node.safe.resize(after, 0);
        for (block, versions) in versions {
            let mut left = versions[self.chance(versions.len())].clone();
            if self.chance(4) == 0 {
                let other = &versions[self.chance(versions.len())];
                let torn = self.chance(BLOCK);
                left[torn..].copy_from_slice(&other[torn..]);
            }
            let start = block * BLOCK;
            let end = (start + BLOCK).min(after);
            node.safe[start..end].copy_from_slice(&left[..end - start]);
        }
        // A new length is there or not, at any block.
        if after > before && self.chance(2) == 0 {
            let length = before + self.chance(after - before);
            node.safe.truncate(length.next_multiple_of(BLOCK).clamp(before, after));
        }
        node.seen = node.safe.clone();
    }
}

impl Renaming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((made, node)) = &self.made {
            names.insert(made.clone(), *node);
        }
    }
}

fn dir_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

impl Disk for FaultyDisk {
    type File = FaultyFile;
    type Lock = FaultyLock;

    fn create(&self, path: &Path) -> io::Result<FaultyFile> {
        let mut state = self.state.borrow_mut();
        state.operate()?;
        let node = state.new_node();
        state.nodes.insert(node, Node::default());
        state.rename(dir_of(path), None, Some((path.to_owned(), node)));
        Ok(FaultyFile { disk: self.clone(), node, life: state.life, direct: false })
    }

    fn open(&self, path: &Path) -> io::Result<FaultyFile> {
        let state = self.state.borrow();
        let node = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(FaultyFile { disk: self.clone(), node, life: state.life, direct: false })
    }

    fn open_direct(&self, path: &Path) -> Option<FaultyFile> {
        let file = self.open(path).ok()?;
        Some(FaultyFile { direct: true, ..file })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.operate()?;
        let node = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.rename(dir_of(to), Some(from.to_owned()), Some((to.to_owned(), node)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.operate()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename(dir_of(path), Some(path.to_owned()), None);
        Ok(())
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.borrow();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = state.names.keys().chain(&state.dirs).filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> =
            below.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.operate()?;
        let (synced, left): (Vec<Renaming>, Vec<Renaming>) =
            state.renamings.drain(..).partition(|renaming| renaming.dir == dir);
        state.renamings = left;
        for renaming in synced {
            renaming.apply(&mut state.safe_names);
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<FaultyLock> {
        let mut state = self.state.borrow_mut();
        let held = state.locks.entry(path.to_owned()).or_default();
        if held.replace(true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(FaultyLock(held.clone()))
    }
}

impl FaultyFile {
    fn alive(&self, state: &State) -> io::Result<()> {
        match self.life == state.life {
            true => Ok(()),
            false => Err(io::Error::other("the file was opened in an earlier life")),
        }
    }
}

impl File for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state.borrow();
        self.alive(&state)?;
        let seen = &state.nodes[&self.node].seen;
        let from = seen.len().min(offset as usize);
        let length = buffer.len().min(seen.len() - from);
        buffer[..length].copy_from_slice(&seen[from..from + length]);
        Ok(length)
    }

    /// A full disk takes as much as there is room for.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state.borrow_mut();
        self.alive(&state)?;
        if self.direct {
            if state.refuses_blocks {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            for place in [bytes.as_ptr().addr(), bytes.len(), offset as usize] {
                assert_eq!(place % disk::BLOCK, 0, "whole blocks, where a block may be");
            }
        }
        state.operate()?;
        let left = state.capacity.saturating_sub(state.used());
        let node = state.nodes.entry(self.node).or_default();
        let room = node.seen.len() + left as usize;
        let offset = offset as usize;
        let taken = room.saturating_sub(offset).min(bytes.len());
        if taken > 0 {
            let end = offset + taken;
            if node.seen.len() < end {
                node.seen.resize(end, 0);
            }
            node.seen[offset..end].copy_from_slice(&bytes[..taken]);
            node.pending.push((offset, bytes[..taken].to_vec()));
        }
        if taken < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.borrow_mut();
        self.alive(&state)?;
        state.operate()?;
        state.syncs += 1;
        let failed = match &mut state.sync_fuse {
            Some(0) => {
                state.sync_fuse = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let node = state.nodes.entry(self.node).or_default();
        if failed {
            // The pages count as written from now on, and are not.
            node.pending.clear();
            return Err(io::Error::other("input/output error"));
        }
        if !node.pending.is_empty() {
            node.safe.resize(node.seen.len(), 0);
            for (offset, bytes) in node.pending.drain(..) {
                node.safe[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let state = self.disk.state.borrow();
        self.alive(&state)?;
        Ok(state.nodes[&self.node].seen.len() as u64)
    }
}
