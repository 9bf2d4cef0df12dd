//! Templates of paths, by which a limit counts requests together.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::PathPart;

/// The templates of one part of a key; the first that takes a path decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTemplates {
    /// The templates, at least one.
    pub templates: Vec<PathTemplate>,
    /// The name of the element whose value is counted apart, which all of them have; `None`: each template is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
}

/// One template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTemplate {
    /// As its document has it.
    pub text: Arc<str>,
    /// Its elements; [`PathPart::Many`] is one of them at most.
    pub parts: Vec<PathPart>,
    /// The position of the element whose value is counted apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<usize>,
}

impl PathTemplates {
    /// What a path is counted by: the template that takes it, or what stands there for the name.
    pub fn value<'v>(&'v self, path: &'v str) -> Option<&'v str> {
        self.templates.iter().find_map(|template| template.value(path))
    }
}

impl PathTemplate {
    /// Elements without a letter are none: servers differ in what they make of them, and nobody shall gain by that.
    fn value<'v>(&'v self, path: &'v str) -> Option<&'v str> {
        let mut rest = path.strip_prefix('/')?.split('/').filter(|element| !element.is_empty());
        let many = self.parts.iter().position(|part| *part == PathPart::Many);
        let before = &self.parts[..many.unwrap_or(self.parts.len())];
        let mut found = &*self.text;
        for (at, part) in before.iter().enumerate() {
            let element = rest.next().filter(|element| takes(part, element))?;
            if self.named == Some(at) {
                found = element;
            }
        }
        let Some(many) = many else { return rest.next().is_none().then_some(found) };
        for (at, part) in self.parts.iter().enumerate().skip(many + 1).rev() {
            let element = rest.next_back().filter(|element| takes(part, element))?;
            if self.named == Some(at) {
                found = element;
            }
        }
        Some(found)
    }
}

fn takes(part: &PathPart, element: &str) -> bool {
    match part {
        PathPart::Text(text) => **text == *element,
        PathPart::One => true,
        PathPart::Many => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_template_that_takes_a_path_decides() {
        let text = |text: &str| PathPart::Text(text.into());
        let template = |written: &str, parts: &[PathPart], named| PathTemplate {
            text: written.into(),
            parts: parts.to_vec(),
            named,
        };
        let (one, many) = (PathPart::One, PathPart::Many);
        let each = |named: bool| PathTemplates {
            templates: vec![
                template("a", &[text("users"), one.clone(), text("orders"), one.clone()], named.then_some(1)),
                template("b", &[text("users"), one.clone()], named.then_some(1)),
                template("c", &[text("files"), many.clone(), one.clone(), text("raw")], named.then_some(2)),
            ],
            name: named.then(|| "id".into()),
        };
        for (path, together, apart) in [
            ("/users/7/orders/1", Some("a"), Some("7")),
            ("/users/8/orders/2", Some("a"), Some("8")),
            ("/users/7", Some("b"), Some("7")),
            ("/users/7/", Some("b"), Some("7")),
            ("//users//7", Some("b"), Some("7")),
            ("/users/7/orders", None, None),
            ("/users/7/orders/1/2", None, None),
            ("/users", None, None),
            ("/users/", None, None),
            ("/Users/7", None, None),
            ("/files/x/raw", Some("c"), Some("x")),
            ("/files/x/y/z/raw", Some("c"), Some("z")),
            ("/files/raw", None, None),
            ("/files/x/raw/y", None, None),
            ("/", None, None),
            ("*", None, None),
            ("", None, None),
        ] {
            assert_eq!(each(false).value(path), together, "{path}");
            assert_eq!(each(true).value(path), apart, "{path}");
        }
        let root = PathTemplates { templates: vec![template("/", &[], None)], name: None };
        assert_eq!((root.value("/"), root.value("/a")), (Some("/"), None));
        let all = PathTemplates { templates: vec![template("/**", &[many], None)], name: None };
        assert_eq!((all.value("/"), all.value("/a/b")), (Some("/**"), Some("/**")));
    }
}
