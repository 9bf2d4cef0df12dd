//! Texts -> [`State`]: what is in force, and a report. Pure: the state before goes in, because what is wrong now keeps
//! its last good version from then.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use super::closing;
use super::ended;
use super::kinds::Spec;
use super::link::{LinkedObject, link};
use super::node;
use super::object::{Header, Object, ObjectId, Rejected, read_objects};
use super::read::{FileProblem, InputFile};
use super::report::{Code, FileReport, Message, ObjectReport, ObjectState, Report, Severity};
use crate::model::{Model, ObjectName};

/// What the documents say, and what became of each.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The model of all objects that are in force.
    pub model: Arc<Model>,
    /// What became of each object.
    pub report: Report,
    pub(super) files: BTreeMap<Arc<str>, FileState>,
    /// The objects in force, last good ones among them.
    pub(super) in_force: BTreeMap<ObjectId, Arc<Object>>,
    /// What stands in for policies of which no version could be read; `None`: nothing has been read yet.
    stand_ins: Option<BTreeMap<ObjectId, Arc<Object>>>,
    /// The EndpointSlices in force, by their services.
    pub(super) slices: BTreeMap<ObjectName, Vec<ObjectId>>,
}

/// One file, as it was last read.
#[derive(Debug, Clone)]
pub(super) struct FileState {
    pub(super) content: Content,
    /// Why the file as a whole is not what it should be.
    pub(super) messages: Vec<Message>,
    /// Valid objects.
    pub(super) objects: Vec<Arc<Object>>,
    /// Objects that the file has no valid version of: what is in force of them stays, unless another file has one.
    pub(super) kept: BTreeSet<ObjectId>,
    /// Objects that are refused.
    pub(super) rejected: Vec<Rejected>,
}

/// What tells one reading of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Text { bytes: usize, digest: u64 },
    Problem(FileProblem),
}

impl Content {
    pub(super) fn of(text: &Result<String, FileProblem>) -> Self {
        match text {
            Ok(text) => {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                Self::Text { bytes: text.len(), digest: hasher.finish() }
            }
            Err(problem) => Self::Problem(problem.clone()),
        }
    }
}

impl State {
    /// Whether these files are the ones that the state was made of.
    pub(super) fn is_made_of(&self, files: &[InputFile]) -> bool {
        self.files.len() == files.len()
            && files.iter().all(|file| {
                self.files.get(&file.path).is_some_and(|state| state.content == Content::of(&file.text))
            })
    }

    /// The files that can't be read as a whole at present, by their paths: nobody knows what documents they hold.
    pub fn unread(&self) -> Vec<String> {
        let whole =
            |message: &Message| message.code == Code::InvalidYaml && message.severity == Severity::Error;
        let unread = self.files.iter().filter(|(_, file)| file.messages.iter().any(whole));
        unread.map(|(path, _)| path.to_string()).collect()
    }

    /// The files of the state as ones that can't be read: what is known of a directory that can't be.
    pub(super) fn unreadable(&self, problem: &FileProblem) -> Vec<InputFile> {
        let files = self.files.keys();
        files.map(|path| InputFile { path: Arc::clone(path), text: Err(problem.clone()) }).collect()
    }
}

/// Makes the state of these files. A file that can't be read or parsed keeps all of its objects from `previous`, an
/// object that is not valid keeps its own last good version, and a file that is gone takes its objects with it. A valid
/// version in any file comes before every one that is kept.
pub fn load(previous: &State, files: Vec<InputFile>) -> State {
    load_at(previous, files, SystemTime::now())
}

/// The same at a time, by which certificates hold or have ended.
pub(super) fn load_at(previous: &State, files: Vec<InputFile>, now: SystemTime) -> State {
    let mut states = BTreeMap::new();
    for file in files {
        let before = previous.files.get(&file.path);
        let content = Content::of(&file.text);
        let state = match before {
            Some(before) if before.content == content => before.clone(),
            _ => load_file((previous, now), before, file.text, (&file.path, content)),
        };
        states.insert(file.path, state);
    }
    assemble(previous, states)
}

fn load_file(
    (previous, now): (&State, SystemTime),
    before: Option<&FileState>,
    text: Result<String, FileProblem>,
    (path, content): (&Arc<str>, Content),
) -> FileState {
    let broken = |code, severity, line, text: String| {
        let kept = before.map(FileState::ids).unwrap_or_default();
        let text = match kept.len() {
            0 => text,
            count => format!("{text}; the last good version of its {count} objects stays in force"),
        };
        let messages = vec![Message { severity, code, line, field: String::new(), text }];
        FileState { messages, kept, ..FileState::empty(content.clone()) }
    };
    let text = match text {
        Ok(text) => text,
        Err(problem) => return broken(Code::InvalidYaml, Severity::Error, 0, format!("the file {problem}")),
    };
    // An editor that writes in place empties the file first. Whoever means that the objects go deletes the file.
    if text.trim().is_empty() && before.is_some_and(|state| !state.ids().is_empty()) {
        return broken(Code::InvalidYaml, Severity::Warning, 0, "the file is empty".to_owned());
    }
    match node::parse(&text) {
        Err(error) => {
            broken(Code::InvalidYaml, Severity::Error, error.line, format!("no valid YAML: {error}"))
        }
        Ok(documents) => {
            let mut elsewhere = BTreeSet::new();
            let objects = documents.into_iter().flat_map(|node| read_objects(path, node, &mut elsewhere));
            let results = objects.collect();
            let mut state = FileState::empty(content);
            if !elsewhere.is_empty() {
                let kinds: Vec<String> = elsewhere.into_iter().collect();
                state.messages.push(Message {
                    severity: Severity::Info,
                    code: Code::Ignored,
                    line: 0,
                    field: String::new(),
                    text: format!(
                        "kinds that say nothing about traffic are passed over: {}",
                        kinds.join(", ")
                    ),
                });
            }
            state.take(results, (previous, now), before);
            state
        }
    }
}

impl FileState {
    pub(super) fn empty(content: Content) -> Self {
        let (messages, objects, kept, rejected) = Default::default();
        Self { content, messages, objects, kept, rejected }
    }

    /// The objects that the file has or had.
    fn ids(&self) -> BTreeSet<ObjectId> {
        self.objects.iter().map(|object| object.header.id.clone()).chain(self.kept.iter().cloned()).collect()
    }

    /// Takes in the objects of a file that could be parsed.
    fn take(
        &mut self,
        results: Vec<Result<Object, Box<Rejected>>>,
        (previous, now): (&State, SystemTime),
        before: Option<&FileState>,
    ) {
        let mut unknown = Vec::new();
        for result in results {
            match result.and_then(|object| judged(object, previous, now)) {
                Ok(object) => self.objects.push(Arc::new(object)),
                Err(rejected) => {
                    let id = &rejected.header.id;
                    if previous.in_force.contains_key(id) {
                        self.kept.insert(id.clone());
                    } else {
                        unknown.push(id.clone());
                    }
                    self.rejected.push(*rejected);
                }
            }
        }
        // A wrong document that was never seen under this name may be a known one whose kind or name was mistyped:
        // then the one that is missing now must not go.
        let here = self.ids();
        if let (true, Some(before)) = (unknown.iter().any(|id| !here.contains(id)), before) {
            for id in before.ids().into_iter().filter(|id| !here.contains(id)) {
                let text = format!(
                    "{} {} is no longer in the file; it stays in force until every document of the file is valid",
                    id.kind, id.name
                );
                self.messages.push(Message {
                    severity: Severity::Warning,
                    code: Code::SchemaValidationError,
                    line: 0,
                    field: String::new(),
                    text,
                });
                self.kept.insert(id);
            }
        }
    }
}

/// An object that could be read, unless what is in force of it is better.
fn judged(mut object: Object, previous: &State, now: SystemTime) -> Result<Object, Box<Rejected>> {
    let before = previous.in_force.get(&object.header.id).map(|before| &**before);
    let Some(message) = ended::message(&object, before, now) else { return Ok(object) };
    let refused = message.severity == Severity::Error;
    object.messages.push(message);
    if !refused {
        return Ok(object);
    }
    let Object { header, messages, .. } = object;
    Err(Box::new(Rejected { header, messages, stand_in: None }))
}

/// The objects in force, and what there is to say on those that are given twice.
struct InForce {
    objects: BTreeMap<ObjectId, Arc<Object>>,
    /// Those of `objects` that no file has a valid version of.
    kept: BTreeSet<ObjectId>,
    duplicates: Vec<ObjectReport>,
}

impl InForce {
    /// Of valid objects with one name the first counts; without any the version that is in force already.
    fn choose(previous: &State, files: &BTreeMap<Arc<str>, FileState>) -> Self {
        let mut chosen = Self { objects: BTreeMap::new(), kept: BTreeSet::new(), duplicates: Vec::new() };
        for object in files.values().flat_map(|state| &state.objects) {
            let winner = chosen.objects.entry(object.header.id.clone()).or_insert_with(|| Arc::clone(object));
            if !Arc::ptr_eq(winner, object) {
                chosen.duplicates.push(duplicate_report(&object.header, &winner.header));
            }
        }
        for id in files.values().flat_map(|state| &state.kept) {
            if let (false, Some(last_good)) = (chosen.objects.contains_key(id), previous.in_force.get(id)) {
                chosen.objects.insert(id.clone(), Arc::clone(last_good));
                chosen.kept.insert(id.clone());
            }
        }
        chosen
    }
}

/// Puts the files together.
fn assemble(previous: &State, files: BTreeMap<Arc<str>, FileState>) -> State {
    let InForce { objects: in_force, kept, duplicates } = InForce::choose(previous, &files);
    let rejected = || files.values().flat_map(|state| &state.rejected);
    let known = |id: &ObjectId| in_force.contains_key(id);
    let stand_ins = closing::stand_ins(rejected(), known, previous.stand_ins.as_ref());
    let all: BTreeMap<_, _> = in_force.iter().chain(&stand_ins).collect();
    let objects: Vec<Arc<Object>> = all.into_values().cloned().collect();
    let (model, linked) = link(&objects);
    let rejected_ids: BTreeSet<&ObjectId> = rejected().map(|rejected| &rejected.header.id).collect();
    let mut reports = duplicates;
    for (object, linked) in objects.iter().zip(linked) {
        let id = &object.header.id;
        // A last good version, or a stand-in, is told of by the report of the version that is refused.
        if !(rejected_ids.contains(id) && (kept.contains(id) || stand_ins.contains_key(id))) {
            reports.push(object_report(object, linked));
        }
    }
    reports.extend(rejected().map(|rejected| {
        let last_good = kept.contains(&rejected.header.id);
        let stand_in = stand_ins.get(&rejected.header.id).map(|_| closing::message(&rejected.header));
        let messages = rejected.messages.iter().cloned().chain(stand_in).collect();
        report(&rejected.header, ObjectState::Rejected { last_good }, messages)
    }));
    reports.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    let file_reports = files.iter().map(|(path, state)| FileReport {
        file: Arc::clone(path),
        objects: state.objects.len() + state.kept.intersection(&kept).count(),
        messages: state.messages.clone(),
    });
    let report = Report { files: file_reports.collect(), objects: reports };
    let slices = slices_of(&in_force);
    State { model: Arc::new(model), report, files, in_force, stand_ins: Some(stand_ins), slices }
}

fn slices_of(in_force: &BTreeMap<ObjectId, Arc<Object>>) -> BTreeMap<ObjectName, Vec<ObjectId>> {
    let mut slices: BTreeMap<ObjectName, Vec<ObjectId>> = BTreeMap::new();
    for (id, object) in in_force {
        if let Spec::EndpointSlice(slice) = &object.spec
            && let Some(service) = &slice.service
        {
            slices.entry(service.clone()).or_default().push(id.clone());
        }
    }
    slices
}

fn duplicate_report(header: &Header, winner: &Header) -> ObjectReport {
    let message = Message {
        severity: Severity::Error,
        code: Code::DuplicateObject,
        line: header.line,
        field: String::new(),
        text: format!("already given at {}:{}, which counts", winner.file, winner.line),
    };
    report(header, ObjectState::Rejected { last_good: false }, vec![message])
}

fn object_report(object: &Object, linked: LinkedObject) -> ObjectReport {
    let mut messages = object.messages.clone();
    messages.extend(linked.messages);
    messages.sort_by_key(|message| message.line);
    let mut fields = object.not_enforced.clone();
    fields.extend(linked.not_enforced);
    let state = if linked.as_whole {
        ObjectState::NotEnforced { fields: Vec::new() }
    } else if fields.is_empty() {
        ObjectState::Applied
    } else {
        ObjectState::NotEnforced { fields }
    };
    report(&object.header, state, messages)
}

fn report(header: &Header, state: ObjectState, messages: Vec<Message>) -> ObjectReport {
    ObjectReport {
        api_version: Arc::clone(&header.api_version),
        kind: Arc::clone(&header.id.kind),
        namespace: Arc::clone(&header.id.name.namespace),
        name: Arc::clone(&header.id.name.name),
        file: Arc::clone(&header.file),
        line: header.line,
        state,
        messages,
    }
}
