//! Documents as people get to see them: of a Secret its name, type and keys, and nothing that it holds.

use std::fmt::Write as _;
use std::sync::Arc;

use super::node::{self, Node, Value};

/// What documents of Secrets are kept under.
const SECRETS: &str = "Secret/";

/// Whether a document, by the name that it is kept under, holds what is not to be shown.
pub fn is_secret(id: &str) -> bool {
    id.starts_with(SECRETS)
}

/// A document's text as it may be shown.
pub fn shown(id: &str, text: &Arc<str>) -> Arc<str> {
    if is_secret(id) { without_content(id, text).into() } else { Arc::clone(text) }
}

fn without_content(id: &str, text: &str) -> String {
    let mut out = format!("# {id}: what it holds is not shown; --show-secrets shows it.\n");
    let Ok(nodes) = node::parse(text) else { return out };
    let Some(secret) = nodes.first() else { return out };
    // Writing to a String cannot fail.
    for key in ["apiVersion", "kind", "type"] {
        if let Some(value) = secret.get(key).and_then(Node::as_str) {
            let _ = writeln!(out, "{key}: {}", quoted(value));
        }
    }
    let meta = |key: &str| Some((key.to_owned(), secret.get("metadata")?.get(key)?.as_str()?));
    let names: Vec<_> = ["name", "namespace"].into_iter().filter_map(meta).collect();
    let names: Vec<_> = names.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    let _ = writeln!(out, "metadata: {{{}}}", names.join(", "));
    for field in ["data", "stringData"] {
        let Some(Value::Map(entries)) = secret.get(field).map(|node| &node.value) else { continue };
        let _ = writeln!(out, "{field}:");
        for entry in entries {
            let _ = writeln!(out, "  {}: (not shown)", quoted(&entry.key));
        }
    }
    out
}

/// A string of JSON is one of YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_secret_the_keys_alone_are_shown() {
        let text: Arc<str> = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\n  namespace: n\n  annotations: {a: hidden1}\ntype: Opaque\ndata: {tls.key: aGlkZGVuMg==, b: hidden2}\nstringData:\n  c: |\n    hidden3\n".into();
        let seen = shown("Secret/n/s", &text);
        assert!(!seen.contains("hidden") && !seen.contains("aGlk"), "{seen}");
        for part in ["\"tls.key\": (not shown)", "\"c\": (not shown)", "name: \"s\"", "type: \"Opaque\""] {
            assert!(seen.contains(part), "{part} is not in {seen}");
        }
        node::parse(&seen).expect("valid YAML");
        for broken in ["", "a: [", "hidden", "- hidden", "kind: [hidden]\ndata: hidden"] {
            let seen = shown("Secret/n/s", &broken.into());
            assert!(!seen.contains("hidden"), "{seen}");
        }
        assert_eq!(shown("Service/n/s", &text), text);
    }
}
