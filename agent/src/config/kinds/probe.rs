//! `readinessProbe` of a container: what the pod's node asks it. What the agent does not ask is named with its field, and the
//! pod's Ready condition is then all that counts.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::super::field::Field;
use super::super::node::{Extra, Known};
use super::super::object::Notes;
use super::super::report::Code;
use super::TargetPort;
use crate::model::{Probe, ProbeCheck};

/// Fields that later versions of the API may add.
pub(super) const EXTRAS: &[Extra] = &[
    Extra {
        of: "ReadinessProbe",
        fields: &[Known::Ignored(&["terminationGracePeriodSeconds"]), Known::Open],
    },
    Extra { of: "ExecAction", fields: &[Known::Ignored(&["command"]), Known::Open] },
    Extra { of: "HttpGet", fields: &[Known::Open] },
    Extra { of: "HttpHeader", fields: &[Known::Open] },
    Extra { of: "TcpSocket", fields: &[Known::Open] },
    Extra { of: "GrpcAction", fields: &[Known::Open] },
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ReadinessProbe {
    exec: Option<ExecAction>,
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<GrpcAction>,
    period_seconds: Option<u32>,
    timeout_seconds: Option<u32>,
    initial_delay_seconds: Option<u32>,
    success_threshold: Option<u32>,
    failure_threshold: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecAction {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HttpGet {
    port: TargetPort,
    path: Option<String>,
    host: Option<String>,
    scheme: Option<String>,
    #[serde(default)]
    http_headers: Vec<HttpHeader>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpHeader {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpSocket {
    port: TargetPort,
    host: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrpcAction {
    port: u16,
    service: Option<String>,
}

impl ReadinessProbe {
    /// The probe; `None` where it is one that is not made, which is then said. `ports`: the container's own, by name.
    pub(super) fn checked(
        &self,
        field: &Field,
        ports: &[(&str, u16)],
        notes: &mut Notes<'_>,
    ) -> Option<Probe> {
        let check = self.check(field, ports, notes)?;
        let seconds = |given: Option<u32>| {
            given.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()))
        };
        let probe = Probe::new(check);
        Some(Probe {
            period: seconds(self.period_seconds).unwrap_or(probe.period),
            timeout: seconds(self.timeout_seconds).unwrap_or(probe.timeout),
            initial_delay: seconds(self.initial_delay_seconds).unwrap_or(probe.initial_delay),
            success_threshold: self.success_threshold.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
            failure_threshold: self.failure_threshold.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
            check: probe.check,
        })
    }

    fn check(&self, field: &Field, ports: &[(&str, u16)], notes: &mut Notes<'_>) -> Option<ProbeCheck> {
        let kinds =
            [self.exec.is_some(), self.http_get.is_some(), self.tcp_socket.is_some(), self.grpc.is_some()];
        if kinds.into_iter().filter(|given| *given).count() != 1 {
            notes.error(field, "a probe has one of exec, httpGet, tcpSocket and grpc");
            return None;
        }
        if self.exec.is_some() {
            not_made(notes, &field.key("exec"), "a command in a container is the kubelet's to run");
        }
        if let Some(http) = &self.http_get {
            return http.check(&field.key("httpGet"), ports, notes);
        }
        if let Some(tcp) = &self.tcp_socket {
            let field = field.key("tcpSocket");
            if tcp.host.as_ref().is_some_and(|host| !host.is_empty()) {
                not_made(notes, &field.key("host"), "the pod alone is asked, by its own address");
                return None;
            }
            return Some(ProbeCheck::Tcp { port: number(&tcp.port, ports, &field, notes)? });
        }
        let grpc = self.grpc.as_ref()?;
        let service = grpc.service.as_deref().unwrap_or_default().into();
        Some(ProbeCheck::Grpc { port: grpc.port, service })
    }
}

impl HttpGet {
    fn check(&self, field: &Field, ports: &[(&str, u16)], notes: &mut Notes<'_>) -> Option<ProbeCheck> {
        if self.host.as_ref().is_some_and(|host| !host.is_empty()) {
            not_made(notes, &field.key("host"), "the pod alone is asked, by its own address");
            return None;
        }
        if self.scheme.as_ref().is_some_and(|scheme| !scheme.is_empty() && scheme != "HTTP") {
            not_made(notes, &field.key("scheme"), "pods are asked without TLS");
            return None;
        }
        let path = self.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        if path.bytes().any(|byte| !byte.is_ascii_graphic()) {
            notes.error(&field.key("path"), "blanks, control and non-ASCII characters are written as %XX");
            return None;
        }
        let mut headers = Vec::with_capacity(self.http_headers.len());
        for (index, header) in self.http_headers.iter().enumerate() {
            let name = http::HeaderName::from_bytes(header.name.as_bytes());
            let (Ok(name), Ok(_)) = (name, http::HeaderValue::from_str(&header.value)) else {
                let field = field.key("httpHeaders").index(index);
                notes.error(&field, format!("`{}: {}` is no header", header.name, header.value));
                return None;
            };
            headers.push((Arc::from(name.as_str()), Arc::from(header.value.as_str())));
        }
        let port = number(&self.port, ports, field, notes)?;
        Some(ProbeCheck::Http { port, path: format!("{slash}{path}").into(), headers })
    }
}

fn number(port: &TargetPort, named: &[(&str, u16)], field: &Field, notes: &mut Notes<'_>) -> Option<u16> {
    match port {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let number = named.iter().find(|(known, _)| *known == &**name).map(|(_, number)| *number);
            if number.is_none() {
                not_made(notes, &field.key("port"), &format!("the container has no port called `{name}`"));
            }
            number
        }
    }
}

fn not_made(notes: &mut Notes<'_>, field: &Field, why: &str) {
    let text = format!("{why}: the probe is not made, and the pod's Ready condition alone counts");
    notes.warning(Code::Ignored, field, text);
}
