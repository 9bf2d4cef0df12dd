//! Where Redis is, as a URL says it.

use std::fmt;

use crate::cluster::StoreError;

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A URL that was read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    pub hosts: Vec<(String, u16)>,
    pub way: Way,
}

/// How the server that has our keys is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// It is the only one.
    Single { database: i64 },
    /// Its Sentinels say where it is.
    Sentinel { master: String },
    /// Redis Cluster.
    Cluster,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("hosts", &self.hosts).field("way", &self.way).finish_non_exhaustive()
    }
}

impl Target {
    /// Reads `redis[s][+sentinel|+cluster]://[[USER]:PASSWORD@]HOST[:PORT][,...][/DATABASE or /MASTER]`.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        // The URL may hold a password: what is wrong is said without it.
        let wrong = |why: &str| StoreError::Unfit(format!("the Redis URL {why}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme, such as redis://"))?;
        let (tls, way) = match scheme.split_once('+').map_or((scheme, None), |(base, way)| (base, Some(way)))
        {
            ("redis", way) => (false, way),
            ("rediss", way) => (true, way),
            _ => return Err(wrong("begins with none of redis, rediss, redis+sentinel, redis+cluster")),
        };
        let (credentials, rest) =
            rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (way, port) = match way {
            None => {
                (single(path).ok_or_else(|| wrong("ends with a database that is no number"))?, REDIS_PORT)
            }
            Some("sentinel") if path.is_empty() => return Err(wrong("ends without /MASTER")),
            Some("sentinel") => (Way::Sentinel { master: path.to_owned() }, SENTINEL_PORT),
            Some("cluster") if path.is_empty() => (Way::Cluster, REDIS_PORT),
            Some("cluster") => return Err(wrong("names a database, and Redis Cluster has only one")),
            Some(_) => return Err(wrong("has another way than +sentinel or +cluster")),
        };
        let hosts: Option<Vec<_>> = hosts.split(',').map(|host| address(host, port)).collect();
        let hosts = hosts.ok_or_else(|| wrong("names no host, or a wrong port"))?;
        if hosts.len() > 1 && matches!(way, Way::Single { .. }) {
            return Err(wrong("names several hosts without +sentinel or +cluster"));
        }
        let (user, password) = match credentials.map(|text| text.split_once(':').ok_or(text)) {
            None => (None, None),
            Some(Ok((user, password))) => (Some(user), Some(password)),
            Some(Err(user)) => (Some(user), None),
        };
        let decoded = |text: Option<&str>| match text.filter(|text| !text.is_empty()) {
            Some(text) => {
                decode(text).map(Some).ok_or_else(|| wrong("has credentials with a wrong % in them"))
            }
            None => Ok(None),
        };
        Ok(Self { tls, user: decoded(user)?, password: decoded(password)?, hosts, way })
    }

    /// Whether somebody makes another server the master when this one fails.
    pub fn is_watched(&self) -> bool {
        !matches!(self.way, Way::Single { .. })
    }
}

fn single(path: &str) -> Option<Way> {
    let database = if path.is_empty() { 0 } else { path.parse().ok().filter(|database| *database >= 0)? };
    Some(Way::Single { database })
}

/// `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`.
fn address(text: &str, port: u16) -> Option<(String, u16)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None if rest.is_empty() => port,
        None => return None,
    };
    let fits = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "?#%".contains(c));
    fits.then(|| (host.to_owned(), port))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, hosts: &[(&str, u16)], way: &Way) -> Target {
        let target = Target::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        let found: Vec<_> = target.hosts.iter().map(|(host, port)| (host.as_str(), *port)).collect();
        assert_eq!((found.as_slice(), &target.way), (hosts, way), "{url}");
        target
    }

    #[test]
    fn urls_name_hosts_credentials_and_the_way() {
        let single = Way::Single { database: 0 };
        assert!(!check("redis://h", &[("h", 6379)], &single).tls);
        assert!(check("rediss://h:1/", &[("h", 1)], &single).tls);
        check("redis://[::1]:7/3", &[("::1", 7)], &Way::Single { database: 3 });
        let target = check("redis://me:p%40s:s%2f@h:1", &[("h", 1)], &single);
        assert_eq!((target.user.as_deref(), target.password.as_deref()), (Some("me"), Some("p@s:s/")));
        let target = check("redis://:p@h", &[("h", 6379)], &single);
        assert_eq!((target.user.as_deref(), target.password.as_deref()), (None, Some("p")));
        let target = check("redis://me@h", &[("h", 6379)], &single);
        assert_eq!((target.user.as_deref(), target.password.as_deref()), (Some("me"), None));
        let sentinel = Way::Sentinel { master: "m y".to_owned() };
        let target = check("rediss+sentinel://u:p@a:1,b/m y", &[("a", 1), ("b", 26379)], &sentinel);
        assert!(target.tls && !format!("{target:?}").contains('p'), "{target:?}");
        check("redis+cluster://a,[fe80::1]:2,c", &[("a", 6379), ("fe80::1", 2), ("c", 6379)], &Way::Cluster);
    }

    #[test]
    fn wrong_urls_are_refused_without_their_secret() {
        for url in [
            "",
            "h:6379",
            "http://h",
            "redis+unix://h",
            "redis://",
            "redis://h:0",
            "redis://h:secret",
            "redis://h:99999",
            "redis://a,b",
            "redis://h/-1",
            "redis://h/secret",
            "redis://u:%secret@h",
            "redis://u:%f@h",
            "redis+sentinel://h",
            "redis+sentinel://a,,b/m",
            "redis+cluster://h/1",
            "redis://[::1",
            "redis://[::1]x",
            "redis://h?secret",
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains("the Redis URL") && !error.contains("secret"), "{url}: {error}");
        }
    }
}
