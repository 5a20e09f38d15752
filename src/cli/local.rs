//! `--role local`: a whole cluster in one process, on loopback.

use super::clock::wall_clock;
use super::run::{LOST, report, run as run_nodes};
use crate::config::{ARBITERS_MAX, Config, Durability, NODES_MAX};
use crate::error::{Error, Result};
use crate::logging;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use log::LevelFilter;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use tempfile::TempDir;

/// A whole Quorate cluster in one process, on loopback
#[derive(Debug, Parser)]
#[command(name = "quorate --role local", disable_version_flag = true)]
struct Local {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX as i64))]
    nodes: u16,
    /// Ports start here: node n serves clients at BASE+n, peers at BASE+100+n, HTTP at BASE+200+n
    #[arg(long, default_value_t = 7000, value_name = "BASE")]
    port: u16,
    /// Keep the data here, node n's in DIR/node-n, and take up what is there; without it the data
    /// is in a temporary folder and gone when the process ends
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How many nodes hold each key: 1, 3, 5 or 7; by default 3, or 1 where there are fewer nodes
    #[arg(long, value_name = "N")]
    replicas: Option<u8>,
    /// What an acknowledged write survives: loss of power (sync, the default), loss of processes
    /// (interval), nothing (none, for 1 replica)
    #[arg(long, value_name = "WHAT", value_parser = durability())]
    durability: Option<Durability>,
    /// Threads a node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=ARBITERS_MAX as i64))]
    arbiters: u16,
    /// How much to log: off, error, warn, info, debug, trace
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log_level: LevelFilter,
}

/// The role's options.
pub fn command() -> clap::Command {
    Local::command()
}

/// Runs the role.
pub fn run(matches: &ArgMatches) -> ExitCode {
    let options = match Local::from_arg_matches(matches) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    let served = serve(&options);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Listen(_)) => report(&error, "; choose others with --port BASE"),
        Err(error @ Error::Corrupt(_)) => report(&error, LOST),
        Err(error) => report(&error, ""),
    }
}

/// The words for a durability, as options.
fn durability() -> impl TypedValueParser<Value = Durability> {
    PossibleValuesParser::new(Durability::ALL.map(Durability::name))
        .try_map(|name| Durability::named(&name).ok_or("no durability"))
}

fn serve(options: &Local) -> Result<()> {
    let mut config = Config::local(options.nodes, options.port)?
        .with_class(options.replicas, options.durability)?;
    config.arbiters = usize::from(options.arbiters);
    logging::init(options.log_level, wall_clock).map_err(Error::Arguments)?;
    // Removed when it is dropped, which is after the nodes have stopped.
    let mut temporary = None;
    config.data = match &options.data {
        Some(data) => data.clone(),
        None => temporary.insert(temporary_folder()?).path().to_owned(),
    };
    let nodes: Vec<_> = config.nodes().iter().map(|node| node.id).collect();
    run_nodes(config, &nodes, |config, took| {
        let banner = banner(config, took, options.data.is_some());
        // The cluster serves whether or not this is still read (`quorate | head -1`).
        let _ = writeln!(std::io::stdout(), "{banner}");
    })
}

fn temporary_folder() -> Result<TempDir> {
    tempfile::Builder::new().prefix("quorate-").tempdir().map_err(|cause| {
        Error::Io("cannot make a temporary folder (choose one with --data DIR)".to_owned(), cause)
    })
}

/// What a person who has just started a cluster wants to know.
fn banner(config: &Config, took: u64, stays: bool) -> String {
    let nodes = config.nodes();
    let mut text =
        format!("Quorate {}: {} nodes ready after {took} ms\n\n", super::VERSION, nodes.len());
    text += "  node  clients          peers            http\n";
    for node in nodes {
        let at = |port: u16| format!("{}:{port}", node.host);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<4}  {:<15}  {:<15}  http://{}/status",
            node.id.0,
            at(node.client),
            at(node.peer),
            at(node.http)
        );
    }
    let port = |index: usize| nodes[index % nodes.len()].client;
    let _ = write!(
        text,
        "\nAny Redis client, any node, any keys:\n  \
         redis-cli -p {} mset a 1 b 2 c 3 d 4   one atomic write, wherever they lie\n  \
         redis-cli -p {} mget a b c d           seen alike from every node\n  \
         redis-benchmark -p {} -t set,get -P 16 -q\n\n\
         {}\nCtrl-C stops it.",
        port(1),
        port(2),
        port(0),
        promise(config, stays)
    );
    text
}

/// What an acknowledged write has survived, and where it is.
fn promise(config: &Config, stays: bool) -> String {
    let class = config.classes()[0];
    let done = match (class.durability, class.replicas) {
        (Durability::None, _) => {
            return "1 replica, none: everything is in memory and gone when this process ends."
                .to_owned();
        }
        (Durability::Interval, 1) => "it is there, and on disk within 1 s",
        (Durability::Interval, _) => "a majority has it, on disk within 1 s",
        (Durability::Sync, 1) => "it is on disk",
        (Durability::Sync, _) => "a majority has it on disk",
    };
    let plural = if class.replicas == 1 { "" } else { "s" };
    let place = match stays {
        true => format!("Data is in {} and stays.", config.data.display()),
        false => "Data is in a temporary folder and gone when this process ends; keep it with\n\
                  --data DIR."
            .to_owned(),
    };
    let (replicas, durability) = (class.replicas, class.durability.name());
    format!("{replicas} replica{plural}, {durability}: an OK means that {done}.\n{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_every_port_and_fits_a_terminal() {
        let config = Config::local(3, 7000).unwrap();
        let text = banner(&config, 12, false);
        for port in [7001, 7002, 7003, 7101, 7102, 7103, 7201, 7202, 7203] {
            assert!(text.contains(&port.to_string()), "{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn the_banner_says_what_is_promised_and_where_it_is() {
        let said = |replicas, durability, stays| {
            let config = Config::local(3, 7000).unwrap();
            let mut config = config.with_class(Some(replicas), Some(durability)).unwrap();
            config.data = "here".into();
            promise(&config, stays)
        };
        assert_eq!(
            said(3, Durability::Sync, true),
            "3 replicas, sync: an OK means that a majority has it on disk.\n\
             Data is in here and stays."
        );
        assert_eq!(
            said(1, Durability::Interval, false),
            "1 replica, interval: an OK means that it is there, and on disk within 1 s.\n\
             Data is in a temporary folder and gone when this process ends; keep it with\n\
             --data DIR."
        );
        assert_eq!(
            said(1, Durability::None, true),
            "1 replica, none: everything is in memory and gone when this process ends."
        );
        for (replicas, durability) in
            [(1, Durability::Sync), (3, Durability::Sync), (3, Durability::Interval)]
        {
            for line in said(replicas, durability, false).lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn options_are_read() {
        let read = |args: &[&str]| Local::try_parse_from([&["local"], args].concat());
        let options = read(&["--data", "d", "--replicas", "1", "--durability", "none"]).unwrap();
        assert_eq!(options.data, Some(PathBuf::from("d")));
        assert_eq!((options.replicas, options.durability), (Some(1), Some(Durability::None)));
        let options = read(&[]).unwrap();
        assert_eq!((options.data, options.replicas, options.durability), (None, None, None));
        let refused = read(&["--durability", "always"]).unwrap_err().to_string();
        assert!(refused.contains("[possible values: none, interval, sync]"), "{refused}");
    }

    #[test]
    fn the_temporary_folder_goes_with_its_owner() {
        let folder = temporary_folder().unwrap();
        let path = folder.path().to_owned();
        assert!(path.is_dir());
        drop(folder);
        assert!(!path.exists());
    }
}
