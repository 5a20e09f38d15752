//! The link to one other node: when it stands, when it is suspected, when it is lost.
//!
//! Two nodes have a stream each way: the one that this node dialled and the one that the other node
//! dialled. A node that dials this one is a stranger until it is proven to be the other node, and what
//! a stranger says has no effect on a link that stands.
//!
//! ```text
//!   this node                                      the other node
//!   dial its configured address ── Hello(nonce a) ─▶ holds the introduction
//!                               ◀─ Hello ──────────  answers
//!   holds the introduction      ◀─ Hello(nonce b) ── dials the configured address
//!                               ── Hello ──────────▶
//!   names b on the stream that it dialled ─ Claim(b) ▶ knows its own nonce: a is proven
//!   knows its own nonce: b is proven ◀─── Claim(a) ── names a on the stream that it dialled
//! ```
//!
//! A nonce is random and is said to the configured address alone, so only what listens there can
//! name it on a stream of its own. A node that is asked about a nonce which is not its own says so,
//! and the introduction is dropped. That is no authentication: who can listen at the address of a
//! node, or on the wire, can pass for it.
//!
//! The claim is the first word on a stream after the introductions, so nothing that a node says once
//! its link stands is in the way of the other one's proof.
//!
//! **Dialling.** The other node is dialled when this one begins, and again whenever the stream that was
//! dialled is gone. An attempt that has no answer after [`DIAL_MS_MAX`] is given up. After each failure
//! the pause before the next attempt is twice as long, from [`BACKOFF_MS_MIN`] to [`BACKOFF_MS_MAX`]; an
//! introduction of the right node makes it short again. There is no jitter: a node has one dialler for each
//! other node, and an attempt costs it little. Who dials this node is asked at its own address at once,
//! whatever is left of a pause.
//!
//! **Suspected and lost.** Pings go out regularly, and a pong shows that both directions work. A node
//! without a pong for an election timeout is *suspected*: requests take another way, its locks are
//! given up, but the streams stay. A node that says nothing for [`SILENCE_MS`], or whose stream ends,
//! is *lost*: both streams are closed. Neither is evidence that its life has ended; only a refused
//! connection or a newer life is.
//!
//! How long another node has been silent is counted while this process runs: a gap between two ticks
//! counts for two ticks at most. After a gap of [`STOPPED_MS`] this process was itself stopped, or its
//! machine was, and no ping has left it meanwhile. So the other node has a fresh interval before it is
//! suspected, or lost. It has one of these in each silence: a process that is stopped again and again
//! must not wait for a dead node for ever.
//!
//! **Serving lease.** A node executes what another one asks only while that one surely still waits
//! for the answer. Pings say which pong came last, so the receiver knows a moment at which the sender
//! had heard of it, and the sender gives nothing up before an election timeout after that moment. So
//! what the sender has given up is not executed later, wherever its bytes have been meanwhile.

mod complaints;

use crate::cluster::barrier::Hello;
use crate::ids::{Incarnation, LastSeen, NodeId};
use std::collections::VecDeque;

pub use complaints::Complaints;

/// How often [`Link::tick`] is to be called, in ms.
pub const TICK_MS: u64 = 25;

/// After so long a time between two ticks this process was stopped meanwhile, in ms.
pub const STOPPED_MS: u64 = 8 * TICK_MS;

/// A node that was silent for so long is lost, in ms.
pub const SILENCE_MS: u64 = 3_000;

/// The longest time without a pong until a node is suspected, in ms, whatever the election timeout.
pub const SUSPECT_MS_MAX: u64 = 2_000;

/// Pings in the time after which a node is suspected.
const PINGS: u64 = 4;

/// The pause after the first attempt to dial that failed, in ms.
pub const BACKOFF_MS_MIN: u64 = 20;

/// The longest pause between two attempts to dial, in ms.
pub const BACKOFF_MS_MAX: u64 = 1_000;

/// How long an attempt to dial waits for the introduction of the other node, in ms.
pub const DIAL_MS_MAX: u64 = 2_000;

/// Introductions that wait for their proof at most; the oldest gives way.
pub const HELD_MAX: usize = 4;

/// How long an introduction waits for its proof, and a stream for the other one that makes it a link,
/// in ms.
pub const HELD_MS: u64 = 4_000;

/// Pongs remembered until the other node says which of them came.
const PONGS_MAX: usize = 64;

/// Names a stream of this node.
pub type StreamId = u64;

/// What two nodes say about their link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The nonce of your dial, as it came: it proves who says so. Is it yours?
    Claim(u64),
    /// The answer to [`Word::Claim`].
    Yours(u64, bool),
    /// Are you there? `seen` is the number of the last pong that came, 0 before the first.
    Ping {
        /// Counts the pings.
        number: u64,
        /// The last pong that came.
        seen: u64,
    },
    /// The answer to the ping of this number.
    Pong(u64),
}

/// What a link wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEffect {
    /// Dial the node's configured address: [`Link::dial`] says how to introduce this node.
    Dial,
    /// The next attempt to dial is due after so many ms: [`Link::tick`] is to be called then, in
    /// addition to its regular calls.
    Retry(u64),
    /// The attempt to dial that is under way has lasted too long: end it.
    HangUp,
    /// Say this on a stream.
    Say(StreamId, Word),
    /// Close a stream.
    Close(StreamId),
    /// The link stands: both streams carry packets from now on.
    Up(Hello),
    /// The node does not answer: take other ways.
    Suspect,
    /// It answers again.
    Trust,
    /// The link is lost, for this reason; its streams are closed.
    Down(String),
    /// What the node was asked over links that are lost, and did not answer, will not be executed
    /// any more.
    Final,
    /// A life of the node is known to have ended.
    Ended {
        /// Which life.
        life: Incarnation,
        /// Whether its process closed the streams itself before: see
        /// [`leader_is_dead`](crate::consensus::Group::leader_is_dead).
        dead: bool,
    },
    /// Note this of the other node, before anything is made of it.
    Seen(LastSeen),
    /// The other node has seen a life of this one that its data directory does not know.
    Outlived(LastSeen),
    /// Log this: an operator should know.
    Complain(String),
}

/// What becomes of who has dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// It is answered by this introduction, and kept until its own is proven.
    Keep(Hello),
    /// It is answered by this introduction, which says that it has been started again since, and
    /// let go.
    Tell(Hello),
    /// It is let go.
    LetGo,
    /// It is refused.
    Refuse,
}

/// Why dialling failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// Nothing listens where the node listens: its process is gone.
    NobodyListens,
    /// It cannot be reached.
    Unreachable(String),
    /// The node refuses this one. It does not say why.
    Refused,
    /// What answers at this address is no node.
    Garbled(String, String),
}

/// How far this node has got with dialling the other one.
#[derive(Clone, Copy, Debug)]
enum Dialling {
    /// It has not begun, or its stream is there.
    Idle,
    /// The next attempt is due at this moment.
    Due(u64),
    /// An attempt is under way, since this moment in ms that this process has run.
    UnderWay { nonce: u64, since_ms: u64 },
}

#[derive(Debug)]
struct Dialled {
    stream: StreamId,
    nonce: u64,
    hello: Hello,
    /// Since when it is there, in ms that this process has run.
    since_ms: u64,
}

#[derive(Debug)]
struct Introduction {
    stream: StreamId,
    hello: Hello,
    /// Who is at its other end, for complaints.
    from: String,
    /// Since when it is there, in ms that this process has run.
    since_ms: u64,
    /// When its nonce was first named to the other node, which takes no link with it for standing
    /// earlier than that.
    claimed_ms: Option<u64>,
}

/// The link to one other node.
#[derive(Debug)]
pub struct Link {
    own: Hello,
    /// The last life of this node before this one, if its data directory must know all of them.
    last_life: Option<Incarnation>,
    other: NodeId,
    suspect_ms: u64,
    dialling: Dialling,
    dialled: Option<Dialled>,
    /// The introduction that was proven.
    guest: Option<Introduction>,
    /// Those that were not, oldest first.
    held: VecDeque<Introduction>,
    up: bool,
    suspected: bool,
    /// The life that was linked last, and whether its end was told.
    life: Option<(Incarnation, bool)>,
    /// The other side closed the last link in order, and has not dialled since.
    closed_there: bool,
    /// The pause after the next failure to dial, in ms.
    backoff_ms: u64,
    complaints: Complaints,
    /// The last tick.
    ticked_ms: Option<u64>,
    /// How long this process has run at the last tick, in ms: see [`Link::ran`].
    ran_ms: u64,
    /// When anything came last, in ms that this process has run.
    heard_ms: u64,
    /// When a pong came last, in ms that this process has run.
    ponged_ms: u64,
    /// The same of the link that was lost last, until what was asked over lost links is final.
    adrift_since_ms: Option<u64>,
    /// The other node was given a fresh interval since the last pong, for this process was stopped.
    spared: bool,
    pings: u64,
    pinged_ms: u64,
    /// The last pong that came.
    seen: u64,
    /// Pongs said and when, until it is known that one of them, or a later one, came.
    pongs: VecDeque<(u64, u64)>,
    /// The latest moment at or after which the other node is known to have heard of this one.
    heard_there_ms: Option<u64>,
}

impl Link {
    /// No link yet to node `other`, which is suspected after `suspect_ms` without a pong.
    pub fn new(own: Hello, other: NodeId, suspect_ms: u64) -> Link {
        Link {
            own,
            last_life: None,
            other,
            suspect_ms: suspect_ms.clamp(PINGS * TICK_MS, SUSPECT_MS_MAX),
            dialling: Dialling::Idle,
            dialled: None,
            guest: None,
            held: VecDeque::new(),
            up: false,
            suspected: false,
            life: None,
            closed_there: false,
            backoff_ms: BACKOFF_MS_MIN,
            complaints: Complaints::default(),
            ticked_ms: None,
            ran_ms: 0,
            heard_ms: 0,
            ponged_ms: 0,
            adrift_since_ms: None,
            spared: false,
            pings: 0,
            pinged_ms: 0,
            seen: 0,
            pongs: VecDeque::new(),
            heard_there_ms: None,
        }
    }

    /// A node whose data directory knows all of its lives, `last_life` the one before this.
    #[must_use]
    pub fn remembering(self, last_life: Option<Incarnation>) -> Link {
        Link { last_life, ..self }
    }

    /// Remembers what was seen of the other node.
    pub fn see(&mut self, seen: LastSeen, effects: &mut Vec<LinkEffect>) {
        let seen = self.own.seen.and(seen);
        if std::mem::replace(&mut self.own.seen, seen) != seen {
            effects.push(LinkEffect::Seen(seen));
        }
    }

    /// Whether the other node has seen a life of this one that its data directory does not know.
    fn is_outlived(&self, hello: &Hello) -> bool {
        let (seen, own) = (hello.seen.life, self.own.life);
        seen > own || seen < own && self.last_life.is_some_and(|last| seen > last)
    }

    /// This node goes on in a later life: what was linked with the one before is linked anew.
    pub fn relive(&mut self, life: Incarnation, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        self.own.life = life;
        self.go_down("this node goes on in a later life", now_ms, effects);
    }

    /// How this node introduces itself.
    pub fn own_mut(&mut self) -> &mut Hello {
        &mut self.own
    }

    /// Whether the link stands.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the link stands and the node does not answer.
    #[inline]
    pub fn is_suspected(&self) -> bool {
        self.suspected
    }

    /// Whether this stream is part of the link, or may become so.
    #[inline]
    pub fn has(&self, stream: StreamId) -> bool {
        let dialled = self.dialled.as_ref().map(|one| one.stream);
        let accepted = self.guest.iter().chain(&self.held).map(|one| one.stream);
        dialled.into_iter().chain(accepted).any(|one| one == stream)
    }

    /// The stream that this node dialled.
    #[inline]
    pub fn dialled_stream(&self) -> Option<StreamId> {
        self.dialled.as_ref().map(|one| one.stream)
    }

    /// The stream that the other node dialled.
    #[inline]
    pub fn accepted_stream(&self) -> Option<StreamId> {
        self.guest.as_ref().map(|one| one.stream)
    }

    /// The life of the node at the other end, while the link stands.
    pub fn life(&self) -> Option<Incarnation> {
        self.guest.as_ref().filter(|_| self.up).map(|guest| guest.hello.life)
    }

    /// Until when what the other node asks may be executed, in ms.
    #[inline]
    pub fn serves_until(&self) -> u64 {
        // An eighth for clocks that run at different rates.
        let lease_ms = self.suspect_ms - self.suspect_ms / 8;
        self.heard_there_ms.map_or(0, |heard| heard.saturating_add(lease_ms))
    }

    /// This node can serve the other one: it is dialled.
    pub fn begin(&mut self, effects: &mut Vec<LinkEffect>) {
        self.dial_at_once(effects);
    }

    /// An attempt to dial begins, if one is due: says how to introduce this node. The nonce is to be
    /// unpredictable.
    pub fn dial(&mut self, nonce: u64, now_ms: u64) -> Option<Hello> {
        if !matches!(self.dialling, Dialling::Due(due_ms) if due_ms <= now_ms) {
            return None;
        }
        self.dialling = Dialling::UnderWay { nonce, since_ms: self.ran(now_ms) };
        Some(Hello { nonce, ..self.own.clone() })
    }

    /// Dials without a pause, unless that is under way or done.
    fn dial_at_once(&mut self, effects: &mut Vec<LinkEffect>) {
        if self.dialled.is_none() && !matches!(self.dialling, Dialling::UnderWay { .. }) {
            self.dialling = Dialling::Due(0);
            effects.push(LinkEffect::Dial);
        }
    }

    /// Dials again after a pause, unless that is decided already.
    fn retry(&mut self, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        if !matches!(self.dialling, Dialling::Idle) {
            return;
        }
        self.dialling = Dialling::Due(now_ms.saturating_add(self.backoff_ms));
        effects.push(LinkEffect::Retry(self.backoff_ms));
        self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_MS_MAX);
    }

    /// Begins the attempt that is due, and gives up the one that has lasted too long.
    fn tick_dialling(&mut self, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        match self.dialling {
            Dialling::Due(due_ms) if due_ms <= now_ms => effects.push(LinkEffect::Dial),
            Dialling::UnderWay { since_ms, .. } if self.ran_ms >= since_ms + DIAL_MS_MAX => {
                effects.push(LinkEffect::HangUp);
                self.dialling = Dialling::Idle;
                self.retry(now_ms, effects);
            }
            _ => {}
        }
    }

    fn complain(&mut self, complaint: String, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        effects.extend(self.complaints.note(complaint, now_ms).map(LinkEffect::Complain));
    }

    /// The node's configured address answered the dial with this introduction.
    pub fn answered(
        &mut self,
        stream: StreamId,
        hello: Hello,
        now_ms: u64,
        effects: &mut Vec<LinkEffect>,
    ) {
        let Dialling::UnderWay { nonce, .. } = self.dialling else {
            return effects.push(LinkEffect::Close(stream));
        };
        self.dialling = Dialling::Idle;
        let judged = self.own.judge(&hello).and_then(|()| match hello.node == self.other {
            true => Ok(()),
            false => Err(format!("node {} answers in place of node {}", hello.node, self.other)),
        });
        if let Err(why) = judged {
            effects.push(LinkEffect::Close(stream));
            self.complain(format!("refused node {}: {why}", self.other), now_ms, effects);
            return self.retry(now_ms, effects);
        }
        if self.is_outlived(&hello) {
            effects.extend([LinkEffect::Close(stream), LinkEffect::Outlived(hello.seen)]);
            return self.retry(now_ms, effects);
        }
        self.backoff_ms = BACKOFF_MS_MIN;
        self.heard(now_ms);
        for one in self.guest.iter_mut().chain(&mut self.held) {
            one.claimed_ms.get_or_insert(now_ms);
            effects.push(LinkEffect::Say(stream, Word::Claim(one.hello.nonce)));
        }
        self.dialled = Some(Dialled { stream, nonce, hello, since_ms: self.ran(now_ms) });
        self.come_up(now_ms, effects);
    }

    /// The attempt to dial that was under way has failed.
    pub fn dial_failed(
        &mut self,
        failure: DialFailure,
        now_ms: u64,
        effects: &mut Vec<LinkEffect>,
    ) {
        let Dialling::UnderWay { .. } = self.dialling else { return };
        self.dialling = Dialling::Idle;
        let other = self.other;
        match failure {
            // The streams of the process were read to their end before this attempt.
            DialFailure::NobodyListens => {
                if let Some((life, told @ false)) = &mut self.life {
                    *told = true;
                    let life = *life;
                    // Had it dialled again, it would live.
                    let dead = self.closed_there && self.guest.is_none() && self.held.is_empty();
                    effects.push(LinkEffect::Ended { life, dead });
                    // A firewall refuses connections as well. What was asked is final at once only
                    // where the process has closed its streams itself, else after an election timeout.
                    if dead {
                        self.settle(effects);
                    }
                }
            }
            DialFailure::Unreachable(_) => {}
            DialFailure::Garbled(address, why) => {
                self.complain(
                    format!("cut off {address}, for node {other}: {why}"),
                    now_ms,
                    effects,
                );
            }
            DialFailure::Refused => {
                let complaint = format!("node {other} refuses this node: its log says why");
                self.complain(complaint, now_ms, effects);
            }
        }
        self.retry(now_ms, effects);
    }

    /// A process at `from` has dialled and says that it is the other node. It is held until that is
    /// proven; a link that stands goes on. Tells how to answer.
    pub fn introduced(
        &mut self,
        stream: StreamId,
        hello: Hello,
        from: &str,
        now_ms: u64,
        effects: &mut Vec<LinkEffect>,
    ) -> Greeting {
        // It comes again and again, each time from another port.
        let host = from.rsplit_once(':').map_or(from, |(host, _)| host);
        if let Err(why) = self.own.judge(&hello) {
            let complaint = format!("refused node {} at {host}: {why}", self.other);
            self.complain(complaint, now_ms, effects);
            return Greeting::Refuse;
        }
        if hello.life < self.own.seen.life {
            // A process that was left over, or a node that has lost its data directory: it is told
            // what it may not be again.
            let (node, life, seen) = (hello.node, hello.life.0, self.own.seen.life.0);
            let why = format!("node {node} has been started again since: {life} < {seen}");
            self.complain(why, now_ms, effects);
            return Greeting::Tell(self.own.clone());
        }
        if self.is_outlived(&hello) {
            // Is it? It is asked at its own address.
            self.dial_at_once(effects);
            return Greeting::LetGo;
        }
        if self.held.len() >= HELD_MAX
            && let Some(oldest) = self.held.pop_front()
        {
            effects.push(LinkEffect::Close(oldest.stream));
        }
        match &self.dialled {
            Some(dialled) => {
                effects.push(LinkEffect::Say(dialled.stream, Word::Claim(hello.nonce)));
            }
            None => self.dial_at_once(effects),
        }
        let claimed_ms = self.dialled.as_ref().map(|_| now_ms);
        let (from, since_ms) = (from.to_owned(), self.ran(now_ms));
        self.held.push_back(Introduction { stream, hello, from, since_ms, claimed_ms });
        Greeting::Keep(self.own.clone())
    }

    /// A word came on one of the streams. False if it has no place there.
    pub fn hear(
        &mut self,
        stream: StreamId,
        word: Word,
        now_ms: u64,
        effects: &mut Vec<LinkEffect>,
    ) -> bool {
        match word {
            Word::Claim(nonce) => {
                if self.dialled_stream() == Some(stream) {
                    return false;
                }
                let dialled = self.dialled.as_ref().map(|one| one.nonce);
                let dialling = match self.dialling {
                    Dialling::UnderWay { nonce, .. } => Some(nonce),
                    Dialling::Idle | Dialling::Due(_) => None,
                };
                let yours = [dialled, dialling].contains(&Some(nonce));
                effects.push(LinkEffect::Say(stream, Word::Yours(nonce, yours)));
                if yours {
                    self.prove(stream, now_ms, effects);
                }
            }
            Word::Yours(nonce, yours) => {
                if self.dialled_stream() != Some(stream) {
                    return false;
                }
                if !yours {
                    self.disprove(nonce, now_ms, effects);
                }
            }
            Word::Ping { number, seen } => {
                if !self.up {
                    return false;
                }
                while let Some(&(pong, said_ms)) = self.pongs.front()
                    && pong <= seen
                {
                    self.heard_there_ms = self.heard_there_ms.max(Some(said_ms));
                    self.pongs.pop_front();
                }
                if self.pongs.len() < PONGS_MAX {
                    self.pongs.push_back((number, now_ms));
                }
                effects.push(LinkEffect::Say(stream, Word::Pong(number)));
            }
            Word::Pong(number) => {
                if !self.up || number > self.pings {
                    return false;
                }
                self.seen = self.seen.max(number);
                self.ponged_ms = self.ran(now_ms);
                self.spared = false;
                if std::mem::take(&mut self.suspected) {
                    effects.push(LinkEffect::Trust);
                }
            }
        }
        true
    }

    /// The node does not know of an introduction with this nonce.
    fn disprove(&mut self, nonce: u64, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        let place = self.held.iter().position(|held| held.hello.nonce == nonce);
        let Some(held) = place.and_then(|place| self.held.remove(place)) else { return };
        effects.push(LinkEffect::Close(held.stream));
        let why = "that node does not know of the introduction";
        let complaint = format!("cut off {}, for node {}: {why}", held.from, self.other);
        self.complain(complaint, now_ms, effects);
    }

    /// Who is at the other end of a stream knows what only the node can know.
    fn prove(&mut self, stream: StreamId, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        let place = self.held.iter().position(|held| held.stream == stream);
        let Some(held) = place.and_then(|place| self.held.remove(place)) else { return };
        if self.up {
            // It dials again only once it has dropped the link.
            self.go_down("it dialled again", now_ms, effects);
        } else if let Some(earlier) = self.guest.take() {
            effects.push(LinkEffect::Close(earlier.stream));
        }
        let met = self.dialled.as_ref().map(|dialled| dialled.hello.life);
        if met.is_some_and(|life| life > held.hello.life) {
            effects.push(LinkEffect::Close(held.stream));
            return;
        }
        self.guest = Some(held);
        self.come_up(now_ms, effects);
    }

    /// The link stands once both streams do, to one and the same life of the other node.
    fn come_up(&mut self, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        let (Some(dialled), Some(guest)) = (&self.dialled, &self.guest) else { return };
        if self.up {
            return;
        }
        let (met, came) = (dialled.hello.life, guest.hello.life);
        if met < came {
            self.drop_dialled(effects);
            return self.dial_at_once(effects);
        }
        if came < met {
            return self.drop_guest(effects);
        }
        let claimed_ms = guest.claimed_ms;
        // What is said at the other's own address is its own.
        let seen = dialled.hello.seen;
        let hello = Hello { seen, ..dialled.hello.latest(&guest.hello) };
        self.see(LastSeen { life: hello.life, generation: 0 }, effects);
        if self.life.is_some_and(|(life, _)| life < hello.life) {
            self.settle(effects);
        }
        self.up = true;
        self.life = Some((hello.life, false));
        self.closed_there = false;
        let ran_ms = self.ran(now_ms);
        (self.heard_ms, self.ponged_ms, self.spared) = (ran_ms, ran_ms, false);
        (self.pinged_ms, self.pings, self.seen) = (now_ms, 0, 0);
        self.pongs.clear();
        self.heard_there_ms = claimed_ms;
        self.complaints.forget();
        effects.push(LinkEffect::Up(hello));
    }

    fn drop_dialled(&mut self, effects: &mut Vec<LinkEffect>) {
        effects.extend(self.dialled.take().map(|one| LinkEffect::Close(one.stream)));
    }

    fn drop_guest(&mut self, effects: &mut Vec<LinkEffect>) {
        effects.extend(self.guest.take().map(|one| LinkEffect::Close(one.stream)));
    }

    /// Drops a stream that has become part of no link for long: the other node may have lost it from
    /// sight.
    fn drop_lone(&mut self, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        let ran_ms = self.ran_ms;
        let is_old = |since_ms: u64| since_ms + HELD_MS <= ran_ms;
        if self.guest.as_ref().is_some_and(|guest| is_old(guest.since_ms)) {
            self.drop_guest(effects);
        }
        if self.dialled.as_ref().is_some_and(|dialled| is_old(dialled.since_ms)) {
            self.drop_dialled(effects);
            self.retry(now_ms, effects);
        }
    }

    /// Anything came on a stream of the link.
    #[inline]
    pub fn heard(&mut self, now_ms: u64) {
        self.heard_ms = self.ran(now_ms);
    }

    /// How long this process has run: what it was stopped for does not count.
    fn ran(&self, now_ms: u64) -> u64 {
        let since_tick = self.ticked_ms.map_or(0, |ticked_ms| now_ms.saturating_sub(ticked_ms));
        self.ran_ms + since_tick.min(2 * TICK_MS)
    }

    /// A stream has ended, or is to end because of what came on it. `in_order` if the other side
    /// closed it after its last word. A node is not lost by the end of a stream that became part of no
    /// link, but the reason is told all the same.
    pub fn closed(
        &mut self,
        stream: StreamId,
        why: &str,
        in_order: bool,
        now_ms: u64,
        effects: &mut Vec<LinkEffect>,
    ) {
        if let Some(from) = self.stranger(stream) {
            let complaint = format!("cut off {from}, for node {}: {why}", self.other);
            self.complain(complaint, now_ms, effects);
        }
        if let Some(place) = self.held.iter().position(|held| held.stream == stream) {
            self.held.remove(place);
            effects.push(LinkEffect::Close(stream));
        } else if !self.has(stream) {
        } else if self.up {
            self.closed_there = in_order;
            self.go_down(why, now_ms, effects);
        } else if self.dialled_stream() == Some(stream) {
            self.drop_dialled(effects);
            self.retry(now_ms, effects);
        } else {
            self.drop_guest(effects);
        }
    }

    /// Who is at the other end of a stream that is not part of a standing link.
    fn stranger(&self, stream: StreamId) -> Option<&str> {
        let accepted = self.held.iter().chain(self.guest.as_ref().filter(|_| !self.up));
        accepted.into_iter().find(|one| one.stream == stream).map(|one| one.from.as_str())
    }

    fn go_down(&mut self, why: &str, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        self.drop_dialled(effects);
        self.drop_guest(effects);
        self.heard_there_ms = None;
        if std::mem::take(&mut self.up) {
            self.suspected = false;
            self.adrift_since_ms = Some(self.ponged_ms);
            effects.push(LinkEffect::Down(why.to_owned()));
        }
        self.retry(now_ms, effects);
    }

    /// What was asked over lost links is final.
    fn settle(&mut self, effects: &mut Vec<LinkEffect>) {
        if self.adrift_since_ms.take().is_some() {
            effects.push(LinkEffect::Final);
        }
    }

    /// Lets time pass: dials, pings, suspects, gives up.
    pub fn tick(&mut self, now_ms: u64, effects: &mut Vec<LinkEffect>) {
        self.ran_ms = self.ran(now_ms);
        let ticked_ms = self.ticked_ms.replace(now_ms).unwrap_or(now_ms);
        let was_stopped = now_ms.saturating_sub(ticked_ms) >= STOPPED_MS;
        if was_stopped && !std::mem::replace(&mut self.spared, true) {
            (self.heard_ms, self.ponged_ms) = (self.ran_ms, self.ran_ms);
        }
        self.tick_dialling(now_ms, effects);
        while let Some(held) = self.held.front()
            && held.since_ms + HELD_MS <= self.ran_ms
            && let Some(held) = self.held.pop_front()
        {
            effects.push(LinkEffect::Close(held.stream));
            let why = "nobody confirms its introduction";
            let complaint = format!("cut off {}, for node {}: {why}", held.from, self.other);
            self.complain(complaint, now_ms, effects);
        }
        let is_final = |since_ms: u64| self.ran_ms.saturating_sub(since_ms) >= self.suspect_ms;
        if self.adrift_since_ms.is_some_and(is_final) {
            self.settle(effects);
        }
        if !self.up {
            return self.drop_lone(now_ms, effects);
        }
        let quiet_ms = self.ran_ms.saturating_sub(self.ponged_ms);
        let silent_ms = self.ran_ms.saturating_sub(self.heard_ms);
        if silent_ms > SILENCE_MS && quiet_ms > self.suspect_ms {
            let why = format!("silent for {} s", SILENCE_MS / 1000);
            return self.go_down(&why, now_ms, effects);
        }
        if quiet_ms >= self.suspect_ms && !std::mem::replace(&mut self.suspected, true) {
            effects.push(LinkEffect::Suspect);
        }
        if now_ms.saturating_sub(self.pinged_ms) >= self.suspect_ms / PINGS {
            self.pinged_ms = now_ms;
            self.pings += 1;
            let ping = Word::Ping { number: self.pings, seen: self.seen };
            let stream = match self.own.node > self.other {
                true => self.dialled_stream(),
                false => self.accepted_stream(),
            };
            effects.extend(stream.map(|stream| LinkEffect::Say(stream, ping)));
        }
    }
}

#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;
