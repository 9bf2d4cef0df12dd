//! The layout of what is pinned: maps that outlive an agent and are read by the next one.

/// Bumped when the meaning of a pinned map's keys or values changes. Kinds, sizes and capacities need no bump: they are
/// part of the layout's name anyway.
pub const MEANING: u32 = 4;

/// What the kernel knows of a map's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapShape<'a> {
    /// Its name in the object.
    pub name: &'a str,
    /// The kernel's number of its kind.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// The most entries.
    pub max_entries: u32,
    /// Flags that it is made with.
    pub flags: u32,
}

/// A number that differs where any shape or the meaning differs (FNV-1a, 64 bits). The order of the maps counts.
pub fn fingerprint(meaning: u32, maps: &[MapShape<'_>]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let add =
        |hash: u64, bytes: &[u8]| bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(PRIME));
    let mut hash = add(OFFSET, &meaning.to_le_bytes());
    for map in maps {
        hash = add(hash, map.name.as_bytes());
        // No name has this byte, so that a name never runs into what follows.
        hash = add(hash, &[0xff]);
        for number in [map.kind, map.key_size, map.value_size, map.max_entries, map.flags] {
            hash = add(hash, &number.to_le_bytes());
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: MapShape<'_> = MapShape {
        name: "DESTINATIONS",
        kind: 1,
        key_size: 20,
        value_size: 4,
        max_entries: 65_536,
        flags: 0,
    };

    #[test]
    fn every_part_of_the_layout_counts() {
        let other = MapShape { name: "COUNTERS", ..BASE };
        let base = fingerprint(MEANING, &[BASE, other]);
        let variants = [
            fingerprint(MEANING + 1, &[BASE, other]),
            fingerprint(MEANING, &[BASE]),
            fingerprint(MEANING, &[other, BASE]),
            fingerprint(MEANING, &[MapShape { name: "DESTINATION", ..BASE }, other]),
            fingerprint(MEANING, &[MapShape { kind: 2, ..BASE }, other]),
            fingerprint(MEANING, &[MapShape { key_size: 24, ..BASE }, other]),
            fingerprint(MEANING, &[MapShape { value_size: 8, ..BASE }, other]),
            fingerprint(MEANING, &[MapShape { max_entries: 1, ..BASE }, other]),
            fingerprint(MEANING, &[MapShape { flags: 1, ..BASE }, other]),
        ];
        for (index, variant) in variants.iter().enumerate() {
            assert_ne!(*variant, base, "variant {index} looks like the base");
        }
        assert_eq!(fingerprint(MEANING, &[BASE, other]), base, "the same layout has the same number");
    }
}
