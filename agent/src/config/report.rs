//! What became of each document: the state per object and messages that name file, line and field. Shown by
//! `sluice status` and `sluice analyze`, in the log and as metrics.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// Applied, but hardly what its author means.
    Warning,
    /// Refused, or it answers with errors.
    Error,
}

impl Severity {
    /// The severity as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a message is about: Istio's analysis codes where one fits, the Gateway API's condition reasons for its kinds,
/// else a word of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The file can't be read as YAML or JSON.
    InvalidYaml,
    /// IST0101: a reference to an object that is not there.
    ReferencedResourceNotFound,
    /// IST0106: the object does not fit its kind.
    SchemaValidationError,
    /// IST0109: several VirtualServices of the mesh name one host.
    ConflictingMeshGatewayVirtualServiceHosts,
    /// IST0118: a port's name does not tell its protocol.
    PortNameIsNotUnderNamingConvention,
    /// IST0130: a rule that an earlier one hides.
    UnreachableRule,
    /// IST0173: a subset whose labels no pod has.
    SubsetSelectsNoPods,
    /// IST0174: a DestinationRule whose host is no service.
    UnknownDestinationRuleHost,
    /// Two documents of one kind and name.
    DuplicateObject,
    /// An address and port that another Service has.
    DuplicateAddress,
    /// A kind or API version that is not known.
    UnknownKind,
    /// A field, a value or a kind that a later release enforces.
    NotYetEnforced,
    /// A value that is accepted without effect.
    Ignored,
    /// Gateway API `RefNotPermitted`: a reference into another namespace without a ReferenceGrant.
    RefNotPermitted,
    /// Gateway API `BackendNotFound`: a backend that is not there.
    BackendNotFound,
    /// Gateway API `InvalidCACertificateKind`: CA certificates of a kind that holds none.
    InvalidCaCertificateKind,
    /// Gateway API `InvalidCACertificateRef`: CA certificates that are not there, or can't be used.
    InvalidCaCertificateRef,
    /// Gateway API `InvalidCertificateRef`: a certificate that is not there, or can't be used.
    InvalidCertificateRef,
    /// Gateway API `InvalidKind`: a reference to a kind that can't be referred to.
    InvalidKind,
    /// Gateway API `NoMatchingParent`: no listener of the parent takes the route.
    NoMatchingParent,
    /// Gateway API `NotAllowedByListeners`: the parent's listeners refuse the route's namespace or kind.
    NotAllowedByListeners,
    /// Gateway API `NoMatchingListenerHostname`: the route's hostnames meet none of the parent's.
    NoMatchingListenerHostname,
    /// Gateway API `Conflicted`: an older policy is for the same.
    Conflicted,
    /// Gateway API conflict of two listeners on one port.
    ListenerConflict,
}

impl Code {
    /// Whether it is about a reference, and so may be over once another object is mended.
    fn is_about_another(self) -> bool {
        matches!(
            self,
            Self::ReferencedResourceNotFound
                | Self::SubsetSelectsNoPods
                | Self::UnknownDestinationRuleHost
                | Self::BackendNotFound
                | Self::InvalidCaCertificateRef
                | Self::InvalidCertificateRef
                | Self::NoMatchingParent
        )
    }

    /// The code as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidYaml => "InvalidYaml",
            Self::ReferencedResourceNotFound => "IST0101",
            Self::SchemaValidationError => "IST0106",
            Self::ConflictingMeshGatewayVirtualServiceHosts => "IST0109",
            Self::PortNameIsNotUnderNamingConvention => "IST0118",
            Self::UnreachableRule => "IST0130",
            Self::SubsetSelectsNoPods => "IST0173",
            Self::UnknownDestinationRuleHost => "IST0174",
            Self::DuplicateObject => "DuplicateObject",
            Self::DuplicateAddress => "DuplicateAddress",
            Self::UnknownKind => "UnknownKind",
            Self::NotYetEnforced => "NotYetEnforced",
            Self::Ignored => "Ignored",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::BackendNotFound => "BackendNotFound",
            Self::InvalidCaCertificateKind => "InvalidCACertificateKind",
            Self::InvalidCaCertificateRef => "InvalidCACertificateRef",
            Self::InvalidCertificateRef => "InvalidCertificateRef",
            Self::InvalidKind => "InvalidKind",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::NotAllowedByListeners => "NotAllowedByListeners",
            Self::NoMatchingListenerHostname => "NoMatchingListenerHostname",
            Self::Conflicted => "Conflicted",
            Self::ListenerConflict => "ListenerConflict",
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing to say about an object or a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about.
    pub code: Code,
    /// The line, from 1; 0 where there is none.
    pub line: u32,
    /// The field's path, as in `spec.http[0].route[1].weight`; empty: the object as a whole.
    pub field: String,
    /// The message for people.
    pub text: String,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ObjectState {
    /// All of it is in force.
    Applied,
    /// It is accepted, but these fields are not enforced yet; none: the kind as a whole.
    NotEnforced {
        /// Paths of the fields.
        fields: Vec<String>,
    },
    /// It is refused.
    Rejected {
        /// Whether an earlier, valid version of it is still in force.
        last_good: bool,
    },
}

impl ObjectState {
    /// The state as it is shown: `applied`, `partly enforced`, `not yet enforced`, `rejected`, `rejected, last good kept`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotEnforced { fields } if fields.is_empty() => "not yet enforced",
            Self::NotEnforced { .. } => "partly enforced",
            Self::Rejected { last_good: false } => "rejected",
            Self::Rejected { last_good: true } => "rejected, last good kept",
        }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReport {
    /// The API version as written.
    pub api_version: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// The namespace; empty for kinds without one.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The file.
    pub file: Arc<str>,
    /// The line where the object begins.
    pub line: u32,
    /// What became of it.
    #[serde(flatten)]
    pub state: ObjectState,
    /// What there is to say about it.
    pub messages: Vec<Message>,
}

impl ObjectReport {
    /// `Kind namespace/name`, or `Kind name` for kinds without a namespace.
    pub fn title(&self) -> String {
        if self.namespace.is_empty() {
            format!("{} {}", self.kind, self.name)
        } else {
            format!("{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One file, or the directory itself where it can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    /// Its path.
    pub file: Arc<str>,
    /// Objects of it that are in force.
    pub objects: usize,
    /// Why it can't be read, in which case its last good objects stay in force; or what of it is passed over.
    pub messages: Vec<Message>,
}

/// What became of all documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files, sorted by name.
    pub files: Vec<FileReport>,
    /// Objects, in the order of files and lines.
    pub objects: Vec<ObjectReport>,
}

impl Report {
    /// How many messages have this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let files = self.files.iter().flat_map(|file| &file.messages);
        let objects = self.objects.iter().flat_map(|object| &object.messages);
        files.chain(objects).filter(|message| message.severity == severity).count()
    }

    /// Whether anything is refused or answers with errors.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// One line for each message, for logs and terminals: `file:line: severity: Kind ns/name: field: text [code]`.
    pub fn lines(&self) -> impl Iterator<Item = (Severity, String)> {
        self.shown().map(|line| (line.message.severity, line.to_string()))
    }

    /// The same, with what may only follow from another object's message after all others.
    pub fn lines_by_cause(&self) -> impl Iterator<Item = (Severity, String)> {
        let mut lines: Vec<_> = self.shown().collect();
        lines.sort_by_key(|line| line.message.code.is_about_another());
        lines.into_iter().map(|line| (line.message.severity, line.to_string()))
    }

    fn shown(&self) -> impl Iterator<Item = Line<'_>> {
        let files = self.files.iter().flat_map(|file| {
            file.messages.iter().map(move |message| Line { file: &file.file, title: None, message })
        });
        let objects = self.objects.iter().flat_map(|object| {
            let title = || Some(object.title());
            object.messages.iter().map(move |message| Line { file: &object.file, title: title(), message })
        });
        files.chain(objects)
    }
}

struct Line<'a> {
    file: &'a str,
    title: Option<String>,
    message: &'a Message,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Message { severity, code, line, field, text } = self.message;
        f.write_str(self.file)?;
        if *line > 0 {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", severity.as_str())?;
        if let Some(title) = &self.title {
            write!(f, ": {title}")?;
        }
        if !field.is_empty() {
            write!(f, ": {field}")?;
        }
        write!(f, ": {text} [{}]", code.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let message = Message {
            severity: Severity::Error,
            code: Code::SchemaValidationError,
            line: 7,
            field: "spec.http[0].weigth".to_owned(),
            text: "unknown field".to_owned(),
        };
        let broken = Message { line: 0, field: String::new(), code: Code::InvalidYaml, ..message.clone() };
        Report {
            files: vec![FileReport { file: "b.yaml".into(), objects: 0, messages: vec![broken] }],
            objects: vec![ObjectReport {
                api_version: "networking.istio.io/v1".into(),
                kind: "VirtualService".into(),
                namespace: "shop".into(),
                name: "orders".into(),
                file: "a.yaml".into(),
                line: 2,
                state: ObjectState::Rejected { last_good: true },
                messages: vec![message],
            }],
        }
    }

    #[test]
    fn lines_name_file_line_object_and_field() {
        let report = report();
        let lines: Vec<_> = report.lines().map(|(_, line)| line).collect();
        assert_eq!(
            lines,
            [
                "b.yaml: error: unknown field [InvalidYaml]",
                "a.yaml:7: error: VirtualService shop/orders: spec.http[0].weigth: unknown field [IST0106]",
            ]
        );
        assert!(report.has_errors());
        assert!(!Report::default().has_errors());
    }

    #[test]
    fn json_is_flat_and_camel_case() {
        let json = serde_json::to_value(report()).expect("a report is plain data");
        let object = &json["objects"][0];
        assert_eq!(object["state"], "rejected");
        assert_eq!(object["lastGood"], true);
        assert_eq!(object["apiVersion"], "networking.istio.io/v1");
        assert_eq!(object["messages"][0]["code"], "IST0106");
        assert_eq!(object["messages"][0]["severity"], "error");
    }
}
