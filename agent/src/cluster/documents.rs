//! The documents as this node has them beside those of the store: pure. Every node holds a copy, so that a store that lost them
//! gets them back from whoever leads then.

pub mod sealed;

use std::collections::BTreeMap;
use std::sync::Arc;

use sealed::{Refused, SEAL};

use super::disk::KeptDocuments;
use super::store::{Document, DocumentWrite, Documents, Odd, Oddity, StoreError};
use crate::model::SharedMap;

/// How the ids of documents begin that say something about the others, and nothing about traffic.
pub const RESERVED: &str = "sluice.dev/";
/// The document that says up to which revision of the documents a table may lose most of what it has: its text does, or, where it
/// has none, its own revision. What is sealed says it by its text, as no seal is over revisions.
pub const ALLOW_SHRINK: &str = "sluice.dev/allow-shrink";

/// The document that asks agents to look at all documents, as whoever wants to write found others there than were sealed.
pub const SPOILT: &str = "sluice.dev/spoilt";

/// The document that says of which store, and of which revision of it, documents were given back: `STORE@REVISION`.
pub const RESTORED: &str = "sluice.dev/restored-from";

/// What is to be done about what the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The store is where this node is, or further: take it over.
    Adopt(KeptDocuments),
    /// What it said is not enough: ask for everything.
    AskAll,
    /// The store has lost documents. Who leads gives them back; others wait for it.
    Restore(Vec<DocumentWrite>),
    /// What the store has is nothing that an operator sealed. Who leads gives back what this node has, if it has anything.
    Refuse(Refused, Vec<DocumentWrite>),
}

/// Whether a store at the revision of this node says nothing that this node does not have.
pub fn adds_nothing(kept: &KeptDocuments, heard: &Documents) -> bool {
    let has = |document: &Document| {
        let of = kept.texts.get(&document.id).map(|(revision, text)| (*revision, text));
        of == document.text.as_ref().map(|text| (document.revision, text))
    };
    heard.odd.is_empty() && heard.changed.iter().all(has)
}

/// Compares the documents of this node with what the store answered; `all`: it was asked for everything.
pub fn compare(kept: &KeptDocuments, heard: Documents, all: bool) -> Step {
    let same_store = kept.store == heard.store;
    if same_store && heard.revision >= kept.revision {
        return Step::Adopt(adopt(kept, heard, all));
    }
    if !all {
        return Step::AskAll;
    }
    let there = adopt(&KeptDocuments::default(), heard.clone(), all);
    // Somebody has begun a store of their own: it counts, whatever this node remembers of another one; but not what was given
    // back by a node that knew less.
    if !same_store && !heard.store.is_empty() && !knows_more(&there, &kept.store, kept.revision) {
        return Step::Adopt(there);
    }
    Step::Restore(restoration(kept, &heard))
}

/// Whether who knows a store up to a revision knows something that these documents have lost.
pub fn knows_more(documents: &KeptDocuments, store: &str, revision: u64) -> bool {
    if documents.store.is_empty() {
        return revision > 0;
    }
    let from = documents.texts.get(RESTORED).and_then(|(_, text)| text.split_once('@'));
    from.is_some_and(|(of, at)| of == store && at.parse().is_ok_and(|at: u64| revision > at))
}

fn adopt(kept: &KeptDocuments, heard: Documents, all: bool) -> KeptDocuments {
    let mut texts = if all { SharedMap::default() } else { kept.texts.clone() };
    for Document { id, text, revision } in heard.changed {
        match text {
            Some(text) => texts.insert(id, (revision, text)),
            None => texts.remove(&id),
        };
    }
    KeptDocuments { store: heard.store, revision: heard.revision, texts }
}

/// What makes the store's documents those of this node.
fn restoration(kept: &KeptDocuments, heard: &Documents) -> Vec<DocumentWrite> {
    let live = heard.changed.iter().filter(|document| document.text.is_some());
    let live: BTreeMap<&Arc<str>, &Document> = live.map(|document| (&document.id, document)).collect();
    let there = |id: &Arc<str>| live.get(id).copied();
    // The seal is written in any case: whoever seals other documents meanwhile must not get these among them.
    let missing = kept.texts.iter().filter(|(id, (_, text))| {
        &***id == SEAL || there(id).is_none_or(|document| document.text.as_ref() != Some(text))
    });
    let missing = missing.map(|(id, (_, text))| DocumentWrite {
        id: Arc::clone(id),
        text: Some(Arc::clone(text)),
        expected: Some(there(id).map_or(0, |document| document.revision)),
    });
    let over = live
        .values()
        .filter(|document| !kept.texts.contains_key(&document.id))
        .filter(|document| &*document.id != RESTORED)
        .map(|document| DocumentWrite {
            id: Arc::clone(&document.id),
            text: None,
            expected: Some(document.revision),
        });
    let from = DocumentWrite {
        id: RESTORED.into(),
        text: Some(format!("{}@{}", kept.store, kept.revision).into()),
        expected: None,
    };
    missing.filter(|write| &*write.id != RESTORED).chain(over).chain([from]).collect()
}

/// Writes anew, as they count, documents that somebody wrote past all that writes documents. `texts`: what counts.
pub fn mending<'a>(
    odd: impl IntoIterator<Item = &'a Odd>,
    texts: &SharedMap<Arc<str>, (u64, Arc<str>)>,
) -> Vec<DocumentWrite> {
    let write = |odd: &Odd| {
        let counts = texts.get(&odd.id);
        let there = counts.filter(|_| odd.what != Oddity::Textless);
        DocumentWrite {
            id: Arc::clone(&odd.id),
            text: counts.map(|(_, text)| Arc::clone(text)),
            expected: Some(there.map_or(0, |(revision, _)| *revision)),
        }
    };
    odd.into_iter().map(write).collect()
}

/// What is wrong with documents that nobody sealed: without a seal nothing tells a text that was lost from one that was deleted.
pub fn lost(heard: &Documents) -> Result<(), StoreError> {
    let lost = heard.odd.iter().find(|odd| odd.what.is_loss());
    lost.map_or(Ok(()), |odd| Err(StoreError::Foreign { key: "config".to_owned(), what: odd.to_string() }))
}

/// Whether what these documents say may take most of the table away, compared with one made of an earlier revision. `None`: there
/// is no table, and so nobody can have meant it.
pub fn may_shrink(documents: &KeptDocuments, before: Option<u64>) -> bool {
    // One that is said to be of a later revision than there is was written before somebody took away the count.
    let allowed = documents.texts.get(ALLOW_SHRINK).filter(|(revision, _)| *revision <= documents.revision);
    allowed.zip(before).is_some_and(|((revision, text), before)| match text.parse::<u64>() {
        // The count began anew, and who writes without saying so takes away what was said before: it was said by the last write.
        _ if before > documents.revision => true,
        Ok(last) => before <= last,
        Err(_) => *revision > before,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(store: &str, revision: u64, texts: &[(&str, u64, &str)]) -> KeptDocuments {
        let texts = texts.iter().map(|(id, at, text)| ((*id).into(), (*at, (*text).into()))).collect();
        KeptDocuments { store: store.into(), revision, texts }
    }

    fn heard(store: &str, revision: u64, changed: &[(&str, u64, Option<&str>)]) -> Documents {
        let document = |(id, revision, text): &(&str, u64, Option<&str>)| Document {
            id: (*id).into(),
            text: text.map(Into::into),
            revision: *revision,
        };
        let changed = changed.iter().map(document).collect();
        Documents { store: store.into(), revision, changed, odd: Vec::new() }
    }

    fn write(id: &str, text: Option<&str>, expected: u64) -> DocumentWrite {
        DocumentWrite { id: id.into(), text: text.map(Into::into), expected: Some(expected) }
    }

    fn from(text: &str) -> DocumentWrite {
        DocumentWrite { expected: None, ..write(RESTORED, Some(text), 0) }
    }

    #[test]
    fn what_was_given_back_by_one_who_knew_less_is_brought_forward() {
        let before = kept("s", 9, &[("a", 8, "x")]);
        let by_less = heard("t", 6, &[("a", 6, Some("old")), (RESTORED, 6, Some("s@5"))]);
        let writes = vec![write("a", Some("x"), 6), from("s@9")];
        assert_eq!(compare(&before, by_less, true), Step::Restore(writes));
        for (restored, revision) in [("s@9", 10), ("s@12", 13), ("other@1", 2), ("nonsense", 2)] {
            let by_more =
                heard("t", revision, &[("a", revision, Some("y")), (RESTORED, revision, Some(restored))]);
            assert!(matches!(compare(&before, by_more, true), Step::Adopt(_)), "{restored}");
        }
        assert!(
            knows_more(&KeptDocuments::default(), "s", 1) && !knows_more(&KeptDocuments::default(), "", 0)
        );
    }

    #[test]
    fn changes_are_taken_over() {
        let before = kept("s", 3, &[("a", 1, "x"), ("b", 2, "y")]);
        let changes = heard("s", 5, &[("a", 4, None), ("c", 5, Some("z"))]);
        let after = kept("s", 5, &[("b", 2, "y"), ("c", 5, "z")]);
        assert_eq!(compare(&before, changes, false), Step::Adopt(after));
        assert_eq!(compare(&before, heard("s", 3, &[]), false), Step::Adopt(before.clone()));
        let first = heard("s", 1, &[("a", 1, Some("x"))]);
        assert_eq!(compare(&KeptDocuments::default(), first.clone(), false), Step::AskAll);
        assert_eq!(
            compare(&KeptDocuments::default(), first, true),
            Step::Adopt(kept("s", 1, &[("a", 1, "x")]))
        );
    }

    #[test]
    fn an_emptied_store_gets_everything_back() {
        let before = kept("s", 3, &[("a", 1, "x"), ("b", 2, "y")]);
        assert_eq!(compare(&before, heard("", 0, &[]), false), Step::AskAll);
        let writes = vec![write("a", Some("x"), 0), write("b", Some("y"), 0), from("s@3")];
        assert_eq!(compare(&before, heard("", 0, &[]), true), Step::Restore(writes));
        let nothing = KeptDocuments::default();
        assert_eq!(compare(&nothing, heard("", 0, &[]), false), Step::Adopt(nothing));
    }

    #[test]
    fn a_store_that_went_back_is_brought_forward() {
        let before = kept("s", 9, &[("a", 8, "new"), ("b", 2, "y"), ("c", 9, "z")]);
        let old = heard(
            "s",
            5,
            &[("a", 1, Some("old")), ("b", 2, Some("y")), ("gone", 4, Some("g")), ("d", 5, None)],
        );
        assert_eq!(compare(&before, old.clone(), false), Step::AskAll);
        let writes =
            vec![write("a", Some("new"), 1), write("c", Some("z"), 0), write("gone", None, 4), from("s@9")];
        assert_eq!(compare(&before, old, true), Step::Restore(writes));
    }

    #[test]
    fn a_store_that_somebody_began_anew_counts() {
        let before = kept("s", 9, &[("a", 8, "x")]);
        let new = heard("t", 1, &[("b", 1, Some("y"))]);
        assert_eq!(compare(&before, new, true), Step::Adopt(kept("t", 1, &[("b", 1, "y")])));
    }

    #[test]
    fn what_is_odd_is_written_as_it_counts() {
        let counts = kept("s", 9, &[("a", 8, "x"), ("b", 2, "y")]);
        let odd = |id: &str, what| Odd { id: id.into(), what };
        let found = [
            odd("a", Oddity::Deleted),
            odd("b", Oddity::Textless),
            odd("c", Oddity::Textless),
            odd("d", Oddity::Left),
        ];
        let writes =
            [write("a", Some("x"), 8), write("b", Some("y"), 0), write("c", None, 0), write("d", None, 0)];
        assert_eq!(mending(&found, &counts.texts), writes);
    }

    #[test]
    fn without_a_seal_a_missing_text_is_no_deletion() {
        for (what, good) in [
            (Oddity::Deleted, true),
            (Oddity::Left, true),
            (Oddity::Textless, false),
            (Oddity::Garbled, false),
        ] {
            let odd = vec![Odd { id: "a".into(), what }];
            assert_eq!(lost(&Documents { odd, ..heard("s", 1, &[]) }).is_ok(), good, "{what:?}");
        }
    }

    #[test]
    fn shrinking_is_allowed_up_to_a_revision() {
        let documents = kept("s", 9, &[(ALLOW_SHRINK, 7, "")]);
        assert_eq!((may_shrink(&documents, Some(6)), may_shrink(&documents, Some(7))), (true, false));
        assert!(!may_shrink(&kept("s", 9, &[]), Some(0)) && !may_shrink(&documents, None));
        // Somebody has deleted the count.
        assert!(!may_shrink(&kept("s", 1, &[(ALLOW_SHRINK, 7, "")]), Some(0)));
        assert!(!may_shrink(&kept("s", 1, &[(ALLOW_SHRINK, 7, "6")]), Some(0)));
        // Of another count than the table's.
        assert!(may_shrink(&kept("s", 1, &[(ALLOW_SHRINK, 1, "0")]), Some(500)));
        let sealed = kept("s", 9, &[(ALLOW_SHRINK, 9, "6")]);
        assert_eq!((may_shrink(&sealed, Some(6)), may_shrink(&sealed, Some(7))), (true, false));
    }
}
