//! Node queries: what a session asks of its whole node.
//!
//! A node's clients live on several arbiters, each of which knows its own. A command about all of
//! them (`CLIENT LIST`, `SLOWLOG GET`, `CONFIG SET` …) makes a [`NodeQuery`]; the session puts its
//! [`Question`] to every arbiter, and [`Show`] makes one reply of what they tell. No arbiter waits
//! for another, and nothing is shared between them.

use super::argv::{Argv, ArgvBuf};
use super::client::ClientInfo;
use super::facts::Facts;
use super::latency::{self, Slow, Spike};
use super::reply::Reply;
use crate::ids::{Millis, NodeId, PartitionId};

/// What a command asks of its node.
#[derive(Clone, Debug)]
pub enum NodeQuery {
    /// Ask every arbiter, and show what they tell.
    Ask(Question, Show),
    /// Have the node's figures taken now, and show them.
    Look(LookFn, ArgvBuf),
    /// Every command of the node's clients, from now on.
    Monitor,
    /// Nothing, for so many milliseconds: to try out what slowness does.
    Sleep(u64),
}

/// Shows figures that have just been taken; the request comes with them.
pub type LookFn = fn(&Facts, Argv<'_>, &mut Reply<'_>);

/// What an arbiter is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Who is connected?
    Clients,
    /// Close these connections.
    Kill(Selection),
    /// Hold back commands (or only those that may write) until then.
    Pause {
        /// The end of it.
        until: Millis,
        /// Whether commands that only read go on.
        writes_only: bool,
    },
    /// Hold back nothing any more.
    Unpause,
    /// What was slow?
    Slow,
    /// Forget it.
    ForgetSlow,
    /// What was slower than the latency monitor's threshold?
    Spikes,
    /// Forget it, for these events, or for all when none is named.
    ForgetSpikes(Vec<Vec<u8>>),
    /// Take over these settings.
    Configure(Vec<(&'static str, String)>),
    /// Count from zero again.
    ForgetCounts,
    /// Remove expired keys by themselves, or only when they are met.
    Expire(bool),
    /// From now on this node is to lead the partition; the present leader hands over.
    Lead(PartitionId, NodeId),
    /// Make a snapshot of every partition held.
    Snapshot,
}

/// What an arbiter tells.
#[derive(Clone, Debug)]
pub enum NodeAnswer {
    /// Its clients.
    Clients(Vec<ClientInfo>),
    /// How many it concerned.
    Count(u64),
    /// Its slow log.
    Slow(Vec<Slow>),
    /// Its events: name, samples, the greatest ever.
    Spikes(Vec<(&'static str, Vec<Spike>, u64)>),
    /// It is done.
    Done,
}

/// How the tellings become a reply.
#[derive(Clone, Debug)]
pub enum Show {
    /// `OK`.
    Ok,
    /// The number of all that it concerned.
    Sum,
    /// `OK`, or an error when it concerned no client.
    Killed,
    /// A line for each of these clients.
    Clients(Selection),
    /// The newest entries of the slow log.
    Slow(usize),
    /// How many entries the slow log has.
    SlowLen,
    /// The newest sample of each event.
    Latest,
    /// All samples of an event.
    History(Vec<u8>),
    /// A picture of an event's samples.
    Graph(Vec<u8>),
    /// What to make of the samples, in words.
    Doctor,
}

/// Which clients a command means: those that every given condition admits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Their ids.
    pub ids: Option<Vec<u64>>,
    /// The client's end.
    pub address: Option<Vec<u8>>,
    /// The node's end.
    pub local_address: Option<Vec<u8>>,
    /// Whether ordinary clients are meant; all clients are.
    pub others_only: bool,
    /// Not this one.
    pub but: Option<u64>,
}

impl Selection {
    /// Whether a client is meant.
    pub fn takes(&self, info: &ClientInfo) -> bool {
        let is = |wanted: &Option<Vec<u8>>, have: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == have.as_bytes())
        };
        !self.others_only
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&info.id))
            && is(&self.address, &info.address)
            && is(&self.local_address, &info.local_address)
            && self.but != Some(info.id)
    }
}

impl Show {
    /// Makes the reply.
    pub fn reply(
        &self,
        told: Vec<NodeAnswer>,
        now: Millis,
        slow_max: usize,
        reply: &mut Reply<'_>,
    ) {
        let (mut clients, mut slow, mut count) = (Vec::new(), Vec::new(), 0);
        let mut events = latency::Events::default();
        for told in told {
            match told {
                NodeAnswer::Clients(more) => clients.extend(more),
                NodeAnswer::Slow(more) => slow.extend(more),
                NodeAnswer::Count(more) => count += more,
                NodeAnswer::Spikes(more) => events.merge(more),
                NodeAnswer::Done => {}
            }
        }
        clients.sort_unstable_by_key(|info: &ClientInfo| info.id);
        // The newest first. Each arbiter keeps as many as the node may: together they are more.
        slow.sort_unstable_by_key(|entry: &Slow| std::cmp::Reverse(entry.id));
        slow.truncate(slow_max);
        match self {
            Show::Ok => reply.ok(),
            Show::Sum => reply.int(count as i64),
            Show::Killed if count > 0 => reply.ok(),
            Show::Killed => reply.error("ERR No such client"),
            Show::Clients(selection) => {
                let listed = clients.iter().filter(|info| selection.takes(info));
                let list: String = listed.map(|info| info.describe(now)).collect();
                reply.verbatim("txt", list.as_bytes());
            }
            Show::Slow(max) => latency::show_slow(&slow[..slow.len().min(*max)], reply),
            Show::SlowLen => reply.count(slow.len()),
            Show::Latest => events.latest(reply),
            Show::History(event) => events.history(event, reply),
            Show::Graph(event) => events.graph(event, now, reply),
            Show::Doctor => events.doctor(reply),
        }
    }
}
