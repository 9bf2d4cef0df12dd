//! What an AuthorizationPolicy asks of an HTTP request: its method, path, host and header fields.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A text, or several: `*` at either end stands for anything, alone for any text that is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPattern {
    /// Any text but the empty one.
    Present,
    /// That one.
    Exact(Arc<str>),
    /// Those that begin so.
    Prefix(Arc<str>),
    /// Those that end so.
    Suffix(Arc<str>),
}

impl TextPattern {
    /// Whether it takes this text.
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => text == exact.as_bytes(),
            Self::Prefix(start) => text.starts_with(start.as_bytes()),
            Self::Suffix(end) => text.ends_with(end.as_bytes()),
        }
    }
}

impl fmt::Display for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(start) => write!(f, "{start}*"),
            Self::Suffix(end) => write!(f, "*{end}"),
        }
    }
}

/// A part of a [`PathPattern::Template`], between slashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathPart {
    /// That one.
    Text(Arc<str>),
    /// `{*}`: any one that is not empty.
    One,
    /// `{**}`: any number of them. There is one at most.
    Many,
}

/// A path, or several.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathPattern {
    /// By its text as a whole.
    Text(TextPattern),
    /// By its parts, after the first slash.
    Template(Vec<PathPart>),
}

impl PathPattern {
    /// Whether it takes this path, which has no query.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.matches(path.as_bytes()),
            Self::Template(parts) => template_matches(parts, path),
        }
    }
}

fn template_matches(parts: &[PathPart], path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let elements: Vec<&str> = path.split('/').collect();
    let fits = |parts: &[PathPart], elements: &[&str]| {
        let one = |(part, element): (&PathPart, &&str)| match part {
            PathPart::Text(text) => **text == **element,
            PathPart::One => !element.is_empty(),
            PathPart::Many => false,
        };
        parts.len() == elements.len() && parts.iter().zip(elements).all(one)
    };
    let Some(many) = parts.iter().position(|part| *part == PathPart::Many) else {
        return fits(parts, &elements);
    };
    let (before, after) = (&parts[..many], &parts[many + 1..]);
    elements.len() >= before.len() + after.len()
        && fits(before, &elements[..before.len()])
        && fits(after, &elements[elements.len() - after.len()..])
}

/// What is asked of one header field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldTerm {
    /// Its name in lower case.
    pub name: Arc<str>,
    /// One of its values is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<TextPattern>,
    /// None of its values is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<TextPattern>,
}

impl FieldTerm {
    fn hold(&self, request: &dyn PolicyRequest, doubt: Doubt) -> bool {
        let said = |patterns: &[TextPattern]| {
            let mut said = Said::default();
            request.read_field(&self.name, &mut |value| {
                said.hears(patterns.iter().any(|pattern| pattern.matches(value)));
            });
            said
        };
        (self.values.is_empty() || said(&self.values).is(doubt))
            && (self.not_values.is_empty() || said(&self.not_values).is_not(doubt))
    }
}

/// For which answer a request that can be read in several ways is taken: what one program reads in a doubled field, or in a
/// path with doubled slashes, another one reads otherwise, and nobody knows which the pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// A term holds if it does in any reading: for rules that refuse.
    Holds,
    /// A term holds only if it does in every reading: for rules that allow.
    Fails,
}

/// What was found in the readings of a part of a request.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    /// One that is among what is looked for.
    one: bool,
    /// One that is not.
    other: bool,
}

impl Said {
    fn hears(&mut self, among: bool) {
        self.one |= among;
        self.other |= !among;
    }

    /// Whether the part is among what is looked for.
    fn is(self, doubt: Doubt) -> bool {
        self.one && (doubt == Doubt::Holds || !self.other)
    }

    /// Whether it is not. A part that is not there is not.
    fn is_not(self, doubt: Doubt) -> bool {
        !self.one || (doubt == Doubt::Holds && self.other)
    }
}

/// What is asked of a request; every field that is given must match, and one of its values is enough.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestTerms {
    /// The method is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<TextPattern>,
    /// The method is none of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<TextPattern>,
    /// The path is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
    /// The path is none of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<PathPattern>,
    /// The host, with its port or without, is one of these, which are in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<TextPattern>,
    /// The host, with its port or without, is none of these, which are in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<TextPattern>,
    /// What is asked of a header field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<FieldTerm>,
}

impl RequestTerms {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a request is as asked.
    pub fn hold(&self, request: &dyn PolicyRequest, doubt: Doubt) -> bool {
        let method = |patterns: &[TextPattern]| {
            patterns.iter().any(|pattern| pattern.matches(request.method().as_bytes()))
        };
        let path = |patterns: &[PathPattern]| {
            let mut said = Said::default();
            request.read_paths(&mut |path| said.hears(patterns.iter().any(|pattern| pattern.matches(path))));
            said
        };
        let host = |patterns: &[TextPattern]| !patterns.is_empty() && host_is(request.authority(), patterns);
        (self.methods.is_empty() || method(&self.methods))
            && !method(&self.not_methods)
            && (self.paths.is_empty() || path(&self.paths).is(doubt))
            && (self.not_paths.is_empty() || path(&self.not_paths).is_not(doubt))
            && (self.hosts.is_empty() || host(&self.hosts))
            && !host(&self.not_hosts)
            && self.field.as_ref().is_none_or(|field| field.hold(request, doubt))
    }
}

/// Whether an authority is one of these. A rule that names a host is about that host at every port, or a client could get
/// around a rule that refuses by saying the port.
fn host_is(authority: &str, patterns: &[TextPattern]) -> bool {
    let authority = authority.to_ascii_lowercase();
    let host = match authority.rsplit_once(':') {
        // The colons of an IPv6 address are within brackets.
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
        _ => &authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let is = |text: &str| patterns.iter().any(|pattern| pattern.matches(text.as_bytes()));
    is(&authority) || is(host)
}

/// A request as policies see it, which is as the pod does.
pub trait PolicyRequest {
    /// The method, case kept.
    fn method(&self) -> &str;
    /// Hands over the path without its query: as it is passed on and, where that is another, as a server reads it that merges
    /// slashes and decodes escaped ones.
    fn read_paths(&self, each: &mut dyn FnMut(&str));
    /// The host, with the port where the client said one.
    fn authority(&self) -> &str;
    /// Hands over the values of a header field, by its lower-case name: each and, of several, all joined by commas, as
    /// servers read them either way.
    fn read_field(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

/// What is known of what a client asks for.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    /// A request.
    Request(&'a dyn PolicyRequest),
    /// A connection in which no requests are told apart. As in Istio an ALLOW rule that asks something of a request never
    /// matches it, and a DENY rule applies as if it asked nothing.
    Opaque,
    /// Not yet known: refused is only what would be, whatever it turned out to be.
    Unread,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request that a test makes up.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Made {
        pub method: String,
        pub path: String,
        pub authority: String,
        pub fields: Vec<(String, String)>,
    }

    impl PolicyRequest for Made {
        fn method(&self) -> &str {
            &self.method
        }
        fn read_paths(&self, each: &mut dyn FnMut(&str)) {
            each(&self.path);
            if self.path.contains("//") {
                each(&self.path.replace("//", "/"));
            }
        }
        fn authority(&self) -> &str {
            &self.authority
        }
        fn read_field(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
            self.fields
                .iter()
                .filter(|(given, _)| given == name)
                .for_each(|(_, value)| each(value.as_bytes()));
        }
    }

    pub(crate) fn text(written: &str) -> TextPattern {
        match (written, written.strip_suffix('*'), written.strip_prefix('*')) {
            ("*", ..) => TextPattern::Present,
            (_, Some(start), _) => TextPattern::Prefix(start.into()),
            (_, _, Some(end)) => TextPattern::Suffix(end.into()),
            _ => TextPattern::Exact(written.into()),
        }
    }

    impl Made {
        /// `METHOD PATH HOST FIELD=VALUE...`.
        pub(crate) fn read(words: &str) -> Self {
            let mut words = words.split(' ').map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            let (method, path, authority) = (next(), next(), next());
            let fields = words.filter_map(|word| {
                Some((word.split_once('=')?.0.to_owned(), word.split_once('=')?.1.to_owned()))
            });
            Self { method, path, authority, fields: fields.collect() }
        }
    }

    #[test]
    fn templates_are_matched_part_by_part() {
        use PathPart::{Many, One};
        let text = |text: &str| PathPart::Text(text.into());
        let one = vec![text("a"), One, text("b")];
        let many = vec![text("a"), Many];
        let between = vec![One, Many, text("z")];
        let cases = [
            (&one, "/a/x/b", true),
            (&one, "/a//b", false),
            (&one, "/a/x/y/b", false),
            (&one, "/a/x/b/", false),
            (&many, "/a", true),
            (&many, "/a/", true),
            (&many, "/a/x/y", true),
            (&many, "/ab", false),
            (&between, "/x/z", true),
            (&between, "/x/y/y/z", true),
            (&between, "/z", false),
            (&between, "*", false),
        ];
        for (template, path, expected) in cases {
            assert_eq!(
                PathPattern::Template(template.clone()).matches(path),
                expected,
                "{template:?} {path}"
            );
        }
    }

    #[test]
    fn every_field_must_match_and_one_value_of_each_is_enough() {
        let path = |written: &str| PathPattern::Text(text(written));
        let empty = RequestTerms::default();
        let reads = RequestTerms { methods: vec![text("GET"), text("HEAD")], ..empty.clone() };
        let no_write = RequestTerms { not_methods: vec![text("P*")], ..empty.clone() };
        let open = RequestTerms { paths: vec![path("/ok"), path("/pub/*"), path("*.png")], ..empty.clone() };
        let no_admin = RequestTerms { not_paths: vec![path("/admin*")], ..empty.clone() };
        let host = RequestTerms { hosts: vec![text("a.com"), text("*.b.com")], ..empty.clone() };
        let port = RequestTerms { hosts: vec![text("a.com:81")], ..empty.clone() };
        let no_host = RequestTerms { not_hosts: vec![text("a.com"), text("[::1]")], ..empty.clone() };
        let field = |values: &[&str], not_values: &[&str]| RequestTerms {
            field: Some(FieldTerm {
                name: "x-a".into(),
                values: values.iter().copied().map(text).collect(),
                not_values: not_values.iter().copied().map(text).collect(),
            }),
            ..empty.clone()
        };
        let both = RequestTerms { methods: vec![text("GET")], paths: vec![path("/ok")], ..empty.clone() };
        let cases = [
            (&empty, "GET / a", true),
            (&reads, "HEAD / a", true),
            (&reads, "get / a", false),
            (&no_write, "PATCH / a", false),
            (&no_write, "GET / a", true),
            (&open, "GET /ok a", true),
            (&open, "GET /ok/ a", false),
            (&open, "GET /pub/x a", true),
            (&open, "GET /x.png a", true),
            (&no_admin, "GET /admin/x a", false),
            (&no_admin, "GET /Admin a", true),
            (&host, "GET / A.com", true),
            (&host, "GET / a.com:8080", true),
            (&host, "GET / a.com.", true),
            (&host, "GET / a.com.:80", true),
            (&host, "GET / x.b.com", true),
            (&host, "GET / b.com", false),
            (&port, "GET / a.com:81", true),
            (&port, "GET / a.com", false),
            (&no_host, "GET / a.com:80", false),
            (&no_host, "GET / [::1]:80", false),
            (&no_host, "GET / [::1]", false),
            (&no_host, "GET / [::2]", true),
            (&field(&["v*"], &[]), "GET / a x-b=v1", false),
            (&field(&["*"], &[]), "GET / a x-a=", false),
            (&field(&[], &["v"]), "GET / a", true),
            (&field(&[], &["v"]), "GET / a x-a=v", false),
            (&both, "GET /ok a", true),
            (&both, "POST /ok a", false),
            (&both, "GET /no a", false),
        ];
        for (terms, words, expected) in cases {
            for doubt in [Doubt::Holds, Doubt::Fails] {
                assert_eq!(terms.hold(&Made::read(words), doubt), expected, "{terms:?} {words}");
            }
        }
        // Where readings differ a rule that refuses takes the request, and one that allows does not.
        for (terms, words) in [
            (&field(&["v*"], &[]), "GET / a x-a=u x-a=v1"),
            (&field(&[], &["u"]), "GET / a x-a=u x-a=v1"),
            (&RequestTerms { paths: vec![path("/admin*")], ..empty.clone() }, "GET //admin a"),
            (&RequestTerms { not_paths: vec![path("/open")], ..empty.clone() }, "GET //open a"),
        ] {
            assert!(terms.hold(&Made::read(words), Doubt::Holds), "{terms:?} {words}");
            assert!(!terms.hold(&Made::read(words), Doubt::Fails), "{terms:?} {words}");
        }
    }
}
