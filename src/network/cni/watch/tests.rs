use super::*;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Scene {
    folder: tempfile::TempDir,
    directory: Arc<ConfDir>,
    stop: CancellationToken,
    watching: tokio::task::JoinHandle<()>,
}

impl Scene {
    /// A watched directory `net.d` in a folder that `prepare` has filled.
    async fn new(prepare: impl FnOnce(&Path)) -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        prepare(folder.path());
        let path = folder.path().join("net.d");
        let directory = Arc::new(ConfDir::new("", &path, 1));
        let stop = CancellationToken::new();
        let watching = tokio::spawn(directory.clone().watch(stop.clone()));
        Scene { folder, directory, stop, watching }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn sees(&self, network: &str) {
        self.directory.wait_for(|loaded| first(loaded) == Some(network)).await;
    }

    async fn sees_none(&self) {
        self.directory.wait_for(|loaded| loaded.networks.is_err()).await;
    }

    /// Waits until the watch has begun, by a change that it sees at once or later.
    async fn begin(&self) {
        let (mark, path) = ("begin", self.path("net.d/00-begin.conflist"));
        write(&path, mark);
        self.sees(mark).await;
        std::fs::remove_file(path).expect("removed");
        self.directory.wait_for(|loaded| first(loaded) != Some(mark)).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.watching.await.expect("it ends");
    }
}

fn first(loaded: &Loaded) -> Option<&str> {
    Some(loaded.networks.as_ref().ok()?.first()?.list.name.as_str())
}

fn text(name: &str) -> String {
    format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"bridge"}}]}}"#)
}

fn write(path: &Path, name: &str) {
    std::fs::write(path, text(name)).expect("written");
}

#[tokio::test]
async fn the_directory_is_created_and_files_are_seen() {
    let scene = Scene::new(|_| {}).await;
    while !scene.path("net.d").is_dir() {
        tokio::task::yield_now().await;
    }
    scene.begin().await;
    assert!(scene.directory.loaded().networks.is_err());
    write(&scene.path("net.d/10-a.conflist"), "one");
    scene.sees("one").await;
    write(&scene.path("net.d/10-a.conflist"), "two");
    scene.sees("two").await;
    write(&scene.path("new"), "three");
    std::fs::rename(scene.path("new"), scene.path("net.d/10-a.conflist")).expect("renamed");
    scene.sees("three").await;
    std::fs::remove_file(scene.path("net.d/10-a.conflist")).expect("removed");
    scene.sees_none().await;
    let kept = scene.directory.loaded().last_good.clone().expect("the last good one");
    assert_eq!(kept[0].list.name, "three");
    scene.end().await;
}

#[tokio::test]
async fn links_are_seen_when_they_are_made() {
    let scene = Scene::new(|folder| {
        std::fs::create_dir(folder.join("net.d")).expect("a folder");
        write(&folder.join("a"), "one");
        write(&folder.join("b"), "two");
    })
    .await;
    scene.begin().await;
    symlink("../a", scene.path("net.d/10-a.conflist")).expect("a link");
    scene.sees("one").await;
    std::fs::hard_link(scene.path("b"), scene.path("net.d/05-b.conflist")).expect("a link");
    scene.sees("two").await;
    scene.end().await;
}

#[tokio::test]
async fn an_exchanged_directory_is_seen() {
    let scene = Scene::new(|folder| {
        for name in ["one", "two", "three"] {
            std::fs::create_dir(folder.join(name)).expect("a folder");
            write(&folder.join(name).join("10-a.conflist"), name);
        }
        symlink("one", folder.join("net.d")).expect("a link");
    })
    .await;
    scene.sees("one").await;
    scene.begin().await;
    symlink("two", scene.path("next")).expect("a link");
    std::fs::rename(scene.path("next"), scene.path("net.d")).expect("renamed");
    scene.sees("two").await;
    // The new directory is watched as the old one was.
    write(&scene.path("two/10-a.conflist"), "two, changed".replace(", ", "-").as_str());
    scene.sees("two-changed").await;
    // Files that are links into a folder behind a link, as volumes of Kubernetes have them.
    std::fs::remove_file(scene.path("two/10-a.conflist")).expect("removed");
    symlink("../one", scene.path("two/..data")).expect("a link");
    symlink("..data/10-a.conflist", scene.path("two/10-a.conflist")).expect("a link");
    scene.sees("one").await;
    symlink("../three", scene.path("two/..next")).expect("a link");
    std::fs::rename(scene.path("two/..next"), scene.path("two/..data")).expect("renamed");
    scene.sees("three").await;
    scene.end().await;
}

#[tokio::test]
async fn the_directory_may_vanish_and_come_back() {
    let scene = Scene::new(|folder| {
        std::fs::create_dir_all(folder.join("net.d")).expect("a folder");
        write(&folder.join("net.d/10-a.conflist"), "one");
    })
    .await;
    scene.begin().await;
    for round in ["two", "three"] {
        std::fs::remove_dir_all(scene.path("net.d")).expect("removed");
        scene.sees_none().await;
        assert!(!scene.path("net.d").exists(), "nothing stands in the way of the new one");
        std::fs::create_dir(scene.path("net.d")).expect("a folder");
        write(&scene.path("net.d/10-a.conflist"), round);
        scene.sees(round).await;
    }
    std::fs::rename(scene.path("net.d"), scene.path("away")).expect("renamed");
    scene.sees_none().await;
    std::fs::rename(scene.path("away"), scene.path("net.d")).expect("renamed");
    scene.sees("three").await;
    scene.end().await;
}

#[test]
fn what_a_look_finds_must_hold_still() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = ConfDir::new("", folder.path(), 1);
    write(&folder.path().join("10-a.conflist"), "one");
    let pending = directory.turn(None, None);
    assert!(pending.is_some() && directory.loaded().networks.is_err(), "not yet");
    write(&folder.path().join("10-a.conflist"), "longer");
    let pending = directory.turn(None, pending);
    assert!(pending.is_some() && directory.loaded().networks.is_err(), "it moves");
    let pending = directory.turn(None, pending);
    assert!(pending.is_none());
    assert_eq!(first(&directory.loaded()), Some("longer"));
    assert!(directory.turn(None, None).is_none(), "nothing new");
    // A file that is only created may be half written.
    std::fs::write(folder.path().join("05-b.conflist"), "{").expect("written");
    directory.turn(Some(Change::Created(vec!["05-b.conflist".into()])), None);
    assert_eq!(first(&directory.loaded()), Some("longer"));
    directory.turn(Some(Change::Content), None);
    assert!(directory.loaded().networks.is_err());
}

#[test]
fn an_unchanged_load_keeps_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("10-a.conflist"), "one");
    let directory = ConfDir::new("", folder.path(), 1);
    let before = directory.loaded().networks.clone().expect("loaded");
    directory.reload();
    let after = directory.loaded().networks.clone().expect("loaded");
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn concurrent_loads_end_with_the_newest_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = ConfDir::new("", folder.path(), 1);
    let round = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let new = folder.path().join(format!("new{}", round.fetch_add(1, Ordering::Relaxed)));
                    write(&new, "one");
                    std::fs::rename(new, folder.path().join("10-a.conflist")).expect("renamed");
                    directory.reload();
                }
            });
        }
    });
    assert_eq!(first(&directory.loaded()), Some("one"));
    assert_eq!(directory.loaded().seen, fingerprint(folder.path()));
}
