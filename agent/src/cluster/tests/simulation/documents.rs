//! The documents of the simulation, and what they mean.

use std::sync::Arc;

use super::agent::Texts;
use crate::cluster::sample;
use crate::cluster::store::{DocumentWrite, Documents};
use crate::model::Model;

/// How many documents there are: so few that all of them may go.
pub(super) const COUNT: u64 = 4;

/// The documents as an agent knows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    pub(super) store: Arc<str>,
    pub(super) revision: u64,
    pub(super) texts: Texts,
}

impl Kept {
    pub(super) fn take(&mut self, read: Documents) {
        for document in read.changed {
            match document.text {
                Some(text) => self.texts.insert(document.id, text),
                None => self.texts.remove(&document.id),
            };
        }
        (self.store, self.revision) = (read.store, read.revision);
    }

    /// What brings them back into a store that has none.
    pub(super) fn writes(&self) -> Vec<DocumentWrite> {
        let write = |(id, text): (&Arc<str>, &Arc<str>)| DocumentWrite {
            id: Arc::clone(id),
            text: Some(Arc::clone(text)),
            expected: Some(0),
        };
        self.texts.iter().map(write).collect()
    }
}

/// The name of a document.
pub(super) fn id(number: u64) -> Arc<str> {
    format!("Service/default/d{number}").into()
}

/// A route for each document by its text, and an endpoint on each of the first nodes, as many as the text's number says.
pub(super) fn model(texts: &Texts) -> Model {
    let mut model = Model::default();
    for (id, text) in texts {
        model.mesh_routes.push(sample::route(&format!("{}-{text}", id.replace('/', "."))));
    }
    let sum: u64 = texts.values().filter_map(|text| text.parse::<u64>().ok()).sum();
    for number in 0..u8::try_from(sum % 6).expect("is small") {
        let node: Arc<str> = format!("node{}", number % 3).into();
        model.endpoints.edit(|all| all.push(sample::endpoint(number, Some(&node))));
    }
    model
}
