//! Equal texts and labels once: the pods of a cluster are called, labelled and placed alike, and an endpoint repeats what
//! its pod says.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{Endpoint, Labels, ObjectName, Workload};

/// As many values as are kept before any are looked at again.
const FEW: usize = 1024;

/// Values that others may have as well.
#[derive(Debug, Clone, Default)]
pub(super) struct Interned {
    texts: Pool<str>,
    labels: Pool<Labels>,
}

impl Interned {
    /// An endpoint with values that are shared; `service` is its service's name, as it is kept.
    pub(super) fn endpoint(&mut self, endpoint: &mut Endpoint, service: &ObjectName) {
        endpoint.service.clone_from(service);
        if let Some(pod) = &mut endpoint.pod {
            self.name(pod);
        }
        self.texts.share(&mut endpoint.uid);
        if let Some(node) = &mut endpoint.node {
            self.texts.share(node);
        }
        self.labels.share(&mut endpoint.labels);
    }

    /// A pod with values that are shared.
    pub(super) fn workload(&mut self, workload: &mut Workload) {
        self.name(&mut workload.name);
        self.texts.share(&mut workload.uid);
        self.texts.share(&mut workload.workload);
        if let Some(node) = &mut workload.node {
            self.texts.share(node);
        }
        self.texts.share(&mut workload.service_account);
        self.labels.share(&mut workload.labels);
    }

    fn name(&mut self, name: &mut ObjectName) {
        self.texts.share(&mut name.namespace);
        self.texts.share(&mut name.name);
    }
}

/// Values of one kind. Those that nobody has any more go once there are twice as many as were in use when last looked at.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    enough: usize,
}

impl<T: ?Sized> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), enough: self.enough }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), enough: FEW }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.values.get(value) {
            value.clone_from(known);
            return;
        }
        if self.values.len() >= self.enough {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.enough = (2 * self.values.len()).max(FEW);
        }
        self.values.insert(Arc::clone(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_become_one_and_old_ones_go() {
        let mut pool: Pool<str> = Pool::default();
        let mut first: Arc<str> = "a".into();
        let mut second: Arc<str> = "a".into();
        pool.share(&mut first);
        pool.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for index in 0..10 * FEW {
            pool.share(&mut index.to_string().into());
        }
        assert!(pool.values.len() <= FEW, "{}", pool.values.len());
        let mut third: Arc<str> = "a".into();
        pool.share(&mut third);
        assert!(Arc::ptr_eq(&first, &third));
    }
}
