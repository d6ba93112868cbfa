//! An image as the CRI shows it.

use super::Image;
use super::document::CONFIG_BYTES_MAX;
use super::reference::{Listing, listing};
use super::{Images, content};
use crate::error::Result;
use crate::proto::cri;

impl Image {
    /// The name that records and annotations use: a tag, else a digest, else the id.
    #[must_use]
    pub fn name(&self) -> &str {
        let rank = |name: &&String| match listing(name) {
            Listing::Tag(_) => 0,
            Listing::Digest(_) => 1,
            Listing::Nowhere => 2,
        };
        self.references.iter().min_by_key(rank).map_or(&self.id, String::as_str)
    }

    /// Its tags, as the CRI lists them (IMG-07).
    #[must_use]
    pub fn repo_tags(&self) -> Vec<String> {
        self.to_cri().repo_tags
    }

    /// Its digests, as the CRI lists them (IMG-07).
    #[must_use]
    pub fn repo_digests(&self) -> Vec<String> {
        self.to_cri().repo_digests
    }

    /// The message of ListImages and ImageStatus (IMG-07 … IMG-10).
    #[must_use]
    pub fn to_cri(&self) -> cri::Image {
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        for name in &self.references {
            match listing(name) {
                Listing::Tag(tag) => tags.push(tag),
                Listing::Digest(digest) => digests.push(digest),
                Listing::Nowhere => {}
            }
        }
        // The group says nothing about who the process is (IMG-09).
        let user = self.config.user.split(':').next().unwrap_or_default();
        let uid = user.parse::<i64>().ok();
        cri::Image {
            id: self.id.clone(),
            repo_tags: tags,
            repo_digests: digests,
            size: self.size,
            username: if uid.is_some() { String::new() } else { user.to_owned() },
            uid: uid.map(|value| cri::Int64Value { value }),
            spec: Some(cri::ImageSpec {
                image: self.id.clone(),
                annotations: self.annotations.clone(),
                ..Default::default()
            }),
            pinned: self.pinned,
        }
    }
}

impl Images {
    /// What a verbose ImageStatus adds under the key `info`: JSON with the chain id and
    /// the image's whole config (IMG-11).
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn verbose_info(&self, image: &Image) -> Result<String> {
        let config = content::read(&self.0.containerd, &image.id, CONFIG_BYTES_MAX).await?;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        Ok(serde_json::json!({ "chainID": image.chain_id, "imageSpec": config }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ImageConfig;

    fn shown(user: &str, references: &[&str]) -> cri::Image {
        Image {
            id: "sha256:1".into(),
            references: references.iter().map(|name| (*name).to_owned()).collect(),
            config: ImageConfig { user: user.into(), ..Default::default() },
            size: 7,
            pinned: true,
            ..Default::default()
        }
        .to_cri()
    }

    #[test]
    fn names_go_where_they_belong() {
        let digest = format!("r.io/a@sha256:{:0<64}", "1");
        let id = format!("sha256:{:0<64}", "2");
        let image = shown("", &["r.io/a:1", "r.io/b:2", &digest, &id, "r.io/untagged"]);
        assert_eq!((image.repo_tags.len(), image.repo_digests), (2, vec![digest]));
        assert_eq!((image.size, image.pinned), (7, true));
        assert_eq!(image.spec.map(|spec| spec.image).as_deref(), Some("sha256:1"));
    }

    #[test]
    fn the_user_is_a_number_a_name_or_nothing() {
        for (user, uid, username) in [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1000:5", Some(1000), ""),
            ("web:www", None, "web"),
            (":5", None, ""),
        ] {
            let image = shown(user, &[]);
            assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, username), "{user}");
        }
    }
}
