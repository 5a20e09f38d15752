//! Reads the sources and holds them to the rules that no compiler checks.
//!
//! The tables below are the rules: which part of the tree may know which, where each foreign crate
//! is met, what pure code must not touch, which words do not belong in a source. A new dependency
//! or a new part of the tree needs a row here, so that it is a decision and not an accident.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each part of the tree and the parts it may name: only such as stand above it, so there is no
/// circle ([`dependencies_point_one_way`]).
///
/// `lib.rs` only declares the parts and is not checked.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("error", &["ids"]),
    ("config", &["ids", "error"]),
    ("logging", &["ids"]),
    ("memory", &[]),
    ("metrics", &["ids"]),
    // What decides: pure rooms.
    ("rules", &[]),
    ("store", &["ids"]),
    ("batch", &["ids", "rules", "store"]),
    ("cluster", &["ids"]),
    ("txn", &["ids", "rules", "store", "batch", "cluster"]),
    ("consensus", &["ids", "rules"]),
    ("partition", &["ids", "rules", "store", "batch", "cluster", "txn", "consensus"]),
    ("command", &["ids", "error", "store", "batch", "txn", "cluster"]),
    // What carries.
    ("storage", &["ids", "error"]),
    (
        "net",
        &["ids", "error", "metrics", "store", "batch", "txn", "consensus", "cluster", "command"],
    ),
    (
        "actors",
        &[
            "ids",
            "error",
            "config",
            "logging",
            "memory",
            "metrics",
            "rules",
            "store",
            "batch",
            "txn",
            "consensus",
            "partition",
            "cluster",
            "command",
            "storage",
            "net",
        ],
    ),
    (
        "cli",
        &[
            "ids",
            "error",
            "config",
            "logging",
            "metrics",
            "store",
            "batch",
            "txn",
            "consensus",
            "partition",
            "cluster",
            "command",
            "storage",
            "net",
            "actors",
        ],
    ),
    ("main", &["cli"]),
];

/// The rooms that decide: no clock, socket, file, thread or dice.
const PURE: &[&str] =
    &["rules", "store", "batch", "txn", "consensus", "partition", "cluster", "command"];

/// Each foreign crate and where it may be met: a file, or a folder with the file of its name.
///
/// Crates that are part of the language as we write it are allowed everywhere.
const MET_IN: &[(&str, &[&str])] = &[
    ("actix", &["src/actors", "src/cli"]),
    ("actix_rt", &["src/actors", "src/cli"]),
    ("axum", &["src/net/http"]),
    ("bytes", EVERYWHERE),
    ("clap", &["src/cli"]),
    ("crc32fast", &["src/storage", "src/command", "src/store/pages", "src/cli/admin"]),
    ("fern", &["src/logging"]),
    ("foldhash", &["src/store", "src/txn", "src/partition/replica"]),
    ("hashbrown", &["src/partition", "src/txn", "src/command/scan"]),
    ("futures", &["src/actors", "src/net"]),
    ("hdrhistogram", &["src/metrics", "src/net/load", "src/cli/bench"]),
    ("hyper", &["src/net/http"]),
    ("hyper_util", &["src/net/http"]),
    ("itoa", &["src/command", "src/net"]),
    ("libc", &["src/storage/disk", "src/cli/clock", "src/cli/descriptors", "src/lib"]),
    ("log", EVERYWHERE),
    ("memchr", EVERYWHERE),
    ("mimalloc", &["src/lib"]),
    ("mio", &["src/net/load"]),
    ("plotters", &["src/cli/bench"]),
    ("protobuf", &["src/consensus"]),
    ("raft", &["src/consensus"]),
    ("rand_chacha", &["src/actors", "src/cli", "src/net/load"]),
    ("rand_core", &["src/actors", "src/cli", "src/net/load"]),
    ("rmp_serde", &["src/partition/record", "src/store/pages", "src/net/packet"]),
    ("rustyline", &["src/cli/client"]),
    ("serde", EVERYWHERE),
    ("serde_bytes", EVERYWHERE),
    ("serde_json", &["src/actors", "src/cli", "src/metrics", "src/net/http"]),
    ("serde_saphyr", &["src/config"]),
    ("slog", &["src/consensus"]),
    ("smallvec", EVERYWHERE),
    ("tempfile", &["src/cli"]),
    ("tokio", &["src/actors", "src/cli", "src/net"]),
];

const EVERYWHERE: &[&str] = &["src"];

/// Paths and the only places that may name them.
const PATHS: &[(&str, &[&str])] = &[
    ("tokio::net", &["src/net"]),
    ("std::net", &["src/net", "src/config", "src/cli"]),
    ("std::fs", &["src/config", "src/storage", "src/cli", "src/logging"]),
    ("std::process", &["src/main", "src/cli", "src/actors/metrics"]),
    ("std::env", &["src/main", "src/cli", "src/actors/metrics"]),
    ("std::thread", &["src/cli", "src/config", "src/logging", "src/net/load", "src/storage/disk"]),
    ("std::sync::Mutex", &[]),
    ("std::sync::RwLock", &[]),
    ("std::time::Instant", &["src/net/load", "src/cli/bench"]),
    ("std::time::SystemTime", &["src/actors", "src/cli", "src/logging"]),
    ("std::collections::HashMap", &[]),
    ("std::collections::HashSet", &[]),
];

/// What does not belong into code outside tests, and why not.
const CALLS: &[(&str, &str)] = &[
    (".unwrap()", "say what happens instead, or assert the invariant in words"),
    (".unwrap_err()", "say what happens instead"),
    (".expect(", "say what happens instead, or assert the invariant in words"),
    ("panic!(", "assert an invariant, or return an error"),
    ("todo!(", "finish it"),
    ("unimplemented!(", "finish it"),
    ("dbg!(", "log it"),
];

/// Sources that are compiled for tests only, beside every `tests.rs`.
const TEST_FILES: &[&str] = &[
    "src/cli/admin/fake.rs",
    "src/cluster/link/scripts.rs",
    "src/consensus/simulation.rs",
    "src/partition/scripts.rs",
    "src/partition/scripts/nodes.rs",
    "src/partition/scripts/replica.rs",
    "src/script.rs",
    "src/simulation.rs",
    "src/simulation/clients.rs",
    "src/simulation/clocks.rs",
    "src/simulation/schedule.rs",
    "src/simulation/disk.rs",
    "src/simulation/faults.rs",
    "src/simulation/checker.rs",
    "src/simulation/lists.rs",
    "src/simulation/network.rs",
    "src/simulation/pipelines.rs",
    "src/simulation/scripted.rs",
    "src/simulation/steps.rs",
    "src/simulation/mutants.rs",
    "src/simulation/world.rs",
    "src/storage/faulty.rs",
];

/// Files that may hold one of [`CALLS`] all the same, each with its reason.
const EXCUSED: &[(&str, &str)] = &[];

/// Words that are no part of a finished source, comments included.
const WORDS: &[&str] = &["TODO", "FIXME", "XXX", "HACK", "/work/", "/tmp/"];

/// A source as the rules see it.
struct Source {
    /// From the root of the project, with `/`.
    path: String,
    text: String,
}

/// A rule that is broken, to be shown with its place.
type Broken = Vec<String>;

#[test]
fn the_sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = read_sources(root, "src");
    assert!(sources.len() >= 5, "the sources were found");
    let (tests, sources): (Vec<&Source>, Vec<&Source>) = sources.iter().partition(is_test);
    let mut broken: Broken = sources.into_iter().flat_map(check).collect();
    broken.extend(tests.into_iter().flat_map(check_words));
    for source in read_sources(root, "tests") {
        if source.path != "tests/tidy.rs" {
            broken.extend(check_words(&source));
            broken.extend(check_docs(&source));
        }
    }
    broken.sort();
    assert!(broken.is_empty(), "{} rules broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn dependencies_point_one_way() {
    for (at, (area, known)) in MAY_KNOW.iter().enumerate() {
        let above = |name: &&str| MAY_KNOW[..at].iter().any(|(row, _)| row == name);
        assert!(known.iter().all(above), "`{area}` knows what stands below it");
    }
}

/// A name stands for one thing in all rooms that decide, so that a reader need not ask which.
#[test]
fn types_of_pure_rooms_have_names_of_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = read_sources(root, "src");
    sources.retain(|source| PURE.contains(&area_of(&source.path)) && !is_test(&source));
    let broken = check_names(&sources);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The map in ARCHITECTURE.md is whole: a newcomer finds every file there, or the folder it is in.
#[test]
fn every_source_is_on_the_map() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let map = page.split("```").nth(1).expect("the map");
    let paths = read_sources(root, "src").into_iter().map(|source| source.path);
    let missing: Vec<String> = paths.filter(|path| !is_on_map(path, map)).collect();
    assert!(missing.is_empty(), "not on the map of ARCHITECTURE.md: {}", missing.join(", "));
}

#[test]
fn every_dependency_has_its_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml");
    let broken = check_manifest(&manifest);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Whether a source is compiled for tests only.
fn is_test(source: &&Source) -> bool {
    source.path.ends_with("/tests.rs") || TEST_FILES.contains(&source.path.as_str())
}

/// Types that are declared twice. What is declared inside a function is its own affair.
fn check_names(sources: &[Source]) -> Broken {
    let mut declared: BTreeMap<String, String> = BTreeMap::new();
    let mut broken = Vec::new();
    for source in sources {
        let code = without_tests(&without_text(&source.text));
        for line in code.lines().filter(|line| !line.starts_with(' ')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kind = words
                .iter()
                .position(|word| ["struct", "enum", "trait", "type", "union"].contains(word));
            // Nothing but its visibility stands before a declaration.
            let Some(kind) = kind.filter(|kind| {
                words[..*kind].iter().all(|word| word.starts_with("pub") || word.ends_with(')'))
            }) else {
                continue;
            };
            let name = words.get(kind + 1).map(|word| identifier(word)).unwrap_or_default();
            if let Some(other) = declared.insert(name.clone(), source.path.clone()) {
                broken.push(format!("`{name}` is a type of {other} and of {}", source.path));
            }
        }
    }
    broken
}

/// Whether a source is named in the map, or stands in a folder that is. The lines of a room, indented,
/// name what is directly in it; what is deeper belongs to what it is in. A room of one line has all of
/// its files there.
fn is_on_map(path: &str, map: &str) -> bool {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let mut lines = map.lines();
    let names = |line: &str, name: &str| line.split_whitespace().any(|word| word == name);
    let Some((room, rest)) = inside.split_once('/') else {
        // The file of a room is the room.
        let room = format!("src/{}/", inside.trim_end_matches(".rs"));
        let known = [path, &format!("{path},"), &room, inside];
        return known.iter().any(|name| names(map, name)) || path == "src/lib.rs";
    };
    let room = format!("{room}/");
    if !lines.by_ref().any(|line| names(line, &format!("src/{room}")) || names(line, &room)) {
        return false;
    }
    let own: Vec<&str> = lines.take_while(|line| line.starts_with(' ')).collect();
    let child = rest.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let named =
        |line: &&str| names(line, &format!("{child}.rs")) || names(line, &format!("{child}/"));
    let has_lines = own.iter().any(|line| line.contains(".rs"));
    !has_lines || own.iter().any(named)
}

fn check(source: &Source) -> Broken {
    let code = without_tests(&without_text(&source.text));
    [
        check_areas(source, &code),
        check_places(source, &code),
        check_calls(source, &code),
        check_words(source),
        check_docs(source),
    ]
    .concat()
}

/// The part of the tree that a file belongs to: `src/txn/lock_queue.rs` to `txn`.
fn area_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split(['/', '.']).next().unwrap_or_default()
}

fn check_areas(source: &Source, code: &str) -> Broken {
    let area = area_of(&source.path);
    if area == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_KNOW.iter().find(|(name, _)| *name == area) else {
        return vec![format!("{}: `{area}` has no row in MAY_KNOW", source.path)];
    };
    let mut broken = Vec::new();
    for (line, named) in areas_named(&source.path, code) {
        let known = MAY_KNOW.iter().any(|(name, _)| *name == named);
        if known && named != area && !allowed.contains(&named.as_str()) {
            broken.push(format!("{}:{line}: `{area}` must not know `{named}`", source.path));
        }
    }
    broken
}

/// The parts named by `crate::part`, `crate::{part, part}`, `quorate::part` and by as many
/// `super::` as lead to the root.
fn areas_named(path: &str, code: &str) -> Vec<(usize, String)> {
    let depth = path.matches('/').count();
    let up = "super::".repeat(depth);
    let mut named = Vec::new();
    for root in ["crate::", "quorate::", up.as_str()] {
        for at in places(code, root) {
            // A longer chain of `super::` is the same place seen again.
            if root == up && code[..at].ends_with("super::") {
                continue;
            }
            let line = line_of(code, at);
            let rest = &code[at + root.len()..];
            named.extend(first_names(rest).into_iter().map(|name| (line, name)));
        }
    }
    named
}

/// The first segment of a path, or those of every path of a group.
fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![identifier(rest)];
    };
    let mut names = Vec::new();
    let (mut depth, mut fresh) = (0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && is_word(c) => {
                names.push(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn check_places(source: &Source, code: &str) -> Broken {
    let mut broken = Vec::new();
    let crates = MET_IN.iter().map(|(name, allowed)| (*name, *allowed, true));
    for (name, allowed, is_crate) in crates.chain(PATHS.iter().map(|(n, a)| (*n, *a, false))) {
        if allowed.iter().any(|place| lies_in(&source.path, place)) {
            continue;
        }
        let found = if is_crate { crate_met(code, name) } else { path_named(code, name) };
        for at in found {
            let line = line_of(code, at);
            let place = if allowed.is_empty() { "nowhere".into() } else { allowed.join(", ") };
            broken.push(format!("{}:{line}: `{name}` is met in {place}", source.path));
        }
    }
    broken
}

/// Whether a file is `place.rs` or lies in the folder `place`.
fn lies_in(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Where a foreign crate is named: `name::`, `use name;`, `use name as`.
fn crate_met(code: &str, name: &str) -> Vec<usize> {
    let path = places(code, &format!("{name}::"));
    // `self::log::` and `crate::log::` are our own modules.
    let path = path.into_iter().filter(|at| !code[..*at].ends_with("::"));
    let used = [format!("use {name};"), format!("use {name} as "), format!("extern crate {name}")];
    path.chain(used.iter().flat_map(|text| places(code, text))).collect()
}

/// Where a path is named, in full or as a group: `std::sync::{Arc, Mutex}`.
fn path_named(code: &str, path: &str) -> Vec<usize> {
    let full = places(code, path);
    let mut found: Vec<usize> =
        full.into_iter().filter(|at| !code[at + path.len()..].starts_with(is_word)).collect();
    let (parent, name) = path.rsplit_once("::").expect("a path of two names at least");
    let group = format!("{parent}::{{");
    for at in places(code, &group) {
        if first_names(&code[at + parent.len() + 2..]).iter().any(|first| first == name) {
            found.push(at);
        }
    }
    found
}

fn check_calls(source: &Source, code: &str) -> Broken {
    if EXCUSED.iter().any(|(path, _)| *path == source.path) {
        return Vec::new();
    }
    let found = |(call, why): &(&str, &str)| -> Broken {
        code.match_indices(call)
            .filter(|(at, _)| call.starts_with('.') || !code[..*at].ends_with(is_word))
            .map(|(at, _)| format!("{}:{}: `{call}`: {why}", source.path, line_of(code, at)))
            .collect()
    };
    CALLS.iter().flat_map(found).collect()
}

fn check_words(source: &Source) -> Broken {
    let mut broken = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        for word in WORDS.iter().filter(|word| line.contains(**word)) {
            broken.push(format!("{}:{number}: the word `{word}`", source.path));
        }
    }
    broken
}

/// Every file begins with what it is about.
fn check_docs(source: &Source) -> Broken {
    let mut broken = Vec::new();
    if source.path.ends_with("/mod.rs") {
        broken.push(format!("{}: `foo.rs` beside `foo/`, not `foo/mod.rs`", source.path));
    }
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//! ") {
        broken.push(format!("{}:1: a file begins with `//!` and its purpose", source.path));
    }
    broken
}

/// Every dependency of `Cargo.toml` has a row in [`MET_IN`], and every row a dependency.
fn check_manifest(manifest: &str) -> Broken {
    let mut section = "";
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]"
            && let Some((name, _)) = line.split_once(['=', '.'])
            && !line.starts_with('#')
        {
            names.push(name.trim().trim_matches('"').replace('-', "_"));
        }
    }
    let mut broken = Vec::new();
    for name in &names {
        if !MET_IN.iter().any(|(row, _)| row == name) {
            broken.push(format!("Cargo.toml: `{name}` has no row in MET_IN of tests/tidy.rs"));
        }
    }
    for (row, _) in MET_IN {
        if !names.iter().any(|name| name == row) {
            broken.push(format!("tests/tidy.rs: MET_IN names `{row}`, which is no dependency"));
        }
    }
    broken
}

/// Where `text` stands in `code` with no identifier running into it from the left.
fn places(code: &str, text: &str) -> Vec<usize> {
    let found = code.match_indices(text).map(|(at, _)| at);
    found.filter(|at| !code[..*at].ends_with(is_word)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The code with comments and the insides of literals blanked, lines kept.
fn without_text(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = text_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins there.
fn text_end(chars: &[char], at: usize) -> usize {
    let next = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let until = |from: usize, stop: &dyn Fn(usize) -> bool| {
        (from..chars.len()).find(|n| stop(*n)).unwrap_or(chars.len())
    };
    match chars[at] {
        '/' if next(1) == '/' => until(at, &|n| chars[n] == '\n'),
        '/' if next(1) == '*' => block_comment_end(chars, at),
        '"' => string_end(chars, at),
        'r' if !is_word(before(chars, at)) || before(chars, at) == 'b' => {
            let hashes = (1..).take_while(|n| next(*n) == '#').count();
            if next(1 + hashes) != '"' {
                return at;
            }
            let closes =
                |n: usize| chars[n] == '"' && (1..=hashes).all(|k| chars.get(n + k) == Some(&'#'));
            (until(at + 2 + hashes, &closes) + 1 + hashes).min(chars.len())
        }
        // A character, not a lifetime.
        '\'' if next(1) == '\\' => until(at + 3, &|n| chars[n] == '\'') + 1,
        '\'' if next(2) == '\'' => at + 3,
        _ => at,
    }
    .min(chars.len())
}

fn before(chars: &[char], at: usize) -> char {
    if at == 0 { ' ' } else { chars[at - 1] }
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut n = at + 1;
    while n < chars.len() {
        match chars[n] {
            '\\' => n += 2,
            '"' => return n + 1,
            _ => n += 1,
        }
    }
    chars.len()
}

/// Block comments nest.
fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut n, mut depth) = (at, 0);
    while n < chars.len() {
        match (chars[n], chars.get(n + 1)) {
            ('/', Some('*')) => (n, depth) = (n + 2, depth + 1),
            ('*', Some('/')) => (n, depth) = (n + 2, depth - 1),
            _ => n += 1,
        }
        if depth == 0 {
            return n;
        }
    }
    chars.len()
}

/// The code with every item under a `#[cfg(test)]` blanked, lines kept.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(at) = TEST_ONLY.iter().filter_map(|attribute| out.find(attribute)).min() {
        let end = item_end(&out, at);
        let blank: String =
            out[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &blank);
    }
    out
}

/// How test-only items are marked. Literals are blanked by now: features cannot be told apart.
const TEST_ONLY: &[&str] = &["#[cfg(test)]", "#[test]", "#[cfg(all(test,"];

/// Where the item with the attribute at `at` ends: its `;`, or the `}` of its first `{`.
fn item_end(code: &str, at: usize) -> usize {
    let body = at + code[at..].find(']').map_or(0, |n| n + 1);
    let mut depth = 0;
    for (n, c) in code[body..].char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return body + n + 1;
                }
            }
            ';' if depth == 0 => return body + n + 1,
            _ => {}
        }
    }
    code.len()
}

fn read_sources(root: &Path, folder: &str) -> Vec<Source> {
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source in UTF-8");
                let path = path.strip_prefix(root).expect("a path below the root");
                sources.push(Source { path: path.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    sources
}

/// The rules themselves are tested: each is broken on purpose, in a source made up for it.
mod planted {
    use super::*;

    fn broken(path: &str, code: &str) -> Broken {
        let text = format!("//! A source made up for a test.\n{code}\n");
        check(&Source { path: path.to_owned(), text })
    }

    #[track_caller]
    fn caught(path: &str, code: &str, complaint: &str) {
        let broken = broken(path, code);
        assert!(
            broken.len() == 1 && broken[0].starts_with(path) && broken[0].contains(complaint),
            "{code:?} in {path}: {broken:?}"
        );
    }

    #[track_caller]
    fn passes(path: &str, code: &str) {
        assert_eq!(broken(path, code), Vec::<String>::new(), "{code:?} in {path}");
    }

    #[test]
    fn a_dependency_the_wrong_way_round() {
        caught("src/txn/lock_queue.rs", "use crate::command::Spec;", "must not know `command`");
        caught("src/txn.rs", "fn f() { crate::actors::go(); }", "must not know `actors`");
        caught("src/txn/coordinator.rs", "use crate::{ids, net::packet};", "must not know `net`");
        caught("src/txn/a/b.rs", "use crate::{batch::{x, y}, config};", "`config`");
        caught("src/command/plan.rs", "use super::super::net::resp;", "must not know `net`");
        caught("src/command/plan.rs", "use crate::actors;", "must not know `actors`");
        caught("src/storage/log.rs", "use crate::net;", "must not know `net`");
        caught("src/net/listen.rs", "use crate::storage;", "must not know `storage`");
        caught("src/net/listen.rs", "use crate::config::Config;", "must not know `config`");
        caught("src/actors/node.rs", "use crate::cli;", "must not know `cli`");
        caught("src/main.rs", "fn main() { quorate::actors::node::start() }", "`actors`");
        caught("src/ids.rs", "use crate::error::Error;", "must not know `error`");
        caught("src/store/item.rs", "use crate::batch::Op;", "must not know `batch`");
        caught("src/txn/lock_queue.rs", "use crate::partition;", "must not know `partition`");
        caught("src/consensus/log.rs", "use crate::store;", "must not know `store`");
        caught("src/novel.rs", "", "has no row in MAY_KNOW");
        passes(
            "src/command/plan.rs",
            "use crate::{cluster::slots, ids::NodeId};\nuse super::spec;",
        );
        passes("src/actors/node.rs", "use crate::{store, net, storage};");
        passes("src/txn/lock_queue.rs", "use crate::txn::protocol;\npub(crate) fn f() {}");
    }

    #[test]
    fn a_foreign_crate_out_of_its_place() {
        caught("src/txn/lock_queue.rs", "use actix::prelude::*;", "`actix` is met in");
        caught("src/net/listen.rs", "fn f() { actix_rt::spawn(g()); }", "`actix_rt`");
        caught("src/net/frame.rs", "use rmp_serde;", "`rmp_serde` is met in");
        caught("src/cli/node.rs", "use fern as logger;", "`fern`");
        caught("src/command/spec.rs", "use tokio::sync;", "`tokio`");
        caught("src/actors/peer.rs", "use tokio::net::TcpStream;", "`tokio::net` is met in");
        caught("src/actors/peer.rs", "use tokio::{net, time};", "`tokio::net` is met in");
        passes("src/net/packet.rs", "use rmp_serde::encode;");
        passes("src/net/packet/codec.rs", "use rmp_serde::encode;");
        passes("src/net/frame.rs", "mod xrmp_serde {}\nuse self::xrmp_serde::encode;");
        passes("src/net/frame.rs", "#[cfg(test)]\nmod tests { use rmp_serde::encode; }");
        passes("src/actors/peer.rs", "use tokio::time::Instant;");
    }

    #[test]
    fn a_clock_or_lock_or_map_in_node_code() {
        caught("src/txn/lock_queue.rs", "use std::sync::{Arc, Mutex};", "met in nowhere");
        caught("src/actors/node.rs", "type L = std::sync::RwLock<u8>;", "met in nowhere");
        caught("src/txn/lock_queue.rs", "use std::time::{Duration, Instant};", "Instant");
        caught("src/txn/lock_queue.rs", "use std::collections::HashMap;", "met in nowhere");
        caught("src/command/server.rs", "use std::time::SystemTime;", "SystemTime");
        passes("src/txn/lock_queue.rs", "use std::time::Duration;\nuse std::sync::Arc;");
    }

    #[test]
    fn a_call_that_can_panic() {
        caught("src/txn/lock_queue.rs", "fn f() { g().unwrap() }", ".unwrap()");
        caught("src/net/resp.rs", "fn f() {\n    g()\n        .expect(\"a\")\n}", ".rs:4:");
        caught("src/net/resp.rs", "fn f() { panic!(\"no\") }", "panic!(");
        caught("src/net/resp.rs", "fn f() { todo!() }", "finish it");
        passes("src/net/resp.rs", "fn f() { g().unwrap_or(1); assert!(true); }");
        passes("src/net/resp.rs", "/// Not `x.unwrap()`.\nfn f() { g(\".unwrap()\") }");
        passes("src/net/resp.rs", "#[test]\nfn f() { g().unwrap() }\nfn g() {}");
    }

    #[test]
    fn code_after_the_tests_is_seen() {
        caught(
            "src/net/resp.rs",
            "#[cfg(test)]\nmod tests { fn a() { b().unwrap(); } }\nfn f() { g().unwrap() }",
            ".rs:4:",
        );
        caught("src/net/resp.rs", "#[cfg(test)]\nuse a::b;\nfn f() { g().unwrap() }", ".rs:4:");
    }

    #[test]
    fn literals_and_comments_do_not_hide_code() {
        for text in [
            "let a = '\"'; ",
            "let a = '\\''; ",
            "let a = b'{'; ",
            "let a = \"\\\"\"; ",
            "let a = r#\"\"\"#; ",
            "let a = br\"\\\"; ",
            "/* /* */ \" */ ",
            "// \"\n",
            "let a: &'static str = \"\"; ",
        ] {
            let code = format!("fn f<'a>() {{ {text}g().unwrap() }}");
            assert_eq!(broken("src/net/resp.rs", &code).len(), 1, "{code}");
        }
    }

    #[test]
    fn a_name_for_two_types() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let one = source("src/txn/lock_queue.rs", "pub(super) struct Place<'a>(u8);\nenum Own {}");
        let other = source("src/store/item.rs", "#[derive(Debug)]\npub enum Place {\n}\n");
        let inside = source("src/batch.rs", "fn f() {\n    struct Own;\n}\n");
        let broken = check_names(&[one, other, inside]);
        assert!(broken.len() == 1 && broken[0].contains("`Place`"), "{broken:?}");
    }

    #[test]
    fn a_file_that_is_not_on_the_map() {
        let map = "src/main.rs  starts\nsrc/cli.rs, cli/  roles\nsrc/txn/  PURE: commits\n  \
                   protocol.rs  messages\nsrc/net/  bytes\n";
        for known in ["src/main.rs", "src/txn.rs", "src/txn/protocol.rs", "src/txn/protocol/a.rs"] {
            assert!(is_on_map(known, map), "{known}");
        }
        assert!(is_on_map("src/net/frame.rs", map) && is_on_map("src/cli/run.rs", map));
        for novel in ["src/novel.rs", "src/txn/novel.rs", "src/novel/a.rs"] {
            assert!(!is_on_map(novel, map), "{novel}");
        }
    }

    #[test]
    fn words_of_unfinished_work() {
        caught("src/net/resp.rs", "// TODO: more", "the word `TODO`");
        caught("src/net/resp.rs", "// see /work/elsewhere", "the word `/work/`");
    }

    #[test]
    fn a_file_without_its_purpose() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let missing = check(&source("src/net/resp.rs", "use std::fmt;\n"));
        assert!(missing.len() == 1 && missing[0].contains("its purpose"), "{missing:?}");
        let misplaced = check(&source("src/net/mod.rs", "//! Sockets.\n"));
        assert!(misplaced.len() == 1 && misplaced[0].contains("mod.rs"), "{misplaced:?}");
    }

    #[test]
    fn a_dependency_without_a_row() {
        let rows: String = MET_IN
            .iter()
            .map(|(name, _)| format!("{} = \"1\"\n", name.replace('_', "-")))
            .collect();
        let manifest = format!("[dependencies]\n{rows}");
        assert_eq!(check_manifest(&manifest), Vec::<String>::new());
        let more = check_manifest(&format!("{manifest}novel-crate = {{ version = \"1\" }}\n"));
        assert!(more.len() == 1 && more[0].contains("novel_crate"), "{more:?}");
        let fewer = check_manifest(&manifest.replace("fern = \"1\"\n", ""));
        assert!(fewer.len() == 1 && fewer[0].contains("`fern`"), "{fewer:?}");
        let dev = check_manifest(&format!("{manifest}\n[dev-dependencies]\nproptest = \"1\"\n"));
        assert_eq!(dev, Vec::<String>::new());
    }
}
