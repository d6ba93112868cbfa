//! What a call of containerd is about: the fields of its request that name it.
//!
//! Only these are read; specs, labels and options, where secrets could be, are passed over.
//! The numbers are those of containerd's API, which never change.

use crate::proto::wire::{Fields, Value};

/// A field: the way to it, by numbers, and its name.
type Named = (&'static [u32], &'static str);

const CONTAINER: &[Named] = &[(&[1], "id")];
const PROCESS: &[Named] = &[(&[1], "id"), (&[2], "exec")];
const SNAPSHOT: &[Named] = &[(&[1], "snapshotter"), (&[2], "key"), (&[3], "parent")];
const NAME: &[Named] = &[(&[1], "name")];
const DIGEST: &[Named] = &[(&[1], "digest")];
const FILTERS: &[Named] = &[(&[1], "filter")];

/// The fields of `Service.Method`.
fn fields(call: &str) -> &'static [Named] {
    match call {
        "Containers.Create" | "Containers.Update" => &[(&[1, 1], "id"), (&[1, 3], "image")],
        "Containers.Get" | "Containers.Delete" => CONTAINER,
        "Tasks.Create" | "Tasks.Delete" | "Tasks.Update" | "Tasks.Exec" => CONTAINER,
        "Tasks.Kill" => &[(&[1], "id"), (&[2], "exec"), (&[3], "signal"), (&[4], "all")],
        "Tasks.Start" | "Tasks.Get" | "Tasks.Wait" | "Tasks.DeleteProcess" => PROCESS,
        "Tasks.CloseIO" | "Tasks.ResizePty" => PROCESS,
        "Snapshots.Prepare" | "Snapshots.View" | "Snapshots.Mounts" | "Snapshots.Remove" => SNAPSHOT,
        "Snapshots.Stat" | "Snapshots.Usage" => SNAPSHOT,
        "Snapshots.Commit" => &[(&[1], "snapshotter"), (&[2], "name"), (&[3], "key")],
        "Images.Create" | "Images.Update" => &[(&[1, 1], "name"), (&[1, 3, 2], "digest")],
        "Images.Get" | "Images.Delete" => NAME,
        "Content.Info" | "Content.Read" | "Content.Delete" => DIGEST,
        "Content.Update" => &[(&[1, 1], "digest")],
        "Content.Write" => &[(&[2], "ref"), (&[4], "expected")],
        "Content.Abort" => &[(&[1], "ref")],
        "Diff.Apply" => &[(&[1, 2], "digest"), (&[1, 3], "size")],
        "Leases.Create" | "Leases.Delete" | "Leases.ListResources" => CONTAINER,
        "Leases.AddResource" => &[(&[1], "id"), (&[2, 1], "resource"), (&[2, 2], "type")],
        "Containers.ListStream" | "Images.List" | "Leases.List" | "Tasks.List" | "Tasks.Metrics" => FILTERS,
        _ => &[],
    }
}

/// `key=value …` of a request as it is sent, as far as it is there: it may be cut.
#[must_use]
pub fn args(call: &str, request: &[u8]) -> String {
    let mut text = String::new();
    for (way, name) in fields(call) {
        if let Some(value) = find(request, way) {
            let space = if text.is_empty() { "" } else { " " };
            text.push_str(space);
            text.push_str(name);
            text.push('=');
            text.push_str(&value);
        }
    }
    text
}

/// The first value of a field.
fn find(message: &[u8], way: &[u32]) -> Option<String> {
    let (wanted, rest) = way.split_first()?;
    let mut fields = Fields(message);
    let value = fields.find_map(|(number, value)| (number == *wanted).then_some(value))?;
    match value {
        Value::Bytes(bytes) if rest.is_empty() => {
            Some(String::from_utf8_lossy(bytes).into_owned()).filter(|text| !text.is_empty())
        }
        Value::Bytes(bytes) => find(bytes, rest),
        Value::Number(number) if rest.is_empty() && number != 0 => Some(number.to_string()),
        Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use containerd_client::services::v1 as services;
    use prost::Message;

    use super::*;

    #[test]
    fn requests_are_told_by_what_names_them() {
        let container = services::Container {
            id: "c1".into(),
            image: "busybox".into(),
            spec: Some(prost_types::Any { type_url: "t".into(), value: b"SECRET=x".to_vec() }),
            ..Default::default()
        };
        let create = services::CreateContainerRequest { container: Some(container) }.encode_to_vec();
        assert_eq!(args("Containers.Create", &create), "id=c1 image=busybox");
        let kill =
            services::KillRequest { container_id: "c1".into(), signal: 9, all: true, ..Default::default() };
        assert_eq!(args("Tasks.Kill", &kill.encode_to_vec()), "id=c1 signal=9 all=1");
        let start = services::StartRequest { container_id: "c1".into(), exec_id: "e".into() };
        assert_eq!(args("Tasks.Start", &start.encode_to_vec()), "id=c1 exec=e");
        let prepare = services::snapshots::PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: "k".into(),
            parent: "sha256:a".into(),
            ..Default::default()
        };
        let prepare = prepare.encode_to_vec();
        assert_eq!(args("Snapshots.Prepare", &prepare), "snapshotter=overlayfs key=k parent=sha256:a");
        let image = services::Image { name: "r/a:1".into(), ..Default::default() };
        let image = services::CreateImageRequest { image: Some(image), ..Default::default() };
        assert_eq!(args("Images.Create", &image.encode_to_vec()), "name=r/a:1");
        let resource = services::AddResourceRequest {
            id: "l".into(),
            resource: Some(services::Resource { id: "r".into(), r#type: "content".into() }),
        };
        assert_eq!(args("Leases.AddResource", &resource.encode_to_vec()), "id=l resource=r type=content");
    }

    #[test]
    fn what_is_cut_or_broken_gives_what_is_there() {
        let start = services::StartRequest { container_id: "c1".into(), exec_id: "e".into() }.encode_to_vec();
        for end in 0..start.len() {
            let _ = args("Tasks.Start", &start[..end]);
        }
        assert_eq!(args("Tasks.Start", &start[..5]), "id=c1");
        assert_eq!(args("Tasks.Start", &[0xff; 30]), "");
        assert_eq!(args("Nothing.Known", &start), "");
    }
}
