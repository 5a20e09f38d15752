//! What a Session does beside serving keys: commands about the whole node, pauses, monitors, and
//! looking after a client that is slow to read.

use super::{READ_SOME, STALL, Session, UNSENT_BYTES};
use crate::actors::bucket::{Ask, Watch};
use crate::actors::local::{Local, MONITOR_QUEUE};
use crate::actors::metrics::{Forget, Refresh};
use crate::batch::{Batch, Replies};
use crate::command::argv::{Argv, ArgvBuf};
use crate::command::latency;
use crate::command::node_query::{LookFn, NodeQuery, Question, Show};
use crate::command::reply::Reply;
use crate::command::spec::{self, DENYOOM, Spec};
use crate::ids::TableIndex;
use crate::net::resp::Limits;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;
use tokio::io::ReadBuf;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// What a client may send, as it is set now.
pub(super) fn limits(local: &Local) -> Limits {
    let (limits, facts) = (&local.setup.limits, local.facts());
    Limits {
        word_bytes: facts.settings.size("proto-max-bulk-len"),
        argv: limits.arguments,
        line_bytes: limits.inline,
        request_bytes: facts.settings.size("client-query-buffer-limit"),
    }
}

/// Whether a command needs memory of this node while there is none to have. What is led elsewhere
/// is judged there.
pub(super) fn grows_when_full(
    spec: &Spec,
    argv: Argv<'_>,
    table: TableIndex,
    local: &Local,
) -> bool {
    let here = |at: usize| {
        let partition = local.setup.atlas.partition_of_key(table, argv.get(at));
        local.book.placed.get(partition.index()).is_some_and(Option::is_some)
    };
    spec.flags & DENYOOM != 0 && local.is_full() && spec.keys.positions(argv.len()).any(here)
}

/// Why a command over several partitions is not begun, if it is not.
pub(super) fn refuse_spread(argv: Argv<'_>, local: &Local) -> Option<String> {
    let (bytes, max) = (argv.bytes(), local.setup.limits.transaction);
    let text = || format!("ERR the transaction has {bytes} bytes, where {max} are allowed");
    (bytes > max).then(text)
}

impl Session {
    /// Shows others how the client is now.
    pub(super) fn show(&mut self) {
        if self.settings != self.local.changes() {
            self.settings = self.local.changes();
            self.limits = limits(&self.local);
        }
        self.state.client.active_at = self.local.now();
        self.state.client.query_bytes = self.input.len();
        self.state.client.output_bytes = self.outlet.unsent();
        self.state.client.query_free = self.input.capacity() - self.input.len();
        let mut info = self.entry.info.borrow_mut();
        match std::mem::take(&mut self.state.redraw) {
            true => *info = self.state.client.info(),
            false => info.follow(&self.state.client),
        }
    }

    /// Notes what became of a batch that was just answered, and how long it took.
    #[inline]
    pub(super) fn note_batch(&self, batch: &Batch, replies: &Replies, took: Duration) {
        self.local.note_batch(took, batch, replies);
        let Some(first) = batch.heads().next().and_then(|head| spec::by_code(head.code)) else {
            return;
        };
        self.local.note_round(took, Some(first.0), &self.state.client, || {
            let op = batch.op(0);
            let name = spec::full_name(first.0);
            let name = name.split('|').next().unwrap_or_default();
            let argv: Vec<&[u8]> = std::iter::once(name.as_bytes()).chain(op.args.iter()).collect();
            let mut argv = latency::clip(argv.into_iter());
            if batch.len() > 1 {
                let more = batch.len() - 1;
                argv.push(format!("... (and {more} more commands with it)").into_bytes());
            }
            argv
        });
    }

    /// Notes how long a command took that no Bucket has measured.
    pub(super) fn note_said(&mut self, spec: &'static Spec, said: Vec<Vec<u8>>, begun: Instant) {
        let took = begun.elapsed();
        self.local.spend(spec, took);
        self.local.note_round(took, Some(spec), &self.state.client, || said);
    }

    /// Serves a command about the whole node.
    pub(super) async fn answer_query(&mut self, query: NodeQuery) -> io::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        match query {
            NodeQuery::Monitor => self.monitor(&mut out).await?,
            query => self.carry_out(query, &mut out).await?,
        }
        self.local.note_reply(self.state.client.last, &out);
        if !self.mute {
            self.write(&out).await?;
        }
        out.clear();
        self.out = out;
        self.recycle();
        self.show();
        Ok(())
    }

    /// Carries out what a command asks of the node.
    pub(super) async fn carry_out(
        &mut self,
        query: NodeQuery,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.show();
        match query {
            NodeQuery::Ask(question, show) => self.ask_node(question, &show, out).await?,
            NodeQuery::Look(show, argv) => self.look(show, &argv, out).await?,
            // It answers more than once, so it has no place among a transaction's replies.
            NodeQuery::Monitor => {
                Reply::new(out, false).error("ERR MONITOR isn't allowed for DENY BLOCKING client")
            }
            NodeQuery::Sleep(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Reply::new(out, self.state.client.resp3).ok();
            }
        }
        Ok(())
    }

    async fn monitor(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let (feed, lines) = mpsc::channel(MONITOR_QUEUE);
        for bucket in &self.local.book.buckets {
            let watch = Watch { client: self.state.client.id, feed: feed.clone() };
            bucket.send(watch).await.map_err(stopping)?;
        }
        self.feed = Some(lines);
        self.state.client.monitor = true;
        self.state.redraw = true;
        Reply::new(out, self.state.client.resp3).ok();
        Ok(())
    }

    async fn ask_node(
        &mut self,
        question: Question,
        show: &Show,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let forgets = matches!(question, Question::ForgetCounts);
        let mut told = Vec::new();
        for bucket in &self.local.book.buckets {
            told.push(bucket.send(Ask(question.clone())).await.map_err(stopping)?);
        }
        let metrics = self.local.metrics.borrow().clone().filter(|_| forgets);
        if let Some(metrics) = metrics {
            metrics.send(Forget).await.map_err(stopping)?;
        }
        let now = self.local.setup.steady();
        let slow_max = self.local.facts().settings.size("slowlog-max-len");
        show.reply(told, now, slow_max, &mut Reply::new(out, self.state.client.resp3));
        Ok(())
    }

    async fn look(&mut self, show: LookFn, argv: &ArgvBuf, out: &mut Vec<u8>) -> io::Result<()> {
        let metrics = self.local.metrics.borrow().clone();
        let fresh = match metrics {
            Some(metrics) => metrics.send(Refresh).await.map_err(stopping)?,
            None => None,
        };
        let facts = match fresh {
            Some(facts) => self.local.with_settings(&facts),
            None => self.local.facts().as_ref().clone(),
        };
        show(&facts, argv.argv(), &mut Reply::new(out, self.state.client.resp3));
        Ok(())
    }

    /// Waits until a pause is over, or the Session is to end.
    pub(super) async fn wait_for_pause(&mut self) -> io::Result<()> {
        self.local.block(true);
        poll_fn(|context| {
            let ends = self.entry.signal.poll(context);
            match !ends && self.local.poll_pause(context) {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
        self.local.block(false);
        match self.entry.signal.is_killed() {
            true => Err(killed()),
            false => Ok(()),
        }
    }

    /// Passes on what the node's clients ask, until the client itself says something.
    pub(super) async fn pass_on(&mut self) -> io::Result<()> {
        while let Some(mut feed) = self.feed.take() {
            if !self.state.client.monitor {
                return Ok(());
            }
            let mut lines = Vec::new();
            let listen = poll_fn(|context| {
                if self.entry.signal.poll(context) {
                    return Poll::Ready(true);
                }
                if feed.poll_recv_many(context, &mut lines, LINES_MAX).is_ready() {
                    return Poll::Ready(lines.is_empty());
                }
                self.stream.as_ref().poll_read_ready(context).map(|_| true)
            });
            let other = listen.await;
            self.feed = Some(feed);
            if other {
                return Ok(());
            }
            self.write(&lines.concat()).await?;
        }
        Ok(())
    }

    /// Waits until the client has taken most of its replies, or is seen to take none before it
    /// has sent the rest of its requests.
    pub(super) async fn wait_for_reader(&mut self) -> io::Result<()> {
        loop {
            self.show();
            let taken = self.outlet.taken();
            let stalled = self.stalled == Some(taken);
            let waited = timeout(STALL, self.taken_to(UNSENT_BYTES, stalled)).await;
            if let Ok(result) = waited {
                return result;
            }
            self.stalled = Some(taken).filter(|taken| *taken == self.outlet.taken());
        }
    }

    /// Waits, not for long, until no more than so many bytes are left.
    pub(super) async fn wait_for_room(&mut self, left: usize) -> io::Result<()> {
        self.show();
        // Where that takes too long, the reply is not admitted.
        timeout(READ_SOME, self.taken_to(left, false)).await.unwrap_or(Ok(()))
    }

    /// Waits until the client has taken all of its replies.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.show();
        self.taken_to(0, false).await
    }

    /// Waits until no more than so many bytes are left; `or_asked`: or the client has sent more.
    async fn taken_to(&mut self, left: usize, or_asked: bool) -> io::Result<()> {
        poll_fn(|context| {
            if self.entry.signal.poll_kill(context) {
                return Poll::Ready(Err(killed()));
            }
            let _ = self.outlet.poll(context);
            if self.outlet.unsent() <= left {
                return Poll::Ready(Ok(()));
            }
            let mut byte = [0; 1];
            // Nothing more will come of a client that has closed its side.
            let asked = or_asked
                && matches!(
                    self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte)),
                    Poll::Ready(Ok(1..))
                );
            match asked {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        })
        .await
    }
}

/// Lines that a monitor is told in one write.
const LINES_MAX: usize = 256;

fn stopping<E>(_: E) -> io::Error {
    io::Error::other("the node is stopping")
}

fn killed() -> io::Error {
    io::Error::other("it was closed by command, or for its silence")
}
