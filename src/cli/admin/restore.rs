//! Putting a backup's keys into a cluster, of whatever size.
//!
//! The whole backup is read and verified before anything in the cluster is changed. Then its keys
//! are put by ordinary writes, many at a time. Each may be put twice, so what was refused, or whose
//! answer was lost, is put again, at another node if need be. A restore that ends early says how
//! far it got, and goes on from there when it is told to.

use super::asker::{Asker, Request, passes};
use super::image::{Found, ImageFile, inspect};
use super::manifest::{Image, Manifest};
use super::{Cluster, said, show};
use crate::cli::output;
use crate::command::dump;
use crate::command::object::EMBEDDED_BYTES_MAX;
use crate::ids::{Millis, TABLES, TableIndex};
use crate::net::resp::Value;
use crate::store::pages::PagedItem;
use crate::store::value::Encoding;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Writes under way together.
const WRITES_TOGETHER: usize = 512;

/// Bytes of them; one write may be longer by itself.
const BYTES_TOGETHER: usize = 1 << 20;

/// A value that is longer is put in pieces of so many bytes, or of as many as the cluster takes for one
/// argument (`limits.value`): it may have been appended to until it was longer than that.
const PIECE_BYTES: usize = 1 << 20;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// What becomes of the keys that a cluster holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// There may be none.
    Refused,
    /// They are deleted.
    Deleted,
    /// So many keys of the backup were put by an earlier restore.
    Restored(u64),
}

/// A backup that was found whole. Its files are read again for the restore itself.
pub(super) struct Verified<'a> {
    dir: &'a Path,
    manifest: Manifest,
}

/// Reads a backup and checks it against its manifest.
pub(super) fn verify(dir: &Path) -> Result<Verified<'_>, String> {
    let manifest = Manifest::read(dir)?;
    let (keys, files) = (manifest.keys, manifest.images.len());
    output::tell(&format!("verifying {keys} keys in {files} files"));
    for image in &manifest.images {
        let path = dir.join(&image.file);
        let Found { bytes, keys, crc32 } = inspect(&path)?;
        let Image { bytes: bytes_then, keys: keys_then, crc32: crc32_then, .. } = *image;
        if (bytes, keys, crc32) != (bytes_then, keys_then, crc32_then) {
            return Err(format!("{} is damaged: its checksum differs", path.display()));
        }
    }
    Ok(Verified { dir, manifest })
}

impl Verified<'_> {
    /// Puts the backup's keys into the cluster.
    pub(super) fn put_back(
        &self,
        cluster: &Cluster,
        held: Held,
        patience: Duration,
    ) -> Result<(), String> {
        let Manifest { keys, cluster: name, images, .. } = &self.manifest;
        let done = match held {
            Held::Restored(done) if done > *keys => {
                return Err(format!("--from {done}: the backup has {keys} keys"));
            }
            Held::Restored(done) => done,
            Held::Refused | Held::Deleted => 0,
        };
        let mut asker = Asker::new(cluster, patience);
        let piece_bytes = piece_bytes(&mut asker)?;
        make_room(&mut asker, held)?;
        let mut writer = Writer::new(asker, done, *keys, piece_bytes);
        let put = images.iter().try_for_each(|image| {
            let mut reader = ImageFile::open(&self.dir.join(&image.file))?;
            while reader.next(&mut |item| writer.put(&item))? {
                writer.check()?;
            }
            Ok(())
        });
        let put = put.and_then(|()| {
            writer.settle();
            writer.check()
        });
        let done = writer.done;
        put.map_err(|why: String| {
            let dir = self.dir.display();
            format!(
                "{why}; {done} of {keys} keys are restored, go on with: restore {dir} --from {done}"
            )
        })?;
        show(&format!("restored {keys} keys of cluster '{name}' from {}", self.dir.display()))
    }
}

/// How long the pieces of long values are.
fn piece_bytes(asker: &mut Asker<'_>) -> Result<usize, String> {
    let told = asker.ask(&["CONFIG", "GET", "proto-max-bulk-len"])?;
    let Value::Array(told) = told else { return Err(said(&told)) };
    let taken = told.get(1).and_then(|value| match value {
        Value::Bulk(bytes) => std::str::from_utf8(bytes).ok()?.parse::<usize>().ok(),
        _ => None,
    });
    Ok(taken.map_or(PIECE_BYTES, |taken| taken.clamp(1, PIECE_BYTES)))
}

/// Sees to it that the cluster holds what it may hold.
fn make_room(asker: &mut Asker<'_>, held: Held) -> Result<(), String> {
    let keys = keys_held(asker)?;
    match held {
        Held::Restored(1..) if keys == 0 => {
            Err("the cluster holds no keys: there is no restore to go on with".into())
        }
        Held::Refused if keys > 0 => {
            Err(format!("the cluster holds {keys} keys: --force deletes them before it restores"))
        }
        Held::Deleted if keys > 0 => match asker.ask(&["FLUSHALL"])? {
            Value::Simple(_) => Ok(()),
            other => Err(said(&other)),
        },
        _ => Ok(()),
    }
}

fn keys_held(asker: &mut Asker<'_>) -> Result<u64, String> {
    let mut held = 0;
    for table in 0..TABLES {
        // Together, for each connection begins at table 0.
        loop {
            let select = [b"SELECT".to_vec(), table.to_string().into_bytes()].to_vec();
            let why = match asker.ask_once(&[select, vec![b"DBSIZE".to_vec()]]) {
                Err(why) => why,
                Ok(answers) => match answers.as_slice() {
                    [Value::Simple(_), Value::Int(keys)] => {
                        held += keys.unsigned_abs();
                        asker.advanced();
                        break;
                    }
                    answers => passing(answers.iter())?,
                },
            };
            asker.wait(&why)?;
        }
    }
    Ok(held)
}

/// The error among answers that is worth another try.
///
/// # Errors
/// When there is one that is not.
fn passing<'a>(answers: impl Iterator<Item = &'a Value>) -> Result<String, String> {
    let mut why = String::new();
    for answer in answers {
        match answer {
            Value::Error(error) if passes(error) => why.clone_from(error),
            Value::Simple(_) | Value::Int(_) => {}
            other => return Err(said(other)),
        }
    }
    Ok(why)
}

/// The beginning of a key, as far as it can be shown.
fn show_key(key: &[u8]) -> String {
    const SHOWN_MAX: usize = 100;
    String::from_utf8_lossy(&key[..key.len().min(SHOWN_MAX)]).into_owned()
}

/// Writes keys, many at a time, all of one table.
struct Writer<'a> {
    asker: Asker<'a>,
    table: TableIndex,
    /// Writes that are not known to have been carried out.
    pending: Vec<Request>,
    bytes: usize,
    piece_bytes: usize,
    /// Items that are passed over: they are there already.
    skipped: u64,
    /// Items that are known to be there: all before this one.
    done: u64,
    keys: u64,
    told: Instant,
    /// Why nothing more is written.
    stopped: Option<String>,
}

/// The command that makes the item. `SET` does for most strings; one that clients would find encoded
/// in another way after it goes as it is encoded. Long ones are encoded in one way only.
fn write_of(item: &PagedItem<'_>) -> Request {
    let key = item.key.to_vec();
    if item.encoding == Encoding::Plain || item.content.len() > EMBEDDED_BYTES_MAX {
        let mut words = vec![b"SET".to_vec(), key, item.content.to_vec()];
        if let Some(Millis(expires)) = item.expires {
            words.extend([b"PXAT".to_vec(), expires.to_string().into_bytes()]);
        }
        return words;
    }
    let expires = item.expires.map_or(0, |Millis(expires)| expires);
    let payload = dump::encoded(item.encoding, item.content);
    let mut words = vec![b"RESTORE".to_vec(), key, expires.to_string().into_bytes(), payload];
    words.extend([b"ABSTTL".to_vec(), b"REPLACE".to_vec()]);
    words
}

/// The commands that make an item of this plain string. A node that was given up may carry one out
/// much later, also after those behind it: then it writes what is there already.
fn writes_in_pieces(item: &PagedItem<'_>, piece_bytes: usize) -> impl Iterator<Item = Request> {
    item.content.chunks(piece_bytes).enumerate().map(move |(index, piece)| {
        let offset = (index * piece_bytes).to_string().into_bytes();
        vec![b"SETRANGE".to_vec(), item.key.to_vec(), offset, piece.to_vec()]
    })
}

/// The command that makes an item expire, if it does. It comes last: a key that expired before would
/// begin anew with zeros.
fn expiry_of(item: &PagedItem<'_>) -> Option<Request> {
    let expires = item.expires?.0.to_string().into_bytes();
    Some(vec![b"PEXPIREAT".to_vec(), item.key.to_vec(), expires])
}

impl Writer<'_> {
    fn new(asker: Asker<'_>, done: u64, keys: u64, piece_bytes: usize) -> Writer<'_> {
        Writer {
            asker,
            table: TableIndex::default(),
            pending: Vec::new(),
            bytes: 0,
            piece_bytes,
            skipped: done,
            done,
            keys,
            told: Instant::now(),
            stopped: None,
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.stopped.take().map_or(Ok(()), Err)
    }

    fn put(&mut self, item: &PagedItem<'_>) {
        if self.skipped > 0 {
            self.skipped -= 1;
            return;
        }
        // A backup may tell of a moment that no command takes.
        let expires = item.expires.map(|at| at.clamp(Millis(1), Millis::LATEST));
        let item = &PagedItem { expires, ..*item };
        if self.table != item.table {
            self.settle();
            self.table = item.table;
        }
        if item.content.len() > self.piece_bytes {
            return self.put_in_pieces(item);
        }
        let words = write_of(item);
        self.bytes += words.iter().map(Vec::len).sum::<usize>();
        self.pending.push(words);
        if self.pending.len() >= WRITES_TOGETHER || self.bytes >= BYTES_TOGETHER {
            self.settle();
        }
    }

    fn put_in_pieces(&mut self, item: &PagedItem<'_>) {
        self.settle();
        for write in writes_in_pieces(item, self.piece_bytes).chain(expiry_of(item)) {
            self.pending.push(write);
            self.carry_out();
        }
        self.count(1);
    }

    /// Has everything carried out that was put.
    fn settle(&mut self) {
        let put = self.pending.len() as u64;
        self.carry_out();
        self.count(put);
    }

    fn carry_out(&mut self) {
        while !self.pending.is_empty() && self.stopped.is_none() {
            self.stopped = self.write().err();
        }
        self.pending.clear();
        self.bytes = 0;
    }

    /// So many more items are there.
    fn count(&mut self, put: u64) {
        if self.stopped.is_none() {
            self.done += put;
        }
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            output::tell(&format!("{} of {} keys restored", self.done, self.keys));
        }
    }

    /// Asks once for all that is pending, and keeps what was not carried out.
    fn write(&mut self) -> Result<(), String> {
        let mut requests = Vec::with_capacity(1 + self.pending.len());
        // Every time: the connection may be new.
        requests.push(vec![b"SELECT".to_vec(), self.table.index().to_string().into_bytes()]);
        requests.append(&mut self.pending);
        let answered = self.asker.ask_once(&requests);
        let mut writes = requests.drain(1..);
        let answers = match answered {
            Ok(answers) => answers,
            Err(lost) => {
                self.pending = writes.collect();
                return self.asker.wait(&lost);
            }
        };
        let mut answers = answers.iter();
        let selected = answers.next();
        // The first that is refused for good ends the restore: its key is told.
        let of_key = |why: String| {
            let refused = answers.clone().position(|answer| passing([answer].into_iter()).is_err());
            let key = refused.and_then(|at| writes.as_slice().get(at)?.get(1));
            key.map_or(why.clone(), |key| format!("key {:?}: {why}", show_key(key)))
        };
        let why = passing(selected.into_iter().chain(answers.clone())).map_err(of_key)?;
        let is_selected = matches!(selected, Some(Value::Simple(_)));
        for answer in answers {
            let write = writes.next();
            if !is_selected || !matches!(answer, Value::Simple(_) | Value::Int(_)) {
                self.pending.extend(write);
            }
        }
        drop(writes);
        match self.pending.is_empty() {
            true => {
                self.asker.advanced();
                Ok(())
            }
            false => self.asker.wait(&why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::admin::fake;
    use crate::cli::admin::manifest::image_name;
    use crate::store::tables::Access;
    use crate::store::tables::{Expires, KeyHasher, Tables};
    use std::collections::BTreeMap;
    use std::fs;
    use tempfile::TempDir;

    /// What the cluster takes for one argument: some values are longer.
    const TAKEN_BYTES: usize = 896;

    type Keys = BTreeMap<(u8, Vec<u8>), (Vec<u8>, Option<u64>)>;

    const KEYS: usize = 3_000;

    /// Longer than any machine is slow.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_long_value_is_made_piece_after_piece_and_expires_at_last() {
        let item = PagedItem {
            table: TableIndex::default(),
            key: b"k",
            encoding: Encoding::Plain,
            expires: Some(Millis(77)),
            content: b"abcdefgh",
            used: 0,
        };
        let writes: Vec<String> = writes_in_pieces(&item, 3)
            .chain(expiry_of(&item))
            .map(|words| words.iter().map(|word| String::from_utf8_lossy(word) + " ").collect())
            .collect();
        assert_eq!(
            writes,
            ["SETRANGE k 0 abc ", "SETRANGE k 3 def ", "SETRANGE k 6 gh ", "PEXPIREAT k 77 "],
            "none of them undoes another, however late it comes"
        );
    }

    /// A backup of three images, and what is in it.
    fn backup() -> (TempDir, Keys) {
        let folder = TempDir::new().unwrap();
        let mut keys = Keys::new();
        let image = |number: usize| {
            let mut tables = Tables::new(KeyHasher::new(1));
            for n in (0..KEYS).filter(|n| n % 3 == number) {
                let table = TableIndex::new((n % 2 * 5) as u8).unwrap();
                let (key, value) = (format!("key{n}").into_bytes(), vec![n as u8; n % 900]);
                let expires = (n % 10 == 0).then_some(Millis(1 << 42));
                let expiry = expires.map_or(Expires::Never, Expires::At);
                tables.begin(Millis(1), Access::Write);
                tables.put(table, tables.hasher().hash(&key), &key, &value, expiry);
                keys.insert((table.into(), key), (value, expires.map(|at| at.0)));
            }
            let token = tables.begin_backup(1).unwrap().token;
            let mut bytes = Vec::new();
            while let Some(piece @ [_, ..]) = tables.backup_piece(token, bytes.len() as u64) {
                bytes.extend_from_slice(piece);
            }
            let file = image_name(number);
            fs::write(folder.path().join(&file), bytes).unwrap();
            let Found { bytes, keys, crc32 } = inspect(&folder.path().join(&file)).unwrap();
            Image { file, bytes, keys, crc32 }
        };
        let manifest = Manifest::new("c", 1, (0..3).map(image).collect());
        manifest.write(folder.path()).unwrap();
        (folder, keys)
    }

    /// What becomes of a write at a node: whether it is carried out, and its reply. No reply: the
    /// connection ends. It is told the number of the connection, and of the write on it.
    type Mood = fn(usize, usize) -> (bool, Option<&'static str>);

    /// Restores into a cluster of this mood, which holds these keys and ends with those.
    fn restore_within(
        patience: Duration,
        dir: &Path,
        held: Held,
        mood: Mood,
        keys: &mut Keys,
    ) -> Result<(), String> {
        let (mut table, mut writes, mut latest) = (0, 0, 0);
        let mut answer = |connection: usize, words: &[Vec<u8>]| {
            if connection != latest {
                (table, writes, latest) = (0, 0, connection);
            }
            let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
            let reply = match words[0].as_slice() {
                b"SELECT" => {
                    table = text(1).parse().unwrap();
                    "+OK".to_owned()
                }
                b"DBSIZE" => format!(":{}", keys.keys().filter(|key| key.0 == table).count()),
                b"FLUSHALL" => {
                    keys.clear();
                    "+OK".to_owned()
                }
                b"CONFIG" => {
                    let taken = TAKEN_BYTES.to_string();
                    format!("*2\r\n$18\r\nproto-max-bulk-len\r\n${}\r\n{taken}", taken.len())
                }
                write => {
                    assert!(words.iter().all(|word| word.len() <= TAKEN_BYTES), "it is too long");
                    let (is_done, reply) = mood(connection, writes);
                    writes += 1;
                    let key = (table, words[1].clone());
                    match write {
                        _ if !is_done => {}
                        b"SET" => {
                            let expires = (words.len() == 5).then(|| text(4).parse().unwrap());
                            keys.insert(key, (words[2].clone(), expires));
                        }
                        b"SETRANGE" => {
                            let (at, piece) = (text(2).parse().unwrap(), &words[3]);
                            let (value, _) = keys.entry(key).or_default();
                            value.resize(value.len().max(at + piece.len()), 0);
                            value[at..at + piece.len()].copy_from_slice(piece);
                        }
                        b"PEXPIREAT" => {
                            let held = keys.get_mut(&key).expect("its value is there");
                            held.1 = Some(text(2).parse().unwrap());
                        }
                        other => panic!("{}", other.escape_ascii()),
                    }
                    reply?.to_owned()
                }
            };
            Some((reply + "\r\n").into_bytes())
        };
        fake::cluster(&mut answer, |cluster| {
            verify(dir).and_then(|backup| backup.put_back(cluster, held, patience))
        })
    }

    fn restore(dir: &Path, held: Held, mood: Mood, keys: &mut Keys) -> Result<(), String> {
        restore_within(PATIENCE, dir, held, mood, keys)
    }

    #[test]
    fn a_restore_puts_again_what_was_refused_or_lost() {
        let (folder, expected) = backup();
        let mood: Mood = |connection, write| match (connection, write) {
            (0, _) => (false, Some("-LOADING waiting for nodes 2")),
            (1, 50) => (true, None),
            (2, _) if write % 5 == 0 => (true, Some("-UNKNOWN the leader was lost")),
            (3, _) if write % 7 == 0 => (false, Some("-TRYAGAIN the leader has changed")),
            (4, 0) => (false, None),
            (5, _) if write % 2 == 0 => (false, Some("-CLUSTERDOWN no leader")),
            _ => (true, Some("+OK")),
        };
        let mut keys = Keys::new();
        restore(folder.path(), Held::Refused, mood, &mut keys).unwrap();
        assert!(keys == expected, "{} keys of {}", keys.len(), expected.len());
    }

    #[test]
    fn a_restore_that_ends_early_says_how_to_go_on() {
        let (folder, expected) = backup();
        let mut keys = Keys::new();
        let full: Mood = |_, write| match write {
            0..700 => (true, Some("+OK")),
            _ => (false, Some("-OOM command not allowed")),
        };
        let why = restore(folder.path(), Held::Refused, full, &mut keys).unwrap_err();
        let (said, from) = why.rsplit_once(" --from ").unwrap();
        let from: u64 = from.parse().unwrap();
        assert!(said.starts_with("key \"key"), "{why}");
        assert!(said.contains(": OOM command not allowed; "), "{why}");
        assert!(said.contains(&format!("{from} of 3000 keys are restored")), "{why}");
        assert!((1..=700).contains(&from), "{why}");
        let well: Mood = |_, _| (true, Some("+OK"));
        // Not by oversight into what is there already.
        let refused = restore(folder.path(), Held::Refused, well, &mut keys).unwrap_err();
        assert!(refused.contains("--force"), "{refused}");
        let before = keys.len() as u64;
        restore(folder.path(), Held::Restored(from), well, &mut keys).unwrap();
        assert!(keys == expected && before >= from);

        // Nothing is there of what it is to go on from.
        let lost = restore(folder.path(), Held::Restored(1), well, &mut Keys::new()).unwrap_err();
        assert!(lost.contains("no keys"), "{lost}");
        let far = restore(folder.path(), Held::Restored(3001), well, &mut keys).unwrap_err();
        assert!(far.contains("3000 keys"), "{far}");
    }

    #[test]
    fn a_restore_does_not_try_for_ever() {
        let (folder, _) = backup();
        let mut keys = Keys::new();
        let never: Mood = |_, _| (false, Some("-CLUSTERDOWN partition 3 has no leader"));
        let (dir, held) = (folder.path(), Held::Refused);
        let why = restore_within(Duration::ZERO, dir, held, never, &mut keys).unwrap_err();
        assert!(why.starts_with("CLUSTERDOWN partition 3 has no leader (after"), "{why}");
        assert!(why.contains("; 0 of 3000 keys are restored"), "{why}");
    }

    #[test]
    fn a_damaged_backup_deletes_nothing() {
        let (folder, expected) = backup();
        let path = folder.path().join(image_name(1));
        let sound = fs::read(&path).unwrap();
        let well: Mood = |_, _| (true, Some("+OK"));
        let mut keys = expected.clone();
        for at in [0, 4, 6, sound.len() / 2, sound.len() - 1] {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let why = restore(folder.path(), Held::Deleted, well, &mut keys).unwrap_err();
            assert!(why.contains("partition-0001.image is damaged"), "{at}: {why}");
            assert!(keys == expected, "{at}");
        }
        fs::write(&path, sound).unwrap();
        keys.insert((3, b"other".to_vec()), (Vec::new(), None));
        restore(folder.path(), Held::Deleted, well, &mut keys).unwrap();
        assert!(keys == expected);
    }
}
