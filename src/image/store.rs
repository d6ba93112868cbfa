//! The table of images: by id, and ids by name.
//!
//! An image is in the table as long as a name leads to it. Names come and go one by
//! one, each read from containerd by [`super::Images::refresh`]; whatever the order,
//! the table is what the names say. Lists and lookups never leave memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::Image;
use super::digest::is_digest;
use super::reference::Reference;
use crate::containerd::Descriptor;
use crate::flow::lock;

/// The table.
#[derive(Default)]
pub(super) struct Table(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    /// By id, in order, for prefixes.
    images: BTreeMap<String, Entry>,
    /// The id that each name leads to.
    names: HashMap<String, String>,
}

struct Entry {
    image: Arc<Image>,
    names: BTreeMap<String, Name>,
}

/// What differs between the names of an image: the same config can be behind several
/// manifests, whose layers are packed differently.
struct Name {
    is_pinned: bool,
    target: Descriptor,
    size: u64,
    annotations: BTreeMap<String, String>,
}

impl Table {
    /// `name` leads to `image` from now on, whose references and pin are made here.
    pub(super) fn set(&self, name: &str, image: Image, is_pinned: bool) -> Arc<Image> {
        let mut tables = lock(&self.0);
        if tables.names.get(name).is_some_and(|id| *id != image.id) {
            tables.unset(name);
        }
        let id = image.id.clone();
        tables.names.insert(name.to_owned(), id.clone());
        let entry = tables
            .images
            .entry(id)
            .or_insert_with(|| Entry { image: Arc::new(image.clone()), names: BTreeMap::new() });
        let Image { target, size, annotations, .. } = image;
        let own = Name { is_pinned, target, size, annotations };
        entry.names.insert(name.to_owned(), own);
        entry.publish();
        entry.image.clone()
    }

    /// `name` leads nowhere from now on.
    pub(super) fn unset(&self, name: &str) {
        lock(&self.0).unset(name);
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<String> {
        lock(&self.0).names.keys().cloned().collect()
    }

    pub(super) fn list(&self) -> Vec<Arc<Image>> {
        lock(&self.0).images.values().map(|entry| entry.image.clone()).collect()
    }

    /// The image that `text` means (IMG-06): a name as stored or as completed, an id, or
    /// the beginning of an id that no other has.
    pub(super) fn find(&self, text: &str) -> Option<Arc<Image>> {
        let tables = lock(&self.0);
        let by_id = |id: &str| tables.images.get(id).map(|entry| entry.image.clone());
        if is_digest(text) {
            return by_id(text);
        }
        if let Some(id) = tables.names.get(text) {
            return by_id(id);
        }
        let completed = Reference::parse(text).ok();
        if let Some(id) = completed.and_then(|reference| tables.names.get(&reference.to_string())) {
            return by_id(id);
        }
        tables.by_prefix(text)
    }
}

impl Tables {
    fn unset(&mut self, name: &str) {
        let Some(id) = self.names.remove(name) else { return };
        let Some(entry) = self.images.get_mut(&id) else { return };
        entry.names.remove(name);
        if entry.names.is_empty() {
            self.images.remove(&id);
        } else {
            entry.publish();
        }
    }

    fn by_prefix(&self, text: &str) -> Option<Arc<Image>> {
        let (algorithm, digits) = text.split_once(':').unwrap_or(("sha256", text));
        if digits.is_empty() || !digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let prefix = format!("{algorithm}:{digits}");
        let mut found = self.images.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
        let (_, entry) = found.next()?;
        found.next().is_none().then(|| entry.image.clone())
    }
}

impl Entry {
    /// Makes the image anew from its names.
    fn publish(&mut self) {
        let mut image = (*self.image).clone();
        image.references = self.names.keys().cloned().collect();
        image.pinned = self.names.values().any(|name| name.is_pinned);
        if let Some(name) = self.names.values().next() {
            (image.target, image.size) = (name.target.clone(), name.size);
            image.annotations.clone_from(&name.annotations);
        }
        self.image = Arc::new(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str) -> Image {
        Image { id: id.to_owned(), ..Image::default() }
    }

    fn id(start: &str) -> String {
        format!("sha256:{start:0<64}")
    }

    #[test]
    fn an_image_lives_as_long_as_a_name_leads_to_it() {
        let (table, a, b) = (Table::default(), id("a"), id("b"));
        table.set("r.io/a:1", image(&a), false);
        table.set(&a, image(&a), true);
        assert_eq!(table.find(&a).expect("there").references, ["r.io/a:1", &a]);
        assert!(table.find("r.io/a:1").expect("there").pinned);
        // The tag moves, then the id goes.
        table.set("r.io/a:1", image(&b), false);
        assert_eq!(table.find("r.io/a:1").expect("there").id, b);
        assert_eq!(table.find(&a).expect("still there").references, [a.as_str()]);
        table.unset(&a);
        table.unset(&a);
        assert!(table.find(&a).is_none());
        assert_eq!(table.list().len(), 1);
        assert_eq!(table.names(), ["r.io/a:1"]);
    }

    #[test]
    fn the_pin_goes_with_its_name() {
        let (table, a) = (Table::default(), id("a"));
        table.set("r.io/a:1", image(&a), true);
        table.set("r.io/a:2", image(&a), false);
        assert!(table.find(&a).expect("there").pinned);
        table.unset("r.io/a:1");
        assert!(!table.find(&a).expect("there").pinned);
    }

    #[test]
    fn an_image_is_made_of_what_a_name_still_leads_to() {
        let (table, a) = (Table::default(), id("a"));
        let at = |digest: &str, size| Image {
            target: Descriptor { digest: digest.into(), ..Default::default() },
            size,
            ..image(&a)
        };
        table.set("r.io/a:1", at("first", 1), false);
        table.set("r.io/b:1", at("second", 2), false);
        table.unset("r.io/a:1");
        let image = table.find(&a).expect("there");
        assert_eq!((image.target.digest.as_str(), image.size), ("second", 2));
    }

    #[test]
    fn images_are_found_by_all_they_are_called() {
        let (table, a, b) = (Table::default(), id("abc1"), id("abc2"));
        let by_digest = format!("r.io/d@{}", id("f"));
        table.set("docker.io/library/busybox:latest", image(&a), false);
        table.set(&by_digest, image(&a), false);
        table.set("odd name", image(&b), false);
        for text in ["busybox", "docker.io/busybox:latest", &a, &a[7..], "abc1", "sha256:abc1", &by_digest] {
            assert_eq!(table.find(text).map(|image| image.id.clone()), Some(a.clone()), "{text}");
        }
        assert_eq!(table.find("odd name").map(|image| image.id.clone()), Some(b));
        for text in ["", "abc", "sha256:", "sha256:abc", "sha512:abc1", "busybox:2", "dead", "Ab", ":"] {
            assert!(table.find(text).is_none(), "{text}");
        }
    }
}
