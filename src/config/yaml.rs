//! YAML as a tree whose every value knows its line, and the questions a reader of settings asks
//! of it.
//!
//! The tree stands between the YAML crate and the settings so that each message is ours: it names
//! the place, the field by its whole path, and what would be right. Deriving the settings straight
//! from the crate would give its words, and its positions only where it keeps them.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    line: u64,
    column: u64,
}

impl Place {
    /// Where a message points that has nowhere better to point.
    const START: Place = Place { line: 1, column: 1 };

    fn of(location: serde_saphyr::Location) -> Place {
        Place { line: location.line().max(1), column: location.column().max(1) }
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    place: Place,
    /// The field's whole path, or nothing when the text is no YAML at all.
    path: String,
    problem: String,
}

impl Fault {
    /// The message as the operator reads it.
    pub(super) fn render(&self, source: &str) -> String {
        let Fault { place: Place { line, column }, path, problem } = self;
        let colon = if path.is_empty() { "" } else { ": " };
        format!("{source}:{line}:{column}: {path}{colon}{problem}")
    }
}

/// A value with its place.
#[derive(Debug)]
pub(super) struct Tree {
    value: Value,
    place: Place,
}

#[derive(Debug)]
enum Value {
    Null,
    Bool(bool),
    Number(i128),
    Fraction(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(Spanned<String>, Tree)>),
}

impl Tree {
    /// Reads one document.
    pub(super) fn parse(text: &str) -> Result<Tree, Fault> {
        serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location().map_or(Place::START, Place::of);
            let problem = UserMessageFormatter.format_message(error.without_snippet()).into_owned();
            Fault { place, path: String::new(), problem }
        })
    }

    fn kind(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            Value::Fraction(value) => value.to_string(),
            Value::Text(value) => format!("{value:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a group of fields".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Tree { value, place: Place::of(referenced) })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        // Past every range that a setting has, so the exact number no longer matters.
        Ok(Value::Number(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Fraction(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(tree) = seq.next_element()? {
            list.push(tree);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Value::Map(fields))
    }
}

/// A group of fields whose names are all known.
pub(super) struct Section<'a> {
    path: String,
    place: Place,
    fields: &'a [(Spanned<String>, Tree)],
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn root(tree: &'a Tree, known: &[&str]) -> Result<Section<'a>, Fault> {
        Field { path: String::new(), tree }.section(known)
    }

    /// The field of this name; one that is left empty is as good as left out.
    pub(super) fn get(&self, name: &str) -> Option<Field<'a>> {
        let (_, tree) = self.fields.iter().find(|(key, _)| key.value == name)?;
        if matches!(tree.value, Value::Null) {
            return None;
        }
        Some(Field { path: join(&self.path, name), tree })
    }

    /// The field of this name, which must be there; `right` says what it holds.
    pub(super) fn need(&self, name: &str, right: &str) -> Result<Field<'a>, Fault> {
        self.get(name).ok_or_else(|| Fault {
            place: self.place,
            path: join(&self.path, name),
            problem: format!("is missing; {right}"),
        })
    }

    /// Refuses the field if it is there, because what it asks for is not built yet.
    pub(super) fn refuse(&self, name: &str, why: &str) -> Result<(), Fault> {
        self.get(name).map_or(Ok(()), |field| Err(field.fault(why)))
    }
}

/// A value with the path that leads to it.
pub(super) struct Field<'a> {
    path: String,
    tree: &'a Tree,
}

impl<'a> Field<'a> {
    /// What is wrong with this value.
    pub(super) fn fault(&self, problem: impl Into<String>) -> Fault {
        Fault { place: self.tree.place, path: self.path.clone(), problem: problem.into() }
    }

    fn expected(&self, what: &str) -> Fault {
        self.fault(format!("expected {what}, found {}", self.tree.kind()))
    }

    /// A group of fields, none of them unknown.
    pub(super) fn section(self, known: &[&str]) -> Result<Section<'a>, Fault> {
        let Value::Map(fields) = &self.tree.value else {
            return Err(self.expected("fields of the form `name: value`"));
        };
        for (key, _) in fields {
            if known.contains(&key.value.as_str()) {
                continue;
            }
            let hint = match nearest(&key.value, known) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => format!("known here: {}", known.join(", ")),
            };
            return Err(Fault {
                place: Place::of(key.referenced),
                path: join(&self.path, &key.value),
                problem: format!("unknown field; {hint}"),
            });
        }
        Ok(Section { path: self.path, place: self.tree.place, fields })
    }

    /// A list's values.
    pub(super) fn list(&self) -> Result<Vec<Field<'a>>, Fault> {
        let Value::List(list) = &self.tree.value else {
            return Err(self.expected("a list"));
        };
        let field = |(index, tree)| Field { path: format!("{}[{index}]", self.path), tree };
        Ok(list.iter().enumerate().map(field).collect())
    }

    /// Text.
    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        match &self.tree.value {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::Number(_) | Value::Fraction(_) => Err(self.fault(format!(
                "expected text, found {}; quote it if that is meant",
                self.tree.kind()
            ))),
            _ => Err(self.expected("text")),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Fault> {
        let found = match &self.tree.value {
            Value::Text(text) => words.iter().find(|(word, _)| word == text),
            // YAML's own words for a boolean: `off` is one of the log levels.
            Value::Bool(false) => words.iter().find(|(word, _)| *word == "off"),
            _ => None,
        };
        let names = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let (_, value) = found.ok_or_else(|| self.expected(&format!("one of {}", names())))?;
        Ok(*value)
    }

    /// A whole number within a range.
    pub(super) fn number<T>(&self, range: RangeInclusive<T>) -> Result<T, Fault>
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let Value::Number(number) = self.tree.value else {
            return Err(self.expected("a whole number"));
        };
        match T::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(self.fault(format!(
                "{number} is out of range; it may be {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// A number of bytes: `65536` or `64KiB`.
    pub(super) fn bytes<T>(&self, range: RangeInclusive<T>) -> Result<T, Fault>
    where
        T: TryFrom<u64> + PartialOrd + fmt::Display,
    {
        const UNITS: [(&str, u64); 4] =
            [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        let bytes = self.quantity(&UNITS, "a size such as 65536, 64KiB or 512MiB")?;
        match T::try_from(bytes) {
            Ok(bytes) if range.contains(&bytes) => Ok(bytes),
            _ => Err(self.fault(format!(
                "{bytes} bytes are out of range; it may be {} to {} bytes",
                range.start(),
                range.end()
            ))),
        }
    }

    /// A duration: `5000` (milliseconds) or `5s`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, Fault> {
        const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let ms = self.quantity(&UNITS, "a time such as 5000 (milliseconds), 500ms, 5s or 2m")?;
        let duration = Duration::from_millis(ms);
        if !range.contains(&duration) {
            return Err(self.fault(format!(
                "{ms} ms is out of range; it may be {} to {} ms",
                range.start().as_millis(),
                range.end().as_millis()
            )));
        }
        Ok(duration)
    }

    /// A number in the first of the units, or digits followed by one of them.
    fn quantity(&self, units: &[(&str, u64)], what: &str) -> Result<u64, Fault> {
        let found = match &self.tree.value {
            Value::Number(number) => u64::try_from(*number).ok(),
            Value::Text(text) => {
                let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
                let unit = text[digits.len()..].trim_start();
                let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, by)| *by);
                digits.parse::<u64>().ok().zip(factor).and_then(|(n, by)| n.checked_mul(by))
            }
            _ => None,
        };
        found.ok_or_else(|| self.expected(what))
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

/// The known name closest to a mistyped one, if any is close enough to be meant.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let (far, best) = known.iter().map(|known| (distance(name, known), *known)).min()?;
    (far <= 1 + best.len() / 4).then_some(best)
}

/// Letters to insert, drop or change to get from one name to the other (Levenshtein 1966).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}
