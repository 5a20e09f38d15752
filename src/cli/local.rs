//! `--role local`: a whole cluster in one process, on loopback.

use super::run::{report, run as run_nodes, wall_clock};
use crate::config::{ARBITERS_MAX, Config, NODES_MAX};
use crate::error::Error;
use crate::logging;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use log::LevelFilter;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

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
    let served = Config::local(options.nodes, options.port).and_then(|mut config| {
        config.arbiters = usize::from(options.arbiters);
        logging::init(options.log_level, wall_clock).map_err(Error::Arguments)?;
        let nodes: Vec<_> = config.nodes().iter().map(|node| node.id).collect();
        run_nodes(config, &nodes, |config, took| {
            // The cluster serves whether or not anybody still reads this (`quorate | head -1`).
            let _ = writeln!(std::io::stdout(), "{}", banner(config, took));
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Listen(_)) => report(&error, "; choose others with --port BASE"),
        Err(error) => report(&error, ""),
    }
}

/// What a person who has just started a cluster wants to know.
fn banner(config: &Config, took: u64) -> String {
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
         Everything is in memory and gone when this process ends. Ctrl-C stops it.",
        port(1),
        port(2),
        port(0)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_every_port_and_fits_a_terminal() {
        let config = Config::local(3, 7000).unwrap();
        let text = banner(&config, 12);
        for port in [7001, 7002, 7003, 7101, 7102, 7103, 7201, 7202, 7203] {
            assert!(text.contains(&port.to_string()), "{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
