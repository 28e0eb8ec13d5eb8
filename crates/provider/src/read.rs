//! Amounts and moments as providers write them: read exactly, or not at all.

use bulkhead_scale::{Micros, Time};

/// An amount written as a decimal number, such as `0.03571`, `0.00743999984115362` or `5e-3`, rounded to the nearest
/// millionth. It never is a binary fraction on the way.
pub(crate) fn amount(text: &str) -> Option<Micros> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok().filter(|power| power.abs() <= 30)?),
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() || whole.len() + part.len() > 60 || mantissa.ends_with('.') {
        return None;
    }
    let digits: Vec<u64> = whole
        .bytes()
        .chain(part.bytes())
        .map(|byte| byte.is_ascii_digit().then(|| u64::from(byte - b'0')))
        .collect::<Option<_>>()?;
    // The place of the first digit that is too small to count: after the point by six.
    let end = i32::try_from(whole.len()).ok()? + exponent + 6;
    let mut micros: u64 = 0;
    for place in 0..end.max(0) {
        let digit = usize::try_from(place).ok().and_then(|place| digits.get(place)).copied().unwrap_or(0);
        micros = micros.checked_mul(10)?.checked_add(digit)?;
    }
    let next = usize::try_from(end).ok().and_then(|end| digits.get(end)).copied().unwrap_or(0);
    Some(Micros(micros.checked_add(u64::from(next >= 5))?))
}

/// A moment in RFC 3339's form, such as `2026-11-23T10:49:56Z` or `2026-11-23T10:49:56.25+00:00`; after 1970.
pub(crate) fn moment(text: &str) -> Option<Time> {
    let (date, rest) = text.split_at_checked(10)?;
    let (clock, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at_checked(rest.find(|char: char| !char.is_ascii_digit())?)?,
        None => ("", rest),
    };
    let part_ms: u64 = format!("{:0<3.3}", fraction).parse().ok()?;
    let ahead_s = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), offset) => {
            let [hours, minutes] = numbers(offset, ':', [2, 2])?;
            let offset_s = (hours * 60 + minutes) * 60;
            if sign == "+" { offset_s } else { -offset_s }
        }
        _ => return None,
    };
    // Days from civil, after Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html>.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted / 400, shifted % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - ahead_s;
    Some(Time(u64::try_from(seconds).ok()? * 1000 + part_ms))
}

/// Numbers of so many digits each, parted by `separator`.
fn numbers<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next()?;
        if part.len() != length || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, micros) in [
            ("0.03571", 35_710),
            ("0.00743999984115362", 7_440),
            ("0.0000005", 1),
            ("0.0000004999", 0),
            ("4", 4_000_000),
            ("1.1900000000000000", 1_190_000),
            ("5e-3", 5_000),
            ("5E-7", 1),
            ("4e-7", 0),
            ("5e-30", 0),
            ("1.5e2", 150_000_000),
            ("0", 0),
        ] {
            assert_eq!(amount(text), Some(Micros(micros)), "{text}");
        }
        for text in ["", ".5", "5.", "-1", "1e", "1e99", "NaN", "0x1", "1,5", "99999999999999999999"] {
            assert_eq!(amount(text), None, "{text}");
        }
    }

    #[test]
    fn moments() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2026-11-23T10:49:56Z", 1_795_430_996_000),
            ("2026-11-23T11:49:56.25+01:00", 1_795_430_996_250),
            ("2026-11-23T10:19:56.0009-00:30", 1_795_430_996_000),
        ] {
            assert_eq!(moment(text), Some(Time(ms)), "{text}");
        }
        for text in [
            "",
            "2026-11-23",
            "2026-11-23T10:49:56",
            "2026-11-23T10:49:56.Zulu",
            "2026-13-23T10:49:56Z",
            "2026-11-23T24:49:56Z",
            "1969-12-31T23:59:59Z",
            "2026-11-23T10:49:5éZ",
        ] {
            assert_eq!(moment(text), None, "{text}");
        }
    }
}
