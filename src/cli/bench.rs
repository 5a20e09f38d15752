//! `--role bench`: a load on any server that speaks RESP, and a report of how it was borne.
//!
//! The rows of the CSV go out as their seconds end, so a run can be watched, and one that is
//! interrupted leaves what it saw. The summary covers the whole run.

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use serde::Serialize;

use super::output;
use crate::net::load::requests::{KEY_SIZE_MIN, KEYS_MAX, Kind, Mix, Workload};
use crate::net::load::tally::Tally;
use crate::net::load::{Load, LoadError, Outcome, Until};

mod chart;

/// Put a load on a server that speaks the Redis protocol, and report how it bore it
#[derive(Debug, Parser)]
#[command(name = "quorate --role bench", disable_version_flag = true)]
struct Bench {
    /// Server to ask, when no --target is given
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Its client port
    #[arg(long, default_value_t = 7001)]
    port: u16,
    /// Server to ask; repeat it to deal the connections to several in turn
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["host", "port"])]
    target: Vec<String>,
    /// Connections
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Threads that share the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Requests a connection sends in one write before it awaits their replies
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pipeline: u32,
    /// Follow each write of requests by a WAIT for this many replicas, and await its reply too
    #[arg(long, value_name = "REPLICAS", default_value_t = 0, hide_default_value = true)]
    wait: u32,
    /// Keys to draw from, uniformly
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,
    /// Bytes of a key
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(KEY_SIZE_MIN as i64..=65_536))]
    key_size: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    value_size: u32,
    /// Kinds of requests and their weights: get, set, multiput (MSET), multiget (MGET)
    #[arg(long, default_value = "get:50,set:50", value_name = "KIND:WEIGHT,..")]
    mix: Mix,
    /// Keys in a multiput or multiget
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    multi: u16,
    /// How long to ask: 10s, 500ms, 2m
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// How often to ask, instead of how long
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// How long to ask before anything is counted
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    warmup: Duration,
    /// Write every key once before
    #[arg(long)]
    prefill: bool,
    /// What all draws follow from: the same seed asks the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a row for each whole second to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw the seconds into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the summary as one line of JSON on standard output
    #[arg(long)]
    json: bool,
}

/// The role's options.
pub fn command() -> clap::Command {
    Bench::command()
}

/// Runs the role with the options that [`command`] has matched.
pub fn run(matches: &ArgMatches) -> ExitCode {
    let bench = match Bench::from_arg_matches(matches) {
        Ok(bench) => bench,
        Err(error) => error.exit(),
    };
    match bench.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.end(),
    }
}

/// One whole second, a row of the CSV and a point of the chart.
#[derive(Clone, Debug)]
struct Second {
    /// When it ended, in seconds from the beginning.
    time: u64,
    operations: u64,
    by_kind: Vec<(Kind, u64)>,
    p50_micros: u64,
    p99_micros: u64,
    errors: u64,
}

impl Second {
    fn new(time: u64, tally: &Tally, kinds: &[Kind]) -> Self {
        Self {
            time,
            operations: tally.operations(),
            by_kind: kinds.iter().map(|&kind| (kind, tally.of(kind))).collect(),
            p50_micros: tally.latency_micros(0.5),
            p99_micros: tally.latency_micros(0.99),
            errors: tally.errors,
        }
    }
}

/// The whole run, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Summary {
    seconds: f64,
    ops: u64,
    ops_per_second: f64,
    get: u64,
    set: u64,
    multiput: u64,
    multiget: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Summary {
    fn new(outcome: &Outcome) -> Self {
        let Outcome { elapsed, tally } = outcome;
        let seconds = elapsed.as_secs_f64();
        Self {
            seconds,
            ops: tally.operations(),
            ops_per_second: tally.operations() as f64 / seconds.max(f64::MIN_POSITIVE),
            get: tally.of(Kind::Get),
            set: tally.of(Kind::Set),
            multiput: tally.of(Kind::MultiPut),
            multiget: tally.of(Kind::MultiGet),
            p50_us: tally.latency_micros(0.5),
            p99_us: tally.latency_micros(0.99),
            p999_us: tally.latency_micros(0.999),
            max_us: tally.latency_micros(1.0),
            errors: tally.errors,
            first_error: tally.first_error.clone(),
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { seconds, ops, ops_per_second, .. } = self;
        writeln!(out, "{ops} operations in {seconds:.2} s: {ops_per_second:.0} a second")?;
        let kinds = [
            ("get", self.get),
            ("set", self.set),
            ("multiput", self.multiput),
            ("multiget", self.multiget),
        ];
        for (name, count) in kinds.into_iter().filter(|&(_, count)| count > 0) {
            writeln!(out, "  {name:<10} {count:>12}  {:>10.0} a second", count as f64 / seconds)?;
        }
        let Self { p50_us, p99_us, p999_us, max_us, .. } = self;
        writeln!(
            out,
            "  latency    p50 {p50_us} us, p99 {p99_us} us, p99.9 {p999_us} us, max {max_us} us"
        )?;
        match &self.first_error {
            None => writeln!(out, "  errors     0"),
            Some(first) => writeln!(out, "  errors     {}, the first: {first}", self.errors),
        }
    }
}

/// Why there is no report.
#[derive(Debug)]
enum BenchError {
    Load(LoadError),
    Threads { threads: u32, clients: u32 },
    File(PathBuf, io::Error),
    Chart(PathBuf, String),
    Output(io::Error),
}

impl BenchError {
    /// Ends the role: quietly if the reader of its output went away.
    fn end(&self) -> ExitCode {
        match self {
            Self::Output(error) | Self::File(_, error) if output::is_closed(error) => {
                ExitCode::SUCCESS
            }
            _ => {
                output::tell(&format!("error: {self}"));
                ExitCode::FAILURE
            }
        }
    }
}

impl std::fmt::Display for BenchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load(error) => error.fmt(f),
            Self::Threads { threads, clients } => {
                write!(f, "--threads {threads} leaves some without any of --clients {clients}")
            }
            Self::File(path, error) => write!(f, "cannot write {}: {error}", path.display()),
            Self::Chart(path, error) => write!(f, "cannot draw {}: {error}", path.display()),
            Self::Output(error) => write!(f, "cannot write the report: {error}"),
        }
    }
}

impl Bench {
    fn run(&self) -> Result<(), BenchError> {
        if self.threads > self.clients {
            return Err(BenchError::Threads { threads: self.threads, clients: self.clients });
        }
        let load = self.load();
        let mut rows = self.csv.as_deref().map(Rows::create).transpose()?;
        load.probe().map_err(BenchError::Load)?;
        if self.prefill {
            let filled = load.fill().map_err(BenchError::Load)?;
            let seconds = filled.elapsed.as_secs_f64();
            output::tell(&format!("wrote {} keys in {seconds:.2} s", self.keys));
        }

        let kinds = self.kinds_reported();
        let mut seconds = Vec::new();
        let mut written = rows.as_mut().map_or(Ok(()), |rows| rows.header(&kinds));
        let outcome = load.run(|time, tally| {
            let second = Second::new(time, tally, &kinds);
            if let Some(rows) = &mut rows {
                written = rows.row(&second);
            }
            if self.svg.is_some() {
                seconds.push(second);
            }
            // A load whose rows cannot be read any more is of no use.
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        written?;
        // Drawn before a failed run is reported: the seconds before the failure are what explains it.
        if let Some(path) = &self.svg {
            chart::draw(path, &seconds)
                .map_err(|error| BenchError::Chart(path.clone(), error.to_string()))?;
        }
        self.report(&Summary::new(&outcome.map_err(BenchError::Load)?)).map_err(BenchError::Output)
    }

    fn load(&self) -> Load {
        let targets = match self.target.as_slice() {
            [] => vec![format!("{}:{}", self.host, self.port)],
            targets => targets.to_vec(),
        };
        Load {
            targets,
            clients: self.clients as usize,
            threads: self.threads as usize,
            workload: Workload {
                mix: self.mix.clone(),
                keys: self.keys,
                key_size: self.key_size as usize,
                value_size: self.value_size as usize,
                multi: usize::from(self.multi),
                pipeline: self.pipeline,
                wait: self.wait,
            },
            warmup: self.warmup,
            until: self.requests.map_or(Until::Elapsed(self.duration), Until::Requests),
            seed: self.seed,
        }
    }

    /// The columns: readers of the CSV rely on the first three, asked or not.
    fn kinds_reported(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::Get, Kind::Set, Kind::MultiPut];
        kinds.extend(Some(Kind::MultiGet).filter(|&kind| self.mix.has(kind)));
        kinds
    }

    fn report(&self, summary: &Summary) -> io::Result<()> {
        let csv_on_stdout = self.csv.as_deref() == Some(Path::new("-"));
        if self.json || csv_on_stdout {
            summary.print(&mut io::stderr())?;
        } else {
            summary.print(&mut io::stdout())?;
        }
        if self.json {
            let mut out = io::stdout();
            serde_json::to_writer(&mut out, summary)?;
            writeln!(out)?;
        }
        Ok(())
    }
}

/// The CSV while it is written.
struct Rows {
    path: PathBuf,
    out: Box<dyn Write>,
}

impl Rows {
    fn create(path: &Path) -> Result<Self, BenchError> {
        let out: Box<dyn Write> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = File::create(path);
            Box::new(file.map_err(|error| BenchError::File(path.to_owned(), error))?)
        };
        Ok(Self { path: path.to_owned(), out })
    }

    fn header(&mut self, kinds: &[Kind]) -> Result<(), BenchError> {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
        self.line(&format!("time,ops,{},p50_us,p99_us,errors", names.join(",")))
    }

    fn row(&mut self, second: &Second) -> Result<(), BenchError> {
        let counts: Vec<_> = second.by_kind.iter().map(|(_, count)| count.to_string()).collect();
        let Second { time, operations, p50_micros, p99_micros, errors, .. } = second;
        let counts = counts.join(",");
        self.line(&format!("{time},{operations},{counts},{p50_micros},{p99_micros},{errors}"))
    }

    /// One write a line, unbuffered: a reader of the file sees whole seconds.
    fn line(&mut self, text: &str) -> Result<(), BenchError> {
        let written = self.out.write_all(format!("{text}\n").as_bytes());
        written.map_err(|error| BenchError::File(self.path.clone(), error))
    }
}

/// Reads `10s`, `500ms`, `2m`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return Err("the units are ms, s and m".to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| "a duration looks like 10s".to_owned())?;
    Ok(Duration::from_millis(u64::from(number) * millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_make_sense() {
        command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("1h").is_err());
        assert!(parse_duration("s").is_err());
        assert!(parse_duration("-1s").is_err());
    }

    #[test]
    fn the_csv_keeps_its_columns() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("seconds.csv");
        let mut tally = Tally::default();
        tally.record([3, 2, 1, 0], Duration::from_micros(120));
        tally.record_errors(1, None);
        let kinds = [Kind::Get, Kind::Set, Kind::MultiPut];
        let mut rows = Rows::create(&path).expect("a new file");
        rows.header(&kinds).and_then(|()| rows.row(&Second::new(1, &tally, &kinds))).expect("room");
        let written = std::fs::read_to_string(path)?;
        assert_eq!(
            written,
            "time,ops,get,set,multiput,p50_us,p99_us,errors\n1,6,3,2,1,120,120,1\n"
        );
        Ok(())
    }
}
