//! A Session: one client's connection, as a task on a Bucket's arbiter.
//!
//! All that one read brought is parsed where it lies, grouped by who serves it, and sent as one
//! message to each; their replies leave in one write, in the order of the requests. Transactions among
//! them are under way together, and with the operations beside them, as far as they have no keys in
//! common ([`flight`]). Commands about more than keys wait for the replies of those before them and
//! hold back those after them. So a connection's commands take effect in the order it sent them.

mod ask;
mod flight;
mod node_query;
mod outcome;
mod outlet;
mod redirect;
mod transaction;

use self::flight::{Away, Begun, Finish, HELD_BYTES_MAX, Sink, Spread, TRANSACTIONS_MAX};
use self::outlet::Outlet;
use self::transaction::{control_transaction, enqueue, forget_watched, waits_for_exec};
use crate::actors::local::{Entry, Local};
use crate::batch::Batch;
use crate::batch::flight::Flight;
use crate::batch::machine::Scope;
use crate::cluster::barrier::Standing;
use crate::command;
use crate::command::argv::{Argv, ArgvBuf};
use crate::command::client::{Client, Then};
use crate::command::latency;
use crate::command::node_query::NodeQuery;
use crate::command::plan::{self, PieceLayout, Placing, Plan};
use crate::command::reply::Reply;
use crate::command::scan::Walk;
use crate::command::spec::{self, ADMIN, LOADING, NO_AUTH, Run, Spec, WRITE};
use crate::command::transaction::{Queue, Script, Watching};
use crate::ids::{NodeId, PartitionId};
use crate::net::listen::{OwnedReadHalf, SocketAddr, TcpStream};
use crate::net::resp::{Limits, Requests};
use crate::txn::protocol::Work;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes of requests that are gathered before they are served.
const GATHER_BYTES_MAX: usize = 4 << 20;

/// Room for what a read brings, at first and at least.
const READ_BYTES: usize = 16 << 10;

/// Replies that a client has not taken: with more of them its next commands wait, unless it takes
/// none while it has more to say.
const UNSENT_BYTES: usize = 8 << 20;

/// A client that has taken none of its replies for so long is not reading.
const STALL: Duration = Duration::from_millis(50);

/// How long a client whose replies have reached `limits.output_buffer` may take to read some.
const READ_SOME: Duration = Duration::from_secs(5);

/// Serves a client until it leaves.
pub async fn serve(stream: TcpStream, id: u64, local: Rc<Local>) {
    local.counters.borrow_mut().connections_opened += 1;
    let address = |address: io::Result<SocketAddr>| {
        address.map(|address| address.to_string()).unwrap_or_default()
    };
    let now = local.setup.steady();
    let client = Client::new(id, address(stream.peer_addr()), address(stream.local_addr()), now);
    let place = local.enter(&client);
    let (stream, half) = stream.into_split();
    let outlet = Rc::new(Outlet::new(half, place.entry.clone(), local.clone()));
    let mut session =
        Session::new(stream, outlet.clone(), client, local.clone(), place.entry.clone());
    if let Err(error) = outlet.alongside(session.run()).await {
        log::debug!(target: "session", "client {id}: {error}");
    }
    forget_watched(&mut session.state, &session.local);
}

struct Session {
    stream: OwnedReadHalf,
    outlet: Rc<Outlet>,
    /// How many bytes of what was kept for it the client had taken when it was last seen to take
    /// none.
    stalled: Option<u64>,
    state: State,
    local: Rc<Local>,
    /// What others see of it.
    entry: Rc<Entry>,
    /// What the node's clients ask, for one that monitors them.
    feed: Option<mpsc::Receiver<Arc<[u8]>>>,
    /// A command that waits for a pause to end.
    held: ArgvBuf,
    /// The command that waits for all before it, for the slow log.
    said: Vec<Vec<u8>>,
    /// Whether its client does not want its reply.
    mute: bool,
    /// Which of the arbiter's settings it knows.
    settings: u64,
    limits: Limits,
    input: Vec<u8>,
    requests: Requests,
    gathered: Gathered,
    /// The batch that is away of each destination.
    away: Vec<Away>,
    /// Transactions that are under way.
    begun: Vec<Begun>,
    out: Vec<u8>,
    /// Walks so far: no two throw the same dice.
    walks: u64,
}

/// What a connection is in the midst of.
struct State {
    client: Client,
    /// Whether the client may have changed in more than what every request changes.
    redraw: bool,
    /// Commands since `MULTI`.
    queue: Option<Queue>,
    watching: Watching,
}

/// Requests that are served together.
struct Gathered {
    flight: Flight,
    /// The transactions among them, until they are begun.
    spreads: Vec<Option<Spread>>,
}

/// What comes after the requests gathered.
enum Next {
    /// Serve them and go on with what is left of the input.
    Flush,
    /// The input holds no further request.
    Read,
    /// A transaction on whole partitions: it waits for them.
    Spread(Work, PieceLayout),
    /// The same, without locks: each partition at its own moment.
    Each(Vec<(PartitionId, Batch)>, PieceLayout),
    /// `WATCH`, of keys that are not watched yet, and how their versions are asked for.
    Watch(ArgvBuf, Plan),
    /// `EXEC`, of a queue and what it watches, or one that changes the connection.
    Exec(Work, Script),
    /// A step after the other.
    Walk(Walk),
    /// A command about the whole node.
    NodeQuery(NodeQuery),
    /// A command that is held until a pause is over.
    Held,
    /// The connection ends with them.
    Close,
}

impl Session {
    fn new(
        stream: OwnedReadHalf,
        outlet: Rc<Outlet>,
        client: Client,
        local: Rc<Local>,
        entry: Rc<Entry>,
    ) -> Session {
        let limits = node_query::limits(&local);
        let destinations = local.book.destinations();
        let flight = Flight::new(destinations, HELD_BYTES_MAX);
        Session {
            stream,
            outlet,
            stalled: None,
            state: State { client, redraw: false, queue: None, watching: Watching::default() },
            local,
            entry,
            feed: None,
            held: ArgvBuf::default(),
            said: Vec::new(),
            mute: false,
            settings: 0,
            limits,
            input: Vec::with_capacity(READ_BYTES),
            requests: Requests::new(),
            gathered: Gathered { flight, spreads: Vec::new() },
            away: (0..destinations).map(|_| Away::Here).collect(),
            begun: Vec::new(),
            out: Vec::new(),
            walks: 0,
        }
    }

    async fn run(&mut self) -> io::Result<()> {
        while self.fill().await? {
            loop {
                if self.entry.signal.is_killed() {
                    return Ok(());
                }
                let next = self.gather();
                self.fly(Sink::Client).await?;
                match next {
                    Next::Flush => continue,
                    Next::Read => break,
                    _ => {}
                }
                let begun = Instant::now();
                match next {
                    Next::Flush | Next::Read => {}
                    Next::Spread(work, layout) => {
                        self.spread(work, layout).await?;
                        self.note_last(begun);
                    }
                    Next::Each(batches, layout) => {
                        self.each(batches, layout).await?;
                        self.note_last(begun);
                    }
                    Next::NodeQuery(query) => {
                        self.answer_query(query).await?;
                        self.note_last(begun);
                    }
                    Next::Watch(keys, plan) => self.watch(keys, plan).await?,
                    Next::Exec(work, script) => {
                        self.exec(work, script).await?;
                        self.note_last(begun);
                    }
                    Next::Walk(walk) => {
                        self.walk(walk).await?;
                        self.note_last(begun);
                    }
                    Next::Held => self.wait_for_pause().await?,
                    Next::Close => return self.finish().await,
                }
            }
        }
        self.finish().await
    }

    /// Reads what the client sent. False when it has closed, or the Session is to end.
    async fn fill(&mut self) -> io::Result<bool> {
        self.show();
        if self.feed.is_some() {
            self.pass_on().await?;
        }
        let lacking = self.requests.needs(self.input.len()) - self.input.len();
        self.input.reserve(lacking.clamp(READ_BYTES / 2, GATHER_BYTES_MAX));
        let Session { stream, input, entry, .. } = self;
        entry.is_awaited.set(true);
        let read = poll_fn(|context| {
            if entry.signal.poll(context) {
                return Poll::Ready(Ok(0));
            }
            let mut room = ReadBuf::uninit(input.spare_capacity_mut());
            match Pin::new(&mut *stream).poll_read(context, &mut room) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(room.filled().len())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        entry.is_awaited.set(false);
        let read = read?;
        // SAFETY: poll_read has filled so many bytes of the spare capacity.
        unsafe { input.set_len(input.len() + read) };
        self.local.counters.borrow_mut().bytes_in += read as u64;
        Ok(read > 0)
    }

    /// Takes requests from the input, as many as can be served together.
    fn gather(&mut self) -> Next {
        let mut next = Next::Read;
        let mut bytes = 0;
        let pipeline = self.local.setup.limits.pipeline;
        // Once: operations on a key go to one and the same node.
        self.local.look_up_routes();
        let held = std::mem::take(&mut self.held);
        let mut held = Some(held.argv()).filter(|argv| !argv.is_empty());
        loop {
            let argv = match held.take().map_or_else(
                || self.requests.next(&self.input, &self.limits),
                |argv| Ok(Some(argv)),
            ) {
                Ok(Some(argv)) => argv,
                Ok(None) => break,
                Err(error) => {
                    let own = self.gathered.flight.own();
                    Reply::new(own, false).error_bytes(&error.reply_text());
                    answered(&self.local, None, &mut self.gathered);
                    self.state.client.begin_answer();
                    if self.state.client.holds_answer() {
                        self.gathered.flight.mute_last();
                    }
                    next = Next::Close;
                    break;
                }
            };
            bytes += argv.bytes();
            self.state.client.begin_answer();
            let request = request(argv, &mut self.state, &self.local, &mut self.gathered);
            if let Some(Next::Held) = request {
                self.held = argv.from(0).collect();
                next = Next::Held;
                break;
            }
            self.mute = self.state.client.holds_answer();
            if let Some(waits) = request {
                if self.mute && matches!(waits, Next::Close) {
                    // It is answered already.
                    self.gathered.flight.mute_last();
                }
                self.said = said(argv);
                next = waits;
                break;
            }
            let flight = &mut self.gathered.flight;
            if self.mute {
                flight.mute_last();
            }
            if flight.len() >= pipeline
                || bytes >= GATHER_BYTES_MAX
                || flight.spreads() >= TRANSACTIONS_MAX
            {
                next = Next::Flush;
                break;
            }
        }
        let done = self.requests.done();
        self.input.drain(..done);
        self.requests.dropped(done);
        next
    }

    async fn write_out(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        self.local.note_reply(self.state.client.last, &out);
        if !self.mute {
            self.write(&out).await?;
        }
        self.out = out;
        self.out.clear();
        self.recycle();
        Ok(())
    }

    /// Notes how long the command that waited for all before it took.
    fn note_last(&mut self, begun: Instant) {
        let said = std::mem::take(&mut self.said);
        if let Some(spec) = self.state.client.last {
            self.note_said(spec, said, begun);
        }
    }

    /// Whether a reply of so many bytes may be written, beside those that are not taken yet.
    fn admit(&self, bytes: usize) -> io::Result<()> {
        let max = self.local.setup.limits.output_buffer;
        let bytes = bytes + self.outlet.unsent();
        if bytes > max {
            let (id, address) = (self.state.client.id, &self.state.client.address);
            log::warn!(
                target: "session",
                "closing client {id} at {address}: its replies take {bytes} bytes, where {max} are \
                 allowed"
            );
            return Err(io::Error::other("its replies are too long"));
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let max = self.local.setup.limits.output_buffer;
        if bytes.len() <= max && bytes.len() + self.outlet.unsent() > max {
            // A reader that has paused goes on; only one that reads nothing is closed.
            self.wait_for_room(max - bytes.len()).await?;
        }
        self.admit(bytes.len())?;
        self.local.counters.borrow_mut().bytes_out += bytes.len() as u64;
        self.outlet.send(bytes)?;
        match self.outlet.unsent() > UNSENT_BYTES {
            true => self.wait_for_reader().await,
            false => Ok(()),
        }
    }
}

/// Takes one request: onto its destination's batch, or answered here. Returns what has to wait
/// until everything before it is answered.
#[inline]
fn request(
    argv: Argv<'_>,
    state: &mut State,
    local: &Local,
    gathered: &mut Gathered,
) -> Option<Next> {
    let mut reply = Reply::new(gathered.flight.own(), state.client.resp3);
    let Some(spec) = command::resolve(argv, &mut reply) else {
        if command::is_http(argv) {
            local.warn_of_http(&state.client);
            gathered.flight.retract_own();
            return Some(Next::Close);
        }
        spec::lookup(argv.name()).into_iter().for_each(|spec| local.reject(spec));
        state.queue.as_mut().into_iter().for_each(Queue::spoil);
        if command::is_exec(argv) {
            state.queue = None;
            forget_watched(state, local);
        }
        return answered(local, None, gathered);
    };
    if local.holds(spec, state.queue.as_ref()) {
        return Some(Next::Held);
    }
    state.client.last = Some(spec);
    if local.is_watched() {
        if state.client.monitor && spec.data().is_some() {
            // Redis takes those who monitor for replicas.
            reply.error("ERR Replica can't interact with the keyspace");
            local.reject(spec);
            state.queue.as_mut().into_iter().for_each(Queue::spoil);
            return answered(local, None, gathered);
        }
        if spec.flags & (ADMIN | NO_AUTH) == 0 {
            local.show(&state.client, argv);
        }
    }
    let loading = spec.flags & LOADING != 0 && spec.data().is_none();
    if !loading && !local.serves() {
        reply.error(&waiting(local));
        local.reject(spec);
        state.queue.as_mut().into_iter().for_each(Queue::spoil);
        return answered(local, None, gathered);
    }
    local.count_call(spec);
    if state.queue.is_some() && waits_for_exec(spec) {
        enqueue(spec, argv, state, local, &mut reply);
        return answered(local, Some(spec), gathered);
    }
    if let Run::Control(control) = spec.run {
        let next = control_transaction(control, spec, argv, state, local, &mut reply);
        return match next {
            Some(Next::Exec(work, script)) if flight::suits_exec(&work, &script) => {
                state.redraw = true;
                let resp3 = state.client.resp3;
                let said = said(argv);
                let finish = Finish::Exec(script);
                gathered.spread(Spread { work, finish, spec, said, resp3 });
                None
            }
            Some(next) => Some(next),
            None => answered(local, Some(spec), gathered),
        };
    }
    let client = &mut state.client;
    let place = place(client, local);
    let one = match plan::route_one(spec, argv, &place) {
        Some(head) => head,
        None => match plan::plan(spec, argv, &place) {
            Plan::One(head) => head,
            Plan::Spread { work, layout } => {
                if let Some(refused) = node_query::refuse_spread(argv, local) {
                    reply.error(&refused);
                    return answered(local, Some(spec), gathered);
                }
                if spec.scope() != Scope::Keys {
                    return Some(Next::Spread(work, layout));
                }
                let (finish, said) = (Finish::One(layout), said(argv));
                let resp3 = client.resp3;
                gathered.spread(Spread { work, finish, spec, said, resp3 });
                return None;
            }
            Plan::Each { batches, layout } => return Some(Next::Each(batches, layout)),
            Plan::Walk(walk) => return Some(Next::Walk(walk)),
            Plan::Session(run) => {
                local.counters.borrow_mut().others += 1;
                state.redraw = true;
                let begun = Instant::now();
                client.micros = local.micros(begun);
                let then = run(client, &local.facts(), argv, &mut reply);
                local.spend(spec, begun.elapsed());
                answered(local, Some(spec), gathered);
                if then == Then::Reset {
                    state.queue = None;
                    forget_watched(state, local);
                }
                return (then == Then::Close).then_some(Next::Close);
            }
            Plan::Node(run) => {
                local.counters.borrow_mut().others += 1;
                state.redraw = true;
                // Rare and about the node's clock: a pause ends when it says.
                client.active_at = local.setup.steady();
                return match run(client, &local.facts(), argv, &mut reply) {
                    Some(query) => Some(Next::NodeQuery(query)),
                    None => answered(local, Some(spec), gathered),
                };
            }
            Plan::Refused(error) => {
                reply.error(&error);
                return answered(local, Some(spec), gathered);
            }
        },
    };
    let destination = local.route(one.partition);
    gathered.flight.op(destination, one, argv.from(1));
    let mut counters = local.counters.borrow_mut();
    match spec.flags & WRITE != 0 {
        true => counters.writes += 1,
        false => counters.reads += 1,
    }
    None
}

/// A request's words for the slow log.
fn said(argv: Argv<'_>) -> Vec<Vec<u8>> {
    latency::clip(argv.from(0).collect::<Vec<_>>().into_iter())
}

impl Gathered {
    /// Gathers a transaction.
    fn spread(&mut self, spread: Spread) {
        self.spreads.push(Some(spread));
        self.flight.spread();
    }
}

/// Where the client's commands are asked.
fn place<'a>(client: &Client, local: &'a Local) -> Placing<'a> {
    Placing {
        atlas: &local.setup.atlas,
        hasher: local.setup.hasher,
        table: client.table,
        resp3: client.resp3,
        key_bytes_max: local.setup.limits.key,
    }
}

/// Ends a reply that the Session gave itself; `spec` if it is that of a command that was begun.
fn answered(local: &Local, spec: Option<&'static Spec>, gathered: &mut Gathered) -> Option<Next> {
    local.note_reply(spec, gathered.flight.end_own());
    None
}

fn waiting(local: &Local) -> String {
    match local.standing() {
        Standing::Waiting(missing) => {
            let missing: Vec<String> = missing.iter().map(NodeId::to_string).collect();
            format!("LOADING waiting for nodes {}", missing.join(", "))
        }
        Standing::Formed => "LOADING starting".into(),
    }
}
