//! `--role admin`: how a cluster is, and what its operator may do about it.
//!
//! What is told comes over HTTP (`/status`); what changes something goes as a command to the
//! client port (`CLUSTER TRANSFER`, `CLUSTER SNAPSHOT`, `CLUSTER BACKUP`). HTTP only answers
//! questions, so no page that a browser on the same machine has open can do anything.

mod asker;
mod backup;
#[cfg(test)]
mod fake;
mod image;
mod manifest;
mod recover;
mod restore;
mod show;

use super::client::link::Link;
use super::output;
use crate::config::Config;
use crate::net::resp::Value;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use restore::Held;
use serde_json::Value as Json;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a node may take to answer over HTTP.
const HTTP_PATIENCE: Duration = Duration::from_secs(3);

/// A longer status is cut off: it is none.
const STATUS_BYTES_MAX: u64 = 64 << 20;

/// How long a transfer may take before it is said not to have come about, and how often is looked.
const TRANSFER_LOOKS: u32 = 100;
const TRANSFER_LOOK: Duration = Duration::from_millis(50);

/// Nodes of a local cluster that are tried.
const LOCAL_NODES: u16 = 9;

/// Show how a cluster is, move leaders, back it up
#[derive(Debug, Parser)]
#[command(name = "quorate --role admin", disable_version_flag = true)]
struct Admin {
    /// The cluster's file
    #[arg(long, default_value = "cluster.yaml", value_name = "FILE", global = true)]
    config: PathBuf,
    /// Instead of the file: the base of the ports of a local cluster
    #[arg(long, value_name = "BASE", global = true)]
    port: Option<u16>,
    /// With --port: where the cluster runs
    #[arg(long, default_value = "127.0.0.1", global = true)]
    host: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Nodes, partitions, leaders, lag, log sizes
    Status {
        /// As JSON: the /status of every node
        #[arg(long)]
        json: bool,
    },
    /// Have a partition led by a node from now on, until the nodes are started again
    TransferLeader {
        /// Which partition
        partition: u16,
        /// Which node: it must hold a copy
        node: u16,
    },
    /// Have every node make snapshots of what it holds, so that older log is dropped
    Snapshot,
    /// Write all keys of all tables, as they are at one moment, into a new directory
    Backup {
        /// The directory
        dir: PathBuf,
        /// How long to try while nothing comes of it
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        patience: u16,
    },
    /// Have a stopped node go on alone where a majority of the copies is lost for good
    Recover {
        /// The node, which does not run; its data directory is on this machine
        #[arg(long, value_name = "ID")]
        node: u16,
        /// The nodes whose data is lost for good
        #[arg(long, value_name = "ID,ID", required = true, value_delimiter = ',')]
        lost: Vec<u16>,
        /// Do it; without this option it is only said what would be done and what it may cost
        #[arg(long)]
        accept_loss: bool,
    },
    /// Put a backup's keys into a cluster, of whatever size
    Restore {
        /// The directory
        dir: PathBuf,
        /// If the cluster holds keys, delete all of them first, once the backup was found whole
        #[arg(long)]
        force: bool,
        /// Go on with a restore that has ended after so many keys
        #[arg(long, value_name = "KEYS", conflicts_with = "force")]
        from: Option<u64>,
        /// How long to try while nothing comes of it
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        patience: u16,
    },
}

/// The role's options.
pub fn command() -> clap::Command {
    Admin::command()
}

/// Runs the role.
pub fn run(matches: &ArgMatches) -> ExitCode {
    let admin = match Admin::from_arg_matches(matches) {
        Ok(admin) => admin,
        Err(error) => error.exit(),
    };
    match serve(&admin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            output::complain(&problem);
            ExitCode::FAILURE
        }
    }
}

fn serve(admin: &Admin) -> Result<(), String> {
    if let Verb::Recover { node, lost, accept_loss } = &admin.verb {
        return recover::go_on_alone(&admin.config, *node, lost, *accept_loss);
    }
    // The whole backup is looked at before any node is.
    let verified = match &admin.verb {
        Verb::Restore { dir, .. } => Some(restore::verify(dir)?),
        _ => None,
    };
    let cluster = Cluster::find(admin)?;
    let seconds = |patience: &u16| Duration::from_secs((*patience).into());
    match &admin.verb {
        Verb::Status { json } => show::status(&cluster, *json),
        Verb::TransferLeader { partition, node } => transfer(&cluster, *partition, *node),
        Verb::Snapshot => snapshot(&cluster),
        // Done above: no node is asked.
        Verb::Recover { .. } => Ok(()),
        Verb::Backup { dir, patience } => backup::take(&cluster, dir, seconds(patience)),
        Verb::Restore { force, from, patience, .. } => {
            let held = match (from, force) {
                (Some(keys), _) => Held::Restored(*keys),
                (None, true) => Held::Deleted,
                (None, false) => Held::Refused,
            };
            let Some(verified) = verified else { return Ok(()) };
            verified.put_back(&cluster, held, seconds(patience))
        }
    }
}

/// A node as the admin reaches it, and what it last said of itself.
#[derive(Debug)]
struct Node {
    id: u16,
    host: String,
    client: u16,
    http: u16,
    status: Option<Json>,
}

impl Node {
    fn look(&mut self) {
        self.status = status_of(&self.host, self.http).ok();
    }

    fn link(&self) -> Result<Link, String> {
        let mut link = Link::new(self.host.clone(), self.client);
        link.connect().map_err(|error| error.to_string())?;
        Ok(link)
    }
}

/// A cluster, as far as its nodes answer.
#[derive(Debug)]
struct Cluster {
    name: String,
    nodes: Vec<Node>,
}

impl Cluster {
    fn find(admin: &Admin) -> Result<Cluster, String> {
        let mut cluster = match admin.port {
            Some(base) => Cluster::local(&admin.host, base)?,
            None => Cluster::of_file(&admin.config)?,
        };
        cluster.nodes.iter_mut().for_each(Node::look);
        match cluster.nodes.iter().any(|node| node.status.is_some()) {
            true => Ok(cluster),
            false => Err(format!("no node of cluster '{}' answers over HTTP", cluster.name)),
        }
    }

    fn of_file(file: &Path) -> Result<Cluster, String> {
        let config = Config::load(file).map_err(|error| {
            format!("{error}; name another file with --config, or a local cluster with --port BASE")
        })?;
        let node = |node: &crate::config::Node| Node {
            id: node.id.0,
            host: node.host.clone(),
            client: node.client,
            http: node.http,
            status: None,
        };
        let nodes = config.nodes().iter().map(node).collect();
        Ok(Cluster { name: config.cluster().to_owned(), nodes })
    }

    /// Any node that answers names the others.
    fn local(host: &str, base: u16) -> Result<Cluster, String> {
        let ports = (1..=LOCAL_NODES).filter_map(|node| base.checked_add(200 + node));
        let found = ports.filter_map(|port| status_of(host, port).ok()).next();
        let Some(status) = found else {
            let first = u32::from(base) + 201;
            return Err(match base.checked_add(200 + LOCAL_NODES) {
                Some(_) => format!("no node answers over HTTP at {host}:{first}..."),
                None => format!("--port {base}: the nodes' HTTP ports, from {first} on, are none"),
            });
        };
        let port = |node: &Json, name: &str| node[name].as_u64().unwrap_or_default() as u16;
        let nodes = status["nodes"].as_array().into_iter().flatten().map(|node| Node {
            id: port(node, "id"),
            host: node["host"].as_str().unwrap_or(host).to_owned(),
            client: port(node, "client"),
            http: port(node, "http"),
            status: None,
        });
        let name = status["cluster"].as_str().unwrap_or_default().to_owned();
        Ok(Cluster { name, nodes: nodes.collect() })
    }

    /// Asks every node that answers; tells how many said what number.
    fn ask_all(&self, words: &[&str]) -> Result<Vec<(u16, i64)>, String> {
        let mut told = Vec::new();
        for node in self.nodes.iter().filter(|node| node.status.is_some()) {
            match ask(&mut node.link()?, words)? {
                Value::Int(number) => told.push((node.id, number)),
                other => return Err(format!("node {}: {}", node.id, said(&other))),
            }
        }
        Ok(told)
    }

    /// The leader of a partition: the node that says so of itself in the latest term.
    fn leader(&self, partition: u16) -> Option<u16> {
        let replicas = self.nodes.iter().filter_map(|node| {
            let replicas = node.status.as_ref()?["replicas"].as_array()?;
            let of = |one: &&Json| one["id"] == partition && one["role"] == "leader";
            Some((replicas.iter().find(of)?["term"].as_u64()?, node.id))
        });
        replicas.max().map(|(_, node)| node)
    }
}

/// Asks for one thing, in words.
fn ask(link: &mut Link, words: &[&str]) -> Result<Value, String> {
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    link.send(&words).and_then(|()| link.receive()).map_err(|error| error.to_string())
}

/// Prints what the operator asked for, and ends the line.
fn show(text: &str) -> Result<(), String> {
    output::print_line(text).map_err(|error| format!("{}: {error}", output::NOT_WRITTEN))
}

fn said(value: &Value) -> String {
    match value {
        Value::Error(error) | Value::Simple(error) => error.clone(),
        _ => "an answer of the wrong kind".into(),
    }
}

/// Whether a node can lead a partition: what is wrong is said at once.
fn check_transfer(cluster: &Cluster, partition: u16, node: u16) -> Result<(), String> {
    let ids = |ids: &mut dyn Iterator<Item = u64>| -> String {
        ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
    };
    let Some(named) = cluster.nodes.iter().find(|one| one.id == node) else {
        let known = ids(&mut cluster.nodes.iter().map(|one| one.id.into()));
        return Err(format!("there is no node {node}: the nodes are {known}"));
    };
    let holders = |id: u64| cluster.nodes.iter().filter(move |one| held(one).any(|one| one == id));
    let partition = u64::from(partition);
    if holders(partition).next().is_none() {
        let last = cluster.nodes.iter().flat_map(held).max().unwrap_or_default();
        return Err(match partition > last {
            true => format!("there is no partition {partition}: the last is {last}"),
            false => format!("no node that answers holds a copy of partition {partition}"),
        });
    }
    if named.status.is_none() {
        return Err(format!("node {node} does not answer over HTTP: it cannot lead anything now"));
    }
    if !holders(partition).any(|one| one.id == node) {
        let holders = ids(&mut holders(partition).map(|one| one.id.into()));
        return Err(format!("node {node} holds no copy of partition {partition}: {holders} do"));
    }
    Ok(())
}

/// The partitions of which a node holds a copy, as it says.
fn held(node: &Node) -> impl Iterator<Item = u64> {
    let status = node.status.as_ref();
    let replicas = status.and_then(|status| status["replicas"].as_array());
    replicas.into_iter().flatten().filter_map(|one| one["id"].as_u64())
}

fn transfer(cluster: &Cluster, partition: u16, node: u16) -> Result<(), String> {
    check_transfer(cluster, partition, node)?;
    let before = cluster.leader(partition);
    let words = ["CLUSTER", "TRANSFER", &partition.to_string(), &node.to_string()];
    // All of them are to know which node to prefer; one hands over.
    cluster.ask_all(&words)?;
    let Some(new) = cluster.nodes.iter().find(|one| one.id == node) else {
        return Err(format!("there is no node {node}"));
    };
    let mut after = Cluster {
        name: cluster.name.clone(),
        nodes: vec![Node { id: node, host: new.host.clone(), status: None, ..*new }],
    };
    for _ in 0..TRANSFER_LOOKS {
        after.nodes.iter_mut().for_each(Node::look);
        if after.leader(partition) == Some(node) {
            let was = match before {
                Some(before) if before != node => format!(", which node {before} led"),
                _ => String::new(),
            };
            let text = format!("node {node} leads partition {partition}{was}");
            return show(&text);
        }
        std::thread::sleep(TRANSFER_LOOK);
    }
    Err(format!("node {node} does not lead partition {partition} yet: see the status"))
}

fn snapshot(cluster: &Cluster) -> Result<(), String> {
    let mut lines = Vec::new();
    for (node, count) in cluster.ask_all(&["CLUSTER", "SNAPSHOT"])? {
        lines.push(format!(
            "node {node} makes snapshots of {count} partitions, one after the other"
        ));
    }
    show(&lines.join("\n"))
}

/// What a node says of itself.
fn status_of(host: &str, port: u16) -> Result<Json, String> {
    let get = || -> std::io::Result<String> {
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, HTTP_PATIENCE) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(HTTP_PATIENCE))?;
                    let request = format!(
                        "GET /status HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
                    );
                    stream.write_all(request.as_bytes())?;
                    let mut response = String::new();
                    stream.take(STATUS_BYTES_MAX).read_to_string(&mut response)?;
                    return Ok(response);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let response = get().map_err(|error| error.to_string())?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no HTTP response")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}
