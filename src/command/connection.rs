//! Commands on the connection itself.

use super::client::{Client, Then, is_plain, text};
use super::facts::{Facts, REDIS_VERSION};
use super::number::parse_int;
use super::reply::Reply;
use super::spec::{
    ALLOW_BUSY, Doc, FAST, Group, LOADING, NO_AUTH, NO_KEYS, NOSCRIPT, Run, STALE, Spec,
};
use super::words::Words;
use super::{NOT_AN_INTEGER, SYNTAX, clip};
use crate::ids::TableIndex;

const fn doc(since: &'static str, summary: &'static str, syntax: &'static str) -> Doc {
    Doc { group: Group::Connection, since, complexity: "O(1)", summary, syntax }
}

#[rustfmt::skip]
pub(super) const COMMANDS: &[Spec] = &[
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
    Spec { name: "help", arity: 2, flags: LOADING | STALE, keys: NO_KEYS, run: Run::Session(client_help),
        doc: doc("5.0.0", "Lists the subcommands.", "") },
    Spec { name: "id", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_id),
        doc: doc("5.0.0", "Tells the connection's number.", "") },
    Spec { name: "info", arity: 2, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_info),
        doc: doc("6.2.0", "Tells about the connection.", "") },
    Spec { name: "list", arity: -2, flags: super::spec::ADMIN | CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_list),
        doc: doc("2.4.0", "Tells about the connections of the node.", "") },
    Spec { name: "setinfo", arity: 4, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_setinfo),
        doc: doc("7.2.0", "Says which library the client uses.", "LIB-NAME libname | LIB-VER libver") },
    Spec { name: "setname", arity: 3, flags: CLIENT_FLAGS, keys: NO_KEYS, run: Run::Session(client_setname),
        doc: doc("2.6.9", "Names the connection.", "connection-name") },
];

fn ping(_: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    match words.len() {
        1 => reply.simple("PONG"),
        2 => reply.bulk(words.get(1)),
        _ => super::wrong_arity("ping", reply),
    }
    Then::Continue
}

fn echo(_: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    reply.bulk(words.get(1));
    Then::Continue
}

fn quit(_: &mut Client, _: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    reply.ok();
    Then::Close
}

fn reset(client: &mut Client, _: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    client.reset();
    reply.set_resp3(false);
    reply.simple("RESET");
    Then::Reset
}

fn select(client: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let Some(index) = parse_int(words.get(1)) else { return answer(reply, NOT_AN_INTEGER) };
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

fn hello(client: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let mut resp3 = client.resp3;
    let mut name = None;
    if words.len() > 1 {
        match parse_int(words.get(1)) {
            Some(2) => resp3 = false,
            Some(3) => resp3 = true,
            Some(_) => return answer(reply, "NOPROTO unsupported protocol version"),
            None => {
                return answer(reply, "ERR Protocol version is not an integer or out of range");
            }
        }
    }
    let mut at = 2;
    while at < words.len() {
        let more = words.len() - 1 - at;
        let option = words.get(at);
        if option.eq_ignore_ascii_case(b"auth") && more >= 2 {
            // There is the one user without a password: every password is right for it.
            if words.get(at + 1) != b"default" {
                let text = "WRONGPASS invalid username-password pair or user is disabled.";
                return answer(reply, text);
            }
            at += 3;
        } else if option.eq_ignore_ascii_case(b"setname") && more >= 1 {
            if !is_plain(words.get(at + 1)) {
                return answer(reply, NAME_NOT_PLAIN);
            }
            name = Some(text(words, at + 1));
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

fn client_id(client: &mut Client, _: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    reply.int(client.id as i64);
    Then::Continue
}

fn client_getname(client: &mut Client, _: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let name = client.name.as_bytes();
    reply.bulk_or_nil((!name.is_empty()).then_some(name));
    Then::Continue
}

fn client_setname(client: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    if !is_plain(words.get(2)) {
        return answer(reply, NAME_NOT_PLAIN);
    }
    client.name = text(words, 2);
    reply.ok();
    Then::Continue
}

fn client_setinfo(client: &mut Client, _: &Facts, words: Words<'_>, reply: &mut Reply<'_>) -> Then {
    let option = words.get(2);
    let (field, label) = match () {
        () if option.eq_ignore_ascii_case(b"lib-name") => (&mut client.lib_name, "lib-name"),
        () if option.eq_ignore_ascii_case(b"lib-ver") => (&mut client.lib_ver, "lib-ver"),
        () => {
            let shown = clip(option, usize::MAX);
            reply.error_bytes(&[b"ERR Unrecognized option '".as_slice(), shown, b"'"].concat());
            return Then::Continue;
        }
    };
    if !is_plain(words.get(3)) {
        let text = format!("ERR {label} cannot contain spaces, newlines or special characters.");
        return answer(reply, &text);
    }
    *field = text(words, 3);
    reply.ok();
    Then::Continue
}

fn client_info(client: &mut Client, facts: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    reply.verbatim("txt", client.describe(facts.now).as_bytes());
    Then::Continue
}

fn client_list(
    client: &mut Client,
    facts: &Facts,
    words: Words<'_>,
    reply: &mut Reply<'_>,
) -> Then {
    let option = |name: &str| words.get(2).eq_ignore_ascii_case(name.as_bytes());
    let mut ids = None;
    let mut normal = true;
    match words.len() {
        2 => {}
        4 if option("type") => {
            let kinds = ["normal", "master", "replica", "slave", "pubsub"];
            let is = |kind: &&&str| words.get(3).eq_ignore_ascii_case(kind.as_bytes());
            let Some(kind) = kinds.iter().find(is) else {
                let shown = clip(words.get(3), usize::MAX);
                reply.error_bytes(&[b"ERR Unknown client type '".as_slice(), shown, b"'"].concat());
                return Then::Continue;
            };
            normal = *kind == "normal";
        }
        4.. if option("id") => {
            let Some(asked) = words.from(3).map(parse_int).collect::<Option<Vec<i64>>>() else {
                return answer(reply, "ERR Invalid client ID");
            };
            ids = Some(asked);
        }
        _ => return answer(reply, SYNTAX),
    }
    let asked = |id: u64| normal && ids.as_ref().is_none_or(|ids| ids.contains(&(id as i64)));
    // The list is as old as the facts; the connection that asks is sure to be there as it is now.
    let others = facts.clients.iter().filter(|other| other.id != client.id);
    let mut listed: Vec<&Client> = others.chain([&*client]).filter(|c| asked(c.id)).collect();
    listed.sort_unstable_by_key(|client| client.id);
    let list: String = listed.into_iter().map(|client| client.describe(facts.now)).collect();
    reply.verbatim("txt", list.as_bytes());
    Then::Continue
}

fn client_help(_: &mut Client, _: &Facts, _: Words<'_>, reply: &mut Reply<'_>) -> Then {
    super::help("CLIENT", CLIENT, reply);
    Then::Continue
}
