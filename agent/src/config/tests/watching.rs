//! The watcher on real files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

use crate::config::{Severity, State, WatchError, analyze, load_dir, watch};

/// Far above the second within which an edit applies, for machines under load.
const PATIENCE: Duration = Duration::from_secs(20);

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")
}

fn names(state: &State) -> Vec<String> {
    state.model.services.iter().map(|service| service.name.name.to_string()).collect()
}

/// Waits for the state that holds; states between are those of edits seen half way.
async fn until(states: &mut Receiver<State>, holds: impl Fn(&State) -> bool) -> State {
    let wait = async {
        loop {
            let state = states.recv().await.expect("the watcher runs");
            if holds(&state) {
                return state;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the change is seen")
}

fn start(files: &[(&str, String)]) -> (TempDir, State, Receiver<State>) {
    let dir = TempDir::new().expect("a directory");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("written");
    }
    let (state, states) = watch(dir.path().to_owned()).expect("watched");
    (dir, state, states)
}

#[tokio::test]
async fn files_that_come_change_and_go_are_seen() {
    let (dir, initial, mut states) = start(&[("a.yaml", service("a")), ("note.txt", "text".to_owned())]);
    assert_eq!(names(&initial), ["a"]);
    fs::write(dir.path().join("b.yml"), service("b")).expect("written");
    until(&mut states, |state| names(state) == ["a", "b"]).await;
    fs::write(dir.path().join("b.yml"), service("c")).expect("written");
    until(&mut states, |state| names(state) == ["a", "c"]).await;
    fs::remove_file(dir.path().join("a.yaml")).expect("removed");
    until(&mut states, |state| names(state) == ["c"]).await;
}

#[tokio::test]
async fn an_editor_that_renames_is_seen() {
    let (dir, _, mut states) = start(&[("a.yaml", service("a"))]);
    fs::write(dir.path().join(".a.yaml.swp"), service("b")).expect("written");
    fs::rename(dir.path().join(".a.yaml.swp"), dir.path().join("a.yaml")).expect("renamed");
    let state = until(&mut states, |state| names(state) != ["a"]).await;
    assert_eq!(names(&state), ["b"]);
}

#[tokio::test]
async fn a_broken_edit_is_reported_and_changes_nothing() {
    let (dir, _, mut states) = start(&[("a.yaml", service("a"))]);
    fs::write(dir.path().join("a.yaml"), "kind: [\n").expect("written");
    let state = until(&mut states, |state| state.report.has_errors()).await;
    assert_eq!(names(&state), ["a"]);
    assert_eq!(state.report.count(Severity::Error), 1);
}

/// A ConfigMap's volume: files are links through `..data`, which is swapped as a whole.
#[tokio::test]
async fn a_config_map_that_is_swapped_is_seen() {
    let dir = TempDir::new().expect("a directory");
    let version = |name: &str, text: &str| {
        fs::create_dir(dir.path().join(name)).expect("made");
        fs::write(dir.path().join(name).join("a.yaml"), text).expect("written");
    };
    version("..2026_1", &service("a"));
    symlink("..2026_1", dir.path().join("..data")).expect("linked");
    symlink("..data/a.yaml", dir.path().join("a.yaml")).expect("linked");
    let (initial, mut states) = watch(dir.path().to_owned()).expect("watched");
    assert_eq!(names(&initial), ["a"]);
    version("..2026_2", &service("b"));
    symlink("..2026_2", dir.path().join("..data_tmp")).expect("linked");
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).expect("swapped");
    until(&mut states, |state| names(state) == ["b"]).await;
}

/// What inotify on the directory does not tell, the poll finds.
#[tokio::test]
async fn a_file_behind_a_link_is_polled() {
    let elsewhere = TempDir::new().expect("a directory");
    let target = elsewhere.path().join("target");
    fs::write(&target, service("a")).expect("written");
    let dir = TempDir::new().expect("a directory");
    symlink(&target, dir.path().join("a.yaml")).expect("linked");
    let (_, mut states) = watch(dir.path().to_owned()).expect("watched");
    fs::write(&target, service("b")).expect("written");
    until(&mut states, |state| names(state) == ["b"]).await;
}

/// The directory itself may be a link that is pointed elsewhere, or be replaced by another one. Each is seen within the
/// second that an edit has; the machine's own pauses are what the second attempts are for.
#[tokio::test]
async fn a_directory_that_is_replaced_is_seen_within_a_second() {
    let parent = TempDir::new().expect("a directory");
    for name in ["a", "b", "c"] {
        fs::create_dir(parent.path().join(name)).expect("made");
        fs::write(parent.path().join(name).join("x.yaml"), service(name)).expect("written");
    }
    let dir = parent.path().join("config");
    symlink("a", &dir).expect("linked");
    let (initial, mut states) = watch(dir.clone()).expect("watched");
    assert_eq!(names(&initial), ["a"]);
    let swap = |to: &str| {
        symlink(to, parent.path().join("next")).expect("linked");
        fs::rename(parent.path().join("next"), &dir).expect("swapped");
    };
    let mut fastest = PATIENCE;
    for to in ["b", "c", "a", "b"] {
        let begin = std::time::Instant::now();
        swap(to);
        until(&mut states, |state| names(state) == [to]).await;
        fastest = fastest.min(begin.elapsed());
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    // The files of the new place are watched, too.
    fs::write(parent.path().join("b").join("x.yaml"), service("edited")).expect("written");
    until(&mut states, |state| names(state) == ["edited"]).await;
}

#[tokio::test]
async fn a_directory_that_goes_keeps_its_objects() {
    let (dir, _, mut states) = start(&[("a.yaml", service("a"))]);
    let moved = dir.path().with_extension("moved");
    fs::rename(dir.path(), &moved).expect("renamed");
    let state = until(&mut states, |state| state.report.has_errors()).await;
    assert_eq!(names(&state), ["a"]);
    fs::rename(&moved, dir.path()).expect("renamed back");
    until(&mut states, |state| !state.report.has_errors()).await;
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let missing = Path::new("/nonexistent/sluice");
    assert!(matches!(watch(missing.to_owned()), Err(WatchError::Directory { .. })));
    assert!(load_dir(missing).report.has_errors());
    assert!(analyze(&[missing.to_owned()]).has_errors());
}

#[test]
fn files_and_directories_are_analyzed() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("a.yaml"), service("a")).expect("written");
    fs::write(dir.path().join("any.name"), service("b")).expect("written");
    fs::write(dir.path().join("latin.yaml"), b"a: \xe9\n").expect("written");
    let clean = analyze(&[dir.path().join("a.yaml"), dir.path().join("any.name")]);
    assert_eq!((clean.objects.len(), clean.has_errors()), (2, false));
    let report = analyze(&[dir.path().to_owned()]);
    let errors: Vec<_> = report.lines().filter(|(severity, _)| *severity == Severity::Error).collect();
    assert!(
        errors.len() == 1 && errors[0].1.contains("latin.yaml: error: the file is no UTF-8 text"),
        "{errors:?}"
    );
}
