//! What requests may name.

use std::path::PathBuf;

use crate::random::Random;

/// Images that a container cannot be made of, whatever it asks for.
const UNUSABLE: [&str; 7] = [
    "unknown-user",
    "unknown-group",
    "three-parts",
    "negative",
    "too-large",
    "too-large-group",
    "no-passwd-name",
];

/// Things of a host, and of its servers.
#[derive(Clone)]
pub(crate) struct World {
    /// Where paths of the host are.
    pub(crate) folder: PathBuf,
    /// References of images.
    pub(crate) images: Vec<String>,
    /// The parent of all cgroups.
    pub(crate) cgroup: String,
    /// The servers have options that are not the default ones.
    pub(crate) has_options: bool,
}

impl World {
    /// The reference of an image, mostly of one that can be used.
    pub(crate) fn image(&self, random: &mut Random) -> String {
        loop {
            let image = random.pick(&self.images);
            let is_usable = !UNUSABLE.iter().any(|name| image.ends_with(&format!("/{name}:1")));
            if is_usable || random.chance(4) {
                return image;
            }
        }
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder.display())
    }
}
