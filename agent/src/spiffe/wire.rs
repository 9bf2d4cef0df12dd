//! The messages of `workload.proto` that are read here, by hand: two with a handful of fields do not need a generator.
//! Fields that are not known are passed over, as protobuf asks for.

use thiserror::Error;
use zeroize::Zeroizing;

/// Most identities and bundles of one message.
const ENTRIES_MAX: usize = 4096;

/// An answer of `FetchX509SVID`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SvidResponse {
    pub(super) svids: Vec<Svid>,
    /// Lists of revoked certificates, DER.
    pub(super) crls: Vec<Vec<u8>>,
}

/// One identity.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Svid {
    pub(super) id: String,
    /// Certificates in DER one after the other, its own first.
    pub(super) chain: Vec<u8>,
    /// PKCS #8, DER.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// The roots of its trust domain in DER one after the other.
    pub(super) bundle: Vec<u8>,
}

/// Without the key.
impl std::fmt::Debug for Svid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Svid({})", self.id)
    }
}

/// An answer of `FetchX509Bundles`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BundlesResponse {
    pub(super) crls: Vec<Vec<u8>>,
    /// Roots in DER one after the other, by the id of their trust domain.
    pub(super) bundles: Vec<(String, Vec<u8>)>,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum WireError {
    /// They end within a field.
    #[error("the message ends within a field")]
    Short,
    /// A varint of more than 64 bits, or a kind of field that there is not.
    #[error("the message has a field that protobuf does not know")]
    Field,
    /// A string that is none.
    #[error("the message has a string that is not UTF-8")]
    Utf8,
    /// More than anybody hands out.
    #[error("the message has more than {ENTRIES_MAX} entries")]
    Many,
}

impl SvidResponse {
    /// `X509SVIDResponse`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut response = Self::default();
        fields(bytes, |number, value| {
            match number {
                1 => response.svids.push(Svid::read(value)?),
                2 => response.crls.push(value.to_vec()),
                // Bundles of other trust domains: this mesh has one.
                _ => {}
            }
            bounded(response.svids.len() + response.crls.len())
        })?;
        Ok(response)
    }
}

impl Svid {
    /// `X509SVID`.
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut svid = Self::default();
        fields(bytes, |number, value| {
            match number {
                1 => svid.id = text(value)?,
                2 => svid.chain = value.to_vec(),
                3 => svid.key = Zeroizing::new(value.to_vec()),
                4 => svid.bundle = value.to_vec(),
                _ => {}
            }
            Ok(())
        })?;
        Ok(svid)
    }
}

impl BundlesResponse {
    /// `X509BundlesResponse`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut response = Self::default();
        fields(bytes, |number, value| {
            match number {
                1 => response.crls.push(value.to_vec()),
                2 => response.bundles.push(entry(value)?),
                _ => {}
            }
            bounded(response.bundles.len() + response.crls.len())
        })?;
        Ok(response)
    }
}

/// An entry of a map: key and value are fields 1 and 2.
fn entry(bytes: &[u8]) -> Result<(String, Vec<u8>), WireError> {
    let mut entry = (String::new(), Vec::new());
    fields(bytes, |number, value| {
        match number {
            1 => entry.0 = text(value)?,
            2 => entry.1 = value.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(entry)
}

fn text(value: &[u8]) -> Result<String, WireError> {
    str::from_utf8(value).map(str::to_owned).map_err(|_| WireError::Utf8)
}

fn bounded(entries: usize) -> Result<(), WireError> {
    if entries > ENTRIES_MAX { Err(WireError::Many) } else { Ok(()) }
}

/// Calls for each field with a length, which is all that these messages have.
fn fields(
    mut bytes: &[u8],
    mut take: impl FnMut(u64, &[u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let skipped = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            5 => 4,
            2 => {
                let length = varint(&mut bytes)?;
                let length = usize::try_from(length).map_err(|_| WireError::Short)?;
                let (value, rest) = bytes.split_at_checked(length).ok_or(WireError::Short)?;
                bytes = rest;
                take(tag >> 3, value)?;
                continue;
            }
            _ => return Err(WireError::Field),
        };
        bytes = bytes.get(skipped..).ok_or(WireError::Short)?;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(WireError::Short)?;
        *bytes = rest;
        let part = u64::from(first & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && part > 1 {
            return Err(WireError::Field);
        }
        value |= part << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(WireError::Field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(number: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        let mut length = value.len();
        while length > 0x7f {
            bytes.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        bytes.push(u8::try_from(length).expect("seven bits"));
        bytes.extend_from_slice(value);
        bytes
    }

    #[test]
    fn messages_are_read_and_what_is_not_known_is_passed_over() {
        let unknown =
            [&[0x48, 0x96, 0x01][..], &[0x51, 1, 2, 3, 4, 5, 6, 7, 8], &[0x5d, 1, 2, 3, 4]].concat();
        let parts = [(1, &b"spiffe://a/b"[..]), (2, b"chain"), (3, b"key"), (4, b"roots"), (5, b"hint")];
        let svid = parts.map(|(number, value)| put(number, value)).concat();
        let long = vec![7; 300];
        let message = [put(1, &svid), unknown.clone(), put(2, &long), put(3, b"\x0a\x01a")].concat();
        let read = SvidResponse::read(&message).expect("a message");
        let expected = Svid {
            id: "spiffe://a/b".to_owned(),
            chain: b"chain".to_vec(),
            key: Zeroizing::new(b"key".to_vec()),
            bundle: b"roots".to_vec(),
        };
        assert_eq!(read, SvidResponse { svids: vec![expected], crls: vec![long] });
        assert!(!format!("{read:?}").contains("key"));
        let entry = [put(1, b"spiffe://a"), put(2, b"roots")].concat();
        let message = [put(2, &entry), unknown, put(1, b"list"), put(2, b"")].concat();
        let bundles = vec![("spiffe://a".to_owned(), b"roots".to_vec()), (String::new(), Vec::new())];
        let read = BundlesResponse::read(&message).expect("a message");
        assert_eq!(read, BundlesResponse { crls: vec![b"list".to_vec()], bundles });
        assert_eq!(SvidResponse::read(b"").expect("an empty message"), SvidResponse::default());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let many = put(2, b"").repeat(ENTRIES_MAX + 1);
        let cases: [(&[u8], WireError); 9] = [
            (b"\x0a", WireError::Short),
            (b"\x0a\x05abc", WireError::Short),
            (b"\x0a\x80", WireError::Short),
            (b"\x49\x01\x02", WireError::Short),
            (b"\x0b", WireError::Field),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", WireError::Field),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", WireError::Field),
            (b"\x0a\x03\x0a\x01\xff", WireError::Utf8),
            (&many, WireError::Many),
        ];
        for (bytes, expected) in cases {
            let shown = &bytes[..bytes.len().min(12)];
            assert_eq!(SvidResponse::read(bytes).err(), Some(expected), "{shown:02x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = SvidResponse::read(&bytes);
            let _ = BundlesResponse::read(&bytes);
        }

        #[test]
        fn what_was_written_is_read(id in "[a-z:/]{0,40}", chain: Vec<u8>, key: Vec<u8>, bundle: Vec<u8>) {
            let parts = [(1, id.as_bytes()), (2, &chain), (3, &key), (4, &bundle)];
            let svid = parts.map(|(number, value)| put(number, value)).concat();
            let read = SvidResponse::read(&put(1, &svid)).expect("a message");
            let key = Zeroizing::new(key);
            prop_assert_eq!(read.svids, vec![Svid { id, chain, key, bundle }]);
        }
    }
}
