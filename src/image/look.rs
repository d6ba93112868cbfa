//! Images for who only looks: as containerd has them now. Nothing is labelled, unpacked or
//! mounted, and the table stays as it is.

use std::fs::File;
use std::path::Path;

use super::document::CONFIG_BYTES_MAX;
use super::extract::{Packing, pick};
use super::reference::Reference;
use super::tree::{self, Source};
use super::{Image, Images, pause};
use crate::containerd::{Descriptor, ImageRecord};
use crate::error::{Context, Result, invalid, precondition};
use crate::flow::{Disk, on_disk};
use crate::spec::ImageConfig;

/// Where an image has its users and groups.
const FILES: [&str; 2] = ["etc/passwd", "etc/group"];

/// An image's config file: what it says of its containers.
///
/// # Errors
/// InvalidArgument for a file that is none.
pub fn read_config(json: &[u8]) -> Result<ImageConfig> {
    if json.len() > CONFIG_BYTES_MAX {
        return Err(invalid(format!("an image config has at most {CONFIG_BYTES_MAX} bytes")));
    }
    Ok(super::document::parse_config("of the file", json)?.config)
}

/// The name that an image has in containerd, for one that is asked for by `text`.
#[must_use]
pub fn full_name(text: &str) -> String {
    Reference::parse(text).map_or_else(|_| text.to_owned(), |reference| reference.to_string())
}

impl Images {
    /// The image that `text` means, with the digests of its layers; none if there is none.
    ///
    /// # Errors
    /// Those of containerd; FailedPrecondition for an image that is not whole.
    pub async fn look(&self, text: &str) -> Result<Option<(Image, Vec<Descriptor>)>> {
        let records = self.0.containerd.list_images().await?;
        let full = full_name(text);
        let by_id = |record: &&ImageRecord| {
            let digits = text.strip_prefix("sha256:").unwrap_or(text);
            let is_id = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_hexdigit());
            is_id && record.name.strip_prefix("sha256:").is_some_and(|id| id.starts_with(digits))
        };
        let found = records.iter().find(|record| record.name == text || record.name == full);
        let Some(record) = found.or_else(|| records.iter().find(by_id)) else { return Ok(None) };
        let tree = tree::walk(&self.0.containerd, &Source::Store, &self.0.node, &record.target).await?;
        let layers = tree.layers.clone();
        let mut image = Image::new(record.target.clone(), tree);
        let same = records.iter().filter(|other| other.target.digest == record.target.digest);
        image.references = same.map(|other| other.name.clone()).collect();
        Ok(Some((image, layers)))
    }

    /// The texts of an image's passwd and group files, read from its layers in the content
    /// store, the uppermost first. A link is not followed.
    ///
    /// # Errors
    /// FailedPrecondition where the layers are not at hand.
    pub async fn look_at_accounts(&self, layers: &[Descriptor]) -> Result<(Vec<u8>, Vec<u8>)> {
        let capabilities = self.0.containerd.introspect().await?;
        let root = capabilities
            .content_root()
            .ok_or_else(|| precondition("containerd does not tell where its content is"))?
            .to_owned();
        let layers = layers.to_vec();
        on_disk(Disk::Images, move || {
            let mut files: [Option<Vec<u8>>; 2] = [None, None];
            for layer in layers.iter().rev() {
                let (algorithm, hex) = layer.digest.split_once(':').unwrap_or_default();
                let path = Path::new(&root).join("blobs").join(algorithm).join(hex);
                let what = || format!("layer {}", layer.digest);
                let packing = Packing::of(&layer.media_type)
                    .ok_or_else(|| precondition(format!("{}: it is of type {}", what(), layer.media_type)))?;
                let found = pick::files(File::open(&path).context(what)?, packing, &FILES).context(what)?;
                for (file, found) in files.iter_mut().zip(found) {
                    if file.is_none() {
                        *file = found;
                    }
                }
                if files.iter().all(Option::is_some) {
                    break;
                }
            }
            let [passwd, group] = files.map(Option::unwrap_or_default);
            Ok((passwd, group))
        })
        .await
    }

    /// The name of the pause image that pods get, and its config where that is built in.
    #[must_use]
    pub fn pause_name(&self) -> (String, Option<ImageConfig>) {
        match &self.0.settings.pause {
            Some(reference) => (reference.to_string(), None),
            None => (super::PAUSE_REFERENCE.to_owned(), Some(pause::built_in_config())),
        }
    }
}
