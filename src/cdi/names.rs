//! Which devices a container asks for, and what their names look like.
//!
//! A qualified name is `vendor.com/class=name`.

use crate::error::{Result, invalid};
use crate::proto::cri::ContainerConfig;

/// The beginning of annotations whose values are lists of devices.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// The devices of `CDI_devices`, then those of annotations, none of them twice (OCI-41).
///
/// # Errors
/// InvalidArgument for a name that is not qualified.
pub(super) fn asked(config: &ContainerConfig) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let fields = config.cdi_devices.iter().map(|device| ("CDI_devices", device.name.as_str()));
    let annotations = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX))
        .flat_map(|(key, value)| value.split(',').map(move |name| (key.as_str(), name)));
    for (place, name) in fields.chain(annotations) {
        check_qualified(name).map_err(|wrong| {
            invalid(format!("{place}: CDI device {name:?} is no qualified name: {wrong}"))
        })?;
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether `name` is `vendor/class=name`; else what is wrong with it.
fn check_qualified(name: &str) -> Result<(), String> {
    let (kind, device) = name.split_once('=').ok_or("there is no '='")?;
    split_kind(kind)?;
    check_device(device)
}

/// Vendor and class of a kind; else what is wrong with it.
pub(super) fn split_kind(kind: &str) -> Result<(&str, &str), String> {
    let (vendor, class) = kind.split_once('/').ok_or("there is no '/' between a vendor and a class")?;
    for (what, part) in [("vendor", vendor), ("class", class)] {
        check(what, part, |c| c.is_ascii_alphabetic(), |c| "_-.".contains(c))?;
    }
    Ok((vendor, class))
}

/// Whether `name` can be a device's in its kind; else what is wrong with it.
pub(super) fn check_device(name: &str) -> Result<(), String> {
    check("device", name, |c| c.is_ascii_alphanumeric(), |c| "_-.:".contains(c))
}

fn check(
    what: &str,
    name: &str,
    may_begin: impl Fn(char) -> bool,
    may_be_inside: impl Fn(char) -> bool,
) -> Result<(), String> {
    let (first, last) = (name.chars().next(), name.chars().next_back());
    if !first.is_some_and(may_begin) || !last.is_some_and(|c| c.is_ascii_alphanumeric()) {
        return Err(format!("the {what} {name:?} must begin and end with a letter or digit"));
    }
    match name.chars().find(|c| !c.is_ascii_alphanumeric() && !may_be_inside(*c)) {
        Some(c) => Err(format!("the {what} {name:?} has {c:?} in it")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::CdiDevice;

    #[test]
    fn names_are_qualified() {
        for good in ["vendor.com/gpu=0", "v/c=a", "a-b.c_d/x.y=GPU-1:2.3_4"] {
            assert_eq!(check_qualified(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "gpu",
            "vendor.com/gpu",
            "vendor.com=0",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1vendor.com/gpu=0",
            "vendor.com/gpu/x=0",
            "vendor.com/gpu=0=1",
            "vendor.com/gpu=-",
            "vendor.com/gpu= 0",
            "vendor.com-/gpu=0",
        ] {
            assert!(check_qualified(bad).is_err(), "{bad}");
        }
    }

    /// OCI-41.
    #[test]
    fn devices_of_the_field_and_of_annotations_are_merged() {
        let device = |name: &str| CdiDevice { name: name.into() };
        let mut config = ContainerConfig {
            cdi_devices: vec![device("v.com/c=b"), device("v.com/c=a"), device("v.com/c=b")],
            annotations: [
                ("cdi.k8s.io/plugin_2", "v.com/c=c"),
                ("cdi.k8s.io/plugin_1", "v.com/c=a,v.com/d=1"),
                ("other", "not a device"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            ..Default::default()
        };
        assert_eq!(
            asked(&config),
            Ok(["v.com/c=b", "v.com/c=a", "v.com/d=1", "v.com/c=c"].map(Into::into).into())
        );
        config.annotations.insert("cdi.k8s.io/plugin_3".into(), "v.com/c=a,".into());
        let error = asked(&config).expect_err("an empty name");
        assert!(error.message().starts_with("cdi.k8s.io/plugin_3: CDI device \"\""), "{error}");
    }
}
