//! The floating-point numbers of `INCRBYFLOAT`.
//!
//! Redis adds in C's `long double`, which on the machines it is measured on has 64 bits of mantissa,
//! and writes seventeen digits behind the point. Clients see the difference to 53 bits (0.1 + 10.5
//! would be 10.59999999999999964), so these are the same numbers: rounded to the nearest, ties to
//! even, when they are read and when they are added, and exact in between.

use std::cmp::Ordering;

/// The greatest exponent of two, and the least.
const EXPONENT_MAX: i64 = 16_383;
const EXPONENT_MIN: i64 = -16_445;
/// Bits of the mantissa.
const MANTISSA_BITS: i64 = 64;
/// Digits behind the point.
const DIGITS: u32 = 17;
/// The longest text read as a number.
const TEXT_BYTES_MAX: usize = 5 * 1024;
/// Powers of ten beyond this are out of range whatever stands before them.
const POWER_MAX: i64 = 2 * TEXT_BYTES_MAX as i64;

/// A number of the form ± mantissa × 2 to the exponent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Float {
    negative: bool,
    mantissa: u64,
    exponent: i64,
}

/// Whether the text is a name of infinity, which is read as a number and then always too great.
pub fn is_infinite(text: &[u8]) -> bool {
    let name = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    name.eq_ignore_ascii_case(b"inf") || name.eq_ignore_ascii_case(b"infinity")
}

/// A natural number of any size, its least 32 bits first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Natural(Vec<u32>);

impl Natural {
    fn from(number: u64) -> Natural {
        let mut natural = Natural(vec![number as u32, (number >> 32) as u32]);
        natural.trim();
        natural
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// Multiplies and adds.
    fn scale(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for limb in &mut self.0 {
            carry += u64::from(*limb) * u64::from(factor);
            *limb = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    /// Divides; returns the remainder.
    fn divide(&mut self, divisor: u32) -> u32 {
        let mut rest = 0;
        for limb in self.0.iter_mut().rev() {
            rest = rest << 32 | u64::from(*limb);
            *limb = (rest / u64::from(divisor)) as u32;
            rest %= u64::from(divisor);
        }
        self.trim();
        rest as u32
    }

    fn bits(&self) -> i64 {
        self.0.last().map_or(0, |top| self.0.len() as i64 * 32 - i64::from(top.leading_zeros()))
    }

    fn bit(&self, at: i64) -> bool {
        let limb = usize::try_from(at / 32).ok().and_then(|limb| self.0.get(limb));
        at >= 0 && limb.is_some_and(|limb| limb >> (at % 32) & 1 == 1)
    }

    fn shift_left(&self, by: i64) -> Natural {
        let mut limbs = vec![0; (by / 32) as usize];
        let (by, mut carry) = (by % 32, 0u64);
        for limb in &self.0 {
            carry |= u64::from(*limb) << by;
            limbs.push(carry as u32);
            carry >>= 32;
        }
        limbs.push(carry as u32);
        let mut shifted = Natural(limbs);
        shifted.trim();
        shifted
    }

    /// Drops the `by` lowest bits and rounds to the nearest, ties to even. `sticky` tells of bits
    /// lost before.
    fn shift_right(&self, by: i64, sticky: bool) -> Natural {
        if by <= 0 {
            return self.shift_left(-by);
        }
        let half = self.bit(by - 1);
        let below = sticky || (0..by - 1).any(|at| self.bit(at));
        let limbs = self.0.get((by / 32) as usize..).unwrap_or_default();
        let mut shifted = Vec::with_capacity(limbs.len() + 1);
        for (index, limb) in limbs.iter().enumerate() {
            let next = limbs.get(index + 1).copied().unwrap_or(0);
            shifted.push(((u64::from(next) << 32 | u64::from(*limb)) >> (by % 32)) as u32);
        }
        let mut shifted = Natural(shifted);
        shifted.trim();
        if half && (below || shifted.bit(0)) {
            shifted.scale(1, 1);
        }
        shifted
    }

    fn subtract(&mut self, less: &Natural) {
        let mut borrow = 0i64;
        for (index, limb) in self.0.iter_mut().enumerate() {
            let rest =
                i64::from(*limb) - i64::from(less.0.get(index).copied().unwrap_or(0)) + borrow;
            *limb = rest as u32;
            borrow = rest >> 32;
        }
        self.trim();
    }

    fn add(&mut self, other: &Natural) {
        self.0.resize(self.0.len().max(other.0.len()) + 1, 0);
        let mut carry = 0u64;
        for (index, limb) in self.0.iter_mut().enumerate() {
            carry += u64::from(*limb) + u64::from(other.0.get(index).copied().unwrap_or(0));
            *limb = carry as u32;
            carry >>= 32;
        }
        self.trim();
    }

    fn compare(&self, other: &Natural) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    /// Its digits, at least `width` of them.
    fn digits(mut self, width: usize) -> String {
        let mut digits = Vec::new();
        while !self.is_zero() || digits.len() < width {
            let mut group = self.divide(1_000_000_000);
            for _ in 0..9 {
                digits.push(b'0' + (group % 10) as u8);
                group /= 10;
            }
        }
        while digits.len() > width && digits.last() == Some(&b'0') {
            digits.pop();
        }
        digits.iter().rev().map(|digit| char::from(*digit)).collect()
    }
}

/// The digits before an exponent as one number, what follows them, and how many of them stand
/// behind the point, as a negative power of the base. Nothing if there is no digit.
fn significand(text: &[u8], base: u32) -> Option<(Natural, &[u8], i64)> {
    let mut number = Natural::default();
    let (mut digits, mut power) = (0, 0i64);
    let mut point = false;
    for (at, byte) in text.iter().enumerate() {
        match char::from(*byte).to_digit(base) {
            Some(digit) => {
                number.scale(base, digit);
                digits += 1;
                power -= i64::from(point);
            }
            None if *byte == b'.' && !point => point = true,
            None => return (digits > 0).then_some((number, &text[at..], power)),
        }
    }
    (digits > 0).then_some((number, &[], power))
}

/// The exponent behind a number's digits, 0 if nothing is there, nothing if something else is.
fn power_of(text: &[u8], letters: [u8; 2]) -> Option<i64> {
    let [letter, exponent @ ..] = text else { return Some(0) };
    let (less, exponent) = match exponent {
        [b'-', exponent @ ..] => (true, exponent),
        [b'+', exponent @ ..] => (false, exponent),
        exponent => (false, exponent),
    };
    let digits = !exponent.is_empty() && exponent.iter().all(u8::is_ascii_digit);
    if !letters.contains(letter) || !digits {
        return None;
    }
    let add = |sum: i64, digit: &u8| (sum * 10 + i64::from(digit - b'0')).min(1 << 40);
    let exponent = exponent.iter().fold(0, add);
    Some(if less { -exponent } else { exponent })
}

impl Float {
    /// Rounds a natural number × 2 to the exponent; nothing if it is too great. `sticky` tells that
    /// it is a little greater than that.
    fn round(negative: bool, number: &Natural, exponent: i64, sticky: bool) -> Option<Float> {
        if number.is_zero() {
            return Some(Float { negative, mantissa: 0, exponent: 0 });
        }
        // Below the least exponent the mantissa gets shorter.
        let drop = (number.bits() - MANTISSA_BITS).max(EXPONENT_MIN - exponent);
        let (mut rounded, mut exponent) = (number.clone(), exponent);
        if drop > 0 || sticky {
            rounded = number.shift_right(drop, sticky);
            exponent += drop;
            if rounded.bits() > MANTISSA_BITS {
                rounded = rounded.shift_right(1, false);
                exponent += 1;
            }
        }
        if rounded.bits() + exponent > EXPONENT_MAX + 1 {
            return None;
        }
        let limb = |at: usize| u64::from(rounded.0.get(at).copied().unwrap_or(0));
        Some(Float { negative, mantissa: limb(1) << 32 | limb(0), exponent })
    }

    /// Reads a number as C's `strtold` does, decimal or hexadecimal, the whole text. Neither spaces
    /// nor names (`inf`, `nan`) are numbers.
    pub fn parse(text: &[u8]) -> Option<Float> {
        if text.len() >= TEXT_BYTES_MAX {
            return None;
        }
        let (negative, text) = match text {
            [b'-', text @ ..] => (true, text),
            [b'+', text @ ..] => (false, text),
            text => (false, text),
        };
        if let [b'0', b'x' | b'X', text @ ..] = text {
            // A digit stands for four bits, and the exponent is one of two.
            let (number, behind, power) = significand(text, 16)?;
            let exponent = power * 4 + power_of(behind, *b"pP")?;
            let float = Float::round(negative, &number, exponent, false)?;
            return (number.is_zero() || float.mantissa != 0).then_some(float);
        }
        let (mut number, behind, power) = significand(text, 10)?;
        let power = power + power_of(behind, *b"eE")?;
        if number.is_zero() {
            return Some(Float { negative, mantissa: 0, exponent: 0 });
        }
        if power.abs() > POWER_MAX {
            return None;
        }
        let mut exponent = 0;
        let mut sticky = false;
        if power < 0 {
            // Room for the quotient's bits: a digit takes less than four.
            let room = MANTISSA_BITS + 2 - power * 4;
            number = number.shift_left(room);
            exponent = -room;
        }
        let mut left = power.unsigned_abs();
        while left > 0 {
            let step = left.min(9) as u32;
            match power > 0 {
                true => number.scale(10u32.pow(step), 0),
                false => sticky |= number.divide(10u32.pow(step)) != 0,
            }
            left -= u64::from(step);
        }
        // What is too small for any number but zero is none.
        Float::round(negative, &number, exponent, sticky).filter(|float| float.mantissa != 0)
    }

    /// The sum, or nothing if it is too great.
    pub fn add(&self, other: &Float) -> Option<Float> {
        let exponent = self.exponent.min(other.exponent);
        let align =
            |float: &Float| Natural::from(float.mantissa).shift_left(float.exponent - exponent);
        let (mut a, mut b) = (align(self), align(other));
        if self.negative == other.negative {
            a.add(&b);
            return Float::round(self.negative, &a, exponent, false);
        }
        match a.compare(&b) {
            Ordering::Equal => Some(Float { negative: false, mantissa: 0, exponent: 0 }),
            Ordering::Greater => {
                a.subtract(&b);
                Float::round(self.negative, &a, exponent, false)
            }
            Ordering::Less => {
                b.subtract(&a);
                Float::round(other.negative, &b, exponent, false)
            }
        }
    }

    /// The number's decimal digits, seventeen behind the point at most, without zeros at the end.
    pub fn text(&self) -> String {
        let mut number = Natural::from(self.mantissa);
        (0..DIGITS).for_each(|_| number.scale(10, 0));
        let number = number.shift_right(-self.exponent, false);
        let digits = number.digits(DIGITS as usize + 1);
        let (whole, fraction) = digits.split_at(digits.len() - DIGITS as usize);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        let minus = if self.negative && !(whole == "0" && fraction.is_empty()) { "-" } else { "" };
        format!("{minus}{whole}{point}{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> String {
        let (a, b) = (Float::parse(a.as_bytes()).unwrap(), Float::parse(b.as_bytes()).unwrap());
        a.add(&b).map_or("too great".into(), |sum| sum.text())
    }

    /// The sums are redis-server's on x86-64.
    #[test]
    fn sums_are_those_of_long_doubles() {
        let cases = [
            ("10.5", "0.1", "10.6"),
            ("3.0e3", "200", "3200"),
            ("0", "-5e3", "-5000"),
            ("0.1", "0.2", "0.3"),
            ("1", "-1", "0"),
            ("-0.0", "-0", "0"),
            ("17179869184", "1.5", "17179869185.5"),
            ("9007199254740993", "0.5", "9007199254740993.5"),
            ("1e30", "1", "1000000000000000000024696061952"),
            ("1e-18", "0", "0"),
            ("-1e-18", "0", "0"),
            ("0.00000000000000001", "0", "0.00000000000000001"),
            ("0x10", "0x1.8p1", "19"),
            ("-0X.8", "0", "-0.5"),
            ("1e4932", "1e4932", "too great"),
        ];
        for (a, b, expected) in cases {
            assert_eq!(sum(a, b), expected, "{a} + {b}");
        }
        assert_eq!(sum("1e300", "0").len(), 301);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let others = [
            "",
            "-",
            ".",
            "e5",
            "1e",
            "1 ",
            " 1",
            "1.2.3",
            "inf",
            "nan",
            "1e5000",
            "1e-5000",
            "0y1",
            "0x",
            "0x.",
            "0x1p",
            "0x1g",
            "0x1p99999",
            "0x1p-99999",
            "0x1e400p",
        ];
        for text in others {
            assert_eq!(Float::parse(text.as_bytes()), None, "{text:?}");
        }
        for text in ["1.", ".5", "+3", "1e+2", "1E2", "0e99999", "1e-4950"] {
            assert!(Float::parse(text.as_bytes()).is_some(), "{text:?}");
        }
    }

    #[test]
    fn every_double_is_read_exactly() {
        let mut bits = 1u64;
        for _ in 0..500 {
            bits = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
            let number = f64::from_bits(bits & !(0x7ff << 52) | (1000 + bits % 60) << 52);
            let float = Float::parse(format!("{number:e}").as_bytes()).unwrap();
            let text = float.text();
            let near: f64 = text.parse().unwrap();
            assert!((near - number).abs() <= 1e-16 + number.abs() * 1e-15, "{number} {text}");
        }
    }
}
