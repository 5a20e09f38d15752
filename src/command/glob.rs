//! Patterns as `KEYS` and `CONFIG GET` have them: `*`, `?`, `[a-z]`, `[^a]`, `\` before a
//! character that stands for itself.

/// Whether `text` as a whole matches `pattern`.
///
/// Follows Redis's matcher in its corners too: an unclosed class ends with the pattern, a reversed
/// range is turned around. Only the last `*` is ever tried again, so the time is bounded by the
/// product of the lengths.
pub fn matches(pattern: &[u8], text: &[u8], ignore_case: bool) -> bool {
    matches_counted(pattern, text, ignore_case, &mut 0)
}

/// As [`matches()`], and adds to `work` about how many bytes were compared.
pub fn matches_counted(pattern: &[u8], text: &[u8], ignore_case: bool, work: &mut usize) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when the rest does not match: behind the last star, one character later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        let step = match text.get(t) {
            Some(&byte) => match_one(&pattern[p..], byte, ignore_case, work),
            None if p == pattern.len() => return true,
            None => return false,
        };
        match (step, &mut retry) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((after_star, from))) => {
                *from += 1;
                p = *after_star;
                t = *from;
            }
            (None, None) => return false,
        }
    }
}

/// How many bytes of the pattern stand for this one byte, if they match it.
fn match_one(pattern: &[u8], byte: u8, ignore_case: bool, work: &mut usize) -> Option<usize> {
    *work += 1;
    let fold = |byte: u8| if ignore_case { byte.to_ascii_lowercase() } else { byte };
    let byte = fold(byte);
    match *pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ref class @ ..] => {
            let (length, within) = match_class(class, byte, fold);
            *work += length;
            within.then_some(1 + length)
        }
        [b'\\', literal, ..] => (fold(literal) == byte).then_some(2),
        [literal, ..] => (fold(literal) == byte).then_some(1),
    }
}

/// The length of a class behind its bracket, and whether the byte is in it.
fn match_class(class: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> (usize, bool) {
    let inverted = class.first() == Some(&b'^');
    let mut at = usize::from(inverted);
    let mut within = false;
    loop {
        match class[at..] {
            [] => break,
            [b'\\', literal, ..] => {
                within |= fold(literal) == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [low, b'-', high, ..] => {
                let (low, high) = (fold(low.min(high)), fold(low.max(high)));
                within |= (low..=high).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                within |= fold(literal) == byte;
                at += 1;
            }
        }
    }
    (at, within != inverted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let cases = [
            ("*", "", true),
            ("*", "abc", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "aXbYbZc", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hbllo", true),
            ("h[a-b]llo", "hcllo", false),
            ("[a", "a", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("[\\]]", "]", true),
            ("**a", "bba", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes(), false),
                expected,
                "{pattern} {text}"
            );
        }
        assert!(matches(b"MAX*", b"maxmemory", true));
        assert!(!matches(b"MAX*", b"maxmemory", false));
        assert!(matches(b"[M-N]ax", b"max", true));
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(40) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(2000).as_bytes(), false));
    }

    #[test]
    fn work_is_counted_where_it_is_done() {
        let work = |pattern: &str, text: &str| {
            let mut work = 0;
            matches_counted(pattern.as_bytes(), text.as_bytes(), false, &mut work);
            work
        };
        assert_eq!(work("abc", "abd"), 3);
        assert_eq!(work("x*", &"a".repeat(1000)), 1);
        let class = format!("*[{}]x", "b".repeat(100));
        assert!(work(&class, &"a".repeat(100)) >= 10_000);
        assert!(work("*aaaaaaaaab", &"a".repeat(100)) >= 900);
    }
}
