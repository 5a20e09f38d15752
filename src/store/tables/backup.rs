//! A partition's part of a backup: its keys as of one moment, handed out in pieces.
//!
//! `CLUSTER BACKUP` begins a copy in every partition while it holds a lock on all of them, so all
//! copies are of one moment. Each has a **token** that no other copy of its partition has, in no term
//! and no life of any node. A piece is asked for by its token, so it is never of another moment.
//!
//! A piece is named by its **position** in the stream. Asking for it again gives the same bytes,
//! until the next one is asked for; so a lost reply costs nothing. The stream is that of
//! [`crate::partition::snapshot`]'s images.

use super::Tables;
use crate::ids::{Incarnation, TableIndex};
use crate::store::table::{Purpose, Table};
use crate::store::{image, pages};

/// Bytes of a piece at most. Copying one takes a fraction of a millisecond, but for a large item.
pub const PIECE_BYTES: usize = 256 << 10;

/// The backups of one partition: one at a time.
#[derive(Debug, Default)]
pub(super) struct Backups {
    /// The latest token that was given out.
    token: u64,
    current: Option<Backup>,
}

/// A backup's copy. It stays when it is pulled to its end: the other partitions' may not be.
#[derive(Debug)]
struct Backup {
    /// Who asked for it.
    name: u64,
    token: u64,
    /// Items that the copy has, in all.
    items: u64,
    /// The part of the stream that was copied and may still be asked for; from `at` on.
    bytes: Vec<u8>,
    at: usize,
    /// The position of `bytes[at]` in the stream.
    position: u64,
    /// The stream's end is in `bytes`.
    is_copied: bool,
    /// Something was pulled since [`Tables::backup_was_pulled`] was last asked.
    is_pulled: bool,
}

/// What is told of a copy that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The copy's token.
    pub token: u64,
    /// How many items it has.
    pub items: u64,
}

impl Tables {
    /// Drops a backup of an earlier life or term, whose tokens are never given again.
    pub fn backups_from(&mut self, life: Incarnation) {
        self.abandon_backup();
        self.backups.token = life.0 << 20;
    }

    /// Begins a copy of all tables as they are now. One of the same name is given up for it: its
    /// moment was not the whole cluster's. Nothing while one of another name is under way.
    pub fn begin_backup(&mut self, name: u64) -> Option<Begun> {
        if self.backups.current.as_ref().is_some_and(|backup| backup.name != name) {
            return None;
        }
        self.begin_copy(Purpose::Backup);
        self.backups.token += 1;
        let token = self.backups.token;
        let items = TableIndex::all().map(|table| self.len(table) as u64).sum();
        let mut bytes = Vec::new();
        image::put_image_prefix(&mut bytes);
        self.backups.current = Some(Backup {
            name,
            token,
            items,
            bytes,
            at: 0,
            position: 0,
            is_copied: false,
            is_pulled: true,
        });
        Some(Begun { token, items })
    }

    /// The piece at this position of the copy with this token; empty at the stream's end. Nothing
    /// if the copy is gone, or the position is neither that of the last piece nor the next one's.
    pub fn backup_piece(&mut self, token: u64, position: u64) -> Option<&[u8]> {
        let mut backup = self.backups.current.take_if(|backup| backup.token == token)?;
        let skipped = position.checked_sub(backup.position).and_then(|skipped| {
            usize::try_from(skipped)
                .ok()
                .filter(|skipped| *skipped <= backup.bytes.len() - backup.at)
        });
        if let Some(skipped) = skipped {
            backup.at += skipped;
            backup.position = position;
            backup.is_pulled = true;
            if backup.bytes.len() - backup.at < PIECE_BYTES && !backup.is_copied {
                // What is left is short; a large item is not moved for each of its pieces.
                backup.bytes.drain(..backup.at);
                backup.bytes.shrink_to(2 * PIECE_BYTES);
                backup.at = 0;
                let budget = PIECE_BYTES - backup.bytes.len();
                if !self.copy_some(Purpose::Backup, &mut backup.bytes, budget) {
                    pages::put_end(&mut backup.bytes, backup.items);
                    backup.is_copied = true;
                }
            }
        }
        let backup = self.backups.current.insert(backup);
        skipped?;
        let left = &backup.bytes[backup.at..];
        Some(&left[..left.len().min(PIECE_BYTES)])
    }

    /// Gives up the copy of this name, if there is one.
    pub fn release_backup(&mut self, name: u64) {
        if self.backups.current.as_ref().is_some_and(|backup| backup.name == name) {
            self.abandon_backup();
        }
    }

    /// Gives up the copy, if there is one.
    pub fn abandon_backup(&mut self) {
        if self.backups.current.take().is_some() {
            self.abandon_copy(Purpose::Backup);
        }
    }

    /// If there is a copy: whether anything was pulled of it since this was last asked.
    pub fn backup_was_pulled(&mut self) -> Option<bool> {
        let backup = self.backups.current.as_mut()?;
        Some(std::mem::take(&mut backup.is_pulled))
    }

    /// Bytes that the backup's copy holds: pieces, and what was copied ahead of them because it was
    /// about to change.
    pub fn backup_backlog(&self) -> usize {
        let pieces = self.backups.current.as_ref().map_or(0, |backup| backup.bytes.capacity());
        pieces + self.held().map(|table: &Table| table.copied_ahead(Purpose::Backup)).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Millis;
    use crate::store::image::{IMAGE_BLOCK_BYTES, IMAGE_PREFIX_BYTES, ImageReader};
    use crate::store::tables::Access;
    use crate::store::tables::{Expires, KeyHasher};
    use std::collections::BTreeMap;

    type Keys = BTreeMap<(TableIndex, Vec<u8>), Vec<u8>>;

    fn tables() -> Tables {
        let mut tables = Tables::new(KeyHasher::new(7));
        tables.backups_from(Incarnation(3));
        tables
    }

    fn table(number: u8) -> TableIndex {
        TableIndex::new(number).unwrap()
    }

    fn put(tables: &mut Tables, at: TableIndex, key: &str, value: &[u8]) {
        let hash = tables.hasher().hash(key.as_bytes());
        tables.begin(Millis(1), Access::Write);
        tables.put(at, hash, key.as_bytes(), value, Expires::Never);
    }

    fn remove(tables: &mut Tables, at: TableIndex, key: &str) {
        let hash = tables.hasher().hash(key.as_bytes());
        tables.begin(Millis(1), Access::Write);
        tables.remove(at, hash, key.as_bytes());
    }

    fn held(tables: &Tables) -> Keys {
        let mut keys = Keys::new();
        for at in TableIndex::all() {
            tables.for_each(at, &mut |item| {
                keys.insert((at, item.key().to_vec()), item.content().to_vec());
            });
        }
        keys
    }

    fn read(stream: &[u8]) -> Keys {
        let mut keys = Keys::new();
        let (prefix, mut rest) = stream.split_first_chunk::<IMAGE_PREFIX_BYTES>().unwrap();
        let mut image = ImageReader::read(*prefix).unwrap();
        while let Some((head, after)) = rest.split_first_chunk::<IMAGE_BLOCK_BYTES>() {
            let (content, after) = after.split_at(ImageReader::content_bytes(*head).unwrap());
            rest = after;
            let taken = image.take(*head, content, &mut |item| {
                let twice = keys.insert((item.table, item.key.to_vec()), item.content.to_vec());
                assert!(twice.is_none(), "a key is copied once");
            });
            taken.unwrap();
        }
        assert_eq!(image.finish(), Ok(keys.len() as u64));
        keys
    }

    /// Pulls everything that is left, changing the tables after each piece.
    fn pull(
        tables: &mut Tables,
        token: u64,
        mut change: impl FnMut(&mut Tables, usize),
    ) -> Vec<u8> {
        let mut stream = Vec::new();
        for round in 0.. {
            let piece = tables.backup_piece(token, stream.len() as u64).unwrap().to_vec();
            assert!(piece.len() <= PIECE_BYTES, "{}", piece.len());
            let again = tables.backup_piece(token, stream.len() as u64).unwrap();
            assert!(again == piece, "a piece that is asked for again is the same");
            if piece.is_empty() {
                break;
            }
            stream.extend_from_slice(&piece);
            change(tables, round);
        }
        stream
    }

    fn fill(tables: &mut Tables) {
        for n in 0..9_000 {
            put(tables, table(0), &format!("key{n}"), &[n as u8; 90]);
        }
        put(tables, table(0), "large", &vec![1; 3 * PIECE_BYTES]);
        put(tables, table(5), "large", &vec![2; 4 << 10]);
        put(tables, table(5), "other", b"");
    }

    #[test]
    fn a_backup_is_of_the_moment_at_which_it_began() {
        let mut tables = tables();
        fill(&mut tables);
        let before = held(&tables);
        let begun = tables.begin_backup(1).unwrap();
        assert_eq!(begun.items, before.len() as u64);
        let mut snapshot = Vec::new();
        let mut at_snapshot = Keys::new();
        let stream = pull(&mut tables, begun.token, |tables, round| {
            if round == 1 {
                // Made meanwhile, of another moment.
                at_snapshot = held(tables);
                tables.begin_snapshot();
            }
            for n in 0..900 {
                put(tables, table(0), &format!("key{}", n * 10 + round), b"changed");
                remove(tables, table(0), &format!("key{}", n * 10 + 9 - round % 9));
                put(tables, table(0), &format!("new{n}-{round}"), b"new");
            }
            match round {
                0 => put(tables, table(5), "large", b"changed"),
                2 => {
                    tables.begin(Millis(1), Access::Write);
                    tables.swap(table(0), table(5));
                }
                3 => remove(tables, table(5), "large"),
                4 => tables.clear(table(5)),
                _ => {}
            }
        });
        assert!(read(&stream) == before);
        image::put_image_prefix(&mut snapshot);
        while tables.snapshot_step(&mut snapshot, 10_000) {}
        pages::put_end(&mut snapshot, at_snapshot.len() as u64);
        assert!(read(&snapshot) == at_snapshot);
        // Nothing is left of either.
        assert!(tables.backup_backlog() <= 2 * PIECE_BYTES, "{}", tables.backup_backlog());
        assert_eq!((tables.snapshot_backlog(), tables.retired.len()), (0, 0));
    }

    #[test]
    fn a_piece_is_of_the_copy_that_its_token_names() {
        let mut tables = tables();
        fill(&mut tables);
        let first = tables.begin_backup(1).unwrap();
        let piece = tables.backup_piece(first.token, 0).unwrap().len() as u64;
        assert!(tables.backup_piece(first.token + 1, piece).is_none());
        assert!(tables.backup_piece(first.token, piece * 3).is_none(), "not copied yet");
        assert!(tables.backup_piece(first.token, piece).is_some());
        assert!(tables.backup_piece(first.token, 0).is_none(), "given up with the next one");

        assert!(tables.begin_backup(2).is_none(), "one at a time");
        let second = tables.begin_backup(1).unwrap();
        assert!(second.token > first.token);
        assert!(tables.backup_piece(first.token, piece).is_none(), "another moment's");
        tables.release_backup(2);
        assert!(tables.backup_piece(second.token, 0).is_some());
        tables.release_backup(1);
        assert!(tables.backup_piece(second.token, 0).is_none());
        assert_eq!(tables.backup_backlog(), 0);

        // In another life no token of this one is given.
        let third = tables.begin_backup(2).unwrap();
        tables.backups_from(Incarnation(4));
        assert!(tables.backup_piece(third.token, 0).is_none());
        let fourth = tables.begin_backup(3).unwrap();
        assert!(fourth.token > third.token + 1000);
        pull(&mut tables, fourth.token, |_, _| ());
        assert!(tables.begin_backup(4).is_none(), "the other partitions may not be whole");
    }

    #[test]
    fn a_copy_tells_whether_it_is_pulled() {
        let mut tables = tables();
        fill(&mut tables);
        assert_eq!(tables.backup_was_pulled(), None);
        let begun = tables.begin_backup(1).unwrap();
        assert_eq!(tables.backup_was_pulled(), Some(true));
        assert_eq!(tables.backup_was_pulled(), Some(false));
        assert!(tables.backup_piece(begun.token, 0).is_some());
        assert_eq!(tables.backup_was_pulled(), Some(true));
        for n in 0..9_000 {
            put(&mut tables, table(0), &format!("key{n}"), b"changed");
        }
        assert!(tables.backup_backlog() > 9_000 * 90, "{}", tables.backup_backlog());
    }
}
