//! The settings that `CONFIG` reads and writes, a row a setting.
//!
//! Each node has its own, begun from `cluster.yaml` and lost with the process: the file is the
//! same on all nodes, so no node rewrites it. `CONFIG SET` takes what acts here (limits, slow log,
//! latency monitor) and what cannot hurt because nothing here depends on it (thresholds of
//! encodings, for instance). What would promise something that is not there (a log on disk, a
//! password) can only be set to what it is.

use super::glob;
use crate::store::number::parse_int;
use std::collections::BTreeMap;

/// What a setting may be.
#[derive(Clone, Copy, Debug)]
enum SettingKind {
    /// A whole number.
    Number(i64, i64),
    /// A number of bytes, perhaps with a unit.
    Bytes(i64, i64),
    /// `yes` or `no`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Points in time at which Redis would save: pairs of numbers.
    Saves,
    /// Any text.
    Text,
    /// What Redis takes for it, up to a number that is the most there can be here.
    UpTo(&'static SettingKind, i64),
    /// What it is, for this reason; anything else that Redis would take is refused for it.
    Fixed(&'static str, &'static SettingKind),
    /// What it is since the node started.
    Immutable,
}

use SettingKind::{Bytes, Fixed, Immutable, Number, Saves, Switch, Text, UpTo, Word};

const INT: i64 = i32::MAX as i64;
const NO_DISK: &str = "nothing is written to disk";
const NO_PASSWORDS: &str = "there are no passwords";
const NO_REPLICAS: &str = "there are no replicas of Redis's kind";
const NO_EVENTS: &str = "key space events are not published";
const NO_EVICTION: &str = "keys are not evicted";
const IN_FILE: &str = "it is set in cluster.yaml";

/// Redis's ways to evict keys.
const POLICIES: &[&str] = &[
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "noeviction",
];

/// Name, value at first, what it may be.
const ROWS: &[(&str, &str, SettingKind)] = &[
    ("activedefrag", "no", Fixed("there is nothing to defragment", &Switch)),
    ("activerehashing", "yes", Switch),
    ("appendfsync", "everysec", Fixed(NO_DISK, &Word(&["everysec", "always", "no"]))),
    ("appendonly", "no", Fixed(NO_DISK, &Switch)),
    ("bind", "", Immutable),
    ("busy-reply-threshold", "5000", Number(0, i64::MAX)),
    ("client-query-buffer-limit", "1073741824", UpTo(&Bytes(1 << 20, i64::MAX), 1 << 30)),
    ("cluster-enabled", "no", Immutable),
    ("databases", "16", Immutable),
    ("dbfilename", "dump.rdb", Fixed(NO_DISK, &Text)),
    ("dir", "", Fixed(NO_DISK, &Text)),
    ("dynamic-hz", "yes", Switch),
    ("hash-max-listpack-entries", "512", Number(0, i64::MAX)),
    ("hash-max-listpack-value", "64", Bytes(0, i64::MAX)),
    ("hash-max-ziplist-entries", "512", Number(0, i64::MAX)),
    ("hash-max-ziplist-value", "64", Bytes(0, i64::MAX)),
    ("hll-sparse-max-bytes", "3000", Bytes(0, i64::MAX)),
    ("hz", "10", Number(0, INT)),
    ("io-threads", "1", Immutable),
    ("latency-monitor-threshold", "0", Number(0, i64::MAX)),
    ("latency-tracking", "no", Fixed("percentiles are not kept", &Switch)),
    ("lazyfree-lazy-eviction", "no", Switch),
    ("lazyfree-lazy-expire", "no", Switch),
    ("lazyfree-lazy-server-del", "no", Switch),
    ("lazyfree-lazy-user-del", "no", Switch),
    ("lazyfree-lazy-user-flush", "no", Switch),
    ("lfu-decay-time", "1", Number(0, INT)),
    ("lfu-log-factor", "10", Number(0, INT)),
    ("list-compress-depth", "0", Number(0, INT)),
    ("list-max-listpack-size", "-2", Number(-5, INT)),
    ("list-max-ziplist-size", "-2", Number(-5, INT)),
    ("loglevel", "notice", Fixed(IN_FILE, &Word(&["debug", "verbose", "notice", "warning"]))),
    ("lua-time-limit", "5000", Number(0, i64::MAX)),
    ("masterauth", "", Fixed(NO_PASSWORDS, &Text)),
    ("maxclients", "10000", UpTo(&Number(1, u32::MAX as i64), 1_000_000)),
    ("maxmemory", "0", Bytes(0, i64::MAX)),
    ("maxmemory-policy", "noeviction", Fixed(NO_EVICTION, &Word(POLICIES))),
    ("maxmemory-samples", "5", Number(1, INT)),
    ("min-replicas-to-write", "0", Fixed(NO_REPLICAS, &Number(0, INT))),
    ("notify-keyspace-events", "", Fixed(NO_EVENTS, &Text)),
    ("port", "0", Immutable),
    ("proto-max-bulk-len", "536870912", UpTo(&Bytes(1 << 20, i64::MAX), 512 << 20)),
    ("repl-backlog-size", "1048576", Fixed(NO_REPLICAS, &Bytes(1, i64::MAX))),
    ("replica-read-only", "yes", Fixed(NO_REPLICAS, &Switch)),
    ("replicaof", "", Immutable),
    ("requirepass", "", Fixed(NO_PASSWORDS, &Text)),
    ("save", "", Fixed(NO_DISK, &Saves)),
    ("set-max-intset-entries", "512", Number(0, i64::MAX)),
    ("slowlog-log-slower-than", "10000", Number(-1, i64::MAX)),
    ("slowlog-max-len", "128", UpTo(&Number(0, i64::MAX), SLOW_LEN_MAX)),
    ("stop-writes-on-bgsave-error", "no", Fixed(NO_DISK, &Switch)),
    ("stream-node-max-bytes", "4096", Bytes(0, i64::MAX)),
    ("stream-node-max-entries", "100", Number(0, i64::MAX)),
    ("tcp-keepalive", "0", Fixed("quiet connections are not probed", &Number(0, INT))),
    ("timeout", "0", Number(0, INT)),
    ("tracking-table-max-keys", "0", Fixed("keys are not tracked", &Number(0, i64::MAX))),
    ("zset-max-listpack-entries", "128", Number(0, i64::MAX)),
    ("zset-max-listpack-value", "64", Bytes(0, i64::MAX)),
    ("zset-max-ziplist-entries", "128", Number(0, i64::MAX)),
    ("zset-max-ziplist-value", "64", Bytes(0, i64::MAX)),
];

/// Entries of the slow log at most: they are memory.
const SLOW_LEN_MAX: i64 = 100_000;

/// A node's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What differs from the rows' first values.
    changed: BTreeMap<&'static str, String>,
    /// The clients that the machine has room for; none where that is not known.
    clients_max: Option<i64>,
}

impl Settings {
    /// A setting's value, as `CONFIG GET` shows it; nothing when there is no such setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (name, value, _) = ROWS.iter().find(|(row, ..)| *row == name)?;
        Some(self.changed.get(name).map_or(value, String::as_str))
    }

    /// A setting's value as a number; 0 when it is none.
    pub fn number(&self, name: &str) -> i64 {
        self.get(name).and_then(|value| parse_int(value.as_bytes())).unwrap_or(0)
    }

    /// A setting's value as a size or a count; 0 when it is none.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).unwrap_or(0)
    }

    /// The settings whose names match one of the patterns.
    pub fn matching<'p>(
        &self,
        patterns: impl Iterator<Item = &'p [u8]> + Clone,
    ) -> Vec<(&'p [u8], &str)> {
        let row = |(name, value, _): &'static (&'static str, &str, SettingKind)| {
            // Redis tells a setting's name as it was asked for, unless a pattern asked.
            let asked = patterns.clone().find(|pattern| {
                !is_pattern(pattern) && pattern.eq_ignore_ascii_case(name.as_bytes())
            });
            let matches = |pattern: &[u8]| {
                is_pattern(pattern) && glob::matches(pattern, name.as_bytes(), true)
            };
            let asked = match patterns.clone().any(matches) {
                true => Some(name.as_bytes()),
                false => asked,
            };
            Some((asked?, self.changed.get(name).map_or(*value, String::as_str)))
        };
        ROWS.iter().filter_map(row).collect()
    }

    /// Begins a setting with what the node was configured with, whatever clients may do to it.
    pub fn begin(&mut self, name: &str, value: String) {
        let row = ROWS.iter().find(|(row, ..)| *row == name);
        assert!(row.is_some(), "{name} is a setting");
        if let Some((name, ..)) = row {
            self.changed.insert(name, value);
        }
    }

    /// More clients than this may not be asked for.
    pub fn limit_clients(&mut self, most: usize) {
        self.clients_max = i64::try_from(most).ok();
    }

    /// Takes over settings that [`Settings::judge`] has approved.
    pub fn take(&mut self, approved: &[(&'static str, String)]) {
        for (name, value) in approved {
            self.changed.insert(name, value.clone());
        }
    }

    /// What `CONFIG SET` with these pairs would set.
    ///
    /// # Errors
    /// The reply, in Redis's words, if it may not.
    pub fn judge(&self, pairs: &[(&[u8], &[u8])]) -> Result<Vec<(&'static str, String)>, Vec<u8>> {
        let refused = |row: &str, why: &str| {
            format!("ERR CONFIG SET failed (possibly related to argument '{row}') - {why}")
                .into_bytes()
        };
        let mut rows: Vec<&(&'static str, &str, SettingKind)> = Vec::new();
        for (name, _) in pairs {
            let is =
                |(row, ..): &&(&str, &str, SettingKind)| row.as_bytes().eq_ignore_ascii_case(name);
            let Some(row) = ROWS.iter().find(is) else {
                let begin = b"ERR Unknown option or number of arguments for CONFIG SET - '";
                return Err([begin.as_slice(), super::clip(name, usize::MAX), b"'"].concat());
            };
            if matches!(row.2, Immutable) {
                return Err(refused(&text(name), "can't set immutable config"));
            }
            if rows.iter().any(|earlier| earlier.0 == row.0) {
                return Err(refused(&text(name), "duplicate parameter"));
            }
            rows.push(row);
        }
        // Values are looked at once all names are known to be right.
        let judged = rows.iter().zip(pairs).map(|((row, _, kind), (_, value))| {
            let value = judge(*kind, value, self.get(row).unwrap_or_default());
            let value = value.and_then(|value| match self.clients_max {
                Some(most)
                    if *row == "maxclients"
                        && parse_int(value.as_bytes()).is_some_and(|number| number > most) =>
                {
                    // Redis's words.
                    Err(format!(
                        "The operating system is not able to handle the specified number of \
                         clients, try with {most}"
                    ))
                }
                _ => Ok(value),
            });
            value.map(|value| (*row, value)).map_err(|why| refused(row, &why))
        });
        judged.collect()
    }
}

fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'[' | b'*' | b'?'))
}

fn judge(kind: SettingKind, value: &[u8], now: &str) -> Result<String, String> {
    let within = |number: i64, min: i64, max: i64| match (min..=max).contains(&number) {
        true => Ok(number.to_string()),
        false => Err(format!("argument must be between {min} and {max} inclusive")),
    };
    match kind {
        Number(min, max) => match parse_int(value) {
            Some(number) => within(number, min, max),
            None => Err("argument couldn't be parsed into an integer".into()),
        },
        Bytes(min, max) => match bytes(value) {
            Some(number) => within(number, min, max),
            None => Err("argument must be a memory value".into()),
        },
        Switch => match value.to_ascii_lowercase().as_slice() {
            b"yes" => Ok("yes".into()),
            b"no" => Ok("no".into()),
            _ => Err("argument must be 'yes' or 'no'".into()),
        },
        Word(argv) => {
            let is = |word: &&&str| word.as_bytes().eq_ignore_ascii_case(value);
            let found = argv.iter().find(is).map(|word| (*word).to_owned());
            let text = || format!("argument(s) must be one of the following: {}", argv.join(", "));
            found.ok_or_else(text)
        }
        Saves => {
            let pairs = value.split(|byte| *byte == b' ').map(parse_int).collect::<Vec<_>>();
            let right = value.is_empty()
                || pairs.len().is_multiple_of(2)
                    && pairs.iter().all(|number| number.is_some_and(|number| number >= 0));
            match right {
                true => Ok(text(value)),
                false => Err("Invalid save parameters".into()),
            }
        }
        Text => Ok(text(value)),
        UpTo(kind, most) => {
            let value = judge(*kind, value, now)?;
            match (kind, parse_int(value.as_bytes())) {
                (Number(min, _) | Bytes(min, _), Some(number)) if number > most => {
                    within(number, *min, most)
                }
                _ => Ok(value),
            }
        }
        Fixed(why, kind) => match judge(*kind, value, now)? {
            value if value == now => Ok(value),
            _ => Err(why.into()),
        },
        Immutable => Err("can't set immutable config".into()),
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// A number of bytes with or without a unit, as Redis reads them: `1kb` is 1024, `1k` is 1000.
fn bytes(text: &[u8]) -> Option<i64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_slice() {
        b"" | b"b" => 1,
        b"k" => 1000,
        b"kb" => 1 << 10,
        b"m" => 1_000_000,
        b"mb" => 1 << 20,
        b"g" => 1_000_000_000,
        b"gb" => 1 << 30,
        _ => return None,
    };
    parse_int(number)?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<Vec<(&'static str, String)>, String> {
        let judged = Settings::default().judge(&[(name.as_bytes(), value.as_bytes())]);
        judged.map_err(|error| String::from_utf8(error).unwrap())
    }

    #[test]
    fn what_acts_or_cannot_hurt_is_taken() {
        for (name, value, taken) in [
            ("maxclients", "77", "77"),
            ("MaxMemory", "2mb", "2097152"),
            ("slowlog-log-slower-than", "-1", "-1"),
            ("hash-max-listpack-entries", "9", "9"),
            ("lazyfree-lazy-expire", "YES", "yes"),
            ("appendonly", "no", "no"),
            ("save", "", ""),
        ] {
            let approved = set(name, value).unwrap();
            assert_eq!(approved[0].1, taken, "{name}");
            let mut settings = Settings::default();
            settings.take(&approved);
            assert_eq!(settings.get(approved[0].0), Some(taken));
        }
    }

    #[test]
    fn what_would_be_a_promise_is_refused() {
        for (name, value, why) in [
            ("appendonly", "yes", "nothing is written to disk"),
            ("save", "900 1", "nothing is written to disk"),
            ("requirepass", "secret", "there are no passwords"),
            ("maxmemory-policy", "allkeys-lru", "keys are not evicted"),
            ("port", "1", "can't set immutable config"),
            ("maxclients", "many", "argument couldn't be parsed into an integer"),
            ("maxclients", "0", "argument must be between 1 and 4294967295 inclusive"),
            ("maxclients", "1000001", "argument must be between 1 and 1000000 inclusive"),
            ("appendonly", "maybe", "argument must be 'yes' or 'no'"),
            ("save", "900", "Invalid save parameters"),
            ("databases", "16", "can't set immutable config"),
            ("maxmemory", "1tb", "argument must be a memory value"),
            ("activerehashing", "maybe", "argument must be 'yes' or 'no'"),
        ] {
            let expected =
                format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}");
            assert_eq!(set(name, value), Err(expected));
        }
        let unknown = "ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'";
        assert_eq!(set("nosuch", "1"), Err(unknown.into()));
    }

    #[test]
    fn there_are_no_more_clients_than_the_machine_has_room_for() {
        let mut settings = Settings::default();
        settings.limit_clients(500);
        assert!(settings.judge(&[(b"maxclients", b"500")]).is_ok());
        let refused = settings.judge(&[(b"maxclients", b"501")]).unwrap_err();
        assert!(refused.ends_with(b"number of clients, try with 500"), "{refused:?}");
    }

    #[test]
    fn rows_are_sorted_and_begin_with_what_they_may_be() {
        assert!(ROWS.is_sorted_by_key(|(name, ..)| *name));
        for (name, value, kind) in ROWS.iter().filter(|row| !matches!(row.2, Immutable)) {
            assert_eq!(judge(*kind, value.as_bytes(), value).as_deref(), Ok(*value), "{name}");
        }
    }
}
