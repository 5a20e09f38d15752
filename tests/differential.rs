//! Quorate and a real redis-server, asked the same things: they answer the same bytes.
//!
//! A seed decides everything: which commands, which arguments (many of them odd), over which
//! connection, in which table, in which protocol, how many at a time. Three nodes stand on one
//! side, with a connection to each; one server on the other. Differences that are meant are listed
//! in `differential/differences.rs`, each with its reason.
//!
//! `QUORATE_DIFFERENTIAL=100000` asks more, `QUORATE_DIFFERENTIAL_SEED=7` something else. A
//! failure tells the seed and the shortest sequence that was found to show it.

// Tests measure time and wait in threads of their own; a failing test may panic anywhere.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, clippy::disallowed_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The cluster tests use more of the harness than this one.
#[allow(dead_code)]
#[path = "cluster/harness.rs"]
mod harness;

#[path = "differential/differences.rs"]
mod differences;
#[path = "differential/generator.rs"]
mod generator;
#[path = "differential/sides.rs"]
mod sides;

use generator::{Generator, Step};
use sides::{Mismatch, Sides};
use std::collections::BTreeSet;

/// How many commands are compared unless somebody asks for more.
const COMMANDS: usize = 20_000;

/// How many commands run between two flushes: what led to a difference is among them.
const ROUND: usize = 500;

/// How often a failing sequence is shortened and tried again.
const SHORTENINGS: usize = 300;

fn number(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

#[test]
fn answers_what_redis_answers() {
    if !Sides::can_start() {
        eprintln!("SKIPPED: redis-server is not installed, so there is nothing to compare with");
        return;
    }
    let seed = number("QUORATE_DIFFERENTIAL_SEED", 1) as u64;
    let commands = number("QUORATE_DIFFERENTIAL", COMMANDS);
    // All differences of a run are worth more than the first one, to whoever has to mend them.
    let wanted = number("QUORATE_DIFFERENTIAL_FINDINGS", 1);
    let mut sides = Sides::start();
    let known = sides.known_to_both();
    let mut generator = Generator::new(seed, &known);
    let mut kinds = BTreeSet::new();
    let mut findings = Vec::new();
    let mut done = 0;
    while done < commands {
        let round: Vec<Step> = generator.round(ROUND);
        done += round.iter().map(|step| step.requests.len()).sum::<usize>();
        let Err(mismatch) = sides.run(&round) else { continue };
        // The same command may differ in a hundred places: one is enough.
        if kinds.insert(mismatch.kind()) {
            let (steps, mismatch) = shorten(&mut sides, round, mismatch);
            findings.push(tell(&steps, &mismatch));
        }
        if findings.len() >= wanted {
            break;
        }
    }
    let (found, text) = (findings.len(), findings.join("\n"));
    assert!(found == 0, "seed {seed}: {found} unexplained differences in {done} commands\n{text}");
}

/// The shortest sequence found that still differs: what comes after the difference goes at once,
/// then halves, quarters and so on of what comes before, down to single steps.
fn shorten(sides: &mut Sides, round: Vec<Step>, first: Mismatch) -> (Vec<Step>, Mismatch) {
    let mut steps = round;
    steps.truncate(first.step + 1);
    steps[first.step].requests.truncate(first.nth + 1);
    let mut last = first;
    // If it needs no pipeline, it is easier to read and to shorten without.
    let apart = steps.iter().flat_map(|step| {
        let alone = |request: &Vec<_>| Step { requests: vec![request.clone()], ..*step };
        step.requests.iter().map(alone)
    });
    let apart: Vec<Step> = apart.collect();
    if let Err(mismatch) = sides.run(&apart)
        && mismatch.kind() == last.kind()
    {
        (steps, last) = (apart, mismatch);
        steps.truncate(last.step + 1);
    }
    let (mut piece, mut tries) = (steps.len() / 2, 0);
    while piece > 0 && tries < SHORTENINGS {
        let mut at = 0;
        while at + 1 < steps.len() && tries < SHORTENINGS {
            tries += 1;
            let end = (at + piece).min(steps.len() - 1);
            let mut fewer = steps.clone();
            fewer.drain(at..end);
            match sides.run(&fewer) {
                Err(mismatch) if mismatch.kind() == last.kind() => {
                    fewer.truncate(mismatch.step + 1);
                    (steps, last) = (fewer, mismatch);
                }
                _ => at = end,
            }
        }
        piece /= 2;
    }
    (steps, last)
}

fn tell(steps: &[Step], mismatch: &Mismatch) -> String {
    let mut text = String::new();
    for step in steps {
        for request in &step.requests {
            let words: Vec<String> =
                request.iter().map(|word| format!("\"{}\"", word.escape_ascii())).collect();
            text += &format!("  [{}] {}\n", step.connection, words.join(" "));
        }
    }
    text += &format!("    quorate {}\n", mismatch.ours.escape_ascii());
    text += &format!("    redis   {}\n", mismatch.theirs.escape_ascii());
    text
}

#[test]
fn the_generator_repeats_itself() {
    let known: BTreeSet<String> = generator::names().collect();
    let rounds = |seed| {
        let mut generator = Generator::new(seed, &known);
        (0..3).map(|_| generator.round(100)).collect::<Vec<_>>()
    };
    assert_eq!(rounds(7), rounds(7));
    assert_ne!(rounds(7), rounds(8));
}
