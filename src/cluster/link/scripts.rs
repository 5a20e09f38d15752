//! Golden scripts of one link: what happens to it, and what it wants done. The script plays the
//! other node, strangers, and time.

use super::tests::hello;
use super::*;
use crate::script::{Args, run_all};
use std::collections::VecDeque;
use std::error::Error;
use std::fmt::Write;

/// When every script begins, in ms.
const BEGIN_MS: u64 = 1_000;

/// What a link that stands at the beginning is made of: the stream dialled here; the stream dialled
/// there and its nonce.
const DIALLED: StreamId = 1;
const ACCEPTED: (StreamId, u64) = (2, 22);

/// The nonce of the first attempt to dial; each of those after it has the next number.
const NONCE: u64 = 11;

struct Script {
    link: Link,
    now: u64,
    /// The nonce of the next attempt to dial.
    nonce: u64,
    /// When the link wants a tick besides the regular ones.
    due: Option<u64>,
}

#[test]
fn scripts() {
    run_all("tests/scripts/link", || Script {
        link: begun(Link::new(hello(1, 1), NodeId(2), 600), BEGIN_MS),
        now: BEGIN_MS,
        nonce: NONCE,
        due: None,
    });
}

/// A link that has ticked once by now.
fn begun(mut link: Link, now: u64) -> Link {
    link.tick(now, &mut Vec::new());
    link
}

fn word(word: Word) -> String {
    match word {
        Word::Claim(nonce) => format!("is nonce {nonce} yours?"),
        Word::Yours(nonce, true) => format!("nonce {nonce} is mine"),
        Word::Yours(nonce, false) => format!("nonce {nonce} is not mine"),
        Word::Ping { number, seen } => format!("ping {number}, the last pong was {seen}"),
        Word::Pong(number) => format!("pong {number}"),
    }
}

fn tell(effect: &LinkEffect) -> String {
    match effect {
        LinkEffect::Dial => "dial".to_owned(),
        LinkEffect::Retry(ms) => format!("dial in {ms} ms"),
        LinkEffect::HangUp => "give up the attempt to dial".to_owned(),
        LinkEffect::Say(stream, said) => format!("say on stream {stream}: {}", word(*said)),
        LinkEffect::Close(stream) => format!("close stream {stream}"),
        LinkEffect::Up(hello) => format!("up, to node {} in life {}", hello.node, hello.life.0),
        LinkEffect::Suspect => "suspected".to_owned(),
        LinkEffect::Trust => "trusted".to_owned(),
        LinkEffect::Down(why) => format!("down: {why}"),
        LinkEffect::Final => "what was asked over lost links is final".to_owned(),
        LinkEffect::Ended { life, dead: false } => format!("life {} has ended", life.0),
        LinkEffect::Ended { life, dead: true } => {
            format!("life {} has ended, its process is dead", life.0)
        }
        LinkEffect::Seen(seen) => format!("note that life {} was seen", seen.life.0),
        LinkEffect::Outlived(seen) => {
            format!("this node is outlived, life {} was seen", seen.life.0)
        }
        LinkEffect::Complain(why) => format!("complain: {why}"),
    }
}

impl Script {
    /// Does what the link wants done, as far as it concerns dialling, and tells all of it.
    fn carry(
        &mut self,
        effects: Vec<LinkEffect>,
        fails: Option<&DialFailure>,
        mut tell_line: impl FnMut(String),
    ) {
        let mut effects: VecDeque<LinkEffect> = effects.into();
        while let Some(effect) = effects.pop_front() {
            match &effect {
                LinkEffect::Dial => {
                    let Some(own) = self.link.dial(self.nonce, self.now) else { continue };
                    self.nonce += 1;
                    tell_line(format!("dial, with nonce {}", own.nonce));
                    if let Some(failure) = fails {
                        let mut more = Vec::new();
                        self.link.dial_failed(failure.clone(), self.now, &mut more);
                        effects.extend(more);
                    }
                    continue;
                }
                LinkEffect::Retry(ms) => self.due = Some(self.now + ms),
                _ => {}
            }
            tell_line(tell(&effect));
        }
    }

    /// Lets time pass, tick by tick. `pongs`: the other node answers each ping.
    fn pass(
        &mut self,
        ms: u64,
        pongs: bool,
        fails: Option<&DialFailure>,
        told: &mut String,
    ) -> Result<(), Box<dyn Error>> {
        let (until, mut pings) = (self.now + ms, 0);
        let mut regular = until.min(self.now + TICK_MS);
        while self.now < until {
            self.now = self.due.filter(|due| (self.now..regular).contains(due)).unwrap_or(regular);
            if self.now == regular {
                regular = until.min(self.now + TICK_MS);
            }
            self.due = self.due.filter(|due| *due > self.now);
            let mut effects = Vec::new();
            self.link.tick(self.now, &mut effects);
            let mut answers = Vec::new();
            effects.retain(|effect| match effect {
                LinkEffect::Say(stream, Word::Ping { number, .. }) => {
                    pings += 1;
                    answers.push((*stream, *number));
                    false
                }
                _ => true,
            });
            for (stream, number) in answers.into_iter().filter(|_| pongs) {
                self.link.heard(self.now);
                self.link.hear(stream, Word::Pong(number), self.now, &mut effects);
            }
            let now = self.now;
            self.carry(effects, fails, |line| told.push_str(&format!("{now}: {line}\n")));
        }
        if pings > 0 {
            let answered = if pongs { ", and answered" } else { "" };
            writeln!(told, "pinged {pings} times{answered}")?;
        }
        Ok(())
    }

    /// Makes a link that stands: both nodes dial, and each proves what it is.
    fn link(&mut self, other: Hello) -> Vec<LinkEffect> {
        let mut effects = Vec::new();
        self.link.begin(&mut effects);
        self.carry(std::mem::take(&mut effects), None, |_| {});
        let link = &mut self.link;
        link.answered(DIALLED, other.clone(), self.now, &mut effects);
        let other = Hello { nonce: ACCEPTED.1, ..other };
        link.introduced(ACCEPTED.0, other, "other:1", self.now, &mut effects);
        link.hear(ACCEPTED.0, Word::Claim(self.nonce - 1), self.now, &mut effects);
        effects.retain(|effect| matches!(effect, LinkEffect::Up(_)));
        effects
    }

    fn hear(
        &mut self,
        args: &mut Args<'_>,
        word: impl Fn(u64) -> Word,
        told: &mut String,
        effects: &mut Vec<LinkEffect>,
    ) -> Result<(), Box<dyn Error>> {
        let (stream, number) = (args.next()?, args.next()?);
        self.link.heard(self.now);
        if !self.link.hear(stream, word(number), self.now, effects) {
            writeln!(told, "it has no place on stream {stream}")?;
        }
        Ok(())
    }
}

fn failure(how: &str) -> Result<DialFailure, Box<dyn Error>> {
    Ok(match how {
        "refused_connection" => DialFailure::NobodyListens,
        "unreachable" => DialFailure::Unreachable("no route".into()),
        "refused" => DialFailure::Refused,
        "garbled" => DialFailure::Garbled("other:1".into(), "no node".into()),
        _ => return Err("there is no such failure".into()),
    })
}

/// `[node=ID] [life=LIFE] [seen=LIFE] [nonce=NONCE] [cluster=NAME]`
fn introduction(args: &mut Args<'_>) -> Result<Hello, Box<dyn Error>> {
    let mut hello = hello(args.key("node", 2)?, args.key("life", 1)?);
    hello.seen.life = Incarnation(args.key("seen", 0)?);
    hello.nonce = args.key("nonce", 0)?;
    hello.cluster = args.key("cluster", hello.cluster)?;
    Ok(hello)
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut args = Args::new(command);
        let (mut told, mut effects) = (String::new(), Vec::new());
        match command.name.as_str() {
            // link [own=ID] [life=LIFE] [last=LIFE] [other=ID] [suspect=MS]: a node without a link.
            "link" => {
                let own = hello(args.key("own", 1)?, args.key("life", 1)?);
                let other = NodeId(args.key("other", 2)?);
                let last: u64 = args.key("last", 0)?;
                let last = (last > 0).then_some(Incarnation(last));
                let link = Link::new(own, other, args.key("suspect", 600)?).remembering(last);
                self.link = begun(link, self.now);
            }
            // linked [life=LIFE]: a link that stands, of streams 1 and 2.
            "linked" => {
                let other = introduction(&mut args)?;
                effects = self.link(other);
            }
            "begin" => self.link.begin(&mut effects),
            // answered STREAM ..: who was dialled introduces itself.
            "answered" => {
                let stream = args.next()?;
                let hello = introduction(&mut args)?;
                self.link.answered(stream, hello, self.now, &mut effects);
            }
            // failed refused_connection|unreachable|refused|garbled: so did the attempt to dial.
            "failed" => {
                let failure = failure(&args.next::<String>()?)?;
                self.link.dial_failed(failure, self.now, &mut effects);
            }
            // came STREAM nonce=NONCE [from=ADDRESS] ..: someone dialled this node.
            "came" => {
                let stream = args.next()?;
                let from = args.key("from", "other:1".to_owned())?;
                let hello = introduction(&mut args)?;
                let greeting = self.link.introduced(stream, hello, &from, self.now, &mut effects);
                let greeting = match greeting {
                    Greeting::Keep(_) => "answered, and held until it is proven",
                    Greeting::Tell(_) => "told that it was started again since, and let go",
                    Greeting::LetGo => "let go",
                    Greeting::Refuse => "refused",
                };
                writeln!(told, "{greeting}")?;
            }
            "claim" => self.hear(&mut args, Word::Claim, &mut told, &mut effects)?,
            "yours" => {
                let word = |nonce| Word::Yours(nonce, true);
                self.hear(&mut args, word, &mut told, &mut effects)?;
            }
            "not_yours" => {
                let word = |nonce| Word::Yours(nonce, false);
                self.hear(&mut args, word, &mut told, &mut effects)?;
            }
            "ping" => {
                let seen = args.key("seen", 0)?;
                let word = |number| Word::Ping { number, seen };
                self.hear(&mut args, word, &mut told, &mut effects)?;
            }
            "pong" => self.hear(&mut args, Word::Pong, &mut told, &mut effects)?,
            // Any packet on a stream of the link.
            "packet" => self.link.heard(self.now),
            "closed" => {
                let in_order = args.key("in_order", true)?;
                let (stream, why) = (args.next()?, "its stream ended");
                self.link.closed(stream, why, in_order, self.now, &mut effects);
            }
            "see" => {
                let seen = LastSeen { life: Incarnation(args.next()?), generation: 0 };
                self.link.see(seen, &mut effects);
            }
            "relive" => {
                self.link.relive(Incarnation(args.next()?), self.now, &mut effects);
            }
            // strangers COUNT [first=N]: so many of another cluster dial, each from a host of its own.
            "strangers" => {
                let (count, first): (u64, u64) = (args.next()?, args.key("first", 1)?);
                for n in first..first + count {
                    let (own, from) = (hello(2, 1), format!("10.0.0.{n}:4711"));
                    let other = Hello { cluster: "other".into(), ..own };
                    self.link.introduced(100 + n, other, &from, self.now, &mut effects);
                }
                let logged = effects.len();
                writeln!(told, "{count} refused, {logged} complaints, the last of them:")?;
                effects.drain(..logged.saturating_sub(1));
            }
            // pass MS [pongs=true] [dials=FAILURE]: time passes, tick by tick. The other node answers
            // pings, attempts to dial fail at once.
            "pass" => {
                let pongs = args.key("pongs", false)?;
                let how: String = args.key("dials", "wait".to_owned())?;
                let fails = if how == "wait" { None } else { Some(failure(&how)?) };
                self.pass(args.next()?, pongs, fails.as_ref(), &mut told)?;
            }
            // The process stood still for so long: no tick.
            "stop" => self.now += args.next::<u64>()?,
            "show" => {
                let up = match (self.link.is_up(), self.link.is_suspected()) {
                    (false, _) => "not up",
                    (true, false) => "up",
                    (true, true) => "up and suspected",
                };
                let until = self.link.serves_until();
                let serves = if until > self.now { "serves" } else { "does not serve" };
                writeln!(told, "{}: {up}, {serves}, until {until}", self.now)?;
            }
            other => return Err(format!("no command {other}").into()),
        }
        args.end()?;
        self.carry(effects, None, |line| told.push_str(&format!("{line}\n")));
        Ok(told)
    }
}
