//! How an input is cut: into its sections, and into the pieces in which it arrives.

/// What stands between the sections of an input.
pub const SEPARATOR: &[u8] = b"\n---\n";

/// The sections of an input: what the client sends, then what upstreams answer, one after the other.
pub fn sections(mut input: &[u8]) -> Vec<&[u8]> {
    let mut sections = Vec::new();
    while let Some(at) = input.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        sections.push(&input[..at]);
        input = &input[at + SEPARATOR.len()..];
    }
    sections.push(input);
    sections
}

/// Sizes of pieces, the same for the same input.
#[derive(Debug, Clone)]
pub struct Sizes(Option<u64>);

impl Sizes {
    /// Everything at once.
    pub fn whole() -> Self {
        Self(None)
    }

    /// Sizes that follow from `input`.
    pub fn of(input: &[u8]) -> Self {
        let mixed = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(Some(mixed | 1))
    }

    /// The next size: mostly small, sometimes large.
    pub fn take(&mut self) -> usize {
        let Some(state) = &mut self.0 else { return usize::MAX };
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let size = usize::try_from(*state >> 32).unwrap_or_default();
        if size % 4 == 0 { 1 + size % 97 } else { 1 + size % 7 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_sizes() {
        assert_eq!(sections(b"a\n---\n\n---\nb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(sections(b""), [b""]);
        let mut sizes = Sizes::of(b"x");
        assert!((0..100).all(|_| (1..=97).contains(&sizes.take())));
        assert_eq!(Sizes::whole().take(), usize::MAX);
    }
}
