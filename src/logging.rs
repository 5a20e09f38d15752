//! Log lines: when, how grave, which node, which part, what.
//!
//! The logger is the one thing of a process that all of its nodes share, so a line says whose it
//! is: each arbiter belongs to one node and remembers which.
//!
//! A thread that logs only hands its line to the writer, a thread of its own, over a bounded queue.
//! So a standard error stream that is not read, or is closed, or is on a full disk, stops no other
//! thread: lines that cannot be taken or written are dropped and counted ([`dropped`]), and the
//! writer says how many once a line gets through again.

use crate::ids::NodeId;
use log::LevelFilter;
use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines that may wait for the writer.
const LINES_MAX: usize = 4096;

/// Bytes of one line; a longer one is cut.
const LINE_BYTES_MAX: usize = 8 << 10;

/// How long a process that ends waits for its last lines to be written, looking so often.
const LAST_MAX: Duration = Duration::from_millis(500);
const LAST_LOOK: Duration = Duration::from_millis(5);

thread_local! {
    static NODE: Cell<Option<NodeId>> = const { Cell::new(None) };
}

/// The way to the writer, once there is one.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Says that this thread's lines are the node's.
pub fn set_node(node: NodeId) {
    NODE.set(Some(node));
}

/// Begins to log to the standard error stream. A panic is logged too, before the process ends.
///
/// # Errors
/// When the process has a logger already.
pub fn init(level: LevelFilter, clock: fn() -> crate::ids::Millis) -> Result<(), String> {
    let (queue, lines) = Queue::new(LINES_MAX);
    let stamp: Stamp = Box::new(move |dropped| {
        let message = format_args!("{dropped} log lines were dropped");
        line(clock().0, log::Level::Warn, None, "logging", &message)
    });
    fern::Dispatch::new()
        .format(move |out, message, record| {
            let line = line(clock().0, record.level(), NODE.get(), record.target(), message);
            out.finish(format_args!("{line}"));
        })
        .level(level)
        .chain(fern::Output::call(|record| {
            if let Some(queue) = QUEUE.get() {
                queue.offer(record.args().to_string());
            }
        }))
        .apply()
        .map_err(|error| error.to_string())?;
    QUEUE.set(queue).map_err(|_| "the process has a logger already".to_owned())?;
    // A handle of its own: the lock of the standard one may be held by a thread that waits for a
    // reader.
    let out: Box<dyn Write + Send> = match io::stderr().as_fd().try_clone_to_owned() {
        Ok(stderr) => Box::new(File::from(stderr)),
        Err(_) => Box::new(io::stderr()),
    };
    let writer = thread::Builder::new().name("log lines".into());
    let writing = move || {
        if let Some(queue) = QUEUE.get() {
            Writer::new(out).run(lines.iter(), queue, &stamp);
        }
    };
    writer.spawn(writing).map_err(|error| format!("cannot start the log's writer: {error}"))?;
    std::panic::set_hook(Box::new(|panic| {
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        last(&format!("quorate: {panic}{trace}"));
    }));
    Ok(())
}

/// How many lines were dropped since the process began.
pub fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

/// The last line of a process that is about to end, after all that was logged before it. Lines that
/// come later are dropped. Waits until it is written, for [`LAST_MAX`] at most.
pub fn last(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.close(text.to_owned()),
        // It may not be read.
        None => drop(writeln!(io::stderr(), "{text}")),
    }
}

/// Lines on their way to the writer.
#[derive(Debug)]
struct Queue {
    lines: SyncSender<String>,
    taken: AtomicU64,
    /// Lines that the writer is done with, written or not.
    done: AtomicU64,
    dropped: AtomicU64,
    closed: AtomicBool,
}

impl Queue {
    fn new(lines_max: usize) -> (Queue, Receiver<String>) {
        let (lines, receiver) = sync_channel(lines_max);
        let queue = Queue {
            lines,
            taken: AtomicU64::new(0),
            done: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        };
        (queue, receiver)
    }

    /// Takes a line for the writer, or drops it. Never waits.
    fn offer(&self, mut line: String) {
        if self.closed.load(Ordering::Relaxed) {
            return self.drop_one();
        }
        if line.len() > LINE_BYTES_MAX {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
            line += "…";
        }
        if self.put(line).is_err() {
            self.drop_one();
        }
    }

    fn put(&self, line: String) -> Result<(), TrySendError<String>> {
        self.lines.try_send(line)?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the last line, and waits until the writer is done with it.
    fn close(&self, mut line: String) {
        if self.closed.swap(true, Ordering::Relaxed) {
            // The process ends for the reason that was told first.
            return;
        }
        let mut left = LAST_MAX.as_millis() / LAST_LOOK.as_millis();
        while let Err(TrySendError::Full(back)) = self.put(line) {
            if left == 0 {
                return self.drop_one();
            }
            left -= 1;
            line = back;
            thread::sleep(LAST_LOOK);
        }
        while self.done.load(Ordering::Relaxed) < self.taken.load(Ordering::Relaxed) && left > 0 {
            left -= 1;
            thread::sleep(LAST_LOOK);
        }
    }
}

/// The line that tells how many were dropped.
type Stamp = Box<dyn Fn(u64) -> String + Send>;

/// Writes the lines, on a thread of its own.
struct Writer<W> {
    out: W,
    /// How many dropped lines it has told of.
    told: u64,
    /// The last line got out in part.
    mid_line: bool,
}

impl<W: Write> Writer<W> {
    fn new(out: W) -> Writer<W> {
        Writer { out, told: 0, mid_line: false }
    }

    fn run(&mut self, lines: impl Iterator<Item = String>, queue: &Queue, stamp: &Stamp) {
        for line in lines {
            let dropped = queue.dropped.load(Ordering::Relaxed);
            if dropped > self.told && self.write(&stamp(dropped - self.told)) {
                self.told = dropped;
            }
            if !self.write(&line) {
                queue.drop_one();
            }
            queue.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the line got out whole.
    fn write(&mut self, line: &str) -> bool {
        let begin = if self.mid_line { "\n" } else { "" };
        let bytes = [begin, line, "\n"].concat().into_bytes();
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match self.out.write(left) {
                Ok(0) => return false,
                Ok(written) => {
                    left = &left[written..];
                    self.mid_line = !left.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// One line. What clients and peers sent may be part of the message and must not be able to forge
/// another line or to move the reader's cursor, so control characters are written out.
fn line(
    millis: u64,
    level: log::Level,
    node: Option<NodeId>,
    part: &str,
    message: &fmt::Arguments<'_>,
) -> String {
    let node = node.map(|node| format!("node {node} ")).unwrap_or_default();
    let mut line = format!("{} {level:5} {node}{part}: ", timestamp(millis));
    for c in message.to_string().chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Milliseconds since the Unix epoch as RFC 3339 has them, in UTC.
fn timestamp(millis: u64) -> String {
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// A day since the Unix epoch as year, month and day. After Hinnant's `civil_from_days`: years
/// begin in March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// A stream with room for so many bytes.
    #[derive(Clone, Default)]
    struct Stream(Rc<RefCell<(usize, Vec<u8>)>>);

    impl Stream {
        fn give_room(&self, bytes: usize) {
            self.0.borrow_mut().0 = bytes;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.borrow().1.clone()).unwrap()
        }
    }

    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, text) = &mut *self.0.borrow_mut();
            let taken = bytes.len().min(*room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= taken;
            text.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_taken_or_written_is_dropped_and_told() {
        let (queue, lines) = Queue::new(3);
        let stamp: Stamp = Box::new(|dropped| format!("{dropped} dropped"));
        let stream = Stream::default();
        let mut writer = Writer::new(stream.clone());
        let dropped = |queue: &Queue| queue.dropped.load(Ordering::Relaxed);

        // One more than the queue holds; the stream takes one and a half.
        ["one", "two", "three", "four"].iter().for_each(|line| queue.offer((*line).to_owned()));
        assert_eq!(dropped(&queue), 1);
        stream.give_room("1 dropped\none\ntw".len());
        writer.run(lines.try_iter(), &queue, &stamp);
        assert_eq!((stream.text().as_str(), dropped(&queue)), ("1 dropped\none\ntw", 3));

        // It works again: what is told of begins a line.
        stream.give_room(1 << 20);
        queue.offer("x".repeat(LINE_BYTES_MAX + 1));
        writer.run(lines.try_iter(), &queue, &stamp);
        let cut = "x".repeat(LINE_BYTES_MAX);
        assert_eq!(stream.text(), format!("1 dropped\none\ntw\n2 dropped\n{cut}…\n"));
    }

    #[test]
    fn the_last_line_waits_for_the_writer_and_no_longer_than_it_may() {
        let (queue, lines) = Queue::new(1);
        queue.offer("first".to_owned());
        // There is no writer: the line is given up.
        queue.close("why".to_owned());
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["first"]);

        let (queue, lines) = Queue::new(1);
        let queue = &queue;
        let stream = thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let stamp: Stamp = Box::new(|dropped| format!("{dropped} dropped"));
                let mut writer = Writer::new(Vec::new());
                writer.run(lines.iter().take(2), queue, &stamp);
                writer.out
            });
            queue.offer("first".to_owned());
            queue.close("why".to_owned());
            queue.offer("later".to_owned());
            writing.join().unwrap()
        });
        assert_eq!(String::from_utf8(stream).unwrap(), "first\nwhy\n");
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn timestamps_are_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(timestamp(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(timestamp(951_868_800_000), "2000-03-01T00:00:00.000Z");
        assert_eq!(timestamp(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(timestamp(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_line_names_its_node_and_cannot_be_forged() {
        let warn = log::Level::Warn;
        assert_eq!(
            line(7, warn, Some(NodeId(2)), "peer", &format_args!("peer 3 lost, retrying")),
            "1970-01-01T00:00:00.007Z WARN  node 2 peer: peer 3 lost, retrying"
        );
        assert_eq!(
            line(7, warn, None, "peer", &format_args!("hello from '{}'", "x\nERROR\u{1b}[0m é")),
            "1970-01-01T00:00:00.007Z WARN  peer: hello from 'x\\nERROR\\u{1b}[0m é'"
        );
    }
}
