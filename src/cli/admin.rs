//! `--role admin`: how a cluster is, and what its operator may do about it.
//!
//! What is told comes over HTTP (`/status`); what changes something goes as a command to the
//! client port (`CLUSTER TRANSFER`, `CLUSTER SNAPSHOT`, `CLUSTER IMAGE`). HTTP only answers
//! questions, so no page that a browser on the same machine has open can do anything.

mod backup;
mod recover;
mod show;

use super::client::link::Link;
use crate::config::Config;
use crate::net::resp::Value;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value as Json;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a node may take to answer over HTTP.
const HTTP_PATIENCE: Duration = Duration::from_secs(3);

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
        /// If the cluster holds keys, delete all of them first
        #[arg(long)]
        force: bool,
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
            eprintln!("quorate: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn serve(admin: &Admin) -> Result<(), String> {
    if let Verb::Recover { node, lost, accept_loss } = &admin.verb {
        return recover::go_on_alone(&admin.config, *node, lost, *accept_loss);
    }
    let cluster = Cluster::find(admin)?;
    match &admin.verb {
        Verb::Status { json } => show::status(&cluster, *json),
        Verb::TransferLeader { partition, node } => transfer(&cluster, *partition, *node),
        Verb::Snapshot => snapshot(&cluster),
        // Done above: no node is asked.
        Verb::Recover { .. } => Ok(()),
        Verb::Backup { dir } => backup::take(&mut cluster.link()?, &cluster.name, dir),
        Verb::Restore { dir, force } => backup::put_back(&mut cluster.link()?, dir, *force),
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
            return Err(format!("no node answers over HTTP at {host}:{}...", base + 201));
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

    /// A connection to any node that serves.
    fn link(&self) -> Result<Link, String> {
        let formed = |node: &&Node| {
            node.status.as_ref().is_some_and(|status| status["formed"] == Json::Bool(true))
        };
        let mut last = "no node serves".to_owned();
        for node in self.nodes.iter().filter(formed) {
            match node.link() {
                Ok(link) => return Ok(link),
                Err(problem) => last = problem,
            }
        }
        Err(last)
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

    /// Who leads a partition, by the one who says so of itself in the latest term.
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

fn said(value: &Value) -> String {
    match value {
        Value::Error(error) | Value::Simple(error) => error.clone(),
        _ => "an answer of the wrong kind".into(),
    }
}

fn transfer(cluster: &Cluster, partition: u16, node: u16) -> Result<(), String> {
    let before = cluster.leader(partition);
    let words = ["CLUSTER", "TRANSFER", &partition.to_string(), &node.to_string()];
    // All of them are to know whom to wish for; one hands over.
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
            println!("node {node} leads partition {partition}{was}");
            return Ok(());
        }
        std::thread::sleep(TRANSFER_LOOK);
    }
    Err(format!("node {node} does not lead partition {partition} yet: see the status"))
}

fn snapshot(cluster: &Cluster) -> Result<(), String> {
    for (node, count) in cluster.ask_all(&["CLUSTER", "SNAPSHOT"])? {
        println!("node {node} makes snapshots of {count} partitions, one after the other");
    }
    Ok(())
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
                    stream.read_to_string(&mut response)?;
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
