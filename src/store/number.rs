//! Integers as Redis reads them from strings.

/// The digits of `text` as an integer, if it is written the one way in which Redis writes it: no
/// plus sign, spaces, leading zeros or `-0`. So whatever reads as an integer can be stored as one
/// and read back unchanged.
#[inline]
pub fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let magnitude = match digits {
        [b'0'] if !negative => 0,
        [b'1'..=b'9', ..] if digits.len() <= 19 => {
            // Nineteen nines are less than 2^64.
            let mut magnitude = 0u64;
            for &digit in digits {
                let digit = digit.wrapping_sub(b'0');
                if digit > 9 {
                    return None;
                }
                magnitude = magnitude * 10 + u64::from(digit);
            }
            magnitude
        }
        _ => return None,
    };
    match negative {
        true => 0i64.checked_sub_unsigned(magnitude),
        false => i64::try_from(magnitude).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_they_are_written() {
        for value in [0, 1, -1, 9, 10, -10, i64::MAX, i64::MIN, i64::MAX - 1, 1_000_000_000_000] {
            assert_eq!(parse_int(value.to_string().as_bytes()), Some(value));
        }
        let others = [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "-01",
            "00",
            "1a",
            "--1",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "99999999999999999999",
            "0x10",
        ];
        for text in others {
            assert_eq!(parse_int(text.as_bytes()), None, "{text:?}");
        }
    }
}
