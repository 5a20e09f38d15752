//! The manifest: what makes a directory of images a backup.
//!
//! It names every image, with its length, its keys and its checksum, and has a checksum of its own:
//! an entry that is lost or changed is noticed like a byte of an image.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The layout of the files.
const VERSION: u32 = 2;

/// Its file.
pub(super) const MANIFEST: &str = "manifest.json";

/// Its file while it is written.
const UNFINISHED: &str = "manifest.json.new";

/// A longer one is not read: an image takes about a hundred bytes of it.
const BYTES_MAX: u64 = 64 << 20;

/// How the name of an image ends.
const IMAGE: &str = ".image";

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The cluster's name.
    pub cluster: String,
    /// When it was made, as Unix time in ms.
    pub taken_at_ms: u64,
    /// The keys of all images.
    pub keys: u64,
    /// The bytes of all images.
    pub bytes: u64,
    /// The images, by number.
    pub images: Vec<Image>,
}

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    /// Its file, beside the manifest.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its keys.
    pub keys: u64,
    /// Its checksum.
    pub crc32: u32,
}

/// The manifest as its file has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    version: u32,
    /// Of the manifest as JSON without spaces.
    crc32: u32,
    backup: Manifest,
}

/// The name of an image's file.
pub(super) fn image_name(number: usize) -> String {
    format!("partition-{number:04}{IMAGE}")
}

impl Manifest {
    /// The manifest of these images.
    pub(super) fn new(cluster: &str, taken_at_ms: u64, images: Vec<Image>) -> Manifest {
        let keys = images.iter().map(|image| image.keys).sum();
        let bytes = images.iter().map(|image| image.bytes).sum();
        Manifest { cluster: cluster.to_owned(), taken_at_ms, keys, bytes, images }
    }

    /// Writes it, so that it is there as a whole or not at all, whatever happens.
    pub(super) fn write(&self, dir: &Path) -> Result<(), String> {
        let crc32 = self.checksum()?;
        let sealed = Sealed { version: VERSION, crc32, backup: self.clone() };
        let text = serde_json::to_vec_pretty(&sealed).map_err(|error| error.to_string())?;
        let (unfinished, path) = (dir.join(UNFINISHED), dir.join(MANIFEST));
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            // The names of the images are there before the name that makes them a backup.
            File::open(dir)?.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
    }

    /// Reads and checks it. Its images are looked at by name only.
    pub(super) fn read(dir: &Path) -> Result<Manifest, String> {
        let path = dir.join(MANIFEST);
        let damaged = |why: &str| format!("{} is damaged: {why}", path.display());
        let unfinished =
            |error: std::io::Error| format!("{}: {error}: not a finished backup", path.display());
        let length = fs::metadata(&path).map_err(unfinished)?.len();
        if length > BYTES_MAX {
            return Err(damaged("it is too long"));
        }
        let text = fs::read(&path).map_err(unfinished)?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
        match json["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                let path = path.display();
                return Err(format!("{path}: version {version}, where {VERSION} can be read"));
            }
            None => return Err(damaged("it has no version")),
        }
        let sealed: Sealed =
            serde_json::from_value(json).map_err(|error| damaged(&error.to_string()))?;
        let manifest = sealed.backup;
        if manifest.checksum()? != sealed.crc32 {
            return Err(damaged("its checksum differs"));
        }
        manifest.check().map_err(|why| damaged(&why))?;
        manifest.check_directory(dir)?;
        Ok(manifest)
    }

    fn checksum(&self) -> Result<u32, String> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        Ok(crc32fast::hash(&text))
    }

    /// Whether it agrees with itself.
    fn check(&self) -> Result<(), String> {
        if self.images.is_empty() {
            return Err("it has no images".into());
        }
        for (number, image) in self.images.iter().enumerate() {
            let name = image_name(number);
            // No other name is ever written, so no path leads out of the directory.
            if image.file != name {
                return Err(format!("it has '{}' in the place of {name}", image.file));
            }
        }
        let whole = Manifest::new(&self.cluster, self.taken_at_ms, self.images.clone());
        match whole == *self {
            true => Ok(()),
            false => Err("its sums differ from its images".into()),
        }
    }

    /// Whether its images, and no others, are there.
    fn check_directory(&self, dir: &Path) -> Result<(), String> {
        for image in &self.images {
            let path = dir.join(&image.file);
            let length = fs::metadata(&path)
                .map_err(|error| format!("{} is missing: {error}", path.display()))?
                .len();
            if length != image.bytes {
                let (path, bytes) = (path.display(), image.bytes);
                return Err(format!("{path} is damaged: {length} bytes of {bytes}"));
            }
        }
        let problem = |error: std::io::Error| format!("{}: {error}", dir.display());
        for entry in fs::read_dir(dir).map_err(problem)? {
            let path = entry.map_err(problem)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(IMAGE) && !self.images.iter().any(|image| image.file == name) {
                return Err(format!("{} is not of this backup", path.display()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A backup whose images are of two bytes each.
    fn written() -> (TempDir, Manifest) {
        let folder = TempDir::new().unwrap();
        let image = |number: usize| {
            let file = image_name(number);
            fs::write(folder.path().join(&file), b"ab").unwrap();
            Image { file, bytes: 2, keys: 7, crc32: 9 }
        };
        let manifest = Manifest::new("c", 5, (0..3).map(image).collect());
        manifest.write(folder.path()).unwrap();
        (folder, manifest)
    }

    #[track_caller]
    fn refused(folder: &TempDir, word: &str) {
        let error = Manifest::read(folder.path()).unwrap_err();
        assert!(error.contains(word), "{word} in {error}");
    }

    /// Changes the manifest's text; with its checksum made right again, if `sealed`.
    fn change(folder: &TempDir, sealed: bool, change: impl FnOnce(&mut serde_json::Value)) {
        let path = folder.path().join(MANIFEST);
        let mut json: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json["backup"]);
        if sealed {
            let backup: Manifest = serde_json::from_value(json["backup"].clone()).unwrap();
            json["crc32"] = backup.checksum().unwrap().into();
        }
        fs::write(path, json.to_string()).unwrap();
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let (folder, manifest) = written();
        assert_eq!((manifest.keys, manifest.bytes), (21, 6));
        assert_eq!(Manifest::read(folder.path()), Ok(manifest));
        assert!(!folder.path().join(UNFINISHED).exists());
        // Spaces are no damage.
        change(&folder, false, |_| ());
        assert!(Manifest::read(folder.path()).is_ok());
    }

    #[test]
    fn a_manifest_that_was_changed_is_refused() {
        let images = |backup: &mut serde_json::Value| -> Vec<serde_json::Value> {
            backup["images"].as_array().unwrap().clone()
        };
        let (folder, _) = written();
        change(&folder, false, |backup| backup["images"] = Vec::<u8>::new().into());
        refused(&folder, "checksum");
        change(&folder, true, |_| ());
        refused(&folder, "no images");

        for (left_out, word) in [(0, "in the place of"), (1, "in the place of"), (2, "sums")] {
            let (folder, _) = written();
            let without = |backup: &mut serde_json::Value| {
                let mut images = images(backup);
                images.remove(left_out);
                backup["images"] = images.into();
            };
            change(&folder, false, without);
            refused(&folder, "checksum");
            change(&folder, true, |_| ());
            refused(&folder, word);
        }

        for name in ["../partition-0000.image", "/etc/passwd", "a/b", "..", "", "other.image"] {
            let (folder, _) = written();
            change(&folder, true, |backup| backup["images"][0]["file"] = name.into());
            refused(&folder, "in the place of");
        }
        for field in ["keys", "bytes"] {
            let (folder, _) = written();
            change(&folder, true, |backup| backup[field] = 1.into());
            refused(&folder, "sums");
        }
        let (folder, _) = written();
        change(&folder, false, |backup| backup["more"] = 1.into());
        refused(&folder, "more");
    }

    #[test]
    fn images_are_all_there_and_no_others() {
        let (folder, _) = written();
        let path = |number| folder.path().join(image_name(number));
        fs::write(path(3), b"ab").unwrap();
        refused(&folder, "partition-0003.image is not of this backup");
        fs::remove_file(path(3)).unwrap();
        fs::write(path(1), b"a").unwrap();
        refused(&folder, "partition-0001.image is damaged: 1 bytes of 2");
        fs::remove_file(path(1)).unwrap();
        refused(&folder, "partition-0001.image is missing");
        fs::remove_file(folder.path().join(MANIFEST)).unwrap();
        refused(&folder, "not a finished backup");
    }

    #[test]
    fn an_earlier_version_is_told_by_its_number() {
        let folder = TempDir::new().unwrap();
        let text = r#"{"version": 1, "cluster": "c", "taken_at_ms": 1, "keys": 0, "images": []}"#;
        fs::write(folder.path().join(MANIFEST), text).unwrap();
        refused(&folder, "version 1, where 2 can be read");
    }
}
