//! What a node counts, and how it tells: plain numbers, a ring of seconds, Prometheus's text.

use serde::Serialize;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds that the throughput series remembers.
pub const SERIES_SECONDS: usize = 3_600;

/// What the Sessions of one arbiter counted since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Commands with one key that only read.
    pub reads: u64,
    /// Commands with one key that may write.
    pub writes: u64,
    /// Commands over several partitions.
    pub transactions: u64,
    /// Commands that need no data.
    pub others: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Clients that connected.
    pub connections_opened: u64,
    /// Bytes read from clients.
    pub bytes_in: u64,
    /// Bytes written to clients.
    pub bytes_out: u64,
}

impl Counters {
    /// Adds another arbiter's.
    pub fn add(&mut self, other: &Counters) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.transactions += other.transactions;
        self.others += other.others;
        self.errors += other.errors;
        self.connections_opened += other.connections_opened;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }

    /// What was counted after `before`.
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
            transactions: self.transactions - before.transactions,
            others: self.others - before.others,
            errors: self.errors - before.errors,
            connections_opened: self.connections_opened - before.connections_opened,
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
        }
    }

    /// Commands of all kinds.
    pub fn commands(&self) -> u64 {
        self.reads + self.writes + self.transactions + self.others
    }
}

/// What a node's process takes of its machine, as the operating system counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Bytes of memory in RAM.
    pub resident: u64,
    /// Seconds of processor time spent in the kernel.
    pub kernel_seconds: f64,
    /// Seconds of processor time spent in the process's own code.
    pub own_seconds: f64,
}

/// What a node's log counted since it was opened; told without asking the log, which may be busy
/// with a slow disk.
#[derive(Debug, Default)]
pub struct LogCounts {
    /// Segments there are.
    pub segments: AtomicU64,
    /// Bytes of their files.
    pub length: AtomicU64,
    /// Bytes in them that were ever written to.
    pub written: AtomicU64,
    /// Syncs.
    pub syncs: AtomicU64,
    /// Batches of records written.
    pub batches: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Bytes of records copied forward.
    pub copied: AtomicU64,
}

/// What a log takes and has done, as [`LogCounts`] tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUsage {
    /// Segments there are.
    pub segments: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// Bytes in them that were ever written to.
    pub written: u64,
    /// Syncs.
    pub syncs: u64,
    /// Batches of records written.
    pub batches: u64,
    /// Bytes of them.
    pub appended: u64,
    /// Bytes of records copied forward.
    pub copied: u64,
}

impl LogCounts {
    /// All of it, as it was counted last.
    pub fn usage(&self) -> LogUsage {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        LogUsage {
            segments: of(&self.segments) as usize,
            bytes: of(&self.length),
            written: of(&self.written),
            syncs: of(&self.syncs),
            batches: of(&self.batches),
            appended: of(&self.bytes),
            copied: of(&self.copied),
        }
    }
}

/// What a whole node knows of itself at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Counted by its Sessions.
    pub counters: Counters,
    /// Clients connected.
    pub connected: u64,
    /// Clients refused because there were too many.
    pub refused: u64,
    /// Batches that its Buckets executed.
    pub batches: u64,
    /// Operations that its Buckets executed, those of other nodes' clients among them.
    pub operations: u64,
    /// Operations that waited for a contended key.
    pub waits: u64,
    /// Items removed because their time had come.
    pub expired: u64,
    /// Keys that reads found.
    pub hits: u64,
    /// Keys that reads did not find.
    pub misses: u64,
    /// Requests that wait at the lock manager now.
    pub waiting: u64,
    /// Transactions under way.
    pub active: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Attempts aborted.
    pub aborts: u64,
    /// Wounds obeyed.
    pub wounds: u64,
    /// Intents and outcomes that are not settled.
    pub unsettled: u64,
    /// Syncs of its log.
    pub log_syncs: u64,
    /// Batches of records written to its log: what came together is one.
    pub log_batches: u64,
    /// Bytes of them.
    pub log_bytes: u64,
    /// Lines of its process's log that could not be written.
    pub lines_dropped: u64,
    /// Bytes of its tables.
    pub table_bytes: u64,
    /// Items and volatile items, by table.
    pub tables: Vec<(u64, u64)>,
}

/// One second of the throughput series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// When it ended: seconds since the Unix epoch.
    pub time: u64,
    /// Commands with one key that only read.
    pub reads: u64,
    /// Commands with one key that may write.
    pub writes: u64,
    /// Commands over several partitions.
    pub transactions: u64,
    /// Operations executed by the node's Buckets.
    pub operations: u64,
    /// Errors.
    pub errors: u64,
}

impl Sample {
    /// What was counted between two snapshots.
    pub fn between(time: u64, before: &Snapshot, after: &Snapshot) -> Sample {
        let (old, new) = (&before.counters, &after.counters);
        Sample {
            time,
            reads: new.reads.saturating_sub(old.reads),
            writes: new.writes.saturating_sub(old.writes),
            transactions: new.transactions.saturating_sub(old.transactions),
            operations: after.operations.saturating_sub(before.operations),
            errors: new.errors.saturating_sub(old.errors),
        }
    }
}

/// The latest [`SERIES_SECONDS`] samples, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Series(VecDeque<Sample>);

impl Series {
    /// The newest sample; all zeros while there is none.
    pub fn latest(&self) -> Sample {
        self.0.back().copied().unwrap_or_default()
    }

    /// Appends a second, and forgets the oldest when there are too many.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() == SERIES_SECONDS {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.0.iter().copied().collect()
    }
}

/// The samples as comma-separated values, a header first.
pub fn csv(samples: &[Sample]) -> String {
    let mut text = String::from("time,reads,writes,transactions,operations,errors\n");
    for sample in samples {
        let Sample { time, reads, writes, transactions, operations, errors } = sample;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{time},{reads},{writes},{transactions},{operations},{errors}");
    }
    text
}

/// A snapshot in Prometheus's text exposition format, version 0.0.4.
pub fn prometheus(snapshot: &Snapshot) -> String {
    let counters = &snapshot.counters;
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP quorate_{name} {help}\n# TYPE quorate_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "quorate_{name}{labels} {value}");
        }
    };
    let commands = [
        ("{kind=\"read\"}", counters.reads),
        ("{kind=\"write\"}", counters.writes),
        ("{kind=\"transaction\"}", counters.transactions),
        ("{kind=\"other\"}", counters.others),
    ];
    metric("commands_total", "counter", "Commands of clients of this node.", &commands);
    let one = |value| [("", value)];
    metric("errors_total", "counter", "Requests answered with an error.", &one(counters.errors));
    metric(
        "operations_total",
        "counter",
        "Operations executed by partitions of this node.",
        &one(snapshot.operations),
    );
    metric("batches_total", "counter", "Batches of operations.", &one(snapshot.batches));
    metric(
        "expired_total",
        "counter",
        "Keys removed because their time had come.",
        &one(snapshot.expired),
    );
    let looks = [("{found=\"yes\"}", snapshot.hits), ("{found=\"no\"}", snapshot.misses)];
    metric("key_reads_total", "counter", "Keys that reads looked for.", &looks);
    metric(
        "lock_waits_total",
        "counter",
        "Operations that waited for a contended key.",
        &one(snapshot.waits),
    );
    metric("lock_waiting", "gauge", "Requests that wait for a key.", &one(snapshot.waiting));
    metric("transactions_active", "gauge", "Transactions under way.", &one(snapshot.active));
    let ended = [
        ("{end=\"commit\"}", snapshot.commits),
        ("{end=\"abort\"}", snapshot.aborts),
        ("{end=\"wound\"}", snapshot.wounds),
    ];
    metric("transaction_attempts_total", "counter", "Attempts by their end.", &ended);
    metric(
        "transactions_unsettled",
        "gauge",
        "Intents and outcomes that are not confirmed everywhere.",
        &one(snapshot.unsettled),
    );
    metric("clients_connected", "gauge", "Clients connected.", &one(snapshot.connected));
    metric(
        "clients_total",
        "counter",
        "Clients that ever connected.",
        &one(counters.connections_opened),
    );
    metric("received_bytes_total", "counter", "Bytes from clients.", &one(counters.bytes_in));
    metric("sent_bytes_total", "counter", "Bytes to clients.", &one(counters.bytes_out));
    metric("log_syncs_total", "counter", "Syncs of the log.", &one(snapshot.log_syncs));
    metric("log_batches_total", "counter", "Writes to the log.", &one(snapshot.log_batches));
    metric("log_bytes_total", "counter", "Bytes written to the log.", &one(snapshot.log_bytes));
    metric(
        "log_lines_dropped_total",
        "counter",
        "Lines on standard error that could not be written.",
        &one(snapshot.lines_dropped),
    );
    metric("table_bytes", "gauge", "Bytes of the tables.", &one(snapshot.table_bytes));
    let tables: Vec<(String, u64)> = (0..)
        .zip(&snapshot.tables)
        .filter(|(_, (items, _))| *items > 0)
        .map(|(index, (items, _)): (u32, _)| (format!("{{table=\"{index}\"}}"), *items))
        .collect();
    let tables: Vec<(&str, u64)> =
        tables.iter().map(|(labels, items)| (labels.as_str(), *items)).collect();
    metric("items", "gauge", "Items held by this node.", &tables);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_difference() {
        let mut before = Snapshot { operations: 10, ..Snapshot::default() };
        before.counters.reads = 3;
        let mut after = before.clone();
        after.operations = 25;
        after.counters.reads = 7;
        let sample = Sample::between(9, &before, &after);
        assert_eq!(sample, Sample { time: 9, reads: 4, operations: 15, ..Sample::default() });
    }

    #[test]
    fn the_series_forgets_the_oldest() {
        let mut series = Series::default();
        for time in 0..SERIES_SECONDS as u64 + 5 {
            series.push(Sample { time, ..Sample::default() });
        }
        let samples = series.samples();
        assert_eq!((samples.len(), samples[0].time), (SERIES_SECONDS, 5));
    }

    #[test]
    fn prometheus_gets_a_type_for_every_metric() {
        let mut snapshot = Snapshot { tables: vec![(2, 1)], ..Snapshot::default() };
        snapshot.counters.writes = 41;
        let text = prometheus(&snapshot);
        assert!(text.contains("quorate_commands_total{kind=\"write\"} 41\n"), "{text}");
        assert!(text.contains("quorate_items{table=\"0\"} 2\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }

    #[test]
    fn csv_has_a_row_a_sample() {
        let sample = Sample { time: 1, reads: 2, ..Sample::default() };
        let header = "time,reads,writes,transactions,operations,errors\n";
        assert_eq!(csv(&[sample]), format!("{header}1,2,0,0,0,0\n"));
    }
}
