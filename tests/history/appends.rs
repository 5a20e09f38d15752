//! Lists that grow by APPEND on all nodes, read together by MGET, and appended to and read in
//! transactions: judged by the search for cycles.

use crate::cycles::{List, Step, Txn, judge};
use crate::dice::Dice;
use crate::harness::{Client, Cluster, PATIENCE, Protocol, StopAtEnd, eventually};
use crate::recorder::{Outcome, has, outcome};
use redis::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the clients of one history share.
pub struct Book<'a> {
    names: &'a [String],
    clock: AtomicU64,
    values: AtomicU64,
    answered: AtomicU64,
    stop: AtomicBool,
    /// MULTI and EXEC are there.
    exec: bool,
}

impl Book<'_> {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Asks for one transaction and writes it down unless it was refused.
    fn ask(&self, client: &mut Client, mut steps: Vec<Step>) -> Option<Txn> {
        let multi = steps.len() > 1 && steps.iter().any(|step| matches!(step, Step::Append(..)));
        if multi {
            let lines = std::iter::once(vec!["MULTI".to_owned()])
                .chain(steps.iter().map(|step| self.words(std::slice::from_ref(step))));
            for words in lines {
                match outcome(&words.join(" "), client.ask(&words)) {
                    Outcome::Answered(_) => {}
                    Outcome::Refused | Outcome::Unknown => return None,
                }
            }
        }
        let words = if multi { vec!["EXEC".to_owned()] } else { self.words(&steps) };
        let called = self.now();
        let reply = client.ask(&words);
        let returned = self.now();
        match outcome(&words.join(" "), reply) {
            Outcome::Refused => None,
            Outcome::Unknown => Some(Txn { steps, called, returned: None }),
            Outcome::Answered(reply) => {
                let replies = match reply {
                    Value::Array(values) if values.len() == steps.len() => values,
                    reply if steps.len() == 1 => vec![reply],
                    reply => panic!("{words:?} was answered with {reply:?}"),
                };
                for (step, reply) in steps.iter_mut().zip(replies) {
                    match (step, reply) {
                        (Step::Append(..), Value::Int(len)) if len > 0 => {}
                        (Step::Read(_, values), reply) => *values = elements(&reply),
                        (step, reply) => panic!("{step:?} was answered with {reply:?}"),
                    }
                }
                self.answered.fetch_add(1, Ordering::Relaxed);
                Some(Txn { steps, called, returned: Some(returned) })
            }
        }
    }

    /// The command of one step, or MGET of several reads.
    fn words(&self, steps: &[Step]) -> Vec<String> {
        match steps {
            [Step::Append(list, value)] => {
                vec!["APPEND".into(), self.names[*list].clone(), format!("{value},")]
            }
            [Step::Read(list, _)] => vec!["GET".into(), self.names[*list].clone()],
            reads => {
                let names = reads.iter().map(|step| match step {
                    Step::Read(list, _) | Step::Append(list, _) => self.names[*list].clone(),
                });
                std::iter::once("MGET".to_owned()).chain(names).collect()
            }
        }
    }

    /// What the dice say next.
    fn steps(&self, dice: &mut Dice) -> Vec<Step> {
        let lists: Vec<List> = (0..self.names.len()).collect();
        let append = |list| Step::Append(list, self.values.fetch_add(1, Ordering::Relaxed));
        let read = |list| Step::Read(list, Vec::new());
        let count = 2 + dice.below(lists.len() - 1);
        let some = dice.some(&lists, count);
        match dice.below(8) {
            0..3 => vec![append(some[0])],
            3 => vec![read(some[0])],
            4..6 if self.exec => {
                let steps = some.into_iter();
                steps.map(|list| if dice.one_in(2) { append(list) } else { read(list) }).collect()
            }
            6 if self.exec => {
                let list = some[0];
                vec![read(list), append(list), append(some[1]), append(list), read(list)]
            }
            _ => some.into_iter().map(read).collect(),
        }
    }

    fn client(&self, port: u16, mut dice: Dice, rest: u64) -> Vec<Txn> {
        let mut txns = Vec::new();
        let mut connection: Option<Client> = None;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(dice.below(rest as usize + 1) as u64));
            if connection.is_none() {
                connection = Client::connect(port, Protocol::Resp2).ok();
            }
            let Some(client) = &mut connection else { continue };
            let steps = self.steps(&mut dice);
            let asked = self.ask(client, steps);
            // After anything but an answer the connection may be gone or half in a transaction.
            if asked.as_ref().is_none_or(|txn| txn.returned.is_none()) {
                connection = None;
            }
            txns.extend(asked);
        }
        txns
    }

    /// Waits until so many more transactions were answered.
    #[track_caller]
    pub fn more(&self, calls: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually(&format!("{calls} more transactions are answered"), PATIENCE, || {
            (self.answered.load(Ordering::Relaxed) >= before + calls).then_some(())
        });
    }
}

#[track_caller]
fn elements(value: &Value) -> Vec<u64> {
    match value {
        Value::Nil => Vec::new(),
        Value::BulkString(bytes) => {
            let text = std::str::from_utf8(bytes).expect("digits and commas");
            let elements = text.split_terminator(',');
            elements.map(|element| element.parse().expect("a number")).collect()
        }
        other => panic!("a list of {other:?}"),
    }
}

/// Six clients over some lists and a fault beside them; the history ends with a read of all.
pub fn judged(
    cluster: &mut Cluster,
    names: &[String],
    fault: impl FnOnce(&mut Cluster, &Book<'_>),
) {
    let book = Book {
        names,
        clock: AtomicU64::new(1),
        values: AtomicU64::new(1),
        answered: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        exec: has(cluster, "exec"),
    };
    let mut history = std::thread::scope(|scope| {
        let at_end = StopAtEnd(&book.stop);
        let clients: Vec<_> = (0..6u16)
            .map(|n| {
                let (book, port) = (&book, cluster.ports(n % 3 + 1).client);
                scope.spawn(move || book.client(port, Dice::new(n.into()), 1_000))
            })
            .collect();
        fault(cluster, &book);
        drop(at_end);
        let txns = clients.into_iter().flat_map(|client| client.join().expect("a client"));
        txns.collect::<Vec<Txn>>()
    });
    let mut client = cluster.connect(1);
    let last = eventually("all lists are read", PATIENCE, || {
        let steps = (0..names.len()).map(|list| Step::Read(list, Vec::new())).collect();
        book.ask(&mut client, steps).filter(|txn| txn.returned.is_some())
    });
    history.push(last);
    let unknown = history.iter().filter(|txn| txn.returned.is_none()).count();
    match judge(&history) {
        Ok(edges) => println!("{} transactions, {unknown} unknown, {edges} edges", history.len()),
        Err(why) => panic!("{} transactions, {unknown} unknown: {why}", history.len()),
    }
}

#[test]
fn growing_lists_show_no_cycle() {
    let mut cluster = Cluster::start();
    let names = cluster.keys_everywhere("list", 2);
    judged(&mut cluster, &names, |_, book| book.more(1_500));
}

#[test]
fn growing_lists_show_no_cycle_while_nodes_pause() {
    let mut cluster = Cluster::start();
    let names = cluster.keys_everywhere("list", 2);
    judged(&mut cluster, &names, |cluster, book| {
        let mut dice = Dice::new(3);
        for _ in 0..10 {
            book.more(100);
            let node = 1 + dice.below(3) as u16;
            cluster.pause(node);
            std::thread::sleep(Duration::from_millis(20 + dice.below(300) as u64));
            cluster.resume(node);
        }
        // Long enough that the others give it up.
        cluster.pause(2);
        std::thread::sleep(Duration::from_millis(3_600));
        cluster.resume(2);
        book.more(100);
    });
}

#[test]
fn the_lists_of_survivors_show_no_cycle() {
    let mut cluster = Cluster::start_in_memory();
    let names = [cluster.keys_on(1, "list", 3), cluster.keys_on(2, "list", 3)].concat();
    judged(&mut cluster, &names, |cluster, book| {
        for _ in 0..3 {
            book.more(200);
            cluster.kill(3);
            book.more(200);
            cluster.spawn(3);
            cluster.wait_ready(3);
        }
        book.more(100);
    });
}
