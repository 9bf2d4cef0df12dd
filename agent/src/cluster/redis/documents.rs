//! Documents in Redis: reading, comparing and writing them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::redis::Value;

use super::{RedisStore, digits, drawn, reply, scripts};
use crate::cluster::StoreError;
use crate::cluster::documents::sealed::SEAL;
use crate::cluster::store::{
    DELETED_MAX, Document, DocumentWrite, Documents, Odd, Oddity, Sums, Written, checked_size, write_bytes,
};

/// How many documents are read at a time: some milliseconds of the server's, in which it answers nobody else.
const AT_A_TIME: u64 = 500;

impl RedisStore {
    /// The five keys of the documents.
    fn document_keys(&self) -> [&str; 5] {
        let keys = self.keys();
        [&keys.store, &keys.revision, &keys.config, &keys.revisions, &keys.deleted]
    }

    /// Writes all of these documents or none; `above`: what the revision must be above where documents are restored, else
    /// empty.
    pub(super) async fn put(&self, writes: &[DocumentWrite], above: String) -> Result<Written, StoreError> {
        checked_size("documents", write_bytes(writes))?;
        let mut arguments = vec![drawn()?, self.keys().events.clone(), DELETED_MAX.to_string(), above];
        for write in writes {
            arguments.push(write.id.to_string());
            arguments.push(write.expected.map_or_else(String::new, |expected| expected.to_string()));
            arguments.push(write.text.as_ref().map_or_else(|| "-".to_owned(), |text| format!("={text}")));
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_bytes).collect();
        let answer = self.link.run(&scripts::WRITE, &self.document_keys(), &arguments).await?;
        let [done, what] = reply::fields(answer)?;
        if reply::number(&done)? == 1 {
            return Ok(Written::At(reply::number(&what)?));
        }
        let mut conflicts = Vec::new();
        for conflict in reply::list(what)? {
            let [id, revision] = reply::fields(conflict)?;
            conflicts.push((reply::text(id)?.ok_or_else(reply::odd)?.into(), reply::number(&revision)?));
        }
        Ok(Written::Conflict(conflicts))
    }

    /// What changed after a revision of a store, and the seal; of another store than the one named, everything.
    pub(super) async fn changed(&self, store: &str, after: u64) -> Result<Documents, StoreError> {
        let beginning = if after == 0 { String::new() } else { after.to_string() };
        let (mut store, mut from): (Arc<str>, _) = (store.into(), beginning);
        let (mut found, mut odd) = (BTreeMap::new(), BTreeMap::new());
        loop {
            let arguments: [&[u8]; 4] =
                [store.as_bytes(), from.as_bytes(), &digits(AT_A_TIME), SEAL.as_bytes()];
            let answer = self.link.run(&scripts::DOCUMENTS, &self.document_keys(), &arguments).await?;
            let [of, revision, changed, oddities, next] = reply::fields(answer)?;
            let of: Arc<str> = reply::text(of)?.unwrap_or_default().into();
            if of != store {
                // Another one, of which this is the beginning.
                found.clear();
                odd.clear();
                store = of;
            }
            // What changes meanwhile comes again, at a higher revision: together they are what is there at the end.
            for document in reply::list(changed)? {
                let (document, garbled) = self.document(document)?;
                odd.extend(garbled.then(|| (Arc::clone(&document.id), Oddity::Garbled)));
                found.insert(Arc::clone(&document.id), document);
            }
            for oddity in reply::list(oddities)? {
                let [id, what] = reply::fields(oddity)?;
                odd.insert(self.id(id)?, oddity_of(reply::text(what)?.as_deref())?);
            }
            from = reply::text(next)?.unwrap_or_default();
            if from.is_empty() {
                let mut changed: Vec<Document> = found.into_values().collect();
                changed.sort_by(|one, other| (one.revision, &one.id).cmp(&(other.revision, &other.id)));
                let odd = odd.into_iter().map(|(id, what)| Odd { id, what }).collect();
                return Ok(Documents { store, revision: reply::number(&revision)?, changed, odd });
            }
        }
    }

    /// What the texts of these documents are.
    pub(super) async fn summed(&self, ids: &[Arc<str>]) -> Result<Sums, StoreError> {
        let arguments: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes()).collect();
        let answer = self.link.run(&scripts::SUMS, &self.document_keys(), &arguments).await?;
        let [store, revision, sums, count] = reply::fields(answer)?;
        let sums = reply::list(sums)?.into_iter().map(reply::text).collect::<Result<Vec<_>, _>>()?;
        let store = reply::text(store)?.unwrap_or_default().into();
        Ok(Sums { store, revision: reply::number(&revision)?, sums, count: reply::number(&count)? })
    }

    /// A document, and whether its text was bytes that are none.
    fn document(&self, document: Value) -> Result<(Document, bool), StoreError> {
        let [id, revision, text] = reply::fields(document)?;
        let (text, garbled) = match reply::bytes(text)? {
            None => (None, false),
            Some(bytes) => match String::from_utf8(bytes) {
                Ok(text) => (Some(text.into()), false),
                // It is told, and must not keep others from being read.
                Err(error) => (Some(String::from_utf8_lossy(error.as_bytes()).into()), true),
            },
        };
        Ok((Document { id: self.id(id)?, text, revision: reply::number(&revision)? }, garbled))
    }

    fn id(&self, id: Value) -> Result<Arc<str>, StoreError> {
        let bytes = reply::bytes(id)?.unwrap_or_default();
        String::from_utf8(bytes).map(Into::into).map_err(|error| {
            let id = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let what = format!("names a document in bytes that are no text ('{id}')");
            StoreError::Foreign { key: self.keys().revisions.clone(), what }
        })
    }
}

fn oddity_of(what: Option<&str>) -> Result<Oddity, StoreError> {
    match what {
        Some("deleted") => Ok(Oddity::Deleted),
        Some("left") => Ok(Oddity::Left),
        Some("textless") => Ok(Oddity::Textless),
        _ => Err(reply::odd()),
    }
}
