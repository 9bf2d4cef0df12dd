//! What a table is made of before nodes and pods are looked at: the documents as they were read last, or, where what they say is
//! held back, what was published before.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cluster::disk::KeptDocuments;
use crate::cluster::documents::sealed::generation;
use crate::cluster::driver::Read;
use crate::cluster::publisher::{Continued, Since};
use crate::model::Model;

/// What was read last.
pub(super) struct Known {
    pub(super) documents: Arc<KeptDocuments>,
    pub(super) model: Arc<Model>,
    /// How the model differs from one that was published, as far as that is known.
    since: Option<Since>,
}

impl Known {
    /// What is known when these documents have been read. `published`: the model that was published last.
    pub(super) fn after(
        before: Option<Self>,
        read: Read,
        documents: Arc<KeptDocuments>,
        published: Option<&Arc<Model>>,
    ) -> Self {
        let since = before.zip(read.touched).and_then(|(before, touched)| {
            if published.is_some_and(|published| Arc::ptr_eq(published, &before.model)) {
                return Some((before.model, touched));
            }
            let (model, mut services) = before.since?;
            services.extend(touched);
            Some((model, services))
        });
        Self { documents, model: read.model, since }
    }

    /// What follows from it. `sealed`: documents count with a seal alone.
    pub(super) fn basis(&self, sealed: bool) -> Basis {
        Basis {
            model: Arc::clone(&self.model),
            since: self.since.clone(),
            revision: self.documents.revision,
            generation: if sealed { generation(&self.documents.texts) } else { 0 },
            documents: Some(Arc::clone(&self.documents)),
        }
    }
}

/// What a table is made of.
#[derive(Clone)]
pub(super) struct Basis {
    pub(super) model: Arc<Model>,
    pub(super) since: Option<Since>,
    /// The revision of the documents, and the generation of their seal.
    pub(super) revision: u64,
    pub(super) generation: u64,
    /// The documents; `None`: it is what the term before left, and this node may know only those that came after.
    pub(super) documents: Option<Arc<KeptDocuments>>,
}

impl Basis {
    /// The table with which the term began.
    pub(super) fn continued(model: Arc<Model>, with: Continued) -> Self {
        let Continued { at, generation } = with;
        Self { model, since: None, revision: at.revision, generation, documents: None }
    }

    /// The same, once its model is the one that was published.
    pub(super) fn published(self) -> Self {
        Self { since: Some((Arc::clone(&self.model), BTreeSet::new())), ..self }
    }

    /// The same beside what is held back. What the term before left lacks endpoints whose nodes were dead then, or whose pods
    /// failed, and does not tell them from those that its documents called so: the later ones say it of those that they have still.
    pub(super) fn beside(&self, held_back: &Known) -> Self {
        let mut basis = self.clone();
        if basis.documents.is_none() {
            let model = Arc::make_mut(&mut basis.model);
            model.endpoints.bring_back(&held_back.model.endpoints);
            model.datagram_endpoints.bring_back(&held_back.model.datagram_endpoints);
        }
        basis
    }
}
