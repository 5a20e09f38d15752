//! `--role node`: one node of a cluster, in the foreground.

use super::clock::wall_clock;
use super::output;
use super::run::{LOST, report, run as run_nodes};
use crate::config::{ARBITERS_MAX, Config};
use crate::error::Error;
use crate::ids::NodeId;
use crate::logging;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use log::LevelFilter;
use std::path::PathBuf;
use std::process::ExitCode;

/// One node of the cluster that a cluster.yaml describes, in the foreground
#[derive(Debug, Parser)]
#[command(name = "quorate --role node", disable_version_flag = true)]
struct One {
    /// Which of the file's nodes
    #[arg(long, required_unless_present = "check")]
    id: Option<u16>,
    /// The cluster's file, the same on all nodes
    #[arg(long, default_value = "cluster.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Keep the data here, in DIR/node-ID, instead of where the file says
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Say whether the file is sound, and start nothing
    #[arg(long)]
    check: bool,
    /// Threads that serve, instead of what the file says
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=ARBITERS_MAX as i64))]
    arbiters: Option<u16>,
    /// How much to log, instead of what the file says: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LevelFilter>,
}

/// The role's options.
pub fn command() -> clap::Command {
    One::command()
}

/// Runs the role.
pub fn run(matches: &ArgMatches) -> ExitCode {
    let options = match One::from_arg_matches(matches) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Listen(_)) => {
            let file = options.config.display();
            report(&error, &format!("; choose another in {file}"))
        }
        Err(error @ Error::Corrupt(_)) => report(&error, LOST),
        Err(error) => report(&error, ""),
    }
}

fn serve(options: &One) -> crate::error::Result<()> {
    let mut config = Config::load(&options.config)?;
    if let Some(id) = options.id
        && config.node(NodeId(id)).is_none()
    {
        let known: Vec<String> = config.nodes().iter().map(|node| node.id.to_string()).collect();
        let (file, known) = (options.config.display(), known.join(", "));
        return Err(Error::Arguments(format!("--id {id}: {file} has nodes {known}")));
    }
    if options.check {
        let (file, nodes) = (options.config.display(), config.nodes().len());
        let (cluster, partitions) = (config.cluster(), config.partitions());
        let sizes = format!("{nodes} nodes, {partitions} partitions");
        return output::print_line(&format!("{file}: cluster '{cluster}', {sizes}: sound"))
            .map_err(|cause| Error::Io(output::NOT_WRITTEN.into(), cause));
    }
    let Some(id) = options.id.map(NodeId) else {
        return Err(Error::Arguments("--id is missing: which of the file's nodes?".into()));
    };
    if let Some(arbiters) = options.arbiters {
        config.arbiters = usize::from(arbiters);
    }
    if let Some(data) = &options.data {
        config.data = data.clone();
    }
    let level = options.log_level.unwrap_or(config.log_level);
    logging::init(level, wall_clock).map_err(Error::Arguments)?;
    run_nodes(config, &[id], |_, took| {
        // The cluster is formed. Whether a majority is there shows only once partitions are led.
        log::info!(target: "node", "node {id} is ready after {took} ms, serves what has a leader");
    })
}
