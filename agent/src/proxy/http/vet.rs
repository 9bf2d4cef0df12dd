//! What is refused of a request that is well-formed: methods, targets and paths that the entry's settings rule out. The
//! connection goes on afterwards, as nobody doubts where the request ends.

use super::HttpSettings;
use super::heads::PSEUDONYM;
use crate::http::Refusal;
use crate::http::h1::RequestHead;
use crate::route::RequestView;

/// Checks a request, which came in TLS or not, and gives its path the form in which it is matched and forwarded.
pub(in crate::proxy) fn vet(
    head: &mut RequestHead,
    settings: &HttpSettings,
    in_tls: bool,
) -> Result<(), Refusal> {
    head.came_in_tls(in_tls);
    if !settings.trace && is_trace(head.method()) {
        return Err(Refusal::with(405, "method_trace"));
    }
    if settings.strict_target && head.names_https().is_some_and(|https| https != in_tls) {
        return Err(Refusal::with(421, "target_scheme_mismatch"));
    }
    if settings.strict_target && head.has_two_authorities() {
        return Err(Refusal::bad("host_conflict"));
    }
    if settings.max_hops.is_some_and(|max| head.passed_by(PSEUDONYM) > max) {
        return Err(Refusal::with(508, "via_loop"));
    }
    head.normalise_path(settings.path)
}

/// Both give a client what it sent, credentials included. Methods have a case (RFC 9110 section 9.1), which not all
/// servers heed.
fn is_trace(method: &str) -> bool {
    method.eq_ignore_ascii_case("TRACE") || method.eq_ignore_ascii_case("TRACK")
}
