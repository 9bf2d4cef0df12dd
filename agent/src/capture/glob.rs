//! Interface name patterns: `veth*,cali*`.

use std::fmt;
use std::str::FromStr;

/// A comma-separated list of patterns in which `*` is any run of characters and `?` any one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<String>);

/// A pattern list that names nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an interface pattern is empty; expected names like `veth*,cali*`")]
pub struct InvalidGlob;

impl FromStr for Glob {
    type Err = InvalidGlob;

    fn from_str(text: &str) -> Result<Self, InvalidGlob> {
        let patterns: Vec<String> = text.split(',').map(|pattern| pattern.trim().to_owned()).collect();
        if patterns.iter().any(String::is_empty) { Err(InvalidGlob) } else { Ok(Self(patterns)) }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Glob {
    /// Whether any pattern fits the whole name.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| fits(pattern.as_bytes(), name.as_bytes()))
    }
}

/// Matches greedily and goes back to the last `*` on a miss: linear for one star, never exponential.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((star_p, star_n)) => {
                    p = star_p + 1;
                    n = star_n + 1;
                    star = Some((star_p, star_n + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching() {
        let cases = [
            ("veth*", "veth12ab", true),
            ("veth*", "veth", true),
            ("veth*", "eth0", false),
            ("veth*,cali*", "cali9", true),
            ("lxc?", "lxc1", true),
            ("lxc?", "lxc", false),
            ("*a*b", "xaybzab", true),
            ("*a*b", "xaybza", false),
            ("eth0", "eth01", false),
            (" veth* , gke*", "gke7", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(pattern.parse::<Glob>().unwrap().matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn empty_patterns_are_refused() {
        for text in ["", "veth*,", ",", " "] {
            assert_eq!(text.parse::<Glob>(), Err(InvalidGlob), "{text:?}");
        }
    }
}
