//! `admin recover`: a way out of a lost majority.
//!
//! It works on the data directory of a node that does not run, and asks no other node: the nodes
//! that could be asked are lost.

use crate::actors::recovery::{self, Alone};
use crate::cli::clock::wall_clock;
use crate::cli::run::boot;
use crate::config::Config;
use crate::ids::NodeId;
use std::io::Write;
use std::path::Path;

/// What it costs, said before it is done and after.
const COST: &str = "\
What the lost nodes acknowledged and this node does not hold is lost for good, and a transaction
over several partitions may be there in part. The lost nodes must never start again with the data
they had: start them with empty data directories, and they rejoin as new replicas. The same goes for
other nodes with copies of these partitions: of several, choose the one whose last term, and then
whose last entry, is the latest, and recover that one only.
";

/// Says which partitions of a stopped node have lost their majority, and, if that was accepted, has
/// the copies there be the only ones that count.
pub fn go_on_alone(file: &Path, id: u16, lost: &[u16], accepted: bool) -> Result<(), String> {
    let config = Config::load(file).map_err(|error| error.to_string())?;
    let node = NodeId(id);
    let lost: Vec<NodeId> = lost.iter().copied().map(NodeId).collect();
    let is_known = |node: &NodeId| config.nodes().iter().any(|one| one.id == *node);
    if let Some(unknown) = lost.iter().chain([&node]).find(|node| !is_known(node)) {
        return Err(format!("there is no node {unknown} in {}", file.display()));
    }
    if lost.contains(&node) {
        return Err(format!("node {node} cannot go on and be lost"));
    }
    // Opening makes a directory where there is none.
    let path = config.data_of(node);
    if !path.join("identity").is_file() {
        return Err(format!("{} holds no data of node {node}", path.display()));
    }
    let alone = recovery::go_on_alone(&config, node, &lost, &boot(), wall_clock(), accepted)
        .map_err(|error| error.to_string())?;
    let text = tell(node, &lost, &alone, accepted);
    // It is done, whether or not this is still read.
    let _ = std::io::stdout().write_all(text.as_bytes());
    match alone.is_empty() || accepted {
        true => Ok(()),
        false => Err("nothing was changed: repeat it with --accept-loss to go on like that".into()),
    }
}

fn tell(node: NodeId, lost: &[NodeId], alone: &[Alone], accepted: bool) -> String {
    let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
    let lost = lost.join(", ");
    if alone.is_empty() {
        return format!(
            "every partition of node {node} has a majority without nodes {lost}: nothing to do\n"
        );
    }
    let mut text = match accepted {
        true => format!("node {node} goes on alone, without nodes {lost}, with\n"),
        false => {
            format!("without nodes {lost}, these partitions of node {node} have no majority:\n")
        }
    };
    for Alone { id, survivor } in alone {
        let others: Vec<String> = survivor.others.iter().map(ToString::to_string).collect();
        let (index, term) = survivor.last;
        text += &format!(
            "  partition {id}: up to entry {index} of term {term}; replicas {} vote no more\n",
            others.join(", ")
        );
    }
    text + COST
}
