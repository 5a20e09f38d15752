use super::*;
use goldenscript::{ArgumentConsumer, Context};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::str::FromStr;

fn index(table: u8) -> TableIndex {
    TableIndex::new(table).unwrap()
}

/// A step of a run against the model. Keys are numbers, so that small ranges make them meet.
#[derive(Clone, Debug)]
enum Step {
    Begin { later: u64, access: Access },
    Get { key: u16 },
    Put { key: u16, len: usize, expires: Option<Expiry> },
    Append { key: u16, len: usize },
    Write { key: u16, len: usize },
    SetExpiry { key: u16, expires: Option<u64> },
    Remove { key: u16 },
    Clear,
    Expire { key: u16, ago: u64 },
    TakeExpired,
    KeyState { key: u16 },
    Install { key: u16, held: Option<(usize, Option<u64>)> },
    Sweep { budget: usize },
    Scan { budget: usize },
}

#[derive(Clone, Copy, Debug)]
enum Expiry {
    Keep,
    In(u64),
}

/// What the tables should hold, told by the contract alone.
#[derive(Default)]
struct Model {
    items: BTreeMap<(TableIndex, Vec<u8>), HeldValue>,
    noted: BTreeSet<(TableIndex, Vec<u8>)>,
    now: Millis,
    writes: bool,
}

impl Model {
    /// What the key holds; an expired item is removed or noted.
    fn live(&mut self, at: &(TableIndex, Vec<u8>)) -> Option<&mut HeldValue> {
        let expired = self.items.get(at).is_some_and(|held| expired(held, self.now));
        if expired && self.writes {
            self.items.remove(at);
        } else if expired {
            self.noted.insert(at.clone());
            return None;
        }
        self.items.get_mut(at)
    }
}

const EMPTY: HeldValue =
    HeldValue { value: ValueBuf { encoding: Encoding::Plain, content: Vec::new() }, expires: None };

fn expired(held: &HeldValue, now: Millis) -> bool {
    held.expires.is_some_and(|moment| moment <= now)
}

/// A value that tells steps apart.
fn bytes(step: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ step.wrapping_mul(31)) as u8).collect()
}

fn run(steps: &[(u8, Step)], seed: u64) {
    let hasher = KeyHasher::new(seed);
    let mut tables = Tables::new(hasher);
    let mut model = Model { writes: true, ..Model::default() };
    for (number, (table, step)) in steps.iter().enumerate() {
        let table = index(*table);
        let at = |key: &u16| (table, format!("key:{key}").into_bytes());
        let hash = |at: &(TableIndex, Vec<u8>)| hasher.hash(&at.1);
        match step {
            Step::Begin { later, access } => {
                model.now = Millis(model.now.0 + later);
                model.writes = *access == Access::Write;
                tables.begin(model.now, *access);
            }
            Step::Get { key } => {
                let at = at(key);
                let found = tables.get(table, hash(&at), &at.1);
                let held = found.map(|item| {
                    assert_eq!(item.key(), at.1);
                    HeldValue {
                        value: ValueBuf {
                            encoding: item.encoding(),
                            content: item.content().to_vec(),
                        },
                        expires: item.expires(),
                    }
                });
                assert_eq!(held.as_ref(), model.live(&at).map(|held| &*held));
            }
            Step::Put { key, len, expires } if model.writes => {
                let at = at(key);
                let value = bytes(number, *len);
                let kept = model.live(&at).and_then(|held| held.expires);
                let (how, expires) = match expires {
                    None => (Expires::Never, None),
                    Some(Expiry::Keep) => (Expires::Keep, kept),
                    Some(Expiry::In(ms)) => {
                        let moment = Millis(model.now.0 + ms);
                        (Expires::At(moment), Some(moment))
                    }
                };
                tables.put(table, hash(&at), &at.1, &value, how);
                model.items.insert(at, HeldValue { value: ValueBuf::string(value), expires });
            }
            Step::Append { key, len } if model.writes => {
                let at = at(key);
                let suffix = bytes(number, *len);
                let encoding = model.live(&at).map_or(Encoding::Plain, |_| Encoding::Raw);
                let held = model.items.entry(at.clone()).or_insert(EMPTY);
                held.value.encoding = encoding;
                held.value.content.extend_from_slice(&suffix);
                assert_eq!(
                    tables.append(table, hash(&at), &at.1, &suffix),
                    held.value.content.len()
                );
            }
            Step::Write { key, len } if model.writes => {
                let at = at(key);
                model.live(&at);
                let held = model.items.entry(at.clone()).or_insert(EMPTY);
                held.value.encoding = Encoding::Raw;
                held.value.content.resize(*len, 0);
                let value = tables.value_mut(table, hash(&at), &at.1, *len);
                assert_eq!(value, held.value.content);
                if let (Some(last), Some(same)) = (value.last_mut(), held.value.content.last_mut())
                {
                    (*last, *same) = (number as u8, number as u8);
                }
            }
            Step::SetExpiry { key, expires } if model.writes => {
                let at = at(key);
                let moment = expires.map(|ms| Millis(model.now.0 + ms));
                let found = model.live(&at).map(|held| held.expires = moment).is_some();
                assert_eq!(tables.set_expiry(table, hash(&at), &at.1, moment), found);
            }
            Step::Remove { key } if model.writes => {
                let at = at(key);
                let found = model.live(&at).is_some();
                model.items.remove(&at);
                assert_eq!(tables.remove(table, hash(&at), &at.1), found);
            }
            Step::Clear if model.writes => {
                tables.clear(table);
                model.items.retain(|at, _| at.0 != table);
            }
            // These write, and the operation only reads.
            Step::Put { .. }
            | Step::Append { .. }
            | Step::Write { .. }
            | Step::SetExpiry { .. }
            | Step::Remove { .. }
            | Step::Clear => {}
            Step::Expire { key, ago } => {
                let at = at(key);
                let moment = Millis(model.now.0.saturating_sub(*ago));
                let due = model.items.get(&at).is_some_and(|held| expired(held, moment));
                assert_eq!(tables.expire(table, &at.1, moment), due);
                if due {
                    model.items.remove(&at);
                }
            }
            Step::TakeExpired => {
                assert_eq!(tables.has_expired(), !model.noted.is_empty());
                let noted = std::mem::take(&mut model.noted);
                assert_eq!(tables.take_expired(), noted.into_iter().collect::<Vec<_>>());
            }
            Step::KeyState { key } => {
                let at = at(key);
                let held = model.live(&at).map(|held| held.clone());
                assert_eq!(tables.image(table, &at.1), KeyState { table, key: at.1, held });
            }
            Step::Install { key, held } => {
                let at = at(key);
                let held = held.map(|(len, ms)| HeldValue {
                    value: ValueBuf {
                        encoding: Encoding::ALL[len % Encoding::ALL.len()],
                        content: bytes(number, len),
                    },
                    expires: ms.map(|ms| Millis(model.now.0 + ms)),
                });
                tables.install(KeyState { table, key: at.1.clone(), held: held.clone() });
                match held {
                    Some(held) => drop(model.items.insert(at, held)),
                    None => drop(model.items.remove(&at)),
                }
            }
            Step::Sweep { budget } => {
                let mut cursor = 0;
                loop {
                    cursor = tables.sweep(table, cursor, *budget);
                    if cursor == 0 {
                        break;
                    }
                }
                for (at, held) in &model.items {
                    if at.0 == table && expired(held, model.now) {
                        model.noted.insert(at.clone());
                    }
                }
            }
            Step::Scan { budget } => {
                let mut met = BTreeMap::new();
                let mut cursor = 0;
                loop {
                    cursor = tables.scan(table, cursor, *budget, &mut |item| {
                        let twice = met.insert(item.key().to_vec(), item.content().to_vec());
                        assert!(twice.is_none());
                    });
                    if cursor == 0 {
                        break;
                    }
                }
                let live: BTreeMap<_, _> = model
                    .items
                    .iter()
                    .filter(|(at, held)| at.0 == table && !expired(held, model.now))
                    .map(|(at, held)| (at.1.clone(), held.value.content.clone()))
                    .collect();
                assert_eq!(met, live);
                assert_eq!(tables.pick(table, seed).is_some(), !live.is_empty());
            }
        }
        let held = || model.items.iter().filter(|(at, _)| at.0 == table);
        // Counting the model is slow where it is great.
        if model.items.len() < 100 || number % 1000 == 0 {
            assert_eq!(tables.len(table), held().count());
            let volatile = held().filter(|(_, held)| held.expires.is_some()).count();
            assert_eq!(tables.volatile(table), volatile);
        }
    }
    // Whatever was done, the memory counted is that of the items there are.
    let items: usize = model
        .items
        .iter()
        .map(|(at, held)| Item::new(&at.1, &held.value.content, held.expires).bytes())
        .sum();
    tables.begin(model.now, Access::Write);
    let before = tables.bytes();
    for at in model.items.keys() {
        tables.expire(at.0, &at.1, Millis(u64::MAX));
        tables.install(KeyState { table: at.0, key: at.1.clone(), held: None });
    }
    assert!(before - tables.bytes() >= items, "{before} - {} < {items}", tables.bytes());
    TableIndex::all().for_each(|table| tables.clear(table));
    assert_eq!(tables.bytes(), 0);
}

fn step(keys: u16) -> impl Strategy<Value = Step> {
    let key = 0..keys;
    // Short, long, and around the sizes at which an allocation grows.
    let len = prop_oneof![6 => 0..20usize, 3 => 60..140usize, 1 => 3000..9000usize];
    let expires = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Expiry::Keep)),
        3 => (0..60u64).prop_map(|ms| Some(Expiry::In(ms)))
    ];
    let access = prop_oneof![2 => Just(Access::Write), 1 => Just(Access::Read)];
    let held = proptest::option::of((0..200usize, proptest::option::of(0..60u64)));
    prop_oneof![
        6 => (0..20u64, access).prop_map(|(later, access)| Step::Begin { later, access }),
        4 => key.clone().prop_map(|key| Step::Get { key }),
        8 => (key.clone(), len.clone(), expires)
            .prop_map(|(key, len, expires)| Step::Put { key, len, expires }),
        3 => (key.clone(), len.clone()).prop_map(|(key, len)| Step::Append { key, len }),
        2 => (key.clone(), len).prop_map(|(key, len)| Step::Write { key, len }),
        3 => (key.clone(), proptest::option::of(0..60u64))
            .prop_map(|(key, expires)| Step::SetExpiry { key, expires }),
        3 => key.clone().prop_map(|key| Step::Remove { key }),
        2 => (key.clone(), 0..30u64).prop_map(|(key, ago)| Step::Expire { key, ago }),
        1 => Just(Step::TakeExpired),
        1 => key.clone().prop_map(|key| Step::KeyState { key }),
        1 => (key, held).prop_map(|(key, held)| Step::Install { key, held }),
    ]
}

/// A step, at times one that takes in the whole table.
fn mixed(keys: u16) -> impl Strategy<Value = (u8, Step)> {
    let whole = prop_oneof![
        1 => Just(Step::Clear),
        3 => (1..100usize).prop_map(|budget| Step::Sweep { budget }),
        3 => (1..100usize).prop_map(|budget| Step::Scan { budget }),
    ];
    (0..3u8, prop_oneof![20 => step(keys), 1 => whole])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behave_as_their_model(steps in proptest::collection::vec(mixed(12), 1..300), seed: u64) {
        run(&steps, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3,
        max_shrink_iters: 50,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Keys enough for segments to split; time passes slowly, so few are expired.
    #[test]
    fn behave_as_their_model_when_great(
        mut steps in proptest::collection::vec((Just(0), step(u16::MAX)), 30_000),
        seed: u64,
    ) {
        for (number, (_, step)) in steps.iter_mut().enumerate() {
            match step {
                Step::Begin { later, access } if number % 10 != 0 => {
                    (*later, *access) = (0, Access::Write);
                }
                Step::Put { expires: expires @ Some(Expiry::In(_)), .. } if number % 10 != 0 => {
                    *expires = None;
                }
                Step::Begin { .. } if number % 1000 == 10 => *step = Step::Scan { budget: 100 },
                _ => {}
            }
        }
        run(&steps, seed);
    }
}

#[test]
fn a_small_item_takes_little_memory() {
    let hasher = KeyHasher::new(1);
    let mut tables = Tables::new(hasher);
    let table = TableIndex::default();
    let mut most: f64 = 0.0;
    for n in 0..1_000_000u32 {
        let key = format!("key:{n:012}");
        tables.put(table, hasher.hash(key.as_bytes()), key.as_bytes(), &[b'v'; 64], Expires::Never);
        // All segments split at nearly the same time, so the cost varies as a table grows.
        if n >= 100_000 && n % 1000 == 0 {
            most = most.max(tables.bytes() as f64 / f64::from(n + 1));
        }
    }
    assert_eq!(tables.len(table), 1_000_000);
    assert!(most <= 126.0, "{most} bytes a key at worst");
    let last = tables.bytes() as f64 / 1e6;
    assert!(last <= 116.0, "{last} bytes a key");
}

#[test]
fn an_expiry_is_moved_no_further_than_can_be_told() {
    let mut tables = Tables::new(KeyHasher::new(1));
    let (table, hash) = (index(0), tables.hasher().hash(b"k"));
    tables.begin(Millis(1), Access::Write);
    for (expires, moved) in [(Millis(50), Millis(57)), (Millis::LATEST, Millis::LATEST)] {
        tables.put(table, hash, b"k", b"v", Expires::At(expires));
        tables.rebase(table, b"k", Millis(3), Millis(10));
        assert_eq!(tables.get(table, hash, b"k").unwrap().expires(), Some(moved));
    }
}

#[test]
fn notes_of_expired_keys_are_bounded() {
    let hasher = KeyHasher::new(1);
    let mut tables = Tables::new(hasher);
    let table = TableIndex::default();
    for n in 0..3 * EXPIRED_NOTED_MAX {
        let key = n.to_string();
        let hash = hasher.hash(key.as_bytes());
        tables.put(table, hash, key.as_bytes(), b"", Expires::At(Millis(1)));
    }
    tables.begin(Millis(1), Access::Read);
    let mut rounds = 0;
    while tables.len(table) > 0 {
        tables.sweep(table, 0, usize::MAX);
        let noted = tables.take_expired();
        assert!((1..=EXPIRED_NOTED_MAX).contains(&noted.len()));
        noted.iter().for_each(|(table, key)| assert!(tables.expire(*table, key, Millis(1))));
        rounds += 1;
    }
    assert_eq!(rounds, 3);
}

#[test]
#[should_panic(expected = "an operation that reads does not write")]
fn a_read_that_writes_is_a_mistake_of_ours() {
    let mut tables = Tables::new(KeyHasher::new(1));
    tables.begin(Millis(0), Access::Read);
    tables.remove(TableIndex::default(), 0, b"key");
}

#[test]
fn tables_can_move_to_another_thread() {
    fn send<T: Send>() {}
    send::<Tables>();
}

/// `at MS` begins writing, `at MS read` begins reading. `put K=V.. [expires=MS|keep]`, `get K..`,
/// `append K=V..`, `write K LEN`, `expiry K [MS]`, `remove K..`, `clear`, `expire K MS`, `expired`,
/// `image K`, `install K [V] [expires=MS]`, `sweep`, `keys`, `count`; `table=N` for all.
struct Runner {
    tables: Tables,
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn show(value: &[u8], expires: Option<Millis>) -> String {
    let value = text(value);
    expires.map_or(value.clone(), |moment| format!("{value} until {}", moment.0))
}

fn pos<'a>(args: &mut ArgumentConsumer<'a>) -> Result<&'a str, Box<dyn Error>> {
    Ok(args.next_pos().ok_or("an argument is missing")?)
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &Context,
    ) -> Result<String, Box<dyn Error>> {
        let tables = &mut self.tables;
        let hasher = tables.hasher();
        let hash = |key: &str| hasher.hash(key.as_bytes());
        let mut out = String::new();
        let mut args = command.consume_args();
        let table = index(args.take_key("table").map_or(Ok(0), u8::from_str)?);
        let expires = args.take_key("expires");
        let moment = |text: &str| u64::from_str(text).map(Millis);
        match command.name.as_str() {
            "at" => {
                let now = moment(pos(&mut args)?)?;
                let access = match args.next_pos() {
                    None => Access::Write,
                    Some("read") => Access::Read,
                    Some(other) => return Err(format!("no access {other}").into()),
                };
                tables.begin(now, access);
            }
            "put" => {
                let expires = match expires {
                    None => Expires::Never,
                    Some("keep") => Expires::Keep,
                    Some(text) => Expires::At(moment(text)?),
                };
                while let Some((key, value)) = args.next_key() {
                    tables.put(table, hash(key), key.as_bytes(), value.as_bytes(), expires);
                }
            }
            "get" => {
                while let Some(key) = args.next_pos() {
                    let held = match tables.get(table, hash(key), key.as_bytes()) {
                        Some(item) => show(item.content(), item.expires()),
                        None => "absent".into(),
                    };
                    writeln!(out, "{key}: {held}")?;
                }
            }
            "append" => {
                while let Some((key, value)) = args.next_key() {
                    let len = tables.append(table, hash(key), key.as_bytes(), value.as_bytes());
                    writeln!(out, "{key}: {len} bytes")?;
                }
            }
            "write" => {
                let (key, len) = (pos(&mut args)?, pos(&mut args)?.parse()?);
                let value = tables.value_mut(table, hash(key), key.as_bytes(), len);
                writeln!(out, "{key}: {}", text(value))?;
            }
            "expiry" => {
                let key = pos(&mut args)?;
                let expires = args.next_pos().map(moment).transpose()?;
                let found = tables.set_expiry(table, hash(key), key.as_bytes(), expires);
                writeln!(out, "{key}: {}", if found { "set" } else { "absent" })?;
            }
            "remove" => {
                while let Some(key) = args.next_pos() {
                    let found = tables.remove(table, hash(key), key.as_bytes());
                    writeln!(out, "{key}: {}", if found { "removed" } else { "absent" })?;
                }
            }
            "clear" => tables.clear(table),
            "expire" => {
                let (key, now) = (pos(&mut args)?, moment(pos(&mut args)?)?);
                let gone = tables.expire(table, key.as_bytes(), now);
                writeln!(out, "{key}: {}", if gone { "expired" } else { "not expired" })?;
            }
            "expired" => {
                for (table, key) in tables.take_expired() {
                    writeln!(out, "table {table}: {}", text(&key))?;
                }
            }
            "image" => {
                let key = pos(&mut args)?;
                let held = match tables.image(table, key.as_bytes()).held {
                    Some(held) => show(&held.value.content, held.expires),
                    None => "absent".into(),
                };
                writeln!(out, "{key}: {held}")?;
            }
            "install" => {
                let key = pos(&mut args)?.as_bytes().to_vec();
                let expires = expires.map(moment).transpose()?;
                let value = args.next_pos();
                let held = value.map(|value| HeldValue { value: ValueBuf::string(value), expires });
                tables.install(KeyState { table, key, held });
            }
            "sweep" => {
                let cursor = tables.sweep(table, 0, usize::MAX);
                assert_eq!(cursor, 0);
            }
            "keys" => {
                let mut keys = Vec::new();
                tables.scan(table, 0, usize::MAX, &mut |item| keys.push(text(item.key())));
                keys.sort_unstable();
                writeln!(out, "{}", keys.join(" "))?;
            }
            "count" => {
                let (len, volatile) = (tables.len(table), tables.volatile(table));
                writeln!(out, "{len} items, {volatile} volatile")?;
            }
            name => return Err(format!("no command {name}").into()),
        }
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    for script in ["values", "expiry", "images"] {
        let mut runner = Runner { tables: Tables::new(KeyHasher::new(1)) };
        goldenscript::run(&mut runner, format!("tests/scripts/table/{script}")).unwrap();
    }
}
