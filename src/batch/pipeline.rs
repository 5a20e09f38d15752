//! Which of a connection's pipelined commands may start.
//!
//! A connection's commands take effect in the order sent, as far as any client can tell: two of them
//! that name the same key do so one after the other, also if both only read it: what another client
//! writes in between must not be seen by the first of them and missed by the second. Commands that
//! have nothing in common may be under way together, whatever stands between them. So each waits for
//! exactly those before it that it overlaps with.
//!
//! Operations of one *lane* (those that one destination serves) keep their order by themselves:
//! their destination takes them as they come. There it is enough that the earlier one has
//! started. A transaction has no lane, and what it overlaps with waits for its end.
//!
//! Keys are known by a hash: two that share one wait for each other in vain, and no harm is done.

use crate::rules::{Rule, kept};
use std::collections::{BTreeMap, BTreeSet};

/// The order of commands that were gathered together.
#[derive(Debug, Default)]
pub struct Pipeline {
    commands: Vec<PipelinedCommand>,
    /// The command that names a key last: it has waited for those before it.
    latest: BTreeMap<u64, u32>,
    /// The last command that may not overlap with anything.
    alone: Option<u32>,
    /// May start; the earliest goes first.
    ready: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct PipelinedCommand {
    lane: Option<u16>,
    progress: CommandProgress,
    /// How many before it it waits for.
    waits: u32,
    /// Who waits for it.
    followers: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CommandProgress {
    #[default]
    Waiting,
    Started,
    Done,
}

impl Pipeline {
    /// Adds a command that names these keys, behind all there are. Returns its number: they are counted
    /// from 0.
    pub fn push(&mut self, lane: Option<u16>, keys: impl IntoIterator<Item = u64>) -> u32 {
        let number = self.add(lane);
        let mut before: Vec<u32> = self.alone.into_iter().collect();
        before.extend(keys.into_iter().filter_map(|key| self.latest.insert(key, number)));
        self.follow(number, before);
        number
    }

    /// Adds a command that waits for all before it and holds back all behind it.
    pub fn push_alone(&mut self, lane: Option<u16>) -> u32 {
        let number = self.add(lane);
        let first = self.alone.unwrap_or(0);
        self.follow(number, (first..number).collect());
        self.latest.clear();
        self.alone = Some(number);
        number
    }

    /// The command that may start next, the earliest of those that may.
    pub fn next(&self) -> Option<u32> {
        self.ready.first().copied()
    }

    /// A command that may start does.
    pub fn start(&mut self, number: u32) {
        let ready = self.ready.remove(&number);
        assert!(ready, "a command starts once, when it may");
        self.commands[number as usize].progress = CommandProgress::Started;
        let lane = self.commands[number as usize].lane;
        if lane.is_some() {
            self.release(number, |follower| follower.lane == lane);
        }
    }

    /// A command that was started has had its effect.
    pub fn end(&mut self, number: u32) {
        let command = &mut self.commands[number as usize];
        assert_eq!(
            command.progress,
            CommandProgress::Started,
            "a command ends once, after its start"
        );
        command.progress = CommandProgress::Done;
        self.release(number, |_| true);
    }

    fn add(&mut self, lane: Option<u16>) -> u32 {
        self.commands.push(PipelinedCommand { lane, ..PipelinedCommand::default() });
        self.commands.len() as u32 - 1
    }

    fn follow(&mut self, number: u32, mut before: Vec<u32>) {
        before.sort_unstable();
        before.dedup();
        let lane = self.commands[number as usize].lane;
        let mut waits = 0;
        if !kept(Rule::PipelinesKeepOrder) {
            before.clear();
        }
        // A command may name a key twice, and does not wait for itself.
        for earlier in before.into_iter().filter(|earlier| *earlier != number) {
            let earlier = &mut self.commands[earlier as usize];
            let over = match earlier.progress {
                CommandProgress::Waiting => false,
                CommandProgress::Started => lane.is_some() && earlier.lane == lane,
                CommandProgress::Done => true,
            };
            if !over {
                earlier.followers.push(number);
                waits += 1;
            }
        }
        self.commands[number as usize].waits = waits;
        if waits == 0 {
            self.ready.insert(number);
        }
    }

    /// Those followers of a command to which this applies no longer wait for it.
    fn release(&mut self, number: u32, applies: impl Fn(&PipelinedCommand) -> bool) {
        let mut followers = std::mem::take(&mut self.commands[number as usize].followers);
        followers.retain(|&follower| {
            let command = &mut self.commands[follower as usize];
            if !applies(command) {
                return true;
            }
            command.waits -= 1;
            if command.waits == 0 {
                self.ready.insert(follower);
            }
            false
        });
        self.commands[number as usize].followers = followers;
    }
}

#[cfg(test)]
mod tests;
