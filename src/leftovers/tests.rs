//! The comparison, on worlds made up.

use super::*;
use crate::check::Verdict;
use crate::check::leftovers::compare;

/// A kind of things, and how one of them comes to be.
type Change<'a> = (&'static str, &'a dyn Fn(&mut World));

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// A node with one pod and one container, of longshore.
fn whole() -> World {
    let (pod, container) = (id('a'), id('b'));
    let pin = PathBuf::from("/run/netns/cni-00000000-0000-0000-0000-00000000000a");
    let records = vec![
        Record {
            id: pod.clone(),
            kind: Kind::Pod,
            title: "d/web".into(),
            netns: pin.clone(),
            ..Record::default()
        },
        Record {
            id: container.clone(),
            kind: Kind::Container,
            pod: pod.clone(),
            title: "c".into(),
            ..Record::default()
        },
        Record { id: "tool".into(), ..Record::default() },
    ];
    World {
        place: Place { namespace: "k8s.io".into(), netns_dir: "/run/netns".into(), ..Place::default() },
        containerd: Some(InContainerd {
            records,
            netns: [pin.clone()].into(),
            tasks: [pod.clone(), container.clone(), "tool".to_owned()]
                .map(|id| (id, ProcessStatus::Running))
                .into(),
            pod_leases: [pod.clone()].into(),
            snapshots: vec![(pod.clone(), "overlayfs".into(), container.clone())],
            ..InContainerd::default()
        }),
        host: OnHost {
            folders: vec![
                ("/l/sandboxes/a".into(), pod.clone()),
                ("/l/containers/b".into(), container.clone()),
            ],
            with_status: [container.clone()].into(),
            mounts: vec![("/s/sandboxes/a/shm".into(), Some(pod.clone()))],
            fifos: vec![("/s/containers/b/io/1".into(), container.clone(), container.clone())],
            pins: vec![pin.clone()],
            attachments: vec![Attached { file: "/c/a".into(), id: pod.clone(), netns: pin, is_pod: true }],
            shims: vec![(7, pod)],
            kept: [container].into(),
            ..OnHost::default()
        },
        ..World::default()
    }
}

fn containerd(world: &mut World) -> &mut InContainerd {
    world.containerd.as_mut().expect("it answers")
}

/// Kind, verdict, whether it is ours, who removes it.
fn found(change: impl FnOnce(&mut World)) -> Vec<(&'static str, Verdict, bool, RemovedBy)> {
    let mut world = whole();
    change(&mut world);
    let told = compare(&world).into_iter().filter_map(|finding| Some((finding.leftover?, finding.verdict)));
    told.map(|(left, verdict)| (left.kind, verdict, left.ours, left.removed_by)).collect()
}

#[test]
fn a_node_whose_things_all_have_their_pod_has_nothing_left() {
    let told = compare(&whole());
    assert_eq!((told.len(), told[0].verdict), (1, Verdict::Ok));
    assert!(told[0].what.contains("1 pod and 1 container"), "{told:?}");
    assert!(whole().foreign_pods().is_empty());
}

#[test]
fn what_the_next_start_removes_is_noted_before_it_and_a_problem_while_a_server_runs() {
    use RemovedBy::Server;
    let gone = id('c');
    let changes: [Change<'_>; 6] = [
        ("folder", &|world| world.host.folders.push(("/l/sandboxes/c".into(), gone.clone()))),
        ("image-volumes", &|world| {
            world.host.image_volumes.push(("/s/image-volumes/c".into(), gone.clone()))
        }),
        ("lease", &|world| _ = containerd(world).pod_leases.insert(gone.clone())),
        ("log", &|world| _ = world.host.kept.insert(gone.clone())),
        ("fifo", &|world| {
            _ = containerd(world).tasks.remove(&id('b'));
            world.host.ended.insert(id('b'));
            world.host.kept.clear();
        }),
        ("shim", &|world| containerd(world).tasks.clear()),
    ];
    for (kind, change) in changes {
        assert_eq!(found(change), [(kind, Verdict::Note, true, Server)]);
        let runs = found(|world| {
            change(world);
            world.server_runs = true;
        });
        assert_eq!(runs, [(kind, Verdict::Problem, true, Server)]);
    }
    let mount = found(|world| {
        world.host.folders.push(("/s/sandboxes/c".into(), gone.clone()));
        world.host.mounts.push(("/s/sandboxes/c/shm".into(), Some(gone.clone())));
    });
    assert_eq!(mount[1], ("mount", Verdict::Note, true, Server));
}

#[test]
fn what_a_server_is_busy_with_is_not_left() {
    let changes: [Change<'_>; 4] = [
        ("pod", &|world| containerd(world).records[0].is_creating = true),
        ("lease", &|world| _ = containerd(world).image_leases.insert("longshore-image-1".into())),
        ("snapshot", &|world| containerd(world).snapshots.push((id('a'), "overlayfs".into(), id('d')))),
        ("fifo", &|world| world.host.fifos.push(("/s/containers/b/io/2".into(), id('b'), "exec".into()))),
    ];
    for (kind, change) in changes {
        assert_eq!(found(change), [(kind, Verdict::Note, true, RemovedBy::Server)]);
        let runs = found(|world| {
            change(world);
            world.server_runs = true;
        });
        assert!(runs.is_empty(), "{runs:?}");
    }
}

#[test]
fn what_is_seen_once_while_a_server_runs_does_not_count() {
    let once = found(|world| {
        world.host.folders.push(("/l/sandboxes/c".into(), id('c')));
        world.server_runs = true;
        world.seen_before = Some(BTreeSet::new());
    });
    assert!(once.is_empty(), "{once:?}");
}

#[test]
fn containers_without_pod_or_status_are_the_kubelets() {
    let orphan = found(|world| containerd(world).records[1].pod = id('e'));
    assert_eq!(orphan, [("container", Verdict::Note, true, RemovedBy::Kubelet)]);
    let unknown = found(|world| world.host.with_status.clear());
    assert_eq!(unknown, [("container", Verdict::Note, true, RemovedBy::Kubelet)]);
}

#[test]
fn a_pin_and_an_attachment_of_nobody_are_ours_only_with_evidence() {
    let pin = || PathBuf::from("/run/netns/cni-00000000-0000-0000-0000-00000000000c");
    let attached = || Attached { file: "/c/c".into(), id: id('c'), netns: pin(), is_pod: true };
    let leak = |world: &mut World| {
        world.host.pins.push(pin());
        world.host.attachments.push(attached());
    };
    let names = |found: Vec<(&'static str, Verdict, bool, RemovedBy)>| -> Vec<_> {
        found.into_iter().map(|(kind, verdict, ours, _)| (kind, verdict, ours)).collect()
    };
    let (netns, cni) = ("network-namespace", "cni-attachment");
    // A shared folder: another CRI server's, perhaps.
    assert_eq!(names(found(leak)), [(netns, Verdict::Note, false), (cni, Verdict::Note, false)]);
    let own = found(|world| {
        leak(world);
        world.place.has_own_netns_dir = true;
    });
    assert_eq!(names(own), [(netns, Verdict::Problem, true), (cni, Verdict::Problem, true)]);
    // A folder of ours tells whose pod it was.
    let folder = found(|world| {
        leak(world);
        world.host.folders.push(("/l/sandboxes/c".into(), id('c')));
    });
    assert_eq!(names(folder)[1..], [(netns, Verdict::Problem, true), (cni, Verdict::Problem, true)]);
    let collected = found(|world| {
        world.host.attachments.push(attached());
        (world.place.has_own_netns_dir, world.place.collects_garbage) = (true, true);
    });
    assert_eq!(collected, [(cni, Verdict::Note, true, RemovedBy::Server)]);
}

#[test]
fn what_is_of_other_namespaces_and_programs_is_not_told() {
    let foreign = found(|world| {
        let pin = PathBuf::from("/run/netns/cni-00000000-0000-0000-0000-00000000000d");
        containerd(world).netns.insert(pin.clone());
        containerd(world).ids_elsewhere.insert(id('d'));
        containerd(world).tasks.insert("ctr-tool".into(), ProcessStatus::Running);
        world.host.pins.push(pin.clone());
        world.host.attachments.push(Attached { file: "/c/d".into(), id: id('d'), netns: pin, is_pod: true });
        // Podman's, in its own folder.
        world.host.attachments.push(Attached {
            file: "/c/p".into(),
            id: id('f'),
            netns: "/run/user/netns/netns-1".into(),
            is_pod: false,
        });
        world.host.shims.push((9, "ctr-tool".into()));
    });
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[test]
fn a_pod_of_another_server_in_the_namespace_is_not_ours() {
    let mut world = whole();
    let theirs = Record { id: id('e'), kind: Kind::Pod, title: "d/theirs".into(), ..Record::default() };
    containerd(&mut world).records.push(theirs);
    containerd(&mut world).tasks.insert(id('e'), ProcessStatus::Running);
    assert_eq!(world.foreign_pods(), ["d/theirs"]);
    assert_eq!(compare(&world)[0].verdict, Verdict::Ok);
    let unrecorded = found(|world| _ = containerd(world).tasks.insert(id('e'), ProcessStatus::Running));
    assert_eq!(unrecorded, [("task", Verdict::Note, false, RemovedBy::Nobody)]);
    let shim = found(|world| world.host.shims.push((8, id('e'))));
    assert_eq!(shim, [("shim", Verdict::Note, false, RemovedBy::Nobody)]);
}

#[test]
fn a_record_that_cannot_be_read_is_nobodys_to_remove() {
    let wrong = found(|world| containerd(world).records[0].wrong = Some("no extension".into()));
    assert!(wrong.contains(&("record", Verdict::Problem, true, RemovedBy::Nobody)), "{wrong:?}");
}

#[test]
fn without_containerd_nothing_is_called_left() {
    let mut world = whole();
    world.containerd = None;
    world.host.folders.push(("/l/sandboxes/c".into(), id('c')));
    assert!(compare(&world).is_empty() && world.foreign_pods().is_empty());
}

#[test]
fn pins_are_known_by_their_form() {
    for (name, want) in [
        ("cni-4cfb0333-4369-e71d-a748-8f2a7fcddab7", true),
        ("4cfb0333-4369-e71d-a748-8f2a7fcddab7", false),
        ("cni-4cfb0333", false),
        ("blue", false),
        ("cni-xcfb0333-4369-e71d-a748-8f2a7fcddab7", false),
    ] {
        assert_eq!(is_pin(&Path::new("/run/netns").join(name)), want, "{name}");
    }
}

#[test]
fn what_is_ours_is_the_servers_to_remove_where_it_reconciles() {
    let pin = || PathBuf::from("/run/netns/cni-00000000-0000-0000-0000-00000000000c");
    let removers = |is_ours: bool| {
        let left = found(|world| {
            world.place.reconciles = true;
            (world.server_runs, world.is_within) = (true, true);
            if is_ours {
                world.host.folders.push(("/l/sandboxes/c".into(), id('c')));
            }
            world.host.pins.push(pin());
            let attached = Attached { file: "/c/c".into(), id: id('c'), netns: pin(), is_pod: true };
            world.host.attachments.push(attached);
            world.host.shims.push((9, id('c')));
            containerd(world).tasks.insert(id('c'), ProcessStatus::Running);
        });
        let left = left.into_iter().filter(|(kind, ..)| *kind != "folder");
        left.map(|(_, verdict, ours, remover)| (verdict, ours, remover)).collect::<Vec<_>>()
    };
    assert_eq!(removers(true), [(Verdict::Note, true, RemovedBy::Server); 4]);
    assert_eq!(removers(false), [(Verdict::Note, false, RemovedBy::Nobody); 4]);
}

#[test]
fn a_server_sees_what_it_makes_itself_and_nobody_beside_it_does() {
    let snapshot = |is_within: bool| {
        found(|world| {
            containerd(world).snapshots.push((id('a'), "overlayfs".into(), id('d')));
            (world.server_runs, world.is_within) = (true, is_within);
        })
    };
    assert_eq!((snapshot(true).len(), snapshot(false).len()), (1, 0));
    let mut world = whole();
    containerd(&mut world).records[0].is_creating = true;
    assert_eq!(world.own_creations(), [id('a'), id('b')]);
}
