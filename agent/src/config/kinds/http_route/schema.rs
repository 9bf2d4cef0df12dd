//! The spelling of HTTPRoute.

use serde::Deserialize;

use super::super::super::node::{Extra, Known};
use super::super::DOCUMENT;

/// Fields that are not enforced yet.
pub(super) const EXTRAS: &[&[Extra]] = &[
    DOCUMENT,
    &[
        Extra { of: "HttpRouteSpec", fields: &[Known::Later("useDefaultGateways", &[])] },
        Extra {
            of: "RuleSpec",
            fields: &[
                Known::Later("retry", &["attempts", "backoff", "codes"]),
                Known::Later(
                    "sessionPersistence",
                    &["absoluteTimeout", "cookieConfig", "idleTimeout", "sessionName", "type"],
                ),
            ],
        },
        Extra {
            of: "FilterSpec",
            fields: &[
                Known::Later("requestMirror", &["backendRef", "fraction", "percent"]),
                Known::Later(
                    "cors",
                    &[
                        "allowCredentials",
                        "allowHeaders",
                        "allowMethods",
                        "allowOrigins",
                        "exposeHeaders",
                        "maxAge",
                    ],
                ),
                Known::Later("externalAuth", &["backendRef", "forwardBody", "grpc", "http", "protocol"]),
            ],
        },
    ],
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct HttpRouteSpec {
    pub parent_refs: Vec<ParentSpec>,
    pub hostnames: Vec<String>,
    pub rules: Vec<RuleSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::config::kinds) struct ParentSpec {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub section_name: Option<String>,
    pub port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RuleSpec {
    pub name: Option<String>,
    pub matches: Vec<MatchSpec>,
    pub filters: Vec<FilterSpec>,
    pub backend_refs: Vec<BackendSpec>,
    pub timeouts: TimeoutSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct TimeoutSpec {
    pub request: Option<String>,
    pub backend_request: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct MatchSpec {
    pub path: PathSpec,
    pub headers: Vec<NamedMatch>,
    pub query_params: Vec<NamedMatch>,
    pub method: Option<Method>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PathSpec {
    #[serde(rename = "type")]
    pub path_type: PathType,
    pub value: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) enum PathType {
    Exact,
    #[default]
    PathPrefix,
    RegularExpression,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedMatch {
    #[serde(rename = "type", default)]
    pub match_type: ValueType,
    pub name: String,
    pub value: String,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) enum ValueType {
    #[default]
    Exact,
    RegularExpression,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FilterSpec {
    #[serde(rename = "type")]
    pub filter_type: FilterType,
    pub request_header_modifier: Option<HeaderModifier>,
    pub response_header_modifier: Option<HeaderModifier>,
    pub request_redirect: Option<RedirectSpec>,
    pub url_rewrite: Option<RewriteSpec>,
    pub extension_ref: Option<ExtensionSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    RequestMirror,
    #[serde(rename = "CORS")]
    Cors,
    ExternalAuth,
    ExtensionRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HeaderModifier {
    pub set: Vec<HeaderValue>,
    pub add: Vec<HeaderValue>,
    pub remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderValue {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RedirectSpec {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
    pub port: Option<u16>,
    pub status_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RewriteSpec {
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct PathModifier {
    #[serde(rename = "type")]
    pub modifier: ModifierType,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum ModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtensionSpec {
    pub group: String,
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config::kinds) struct BackendSpec {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub port: Option<u16>,
    pub weight: Option<u32>,
    #[serde(default)]
    pub(super) filters: Vec<FilterSpec>,
}

impl BackendSpec {
    /// Whether it asks for anything to be done to what is sent there.
    pub fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }
}
