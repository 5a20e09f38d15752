//! The status of a cluster, for people and as JSON.

use super::{Cluster, Node, show};
use crate::command::facts::runs;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

/// Shows how the cluster is. Fails if a node does not answer or a partition has no leader, so that
/// scripts need not read it.
pub(super) fn status(cluster: &Cluster, as_json: bool) -> Result<(), String> {
    if as_json {
        let nodes: Vec<Json> = cluster
            .nodes
            .iter()
            .map(|node| json!({ "id": node.id, "status": node.status }))
            .collect();
        show(&format!("{:#}", json!({ "cluster": cluster.name, "nodes": nodes })))?;
    } else {
        show(table(cluster).trim_end())?;
    }
    let silent: Vec<String> = cluster
        .nodes
        .iter()
        .filter(|node| node.status.is_none())
        .map(|node| node.id.to_string())
        .collect();
    let orphans: Vec<String> = partitions(cluster)
        .into_iter()
        .filter(|(_, leader)| leader.is_none())
        .map(|(id, _)| id.to_string())
        .collect();
    match (silent.as_slice(), orphans.as_slice()) {
        ([], []) => Ok(()),
        (_, []) => Err(format!("no answer from nodes {}", silent.join(", "))),
        _ => Err(format!("partitions without a leader: {}", orphans.join(", "))),
    }
}

/// Each partition with its leader's report, if one leads.
fn partitions(cluster: &Cluster) -> BTreeMap<u64, Option<&Json>> {
    let mut all: BTreeMap<u64, Option<&Json>> = BTreeMap::new();
    for one in cluster.nodes.iter().flat_map(replicas) {
        let best = all.entry(one["id"].as_u64().unwrap_or_default()).or_default();
        let newer = best.is_none_or(|best| best["term"].as_u64() < one["term"].as_u64());
        if one["role"] == "leader" && newer {
            *best = Some(one);
        }
    }
    all
}

fn replicas(node: &Node) -> impl Iterator<Item = &Json> {
    let status = node.status.as_ref();
    status.and_then(|status| status["replicas"].as_array()).into_iter().flatten()
}

fn table(cluster: &Cluster) -> String {
    let partitions = partitions(cluster);
    let (nodes, count) = (cluster.nodes.len(), partitions.len());
    let mut text = format!("cluster '{}': {nodes} nodes, {count} partitions\n", cluster.name);
    let classes = cluster.nodes.iter().find_map(|node| node.status.as_ref()?["tables"].as_array());
    for class in classes.into_iter().flatten() {
        let tables = class["tables"].as_array().into_iter().flatten();
        let tables = runs(tables.filter_map(|table| table.as_u64()?.try_into().ok()));
        let (replicas, durability) = (&class["replicas"], &class["durability"]);
        let durability = durability.as_str().unwrap_or("?");
        text += &format!("tables {tables}: {replicas} replicas, {durability}\n");
    }
    text +=
        "\nNODE  CLIENTS AT             STATE     LEADS  HOLDS  LOG BYTES  SEGMENTS      SYNCS\n";
    for node in &cluster.nodes {
        let address = format!("{}:{}", node.host, node.client);
        let Some(status) = &node.status else {
            text += &format!("{:<5} {address:<22} silent\n", node.id);
            continue;
        };
        let state = if status["formed"] == Json::Bool(true) { "serves" } else { "waits" };
        let held = replicas(node).count();
        let led = replicas(node).filter(|one| one["role"] == "leader").count();
        let log = |name: &str| status["log"][name].as_u64().unwrap_or_default();
        text += &format!(
            "{:<5} {address:<22} {state:<9} {led:>5}  {held:>5}  {:>9}  {:>8}  {:>9}\n",
            node.id,
            log("bytes"),
            log("segments"),
            log("syncs"),
        );
    }
    text += "\nPARTITION  LEADER  TERM   COMMITTED     APPLIED   LOG BYTES      ITEMS  FOLLOWERS\n";
    for (id, leader) in partitions {
        let Some(leader) = leader else {
            text += &format!("{id:<9}  none\n");
            continue;
        };
        let number = |name: &str| leader[name].as_u64().unwrap_or_default();
        let followers: Vec<String> =
            leader["followers"].as_array().into_iter().flatten().map(follower).collect();
        let wished = leader["preferred"] == leader["leader"];
        text += &format!(
            "{id:<9}  {:<6}  {:<4} {:>11} {:>11} {:>11} {:>10}  {}\n",
            format!("{}{}", leader["leader"], if wished { "" } else { "*" }),
            number("term"),
            number("commit"),
            number("applied"),
            number("log_bytes"),
            number("items"),
            followers.join(", "),
        );
    }
    text
}

/// `2`, `3 (12 behind)`, `1 (lost)`.
fn follower(one: &Json) -> String {
    let node = &one["node"];
    let lag = one["lag"].as_u64().unwrap_or_default();
    match (one["active"].as_bool(), one["awaits_snapshot"].as_bool()) {
        (Some(false), _) => format!("{node} (lost, {lag} behind)"),
        (_, Some(true)) => format!("{node} (takes a snapshot)"),
        _ if lag > 0 => format!("{node} ({lag} behind)"),
        _ => node.to_string(),
    }
}
