//! Backups: all keys at one moment, as files.
//!
//! `CLUSTER IMAGE` is a transaction that reads and locks every partition, so what it gives is one
//! state of the whole cluster; while it is copied (in the memory of the node asked, too), writers
//! wait. A file a partition holds the image as it came; `manifest.json` is written last and has the
//! length and the checksum of each, so a backup without one was not finished.
//!
//! Nothing in a backup says where a key lay: it is put back by ordinary writes, and lies where the
//! new cluster has it.

use super::{ask, said, show};
use crate::cli::client::link::Link;
use crate::cli::run::wall_clock;
use crate::command::ImageRecord;
use crate::net::resp::Value;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The layout of the files.
const VERSION: u32 = 1;

/// The file that makes a backup whole.
const MANIFEST: &str = "manifest.json";

/// Writes under way while a backup is put back.
const WRITES_UNDER_WAY: usize = 512;

/// Bytes of them.
const BYTES_UNDER_WAY: usize = 1 << 20;

/// The tables of a cluster.
const TABLES: usize = crate::ids::TABLES;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    cluster: String,
    taken_at_ms: u64,
    keys: u64,
    images: Vec<Image>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Image {
    file: String,
    bytes: u64,
    keys: u64,
    crc32: u32,
}

/// Takes a backup into a new directory.
pub(super) fn take(link: &mut Link, cluster: &str, dir: &Path) -> Result<(), String> {
    let problem = |error: std::io::Error| format!("{}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(problem)?;
    if fs::read_dir(dir).map_err(problem)?.next().is_some() {
        return Err(format!("{} is not empty: a backup takes a new directory", dir.display()));
    }
    let images = match ask(link, &["CLUSTER", "IMAGE"])? {
        Value::Array(images) => images,
        other => return Err(said(&other)),
    };
    let mut manifest = Manifest {
        version: VERSION,
        cluster: cluster.to_owned(),
        taken_at_ms: wall_clock().0,
        keys: 0,
        images: Vec::new(),
    };
    for (number, image) in images.into_iter().enumerate() {
        let Value::Bulk(image) = image else { return Err(said(&image)) };
        let file = format!("partition-{number:04}.image");
        let keys = count(&image).ok_or("an image came damaged")?;
        write(&dir.join(&file), &image)?;
        manifest.keys += keys;
        let (bytes, crc32) = (image.len() as u64, crc32fast::hash(&image));
        manifest.images.push(Image { file, bytes, keys, crc32 });
    }
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| error.to_string())?;
    write(&dir.join(MANIFEST), &text)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(problem)?;
    let (keys, files) = (manifest.keys, manifest.images.len());
    show(&format!(
        "backed up {keys} keys of cluster '{cluster}' in {files} files: {}",
        dir.display()
    ))
}

/// Puts a backup's keys into the cluster.
pub(super) fn put_back(link: &mut Link, dir: &Path, force: bool) -> Result<(), String> {
    // All of it is looked at before anything is changed.
    let (manifest, images) = read(dir)?;
    let held = keys_held(link)?;
    match (held, force) {
        (0, _) => {}
        (_, true) => match ask(link, &["FLUSHALL"])? {
            Value::Simple(_) => {}
            other => return Err(said(&other)),
        },
        (held, false) => {
            return Err(format!(
                "the cluster holds {held} keys: --force deletes them before it restores"
            ));
        }
    }
    let mut writer = Writer { link, table: None, owed: 0, bytes: 0 };
    let mut records: Vec<ImageRecord<'_>> = Vec::new();
    for image in &images {
        let mut rest = image.as_slice();
        while let Some(record) = ImageRecord::take(&mut rest) {
            records.push(record);
        }
    }
    // A table at a time: SELECT is a round of its own.
    records.sort_by_key(|record| record.table);
    for record in &records {
        writer.put(record)?;
    }
    writer.settle()?;
    let (keys, cluster) = (manifest.keys, &manifest.cluster);
    show(&format!("restored {keys} keys of cluster '{cluster}' from {}", dir.display()))
}

/// Reads a backup and checks it against its manifest.
fn read(dir: &Path) -> Result<(Manifest, Vec<Vec<u8>>), String> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path)
        .map_err(|error| format!("{}: {error}: not a finished backup", path.display()))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    if manifest.version != VERSION {
        let (path, version) = (path.display(), manifest.version);
        return Err(format!("{path}: version {version}, where {VERSION} can be read"));
    }
    let mut images = Vec::new();
    for image in &manifest.images {
        let path = dir.join(&image.file);
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let sound = bytes.len() as u64 == image.bytes
            && crc32fast::hash(&bytes) == image.crc32
            && count(&bytes) == Some(image.keys);
        if !sound {
            return Err(format!("{} is damaged: its checksum differs", path.display()));
        }
        images.push(bytes);
    }
    Ok((manifest, images))
}

fn keys_held(link: &mut Link) -> Result<i64, String> {
    let mut held = 0;
    for table in 0..TABLES {
        ask(link, &["SELECT", &table.to_string()])?;
        match ask(link, &["DBSIZE"])? {
            Value::Int(keys) => held += keys,
            other => return Err(said(&other)),
        }
    }
    Ok(held)
}

/// Writes keys, many at a time.
struct Writer<'a> {
    link: &'a mut Link,
    table: Option<u8>,
    /// Replies that have not come.
    owed: usize,
    bytes: usize,
}

impl Writer<'_> {
    fn put(&mut self, record: &ImageRecord<'_>) -> Result<(), String> {
        if self.table != Some(record.table) {
            self.table = Some(record.table);
            self.send(vec![b"SELECT".to_vec(), record.table.to_string().into_bytes()])?;
        }
        let mut words = vec![b"SET".to_vec(), record.key.to_vec(), record.value.to_vec()];
        if let Some(expires) = record.expires {
            words.extend([b"PXAT".to_vec(), expires.to_string().into_bytes()]);
        }
        self.send(words)
    }

    fn send(&mut self, words: Vec<Vec<u8>>) -> Result<(), String> {
        self.bytes += words.iter().map(Vec::len).sum::<usize>();
        self.link.send(&words).map_err(|error| error.to_string())?;
        self.owed += 1;
        match self.owed >= WRITES_UNDER_WAY || self.bytes >= BYTES_UNDER_WAY {
            true => self.settle(),
            false => Ok(()),
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        while self.owed > 0 {
            match self.link.receive().map_err(|error| error.to_string())? {
                Value::Simple(_) => self.owed -= 1,
                other => return Err(format!("{}: the restore is not complete", said(&other))),
            }
        }
        self.bytes = 0;
        Ok(())
    }
}

/// How many records an image has, if it is whole.
fn count(mut image: &[u8]) -> Option<u64> {
    let mut keys = 0;
    while !image.is_empty() {
        ImageRecord::take(&mut image)?;
        keys += 1;
    }
    Some(keys)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut image = vec![3];
        image.extend_from_slice(&77u64.to_le_bytes());
        image.extend_from_slice(&(key.len() as u32).to_le_bytes());
        image.extend_from_slice(&(value.len() as u32).to_le_bytes());
        image.extend_from_slice(key);
        image.extend_from_slice(value);
        image
    }

    #[test]
    fn images_are_read_whole_or_not_at_all() {
        let image = [record(b"a", b"one"), record(b"", b""), record(b"key", &[0; 300])].concat();
        assert_eq!(count(&image), Some(3));
        let mut rest = image.as_slice();
        let first = ImageRecord::take(&mut rest);
        let expected = ImageRecord { table: 3, expires: Some(77), key: b"a", value: b"one" };
        assert_eq!(first, Some(expected));
        for cut in (1..image.len()).filter(|cut| ![21, 38].contains(cut)) {
            assert_eq!(count(&image[..cut]), None, "{cut}");
        }
    }
}
