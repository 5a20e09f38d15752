//! What the client remembers from one command to the next, and how it runs one.

use super::link::{Link, LinkError};
use super::print::{Style, print};
use crate::cli::output;
use crate::net::resp::Value;
use std::io::{self, Write};

/// How things go on after a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With the next line.
    More,
    /// The connection is gone.
    Lost,
    /// Not at all.
    Quit,
}

/// Which replies the server was told to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replies {
    All,
    AllButNext,
    None,
}

/// A conversation with a server.
#[derive(Debug)]
pub(super) struct Shell {
    link: Link,
    style: Style,
    resp3: bool,
    table: u32,
    /// The table that was chosen before MULTI, while a transaction is being queued.
    queuing: Option<u32>,
    replies: Replies,
    failed: bool,
}

impl Shell {
    /// A conversation that begins in this table.
    pub(super) fn new(link: Link, table: u32, resp3: bool, style: Style) -> Shell {
        let (queuing, replies) = (None, Replies::All);
        Shell { link, style, resp3, table, queuing, replies, failed: false }
    }

    /// Whether anything was answered with an error, or not at all.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Something went wrong before it reached the server.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// A person saw the errors.
    pub(super) fn forgive(&mut self) {
        self.failed = false;
    }

    /// What to show before a line.
    pub(super) fn prompt(&mut self) -> String {
        if !self.link.is_alive() {
            return "not connected> ".into();
        }
        let mut prompt = self.link.address();
        if self.table != 0 {
            prompt += &format!("[{}]", self.table);
        }
        if self.queuing.is_some() {
            prompt += "(TX)";
        }
        prompt + "> "
    }

    /// Connects if need be and says so when that fails: whether there is a connection.
    pub(super) fn connect(&mut self) -> io::Result<bool> {
        if self.link.is_alive() {
            return Ok(true);
        }
        self.replies = Replies::All;
        if let Some(before) = self.queuing.take() {
            self.table = before;
        }
        match self.greet() {
            Ok(()) => Ok(true),
            Err(error) => self.lost(&error).map(|_| false),
        }
    }

    /// Connects, chooses the protocol and the table.
    fn greet(&mut self) -> Result<(), LinkError> {
        self.link.connect()?;
        let hello = ["HELLO".into(), "3".into()];
        let select = ["SELECT".into(), self.table.to_string()];
        let first = [(self.resp3, hello), (self.table != 0, select)];
        for (_, words) in first.iter().filter(|(wanted, _)| *wanted) {
            let request: Vec<Vec<u8>> = words.iter().map(|word| word.clone().into()).collect();
            self.link.send(&request)?;
            if let Value::Error(text) = self.link.receive()? {
                output::tell(&format!("{} failed: {text}", words.join(" ")));
                self.failed = true;
            }
        }
        Ok(())
    }

    /// Runs one command and prints what is answered.
    pub(super) fn command(&mut self, words: &[Vec<u8>]) -> io::Result<Next> {
        if !self.connect()? {
            return Ok(Next::Lost);
        }
        let replied = self.is_answered(words);
        if let Err(error) = self.link.send(words) {
            return self.lost(&error);
        }
        if !replied {
            return Ok(Next::More);
        }
        loop {
            let reply = match self.link.receive() {
                Ok(reply) => reply,
                Err(error) => return self.lost(&error),
            };
            let mut out = io::stdout().lock();
            out.write_all(&print(&reply, words, self.style))?;
            out.flush()?;
            if matches!(reply, Value::Push(_)) && !is_endless(words) {
                continue;
            }
            self.failed |= reply.is_error();
            self.learn(words, &reply);
            if reply.is_error() || !is_endless(words) {
                return Ok(Next::More);
            }
        }
    }

    fn lost(&mut self, error: &LinkError) -> io::Result<Next> {
        self.failed = true;
        io::stdout().flush()?;
        output::tell(&error.to_string());
        Ok(Next::Lost)
    }

    /// Whether a command is answered, after what CLIENT REPLY has asked for.
    fn is_answered(&mut self, words: &[Vec<u8>]) -> bool {
        let is = |at: usize, name: &str| {
            words.get(at).is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes()))
        };
        if words.len() == 3 && is(0, "client") && is(1, "reply") {
            if is(2, "on") {
                self.replies = Replies::All;
                return true;
            }
            let (off, skip) = (is(2, "off"), is(2, "skip"));
            if off || skip && self.replies != Replies::None {
                self.replies = if off { Replies::None } else { Replies::AllButNext };
            }
            if off || skip {
                return false;
            }
        }
        match self.replies {
            Replies::All => true,
            Replies::None => false,
            Replies::AllButNext => {
                self.replies = Replies::All;
                false
            }
        }
    }

    /// Keeps what the prompt tells in step with what the server did.
    fn learn(&mut self, words: &[Vec<u8>], reply: &Value) {
        let name = words[0].to_ascii_lowercase();
        let done = !reply.is_error();
        match (&name[..], words.len()) {
            (b"select", 2) if done => {
                let chosen = std::str::from_utf8(&words[1]).unwrap_or_default();
                self.table = chosen.parse().unwrap_or(self.table);
            }
            (b"multi", 1) if done => self.queuing = Some(self.table),
            (b"exec", 1) => {
                let before = self.queuing.take();
                if !done || *reply == Value::Nil {
                    self.table = before.unwrap_or(self.table);
                }
            }
            (b"discard", 1) if done => self.table = self.queuing.take().unwrap_or(self.table),
            (b"reset", 1) if done => {
                self.queuing = None;
                self.table = 0;
                self.resp3 = false;
            }
            _ => {}
        }
    }
}

/// Whether a command is answered until it is interrupted.
fn is_endless(words: &[Vec<u8>]) -> bool {
    let name = words[0].to_ascii_lowercase();
    matches!(&name[..], b"monitor" | b"subscribe" | b"psubscribe" | b"ssubscribe")
}
