//! `MULTI`, `EXEC` and `WATCH`, and what a transaction's end is to its client.

use super::outcome::{stopping, unknown};
use super::{Next, Session, State, node_query, place};
use crate::actors::bucket::{Answer, Execute};
use crate::actors::coordinator::{Begin, Start};
use crate::actors::local::Local;
use crate::batch::Replies;
use crate::batch::machine::Machine;
use crate::batch::refusal::Refusal;
use crate::command::argv::{Argv, ArgvBuf};
use crate::command::plan::{self, PieceLayout, Plan};
use crate::command::reply::Reply;
use crate::command::spec::{Control, NO_MULTI, Run, Spec};
use crate::command::transaction::{Counts, Exec, Queue, Script, Step, read_versions};
use crate::command::{Redis, refusal_text};
use crate::txn::protocol::{Ended, Work};
use std::io;
use tokio::sync::oneshot;
use tokio::time::Instant;

impl Session {
    /// Has the Coordinator run a transaction.
    pub(super) async fn coordinate(&mut self, work: Work) -> io::Result<Ended> {
        self.local.counters.borrow_mut().transactions += 1;
        let (told, ended) = oneshot::channel();
        self.local.book.coordinator.do_send(Begin(vec![Start { work, ended: told }]));
        ended.await.map_err(|_| stopping())
    }

    /// Runs a command over several partitions.
    pub(super) async fn spread(&mut self, work: Work, layout: PieceLayout) -> io::Result<()> {
        let ended = self.coordinate(work).await?;
        let resp3 = self.state.client.resp3;
        conclude(ended, &mut Reply::new(&mut self.out, resp3), |replies, reply| {
            layout.merge(&replies, reply);
        });
        self.write_out().await
    }

    /// Executes a transaction.
    pub(super) async fn exec(&mut self, work: Work, script: Script) -> io::Result<()> {
        self.state.redraw = true;
        let ended = match work.shares.is_empty() {
            true => Ended::Done(Vec::new()),
            false => self.coordinate(work).await?,
        };
        forget_watched(&mut self.state, &self.local);
        let mut out = std::mem::take(&mut self.out);
        if let Ended::Done(replies) = ended {
            Reply::new(&mut out, self.state.client.resp3).array(script.steps.len());
            let mut counts = Counts::default();
            for step in &script.steps {
                let resp3 = self.state.client.resp3;
                step.merge(&replies, &mut counts, &mut Reply::new(&mut out, resp3));
                if let Step::Later(spec, argv_buf) = step {
                    self.serve_later(spec, argv_buf.argv(), &mut out).await?;
                    // Each may tell of every key there is.
                    self.admit(out.len())?;
                }
            }
        } else {
            conclude_exec(ended, &mut Reply::new(&mut out, self.state.client.resp3), |_, _| {});
        }
        self.out = out;
        self.write_out().await
    }

    /// Serves a command of a transaction that has no part in its work.
    pub(super) async fn serve_later(
        &mut self,
        spec: &'static Spec,
        argv: Argv<'_>,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let local = self.local.clone();
        let client = &mut self.state.client;
        let place = place(client, &local);
        let mut reply = Reply::new(out, client.resp3);
        match plan::plan(spec, argv, &place) {
            Plan::Session(run) => {
                run(client, &local.facts(), argv, &mut reply);
            }
            Plan::Node(run) => {
                let order = run(client, &local.facts(), argv, &mut reply);
                if let Some(order) = order {
                    return self.carry_out(order, out).await;
                }
            }
            Plan::One(head) => self.ask_one(head, argv.from(1), out).await?,
            Plan::Each { batches, layout } => return self.ask_each(batches, layout, out).await,
            Plan::Walk(walk) => return self.ask_in_turn(walk, out).await,
            Plan::Refused(error) => reply.error(&error),
            // What locks is part of the work.
            Plan::Spread { .. } => reply.error("ERR syntax error"),
        }
        Ok(())
    }

    /// Asks for the versions of keys and remembers them for the next `EXEC`.
    pub(super) async fn watch(&mut self, argv_buf: ArgvBuf, plan: Plan) -> io::Result<()> {
        let keys = || argv_buf.argv().from(1);
        let mut told = Vec::new();
        match plan {
            Plan::One(head) => self.ask_one(head, keys(), &mut told).await?,
            Plan::Spread { work, layout } => {
                let ended = self.coordinate(work).await?;
                conclude(ended, &mut Reply::new(&mut told, false), |replies, reply| {
                    layout.merge(&replies, reply);
                });
            }
            _ => {}
        }
        match read_versions(&told).filter(|versions| versions.len() == keys().count()) {
            Some(versions) => {
                let table = self.state.client.table;
                let atlas = &self.local.setup.atlas;
                for (key, version) in keys().zip(versions) {
                    let partition = atlas.partition_of_key(table, key);
                    self.state.watching.watch(table, key, partition, version);
                }
                Reply::new(&mut self.out, false).ok();
            }
            None => self.out.append(&mut told),
        }
        self.write_out().await
    }
}

/// Forgets what a client watches, here and where the keys lie. If that is not heard there, the keys
/// are forgotten with time.
pub(super) fn forget_watched(state: &mut State, local: &Local) {
    if state.watching.is_empty() {
        return;
    }
    for (partition, batch) in state.watching.clear(local.setup.hasher) {
        let (answer, _) = oneshot::channel();
        let (replies, answer) = (Replies::default(), Answer::Session(answer));
        local.book.execute(local.book.route(partition), Execute { batch, replies, answer });
    }
}

/// Whether a command is queued between `MULTI` and `EXEC` rather than served at once.
pub(super) fn waits_for_exec(spec: &Spec) -> bool {
    let now = matches!(spec.run, Run::Control(_)) && !spec.run_is_unwatch();
    !now && !spec.ends_all()
}

/// Queues a command, or says why not.
pub(super) fn enqueue(
    spec: &'static Spec,
    argv: Argv<'_>,
    state: &mut State,
    local: &Local,
    reply: &mut Reply<'_>,
) {
    let Some(queue) = &mut state.queue else { return };
    let key_max = local.setup.limits.key;
    let mut keys = spec.keys.positions(argv.len()).map(|at| argv.get(at).len());
    let queued = if spec.flags & NO_MULTI != 0 {
        Err("ERR Command not allowed inside a transaction".to_owned())
    } else if node_query::grows_when_full(spec, argv, state.client.table, local) {
        Err(refusal_text(&Refusal::Full))
    } else if keys.any(|length| length > key_max) {
        Err(format!("ERR key is longer than {key_max} bytes"))
    } else {
        queue.push(spec, argv, local.setup.limits.transaction)
    };
    match queued {
        Ok(()) => reply.simple("QUEUED"),
        Err(error) => {
            queue.spoil();
            reply.error(&error);
        }
    }
}

/// Begins or ends the connection's transaction. Returns what has to wait for earlier replies; what
/// is answered at once is answered.
pub(super) fn control_transaction(
    control: Control,
    spec: &Spec,
    argv: Argv<'_>,
    state: &mut State,
    local: &Local,
    reply: &mut Reply<'_>,
) -> Option<Next> {
    let place = place(&state.client, local);
    match control {
        Control::Multi if state.queue.is_some() => reply.error("ERR MULTI calls can not be nested"),
        Control::Multi => {
            state.queue = Some(Queue::default());
            reply.ok();
        }
        Control::Discard if state.queue.is_none() => reply.error("ERR DISCARD without MULTI"),
        Control::Discard => {
            state.queue = None;
            forget_watched(state, local);
            reply.ok();
        }
        Control::Unwatch(_) => {
            forget_watched(state, local);
            reply.ok();
        }
        Control::Watch(_) if state.queue.is_some() => {
            reply.error("ERR WATCH inside MULTI is not allowed");
        }
        Control::Watch(_) => match state.watching.lacks(argv, place.table) {
            Err(error) => reply.error(&error),
            Ok(argv_buf) if argv_buf.argv().len() == 1 => reply.ok(),
            Ok(argv_buf) => match plan::plan(spec, argv_buf.argv(), &place) {
                Plan::Refused(error) => reply.error(&error),
                plan => return Some(Next::Watch(argv_buf, plan)),
            },
        },
        Control::Exec => {
            let Some(queue) = state.queue.take() else {
                reply.error("ERR EXEC without MULTI");
                return None;
            };
            state.client.micros = local.micros(Instant::now());
            match queue.plan(&state.client, &local.facts(), &state.watching, &place) {
                // What it watches is forgotten once it is executed.
                Exec::Work(work, script) => return Some(Next::Exec(work, script)),
                Exec::Refused(error) => {
                    forget_watched(state, local);
                    reply.error(&error);
                }
            }
        }
    }
    None
}

/// Tells the client how its transaction ended.
pub(super) fn conclude(
    ended: Ended,
    reply: &mut Reply<'_>,
    done: impl FnOnce(Vec<Replies>, &mut Reply<'_>),
) {
    match ended {
        Ended::Done(replies) => done(replies, reply),
        Ended::Changed => reply.nil_array(),
        Ended::Refused(refusal) => {
            let mut out = Vec::new();
            Redis::refuse(&refusal, &mut out);
            reply.raw(&out);
        }
        Ended::Unknown(_) => {
            let mut out = Vec::new();
            unknown(None, &mut out);
            reply.raw(&out);
        }
    }
}

/// The same for `EXEC`.
pub(super) fn conclude_exec(
    ended: Ended,
    reply: &mut Reply<'_>,
    done: impl FnOnce(Vec<Replies>, &mut Reply<'_>),
) {
    if let Ended::Refused(refusal @ (Refusal::Full | Refusal::TooMuch)) = &ended {
        let reason = refusal_text(refusal);
        return reply.error(&format!("EXECABORT Transaction discarded because of: {reason}"));
    }
    conclude(ended, reply, done);
}
