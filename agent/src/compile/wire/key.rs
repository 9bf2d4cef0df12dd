//! What a record is about, as a value and as text.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::model::{ObjectName, RouteKind};

/// What a record is about. Of several values that would have one key, the first has it, and the others have it with
/// their number from 1.
///
/// As text: parts between slashes, the first of which is the kind. In a part, `%`, `/` and `~` are written as `%25`, `%2F`
/// and `%7E`; a number above zero follows the last part of what it numbers after a `~`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// `authorization/NAMESPACE/NAME`.
    Authorization(NameKey),
    /// `datagram/NAMESPACE/SERVICE/PORT/ADDRESS`: an endpoint of a UDP port.
    Datagram(EndpointKey),
    /// `endpoint/NAMESPACE/SERVICE/PORT/ADDRESS`: an endpoint of a TCP port.
    Endpoint(EndpointKey),
    /// `guard/NAMESPACE/NAME`.
    Guard(NameKey),
    /// `limit/NAMESPACE/NAME`.
    Limit(NameKey),
    /// `listener/NAMESPACE/GATEWAY/NAME`.
    Listener(ListenerKey),
    /// `listener/NAMESPACE/GATEWAY/NAME/KIND/NAMESPACE/NAME`: a route on a listener.
    Attached(ListenerKey, RouteKey),
    /// `peer/NAMESPACE/NAME`.
    Peer(NameKey),
    /// `policy/NAMESPACE/SERVICE`.
    Policy(NameKey),
    /// `route/KIND/NAMESPACE/NAME`: a route of the mesh.
    Route(RouteKey),
    /// `service/NAMESPACE/NAME`.
    Service(NameKey),
    /// `workload/NAMESPACE/NAME`.
    Workload(NameKey),
}

/// One of the objects with a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameKey {
    pub(crate) name: ObjectName,
    pub(crate) nth: u32,
}

/// One of the endpoints of a service's port with an address; the order is that of the model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EndpointKey {
    pub(crate) service: ObjectName,
    pub(crate) place: Place,
}

/// Where an endpoint is within its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) port: u16,
    pub(crate) address: SocketAddr,
    pub(crate) nth: u32,
}

/// One of the listeners of a Gateway with a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ListenerKey {
    pub(crate) gateway: ObjectName,
    pub(crate) name: Arc<str>,
    pub(crate) nth: u32,
}

/// One of the route tables of a document. An HTTPRoute has two where services of its own namespace are among its parents
/// and such of others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RouteKey {
    pub(crate) kind: RouteKind,
    pub(crate) source: ObjectName,
    pub(crate) nth: u32,
}

/// The text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidKey;

impl Key {
    /// Reads a key; `None` for a kind of records that this version does not know. A key has one spelling alone.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, InvalidKey> {
        let (kind, rest) = text.split_once('/').ok_or(InvalidKey)?;
        let read: fn(&mut Parts<'_>) -> Option<Self> = match kind {
            "authorization" => |parts| Some(Self::Authorization(parts.name()?)),
            "datagram" => |parts| Some(Self::Datagram(parts.endpoint()?)),
            "endpoint" => |parts| Some(Self::Endpoint(parts.endpoint()?)),
            "guard" => |parts| Some(Self::Guard(parts.name()?)),
            "limit" => |parts| Some(Self::Limit(parts.name()?)),
            "listener" => |parts| {
                let listener = parts.listener()?;
                Some(match parts.0.next() {
                    Some(kind) => Self::Attached(listener, parts.route_of(kind)?),
                    None => Self::Listener(listener),
                })
            },
            "peer" => |parts| Some(Self::Peer(parts.name()?)),
            "policy" => |parts| Some(Self::Policy(parts.name()?)),
            "route" => |parts| Some(Self::Route(parts.route()?)),
            "service" => |parts| Some(Self::Service(parts.name()?)),
            "workload" => |parts| Some(Self::Workload(parts.name()?)),
            _ => return Ok(None),
        };
        let key = read(&mut Parts(rest.split('/'))).ok_or(InvalidKey)?;
        // Numbers and addresses have several spellings for the parsers; what is left over is no key either.
        if key.to_string() == text { Ok(Some(key)) } else { Err(InvalidKey) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authorization(key) => write!(f, "authorization/{key}"),
            Self::Datagram(key) => write!(f, "datagram/{key}"),
            Self::Endpoint(key) => write!(f, "endpoint/{key}"),
            Self::Guard(key) => write!(f, "guard/{key}"),
            Self::Limit(key) => write!(f, "limit/{key}"),
            Self::Listener(key) => write!(f, "listener/{key}"),
            Self::Attached(listener, key) => write!(f, "listener/{listener}/{key}"),
            Self::Peer(key) => write!(f, "peer/{key}"),
            Self::Policy(key) => write!(f, "policy/{key}"),
            Self::Route(key) => write!(f, "route/{key}"),
            Self::Service(key) => write!(f, "service/{key}"),
            Self::Workload(key) => write!(f, "workload/{key}"),
        }
    }
}

impl fmt::Display for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Name(&self.name), Nth(self.nth))
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { port, address, nth } = &self.place;
        write!(f, "{}/{port}/{address}{}", Name(&self.service), Nth(*nth))
    }
}

impl fmt::Display for ListenerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", Name(&self.gateway), Part(&self.name), Nth(self.nth))
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.kind.as_str(), Name(&self.source), Nth(self.nth))
    }
}

impl FromStr for RouteKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let key = Parts(text.split('/')).route().ok_or(InvalidKey)?;
        if key.to_string() == text { Ok(key) } else { Err(InvalidKey) }
    }
}

impl FromStr for ListenerKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let key = Parts(text.split('/')).listener().ok_or(InvalidKey)?;
        if key.to_string() == text { Ok(key) } else { Err(InvalidKey) }
    }
}

struct Name<'a>(&'a ObjectName);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Part(&self.0.namespace), Part(&self.0.name))
    }
}

struct Part<'a>(&'a str);

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['%', '/', '~']) {
            f.write_str(&rest[..at])?;
            write!(f, "%{:02X}", rest.as_bytes()[at])?;
            rest = &rest[at + 1..];
        }
        f.write_str(rest)
    }
}

struct Nth(u32);

impl fmt::Display for Nth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "~{}", self.0) }
    }
}

/// The parts of a text that are still to be read.
struct Parts<'a>(std::str::Split<'a, char>);

impl Parts<'_> {
    fn name(&mut self) -> Option<NameKey> {
        let namespace = plain(self.0.next()?)?;
        let (name, nth) = numbered(self.0.next()?)?;
        Some(NameKey { name: ObjectName { namespace, name: plain(name)? }, nth })
    }

    fn endpoint(&mut self) -> Option<EndpointKey> {
        let service = ObjectName { namespace: plain(self.0.next()?)?, name: plain(self.0.next()?)? };
        let port = self.0.next()?.parse().ok()?;
        let (address, nth) = numbered(self.0.next()?)?;
        Some(EndpointKey { service, place: Place { port, address: address.parse().ok()?, nth } })
    }

    fn listener(&mut self) -> Option<ListenerKey> {
        let gateway = ObjectName { namespace: plain(self.0.next()?)?, name: plain(self.0.next()?)? };
        let (name, nth) = numbered(self.0.next()?)?;
        Some(ListenerKey { gateway, name: plain(name)?, nth })
    }

    fn route(&mut self) -> Option<RouteKey> {
        let kind = self.0.next()?;
        self.route_of(kind)
    }

    fn route_of(&mut self, kind: &str) -> Option<RouteKey> {
        let kind = [RouteKind::VirtualService, RouteKind::HttpRoute, RouteKind::TlsRoute]
            .into_iter()
            .find(|known| known.as_str() == kind)?;
        let NameKey { name, nth } = self.name()?;
        Some(RouteKey { kind, source: name, nth })
    }
}

fn numbered(part: &str) -> Option<(&str, u32)> {
    match part.split_once('~') {
        Some((part, number)) => Some((part, number.parse().ok()?)),
        None => Some((part, 0)),
    }
}

fn plain(part: &str) -> Option<Arc<str>> {
    if !part.contains('%') {
        return Some(part.into());
    }
    let mut pieces = part.split('%');
    let mut plain = pieces.next()?.to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        plain.push(match code {
            "25" => '%',
            "2F" => '/',
            "7E" => '~',
            _ => return None,
        });
        plain.push_str(rest);
    }
    Some(plain.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let name = |namespace: &str, name: &str, nth| NameKey { name: ObjectName::new(namespace, name), nth };
        let place = |port, address: &str, nth| Place { port, address: address.parse().expect("is one"), nth };
        let endpoint = |place| EndpointKey { service: ObjectName::new("shop", "order"), place };
        let listener =
            |name: &str, nth| ListenerKey { gateway: ObjectName::new("edge", "gw"), name: name.into(), nth };
        let route = |kind, name: &str, nth| RouteKey { kind, source: ObjectName::new("shop", name), nth };
        let cases = [
            (Key::Authorization(name("shop", "deny", 0)), "authorization/shop/deny"),
            (Key::Datagram(endpoint(place(53, "10.0.0.1:5353", 0))), "datagram/shop/order/53/10.0.0.1:5353"),
            (
                Key::Endpoint(endpoint(place(80, "[fd00::1]:8080", 2))),
                "endpoint/shop/order/80/[fd00::1]:8080~2",
            ),
            (Key::Guard(name("", "edge", 0)), "guard//edge"),
            (Key::Limit(name("a", "b", 0)), "limit/a/b"),
            (Key::Listener(listener("http", 0)), "listener/edge/gw/http"),
            (
                Key::Attached(listener("http", 1), route(RouteKind::HttpRoute, "all", 0)),
                "listener/edge/gw/http~1/HTTPRoute/shop/all",
            ),
            (Key::Peer(name("shop", "strict", 0)), "peer/shop/strict"),
            (Key::Policy(name("a/b", "c%d~e", 0)), "policy/a%2Fb/c%25d%7Ee"),
            (Key::Route(route(RouteKind::VirtualService, "canary", 1)), "route/VirtualService/shop/canary~1"),
            (Key::Service(name("ü", "", 0)), "service/ü/"),
            (Key::Workload(name("shop", "pod-1", 0)), "workload/shop/pod-1"),
        ];
        for (key, text) in cases {
            assert_eq!(key.to_string(), text);
            assert_eq!(Key::parse(text), Ok(Some(key)), "{text}");
        }
    }

    #[test]
    fn a_key_has_one_spelling() {
        for text in [
            "",
            "service",
            "service/a",
            "service/a/b/c",
            "service/a/b~0",
            "service/a/b~01",
            "service/a/b~-1",
            "service/a/b~",
            "service/a~1/b",
            "service/a/b%2f",
            "service/a/b%41",
            "service/a/b%2",
            "service/a/b%2ü",
            "endpoint/a/b/80",
            "endpoint/a/b/+80/10.0.0.1:80",
            "endpoint/a/b/80/10.0.0.1:080",
            "endpoint/a/b/80/10.0.0.1",
            "endpoint/a/b/80/[FD00::1]:80",
            "endpoint/a/b/99999/10.0.0.1:80",
            "route/GRPCRoute/a/b",
            "route/HTTPRoute/a",
            "listener/a/b",
            "listener/a/b/c/HTTPRoute/d",
            "listener/a/b/c/",
        ] {
            assert_eq!(Key::parse(text), Err(InvalidKey), "{text}");
        }
        assert_eq!(Key::parse("teapot/a/b/c/d"), Ok(None));
    }
}
