//! Commands on the connection itself.

use super::argv::Argv;
use super::client::{Client, ReplyMode, Then, is_plain, text};
use super::facts::{Facts, REDIS_VERSION};
use super::node_query::{NodeQuery, Question, Selection, Show};
use super::reply::Reply;
use super::spec::{
    ADMIN, ALLOW_BUSY, CommandGroup, Doc, FAST, LOADING, NO_AUTH, NO_KEYS, NOSCRIPT, Run, STALE,
    Spec,
};
use super::{NOT_AN_INTEGER, SYNTAX, clip};
use crate::ids::{Millis, TableIndex};
use crate::store::number::parse_int;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: CommandGroup::Connection, since, complexity: "O(1)", summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
    Spec { name: "auth", arity: -2, flags: NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY, keys: NO_KEYS, run: Run::Session(auth),
        doc: doc("1.0.0", "Is answered as by a server without passwords.", "[username] password") },
    Spec { name: "client", arity: -2, flags: 0, keys: NO_KEYS, run: Run::Container { subcommands: CLIENT, bare: None },
        doc: doc("2.4.0", "Holds the commands on client connections.", "") },
    Spec { name: "echo", arity: 2, flags: FAST | LOADING | STALE, keys: NO_KEYS, run: Run::Session(echo),
        doc: doc("1.0.0", "Answers what it is given.", "message") },
    Spec { name: "hello", arity: -1, flags: NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY, keys: NO_KEYS, run: Run::Session(hello),
        doc: doc("6.0.0", "Chooses the protocol and tells who answers.", "[protover [AUTH username password] [SETNAME clientname]]") },
    Spec { name: "ping", arity: -1, flags: FAST, keys: NO_KEYS, run: Run::Session(ping),
        doc: doc("1.0.0", "Answers PONG, or what it is given.", "[message]") },
    Spec { name: "quit", arity: -1, flags: ALLOW_BUSY | NOSCRIPT | LOADING | STALE | FAST | NO_AUTH, keys: NO_KEYS, run: Run::Session(quit),
        doc: doc("1.0.0", "Closes the connection.", "") },
    Spec { name: "reset", arity: 1, flags: NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY, keys: NO_KEYS, run: Run::Session(reset),
        doc: doc("6.2.0", "Brings the connection back to how it began.", "") },
    Spec { name: "select", arity: 2, flags: LOADING | STALE | FAST, keys: NO_KEYS, run: Run::Session(select),
        doc: doc("1.0.0", "Chooses the table that the connection works on.", "index") },
];

const CLIENT_FLAGS: u32 = NOSCRIPT | LOADING | STALE;

#[rustfmt::skip]
const CLIENT: &[Spec] = &[
    Spec { name: "getname", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_getname),
        doc: doc("2.6.9", "Tells the connection's name.", "") },
    Spec { name: "getredir", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_getredir),
        doc: doc("6.0.0", "Tells where news of tracked keys go: nowhere.", "") },
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(client_help),
        doc: doc("5.0.0", "Lists the subcommands.", "") },
    Spec { name: "id", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_id),
        doc: doc("5.0.0", "Tells the connection's number.", "") },
    Spec { name: "info", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_info),
        doc: doc("6.2.0", "Tells about the connection.", "") },
    Spec { name: "kill", arity: -3, flags: ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Node(client_kill),
        doc: doc("2.4.0", "Closes connections of the node.", "ip:port | ID client-id | ADDR ip:port | LADDR ip:port | TYPE type | USER username | SKIPME YES | NO ...") },
    Spec { name: "list", arity: -2, flags: ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Node(client_list),
        doc: doc("2.4.0", "Tells about the connections of the node.", "[TYPE NORMAL | MASTER | REPLICA | PUBSUB] [ID client-id [client-id ...]]") },
    Spec { name: "no-evict", arity: 3, flags: ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_switch),
        doc: doc("7.0.0", "Is taken, and changes nothing: no connection is given up for memory.", "ON | OFF") },
    Spec { name: "no-touch", arity: 3, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_switch),
        doc: doc("7.2.0", "Is taken, and changes nothing: keys are not evicted by their age.", "ON | OFF") },
    Spec { name: "pause", arity: -3, flags: ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Node(client_pause),
        doc: doc("3.0.0", "Holds back what the clients of the node ask, for so long.", "timeout [WRITE | ALL]") },
    Spec { name: "reply", arity: 3, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_reply),
        doc: doc("3.2.0", "Says which commands are answered.", "ON | OFF | SKIP") },
    Spec { name: "setinfo", arity: 4, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_setinfo),
        doc: doc("7.2.0", "Says which library the client uses.", "LIB-NAME libname | LIB-VER libver") },
    Spec { name: "setname", arity: 3, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_setname),
        doc: doc("2.6.9", "Names the connection.", "connection-name") },
    Spec { name: "trackinginfo", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_trackinginfo),
        doc: doc("6.2.0", "Tells which keys are tracked: none.", "") },
    Spec { name: "unblock", arity: -3, flags: ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_unblock),
        doc: doc("5.0.0", "Wakes a client that waits for data: there are none.", "client-id [TIMEOUT | ERROR]") },
    Spec { name: "unpause", arity: 2, flags: ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Node(client_unpause),
        doc: doc("6.2.0", "Ends CLIENT PAUSE.", "") },
];

fn auth(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    match argv.len() {
        2 => reply.error(
            "ERR AUTH <password> called without any password configured for the default user. Are \
             you sure your configuration is correct?",
        ),
        // There is the one user without a password: every password is right for it.
        3 if argv.get(1) == b"default" => reply.ok(),
        3 => reply.error("WRONGPASS invalid username-password pair or user is disabled."),
        _ => reply.error(SYNTAX),
    }
    Then::Continue
}

fn ping(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    match argv.len() {
        1 => reply.simple("PONG"),
        2 => reply.bulk(argv.get(1)),
        _ => super::wrong_arity("ping", reply),
    }
    Then::Continue
}

fn echo(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.bulk(argv.get(1));
    Then::Continue
}

fn quit(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.ok();
    Then::Close
}

fn reset(client: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    client.reset();
    reply.set_resp3(false);
    reply.simple("RESET");
    Then::Reset
}

fn select(client: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let Some(index) = parse_int(argv.get(1)) else { return answer(reply, NOT_AN_INTEGER) };
    if i32::try_from(index).is_err() {
        // Redis reads the index as a C int.
        let (min, max) = (i32::MIN, i32::MAX);
        let text = format!("ERR value is out of range, value must between {min} and {max}");
        return answer(reply, &text);
    }
    match u8::try_from(index).ok().and_then(TableIndex::new) {
        None => reply.error("ERR DB index is out of range"),
        Some(table) => {
            client.table = table;
            reply.ok();
        }
    }
    Then::Continue
}

const NAME_NOT_PLAIN: &str =
    "ERR Client names cannot contain spaces, newlines or special characters.";

fn hello(client: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let mut resp3 = client.resp3;
    let mut name = None;
    if argv.len() > 1 {
        match parse_int(argv.get(1)) {
            Some(2) => resp3 = false,
            Some(3) => resp3 = true,
            Some(_) => return answer(reply, "NOPROTO unsupported protocol version"),
            None => {
                return answer(reply, "ERR Protocol version is not an integer or out of range");
            }
        }
    }
    let mut at = 2;
    while at < argv.len() {
        let more = argv.len() - 1 - at;
        let option = argv.get(at);
        if option.eq_ignore_ascii_case(b"auth") && more >= 2 {
            // There is the one user without a password: every password is right for it.
            if argv.get(at + 1) != b"default" {
                let text = "WRONGPASS invalid username-password pair or user is disabled.";
                return answer(reply, text);
            }
            at += 3;
        } else if option.eq_ignore_ascii_case(b"setname") && more >= 1 {
            if !is_plain(argv.get(at + 1)) {
                return answer(reply, NAME_NOT_PLAIN);
            }
            name = Some(text(argv, at + 1));
            at += 2;
        } else {
            let shown = clip(option, usize::MAX);
            let text = [b"ERR Syntax error in HELLO option '".as_slice(), shown, b"'"].concat();
            reply.error_bytes(&text);
            return Then::Continue;
        }
    }
    client.resp3 = resp3;
    if let Some(name) = name {
        client.name = name;
    }
    reply.set_resp3(resp3);
    reply.map(7);
    reply.bulk(b"server");
    reply.bulk(b"redis");
    reply.bulk(b"version");
    reply.bulk(REDIS_VERSION.as_bytes());
    reply.bulk(b"proto");
    reply.int(if resp3 { 3 } else { 2 });
    reply.bulk(b"id");
    reply.int(client.id as i64);
    reply.bulk(b"mode");
    reply.bulk(b"standalone");
    reply.bulk(b"role");
    reply.bulk(b"master");
    reply.bulk(b"modules");
    reply.array(0);
    Then::Continue
}

fn answer(reply: &mut Reply<'_>, error: &str) -> Then {
    reply.error(error);
    Then::Continue
}

fn client_id(client: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.int(client.id as i64);
    Then::Continue
}

fn client_getname(client: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let name = client.name.as_bytes();
    reply.bulk_or_nil((!name.is_empty()).then_some(name));
    Then::Continue
}

fn client_setname(client: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    if !is_plain(argv.get(2)) {
        return answer(reply, NAME_NOT_PLAIN);
    }
    client.name = text(argv, 2);
    reply.ok();
    Then::Continue
}

fn client_setinfo(client: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let option = argv.get(2);
    let (field, label) = match () {
        () if option.eq_ignore_ascii_case(b"lib-name") => (&mut client.lib_name, "lib-name"),
        () if option.eq_ignore_ascii_case(b"lib-ver") => (&mut client.lib_ver, "lib-ver"),
        () => {
            let shown = clip(option, usize::MAX);
            reply.error_bytes(&[b"ERR Unrecognized option '".as_slice(), shown, b"'"].concat());
            return Then::Continue;
        }
    };
    if !is_plain(argv.get(3)) {
        let text = format!("ERR {label} cannot contain spaces, newlines or special characters.");
        return answer(reply, &text);
    }
    *field = text(argv, 3);
    reply.ok();
    Then::Continue
}

fn client_info(client: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let now = client.active_at;
    reply.verbatim("txt", client.info().describe(now).as_bytes());
    Then::Continue
}

fn client_list(_: &Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Option<NodeQuery> {
    let option = |name: &str| argv.get(2).eq_ignore_ascii_case(name.as_bytes());
    let mut selection = Selection::default();
    match argv.len() {
        2 => {}
        4 if option("type") => selection.others_only = !is_normal(argv.get(3), reply)?,
        4.. if option("id") => {
            let id = |word| parse_int(word).map(|id| id as u64);
            let Some(ids) = argv.from(3).map(id).collect::<Option<Vec<u64>>>() else {
                return refuse(reply, "ERR Invalid client ID");
            };
            selection.ids = Some(ids);
        }
        _ => return refuse(reply, SYNTAX),
    }
    Some(NodeQuery::Ask(Question::Clients, Show::Clients(selection)))
}

fn refuse(reply: &mut Reply<'_>, error: &str) -> Option<NodeQuery> {
    reply.error(error);
    None
}

/// Whether the word names the type of all clients there are; what is no type is answered.
fn is_normal(word: &[u8], reply: &mut Reply<'_>) -> Option<bool> {
    let kinds = ["normal", "master", "replica", "slave", "pubsub"];
    let kind = kinds.iter().find(|kind| word.eq_ignore_ascii_case(kind.as_bytes()));
    if kind.is_none() {
        let shown = clip(word, usize::MAX);
        reply.error_bytes(&[b"ERR Unknown client type '".as_slice(), shown, b"'"].concat());
    }
    kind.map(|kind| *kind == "normal")
}

fn client_kill(
    client: &Client,
    _: &Facts,
    argv: Argv<'_>,
    reply: &mut Reply<'_>,
) -> Option<NodeQuery> {
    let mut selection = Selection::default();
    if argv.len() == 3 {
        selection.address = Some(argv.get(2).to_vec());
        return Some(NodeQuery::Ask(Question::Kill(selection), Show::Killed));
    }
    if !argv.len().is_multiple_of(2) {
        return refuse(reply, SYNTAX);
    }
    selection.but = Some(client.id);
    for at in (2..argv.len()).step_by(2) {
        let (option, value) = (argv.get(at), argv.get(at + 1));
        let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("id") => match parse_int(value) {
                Some(id @ 1..) => selection.ids = Some(vec![id as u64]),
                _ => return refuse(reply, "ERR client-id should be greater than 0"),
            },
            () if is("addr") => selection.address = Some(value.to_vec()),
            () if is("laddr") => selection.local_address = Some(value.to_vec()),
            () if is("type") => selection.others_only = !is_normal(value, reply)?,
            () if is("user") && value == b"default" => {}
            () if is("user") => {
                let shown = clip(value, usize::MAX);
                reply.error_bytes(&[b"ERR No such user '".as_slice(), shown, b"'"].concat());
                return None;
            }
            () if is("skipme") && value.eq_ignore_ascii_case(b"yes") => {
                selection.but = Some(client.id);
            }
            () if is("skipme") && value.eq_ignore_ascii_case(b"no") => selection.but = None,
            () => return refuse(reply, SYNTAX),
        }
    }
    Some(NodeQuery::Ask(Question::Kill(selection), Show::Sum))
}

fn client_pause(
    client: &Client,
    _: &Facts,
    argv: Argv<'_>,
    reply: &mut Reply<'_>,
) -> Option<NodeQuery> {
    let mode = argv.get(3);
    let writes_only = match argv.len() {
        3 => false,
        4 if mode.eq_ignore_ascii_case(b"write") => true,
        4 if mode.eq_ignore_ascii_case(b"all") => false,
        4 => return refuse(reply, "ERR CLIENT PAUSE mode must be WRITE or ALL"),
        _ => {
            super::wrong_subcommand("client", argv.get(1), reply);
            return None;
        }
    };
    match parse_int(argv.get(2)) {
        None => refuse(reply, "ERR timeout is not an integer or out of range"),
        Some(..0) => refuse(reply, "ERR timeout is negative"),
        Some(ms) => {
            let until = Millis(client.active_at.0.saturating_add(ms as u64));
            Some(NodeQuery::Ask(Question::Pause { until, writes_only }, Show::Ok))
        }
    }
}

fn client_unpause(_: &Client, _: &Facts, _: Argv<'_>, _: &mut Reply<'_>) -> Option<NodeQuery> {
    Some(NodeQuery::Ask(Question::Unpause, Show::Ok))
}

/// `NO-EVICT` and `NO-TOUCH`: connections and keys are not evicted, so either way is right.
fn client_switch(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let word = argv.get(2);
    match word.eq_ignore_ascii_case(b"on") || word.eq_ignore_ascii_case(b"off") {
        true => reply.ok(),
        false => reply.error(SYNTAX),
    }
    Then::Continue
}

fn client_reply(client: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let word = argv.get(2);
    match () {
        () if word.eq_ignore_ascii_case(b"on") => {
            client.answers = ReplyMode::On;
            reply.ok();
        }
        () if word.eq_ignore_ascii_case(b"off") => client.answers = ReplyMode::Off,
        () if word.eq_ignore_ascii_case(b"skip") => {
            if client.answers != ReplyMode::Off {
                client.answers = ReplyMode::SkipNext;
            }
        }
        () => reply.error(SYNTAX),
    }
    Then::Continue
}

/// No command here makes a client wait, so there is never a client to wake.
fn client_unblock(_: &mut Client, _: &Facts, argv: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    let reason = argv.get(3);
    let known = reason.eq_ignore_ascii_case(b"timeout") || reason.eq_ignore_ascii_case(b"error");
    match parse_int(argv.get(2)) {
        _ if argv.len() > 3 && (argv.len() > 4 || !known) => {
            reply.error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR");
        }
        None => reply.error(NOT_AN_INTEGER),
        Some(_) => reply.int(0),
    }
    Then::Continue
}

fn client_getredir(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.int(-1);
    Then::Continue
}

fn client_trackinginfo(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    reply.map(3);
    reply.bulk(b"flags");
    reply.set(1);
    reply.bulk(b"off");
    reply.bulk(b"redirect");
    reply.int(-1);
    reply.bulk(b"prefixes");
    reply.array(0);
    Then::Continue
}

fn client_help(_: &mut Client, _: &Facts, _: Argv<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("CLIENT", CLIENT, reply);
    Then::Continue
}
