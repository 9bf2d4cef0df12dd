//! The spelling of VirtualService.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::super::node::{Extra, Known};
use super::super::DOCUMENT;

/// Fields that are not enforced yet.
pub(super) const EXTRAS: &[&[Extra]] = &[
    DOCUMENT,
    &[
        Extra {
            of: "VirtualServiceSpec",
            fields: &[
                Known::Later("tls", &["match", "route"]),
                Known::Later("tcp", &["match", "route"]),
                Known::Later("exportTo", &[]),
            ],
        },
        Extra {
            of: "HttpRoute",
            fields: &[
                Known::Later(
                    "retries",
                    &[
                        "attempts",
                        "backoff",
                        "perTryTimeout",
                        "retryIgnorePreviousHosts",
                        "retryOn",
                        "retryRemoteLocalities",
                    ],
                ),
                Known::Later("fault", &["abort", "delay"]),
                Known::Later("mirror", &["host", "port", "subset"]),
                Known::Later("mirrors", &["destination", "percentage"]),
                Known::Later("mirrorPercent", &[]),
                Known::Later("mirror_percent", &[]),
                Known::Later("mirrorPercentage", &["value"]),
                Known::Later(
                    "corsPolicy",
                    &[
                        "allowCredentials",
                        "allowHeaders",
                        "allowMethods",
                        "allowOrigin",
                        "allowOrigins",
                        "exposeHeaders",
                        "maxAge",
                        "unmatchedPreflights",
                    ],
                ),
            ],
        },
        Extra { of: "HttpMatch", fields: &[Known::Later("statPrefix", &[])] },
    ],
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct VirtualServiceSpec {
    pub hosts: Vec<String>,
    pub gateways: Vec<String>,
    pub http: Vec<HttpRoute>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct HttpRoute {
    pub name: Option<String>,
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    pub route: Vec<RouteDestination>,
    pub rewrite: Option<Rewrite>,
    pub redirect: Option<HttpRedirect>,
    pub direct_response: Option<HttpDirectResponse>,
    pub delegate: Option<Delegate>,
    pub timeout: Option<String>,
    pub headers: Option<Headers>,
}

/// The VirtualService whose rules stand in the place of this one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Delegate {
    pub name: String,
    pub namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct HttpMatch {
    pub name: Option<String>,
    pub uri: Option<StringMatch>,
    pub ignore_uri_case: Option<bool>,
    pub scheme: Option<StringMatch>,
    pub method: Option<StringMatch>,
    pub authority: Option<StringMatch>,
    pub headers: BTreeMap<String, StringMatch>,
    pub without_headers: BTreeMap<String, StringMatch>,
    pub query_params: BTreeMap<String, StringMatch>,
    pub source_labels: BTreeMap<String, String>,
    pub source_namespace: Option<String>,
    pub gateways: Vec<String>,
    pub port: Option<u16>,
}

/// At most one of the three; none: the value is there.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StringMatch {
    pub exact: Option<String>,
    pub prefix: Option<String>,
    pub regex: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteDestination {
    pub destination: RouteTarget,
    pub weight: Option<i64>,
    pub headers: Option<Headers>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteTarget {
    pub host: String,
    pub subset: Option<String>,
    pub port: Option<PortSelector>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortSelector {
    pub number: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Rewrite {
    pub uri: Option<String>,
    pub authority: Option<String>,
    #[serde(rename = "uriRegexRewrite")]
    pub by_regex: Option<UriRegexRewrite>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UriRegexRewrite {
    #[serde(rename = "match")]
    pub expression: String,
    #[serde(rename = "rewrite", default)]
    pub substitution: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct HttpRedirect {
    pub uri: Option<String>,
    pub authority: Option<String>,
    pub port: Option<u16>,
    pub derive_port: Option<String>,
    pub scheme: Option<String>,
    pub redirect_code: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpDirectResponse {
    pub status: u16,
    pub body: Option<HttpBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpBody {
    pub string: Option<String>,
    pub bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Headers {
    pub request: HeaderOperations,
    pub response: HeaderOperations,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HeaderOperations {
    pub set: BTreeMap<String, String>,
    pub add: BTreeMap<String, String>,
    pub remove: Vec<String>,
}
