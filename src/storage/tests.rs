//! Golden scripts: the life of a log as a story.
//!
//! `write` appends records as one batch, in words: `1/5/x` is entry 5 of partition 1, `1/term/2` its
//! state, and so `1/covered/5` and `1/reset/9`. `look` shows what the segments hold, `open` what a start
//! finds. `flip`, `tear`, `remove` damage a segment at a byte.

use super::faulty::FaultyDisk;
use super::segment::{self, FIRST_BATCH};
use super::*;
use crate::error::{Error, Result};
use crate::ids::{NodeId, PartitionId};
use goldenscript::{Command, Context, Runner};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DIR: &str = "/log";

struct Script {
    disk: FaultyDisk,
    log: Option<SegmentLog<FaultyDisk>>,
}

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Outcome<String> {
        let mut args = command.consume_args();
        let mut out = String::new();
        match command.name.as_str() {
            "open" => {
                self.log = None;
                self.disk.kill();
                match self.open() {
                    Ok(recovered) => show(&recovered, &mut out)?,
                    Err(error) => writeln!(out, "refused: {error}")?,
                }
            }
            "write" => {
                let mut records = Records::default();
                while let Some(word) = args.next_pos() {
                    read(word, &mut records)?;
                }
                self.log()?.write(&records)?;
            }
            "sync" => self.log()?.sync()?,
            "finish" => self.log()?.finish()?,
            "collect" => {
                let collected = self.log()?.collect()?;
                let dropped = usize::from(collected.dropped);
                writeln!(out, "{dropped} dropped, {} copied", collected.copied)?;
                for (group, count) in collected.held_by {
                    writeln!(out, "partition {group} needs {count}")?;
                }
            }
            "look" => self.look(&mut out)?,
            "flip" | "tear" => {
                let number = parse(args.next_pos())?;
                let at: usize = parse(args.next_pos())?;
                let path = segment::path(Path::new(DIR), number);
                let mut bytes = self.disk.bytes_of(&path).ok_or("no such segment")?;
                match command.name.as_str() {
                    "flip" => bytes[at] ^= 1,
                    _ => bytes[at..].fill(0),
                }
                self.disk.put(&path, &bytes);
            }
            "remove" => {
                let number = parse(args.next_pos())?;
                self.disk.remove(&segment::path(Path::new(DIR), number))?;
            }
            other => return Err(format!("no command {other}").into()),
        }
        args.reject_next()?;
        Ok(out)
    }
}

impl Script {
    fn open(&mut self) -> Result<Recovered> {
        let owner = Identity { cluster: "test".into(), node: NodeId(1) };
        let bytes = 8 << 10;
        let options = Options {
            segment_bytes: bytes,
            step_bytes: bytes,
            retain_bytes: 2 * bytes,
            ..Options::new(owner)
        };
        let (log, recovered) = SegmentLog::open(self.disk.clone(), Path::new(DIR), options)?;
        self.log = Some(log);
        Ok(recovered)
    }

    fn log(&mut self) -> Outcome<&mut SegmentLog<FaultyDisk>> {
        self.log.as_mut().ok_or("open the log first".into())
    }

    fn look(&self, out: &mut String) -> Outcome<()> {
        for path in self.disk.files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(number) = segment::number(&name) else {
                writeln!(out, "{name}")?;
                continue;
            };
            let bytes = self.disk.bytes_of(&path).unwrap_or_default();
            writeln!(out, "{name}")?;
            for batch in segment::search(&bytes, number, FIRST_BATCH) {
                let (from, to) = (batch.offset, batch.offset + batch.bytes());
                write!(out, "  {from}..{to} synced {} oldest {}:", batch.synced, batch.oldest)?;
                for record in record::records(batch.body) {
                    let record = record.map_err(|at| format!("no record at {at}"))?;
                    let payload = payload(record.payload);
                    let (group, kind, index) = (record.group, record.kind, record.index);
                    let kind = format!("{kind:?}").to_lowercase();
                    write!(out, " {group}/{kind}/{index}{payload}")?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

fn payload(bytes: &[u8]) -> String {
    match bytes.len() {
        0 => String::new(),
        1..9 => format!("/{}", String::from_utf8_lossy(bytes)),
        length => format!("/{length} bytes"),
    }
}

fn show(recovered: &Recovered, out: &mut String) -> std::fmt::Result {
    if let Some(torn) = &recovered.torn {
        writeln!(out, "{torn} ({} bytes)", torn.bytes)?;
    }
    let Recovered { records, bytes, segments, .. } = recovered;
    writeln!(out, "{records} records, {bytes} bytes, {segments} segments")?;
    for (group, log) in &recovered.groups {
        let state = log.state.as_deref().map(payload).unwrap_or_default();
        write!(out, "partition {group}: term{state} covered/{}", log.covered)?;
        for (index, entry) in &log.entries {
            write!(out, " {index}{}", payload(entry))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// `1/5/x`, `1/term/2`, `1/covered/5`, `1/reset/9`; `1/5/x/700` is an entry of 700 bytes.
fn read(word: &str, records: &mut Records) -> Outcome<()> {
    let mut parts = word.split('/');
    let group = PartitionId(parse(parts.next())?);
    let what = parts.next().ok_or("partition/what/value")?;
    match what {
        "term" => records.state(group, parts.next().unwrap_or_default().as_bytes()),
        "covered" => records.covered(group, parse(parts.next())?),
        "reset" => records.reset(group, parse(parts.next())?),
        index => {
            let text = parts.next().unwrap_or_default();
            let payload = text.repeat(parse(parts.next().or(Some("1")))?);
            records.entry(group, parse(Some(index))?, &[payload.as_bytes()]);
        }
    }
    Ok(())
}

fn parse<T: FromStr<Err: std::error::Error + 'static>>(word: Option<&str>) -> Outcome<T> {
    Ok(word.ok_or("an argument is missing")?.parse()?)
}

#[test]
fn scripts() {
    let folder = PathBuf::from("tests/scripts/storage");
    for script in ["truncation", "torn_tail", "damage", "collection"] {
        let mut runner = Script { disk: FaultyDisk::new(0), log: None };
        goldenscript::run(&mut runner, folder.join(script)).expect(script);
    }
}

#[test]
fn errors_name_what_an_operator_looks_for() {
    let file = PathBuf::from("/log/0000000001.log");
    let corrupt = Error::Corrupt(crate::error::Corrupt {
        file: file.clone(),
        offset: 4096,
        problem: "a reason".into(),
    });
    assert_eq!(corrupt.to_string(), "/log/0000000001.log is damaged at byte 4096: a reason");
    let cause = std::io::Error::other("no space");
    let full = Error::Full(crate::error::Full { file, needed: 12, cause });
    assert_eq!(full.to_string(), "no room for 12 more bytes of /log/0000000001.log: no space");
}
