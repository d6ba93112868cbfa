//! The tables of pods and containers, and the names in use (areas NAM, SVC-28, SVC-35).

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use super::{Container, Levels, Pod};
use crate::error::{Result, already_exists, invalid, not_found};
use crate::flow::lock;

/// Pods, containers and names.
#[derive(Default)]
pub struct Store {
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    names: Mutex<HashMap<String, String>>,
    /// The SELinux levels of all that is in the tables.
    pub levels: Levels,
}

impl Store {
    /// Takes `name` for `id`. The same pair again is fine (NAM-02).
    ///
    /// # Errors
    /// AlreadyExists if another has it (NAM-03).
    pub fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut names = lock(&self.names);
        match names.get(name) {
            Some(holder) if holder != id => {
                Err(already_exists(format!("name {name:?} is reserved for {holder}")))
            }
            _ => {
                names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Gives back `name` if `id` has it.
    pub fn release(&self, name: &str, id: &str) {
        let mut names = lock(&self.names);
        if names.get(name).is_some_and(|holder| holder == id) {
            names.remove(name);
        }
    }

    /// Whether `id` is in a table, or has a name: from before the first thing of it is made
    /// until the last one is undone or removed.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        lock(&self.pods).contains_key(id)
            || lock(&self.containers).contains_key(id)
            || lock(&self.names).values().any(|holder| holder == id)
    }

    /// Makes a pod visible.
    pub fn add_pod(&self, pod: Arc<Pod>) {
        self.levels.reserve_label(&pod.process_label);
        if let Some(old) = lock(&self.pods).insert(pod.id.as_str().to_owned(), pod) {
            self.levels.release_label(&old.process_label);
        }
    }

    /// Makes a container visible.
    pub fn add_container(&self, container: Arc<Container>) {
        self.levels.reserve_label(&container.metadata.process_label);
        if let Some(old) = lock(&self.containers).insert(container.id.as_str().to_owned(), container) {
            self.levels.release_label(&old.metadata.process_label);
        }
    }

    /// Forgets a pod, its name and its SELinux level.
    pub fn remove_pod(&self, pod: &Pod) {
        if let Some(pod) = lock(&self.pods).remove(pod.id.as_str()) {
            self.levels.release_label(&pod.process_label);
        }
        self.release(&pod.name, pod.id.as_str());
    }

    /// Forgets a container, its name and its SELinux level.
    pub fn remove_container(&self, container: &Container) {
        if let Some(container) = lock(&self.containers).remove(container.id.as_str()) {
            self.levels.release_label(&container.metadata.process_label);
        }
        self.release(&container.metadata.name, container.id.as_str());
    }

    /// The pod with this id, or with an id that begins so and is the only one (SVC-28).
    ///
    /// # Errors
    /// NotFound; InvalidArgument for an empty or ambiguous id (SVC-29).
    pub fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        find(&lock(&self.pods), "pod sandbox", id)
    }

    /// The container with this id or unique beginning of one.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for an empty or ambiguous id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&lock(&self.containers), "container", id)
    }

    /// All pods, ordered by id.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        lock(&self.pods).values().cloned().collect()
    }

    /// All containers, ordered by id.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// The containers of a pod.
    #[must_use]
    pub fn containers_of(&self, pod: &Pod) -> Vec<Arc<Container>> {
        lock(&self.containers).values().filter(|container| container.pod_id == pod.id).cloned().collect()
    }
}

fn find<T>(table: &BTreeMap<String, Arc<T>>, what: &str, id: &str) -> Result<Arc<T>> {
    if id.is_empty() {
        return Err(invalid(format!("no {what} id is given")));
    }
    if let Some(found) = table.get(id) {
        return Ok(found.clone());
    }
    let mut matching = table
        .range::<str, _>((Bound::Included(id), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some((_, found)), None) => Ok(found.clone()),
        (Some(_), Some(_)) => Err(invalid(format!("{what} id {id:?} is ambiguous"))),
        _ => Err(not_found(format!("{what} {id:?} does not exist"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_unique_beginning_is_enough_and_nothing_else() {
        let table: BTreeMap<String, Arc<u8>> =
            [("abc", 1), ("abd", 2), ("b", 3)].map(|(id, n)| (id.to_owned(), Arc::new(n))).into();
        let look = |id: &str| find(&table, "pod", id).map(|n| *n).map_err(|error| error.kind());
        assert_eq!(look("abc"), Ok(1));
        assert_eq!(look("abd"), Ok(2));
        assert_eq!(look("b"), Ok(3));
        assert_eq!(look("ab"), Err(Kind::InvalidArgument));
        assert_eq!(look(""), Err(Kind::InvalidArgument));
        assert_eq!(look("c"), Err(Kind::NotFound));
        assert_eq!(look("abcd"), Err(Kind::NotFound));
    }

    /// SBX-33, REC-13: what is in the tables holds its level, whether it was made or loaded.
    #[test]
    fn a_level_is_held_as_long_as_one_with_it_is_known() {
        use crate::state::container::Status;
        use crate::state::record::{ContainerMetadata, SandboxMetadata};
        let store = Store::default();
        let label = "u:r:t:s0:c0,c1".to_owned();
        let is_free = || store.levels.unique(2).is_ok();
        let pod = || {
            let metadata =
                SandboxMetadata { id: "p".into(), process_label: label.clone(), ..Default::default() };
            Arc::new(Pod::new(metadata, 0, crate::state::pod::Status::default()))
        };
        let container = {
            let metadata =
                ContainerMetadata { id: "c".into(), process_label: label.clone(), ..Default::default() };
            Arc::new(Container::new(metadata, Status::default(), "/".into(), Default::default()))
        };
        assert!(is_free());
        store.add_pod(pod());
        store.add_pod(pod());
        store.add_container(container.clone());
        assert!(!is_free());
        store.remove_pod(&pod());
        store.remove_pod(&pod());
        assert!(!is_free());
        store.remove_container(&container);
        assert!(is_free());
    }

    #[test]
    fn names_belong_to_one_id() {
        let store = Store::default();
        store.reserve("n", "a").expect("free");
        store.reserve("n", "a").expect("the same");
        assert_eq!(store.reserve("n", "b").map_err(|error| error.kind()), Err(Kind::AlreadyExists));
        store.release("n", "b");
        assert!(store.reserve("n", "b").is_err());
        store.release("n", "a");
        store.reserve("n", "b").expect("free again");
    }
}
