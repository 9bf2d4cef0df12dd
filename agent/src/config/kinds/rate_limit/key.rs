//! What a limit counts apart.

use std::sync::Arc;

use serde::Deserialize;

use super::super::super::field::Field;
use super::super::super::object::Notes;
use crate::model::{KeyPart, PathPart, PathTemplate, PathTemplates};
use crate::route::canonical_escapes;

/// Parts of one key.
const KEY_MAX: usize = 8;
/// Templates of one part: a path is held against each of them until one takes it.
const TEMPLATES_MAX: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct KeySpec {
    #[serde(rename = "type")]
    pub kind: KeyKind,
    name: Option<String>,
    #[serde(default)]
    templates: Vec<String>,
    prefix_length_v4: Option<u8>,
    prefix_length_v6: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum KeyKind {
    SourceAddress,
    SourceIdentity,
    Header,
    Cookie,
    Query,
    Path,
    PathTemplate,
    Method,
    Host,
    Route,
}

pub(super) fn key(specs: &[KeySpec], field: &Field, notes: &mut Notes<'_>) -> Vec<KeyPart> {
    if specs.len() > KEY_MAX {
        notes.error(field, format!("more than {KEY_MAX} parts"));
    }
    let mut parts = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let field = field.index(index);
        let named = matches!(spec.kind, KeyKind::Header | KeyKind::Cookie | KeyKind::Query);
        let name = spec.name.as_deref().filter(|name| !name.is_empty());
        let fits = match spec.kind {
            // The name of a template's element need not be said.
            KeyKind::PathTemplate => name.is_some() == spec.name.is_some(),
            _ => name.is_some() == named,
        };
        if !fits {
            let text = if named { "a name is missing" } else { "this part has no name" };
            notes.error(&field.key("name"), text);
            continue;
        }
        let lengths = (spec.prefix_length_v4, spec.prefix_length_v6);
        if spec.kind != KeyKind::SourceAddress && lengths != (None, None) {
            notes.error(&field, "only a SourceAddress has prefix lengths");
        }
        if spec.kind != KeyKind::PathTemplate && !spec.templates.is_empty() {
            notes.error(&field.key("templates"), "only a PathTemplate has templates");
        }
        let templates = || templates(&spec.templates, name, &field.key("templates"));
        let name = name.unwrap_or_default();
        parts.push(match spec.kind {
            KeyKind::SourceAddress => {
                let (v4, v6) = (lengths.0.unwrap_or(32), lengths.1.unwrap_or(128));
                if !(1..=32).contains(&v4) || !(1..=128).contains(&v6) {
                    notes.error(&field, format!("/{v4} is not from /1 to /32, or /{v6} not to /128"));
                }
                KeyPart::SourceAddress { v4: v4.min(32), v6: v6.min(128) }
            }
            KeyKind::SourceIdentity => KeyPart::SourceIdentity,
            KeyKind::Header => KeyPart::Header(name.to_ascii_lowercase().into()),
            KeyKind::Cookie => KeyPart::Cookie(name.into()),
            KeyKind::Query => KeyPart::Query(name.into()),
            KeyKind::Path => KeyPart::Path,
            KeyKind::PathTemplate => match templates() {
                Ok(found) => KeyPart::PathTemplate(found),
                Err((field, text)) => {
                    notes.error(&field, text);
                    continue;
                }
            },
            KeyKind::Method => KeyPart::Method,
            KeyKind::Host => KeyPart::Host,
            KeyKind::Route => KeyPart::Route,
        });
    }
    parts
}

/// Reads the templates of a part; `name`: that of the element whose value is counted apart.
fn templates(texts: &[String], name: Option<&str>, list: &Field) -> Result<PathTemplates, (Field, String)> {
    if texts.is_empty() || texts.len() > TEMPLATES_MAX {
        return Err((list.clone(), format!("{} templates are not from 1 to {TEMPLATES_MAX}", texts.len())));
    }
    let mut found: Vec<PathTemplate> = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let problem = match template(text, name) {
            Ok(template) => {
                let Some(first) = found.iter().position(|other| other.parts == template.parts) else {
                    found.push(template);
                    continue;
                };
                format!("takes what the template {first} takes")
            }
            Err(problem) => problem.to_owned(),
        };
        return Err((list.index(index), format!("`{text}` {problem}")));
    }
    Ok(PathTemplates { templates: found, name: name.map(Arc::from) })
}

/// `*` or `{NAME}` stand for one element, `**` for any number; as in policies, `{*}` and `{**}` say the same.
fn template(text: &str, name: Option<&str>) -> Result<PathTemplate, &'static str> {
    const NO_TEMPLATE: &str =
        "is no template: `*` and `{NAME}` stand for whole elements, `**` for any number";
    let mut names: Vec<&str> = Vec::new();
    let mut parts = Vec::new();
    let mut apart = None;
    let elements = text.strip_prefix('/').ok_or("does not begin with `/`")?;
    let elements = if elements.is_empty() { None } else { Some(elements.split('/')) };
    for element in elements.into_iter().flatten() {
        let variable = element.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        parts.push(match variable.unwrap_or(element) {
            "**" if parts.contains(&PathPart::Many) => return Err("has `**` twice"),
            "**" => PathPart::Many,
            "*" => PathPart::One,
            one if variable.is_some() => {
                if !one.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
                    || one.is_empty()
                {
                    return Err(NO_TEMPLATE);
                }
                if names.contains(&one) {
                    return Err("has a name twice");
                }
                names.push(one);
                apart = if name == Some(one) { Some(parts.len()) } else { apart };
                PathPart::One
            }
            "" | "." | ".." => {
                return Err("has an element that no path has: paths are resolved, and `/` counts once");
            }
            plain if plain.contains(['{', '}', '*', '?', '#']) => return Err(NO_TEMPLATE),
            plain => PathPart::Text(canonical_escapes(plain).into()),
        });
    }
    if name.is_some() && apart.is_none() {
        return Err("has no element of the part's name");
    }
    Ok(PathTemplate { text: text.into(), parts, named: apart })
}
