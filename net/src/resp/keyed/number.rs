//! Values that are numbers.

use bytes::Bytes;

use super::super::reply::Reply;
use super::{Answer, Keys, integer_arg, parse_integer};

pub(crate) fn incr(keys: &mut Keys, args: &[Bytes]) -> Answer {
    add(keys, &args[1], 1)
}

pub(crate) fn decr(keys: &mut Keys, args: &[Bytes]) -> Answer {
    add(keys, &args[1], -1)
}

pub(crate) fn incrby(keys: &mut Keys, args: &[Bytes]) -> Answer {
    add(keys, &args[1], integer_arg(&args[2])?)
}

pub(crate) fn decrby(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let number = integer_arg(&args[2])?;
    let number = number.checked_neg().ok_or_else(|| Reply::error("ERR decrement would overflow"))?;
    add(keys, &args[1], number)
}

fn add(keys: &mut Keys, key: &Bytes, number: i64) -> Answer {
    let (before, expires_at_ms) = match keys.find(key) {
        Some(entry) => (integer_arg(entry.value()?)?, entry.expires_at_ms),
        None => (0, 0),
    };
    let sum = before.checked_add(number);
    let sum = sum.ok_or_else(|| Reply::error("ERR increment or decrement would overflow"))?;
    keys.put(key, sum.to_string().into(), expires_at_ms);
    Ok(Reply::Integer(sum))
}

pub(crate) fn incrbyfloat(keys: &mut Keys, args: &[Bytes]) -> Answer {
    let not_a_float = || Reply::error("ERR value is not a valid float");
    let number = parse_float(&args[2]).ok_or_else(not_a_float)?;
    let (before, expires_at_ms) = match keys.find(&args[1]) {
        Some(entry) => (parse_float(entry.value()?).ok_or_else(not_a_float)?, entry.expires_at_ms),
        None => (Decimal::default(), 0),
    };
    let sum = before.add(number).ok_or_else(|| Reply::error("ERR increment would produce NaN or Infinity"))?;
    let text = Bytes::from(sum.to_string());
    keys.put(&args[1], text.clone(), expires_at_ms);
    Ok(Reply::Bulk(text))
}

/// Redis adds in `long double` and prints 17 digits behind the point, so that 0.1 + 0.2 is 0.3. A `f64` would print
/// 0.30000000000000004: sums of numbers with up to 17 digits behind the point are exact here, and the rest is `f64`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decimal {
    /// In units of 10^-17.
    Exact(i128),
    Float(f64),
}

impl Default for Decimal {
    fn default() -> Decimal {
        Decimal::Exact(0)
    }
}

const PLACES: usize = 17;
const UNIT: i128 = 10_i128.pow(PLACES as u32);

impl Decimal {
    fn to_float(self) -> f64 {
        match self {
            Decimal::Exact(units) => units as f64 / UNIT as f64,
            Decimal::Float(float) => float,
        }
    }

    fn add(self, other: Decimal) -> Option<Decimal> {
        if let (Decimal::Exact(left), Decimal::Exact(right)) = (self, other)
            && let Some(sum) = left.checked_add(right)
        {
            return Some(Decimal::Exact(sum));
        }
        let sum = self.to_float() + other.to_float();
        sum.is_finite().then_some(Decimal::Float(sum))
    }
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Decimal::Exact(units) => {
                let sign = if *units < 0 { "-" } else { "" };
                let (whole, part) = (units.unsigned_abs() / UNIT as u128, units.unsigned_abs() % UNIT as u128);
                let part = format!("{part:0PLACES$}");
                let part = part.trim_end_matches('0');
                let point = if part.is_empty() { "" } else { "." };
                write!(f, "{sign}{whole}{point}{part}")
            }
            Decimal::Float(float) => write!(f, "{float}"),
        }
    }
}

fn parse_float(bytes: &[u8]) -> Option<Decimal> {
    if let Some(number) = parse_integer(bytes) {
        return Some(Decimal::Exact(i128::from(number) * UNIT));
    }
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty() && text.len() <= 256)?;
    let float = text.parse::<f64>().ok().filter(|float| float.is_finite())?;
    Some(parse_decimal(text).map_or(Decimal::Float(float), Decimal::Exact))
}

/// A decimal without an exponent that fits.
fn parse_decimal(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole) || !are_digits(part) || part.len() > PLACES || whole.len() > 18 {
        return None;
    }
    let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let scale = 10_i128.pow((PLACES - part.len()) as u32);
    Some(sign * (number(whole)? * UNIT + number(part)? * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(left: &str, right: &str) -> Option<String> {
        let sum = parse_float(left.as_bytes())?.add(parse_float(right.as_bytes())?)?;
        Some(sum.to_string())
    }

    #[test]
    fn incrbyfloat_sums_as_redis_prints_them() {
        assert_eq!(sum("0.1", "0.2").as_deref(), Some("0.3"));
        assert_eq!(sum("10.50", "0.1").as_deref(), Some("10.6"));
        assert_eq!(sum("5.0e3", "2.0e2").as_deref(), Some("5200"));
        assert_eq!(sum("3", "-3.5").as_deref(), Some("-0.5"));
        assert_eq!(sum("1.", ".5").as_deref(), Some("1.5"));
        assert_eq!(sum("1e400", "1"), None);
        assert_eq!(sum("nan", "1"), None);
        assert_eq!(sum(" 1", "1"), None);
        assert_eq!(sum("1e308", "1e308"), None);
        assert_eq!(sum("9223372036854775807", "1").as_deref(), Some("9223372036854775808"));
    }
}
