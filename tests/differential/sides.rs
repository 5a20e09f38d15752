//! Both sides of the comparison: three nodes and a redis-server, with as many connections to each.

use crate::differences::{self, Compare};
use crate::generator::{CONNECTIONS, Step};
use crate::harness::{Cluster, PATIENCE, Process, dial, eventually, free_port};
use quorate::net::resp::{ReplyReader, Value, encode_request};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// A connection that returns replies as the bytes they are.
struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    reader: ReplyReader,
}

impl Wire {
    fn dial(port: u16) -> Wire {
        Wire { stream: dial(port), input: Vec::new(), reader: ReplyReader::new() }
    }

    fn send(&mut self, requests: &[Vec<Vec<u8>>]) {
        let mut bytes = Vec::new();
        requests.iter().for_each(|request| encode_request(request, &mut bytes));
        self.stream.write_all(&bytes).expect("a server that reads");
    }

    fn receive(&mut self, asked: &[Vec<u8>]) -> Vec<u8> {
        loop {
            if let Some(length) = self.reader.next(&self.input).expect("a reply") {
                return self.input.drain(..length).collect();
            }
            let mut piece = [0; 1 << 16];
            match self.stream.read(&mut piece) {
                Ok(length @ 1..) => self.input.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                odd => {
                    let port = self.stream.peer_addr().map(|address| address.port());
                    let words: Vec<String> =
                        asked.iter().map(|word| word.escape_ascii().to_string()).collect();
                    panic!("no answer from port {port:?}, {odd:?}: {words:?}");
                }
            }
        }
    }

    fn ask(&mut self, words: &[&str]) -> Vec<u8> {
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        self.send(std::slice::from_ref(&words));
        self.receive(&words)
    }
}

/// A reply that differs.
pub struct Mismatch {
    /// Which step asked for it.
    pub step: usize,
    /// Which of the step's requests.
    pub nth: usize,
    /// What was asked.
    request: Vec<Vec<u8>>,
    pub ours: Vec<u8>,
    pub theirs: Vec<u8>,
}

impl Mismatch {
    /// Differences of one kind are one thing to mend: the command, and how each side began.
    pub fn kind(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let head = |reply: &[u8]| match reply.first() {
            Some(b'-') => {
                reply.iter().copied().take_while(|byte| *byte != b'\'').take(24).collect()
            }
            Some(byte) => vec![*byte],
            None => Vec::new(),
        };
        (self.request[0].to_ascii_lowercase(), head(&self.ours), head(&self.theirs))
    }
}

/// Three nodes, one redis-server.
pub struct Sides {
    cluster: Cluster,
    redis_port: u16,
    _redis: Process,
}

impl Sides {
    /// Whether there is a redis-server to compare with.
    pub fn can_start() -> bool {
        let mut command = Command::new("redis-server");
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Starts both.
    pub fn start() -> Sides {
        // As Redis has it: `CONFIG GET` tells it.
        let cluster = Cluster::start_with("limits: { value: 512MiB }\n");
        let redis_port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &redis_port.to_string(), "--save", "", "--appendonly", "no"]);
        command.args([
            "--bind",
            "127.0.0.1",
            "--protected-mode",
            "no",
            "--enable-debug-command",
            "yes",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is installed: it is what we compare with");
        let redis = Process::adopt(child);
        eventually("redis-server listens", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", redis_port)).ok()
        });
        let version = Wire::dial(redis_port).ask(&["INFO", "server"]);
        let text = String::from_utf8_lossy(&version).into_owned();
        assert!(text.contains("redis_version:7."), "another version of Redis:\n{text}");
        Sides { cluster, redis_port, _redis: redis }
    }

    /// The names of the generator's commands that both know.
    pub fn known_to_both(&self) -> BTreeSet<String> {
        let mut ours = Wire::dial(self.cluster.ports(1).client);
        let mut theirs = Wire::dial(self.redis_port);
        let knows = |wire: &mut Wire, name: &str| {
            let reply = wire.ask(&["COMMAND", "INFO", name]);
            let (value, _) = Value::parse(&reply).expect("a reply").expect("a whole one");
            matches!(value, Value::Array(rows) if rows.len() == 1 && rows[0] != Value::Nil)
        };
        let both = |name: &String| knows(&mut ours, name) && knows(&mut theirs, name);
        crate::generator::names().filter(both).collect()
    }

    /// Asks both the same on new connections, from nothing: the first difference.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), Mismatch> {
        let mut ours: Vec<Wire> = (0..CONNECTIONS)
            .map(|n| Wire::dial(self.cluster.ports(n as u16 % 3 + 1).client))
            .collect();
        let mut theirs: Vec<Wire> = (0..CONNECTIONS).map(|_| Wire::dial(self.redis_port)).collect();
        for wire in [&mut ours[0], &mut theirs[0]] {
            assert_eq!(wire.ask(&["FLUSHALL"]), b"+OK\r\n");
        }
        let mut queues: Vec<Queue> = (0..CONNECTIONS).map(|_| Queue::default()).collect();
        for (at, step) in steps.iter().enumerate() {
            ours[step.connection].send(&step.requests);
            theirs[step.connection].send(&step.requests);
            let mut found = None;
            for (nth, request) in step.requests.iter().enumerate() {
                let our = ours[step.connection].receive(request);
                let their = theirs[step.connection].receive(request);
                // All replies are awaited, or what is under way would meet the next run.
                if found.is_some() {
                    continue;
                }
                let queued = queues[step.connection].follow(request, &our);
                let same = match queued {
                    Some(queued) => same_exec(&queued, &our, &their),
                    None => same(request, differences::of(request), &our, &their),
                };
                if !same {
                    let request = request.clone();
                    found = Some(Mismatch { step: at, nth, request, ours: our, theirs: their });
                }
            }
            if let Some(mismatch) = found {
                return Err(mismatch);
            }
        }
        Ok(())
    }
}

/// The requests that a connection has queued since its MULTI, told by the replies.
#[derive(Default)]
struct Queue(Vec<Vec<Vec<u8>>>);

impl Queue {
    /// Takes note of a request; returns what was queued if it was an EXEC.
    fn follow(&mut self, request: &[Vec<u8>], reply: &[u8]) -> Option<Vec<Vec<Vec<u8>>>> {
        let is = |name: &str| request[0].eq_ignore_ascii_case(name.as_bytes());
        if reply == b"+QUEUED\r\n" {
            self.0.push(request.to_vec());
        } else if is("multi") && reply == b"+OK\r\n" || is("exec") || is("discard") || is("reset") {
            let queued = std::mem::take(&mut self.0);
            return is("exec").then_some(queued);
        }
        None
    }
}

/// Compares the replies of an EXEC element by element.
fn same_exec(queued: &[Vec<Vec<u8>>], ours: &[u8], theirs: &[u8]) -> bool {
    if ours == theirs {
        return true;
    }
    let elements = |reply: &[u8]| -> Option<Vec<Vec<u8>>> {
        let head = format!("*{}\r\n", queued.len());
        let mut rest = reply.strip_prefix(head.as_bytes())?;
        let mut elements = Vec::new();
        while !rest.is_empty() {
            let (_, length) = Value::parse(rest).ok()??;
            let (element, behind) = rest.split_at(length);
            elements.push(element.to_vec());
            rest = behind;
        }
        (elements.len() == queued.len()).then_some(elements)
    };
    let (Some(ours), Some(theirs)) = (elements(ours), elements(theirs)) else { return false };
    let mut pairs = queued.iter().zip(ours.iter().zip(&theirs));
    pairs.all(|(request, (our, their))| {
        same(request, differences::in_exec(request, queued), our, their)
    })
}

/// A command's description without its tips (field 7) and its subcommands (field 9).
fn without_tips(row: Value) -> Value {
    match row {
        Value::Array(mut fields) if fields.len() == 10 => {
            fields.truncate(9);
            fields.remove(7);
            Value::Array(fields)
        }
        other => other,
    }
}

fn same(request: &[Vec<u8>], compare: Option<Compare>, ours: &[u8], theirs: &[u8]) -> bool {
    if ours == theirs {
        return true;
    }
    let Some(compare) = compare else { return false };
    let value = |reply| match Value::parse(reply) {
        Ok(Some((value, _))) => value,
        odd => panic!("{request:?}: {odd:?} in {}", reply.escape_ascii()),
    };
    let (ours, theirs) = (value(ours), value(theirs));
    match compare {
        Compare::Nothing => true,
        // Negative answers have a meaning of their own.
        Compare::Within(tolerance) => match (&ours, &theirs) {
            (Value::Int(a), Value::Int(b)) if *a >= 0 && *b >= 0 => {
                a.abs_diff(*b) <= tolerance as u64
            }
            _ => false,
        },
        Compare::Shape => match (&ours, &theirs) {
            (Value::Error(a), Value::Error(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        },
        Compare::Tips => {
            let told = |value: Value| match value {
                Value::Array(rows) => Some(rows.into_iter().map(without_tips).collect::<Vec<_>>()),
                _ => None,
            };
            let ours = told(ours);
            ours.is_some() && ours == told(theirs)
        }
        Compare::Pairs => {
            let pairs = |value: &Value| match value {
                Value::Array(elements) => {
                    let pair = |pair: &[Value]| format!("{pair:?}");
                    Some(elements.chunks(2).map(pair).collect::<BTreeSet<_>>())
                }
                Value::Map(pairs) => Some(pairs.iter().map(|pair| format!("{pair:?}")).collect()),
                _ => None,
            };
            pairs(&ours).is_some() && pairs(&ours) == pairs(&theirs)
        }
        Compare::AnyOrder => {
            let sorted = |value: &Value| match value {
                Value::Array(elements) | Value::Set(elements) => {
                    let mut texts: Vec<String> =
                        elements.iter().map(|element| format!("{element:?}")).collect();
                    texts.sort();
                    Some(texts)
                }
                _ => None,
            };
            sorted(&ours).is_some() && sorted(&ours) == sorted(&theirs)
        }
    }
}
