//! Values, counters, multi-key commands and transactions are strictly serialisable, whatever nodes
//! are paused or killed meanwhile.

use crate::checker::{Call, assert_linearizable, published_says};
use crate::dice::Dice;
use crate::harness::{Cluster, PATIENCE, eventually};
use crate::model::Op;
use crate::recorder::{Habits, Recording, ask_about};
use std::time::{Duration, Instant};

/// Runs clients of these nodes over one recording and a fault beside them; the whole history, with
/// a last look at all keys.
pub fn record(
    cluster: &mut Cluster,
    recording: &Recording,
    nodes: &[u16],
    seed: u64,
    habits: Habits,
    fault: impl FnOnce(&mut Cluster),
) -> Vec<Call> {
    let mut history = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(nodes)
            .map(|(n, node)| {
                let mut client = recording.client(cluster, *node);
                scope.spawn(move || {
                    ask_about(&mut client, Dice::new(seed * 1_000 + n), habits);
                    client.calls
                })
            })
            .collect();
        // A fault that panics must not leave the clients running for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fault(cluster)));
        if let Err(cause) = outcome {
            recording.stop();
            std::panic::resume_unwind(cause);
        }
        let calls = threads.into_iter().flat_map(|thread| thread.join().expect("a client"));
        calls.collect::<Vec<Call>>()
    });
    for node in cluster.ids() {
        let mut client = recording.client(cluster, node);
        eventually(&format!("node {node} reads everything"), PATIENCE, || {
            client.run(Op::Mget(recording.keys()))
        });
        history.extend(client.calls);
    }
    history
}

/// How many calls have an unknown outcome.
pub fn unknown(history: &[Call]) -> usize {
    history.iter().filter(|call| call.returned.is_none()).count()
}

#[test]
fn short_histories_satisfy_the_published_checker() {
    const ROUNDS: u64 = 80;
    let mut cluster = Cluster::start();
    let habits = Habits { calls: 5, ..Habits::of(&cluster) };
    for round in 0..ROUNDS {
        let keys = cluster.keys_everywhere(&format!("short:{round}"), 1);
        let recording = Recording::new(keys);
        let history = record(&mut cluster, &recording, &[1, 2, 3, 1], round, habits, |_| {});
        assert!(published_says(&history), "round {round}: {history:#?}");
        assert_linearizable(&format!("round {round}"), &history);
    }
}

#[test]
fn single_keys_are_linearizable() {
    let mut cluster = Cluster::start();
    let recording = Recording::new(cluster.keys_everywhere("single", 3));
    let habits = Habits { several: false, calls: 400, ..Habits::of(&cluster) };
    let nodes = [1, 2, 3, 1, 2, 3, 1, 2, 3];
    let history = record(&mut cluster, &recording, &nodes, 1, habits, |_| {});
    assert_eq!(unknown(&history), 0, "nothing failed");
    assert!(history.len() > 9 * 399);
    let mut of_clients = history.clone();
    // The last look ties all keys together; without it each key is judged alone.
    of_clients.retain(|call| call.op.keys().len() == 1);
    assert_linearizable("each key", &of_clients);
    assert_linearizable("all keys", &history);
}

#[test]
fn several_keys_are_strictly_serialisable() {
    let mut cluster = Cluster::start();
    for seed in 0..3 {
        let recording = Recording::new(cluster.keys_everywhere(&format!("several:{seed}"), 2));
        let habits = Habits { calls: 150, ..Habits::of(&cluster) };
        let nodes = [1, 2, 3, 1, 2, 3];
        let history = record(&mut cluster, &recording, &nodes, seed, habits, |_| {});
        assert_eq!(unknown(&history), 0, "nothing failed");
        assert_linearizable(&format!("seed {seed}"), &history);
    }
}

/// Pauses shorter than any timeout, of every node in turn: a paused node's clients wait, and the
/// others' transactions with its keys do.
#[test]
fn pauses_leave_histories_serialisable() {
    let mut cluster = Cluster::start();
    let recording = Recording::new(cluster.keys_everywhere("paused", 2));
    let habits = Habits { calls: usize::MAX, rest: 2_000, ..Habits::of(&cluster) };
    let nodes = [1, 2, 3, 1, 2, 3];
    let history = record(&mut cluster, &recording, &nodes, 7, habits, |cluster| {
        let mut dice = Dice::new(7);
        for _ in 0..8 {
            recording.more(60);
            let node = 1 + dice.below(3) as u16;
            cluster.pause(node);
            std::thread::sleep(Duration::from_millis(50 + dice.below(250) as u64));
            cluster.resume(node);
        }
        recording.more(60);
        recording.stop();
    });
    println!("{} calls, {} unknown", history.len(), unknown(&history));
    assert_linearizable("paused", &history);
}

/// A pause long enough that the others give the node up: writes under way end unknown, and what is
/// refused must not have happened.
#[test]
fn a_long_pause_leaves_a_history_serialisable() {
    // Three seconds of silence end a stream between nodes.
    const PAUSE: Duration = Duration::from_millis(3_600);
    let mut cluster = Cluster::start();
    let recording = Recording::new(cluster.keys_everywhere("silent", 2));
    let habits = Habits { calls: usize::MAX, rest: 10_000, ..Habits::of(&cluster) };
    let nodes = [1, 2, 3, 1, 2, 3];
    let history = record(&mut cluster, &recording, &nodes, 11, habits, |cluster| {
        recording.more(60);
        for node in [2, 3] {
            cluster.pause(node);
            std::thread::sleep(PAUSE);
            cluster.resume(node);
            recording.more(60);
        }
        recording.stop();
    });
    println!("{} calls, {} unknown", history.len(), unknown(&history));
    assert_linearizable("silent", &history);
}

/// Without copies a node that is killed takes its keys along, so the history is about the keys of
/// the others; its clients' transactions over those end wherever they were.
#[test]
fn the_keys_of_survivors_stay_serialisable() {
    let mut cluster = Cluster::start_in_memory();
    let keys = [cluster.keys_on(1, "survivor", 3), cluster.keys_on(2, "survivor", 3)].concat();
    let recording = Recording::new(keys);
    let habits = Habits { calls: usize::MAX, rest: 4_000, ..Habits::of(&cluster) };
    let nodes = [1, 2, 3, 3, 3, 3];
    let history = record(&mut cluster, &recording, &nodes, 13, habits, |cluster| {
        for _ in 0..3 {
            recording.more(100);
            cluster.kill(3);
            let died = Instant::now();
            recording.more(60);
            println!("60 calls within {:?} of the death", died.elapsed());
            cluster.spawn(3);
            cluster.wait_ready(3);
        }
        recording.more(100);
        recording.stop();
    });
    println!("{} calls, {} unknown", history.len(), unknown(&history));
    assert_linearizable("survivors", &history);
}
