//! How values that have no spelling of their own are written for other agents, and what is asked of them when they are read.

use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserializer, Error, Unexpected};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

/// A time as a whole number of nanoseconds; one beyond 584 years counts as that.
pub(crate) mod nanoseconds {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde hands over references")]
    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let nanoseconds = time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        nanoseconds.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_nanos))
    }
}

/// An expression that must match a whole value, by its text.
pub(crate) mod whole_regex {
    use regex_automata::meta::Regex;

    use super::super::expression;
    use super::{Arc, Deserialize, Deserializer, Error, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        _compiled: &Regex,
        text: &Arc<str>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        text.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<(Regex, Arc<str>), D::Error> {
        expression::whole(&Arc::<str>::deserialize(deserializer)?).map_err(Error::custom)
    }
}

/// Bytes: text as a string, others one by one.
pub(crate) mod body {
    use super::{Arc, Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of bytes")]
    enum Body {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(crate) fn is_empty(body: &[u8]) -> bool {
        body.is_empty()
    }

    pub(crate) fn serialize<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match str::from_utf8(body) {
            Ok(text) => text.serialize(serializer),
            Err(_) => body.serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        Ok(match Body::deserialize(deserializer)? {
            Body::Text(text) => text.into_bytes().into(),
            Body::Bytes(bytes) => bytes.into(),
        })
    }
}

/// The status of an answer, which a later part takes for one without asking.
pub(crate) mod status {
    use super::{Deserialize, Deserializer, Serialize, Serializer, among};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
    pub(crate) fn serialize<S: Serializer>(status: &u16, serializer: S) -> Result<S::Ok, S::Error> {
        status.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
        among(u16::deserialize(deserializer)?, |status| (200..=599).contains(&status), "a status, 200 to 599")
    }
}

/// The status of a redirect.
pub(crate) mod redirect_status {
    pub(crate) use super::status::serialize;
    use super::{Deserialize, Deserializer, among};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
        let redirects = |status| matches!(status, 301 | 302 | 303 | 307 | 308);
        among(u16::deserialize(deserializer)?, redirects, "301, 302, 303, 307 or 308")
    }
}

/// A number that is never zero, as a division by it may follow.
pub(crate) fn above_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = u32::deserialize(deserializer)?;
    if number == 0 {
        return Err(Error::invalid_value(Unexpected::Unsigned(0), &"a number above zero"));
    }
    Ok(number)
}

fn among<E: Error>(number: u16, fits: impl Fn(u16) -> bool, expected: &str) -> Result<u16, E> {
    if fits(number) {
        return Ok(number);
    }
    Err(E::invalid_value(Unexpected::Unsigned(number.into()), &expected))
}
