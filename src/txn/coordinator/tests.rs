//! Scripts of one Coordinator, and what its transactions add up.

use super::*;
use crate::batch::{Batch, OpCode, OpHead};
use crate::ids::TableIndex;
use crate::script::Args;
use crate::simulation::Lists;
use crate::store::key_state::HeldValue;
use crate::store::tables::Access;
use crate::store::value::ValueBuf;
use crate::txn::protocol::{Claim, Granule};
use std::error::Error;
use std::fmt::Write;

/// Scripts of one Coordinator, on node 1 of three; partition 0 is node 1's, and so on.
struct Script(Transactions<Lists>);

fn head(code: u16, partition: PartitionId) -> OpHead {
    let table = TableIndex::default();
    OpHead { code: OpCode(code), partition, table, resp3: false, hash: 0 }
}

fn key(partition: PartitionId) -> Vec<u8> {
    format!("k{partition}").into_bytes()
}

fn work(mode: Mode, partitions: &[PartitionId]) -> Work {
    let share = |id: &PartitionId| {
        let mut share = Share::default();
        let granule = Granule::Key(TableIndex::default(), key(*id));
        match mode {
            Mode::Read => share.batch.push(head(0, *id), [key(*id).as_slice()]),
            Mode::Write => share.batch.push(head(1, *id), [key(*id).as_slice(), b"tag1"]),
            Mode::Gather => share.claims.push(Claim { granule, access: Access::Write }),
        }
        (*id, share)
    };
    let mut script = Batch::new();
    if mode == Mode::Gather {
        let keys: Vec<Vec<u8>> = partitions.iter().copied().map(key).collect();
        let args = keys.iter().map(Vec::as_slice).chain([b"tag1".as_slice()]);
        script.push(head(2, PartitionId(0)), args);
    }
    Work { mode, shares: partitions.iter().map(share).collect(), script }
}

fn tell(effect: &TxnEffect) -> String {
    match effect {
        TxnEffect::Partition(to, ToPartition::Lock(lock)) => {
            format!("p{to} lock attempt={} age={}", lock.txn.attempt, lock.age.time)
        }
        TxnEffect::Partition(to, ToPartition::Prepare(prepare)) => {
            let work = match &prepare.work {
                Prepared::Share(_) => "its share".to_owned(),
                Prepared::Images(images) => format!("{} images", images.len()),
                Prepared::Whole(batch, images) => {
                    format!("{} operations, {} images", batch.len(), images.len())
                }
            };
            let Prepare { txn, primary, age, .. } = &**prepare;
            let age = age.time;
            let synced = if prepare.synced { " synced" } else { "" };
            format!(
                "p{to} prepare {work} attempt={} age={age} primary=p{primary}{synced}",
                txn.attempt
            )
        }
        TxnEffect::Partition(to, ToPartition::Decide(decide)) => {
            let what = if decide.deciding { "decide" } else { "told" };
            format!("p{to} {what} {:?} attempt={}", decide.verdict, decide.txn.attempt)
        }
        TxnEffect::Partition(to, ToPartition::Confirm { txn, .. }) => {
            format!("p{to} confirm attempt={}", txn.attempt)
        }
        TxnEffect::Partition(to, message) => format!("p{to} {message:?}"),
        TxnEffect::Reply(client, Ended::Done(replies)) => {
            format!("client {} done, {} replies", client.0, replies.len())
        }
        TxnEffect::Reply(client, ended) => format!("client {} {ended:?}", client.0),
    }
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut args = Args::new(command);
        let mut effects = Vec::new();
        let sequence: u64 = args.key("txn", 1)?;
        let attempt: u32 = args.key("attempt", 1)?;
        let (node, incarnation) = (NodeId(1), Incarnation(1));
        let txn = TxnId { node, incarnation, sequence, attempt };
        let at: u64 = args.key("at", 0)?;
        let now = Now { wall: Millis(at), mono: at };
        let handle = |transactions: &mut Transactions<Lists>, message, effects: &mut Vec<_>| {
            transactions.handle(message, now, effects);
        };
        match command.name.as_str() {
            "begin" => {
                let mode = match args.next::<String>()?.as_str() {
                    "read" => Mode::Read,
                    "write" => Mode::Write,
                    _ => Mode::Gather,
                };
                let client = ClientId(args.key("client", 1)?);
                let ids = args.words().into_iter().map(|word| word.parse().map(PartitionId));
                let ids = ids.collect::<Result<Vec<_>, _>>()?;
                self.0.begin(client, work(mode, &ids), now, &mut effects);
            }
            "granted" => {
                let length: usize = args.key("length", 0)?;
                for word in args.words() {
                    let partition = PartitionId(word.parse()?);
                    let value = b"tag0".repeat(length);
                    let held = HeldValue { value: ValueBuf::string(value), expires: None };
                    let image = KeyState {
                        table: TableIndex::default(),
                        key: key(partition),
                        held: (length > 0).then_some(held),
                    };
                    let granted = ToCoordinator::Granted {
                        txn,
                        partition,
                        term: Term(1),
                        time: 0,
                        stamp: Millis(0),
                        replies: Replies::default(),
                        images: vec![image],
                    };
                    handle(&mut self.0, granted, &mut effects);
                }
            }
            "voted" => {
                let vote = args.key("yes", true)?.then(Replies::default);
                for word in args.words() {
                    let (partition, vote) = (PartitionId(word.parse()?), vote.clone());
                    let voted = ToCoordinator::Voted { txn, partition, time: 0, vote };
                    handle(&mut self.0, voted, &mut effects);
                }
            }
            "confirmed" => {
                let held = args.key("held", true)?;
                for word in args.words() {
                    let partition = PartitionId(word.parse()?);
                    let confirmed = ToCoordinator::Confirmed { txn, partition, held };
                    handle(&mut self.0, confirmed, &mut effects);
                }
            }
            "decided" => {
                let commit = args.key("commit", true)?;
                let verdict = if commit { Verdict::Commit } else { Verdict::Abort };
                handle(&mut self.0, ToCoordinator::Decided { txn, verdict }, &mut effects);
            }
            "wound" => handle(&mut self.0, ToCoordinator::Wound { txn }, &mut effects),
            "inquire" => {
                let inquire = ToCoordinator::Inquire { txn, asker: PartitionId(2) };
                handle(&mut self.0, inquire, &mut effects);
            }
            "class" => {
                let survives = match args.key("survives", "power".to_owned())?.as_str() {
                    "nothing" => Survives::Nothing,
                    "process" => Survives::Process,
                    _ => Survives::Power,
                };
                let strength = Strength { copies: args.key("copies", 1)?, survives };
                self.0.keep(PartitionId(args.next()?), strength);
            }
            "up" => self.0.node_up(NodeId(args.next()?), Incarnation(1), now, &mut effects),
            "down" => self.0.node_down(NodeId(args.next()?), now, &mut effects),
            "tick" => self.0.tick(now, &mut effects),
            name => return Err(format!("no command {name}").into()),
        }
        args.end()?;
        let mut told = String::new();
        for effect in &effects {
            writeln!(told, "{}", tell(effect))?;
        }
        if effects.is_empty() {
            writeln!(told, "nothing")?;
        }
        Ok(told)
    }
}

/// Three partitions, none of which sends too much, do so together: in a transaction of each mode.
#[test]
fn what_partitions_send_is_added_up() {
    let mebibytes = |count: usize| vec![0; count << 20];
    for mode in [Mode::Read, Mode::Write, Mode::Gather] {
        for (each, too_much) in [(60, false), (70, true)] {
            let homes = Topology::of_leaders([NodeId(1); 3]).view();
            let (node, incarnation) = (NodeId(1), Incarnation(1));
            let mut transactions: Transactions<Lists> =
                Transactions::new(node, incarnation, homes, KeyHasher::new(0), 100);
            let (now, mut effects) = (Now::default(), Vec::new());
            let ids = [0, 1, 2].map(PartitionId);
            transactions.begin(ClientId(1), work(mode, &ids), now, &mut effects);
            let txn = TxnId { node, incarnation, sequence: 1, attempt: 1 };
            for partition in ids {
                let mut replies = Replies::default();
                let mut images = Vec::new();
                if mode == Mode::Gather {
                    let value = mebibytes(each);
                    let held = HeldValue { value: ValueBuf::string(value), expires: None };
                    let table = TableIndex::default();
                    images.push(KeyState { table, key: key(partition), held: Some(held) });
                } else {
                    replies.bytes = mebibytes(each);
                    replies.end();
                }
                let message = match mode {
                    Mode::Write => {
                        ToCoordinator::Voted { txn, partition, time: 0, vote: Some(replies) }
                    }
                    Mode::Read | Mode::Gather => ToCoordinator::Granted {
                        txn,
                        partition,
                        term: Term(1),
                        time: 0,
                        stamp: Millis(0),
                        replies,
                        images,
                    },
                };
                // The last one completes what is answered, and is not needed to see it refused.
                if mode != Mode::Gather || partition != ids[2] || too_much {
                    transactions.handle(message, now, &mut effects);
                }
            }
            let refused = TxnEffect::Reply(ClientId(1), Ended::Refused(Refusal::TooMuch));
            assert_eq!(effects.contains(&refused), too_much, "{mode:?}");
            assert_eq!(transactions.active(), usize::from(!too_much), "{mode:?}");
        }
    }
}

#[test]
fn scripts() {
    let scripts =
        ["write", "read", "gather", "wounds", "votes_against", "lost_nodes", "patience", "classes"];
    for name in scripts {
        let homes = Topology::of_leaders([NodeId(1), NodeId(2), NodeId(3)]).view();
        let hasher = KeyHasher::new(0);
        let mut script = Script(Transactions::new(NodeId(1), Incarnation(1), homes, hasher, 100));
        script.0.node_up(NodeId(2), Incarnation(1), Now::default(), &mut Vec::new());
        script.0.node_up(NodeId(3), Incarnation(1), Now::default(), &mut Vec::new());
        goldenscript::run(&mut script, format!("tests/scripts/txn/{name}")).unwrap();
    }
}
