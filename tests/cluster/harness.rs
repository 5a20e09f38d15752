//! Starts, hurts and stops the processes of a cluster, and talks to them.
//!
//! Nothing here waits for a fixed time: whatever is waited for is asked for again until it is
//! there or a deadline passes ([`eventually`]).

use redis::{RedisResult, Value};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[path = "network.rs"]
pub mod network;

use network::{Network, home};

/// How many partitions a test cluster has, as `cluster.yaml` has by default.
pub const PARTITIONS: u16 = 12;

/// How long anything may take before the test gives up: generous, for slow and busy machines.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Three copies, each synced before a write is acknowledged: what a cluster has by default.
pub const REPLICATED: &str = "{ mode: strong, replicas: 3, durability: sync }";

/// One copy of each key, in memory: it is gone with its node.
pub const IN_MEMORY: &str = "{ mode: strong, replicas: 1, durability: none }";

/// How often a condition is asked for again.
const POLL: Duration = Duration::from_millis(5);

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("QUORATE_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_quorate")), PathBuf::from)
}

/// Asks until `ask` answers, and returns the answer.
///
/// # Panics
/// When it has no answer within `deadline`.
#[track_caller]
pub fn eventually<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Tells threads to stop when it is dropped, also where the test fails: a scope waits for its
/// threads before it lets a panic out, and those that were never told would keep it for ever.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A port that nobody listens on, handed out once in this process.
///
/// They lie below the range from which the kernel takes the ports of outgoing connections, so a
/// node that is restarted finds its port free again.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at the same time start at different places.
    let offset = std::process::id().wrapping_mul(61) % COUNT;
    for _ in 0..COUNT {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + (offset + next) % COUNT) as u16;
        if is_free(port) {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT);
}

/// Whether a listener could be bound to this loopback port.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// The partition of a key.
pub fn partition_of(key: &str) -> u16 {
    let slot = crc16(tag_of(key.as_bytes())) % 16_384;
    (u32::from(slot) * u32::from(PARTITIONS) / 16_384) as u16
}

/// The node that leads a key's partition while all is well: each node leads a run of partitions.
pub fn leader_of(key: &str, nodes: u16) -> u16 {
    assert!(PARTITIONS.is_multiple_of(nodes), "all runs are of one length");
    partition_of(key) / (PARTITIONS / nodes) + 1
}

fn tag_of(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(len) => &key[open + 1..open + 1 + len],
    }
}

/// CRC16/XMODEM, bit by bit: a second opinion on the table-driven one in `cluster/slots.rs`.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// A process of the binary whose output goes to a file. It is killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts the binary; its output is appended to `log`.
    pub fn start(args: &[&str], log: &Path) -> Process {
        Process::start_in(args, log, &[])
    }

    /// The same, with more in its environment.
    fn start_in(args: &[&str], log: &Path, environment: &[(&str, &OsStr)]) -> Process {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let err = out.try_clone().expect("a second handle of the log file");
        let child = Command::new(binary())
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("the binary starts");
        Process { child }
    }

    /// Starts the binary as the caller likes: with other streams, limits, surroundings.
    pub fn start_by(args: &[&str], log: &Path, prepare: impl FnOnce(&mut Command)) -> Process {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let err = out.try_clone().expect("a second handle of the log file");
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
        prepare(&mut command);
        Process { child: command.spawn().expect("the binary starts") }
    }

    /// Starts the binary with a standard output that the caller made.
    pub fn start_with_output(args: &[&str], out: impl Into<Stdio>) -> Process {
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(out);
        Process { child: command.spawn().expect("the binary starts") }
    }

    /// The same, with a standard error that goes to a file.
    pub fn start_with_outputs(args: &[&str], out: impl Into<Stdio>, err: File) -> Process {
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
        Process { child: command.spawn().expect("the binary starts") }
    }

    /// Any other process that is to end with the test.
    pub fn adopt(child: Child) -> Process {
        Process { child }
    }

    /// The reader of its standard error, if that is a pipe.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Sends a signal by its name (`STOP`, `CONT`, `TERM`, `INT`).
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").arg("-c").arg(&kill).status().expect("a shell");
        assert!(status.success(), "{kill}: {status}");
    }

    /// Whether it has a socket.
    pub fn has_socket(&self) -> bool {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("its files");
        let mut targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| target.to_string_lossy().starts_with("socket:"))
    }

    /// Whether each of its threads has stopped (`STOP`): the signal's sender does not wait for that.
    pub fn is_stopped(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = fs::read_dir(tasks).expect("the threads of a process");
        let mut states = tasks.flatten().filter_map(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            stat.rsplit(") ").next().and_then(|fields| fields.chars().next())
        });
        states.all(|state| state == 'T')
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // A process that is gone already is as dead as it can be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process ends", PATIENCE, || self.ended())
    }

    /// The memory that the process has in use, in bytes.
    pub fn memory(&self) -> u64 {
        let output = Command::new("ps")
            .args(["-o", "rss=", "-p", &self.child.id().to_string()])
            .output()
            .expect("ps");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse::<u64>().expect("kibibytes") * 1024
    }

    /// The most memory that the process has had in use, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a process that runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
        peak.and_then(|peak| peak.parse::<u64>().ok()).expect("kibibytes") * 1024
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the binary to its end: exit code, standard output, standard error. One that does not end
/// is killed, and the test fails.
#[track_caller]
pub fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let folder = TempDir::new().expect("a temporary folder");
    let paths = ["out", "err"].map(|name| folder.path().join(name));
    let [out, err] = [0, 1].map(|n| File::create(&paths[n]).expect("a file for the output"));
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
    let mut process = Process { child: command.spawn().expect("the binary starts") };
    let status = process.wait();
    let [out, err] = paths.map(|path| {
        let bytes = fs::read(path).expect("the output");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    (status.code(), out, err)
}

/// One node of the file.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub client: u16,
    pub peer: u16,
    pub http: u16,
}

/// A cluster of processes, each started with `--role node` on a generated `cluster.yaml`. Each has
/// a data directory of its own, which it finds again when it is started again.
pub struct Cluster {
    folder: TempDir,
    name: String,
    class: &'static str,
    ports: Vec<Ports>,
    processes: Vec<Option<Process>>,
    network: Option<Network>,
    /// Where nodes die that are started from now on: each once.
    armed: BTreeMap<u16, String>,
    /// What stands between the nodes and their clocks, in [`Cluster::start_with_clocks`].
    clocks: Option<PathBuf>,
}

/// By how many milliseconds a node's clocks are ahead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    pub wall: i64,
    pub monotonic: i64,
    pub boottime: i64,
}

impl Cluster {
    /// Three nodes with three copies of everything, all ready.
    pub fn start() -> Cluster {
        Cluster::start_with("")
    }

    /// The same, of a file that ends with these lines.
    pub fn start_with(more: &str) -> Cluster {
        let mut cluster = Cluster::new(3);
        let text = cluster.yaml(&cluster.name, PARTITIONS) + more;
        cluster.write("cluster.yaml", &text);
        cluster.start_all();
        cluster
    }

    /// Three nodes with one copy of everything, in memory, all ready.
    pub fn start_in_memory() -> Cluster {
        Cluster::start_in_memory_with("")
    }

    /// The same, of a file that ends with these lines.
    pub fn start_in_memory_with(more: &str) -> Cluster {
        let mut cluster = Cluster::new(3);
        cluster.class = IN_MEMORY;
        let text = cluster.yaml(&cluster.name, PARTITIONS) + more;
        cluster.write("cluster.yaml", &text);
        cluster.start_all();
        cluster
    }

    /// Three nodes that reach each other over a [`Network`], all ready.
    pub fn start_networked() -> Cluster {
        Cluster::start_networked_of(3, REPLICATED)
    }

    /// So many of them, with tables of this class.
    pub fn start_networked_of(nodes: u16, class: &'static str) -> Cluster {
        let mut cluster = Cluster::new(nodes);
        cluster.class = class;
        // Each binds to an address of its own; at the one that the file names listens the network,
        // so that the nodes agree on the file.
        for id in cluster.ids() {
            let text = cluster.yaml(&cluster.name, PARTITIONS);
            cluster.write(&format!("node-{id}.yaml"), &format!("{text}bind: {}\n", home(id)));
        }
        cluster.network = Some(Network::between(&cluster.ports));
        cluster.start_all();
        cluster
    }

    /// Three nodes with three copies of everything, all ready, whose wall clocks are so many ms
    /// ahead: [`Cluster::set_clock`] changes that. None, with a word about it, where there is no C
    /// compiler to make what stands between a node and its clocks.
    pub fn start_with_clocks(ahead: [i64; 3]) -> Option<Cluster> {
        Cluster::new(3).started_with_clocks(ahead)
    }

    /// The same with one copy of everything, in memory.
    pub fn start_in_memory_with_clocks(ahead: [i64; 3]) -> Option<Cluster> {
        let mut cluster = Cluster::new(3);
        cluster.class = IN_MEMORY;
        let text = cluster.yaml(&cluster.name, PARTITIONS);
        cluster.write("cluster.yaml", &text);
        cluster.started_with_clocks(ahead)
    }

    fn started_with_clocks(self, ahead: [i64; 3]) -> Option<Cluster> {
        let mut cluster = self;
        let library = cluster.folder.path().join("clock.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/clock.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let made = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .status();
        match made {
            Ok(status) => assert!(status.success(), "{source}: {status}"),
            Err(e) => {
                eprintln!("SKIPPED: no C compiler, so no clock can be set wrong: {e}");
                return None;
            }
        }
        cluster.clocks = Some(library);
        for (id, wall) in (1..).zip(ahead) {
            cluster.set_clock(id, Clock { wall, ..Clock::default() });
        }
        cluster.start_all();
        Some(cluster)
    }

    /// Sets a node's clocks, whether it runs or not.
    pub fn set_clock(&self, id: u16, clock: Clock) {
        let Clock { wall, monotonic, boottime } = clock;
        let bytes = [wall, monotonic, boottime].map(i64::to_ne_bytes).concat();
        // In place: the node has mapped it.
        let file =
            File::options().create(true).truncate(false).write(true).open(self.clock_file(id));
        let mut file = file.expect("a file in a temporary folder");
        file.write_all(&bytes).expect("room for three numbers");
    }

    fn clock_file(&self, id: u16) -> PathBuf {
        self.folder.path().join(format!("clock-{id}"))
    }

    /// A cluster's file and ports; no process runs yet.
    pub fn new(nodes: u16) -> Cluster {
        let ports: Vec<Ports> = (0..nodes)
            .map(|_| Ports { client: free_port(), peer: free_port(), http: free_port() })
            .collect();
        let one = "{ mode: strong, replicas: 1, durability: sync }";
        let cluster = Cluster {
            folder: TempDir::new().expect("a temporary folder"),
            name: format!("test-{}-{}", std::process::id(), ports[0].client),
            class: if nodes < 3 { one } else { REPLICATED },
            processes: ports.iter().map(|_| None).collect(),
            ports,
            network: None,
            armed: BTreeMap::new(),
            clocks: None,
        };
        let text = cluster.yaml(&cluster.name, PARTITIONS);
        cluster.write("cluster.yaml", &text);
        cluster
    }

    /// Starts every node that does not run, and waits until all are ready and every partition is
    /// led.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            if self.processes[usize::from(id) - 1].is_none() {
                self.spawn(id);
            }
        }
        self.ids().for_each(|id| self.wait_ready(id));
        self.ids().for_each(|id| self.wait_led(id));
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network between the nodes, of [`Cluster::start_networked`].
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("a cluster with a network")
    }

    /// Where a node has its data.
    pub fn data(&self, id: u16) -> PathBuf {
        self.folder.path().join("data").join(format!("node-{id}"))
    }

    /// Has the identity of a node's folder say something else in a field that it has.
    pub fn edit_identity(&self, id: u16, field: &str, value: &str) {
        let file = self.data(id).join("identity");
        let text = fs::read_to_string(&file).expect("an identity");
        let lines = text.lines().filter(|line| !line.starts_with("crc: "));
        let (name, mut found) = (format!("{field}: "), false);
        let lines = lines.map(|line| match line.starts_with(&name) {
            true => {
                found = true;
                format!("{name}{value}\n")
            }
            false => format!("{line}\n"),
        });
        let text: String = lines.collect();
        assert!(found, "no {field} in {text}");
        let crc = crc32fast::hash(text.as_bytes());
        fs::write(&file, format!("{text}crc: {crc:08x}\n")).expect("written");
    }

    /// The text of a `cluster.yaml` for this cluster's nodes. Each has two arbiters, so that
    /// Buckets, Sessions and Peers meet over threads; the local role has one.
    pub fn yaml(&self, name: &str, partitions: u16) -> String {
        let mut text = format!("cluster: {name}\nnodes:\n");
        for (id, Ports { client, peer, http }) in (1..).zip(&self.ports) {
            text += &format!(
                "  - {{ id: {id}, host: 127.0.0.1, client: {client}, peer: {peer}, http: {http} }}\n"
            );
        }
        text += &format!("partitions: {partitions}\n");
        text += &format!("defaults: {}\n", self.class);
        text += "arbiters: 2\n";
        // Files of the log are allocated whole, and many clusters run side by side.
        text += "replication: { segment: 4MiB }\n";
        text += &format!("data: {:?}\n", self.folder.path().join("data"));
        text
    }

    /// Writes a file into the cluster's folder.
    pub fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(file);
        fs::write(&path, text).expect("a file in a temporary folder");
        path
    }

    /// The ids of the nodes, from 1.
    pub fn ids(&self) -> std::ops::RangeInclusive<u16> {
        1..=self.ports.len() as u16
    }

    /// The ports of a node.
    pub fn ports(&self, id: u16) -> Ports {
        self.ports[usize::from(id) - 1]
    }

    /// Starts a node.
    pub fn spawn(&mut self, id: u16) {
        let own = self.folder.path().join(format!("node-{id}.yaml"));
        let file = if own.exists() { own } else { self.folder.path().join("cluster.yaml") };
        self.spawn_with(id, &file);
    }

    /// Starts a node with a file of its own.
    pub fn spawn_with(&mut self, id: u16, file: &Path) {
        assert!(self.processes[usize::from(id) - 1].is_none(), "node {id} runs already");
        let file = file.to_str().expect("a path in UTF-8");
        let args = ["--role", "node", "--id", &id.to_string(), "--config", file];
        let log = self.folder.path().join(format!("node-{id}.log"));
        let (failpoint, clock) = (self.armed.remove(&id), self.clock_file(id));
        let mut environment = Vec::new();
        if let Some(point) = &failpoint {
            environment.push(("QUORATE_FAILPOINT", OsStr::new(point)));
        }
        if let Some(library) = &self.clocks {
            environment.push(("LD_PRELOAD", library.as_os_str()));
            environment.push(("QUORATE_TEST_CLOCK", clock.as_os_str()));
        }
        let started = Process::start_in(&args, &log, &environment);
        self.processes[usize::from(id) - 1] = Some(started);
    }

    /// Starts a node as the caller likes ([`Process::start_by`]).
    pub fn spawn_by(&mut self, id: u16, prepare: impl FnOnce(&mut Command)) {
        let slot = &mut self.processes[usize::from(id) - 1];
        assert!(slot.is_none(), "node {id} runs already");
        let file = self.folder.path().join("cluster.yaml");
        let file = file.to_str().expect("a path in UTF-8");
        let args = ["--role", "node", "--id", &id.to_string(), "--config", file];
        let log = self.folder.path().join(format!("node-{id}.log"));
        *slot = Some(Process::start_by(&args, &log, prepare));
    }

    /// Has a node die at a point in the life that begins next.
    #[cfg(feature = "failpoints")]
    pub fn arm(&mut self, id: u16, point: &str) {
        self.armed.insert(id, point.to_owned());
    }

    /// A running node.
    #[track_caller]
    pub fn process(&mut self, id: u16) -> &mut Process {
        self.processes[usize::from(id) - 1].as_mut().expect("the node runs")
    }

    /// `kill -9`: nothing is said to anybody.
    pub fn kill(&mut self, id: u16) {
        self.process(id).kill();
        self.processes[usize::from(id) - 1] = None;
    }

    /// Stops a node in the middle of whatever it does; its sockets stay open.
    ///
    /// On a busy machine its threads stop one after the other, each when it is run again.
    pub fn pause(&mut self, id: u16) {
        self.process(id).signal("STOP");
        let tasks = format!("/proc/{}/task", self.process(id).child.id());
        let stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // Behind the name, which may have anything in it.
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        eventually(&format!("node {id} stands still"), PATIENCE, || {
            let mut tasks = std::fs::read_dir(&tasks).ok()?.flatten();
            tasks.all(stopped).then_some(())
        });
    }

    /// Lets a paused node go on.
    pub fn resume(&mut self, id: u16) {
        self.process(id).signal("CONT");
    }

    /// Waits until `/health` of the node answers 200.
    #[track_caller]
    pub fn wait_ready(&mut self, id: u16) {
        let http = self.ports(id).http;
        eventually(&format!("node {id} is ready"), PATIENCE, || {
            if let Some(status) = self.process(id).ended() {
                panic!("node {id} ended before it was ready: {status}");
            }
            (health(http) == Some(200)).then_some(())
        });
    }

    /// Waits until every partition answers a node's questions.
    #[track_caller]
    pub fn wait_led(&self, id: u16) {
        let mut client = self.connect(id);
        eventually(&format!("every partition has a leader that node {id} knows"), PATIENCE, || {
            client.say("DBSIZE").parse::<u64>().ok()
        });
    }

    /// What `/status` of a node says, unless it does not answer.
    pub fn status(&self, id: u16) -> Option<serde_json::Value> {
        let (_, body) = http(self.ports(id).http, "/status")?;
        serde_json::from_str(&body).ok()
    }

    /// The node that leads a key's partition, as far as node `asked` knows.
    pub fn leader_now(&self, key: &str, asked: u16) -> Option<u16> {
        let partition = u64::from(partition_of(key));
        let status = self.status(asked)?;
        let leads = |node: &&serde_json::Value| {
            let mut led = node["leads"].as_array().into_iter().flatten();
            led.any(|one| one.as_u64() == Some(partition))
        };
        let leader = status["nodes"].as_array()?.iter().find(leads)?;
        leader["id"].as_u64().map(|id| id as u16)
    }

    /// A key whose partition this node leads now.
    #[track_caller]
    pub fn key_led_by(&self, id: u16, prefix: &str) -> String {
        let mut keys = (0..).map(|n| format!("{prefix}:{n}"));
        eventually(&format!("node {id} leads a partition"), PATIENCE, || {
            let mut some = keys.by_ref().take(usize::from(PARTITIONS));
            some.find(|key| self.leader_now(key, id) == Some(id))
        })
    }

    /// Waits until no transaction is under way, nothing is locked or unconfirmed and nobody waits,
    /// on any node.
    #[track_caller]
    pub fn wait_at_rest(&self) {
        for id in self.ids() {
            let mut last = String::new();
            let begun = Instant::now();
            let mut at_rest = || {
                let now = self.status(id)?["now"].clone();
                let open = ["active", "unsettled", "waiting"].map(|figure| {
                    now[figure].as_u64().unwrap_or_else(|| panic!("no {figure} in {now}"))
                });
                last = format!("node {id}: active, unsettled, waiting: {open:?}");
                (open == [0; 3]).then_some(())
            };
            while at_rest().is_none() {
                assert!(begun.elapsed() < PATIENCE, "not at rest within {PATIENCE:?}: {last}");
                std::thread::sleep(POLL);
            }
        }
    }

    /// What the node has written to its output so far.
    pub fn log(&self, id: u16) -> String {
        let bytes = fs::read(self.folder.path().join(format!("node-{id}.log")));
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// Waits for a log line in which every one of `words` occurs.
    #[track_caller]
    pub fn wait_log(&self, id: u16, words: &[&str]) -> String {
        eventually(&format!("node {id} logs {words:?}"), PATIENCE, || {
            let log = self.log(id);
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        })
    }

    /// A connection to a node that serves, as soon as it listens.
    #[track_caller]
    pub fn connect(&self, id: u16) -> Client {
        eventually("a node that serves", PATIENCE, || {
            Client::connect(self.ports(id).client, Protocol::Resp2).ok()
        })
    }

    /// A key that the given node leads.
    pub fn key_on(&self, id: u16, prefix: &str) -> String {
        self.keys_on(id, prefix, 1).remove(0)
    }

    /// Keys that the given node leads.
    pub fn keys_on(&self, id: u16, prefix: &str, count: usize) -> Vec<String> {
        let nodes = self.ports.len() as u16;
        let keys = (0..).map(|n| format!("{prefix}:{n}"));
        keys.filter(|key| leader_of(key, nodes) == id).take(count).collect()
    }

    /// `each` keys of every node, the nodes in turn.
    pub fn keys_everywhere(&self, prefix: &str, each: usize) -> Vec<String> {
        let of_nodes: Vec<_> = self.ids().map(|id| self.keys_on(id, prefix, each)).collect();
        (0..each).flat_map(|n| of_nodes.iter().map(move |keys| keys[n].clone())).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Before the processes are killed, so that their last lines are what they said themselves.
        if std::thread::panicking() {
            for id in self.ids() {
                let log = self.log(id);
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                eprintln!("--- the last lines of node {id}:\n{}", tail.join("\n"));
            }
        }
    }
}

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Resp2,
    Resp3,
}

/// Reads what is there, or comes next. A read with a timeout may end because the whole process was
/// stopped for a while and goes on (signal(7)): that is no answer, and it is read again.
pub fn read_on(stream: &mut TcpStream, bytes: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// What the parser of the `redis` crate reads from.
struct Input(TcpStream);

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        read_on(&mut self.0, bytes)
    }
}

/// A connection, with the commands and replies of the `redis` crate.
pub struct Client {
    input: Input,
    parser: redis::Parser,
}

impl Client {
    /// Connects to a client port.
    pub fn connect(port: u16, protocol: Protocol) -> RedisResult<Client> {
        let address = ([127, 0, 0, 1], port).into();
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Client { input: Input(stream), parser: redis::Parser::new() };
        if protocol == Protocol::Resp3 {
            client.ask(&["HELLO", "3"])?;
        }
        Ok(client)
    }

    fn receive(&mut self) -> RedisResult<Value> {
        self.parser.parse_value(&mut self.input)
    }

    /// Sends one command and waits for its reply.
    pub fn ask<S: AsRef<str>>(&mut self, words: &[S]) -> RedisResult<Value> {
        self.input.0.write_all(&command(words).get_packed_command())?;
        self.receive()?.extract_error()
    }

    /// Sends one command, given as words between spaces, and shows its reply as text.
    pub fn say(&mut self, line: &str) -> String {
        show(&self.ask(&line.split_whitespace().collect::<Vec<_>>()))
    }

    /// Sends all commands in one write and shows their replies as text.
    pub fn pipeline(&mut self, lines: &[String]) -> Vec<String> {
        let replies = self.try_pipeline(lines).expect("a pipeline is answered");
        replies.iter().map(show).collect()
    }

    /// The same for a connection that may break.
    pub fn try_pipeline(&mut self, lines: &[String]) -> RedisResult<Vec<RedisResult<Value>>> {
        let mut bytes = Vec::new();
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            bytes.extend(command(&words).get_packed_command());
        }
        self.input.0.write_all(&bytes)?;
        let replies: Vec<Value> = lines.iter().map(|_| self.receive()).collect::<Result<_, _>>()?;
        Ok(replies.into_iter().map(Value::extract_error).collect())
    }

    /// The values of several keys, `None` for those absent.
    pub fn mget<S: AsRef<str>>(&mut self, keys: &[S]) -> RedisResult<Vec<Option<String>>> {
        let words: Vec<&str> =
            std::iter::once("MGET").chain(keys.iter().map(AsRef::as_ref)).collect();
        Ok(redis::from_redis_value(self.ask(&words)?)?)
    }

    /// Sets all keys to one value.
    pub fn mset_all<S: AsRef<str>>(&mut self, keys: &[S], value: &str) -> RedisResult<()> {
        let mut words = vec!["MSET"];
        for key in keys {
            words.extend([key.as_ref(), value]);
        }
        self.ask(&words).map(drop)
    }
}

fn command<S: AsRef<str>>(words: &[S]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word.as_ref());
    }
    command
}

/// A reply as `redis-cli` would show it, more or less: on one line.
pub fn show(reply: &RedisResult<Value>) -> String {
    match reply {
        Ok(value) => show_value(value),
        Err(error) => match (error.code(), error.detail()) {
            (Some(code), detail) => format!("-{code} {}", detail.unwrap_or_default()),
            (None, _) => format!("({error})"),
        },
    }
}

fn show_value(value: &Value) -> String {
    let list = |values: &[Value]| values.iter().map(show_value).collect::<Vec<_>>().join(" ");
    match value {
        Value::Nil => "nil".into(),
        Value::Okay => "OK".into(),
        Value::Int(number) => number.to_string(),
        Value::SimpleString(text) => text.clone(),
        Value::BulkString(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::Array(values) => format!("[{}]", list(values)),
        Value::Map(pairs) => {
            let pairs = pairs.iter();
            let pairs =
                pairs.map(|(key, value)| format!("{}: {}", show_value(key), show_value(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// A plain socket to a port, for what no client library would say.
pub fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a listener");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Reads exactly the bytes expected; what came instead is shown when they do not come.
#[track_caller]
pub fn expect(stream: &mut TcpStream, expected: &str) {
    let mut got = Vec::new();
    while got.len() < expected.len() && expected.as_bytes().starts_with(&got) {
        let mut piece = vec![0; expected.len() - got.len()];
        match read_on(stream, &mut piece) {
            Ok(0) => break,
            Ok(n) => got.extend(&piece[..n]),
            Err(error) => panic!("got {:?}, then {error}", String::from_utf8_lossy(&got)),
        }
    }
    assert_eq!(String::from_utf8_lossy(&got), expected);
}

/// Reads what has arrived, or arrives next.
pub fn read_some(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = read_on(stream, &mut bytes).expect("an answer");
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// Reads what comes until the other side closes.
#[track_caller]
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // The other side closed with bytes of ours unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("got {:?}, then {error}", String::from_utf8_lossy(&bytes)),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One HTTP request on a connection of its own: status and body, or `None` when nobody answers.
pub fn http(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// What `/health` answers.
pub fn health(port: u16) -> Option<u16> {
    http(port, "/health").map(|(status, _)| status)
}
