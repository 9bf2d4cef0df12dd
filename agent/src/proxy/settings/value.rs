//! How values of settings are written: `10s`, `64KiB`, `100`, `on`, `off`.

use std::time::Duration;

use crate::proxy::http::Upgrades;
use crate::route::{EscapedSlashes, Normalisation};

/// What the values of a setting are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A time: `500ms`, `10s`, `5m`, `1h`.
    Duration,
    /// A size: `65536`, `64KiB`, `8MiB`, `1GiB`.
    Bytes,
    /// A number.
    Count,
    /// `on` or `off`.
    Switch,
    /// One of a few names.
    Choice(&'static [&'static str]),
}

const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
const SIZES: [(&str, u64); 4] = [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const COUNTS: [(&str, u64); 1] = [("", 1)];

impl Unit {
    /// What values look like, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duration => "duration",
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::Switch => "switch",
            Self::Choice(_) => "choice",
        }
    }

    /// What a good value looks like.
    pub fn example(self) -> String {
        match self {
            Self::Duration => "a duration such as 500ms, 10s or 5m".to_owned(),
            Self::Bytes => "a size such as 65536, 64KiB or 8MiB".to_owned(),
            Self::Count => "a number such as 100".to_owned(),
            Self::Switch => "on or off".to_owned(),
            Self::Choice(names) => format!("one of {}", names.join(", ")),
        }
    }

    fn suffixes(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Duration => &DURATIONS,
            Self::Bytes => &SIZES,
            Self::Count | Self::Switch | Self::Choice(_) => &COUNTS,
        }
    }

    /// Reads a value: milliseconds, bytes, a number, or 0 and 1 for a switch.
    pub(super) fn parse(self, text: &str) -> Option<u64> {
        if self == Self::Switch {
            return match text {
                "on" => Some(1),
                "off" => Some(0),
                _ => None,
            };
        }
        if let Self::Choice(names) = self {
            return names.iter().position(|name| *name == text).map(|index| index as u64);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let (_, factor) = self.suffixes().iter().find(|(name, _)| *name == suffix)?;
        number.parse::<u64>().ok()?.checked_mul(*factor)
    }

    /// Writes a value in the largest unit that gives it exactly.
    pub(super) fn show(self, value: u64) -> String {
        if self == Self::Switch {
            return if value == 0 { "off" } else { "on" }.to_owned();
        }
        if let Self::Choice(names) = self {
            let name = usize::try_from(value).ok().and_then(|index| names.get(index));
            return name.copied().unwrap_or_default().to_owned();
        }
        let fits = |factor: u64| value.is_multiple_of(factor) && value >= factor;
        let largest = self.suffixes().iter().rev().find(|(_, factor)| fits(*factor));
        let (suffix, factor) = largest.unwrap_or(&self.suffixes()[0]);
        format!("{}{suffix}", value / factor)
    }
}

/// A place in the settings that a value can be put into. `None` stands for `off`.
pub(super) trait Stored {
    /// What is there.
    fn load(&self) -> Option<u64>;
    /// Puts a value there; false where the place does not take it.
    fn store(&mut self, value: Option<u64>) -> bool;
    /// Whether the place takes `off`.
    fn may_be_off(&self) -> bool {
        false
    }
}

impl Stored for Duration {
    fn load(&self) -> Option<u64> {
        u64::try_from(self.as_millis()).ok()
    }

    fn store(&mut self, value: Option<u64>) -> bool {
        put(self, value.map(Duration::from_millis))
    }
}

impl Stored for bool {
    fn load(&self) -> Option<u64> {
        Some((*self).into())
    }

    fn store(&mut self, value: Option<u64>) -> bool {
        put(self, value.map(|value| value != 0))
    }
}

/// Numbers hold what fits their width; the table's ranges are narrower.
macro_rules! stored_number {
    ($($number:ty),*) => {$(
        impl Stored for $number {
            fn load(&self) -> Option<u64> {
                u64::try_from(*self).ok()
            }

            fn store(&mut self, value: Option<u64>) -> bool {
                put(self, value.and_then(|value| Self::try_from(value).ok()))
            }
        }
    )*};
}

stored_number!(u32, u64, usize);

/// Choices are kept by their place in the table's list of names.
macro_rules! stored_choice {
    ($kind:ty, $choices:expr) => {
        impl Stored for $kind {
            fn load(&self) -> Option<u64> {
                $choices.iter().position(|choice| choice == self).map(|index| index as u64)
            }

            fn store(&mut self, value: Option<u64>) -> bool {
                let index = value.and_then(|value| usize::try_from(value).ok());
                put(self, index.and_then(|index| $choices.get(index).copied()))
            }
        }
    };
}

stored_choice!(Normalisation, [Normalisation::None, Normalisation::Base, Normalisation::MergeSlashes]);
stored_choice!(Upgrades, [Upgrades::Off, Upgrades::WebSocket, Upgrades::Any]);
stored_choice!(EscapedSlashes, [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::Decode]);

impl<T: Stored + Default> Stored for Option<T> {
    fn load(&self) -> Option<u64> {
        self.as_ref().and_then(Stored::load)
    }

    fn store(&mut self, value: Option<u64>) -> bool {
        let Some(value) = value else {
            *self = None;
            return true;
        };
        let mut place = T::default();
        place.store(Some(value)) && put(self, Some(Some(place)))
    }

    fn may_be_off(&self) -> bool {
        true
    }
}

fn put<T>(place: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) => {
            *place = value;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written() {
        let check = |unit: Unit, text: &str, value: u64, shown: &str| {
            assert_eq!(unit.parse(text), Some(value), "{text}");
            assert_eq!(unit.show(value), shown, "{text}");
        };
        check(Unit::Duration, "10s", 10_000, "10s");
        check(Unit::Duration, "500ms", 500, "500ms");
        check(Unit::Duration, "90s", 90_000, "90s");
        check(Unit::Duration, "60s", 60_000, "1m");
        check(Unit::Duration, "0s", 0, "0ms");
        check(Unit::Bytes, "65536", 65_536, "64KiB");
        check(Unit::Bytes, "8MiB", 8 << 20, "8MiB");
        check(Unit::Bytes, "1000", 1000, "1000");
        check(Unit::Bytes, "0", 0, "0");
        check(Unit::Count, "100", 100, "100");
        check(Unit::Switch, "on", 1, "on");
        check(Unit::Switch, "off", 0, "off");
    }

    #[test]
    fn other_texts_are_no_values() {
        for (unit, texts) in [
            (
                Unit::Duration,
                &["", "10", "s", "-1s", "1.5s", "10 s", "10S", "1d", "99999999999999999999s"][..],
            ),
            (Unit::Bytes, &["", "KiB", "64KB", "64kib", "64 KiB", "-1", "18446744073709551615KiB"]),
            (Unit::Count, &["", "x", "1k", "-1", "1.0", "0x10"]),
            (Unit::Switch, &["", "1", "true", "On"]),
        ] {
            for text in texts {
                assert_eq!(unit.parse(text), None, "{unit:?} {text:?}");
            }
        }
    }

    #[test]
    fn only_optional_places_take_off() {
        let mut time = Some(Duration::from_secs(1));
        assert!(time.may_be_off() && time.store(None) && time.is_none());
        assert!(time.store(Some(5)) && time == Some(Duration::from_millis(5)));
        let mut narrow = 1_u32;
        assert!(!narrow.may_be_off() && !narrow.store(None) && !narrow.store(Some(1 << 40)));
        assert_eq!(narrow, 1);
    }
}
