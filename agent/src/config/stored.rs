//! Documents one by one, as a store keeps them: each under `KIND/NAMESPACE/NAME`, with the text that somebody wrote.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::load::{State, load};
use super::node;
use super::object::{Header, read_objects};
use super::read::InputFile;
use super::report::Severity;

/// A document of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// `KIND/NAMESPACE/NAME`; the namespace is empty for kinds without one.
    pub id: Arc<str>,
    /// Its text.
    pub text: Arc<str>,
    /// The line of the file at which it begins.
    pub line: usize,
}

/// Why a file can't be taken apart into documents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct NotStorable {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1; 0: the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// The documents of a file, each with its own text. Kinds that say nothing about traffic are left out.
pub fn documents(file: &InputFile) -> Result<Vec<StoredDocument>, NotStorable> {
    let failed = |line, what| NotStorable { file: Arc::clone(&file.path), line, what };
    let text = file.text.as_ref().map_err(|problem| failed(0, format!("the file {problem}")))?;
    let mut found: Vec<StoredDocument> = Vec::new();
    for (line, text) in pieces(text) {
        let nodes = node::parse(&at_line(line, &text));
        let nodes = nodes.map_err(|error| failed(error.line as usize, format!("no valid YAML: {error}")))?;
        let mut elsewhere = BTreeSet::new();
        let mut objects = nodes.into_iter().flat_map(|node| read_objects(&file.path, node, &mut elsewhere));
        let header = objects.next().map(|object| match object {
            Ok(object) => object.header,
            Err(rejected) => rejected.header,
        });
        let Some(header) = header else { continue };
        if objects.next().is_some() {
            return Err(failed(
                line,
                "a list is not kept as one document: give its items one by one".to_owned(),
            ));
        }
        let id = id(&header);
        if let Some(first) = found.iter().find(|document| document.id == id) {
            return Err(failed(line, format!("{id} is already given at line {}", first.line)));
        }
        found.push(StoredDocument { id, text: text.into(), line });
    }
    Ok(found)
}

/// What the documents of a store are, as files.
pub fn stored_files<'a>(texts: impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)>) -> Vec<InputFile> {
    texts.map(|(id, text)| InputFile { path: Arc::clone(id), text: Ok(text.to_string()) }).collect()
}

/// What is wrong with documents of these files beside those that a store has: the lines of a report, errors only, and all of
/// what there is to say, causes before what follows from them.
pub fn check(files: &[InputFile], stored: Vec<InputFile>) -> (Vec<String>, Vec<String>) {
    let all = stored.into_iter().chain(files.iter().cloned()).collect();
    let report = load(&State::default(), all).report;
    let starts: Vec<_> = files.iter().map(|file| format!("{}:", file.path)).collect();
    let ours = |line: &String| starts.iter().any(|start| line.starts_with(start));
    let lines: Vec<_> = report.lines_by_cause().filter(|(_, line)| ours(line)).collect();
    let errors = lines.iter().filter(|(severity, _)| *severity == Severity::Error);
    (errors.map(|(_, line)| line.clone()).collect(), lines.iter().map(|(_, line)| line.clone()).collect())
}

/// What there is to say of documents that there was not before some others went: warnings and errors.
pub fn consequences(before: Vec<InputFile>, after: Vec<InputFile>) -> Vec<String> {
    let said = |files| load(&State::default(), files).report;
    let before: BTreeSet<_> = said(before).lines().collect();
    let after = said(after);
    let lines = after.lines_by_cause().filter(|line| line.0 > Severity::Info && !before.contains(line));
    lines.map(|(_, line)| line).collect()
}

fn id(header: &Header) -> Arc<str> {
    let name = &header.id.name;
    format!("{}/{}/{}", header.id.kind, name.namespace, name.name).into()
}

/// The documents of a YAML stream with the lines at which they begin, from 1; those without content are left out.
fn pieces(text: &str) -> Vec<(usize, String)> {
    let mut pieces = vec![(1, String::new())];
    for (number, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            let here = line.get(4..).unwrap_or_default();
            let (first, text) = if here.trim().is_empty() || here.trim_start().starts_with('#') {
                (number + 2, String::new())
            } else {
                (number + 1, format!("{here}\n"))
            };
            pieces.push((first, text));
            continue;
        }
        if let Some((_, piece)) = pieces.last_mut() {
            piece.push_str(line);
            piece.push('\n');
        }
    }
    let has_content = |piece: &str| {
        piece.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    };
    pieces.retain(|(_, piece)| has_content(piece));
    pieces
}

/// A text that begins at that line.
fn at_line(line: usize, text: &str) -> String {
    "\n".repeat(line - 1) + text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> InputFile {
        InputFile { path: "a.yaml".into(), text: Ok(text.to_owned()) }
    }

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

    #[test]
    fn files_are_taken_apart() {
        let text =
            format!("# a comment\n---\n{SERVICE}---\n# nothing\n---\n{}", SERVICE.replace("web", "api"));
        let found = documents(&file(&text)).expect("are documents");
        let names: Vec<_> = found.iter().map(|document| (&*document.id, document.line)).collect();
        assert_eq!(names, [("Service/default/web", 3), ("Service/default/api", 10)]);
        assert_eq!(&*found[0].text, SERVICE);
        let inline = "--- {apiVersion: v1, kind: Service, metadata: {name: a}}\n--- # only this\n";
        assert_eq!(documents(&file(inline)).expect("are documents")[0].line, 1);
        let elsewhere = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";
        assert_eq!(documents(&file(elsewhere)), Ok(vec![]));
    }

    #[test]
    fn what_can_not_be_kept_is_told_with_its_line() {
        let said = |text: &str| documents(&file(text)).expect_err("is refused").to_string();
        assert!(
            said(&format!("{SERVICE}---\n{SERVICE}")).starts_with("a.yaml:6: Service/default/web is already")
        );
        let broken = said(&format!("{SERVICE}---\na: [\n"));
        assert!(broken.starts_with("a.yaml:") && broken.contains("no valid YAML"), "{broken}");
        let item = |name: &str| format!("- {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}}}\n");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n{}{}", item("a"), item("b"));
        assert!(said(&list).contains("one by one"));
    }

    #[test]
    fn documents_are_checked_beside_those_that_are_there() {
        let (errors, _) = check(&[file(SERVICE)], vec![]);
        assert_eq!(errors, Vec::<String>::new());
        let (errors, _) = check(&[file(&SERVICE.replace("80", "banana"))], vec![]);
        assert!(errors.len() == 1 && errors[0].contains("a.yaml:4"), "{errors:?}");
    }

    const ROUTE: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n\
                         spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n";

    #[test]
    fn causes_come_before_what_follows_from_them() {
        let (errors, lines) =
            check(&[file(&format!("{ROUTE}---\n{}", SERVICE.replace("80", "banana")))], vec![]);
        assert_eq!(lines.first(), errors.first(), "{lines:?}");
        assert!(errors.iter().all(|error| error.contains("Service default/web")), "{errors:?}");
        assert!(lines.iter().skip(1).any(|line| line.contains("VirtualService default/web")), "{lines:?}");
    }

    #[test]
    fn those_that_stay_say_what_they_miss() {
        let (route, service) = (file(ROUTE), InputFile { path: "b.yaml".into(), ..file(SERVICE) });
        let said = consequences(vec![route.clone(), service.clone()], vec![route]);
        assert!(
            !said.is_empty() && said.iter().all(|said| said.contains("VirtualService default/web")),
            "{said:?}"
        );
        let said = consequences(vec![service.clone(), file(ROUTE)], vec![service]);
        assert_eq!(said, [""; 0]);
    }
}
