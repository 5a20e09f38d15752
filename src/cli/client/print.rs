//! Replies as redis-cli prints them: for people, or bare.

use crate::net::resp::Value;
use std::io::Write;

/// What a reply is printed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// For people: types named, strings quoted, elements numbered.
    Terminal,
    /// For programs: what it is and nothing else.
    Raw,
}

/// A reply to this command, printed.
pub(super) fn print(value: &Value, command: &[Vec<u8>], style: Style) -> Vec<u8> {
    let mut out = Vec::new();
    match style {
        // Texts for people end their lines themselves.
        Style::Terminal if is_text(command) => raw(value, &mut out),
        Style::Terminal => terminal(value, "", &mut out),
        Style::Raw => {
            raw(value, &mut out);
            out.push(b'\n');
        }
    }
    out
}

/// Whether a command answers with a text that is laid out for people already.
fn is_text(command: &[Vec<u8>]) -> bool {
    let word = |at: usize| command.get(at).map(|word| word.to_ascii_lowercase());
    let second = word(1).unwrap_or_default();
    match word(0).unwrap_or_default().as_slice() {
        b"info" | b"lolwut" => true,
        b"debug" => matches!(&second[..], b"htstats" | b"htstats-key" | b"client-eviction"),
        b"memory" => matches!(&second[..], b"malloc-stats" | b"doctor"),
        b"cluster" => command.len() == 2 && matches!(&second[..], b"nodes" | b"info"),
        b"client" => matches!(&second[..], b"list" | b"info"),
        b"latency" => match command.len() {
            2 => second == b"doctor",
            3 => second == b"graph",
            _ => false,
        },
        b"proxy" => second == b"info",
        _ => false,
    }
}

/// Appends lines; those after the first begin with `indent`, which their elder wrote already for
/// the first.
fn terminal(value: &Value, indent: &str, out: &mut Vec<u8>) {
    match value {
        Value::Error(text) => line(out, &["(error) ", text]),
        Value::Simple(text) => line(out, &[text]),
        Value::Int(number) => line(out, &["(integer) ", &number.to_string()]),
        Value::Double(number) => line(out, &["(double) ", &number.to_string()]),
        Value::Big(digits) => line(out, &[digits]),
        Value::Nil => line(out, &["(nil)"]),
        Value::Bool(true) => line(out, &["(true)"]),
        Value::Bool(false) => line(out, &["(false)"]),
        Value::Bulk(bytes) => {
            quote(bytes, out);
            out.push(b'\n');
        }
        Value::Verbatim(_, text) => {
            out.extend_from_slice(text);
            out.push(b'\n');
        }
        Value::Array(elements) => list(elements, ')', "(empty array)", indent, out),
        Value::Set(elements) => list(elements, '~', "(empty set)", indent, out),
        Value::Push(elements) => list(elements, ')', "(empty push)", indent, out),
        Value::Map(pairs) if pairs.is_empty() => line(out, &["(empty hash)"]),
        Value::Map(pairs) => {
            let numbers = Numbers::new(pairs.len(), '#', indent);
            for (at, (key, value)) in pairs.iter().enumerate() {
                numbers.push(at, indent, out);
                terminal(key, &numbers.inner, out);
                out.pop();
                out.extend_from_slice(b" => ");
                let begin = out.len();
                terminal(value, &numbers.inner, out);
                // What takes several lines begins on one of its own.
                if out[begin..out.len() - 1].contains(&b'\n') {
                    let line = format!("\n{}", numbers.inner);
                    out.splice(begin..begin, line.bytes());
                }
            }
        }
    }
}

fn list(elements: &[Value], sign: char, empty: &str, indent: &str, out: &mut Vec<u8>) {
    if elements.is_empty() {
        return line(out, &[empty]);
    }
    let numbers = Numbers::new(elements.len(), sign, indent);
    for (at, element) in elements.iter().enumerate() {
        numbers.push(at, indent, out);
        terminal(element, &numbers.inner, out);
    }
}

/// The numbers before elements, as wide as the last of them.
struct Numbers {
    width: usize,
    sign: char,
    /// What lines inside an element begin with.
    inner: String,
}

impl Numbers {
    fn new(count: usize, sign: char, indent: &str) -> Numbers {
        let width = count.to_string().len();
        Numbers { width, sign, inner: format!("{indent}{:1$}", "", width + 2) }
    }

    fn push(&self, at: usize, indent: &str, out: &mut Vec<u8>) {
        let indent = if at == 0 { "" } else { indent };
        let (width, number, sign) = (self.width, at + 1, self.sign);
        out.extend_from_slice(format!("{indent}{number:width$}{sign} ").as_bytes());
    }
}

fn line(out: &mut Vec<u8>, pieces: &[&str]) {
    for piece in pieces {
        out.extend_from_slice(piece.as_bytes());
    }
    out.push(b'\n');
}

/// Appends a string in quotes, with what cannot be printed as C would write it.
fn quote(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in bytes {
        match byte {
            b'\\' | b'"' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            0x07 => out.extend(b"\\a"),
            0x08 => out.extend(b"\\b"),
            b' '..=b'~' => out.push(byte),
            // Writing into memory does not fail.
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    out.push(b'"');
}

fn raw(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Error(text) => line(out, &[text]),
        Value::Simple(text) | Value::Big(text) => out.extend_from_slice(text.as_bytes()),
        Value::Bulk(text) | Value::Verbatim(_, text) => out.extend_from_slice(text),
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Double(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Nil => {}
        Value::Bool(true) => out.extend_from_slice(b"(true)"),
        Value::Bool(false) => out.extend_from_slice(b"(false)"),
        Value::Array(elements) | Value::Set(elements) | Value::Push(elements) => {
            for (at, element) in elements.iter().enumerate() {
                if at > 0 {
                    out.push(b'\n');
                }
                raw(element, out);
            }
        }
        Value::Map(pairs) => {
            for (at, (key, value)) in pairs.iter().enumerate() {
                if at > 0 {
                    out.push(b'\n');
                }
                raw(key, out);
                out.push(b' ');
                raw(value, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.into())
    }

    fn shown(value: &Value) -> String {
        String::from_utf8(print(value, &[], Style::Terminal)).unwrap()
    }

    #[test]
    fn nested_lists_are_indented() {
        let inner = Value::Array(vec![bulk("a"), Value::Int(-1)]);
        let list = Value::Array(vec![inner.clone(), Value::Nil, Value::Array(vec![]), inner]);
        let expected = "\
1) 1) \"a\"
   2) (integer) -1
2) (nil)
3) (empty array)
4) 1) \"a\"
   2) (integer) -1
";
        assert_eq!(shown(&list), expected);
    }

    #[test]
    fn maps_and_sets_are_told_from_lists() {
        let set = Value::Set(vec![Value::Bool(true), Value::Double(1.5)]);
        let map = Value::Map(vec![(bulk("a"), set), (bulk("b"), Value::Map(vec![]))]);
        let expected = "\
1# \"a\" => \n   1~ (true)
   2~ (double) 1.5
2# \"b\" => (empty hash)
";
        assert_eq!(shown(&map), expected);
    }

    #[test]
    fn numbers_are_as_wide_as_the_last() {
        let list = Value::Array((0..10).map(Value::Int).collect());
        let shown = shown(&list);
        assert!(shown.starts_with(" 1) (integer) 0\n 2) "), "{shown}");
        assert!(shown.ends_with("\n10) (integer) 9\n"), "{shown}");
    }

    #[test]
    fn strings_are_quoted_as_in_c() {
        let value = Value::Bulk(b"a\"\\\n\r\t\x07\x08\x00\x7f\xff".to_vec());
        assert_eq!(shown(&value), "\"a\\\"\\\\\\n\\r\\t\\a\\b\\x00\\x7f\\xff\"\n");
    }

    #[test]
    fn raw_replies_are_bare() {
        let print = |value: &Value| {
            String::from_utf8(print(value, &[b"get".to_vec()], Style::Raw)).unwrap()
        };
        assert_eq!(print(&Value::Nil), "\n");
        assert_eq!(print(&Value::Error("ERR no".into())), "ERR no\n\n");
        assert_eq!(print(&Value::Array(vec![bulk("a"), Value::Nil, bulk("b")])), "a\n\nb\n");
        assert_eq!(print(&Value::Map(vec![(bulk("a"), Value::Int(1))])), "a 1\n");
    }
}
