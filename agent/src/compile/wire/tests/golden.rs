//! The wire form is a contract with agents of other versions: a change of it shows here, and is a decision.

use super::super::key::Key;
use super::super::{Change, Parts};
use super::parts_of;

/// One record a line, key and value between tabs.
const RECORDS: &str = include_str!("golden/records.txt");

/// The same as bytes, in hexadecimal digits.
const BYTES: &str = include_str!("golden/bytes.txt");

fn golden() -> Change {
    let record = |line: &str| {
        let (key, value) = line.split_once('\t').expect("a key and a value");
        (key.into(), value.as_bytes().into())
    };
    Change::new(RECORDS.lines().map(record).collect(), Vec::new())
}

fn written(change: &Change) -> String {
    let line = |(key, value): (&str, &[u8])| format!("{key}\t{}\n", String::from_utf8_lossy(value));
    change.puts().map(line).collect()
}

/// Everything that is written is read, and written in the same way again.
#[test]
fn records_are_written_as_ever() {
    let mut parts = Parts::default();
    parts.apply(&golden()).expect("is read");
    assert_eq!(written(&Change::whole(&parts.model())), RECORDS);
    assert_eq!(parts_of(&parts.model()).model(), parts.model());
}

/// The file has every kind of record; variants are left to the eye.
#[test]
fn every_kind_of_record_is_there() {
    let keys: Vec<Key> =
        golden().puts().map(|(key, _)| Key::parse(key).expect("is one").expect("is known")).collect();
    let has = |kind: fn(&Key) -> bool| assert!(keys.iter().any(kind));
    has(|key| matches!(key, Key::Authorization(_)));
    has(|key| matches!(key, Key::Datagram(_)));
    has(|key| matches!(key, Key::Endpoint(_)));
    has(|key| matches!(key, Key::Guard(_)));
    has(|key| matches!(key, Key::Limit(_)));
    has(|key| matches!(key, Key::Listener(_)));
    has(|key| matches!(key, Key::Attached(..)));
    has(|key| matches!(key, Key::Policy(_)));
    has(|key| matches!(key, Key::Route(_)));
    has(|key| matches!(key, Key::Service(_)));
    has(|key| matches!(key, Key::Workload(_)));
}

#[test]
fn bytes_that_were_written_are_read() {
    let digits = BYTES.trim();
    let bytes: Result<Vec<u8>, _> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16)).collect();
    let read = Change::decode(&bytes.expect("are digits"));
    assert!(read == Ok(golden()), "written today: {:02x?}", golden().encode());
}
