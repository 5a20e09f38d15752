//! What clients can ask: the Redis commands.
//!
//! A request's way: [`resolve`] finds the command's row in the table ([`spec`]) and answers what
//! is no command in Redis's words; [`plan`] says which partitions have to do what; the partitions
//! run the operations through [`Redis`], the [`Machine`] over the same table; and the plan's
//! layout puts their replies together. Commands that need no data are answered by the session
//! itself, from its own state ([`client`]) and what the node tells of itself ([`facts`]).
//!
//! Everything here is pure: no sockets, mailboxes or clocks.

mod admin;
pub mod argv;
mod bits;
pub mod client;
mod cluster;
mod connection;
mod describe;
pub mod dump;
pub mod facts;
mod float;
pub mod glob;
mod info;
mod keys;
pub mod latency;
mod lcs;
pub mod node_query;
pub mod object;
pub mod plan;
mod rename;
pub mod reply;
pub mod scan;
mod server;
pub mod settings;
mod sort;
pub mod spec;
mod strings;
#[cfg(test)]
mod tests;
pub mod transaction;

use crate::batch::machine::{EFFORT_TOGETHER_MAX, Machine, Scope};
use crate::batch::refusal::Refusal;
use crate::batch::{Args, Op, OpCode, OpHead};
use crate::ids::{Millis, PartitionId, TableIndex};
use crate::store::number::parse_int;
use crate::store::tables::Access;
use crate::store::tables::{Expires, ItemRef, Tables};
use crate::txn::coordinator::GATHERED_KEYS_MAX;
use argv::Argv;
use reply::Reply;
use spec::{Run, Spec};

/// The longest value, as Redis's `proto-max-bulk-len` has it.
pub const VALUE_BYTES_MAX: usize = 512 << 20;

/// The longest key: what an item's header can tell. Redis has no bound of its own for keys.
pub const KEY_BYTES_MAX: usize = (1 << 24) - 1;

const SYNTAX: &str = "ERR syntax error";
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// The Redis commands as a partition runs them.
#[derive(Debug)]
pub struct Redis;

impl Machine for Redis {
    fn knows(code: OpCode) -> bool {
        spec::by_code(code).is_some()
    }

    fn access(code: OpCode) -> Access {
        spec::by_code(code).map_or(Access::Write, |(spec, _)| spec.access())
    }

    fn grows(code: OpCode) -> bool {
        spec::by_code(code).is_some_and(|(spec, _)| spec.flags & spec::DENYOOM != 0)
    }

    fn scope(code: OpCode) -> Scope {
        spec::by_code(code).map_or(Scope::Partition, |(spec, _)| spec.scope())
    }

    #[inline]
    fn keys(op: &Op<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
        let Some((spec, data)) = spec::by_code(op.head.code) else { return };
        if let Some(reach) = data.reach {
            return reach(op.head.table, op.args, visit);
        }
        // The table counts words with the command's name, an operation's arguments lack it.
        for position in spec.keys.positions(op.args.len() + 1) {
            visit(op.head.table, op.args.get(position - 1));
        }
    }

    #[inline]
    fn reply_bytes(op: &Op<'_>, values: &mut dyn FnMut() -> usize) -> usize {
        match spec::by_code(op.head.code) {
            Some((spec, _)) if spec.flags & spec::ANSWERS_VALUES != 0 => {
                value_bytes_answered(spec, op.args, values)
            }
            _ => 0,
        }
    }

    #[inline]
    fn effort(op: &Op<'_>, values: &mut dyn FnMut() -> usize) -> usize {
        match spec::by_code(op.head.code) {
            Some((spec, _)) if spec.flags & spec::GOES_THROUGH != 0 => match spec.name {
                // Each byte of the one value is compared with each of the other.
                "lcs" => (values() / 2).saturating_pow(2),
                "restore" => dump::reach(op.args),
                _ => values(),
            },
            _ => 0,
        }
    }

    fn growth(op: &Op<'_>, values: &mut dyn FnMut() -> usize) -> usize {
        let reach = match spec::by_code(op.head.code) {
            Some((spec, _)) if spec.name == "setrange" => strings::reach(op.args),
            Some((spec, _)) if matches!(spec.name, "setbit" | "bitfield") => bits::reach(op.args),
            Some((spec, _)) if spec.name == "restore" => dump::reach(op.args),
            _ => 0,
        };
        reach.saturating_sub(values())
    }

    #[inline]
    fn stretches(op: &Op<'_>) -> usize {
        match spec::by_code(op.head.code) {
            Some((spec, _)) if spec.flags & spec::STRETCHES != 0 => bytes_stretched(spec, op.args),
            _ => 0,
        }
    }

    #[inline]
    fn run(op: &Op<'_>, tables: &mut Tables, now: Millis, reply: &mut Vec<u8>) {
        let mut reply = Reply::new(reply, op.head.resp3);
        let Some((_, data)) = spec::by_code(op.head.code) else {
            return reply.error("ERR this node does not know the operation");
        };
        let OpHead { table, hash, partition, .. } = op.head;
        (data.run)(&mut Call { args: op.args, table, hash, partition, now, tables, reply });
    }

    fn foretell(op: &Op<'_>, reply: &mut Vec<u8>) -> bool {
        let Some((spec, _)) = spec::by_code(op.head.code) else { return false };
        let is_ok = match spec.name {
            "mset" => true,
            "set" => op.args.len() == 2,
            _ => false,
        };
        if is_ok {
            Reply::new(reply, op.head.resp3).ok();
        }
        is_ok
    }

    fn refuse(refusal: &Refusal, reply: &mut Vec<u8>) {
        Reply::new(reply, false).error(&refusal_text(refusal));
    }
}

/// How long `LCS` tells a match of one byte.
const MATCH_BYTES: usize = 64;

/// About how long the reply is of a command that answers with values of so many bytes.
fn value_bytes_answered(spec: &Spec, args: Args<'_>, values: &mut dyn FnMut() -> usize) -> usize {
    match spec.name {
        // Without options.
        "set" if args.len() <= 2 => 0,
        "getrange" | "substr" => {
            let ends = [1, 2].map(|at| parse_int(args.get(at)));
            match ends {
                [Some(start @ 0..), Some(end @ 0..)] => values()
                    .min(usize::try_from(end.saturating_sub(start).saturating_add(1)).unwrap_or(0)),
                _ => values(),
            }
        }
        "lcs" => values().saturating_mul(MATCH_BYTES),
        _ => values(),
    }
}

/// By how many bytes a command may make a value longer, however short its arguments are.
fn bytes_stretched(spec: &Spec, args: Args<'_>) -> usize {
    let offset = || usize::try_from(parse_int(args.get(1))?).ok();
    let bytes = match spec.name {
        "setrange" => offset().map(|at| at.saturating_add(args.get(2).len())),
        "setbit" => offset().map(|at| at / 8 + 1),
        "restore" => Some(dump::reach(args)),
        _ => return usize::MAX,
    };
    // One that cannot be read changes nothing.
    bytes.unwrap_or(0)
}

/// The error that tells a client why it was not served.
pub fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unreachable(node) => format!("CLUSTERDOWN node {node} cannot be reached"),
        Refusal::NotLeader => "TRYAGAIN the partition is served by another node".into(),
        Refusal::NoLeader(partition) => {
            format!("CLUSTERDOWN partition {partition} has no leader: was not executed")
        }
        Refusal::Deposed(partition) => {
            format!("TRYAGAIN the leader of partition {partition} changed: was not executed")
        }
        Refusal::Unknown(partition) => format!(
            "UNKNOWN the leader of partition {partition} was lost with the write under way: it may \
             have been applied"
        ),
        Refusal::Gathers(keys) => format!(
            "ERR the command gathers {keys} keys at one node, where {GATHERED_KEYS_MAX} are allowed"
        ),
        Refusal::TooMuch => format!(
            "ERR what is to be executed together goes through, or answers with, more than \
             {EFFORT_TOGETHER_MAX} bytes of values: nothing was executed"
        ),
        Refusal::TooLong => "ERR the request or its reply is too long".into(),
        Refusal::Untold => {
            "UNKNOWN the write was applied, and its reply is too long to be given".into()
        }
        Refusal::Crowded => "TRYAGAIN the replies given beside it are too long".into(),
        Refusal::Locked => "TRYAGAIN a transaction holds the key for too long".into(),
        Refusal::Contention => "TRYAGAIN the transaction lost its locks too often".into(),
        Refusal::Full => "OOM command not allowed when used memory > 'maxmemory'.".into(),
        Refusal::Stopping => "CLUSTERDOWN the node is stopping".into(),
    }
}

/// An operation as its function meets it.
pub struct Call<'a> {
    /// The arguments, without the command's name.
    pub args: Args<'a>,
    /// The table it works on.
    pub table: TableIndex,
    /// The placing hash of its first key.
    pub hash: u64,
    /// The partition it runs in.
    pub partition: PartitionId,
    /// The moment it runs at.
    pub now: Millis,
    /// The partition's tables.
    pub tables: &'a mut Tables,
    /// Where its reply goes.
    pub reply: Reply<'a>,
}

impl Call<'_> {
    /// The item under the operation's first argument.
    #[inline]
    fn get(&mut self) -> Option<ItemRef<'_>> {
        self.tables.get(self.table, self.hash, self.args.get(0))
    }

    /// The same, looked at without being used: its idle time goes on.
    fn peek(&mut self) -> Option<ItemRef<'_>> {
        self.tables.peek(self.table, self.hash, self.args.get(0))
    }

    /// Puts a value under the operation's first argument.
    #[inline]
    fn put(&mut self, value: &[u8], expires: Expires) {
        self.tables.put(self.table, self.hash, self.args.get(0), value, expires);
    }

    /// Removes what is under the operation's first argument.
    fn remove(&mut self) -> bool {
        self.tables.remove(self.table, self.hash, self.args.get(0))
    }

    /// The placing hash of the key at `index`, given for the first one.
    #[inline]
    fn hash_of(&self, index: usize) -> u64 {
        match index {
            0 => self.hash,
            _ => self.tables.hasher().hash(self.args.get(index)),
        }
    }
}

/// The row of a request's command; what is none, or has too few or too many words, is answered.
pub fn resolve(argv: Argv<'_>, reply: &mut Reply<'_>) -> Option<&'static Spec> {
    let Some(spec) = spec::lookup(argv.name()) else {
        unknown_command(argv, reply);
        return None;
    };
    if !spec.admits(argv.len()) {
        match is_exec(argv) {
            // All that was queued is forgotten.
            true => reply.error(&format!(
                "EXECABORT Transaction discarded because of: {}",
                wrong_arity_text(spec.name).trim_start_matches("ERR "),
            )),
            false => wrong_arity(spec.name, reply),
        }
        return None;
    }
    let Run::Container { subcommands, .. } = spec.run else { return Some(spec) };
    if argv.len() == 1 {
        return Some(spec);
    }
    let name = argv.get(1);
    let named = |sub: &&Spec| sub.name.as_bytes().eq_ignore_ascii_case(name);
    let Some(sub) = subcommands.iter().find(named) else {
        unknown_subcommand(spec.name, name, reply);
        return None;
    };
    if !sub.admits(argv.len()) {
        wrong_arity(&format!("{}|{}", spec.name, sub.name), reply);
        return None;
    }
    Some(sub)
}

/// Whether it is `EXEC`: one that [`resolve`] refuses ends the transaction all the same.
pub fn is_exec(argv: Argv<'_>) -> bool {
    argv.name().eq_ignore_ascii_case(b"exec")
}

/// Whether it is a line of an HTTP request: a web page may have a browser send one whose body is
/// commands, so the connection ends before anything behind it is executed.
pub fn is_http(argv: Argv<'_>) -> bool {
    [&b"post"[..], b"host:"].iter().any(|name| argv.name().eq_ignore_ascii_case(name))
}

fn wrong_arity_text(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

fn wrong_arity(name: &str, reply: &mut Reply<'_>) {
    reply.error(&wrong_arity_text(name));
}

/// How much of an unknown command and of its arguments an error repeats.
const REPEATED_BYTES_MAX: usize = 128;

fn unknown_command(argv: Argv<'_>, reply: &mut Reply<'_>) {
    let mut text = b"ERR unknown command '".to_vec();
    text.extend_from_slice(clip(argv.name(), REPEATED_BYTES_MAX));
    text.extend_from_slice(b"', with args beginning with: ");
    let start = text.len();
    for word in argv.from(1) {
        let repeated = text.len() - start;
        if repeated >= REPEATED_BYTES_MAX {
            break;
        }
        text.push(b'\'');
        text.extend_from_slice(clip(word, REPEATED_BYTES_MAX - repeated));
        text.extend_from_slice(b"' ");
    }
    reply.error_bytes(&text);
}

fn unknown_subcommand(container: &str, name: &[u8], reply: &mut Reply<'_>) {
    let mut text = b"ERR unknown subcommand '".to_vec();
    text.extend_from_slice(clip(name, REPEATED_BYTES_MAX));
    let container = container.to_ascii_uppercase();
    text.extend_from_slice(format!("'. Try {container} HELP.").as_bytes());
    reply.error_bytes(&text);
}

/// Answers a subcommand that is none, or has words that it does not take, where Redis finds that
/// out by itself rather than by its command table.
fn wrong_subcommand(container: &str, name: &[u8], reply: &mut Reply<'_>) {
    let mut text = b"ERR unknown subcommand or wrong number of arguments for '".to_vec();
    text.extend_from_slice(clip(name, REPEATED_BYTES_MAX));
    let container = container.to_ascii_uppercase();
    text.extend_from_slice(format!("'. Try {container} HELP.").as_bytes());
    reply.error_bytes(&text);
}

/// Answers a container's `HELP`.
fn help(container: &str, subcommands: &[Spec], reply: &mut Reply<'_>) {
    reply.array(1 + subcommands.len() * 2);
    reply.simple(&format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for sub in subcommands {
        let line = format!("{} {}", sub.name.to_ascii_uppercase(), sub.doc.syntax);
        reply.simple(line.trim_end());
        reply.simple(&format!("    {}", sub.doc.summary));
    }
}

/// The word's beginning as C would print it: up to `max` bytes or its first NUL.
fn clip(word: &[u8], max: usize) -> &[u8] {
    let word = &word[..word.len().min(max)];
    &word[..memchr::memchr(0, word).unwrap_or(word.len())]
}
