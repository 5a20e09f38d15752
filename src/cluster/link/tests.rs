//! Two links that talk to each other over streams which are slow, cut one way, or end; and strangers.

use super::*;
use crate::cluster::barrier::PROTOCOL_VERSION;
use std::collections::{BTreeMap, BTreeSet};

const SUSPECT_MS: u64 = 600;

pub(super) fn hello(node: u16, life: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        cluster: "quorate".into(),
        node: NodeId(node),
        life: Incarnation(life),
        digest: 0xabc,
        formed: true,
        unsound: Vec::new(),
        seen: LastSeen::default(),
        nonce: 0,
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// The link begins.
    Begin,
    /// A tick that the link asked for.
    Tick,
    Introduced(StreamId, Hello),
    Answered(StreamId, Hello),
    /// The attempt that dialled this stream failed.
    Failed(StreamId, DialFailure),
    Hear(StreamId, Word),
    /// Any packet that a node sends once its link stands.
    Packet(StreamId),
    Closed(StreamId),
}

impl Event {
    fn stream(&self) -> Option<StreamId> {
        match self {
            Event::Introduced(stream, _)
            | Event::Answered(stream, _)
            | Event::Hear(stream, _)
            | Event::Packet(stream)
            | Event::Closed(stream) => Some(*stream),
            _ => None,
        }
    }
}

/// Nodes 1 and 2, by index, and what is on its way between them.
struct Wire {
    now: u64,
    links: [Link; 2],
    /// By when it arrives, and in which order it was sent.
    queue: BTreeMap<(u64, u64), (usize, Event)>,
    sent: u64,
    streams: BTreeSet<StreamId>,
    /// By who dials: the stream of the attempt that began last.
    attempt: [Option<StreamId>; 2],
    /// By receiver: nothing arrives.
    cut: [bool; 2],
    delay: [u64; 2],
    /// Streams do not wait for each other: so many ms more or less.
    jitter: u64,
    /// By receiver: streams are first in, first out.
    last: [BTreeMap<StreamId, u64>; 2],
    told: [Vec<LinkEffect>; 2],
    next: u64,
    stopped: [bool; 2],
    /// By receiver: what its readers leave unread until the link stands, behind a packet.
    unread: [BTreeMap<StreamId, Vec<Event>>; 2],
    /// The streams of the latest link, and those of links that were lost since the last was final.
    of_link: [[StreamId; 2]; 2],
    lost: [Vec<StreamId>; 2],
}

impl Wire {
    fn new() -> Wire {
        let link = |own, other| Link::new(hello(own, 1), NodeId(other), SUSPECT_MS);
        Wire {
            now: 1_000,
            links: [link(1, 2), link(2, 1)],
            queue: BTreeMap::new(),
            sent: 0,
            streams: BTreeSet::new(),
            attempt: [None; 2],
            cut: [false; 2],
            delay: [1; 2],
            jitter: 0,
            last: [BTreeMap::new(), BTreeMap::new()],
            told: [Vec::new(), Vec::new()],
            next: 100,
            stopped: [false; 2],
            unread: [BTreeMap::new(), BTreeMap::new()],
            of_link: [[0; 2]; 2],
            lost: [Vec::new(), Vec::new()],
        }
    }

    fn linked() -> Wire {
        let mut wire = Wire::new();
        wire.at(0, Event::Begin);
        wire.at(1, Event::Begin);
        wire.run(500);
        assert!(wire.links.iter().all(Link::is_up), "{:?}", wire.told);
        wire.told = [Vec::new(), Vec::new()];
        wire
    }

    fn at(&mut self, side: usize, event: Event) {
        self.sent += 1;
        self.queue.insert((self.now, self.sent), (side, event));
    }

    /// Sends to a side, unless its way is cut.
    fn send(&mut self, side: usize, event: Event) {
        if self.cut[side] {
            return;
        }
        self.sent += 1;
        let jitter = self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let at = self.now + self.delay[side] + jitter % (self.jitter + 1);
        let last = event.stream().map(|stream| self.last[side].entry(stream).or_default());
        let at = last.map_or(at, |last| {
            *last = at.max(*last);
            *last
        });
        self.queue.insert((at, self.sent), (side, event));
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += 1;
            while let Some((&(at, order), _)) = self.queue.first_key_value()
                && at <= self.now
                && let Some((side, event)) = self.queue.remove(&(at, order))
            {
                if self.stopped[side] {
                    // It lies in the socket until the process goes on.
                    self.queue.insert((self.now + 1, order), (side, event));
                    continue;
                }
                self.take(side, event);
            }
            if self.now.is_multiple_of(TICK_MS) {
                for side in 0..2 {
                    let mut effects = Vec::new();
                    if !self.stopped[side] {
                        self.links[side].tick(self.now, &mut effects);
                    }
                    self.carry(side, effects);
                }
            }
        }
    }

    fn take(&mut self, side: usize, event: Event) {
        let mut effects = Vec::new();
        let link = &mut self.links[side];
        match event {
            Event::Begin => link.begin(&mut effects),
            Event::Tick => link.tick(self.now, &mut effects),
            Event::Introduced(stream, hello) => {
                match link.introduced(stream, hello, "somewhere", self.now, &mut effects) {
                    Greeting::Keep(own) | Greeting::Tell(own) => {
                        self.send(1 - side, Event::Answered(stream, own));
                    }
                    Greeting::LetGo | Greeting::Refuse => {
                        self.send(1 - side, Event::Failed(stream, DialFailure::Refused));
                    }
                }
            }
            // What was hung up tells nothing any more.
            Event::Answered(stream, _) | Event::Failed(stream, _)
                if self.attempt[side] != Some(stream) => {}
            Event::Answered(stream, hello) => {
                link.answered(stream, hello, self.now, &mut effects);
            }
            Event::Failed(_, failure) => link.dial_failed(failure, self.now, &mut effects),
            Event::Hear(stream, word) => {
                let is_packet = matches!(word, Word::Ping { .. } | Word::Pong(_));
                let unread = &mut self.unread[side];
                if !link.is_up() && (is_packet || unread.contains_key(&stream)) {
                    unread.entry(stream).or_default().push(Event::Hear(stream, word));
                } else if link.has(stream) {
                    link.heard(self.now);
                    assert!(link.hear(stream, word, self.now, &mut effects), "{word:?}");
                }
            }
            Event::Packet(stream) => {
                if !link.is_up() {
                    self.unread[side].entry(stream).or_default();
                }
            }
            Event::Closed(stream) => {
                link.closed(stream, "closed", true, self.now, &mut effects);
            }
        }
        self.carry(side, effects);
    }

    fn dial(&mut self, side: usize) {
        self.next += 1;
        let (stream, nonce) = (self.next, self.next * 1_000_003);
        let Some(hello) = self.links[side].dial(nonce, self.now) else { return };
        self.attempt[side] = Some(stream);
        if !self.cut[0] && !self.cut[1] {
            self.streams.insert(stream);
            self.send(1 - side, Event::Introduced(stream, hello));
        }
    }

    fn carry(&mut self, side: usize, effects: Vec<LinkEffect>) {
        for effect in effects {
            match &effect {
                LinkEffect::Dial => {
                    self.dial(side);
                    continue;
                }
                LinkEffect::Retry(after) => {
                    self.sent += 1;
                    self.queue.insert((self.now + after, self.sent), (side, Event::Tick));
                    continue;
                }
                LinkEffect::HangUp => {
                    if let Some(stream) = self.attempt[side].take()
                        && self.streams.remove(&stream)
                    {
                        self.send(1 - side, Event::Closed(stream));
                    }
                    continue;
                }
                LinkEffect::Say(stream, word) => {
                    if self.streams.contains(stream) {
                        self.send(1 - side, Event::Hear(*stream, *word));
                    }
                    continue;
                }
                LinkEffect::Close(stream) => {
                    self.streams.remove(stream);
                    self.send(1 - side, Event::Closed(*stream));
                    continue;
                }
                // What has been given up is not executed later: neither what was asked over the
                // link that stands nor over those that were lost.
                LinkEffect::Suspect | LinkEffect::Final => {
                    let mut asked = std::mem::take(&mut self.lost[side]);
                    if effect == LinkEffect::Suspect {
                        asked.extend(self.of_link[side]);
                    }
                    let there = &self.links[1 - side];
                    let reads = |stream: &StreamId| there.is_up() && there.has(*stream);
                    let late = there.serves_until() > self.now && asked.iter().any(reads);
                    assert!(!late, "{effect:?} at {}", self.now);
                }
                LinkEffect::Up(_) => {
                    let link = &self.links[side];
                    let streams = [link.dialled_stream(), link.accepted_stream()];
                    self.of_link[side] = streams.map(|stream| stream.expect("a link has both"));
                    let unread = std::mem::take(&mut self.unread[side]);
                    unread.into_values().flatten().for_each(|event| self.at(side, event));
                    for stream in self.of_link[side] {
                        self.send(1 - side, Event::Packet(stream));
                    }
                }
                LinkEffect::Down(_) => self.lost[side].extend(self.of_link[side]),
                LinkEffect::Seen(_) => continue,
                _ => {}
            }
            self.told[side].push(effect);
        }
    }

    fn counted(&self, side: usize, effect: &LinkEffect) -> usize {
        self.told[side].iter().filter(|told| *told == effect).count()
    }
}

#[test]
fn dials_that_cross_make_a_link() {
    Wire::linked();
}

/// Whichever side takes the link for standing first, and whatever it says then.
#[test]
fn streams_that_overtake_each_other_make_a_link() {
    for seed in 0..500 {
        let mut wire = Wire::new();
        (wire.sent, wire.jitter) = (seed * 1_000, 40);
        wire.at(0, Event::Begin);
        wire.now += seed % 30;
        wire.at(1, Event::Begin);
        wire.run(500);
        assert!(wire.links.iter().all(Link::is_up), "seed {seed}: {:?}", wire.told);
        let linked = |told: &LinkEffect| matches!(told, LinkEffect::Up(_));
        assert!(wire.told.iter().all(|told| told.iter().all(linked) && told.len() == 1));
    }
}

#[test]
fn a_dial_that_is_answered_by_a_dial_makes_a_link() {
    let mut wire = Wire::new();
    wire.at(0, Event::Begin);
    wire.run(500);
    assert!(wire.links.iter().all(Link::is_up), "{:?}", wire.told);
}

/// Whatever life it claims: a stranger has no effect on a link that stands.
#[test]
fn a_forged_introduction_drops_no_link() {
    for life in [1, 2, u64::MAX] {
        let mut wire = Wire::linked();
        for stream in 1..20 {
            let mut effects = Vec::new();
            let forged = Hello { nonce: stream, ..hello(2, life) };
            let answer = wire.links[0].introduced(stream, forged, "a", wire.now, &mut effects);
            let Greeting::Keep(own) = answer else { panic!("{answer:?}") };
            assert_eq!(own.nonce, 0, "a nonce is a secret");
            assert!(wire.links[0].hear(stream, Word::Claim(stream), wire.now, &mut effects));
            wire.carry(0, effects);
        }
        assert!((1..20).filter(|one| wire.links[0].has(*one)).count() <= HELD_MAX);
        wire.run(HELD_MS);
        assert!(wire.links.iter().all(Link::is_up));
        assert!((1..20).all(|stream| !wire.links[0].has(stream)));
        let quiet = |told: &LinkEffect| matches!(told, LinkEffect::Complain(_));
        assert!(wire.told.iter().flatten().all(quiet), "{:?}", wire.told);
    }
}

#[test]
fn a_new_life_is_linked_once_the_streams_of_the_old_one_have_ended() {
    let mut wire = Wire::linked();
    wire.links[1] = Link::new(hello(2, 2), NodeId(1), SUSPECT_MS);
    for stream in std::mem::take(&mut wire.streams) {
        wire.send(0, Event::Closed(stream));
    }
    wire.at(1, Event::Begin);
    wire.run(1_000);
    assert!(wire.links.iter().all(Link::is_up), "{:?}", wire.told);
    assert_eq!(wire.links[0].life(), Some(Incarnation(2)));
    // Its old life has ended, so what that was asked is final.
    assert_eq!(wire.counted(0, &LinkEffect::Final), 1);
}

/// A data directory that is lost takes the lives along that it knew, and a clock may be behind.
#[test]
fn a_life_that_was_outlived_is_told_so_and_linked_in_a_later_one() {
    let seen = LastSeen { life: Incarnation(7), generation: 3 };
    let mut wire = Wire::new();
    wire.links[0].see(seen, &mut Vec::new());
    wire.at(1, Event::Begin);
    wire.at(0, Event::Begin);
    wire.run(500);
    assert!(!wire.links.iter().any(Link::is_up));
    assert!(wire.counted(1, &LinkEffect::Outlived(seen)) > 0, "{:?}", wire.told);
    let mut effects = Vec::new();
    wire.links[1].relive(Incarnation(8), wire.now, &mut effects);
    wire.carry(1, effects);
    wire.run(3_000);
    assert!(wire.links.iter().all(Link::is_up), "{:?}", wire.told);
    assert_eq!(wire.links[0].life(), Some(Incarnation(8)));
}

#[test]
fn either_direction_without_a_word_is_suspected_after_an_election_timeout() {
    for deaf in 0..2 {
        let mut wire = Wire::linked();
        wire.cut[deaf] = true;
        wire.run(SUSPECT_MS - SUSPECT_MS / 4 - 2 * TICK_MS);
        assert!(wire.told.iter().all(Vec::is_empty), "too early: {:?}", wire.told);
        wire.run(SUSPECT_MS / 4 + 4 * TICK_MS);
        for side in 0..2 {
            assert_eq!(wire.told[side], [LinkEffect::Suspect], "side {side}, {deaf} is deaf");
            assert!(wire.links[side].is_up(), "the link is kept");
        }
        wire.cut[deaf] = false;
        wire.run(SUSPECT_MS);
        for side in 0..2 {
            assert_eq!(wire.told[side], [LinkEffect::Suspect, LinkEffect::Trust]);
        }
    }
}

#[test]
fn a_silent_node_is_lost_and_linked_again() {
    let mut wire = Wire::linked();
    wire.cut = [true, true];
    wire.run(SILENCE_MS + SUSPECT_MS);
    let down = LinkEffect::Down("silent for 3 s".into());
    for side in 0..2 {
        assert_eq!(wire.told[side], [LinkEffect::Suspect, down.clone(), LinkEffect::Final]);
    }
    wire.cut = [false, false];
    wire.run(5_000);
    assert!(wire.links.iter().all(Link::is_up));
}

/// A process that was stopped has heard nobody meanwhile, and nobody is to blame for it.
#[test]
fn a_stopped_process_suspects_nobody_and_executes_nothing_late() {
    let mut wire = Wire::linked();
    wire.stopped[1] = true;
    wire.run(SUSPECT_MS + 200);
    assert_eq!(wire.told[0], [LinkEffect::Suspect]);
    // What waits in its sockets was given up by now.
    assert!(wire.links[1].serves_until() <= wire.now);
    wire.stopped[1] = false;
    wire.run(200);
    assert_eq!(wire.told[0], [LinkEffect::Suspect, LinkEffect::Trust]);
    assert_eq!(wire.told[1], []);
    assert!(wire.links[1].serves_until() > wire.now);
}

/// Delays, cuts one way or both, stops, resets: [`Wire::carry`] checks that whatever a node gives up is not
/// executed by the other one afterwards.
#[test]
fn what_is_given_up_is_not_executed_whatever_happens_to_the_wire() {
    let mut served = 0;
    for seed in 0..200_u64 {
        let mut state = seed;
        let mut dice = move |sides: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 33) % sides
        };
        let mut wire = Wire::linked();
        for _ in 0..60 {
            for side in 0..2 {
                wire.cut[side] = dice(8) == 0;
                wire.stopped[side] = dice(12) == 0;
                wire.delay[side] = [1, 5, 100, 400][dice(4) as usize];
                wire.jitter = [0, 4, 60][dice(3) as usize];
            }
            if dice(6) == 0
                && let Some(stream) = wire.links[0].dialled_stream()
            {
                // Reset on this side, and the other one does not hear of it.
                wire.cut[1] = true;
                wire.at(0, Event::Closed(stream));
            }
            wire.run(dice(700));
            served += usize::from(wire.links[0].serves_until() > wire.now);
        }
        (wire.cut, wire.stopped, wire.delay, wire.jitter) = ([false; 2], [false; 2], [1; 2], 0);
        wire.run(10_000);
        assert!(wire.links.iter().all(Link::is_up), "seed {seed}: {:?}", wire.told);
    }
    assert!(served > 1_000, "it hardly ever served: {served}");
}
