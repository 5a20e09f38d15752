//! Backups: all keys of a cluster at one moment, as files.
//!
//! `CLUSTER BACKUP` locks every partition, has each begin a copy of itself, and returns: that is the
//! moment. The copies are then pulled piece by piece while the cluster goes on serving, so neither
//! side ever holds more than pieces. A file a partition takes its image as it comes;
//! `manifest.json`, written last, is what makes the directory a backup.
//!
//! A copy is gone when its leader changes. Then the backup has no moment any more, and a new one is
//! begun.

use super::asker::{Asker, Request, passes};
use super::image::{Found, inspect};
use super::manifest::{Image, MANIFEST, Manifest, image_name};
use super::{Cluster, said, show};
use crate::cli::clock::wall_clock;
use crate::cli::output;
use crate::net::resp::Value;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Backups that are begun anew, because a copy was gone, at most.
const MOMENTS_MAX: u32 = 5;

/// Pieces that are asked for together: less than a megabyte of replies, which is less than any
/// sensible `limits.output_buffer`.
const PULLS_TOGETHER: usize = 3;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// Why a backup did not come about.
enum Failure {
    /// A copy is gone: another backup may succeed.
    Gone(String),
    /// There is nothing more to be done.
    Final(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure::Final(why)
    }
}

/// Takes a backup into a new directory.
pub(super) fn take(cluster: &Cluster, dir: &Path, patience: Duration) -> Result<(), String> {
    prepare(dir)?;
    let mut asker = Asker::new(cluster, patience);
    // No other process has it: how the map of this one is hashed is drawn by chance.
    let name = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    let mut moments = 1;
    let copied = loop {
        match copy(&mut asker, &name, dir) {
            Err(Failure::Gone(why)) if moments < MOMENTS_MAX => {
                output::tell(&format!("{why}; the backup is begun anew"));
                moments += 1;
            }
            Err(Failure::Gone(why)) => break Err(format!("{why} ({moments} backups begun)")),
            Err(Failure::Final(why)) => break Err(why),
            Ok(images) => break Ok(images),
        }
    };
    release(&mut asker, &name);
    let images = copied.inspect_err(|_| clear(dir))?;
    let manifest = Manifest::new(&cluster.name, wall_clock().0, images);
    manifest.write(dir)?;
    let (keys, files, cluster) = (manifest.keys, manifest.images.len(), &cluster.name);
    show(&format!(
        "backed up {keys} keys of cluster '{cluster}' in {files} files: {}",
        dir.display()
    ))
}

/// Makes the directory, which must not hold anything.
fn prepare(dir: &Path) -> Result<(), String> {
    let problem = |error: std::io::Error| format!("{}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(problem)?;
    if fs::read_dir(dir).map_err(problem)?.next().is_none() {
        // The directory's own name has to be there after a power cut, too.
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        return File::open(parent).and_then(|parent| parent.sync_all()).map_err(problem);
    }
    let what = match dir.join(MANIFEST).exists() || !dir.join(image_name(0)).exists() {
        true => "",
        false => " (it has a backup that was not finished)",
    };
    Err(format!("{} is not empty{what}: a backup takes a new directory", dir.display()))
}

/// Removes the images of a backup that has failed, so that it can be repeated.
fn clear(dir: &Path) {
    for number in 0.. {
        // What stays is no backup, for it has no manifest.
        if fs::remove_file(dir.join(image_name(number))).is_err() {
            return;
        }
    }
}

/// A partition's copy, as far as it is pulled.
struct Pull {
    number: usize,
    token: String,
    keys: u64,
    path: PathBuf,
    position: u64,
    is_whole: bool,
}

impl Pull {
    fn request(&self) -> Request {
        let (number, position) = (self.number.to_string(), self.position.to_string());
        request(&["CLUSTER", "IMAGE", &number, &self.token, &position])
    }

    /// Appends the next piece. The file is opened for it: there may be thousands of them.
    fn append(&mut self, piece: &[u8]) -> Result<(), String> {
        if piece.is_empty() {
            self.is_whole = true;
            return Ok(());
        }
        let append = || File::options().append(true).open(&self.path)?.write_all(piece);
        append().map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.position += piece.len() as u64;
        Ok(())
    }

    /// Has the file survive a power cut, and reads it back.
    fn finish(&self) -> Result<Image, String> {
        let path = self.path.display();
        File::open(&self.path)
            .and_then(|file| file.sync_all())
            .map_err(|error| format!("{path}: {error}"))?;
        let Found { bytes, keys, crc32 } = inspect(&self.path)?;
        match (bytes, keys) == (self.position, self.keys) {
            true => Ok(Image { file: image_name(self.number), bytes, keys, crc32 }),
            false => Err(format!("{path}: {keys} keys of {} in {bytes} bytes", self.keys)),
        }
    }
}

fn request(words: &[&str]) -> Request {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// Copies the cluster as of one moment.
fn copy(asker: &mut Asker<'_>, name: &str, dir: &Path) -> Result<Vec<Image>, Failure> {
    let mut pulls = begin(asker, name, dir)?;
    let keys: u64 = pulls.iter().map(|pull| pull.keys).sum();
    output::tell(&format!("backing up {keys} keys of {} partitions", pulls.len()));
    let mut told = Instant::now();
    // Round and round, so that no copy is left alone for long.
    while pulls.iter().any(|pull| !pull.is_whole) {
        let mut open: Vec<&mut Pull> = pulls.iter_mut().filter(|pull| !pull.is_whole).collect();
        for together in open.chunks_mut(PULLS_TOGETHER) {
            pull(asker, together)?;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            let bytes: u64 = pulls.iter().map(|pull| pull.position).sum();
            let (whole, all) = (pulls.iter().filter(|pull| pull.is_whole).count(), pulls.len());
            output::tell(&format!("{} MiB, {whole} of {all} partitions whole", bytes >> 20));
        }
    }
    Ok(pulls.iter().map(Pull::finish).collect::<Result<_, _>>()?)
}

/// Gives the copies up. Once: those that are not pulled are given up anyway.
fn release(asker: &mut Asker<'_>, name: &str) {
    let _ = asker.ask_once(&[request(&["CLUSTER", "RELEASE", name])]);
}

/// Begins the copies: of the moment at which this is answered, or just before.
fn begin(asker: &mut Asker<'_>, name: &str, dir: &Path) -> Result<Vec<Pull>, Failure> {
    let begin = [request(&["CLUSTER", "BACKUP", name])];
    let copies = loop {
        let why = match asker.ask_once(&begin).map(|answers| answers.into_iter().next()) {
            Ok(Some(Value::Array(copies))) => break copies,
            Ok(Some(Value::Error(error))) if passes(&error) => error,
            Ok(other) => return Err(Failure::Final(said(&other.unwrap_or(Value::Nil)))),
            Err(lost) => lost,
        };
        // Of two backups that wait for each other's copies, neither would ever begin.
        release(asker, name);
        asker.wait(&why)?;
    };
    asker.advanced();
    let mut pulls = Vec::new();
    for (number, copy) in copies.into_iter().enumerate() {
        let Value::Array(copy) = copy else { return Err(Failure::Final(said(&copy))) };
        let [Value::Bulk(token), Value::Int(keys)] = copy.as_slice() else {
            return Err(Failure::Final("an answer of the wrong kind".into()));
        };
        let token = String::from_utf8_lossy(token).into_owned();
        let (keys, path) = (keys.unsigned_abs(), dir.join(image_name(number)));
        // What an earlier moment left is of no use.
        File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        pulls.push(Pull { number, token, keys, path, position: 0, is_whole: false });
    }
    Ok(pulls)
}

/// Pulls a piece of each.
fn pull(asker: &mut Asker<'_>, pulls: &mut [&mut Pull]) -> Result<(), Failure> {
    let mut open: Vec<&mut &mut Pull> = pulls.iter_mut().collect();
    while !open.is_empty() {
        let requests: Vec<Request> = open.iter().map(|pull| pull.request()).collect();
        let mut why = None;
        match asker.ask_once(&requests) {
            // A lost piece is asked for again: the partition has it still.
            Err(lost) => why = Some(lost),
            Ok(answers) => {
                let mut left = Vec::new();
                for (pull, answer) in open.into_iter().zip(answers) {
                    match answer {
                        Value::Bulk(piece) => pull.append(&piece)?,
                        Value::Error(error) if error.starts_with("NOCOPY") => {
                            return Err(Failure::Gone(error));
                        }
                        Value::Error(error) if passes(&error) => {
                            why = Some(error);
                            left.push(pull);
                        }
                        other => return Err(Failure::Final(said(&other))),
                    }
                }
                open = left;
            }
        }
        match why {
            Some(why) => asker.wait(&why)?,
            None => asker.advanced(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::admin::fake;
    use crate::cli::admin::image::ImageFile;
    use crate::cli::admin::restore::verify;
    use crate::ids::{Incarnation, Millis, TableIndex};
    use crate::store::tables::Access;
    use crate::store::tables::{Begun, Expires, KeyHasher, Tables};
    use tempfile::TempDir;

    const KEYS: u64 = 4_000;

    /// Two partitions, whose values are all of one round.
    fn put_all(partitions: &mut [Tables; 2], round: u8) {
        for tables in partitions {
            for n in 0..KEYS {
                let key = format!("key{n}").into_bytes();
                let hash = tables.hasher().hash(&key);
                tables.begin(Millis(1), Access::Write);
                tables.put(TableIndex::default(), hash, &key, &[round; 300], Expires::Never);
            }
        }
    }

    /// What the cluster does to the n-th request for a piece.
    #[derive(Clone, Copy)]
    enum Mood {
        Well,
        /// The connection ends before, or after, it is carried out.
        CutBefore,
        CutAfter,
        Refused(&'static str),
        /// The partition's leader changes.
        Deposed,
    }

    /// Longer than any machine is slow.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Backs up a cluster that does so: what came of it, and what was begun and released.
    fn back_up(
        patience: Duration,
        dir: &Path,
        mood: fn(u64) -> Mood,
    ) -> (Result<(), String>, Vec<&'static str>) {
        let mut partitions = [7, 8].map(|seed| Tables::new(KeyHasher::new(seed)));
        put_all(&mut partitions, 0);
        let (mut pieces, mut round, mut log) = (0, 0, Vec::new());
        let mut answer = |_: usize, words: &[Vec<u8>]| {
            let text = |at: usize| String::from_utf8_lossy(&words[at]).into_owned();
            let hex = |at: usize| u64::from_str_radix(&text(at), 16).unwrap();
            match text(1).as_str() {
                "BACKUP" => {
                    log.push("begun");
                    let mut reply = "*2\r\n".to_owned();
                    for tables in &mut partitions {
                        let Begun { token, items } = tables.begin_backup(hex(2)).unwrap();
                        reply += &format!("*2\r\n$16\r\n{token:016x}\r\n:{items}\r\n");
                    }
                    // Everything changes after the moment.
                    round += 1;
                    put_all(&mut partitions, round);
                    Some(reply.into_bytes())
                }
                "IMAGE" => {
                    pieces += 1;
                    let number: usize = text(2).parse().unwrap();
                    let tables = &mut partitions[number];
                    let mood = mood(pieces);
                    match mood {
                        Mood::CutBefore => return None,
                        Mood::Refused(error) => return Some(format!("-{error}\r\n").into_bytes()),
                        Mood::Deposed => tables.backups_from(Incarnation(pieces)),
                        Mood::Well | Mood::CutAfter => {}
                    }
                    let piece = tables.backup_piece(hex(3), text(4).parse().unwrap());
                    let Some(piece) = piece else { return Some(b"-NOCOPY gone\r\n".to_vec()) };
                    let head = format!("${}\r\n", piece.len());
                    let reply = [head.as_bytes(), piece, b"\r\n"].concat();
                    (!matches!(mood, Mood::CutAfter)).then_some(reply)
                }
                "RELEASE" => {
                    log.push("released");
                    partitions.iter_mut().for_each(|tables| tables.release_backup(hex(2)));
                    Some(b"+OK\r\n".to_vec())
                }
                other => panic!("{other}"),
            }
        };
        let taken = fake::cluster(&mut answer, |cluster| take(cluster, dir, patience));
        assert!(partitions.iter().all(|tables| tables.backup_backlog() == 0), "all is released");
        (taken, log)
    }

    /// The rounds of which the backup has values.
    fn rounds(dir: &Path) -> Vec<u8> {
        assert!(verify(dir).is_ok());
        let mut rounds = Vec::new();
        for number in 0..2 {
            let mut reader = ImageFile::open(&dir.join(image_name(number))).unwrap();
            while reader.next(&mut |item| rounds.extend_from_slice(item.content)).unwrap() {}
        }
        assert_eq!(rounds.len() as u64, 2 * 300 * KEYS);
        rounds.dedup();
        rounds
    }

    #[test]
    fn pieces_that_are_lost_or_refused_are_pulled_again() {
        let folder = TempDir::new().unwrap();
        let (taken, log) = back_up(PATIENCE, folder.path(), |piece| match piece {
            2 => Mood::CutBefore,
            4 => Mood::CutAfter,
            5 => Mood::Refused("CLUSTERDOWN partition 1 has no leader"),
            6 => Mood::Refused("TRYAGAIN not now"),
            _ => Mood::Well,
        });
        assert_eq!((taken, log), (Ok(()), vec!["begun", "released"]));
        assert_eq!(rounds(folder.path()), [0]);
    }

    #[test]
    fn a_backup_that_lost_a_copy_is_begun_anew_at_another_moment() {
        let folder = TempDir::new().unwrap();
        let (taken, log) = back_up(PATIENCE, folder.path(), |piece| match piece {
            3 | 6 => Mood::Deposed,
            _ => Mood::Well,
        });
        assert_eq!((taken, log), (Ok(()), vec!["begun", "begun", "begun", "released"]));
        assert_eq!(rounds(folder.path()), [2]);
    }

    #[test]
    fn a_backup_that_fails_leaves_nothing_behind() {
        for (mood, words) in [
            ((|_| Mood::Deposed) as fn(u64) -> Mood, "NOCOPY gone (5 backups begun)"),
            (|_| Mood::Refused("CLUSTERDOWN no leader"), "CLUSTERDOWN no leader (after"),
            (|_| Mood::Refused("ERR what is this"), "ERR what is this"),
        ] {
            let folder = TempDir::new().unwrap();
            let (taken, _) = back_up(Duration::ZERO, folder.path(), mood);
            let why = taken.unwrap_err();
            assert!(why.starts_with(words), "{why}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
