//! Durations: Go's spelling in Istio, its restricted form (GEP-2257) in the Gateway API.

use std::time::Duration;

/// The longest duration that is accepted: a year, far from any overflow.
const DURATION_MAX: Duration = Duration::from_hours(366 * 24);

/// A duration as Istio writes it: `10s`, `1.5h`, `1h30m`, `250ms`, `0s`. `None` where it is none.
pub(super) fn istio(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (amount, unit, after) = split(rest)?;
        seconds += amount.parse::<f64>().ok()? * unit;
        rest = after;
    }
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (!text.is_empty() && duration <= DURATION_MAX).then_some(duration)
}

/// A duration as GEP-2257 has it: one to four of `1` to `99999` with `h`, `m`, `s` or `ms`. `None` where it is none.
pub(super) fn gateway(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut parts = 0;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (amount, after) = rest.split_at(digits);
        if digits == 0 || digits > 5 || parts == 4 {
            return None;
        }
        let millis = match after {
            _ if after.starts_with("ms") => 1,
            _ if after.starts_with('s') => 1_000,
            _ if after.starts_with('m') => 60_000,
            _ if after.starts_with('h') => 3_600_000,
            _ => return None,
        };
        total += Duration::from_millis(amount.parse::<u64>().ok()? * millis);
        rest = &after[if millis == 1 { 2 } else { 1 }..];
        parts += 1;
    }
    (parts > 0).then_some(total)
}

/// Units with their seconds; `ms` stands before `m`, which begins it.
const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// Splits `1.5h30m` into `1.5`, seconds per hour, and `30m`.
fn split(text: &str) -> Option<(&str, f64, &str)> {
    let number = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (amount, after) = text.split_at(number);
    let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
    Some((amount, *factor, &after[unit.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_durations() {
        let check = |text: &str, millis: Option<u64>| {
            assert_eq!(istio(text), millis.map(Duration::from_millis), "{text:?}");
        };
        check("10s", Some(10_000));
        check("0s", Some(0));
        check("0", Some(0));
        check("1.5h", Some(5_400_000));
        check("1h30m", Some(5_400_000));
        check("250ms", Some(250));
        check("", None);
        check("10", None);
        check("-1s", None);
        check("s", None);
        check("1.2.3s", None);
        check("10 s", None);
        check("10x", None);
        check("99999999999999h", None);
    }

    #[test]
    fn gateway_durations() {
        let check = |text: &str, millis: Option<u64>| {
            assert_eq!(gateway(text), millis.map(Duration::from_millis), "{text:?}");
        };
        check("10s", Some(10_000));
        check("1h30m10s500ms", Some(5_410_500));
        check("0s", Some(0));
        check("99999h", Some(359_996_400_000));
        check("", None);
        check("1.5s", None);
        check("100000s", None);
        check("10", None);
        check("1s1s1s1s1s", None);
        check("10us", None);
        check("-1s", None);
    }
}
