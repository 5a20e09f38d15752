use super::*;
use crate::batch::OpCode;
use crate::batch::refusal::Refusal;
use crate::ids::{Millis, PartitionId};
use crate::store::tables::{Access, Tables};
use proptest::prelude::*;
use std::collections::VecDeque;

/// Operations that name one key each.
struct Toy;

impl Machine for Toy {
    fn knows(_: OpCode) -> bool {
        true
    }

    fn access(_: OpCode) -> Access {
        Access::Write
    }

    fn scope(code: OpCode) -> Scope {
        if code == ALONE { Scope::Partition } else { Scope::Keys }
    }

    fn keys(op: &Op<'_>, visit: &mut dyn FnMut(TableIndex, &[u8])) {
        visit(TableIndex::default(), op.args.get(0));
    }

    fn run(_: &Op<'_>, _: &mut Tables, _: Millis, _: &mut Vec<u8>) {}

    fn refuse(_: &Refusal, _: &mut Vec<u8>) {}
}

const ALONE: OpCode = OpCode(1);
const LANES: usize = 3;
const HELD_MAX: usize = 64;

/// A command as its client has sent it.
#[derive(Clone, Debug)]
enum Sent {
    /// On a key, which tells the lane.
    Op(u8),
    /// On the whole of what a lane holds.
    Whole(u16),
    Own,
    Spread(Vec<u8>),
}

impl Sent {
    fn overlaps(&self, other: &Sent) -> bool {
        match (self, other) {
            (Sent::Own, _) | (_, Sent::Own) => false,
            (Sent::Op(one), Sent::Op(other)) => one == other,
            (Sent::Op(key), Sent::Spread(keys)) | (Sent::Spread(keys), Sent::Op(key)) => {
                keys.contains(key)
            }
            (Sent::Spread(one), Sent::Spread(other)) => one.iter().any(|key| other.contains(key)),
            (Sent::Whole(_), Sent::Spread(_)) | (Sent::Spread(_), Sent::Whole(_)) => true,
            (Sent::Op(key), Sent::Whole(lane)) | (Sent::Whole(lane), Sent::Op(key)) => {
                lane_of(*key) == *lane
            }
            (Sent::Whole(one), Sent::Whole(other)) => one == other,
        }
    }
}

fn lane_of(key: u8) -> u16 {
    u16::from(key) % LANES as u16
}

fn sent(has_spreads: bool) -> impl Strategy<Value = Sent> {
    let spread = prop::collection::vec(0..8u8, 1..4).prop_map(Sent::Spread);
    let whole = (0..LANES as u16).prop_map(Sent::Whole);
    let rare = if has_spreads { 1 } else { 0 };
    prop_oneof![
        8 => (0..8u8).prop_map(Sent::Op),
        1 => Just(Sent::Own),
        2 * rare => spread,
        1 => whole,
    ]
}

/// What the world does next: which of those that are away answers, how many of a batch's operations
/// it leaves, and how long its replies are.
#[derive(Clone, Copy, Debug)]
struct Turn {
    which: usize,
    left: usize,
    bytes: usize,
}

fn turn() -> impl Strategy<Value = Turn> {
    let left = prop_oneof![3 => Just(0), 1 => 1..4usize];
    (0..8usize, left, 0..60usize).prop_map(|(which, left, bytes)| Turn { which, left, bytes })
}

enum Under {
    Batch(usize, Batch, Replies),
    Spread(u32),
}

struct Journey {
    flight: Flight,
    sent: Vec<Sent>,
    under: VecDeque<Under>,
    /// When each command was executed.
    executed: Vec<Option<usize>>,
    begun: Vec<Option<usize>>,
    said: Vec<Vec<u8>>,
    clock: usize,
    most_held: usize,
}

impl Journey {
    fn new(sent: Vec<Sent>, mutes: &[bool]) -> Journey {
        let hasher = KeyHasher::new(1);
        let mut flight = Flight::new(LANES, HELD_MAX);
        let head = |code| OpHead {
            code,
            partition: PartitionId(0),
            table: TableIndex::default(),
            resp3: false,
            hash: 0,
        };
        for (place, sent) in sent.iter().enumerate() {
            // The place is an argument, so that who executes it can tell what it executes.
            let name = (place as u32).to_le_bytes();
            match sent {
                Sent::Op(key) => {
                    flight.op(lane_of(*key), head(OpCode(0)), [[*key].as_slice(), &name]);
                }
                Sent::Whole(lane) => flight.op(*lane, head(ALONE), [b"".as_slice(), &name]),
                Sent::Own => {
                    flight.own().extend_from_slice(format!("own {place}").as_bytes());
                    flight.end_own();
                }
                Sent::Spread(_) => flight.spread(),
            }
            if mutes.get(place) == Some(&true) {
                flight.mute_last();
            }
        }
        let spreads: Vec<&Vec<u8>> = sent
            .iter()
            .filter_map(|one| match one {
                Sent::Spread(keys) => Some(keys),
                _ => None,
            })
            .collect();
        flight.seal::<Toy>(hasher, |number, keys| {
            let known = |key: &u8| known_as(hasher, TableIndex::default(), &[*key]);
            keys.extend(spreads[number].iter().map(known));
        });
        let count = sent.len();
        Journey {
            flight,
            sent,
            under: VecDeque::new(),
            executed: vec![None; count],
            begun: vec![None; count],
            said: vec![Vec::new(); count],
            clock: 0,
            most_held: 0,
        }
    }

    fn place_of_spread(&self, number: u32) -> usize {
        let places = (0..self.sent.len()).filter(|at| matches!(self.sent[*at], Sent::Spread(_)));
        places.collect::<Vec<_>>()[number as usize]
    }

    /// Everything before it that it overlaps with has had its effect, or goes to the same lane in the
    /// same batch, before it.
    fn check_begin(&self, place: usize, beside: &[usize]) {
        for earlier in 0..place {
            if self.sent[earlier].overlaps(&self.sent[place]) {
                let is_over = self.executed[earlier].is_some() || beside.contains(&earlier);
                assert!(is_over, "{place} began before the end of {earlier}");
            }
        }
    }

    fn start(&mut self) {
        for number in self.flight.start() {
            let place = self.place_of_spread(number);
            self.check_begin(place, &[]);
            self.begun[place] = Some(self.clock);
            self.under.push_back(Under::Spread(number));
        }
        for lane in 0..LANES {
            let Some((batch, replies)) = self.flight.send(lane) else { continue };
            assert!(replies.is_empty() && !batch.is_empty());
            let mut beside = Vec::new();
            for op in batch.iter() {
                let place = place_of(&op);
                assert_eq!(self.executed[place], None, "{place} is asked again");
                self.check_begin(place, &beside);
                beside.push(place);
            }
            self.under.push_back(Under::Batch(lane, batch, replies));
        }
    }

    fn answer(&mut self, turn: Turn) {
        let Some(under) = self.under.remove(turn.which % self.under.len()) else { return };
        self.clock += 1;
        match under {
            Under::Spread(number) => {
                let place = self.place_of_spread(number);
                self.executed[place] = Some(self.clock);
                self.said[place] = vec![place as u8; turn.bytes];
                self.flight.end(number, self.said[place].clone());
            }
            Under::Batch(lane, batch, mut replies) => {
                // From one operation on every second one is left, and what overlaps with such a one.
                let first = batch.len().saturating_sub(turn.left);
                let (mut left, mut answers) = (Vec::new(), Vec::new());
                for (index, op) in batch.iter().enumerate() {
                    let place = place_of(&op);
                    let overlaps = |at: &usize| self.sent[*at].overlaps(&self.sent[place]);
                    if (index >= first && index % 2 == first % 2) || left.iter().any(overlaps) {
                        left.push(place);
                        answers.push(None);
                        continue;
                    }
                    self.executed[place] = Some(self.clock);
                    self.said[place] = vec![place as u8; turn.bytes];
                    answers.push(Some(self.said[place].clone()));
                }
                let parts = answers
                    .iter()
                    .map(|answer| answer.as_deref().map_or(Part::Left, Part::Answered));
                let gathered = Replies::gather(parts, |_, _| {});
                replies.clone_from(&gathered);
                assert_eq!(self.flight.take_back(lane, batch, replies), !left.is_empty());
            }
        }
        self.most_held = self.most_held.max(self.flight.held);
    }
}

fn place_of(op: &Op<'_>) -> usize {
    u32::from_le_bytes(op.args.get(1).try_into().unwrap()) as usize
}

fn journey(sent: Vec<Sent>, mutes: Vec<bool>, turns: Vec<Turn>, into: bool) {
    let mut journey = Journey::new(sent, &mutes);
    let mut turns = turns.into_iter().cycle();
    let (mut collected, mut out) = (0, Vec::new());
    let mut in_order = Vec::new();
    loop {
        if into {
            journey.flight.collect_into(&mut out);
        } else {
            journey.flight.collect(|place, reply, is_wanted| {
                assert_eq!(place, collected, "replies come in the order of the commands");
                assert_eq!(is_wanted, mutes.get(place) != Some(&true));
                collected += 1;
                in_order.push(reply.to_vec());
            });
        }
        if journey.flight.is_over() {
            break;
        }
        journey.start();
        // If only one lane can help, it is one that is away.
        let helps = |under: &Under| match (journey.flight.awaited(), under) {
            (None, _) => true,
            (Some(lane), Under::Batch(away, ..)) => lane == *away,
            (Some(_), Under::Spread(_)) => false,
        };
        assert!(journey.under.iter().any(helps), "nothing is away and not all is answered");
        let turn = turns.next().unwrap();
        journey.answer(turn);
    }
    let wanted = |place: &usize| mutes.get(*place) != Some(&true);
    let expected = |place: usize| match journey.sent[place] {
        Sent::Own => format!("own {place}").into_bytes(),
        _ => journey.said[place].clone(),
    };
    let places = 0..journey.sent.len();
    if into {
        let expected: Vec<u8> = places.filter(wanted).flat_map(expected).collect();
        assert_eq!(out, expected);
    } else {
        assert_eq!(in_order, places.map(expected).collect::<Vec<_>>());
    }
    // One answer of each lane and each transaction may come while the reply of another is awaited.
    let once = 60 * journey.sent.len();
    assert!(journey.most_held <= HELD_MAX + once, "{} bytes are held", journey.most_held);
    assert_eq!(journey.flight.held, 0);
    journey.flight.clear();
    assert!(journey.flight.is_empty() && journey.flight.is_over());
}

fn journeys(has_spreads: bool) -> impl Strategy<Value = (Vec<Sent>, Vec<bool>, Vec<Turn>, bool)> {
    let mutes = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(prop::bool::weighted(0.2), 24),
    ];
    let sent = prop::collection::vec(sent(has_spreads), 1..24);
    // A world that leaves all for ever would not end.
    let turns = prop::collection::vec(turn(), 1..24).prop_map(|mut turns| {
        turns.push(Turn { which: 0, left: 0, bytes: 1 });
        turns
    });
    (sent, mutes, turns, prop::bool::ANY)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever answers when, and whatever it leaves: each command is executed once, after those
    /// before it that it overlaps with, and all replies leave in order.
    #[test]
    fn operations_are_executed_once_and_answered_in_order((sent, mutes, turns, into) in journeys(false)) {
        journey(sent, mutes, turns, into);
    }

    /// The same with transactions among them.
    #[test]
    fn transactions_keep_their_place_among_operations((sent, mutes, turns, into) in journeys(true)) {
        journey(sent, mutes, turns, into);
    }
}

/// Answers a lane's batch: `bytes` for each operation, or None for one that is left.
fn reply(flight: &mut Flight, lane: usize, batch: Batch, bytes: &[Option<usize>]) {
    let answers: Vec<Option<Vec<u8>>> =
        bytes.iter().map(|bytes| bytes.map(|bytes| vec![b'.'; bytes])).collect();
    let parts = answers.iter().map(|answer| answer.as_deref().map_or(Part::Left, Part::Answered));
    let replies = Replies::gather(parts, |_, _| {});
    flight.take_back(lane, batch, replies);
}

#[test]
fn a_lone_lane_gives_its_replies_as_they_lie() {
    let mut journey = Journey::new(vec![Sent::Op(1), Sent::Op(4), Sent::Op(1)], &[]);
    let (batch, mut replies) = journey.flight.send(1).unwrap();
    [b"one".as_slice(), b"two", b"three"].iter().for_each(|reply| replies.push(reply));
    let lies_at = replies.bytes.as_ptr();
    journey.flight.take_back(1, batch, replies);
    let mut out = Vec::new();
    journey.flight.collect_into(&mut out);
    assert_eq!((out.as_slice(), out.as_ptr()), (b"onetwothree".as_slice(), lies_at));
    assert!(journey.flight.is_over());
}

#[test]
fn while_much_waits_only_what_all_wait_for_is_asked_again() {
    // Lane 1 leaves its first operation while lanes 0 and 2 answer much.
    let mut journey = Journey::new([1, 0, 4, 2, 7].map(Sent::Op).to_vec(), &[]);
    let flight = &mut journey.flight;
    let mut batches: Vec<Batch> = (0..LANES).map(|lane| flight.send(lane).unwrap().0).collect();
    reply(flight, 2, batches.remove(2), &[Some(HELD_MAX + 1)]);
    reply(flight, 1, batches.remove(1), &[None, None, None]);
    reply(flight, 0, batches.remove(0), &[Some(1)]);
    flight.collect(|place, _, _| panic!("{place} has its turn behind one that is not answered"));
    let (batch, _) = flight.send(1).unwrap();
    assert_eq!(batch.iter().map(|op| place_of(&op)).collect::<Vec<_>>(), [0]);
    reply(flight, 1, batch, &[Some(1)]);
    let mut left = Vec::new();
    flight.collect(|place, _, _| left.push(place));
    assert_eq!(left, [0, 1]);
    assert_eq!(flight.awaited(), Some(1));
    let (batch, _) = flight.send(1).unwrap();
    assert_eq!(batch.iter().map(|op| place_of(&op)).collect::<Vec<_>>(), [2], "much still waits");
    reply(flight, 1, batch, &[Some(1)]);
    flight.collect(|place, _, _| left.push(place));
    assert_eq!(left, [0, 1, 2, 3]);
    assert_eq!(flight.send(1).unwrap().0.len(), 1);
}
