use std::path::Path;

use super::*;
use crate::error::Kind;
use crate::proto::cri::CdiDevice;

fn spec(kind: &str, devices: &[&str]) -> String {
    let devices: String = devices
        .iter()
        .map(|name| format!("- {{name: {name}, containerEdits: {{env: [DEVICE_{name}=1]}}}}\n"))
        .collect();
    format!("cdiVersion: 0.5.0\nkind: {kind}\ncontainerEdits: {{env: [KIND=1]}}\ndevices:\n{devices}")
}

/// Writes as careful tools do: beside it, and then renamed.
fn write(path: &Path, text: &str) {
    let beside = path.with_extension("tmp");
    std::fs::write(&beside, text).expect("written");
    std::fs::rename(beside, path).expect("renamed");
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn has(cdi: &Cdi, name: &str) -> bool {
    cdi.edits(&names(&[name])).is_ok()
}

#[tokio::test]
async fn edits_of_a_file_come_once_and_before_its_devices() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("v.yaml"), &spec("v.com/c", &["a", "b"]));
    write(&folder.path().join("w.yaml"), &spec("w.com/c", &["x"]));
    let cdi = Cdi::new(true, &[folder.path().to_owned()]);
    let edits = cdi.edits(&names(&["v.com/c=b", "w.com/c=x", "v.com/c=a"])).expect("resolved");
    assert_eq!(edits.env, ["KIND=1", "DEVICE_b=1", "KIND=1", "DEVICE_x=1", "DEVICE_a=1"]);
    assert_eq!(cdi.edits(&[]), Ok(Edits::default()));
}

/// OCI-42.
#[tokio::test]
async fn every_device_that_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("v.yaml"), &spec("v.com/c", &["a", "b"]));
    write(&folder.path().join("w.yaml"), &spec("v.com/c", &["b"]));
    let cdi = Cdi::new(true, &[folder.path().to_owned()]);
    let error = cdi.edits(&names(&["v.com/c=a", "v.com/c=z", "v.com/c=b"])).expect_err("two are missing");
    let path = folder.path().display();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert_eq!(
        error.message(),
        format!(
            "CDI devices cannot be resolved: v.com/c=z (no CDI spec has it), v.com/c=b (it is in {path}/v.yaml and {path}/w.yaml)"
        )
    );
}

/// OCI-42.
#[tokio::test]
async fn devices_are_refused_where_cdi_is_not_enabled() {
    let folder = tempfile::tempdir().expect("a folder");
    let cdi = Cdi::new(false, &[folder.path().to_owned()]);
    let mut config = ContainerConfig::default();
    assert_eq!(cdi.asked(&config), Ok(Vec::new()));
    config.annotations.insert("cdi.k8s.io/x".into(), "v.com/c=b".into());
    config.cdi_devices.push(CdiDevice { name: "v.com/c=a".into() });
    let error = cdi.asked(&config).expect_err("not enabled");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.message().contains("v.com/c=a, v.com/c=b"), "{error}");
}

#[tokio::test]
async fn a_lookup_sees_what_changed_before_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v.yaml");
    let cdi = Cdi::new(true, &[folder.path().to_owned()]);
    assert!(!has(&cdi, "v.com/c=a"));
    write(&path, &spec("v.com/c", &["a"]));
    assert!(has(&cdi, "v.com/c=a"));
    std::fs::write(&path, spec("v.com/c", &["b"])).expect("written");
    assert!(has(&cdi, "v.com/c=b") && !has(&cdi, "v.com/c=a"));
    std::fs::write(&path, "broken").expect("written");
    assert!(!has(&cdi, "v.com/c=b"));
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("elsewhere/v.yaml", &path).expect("linked");
    std::fs::create_dir(folder.path().join("elsewhere")).expect("made");
    std::fs::write(folder.path().join("elsewhere/v.yaml"), spec("v.com/c", &["c"])).expect("written");
    std::fs::rename(&path, folder.path().join("w.yaml")).expect("renamed");
    assert!(has(&cdi, "v.com/c=c"));
}

#[tokio::test]
async fn nothing_is_read_while_nothing_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("v.yaml"), &spec("v.com/c", &["a"]));
    let cdi = Cdi::new(true, &[folder.path().to_owned()]);
    let before = cdi.current();
    std::fs::write(folder.path().join("notes.txt"), "no spec").expect("written");
    assert!(has(&cdi, "v.com/c=a"));
    assert!(Arc::ptr_eq(&before, &cdi.current()));
    write(&folder.path().join("v.yaml"), &spec("v.com/c", &["a"]));
    assert!(!Arc::ptr_eq(&before, &cdi.current()));
}

#[tokio::test]
async fn directories_may_come_later_go_and_come_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("a/b/cdi");
    let cdi = Cdi::new(true, &[folder.path().join("none"), directory.clone()]);
    assert!(!has(&cdi, "v.com/c=a"));
    for _ in 0..2 {
        std::fs::create_dir_all(&directory).expect("made");
        write(&directory.join("v.yaml"), &spec("v.com/c", &["a"]));
        assert!(has(&cdi, "v.com/c=a"));
        std::fs::remove_dir_all(folder.path().join("a")).expect("removed");
        assert!(!has(&cdi, "v.com/c=a"));
    }
    // Another one in its place, and a way that leads elsewhere.
    std::fs::create_dir_all(&directory).expect("made");
    assert!(!has(&cdi, "v.com/c=b"));
    let other = folder.path().join("other/cdi");
    std::fs::create_dir_all(&other).expect("made");
    write(&other.join("v.yaml"), &spec("v.com/c", &["b"]));
    std::fs::rename(folder.path().join("a/b"), folder.path().join("a/old")).expect("renamed");
    std::os::unix::fs::symlink(folder.path().join("other"), folder.path().join("a/b")).expect("linked");
    assert!(has(&cdi, "v.com/c=b"));
    write(&other.join("w.yaml"), &spec("v.com/c", &["c"]));
    assert!(has(&cdi, "v.com/c=c"));
}

#[tokio::test]
async fn changes_are_read_before_anybody_asks() {
    let folder = tempfile::tempdir().expect("a folder");
    let cdi = Cdi::new(true, &[folder.path().to_owned()]);
    let stop = CancellationToken::new();
    let watching = tokio::spawn(cdi.clone().watch(stop.clone()));
    let known = |name: &str| lock(&cdi.0.state).loaded.device(name).is_ok();
    for name in ["a", "b"] {
        write(&folder.path().join("v.yaml"), &spec("v.com/c", &[name]));
        let seen = async {
            while !known(&format!("v.com/c={name}")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), seen).await.expect("it is read");
    }
    stop.cancel();
    watching.await.expect("it ends");
}
