//! Records that are put and removed, and their form as bytes.
//!
//! A change is one byte for the form, then one zstd frame, with its checksum, of: the number of puts; of each, its key and its
//! value; the number of removals; of each, its key. Numbers are LEB128, keys and values come after their length. Puts and
//! removals are each in the order of their keys' bytes, and no key is among both.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use super::WireError;
use super::draft::Draft;
use super::key::Key;
use crate::model::{Model, ObjectName};
use crate::priority::give_way;

/// The form that is written, and the only one that is read.
const FORM: u8 = 1;

/// zstd's level. The third is the fastest that finds what distant records have in common.
const LEVEL: i32 = 3;

/// So many bytes are compressed at once.
const PIECE: usize = 32 << 10;

/// The window that a frame may ask for, as a power of two; level 3 takes 2 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// What a change may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) compressed_max_bytes: usize,
    pub(super) decompressed_max_bytes: usize,
    pub(super) records_max: usize,
    pub(super) key_max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compressed_max_bytes: 256 << 20,
            decompressed_max_bytes: 256 << 20,
            records_max: 4 << 20,
            key_max_bytes: 4096,
        }
    }
}

/// Records that are put and removed, in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    puts: Vec<(Box<str>, Box<[u8]>)>,
    removals: Vec<Box<str>>,
}

impl Change {
    /// What makes a model out of nothing. Equal models give equal changes.
    pub fn whole(model: &Model) -> Self {
        Draft::whole(model).finish()
    }

    /// What makes `after` out of `before`.
    pub fn between(before: &Model, after: &Model) -> Self {
        Draft::between(before, after).finish()
    }

    /// As [`Change::between`], of models that are sorted and differ in nothing but endpoints of these services.
    pub fn between_endpoints(before: &Model, after: &Model, services: &BTreeSet<ObjectName>) -> Self {
        Draft::between_endpoints(before, after, services).finish()
    }

    /// Takes records in any order.
    pub(super) fn new(mut puts: Vec<(Box<str>, Box<[u8]>)>, mut removals: Vec<Box<str>>) -> Self {
        puts.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        removals.sort_unstable();
        Self { puts, removals }
    }

    /// The records of a whole model after changes of it, in their order; records of kinds that this version does not know
    /// among them.
    #[must_use]
    pub fn followed_by(self, later: impl IntoIterator<Item = Self>) -> Self {
        let mut records: BTreeMap<_, _> = self.puts.into_iter().collect();
        for Self { puts, removals } in later {
            for key in removals {
                records.remove(&key);
            }
            records.extend(puts);
        }
        Self { puts: records.into_iter().collect(), removals: Vec::new() }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many records it puts or removes.
    pub fn len(&self) -> usize {
        self.puts.len() + self.removals.len()
    }

    /// The records that are put: keys and JSON.
    pub fn puts(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.puts.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The keys of the records that are removed.
    pub fn removals(&self) -> impl Iterator<Item = &str> {
        self.removals.iter().map(|key| &**key)
    }

    /// The change as bytes. Equal changes give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        Self::compress(&self.plain())
    }

    pub(super) fn compress(plain: &[u8]) -> Vec<u8> {
        let mut compressor = zstd::Encoder::new(vec![FORM], LEVEL).expect("the level exists");
        compressor.include_checksum(true).expect("zstd has checksums");
        for piece in plain.chunks(PIECE) {
            compressor.write_all(piece).expect("a vector takes all writes");
            give_way();
        }
        compressor.finish().expect("a vector takes all writes")
    }

    pub(super) fn plain(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        write_number(&mut plain, self.puts.len());
        for (key, value) in &self.puts {
            write_bytes(&mut plain, key.as_bytes());
            write_bytes(&mut plain, value);
        }
        write_number(&mut plain, self.removals.len());
        for key in &self.removals {
            write_bytes(&mut plain, key.as_bytes());
        }
        plain
    }

    /// Reads what [`Change::encode`] wrote. The memory that it takes is bounded whatever the bytes are, and the values are
    /// unread: [`Parts::apply`] reads them.
    ///
    /// [`Parts::apply`]: super::Parts::apply
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        Self::decode_within(bytes, Limits::default())
    }

    pub(super) fn decode_within(bytes: &[u8], limits: Limits) -> Result<Self, WireError> {
        if bytes.len() > limits.compressed_max_bytes {
            let limit = limits.compressed_max_bytes;
            return Err(WireError::TooLarge { what: "the number of compressed bytes", limit });
        }
        let (form, frame) = bytes.split_first().ok_or(WireError::Truncated)?;
        if *form != FORM {
            return Err(WireError::Form(*form));
        }
        let plain = decompress(frame, limits.decompressed_max_bytes)?;
        let mut reader = Reader { rest: &plain, limits };
        let change = reader.change()?;
        if !reader.rest.is_empty() {
            return Err(WireError::Trailing(reader.rest.len()));
        }
        change.check_that_none_is_both()?;
        Ok(change)
    }

    fn check_that_none_is_both(&self) -> Result<(), WireError> {
        let put = |key: &str| self.puts.binary_search_by(|(put, _)| (**put).cmp(key)).is_ok();
        match self.removals.iter().find(|key| put(key)) {
            Some(key) => Err(WireError::Order { key: key.to_string() }),
            None => Ok(()),
        }
    }
}

fn decompress(frame: &[u8], limit: usize) -> Result<Vec<u8>, WireError> {
    let damaged = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => WireError::Truncated,
        _ => WireError::Damaged(error.to_string()),
    };
    let mut decompressor = zstd::Decoder::with_buffer(frame).map_err(damaged)?.single_frame();
    decompressor.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    let mut plain = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decompressor.by_ref().take(most).read_to_end(&mut plain).map_err(damaged)?;
    if plain.len() > limit {
        return Err(WireError::TooLarge { what: "the number of bytes", limit });
    }
    match decompressor.finish().len() {
        0 => Ok(plain),
        trailing => Err(WireError::Trailing(trailing)),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    limits: Limits,
}

impl<'a> Reader<'a> {
    fn change(&mut self) -> Result<Change, WireError> {
        let mut puts: Vec<(Box<str>, Box<[u8]>)> = Vec::new();
        for _ in 0..self.count(0)? {
            let key = self.key(puts.last().map(|(key, _)| &**key))?;
            let value = self.bytes()?;
            puts.push((key, value.into()));
        }
        let mut removals: Vec<Box<str>> = Vec::new();
        for _ in 0..self.count(puts.len())? {
            let key = self.key(removals.last().map(|key| &**key))?;
            removals.push(key);
        }
        Ok(Change { puts, removals })
    }

    fn count(&mut self, before: usize) -> Result<usize, WireError> {
        let count = self.number()?;
        let limit = self.limits.records_max;
        if count > limit - before {
            return Err(WireError::TooLarge { what: "the number of records", limit });
        }
        Ok(count)
    }

    fn key(&mut self, before: Option<&str>) -> Result<Box<str>, WireError> {
        let bytes = self.bytes()?;
        let limit = self.limits.key_max_bytes;
        if bytes.len() > limit {
            return Err(WireError::TooLarge { what: "the length of a key", limit });
        }
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned();
        let key = str::from_utf8(bytes).map_err(|_| WireError::Key { key: shown() })?;
        Key::parse(key).map_err(|_| WireError::Key { key: shown() })?;
        if before.is_some_and(|before| before >= key) {
            return Err(WireError::Order { key: key.to_owned() });
        }
        Ok(key.into())
    }

    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.number()?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A number in its shortest spelling, as a change has one form alone.
    fn number(&mut self) -> Result<usize, WireError> {
        let mut number = 0_u64;
        for shift in (0..35).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let short = shift == 0 || *byte != 0;
                let number = usize::try_from(number).ok().filter(|_| short);
                return number.ok_or_else(|| WireError::Damaged("a length is none".to_owned()));
            }
        }
        Err(WireError::Damaged("a length is none".to_owned()))
    }
}

fn write_number(plain: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        plain.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    plain.push(number.to_le_bytes()[0]);
}

fn write_bytes(plain: &mut Vec<u8>, bytes: &[u8]) {
    write_number(plain, bytes.len());
    plain.extend_from_slice(bytes);
}
