//! Mounts of containers: which, in what order, with what options.

use super::*;

fn given(target: &str) -> cri::Mount {
    cri::Mount { container_path: target.into(), host_path: "/host".into(), ..Default::default() }
}

fn of(mounts: &[cri::Mount], host: HostMount, features: Features) -> Result<(Vec<Mount>, String)> {
    let files = PodFiles {
        hostname: "/p/hostname".into(),
        hosts: "/p/hosts".into(),
        resolv_conf: "/p/resolv.conf".into(),
        shm: "/p/shm".into(),
    };
    let gathered = vec![host; mounts.len()];
    let request = Request {
        mounts,
        gathered: &gathered,
        volumes: &[("/v".into(), "/data/vol".into())],
        files: &files,
        readonly_rootfs: false,
        privileged: false,
        cgroup_writable: false,
        own_cgroup_namespace: false,
        features,
        host_sys: false,
        host: &Host { cgroup_mount_options: vec!["nsdelegate".into()], ..Host::default() },
    };
    let mut root = String::new();
    of_container(request, defaults(), &mut root).map(|list| (list, root))
}

fn targets(list: &[Mount]) -> Vec<&str> {
    list.iter().map(|mount| mount.destination.as_str()).collect()
}

#[test]
fn a_mount_replaces_the_default_with_its_target() {
    let mounts = [given("/dev/"), given("/etc/hosts"), given("/data/vol"), given("//sys/fs/../fs/cgroup")];
    let (list, _) = of(&mounts, HostMount::default(), Features::default()).expect("valid");
    assert_eq!(
        targets(&list),
        [
            "/proc",
            "/sys",
            "/dev/",
            "/etc/hosts",
            "/data/vol",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm",
            "//sys/fs/../fs/cgroup"
        ]
    );
}

/// A target that is not absolute is another one, and a volume counts as what is mounted.
#[test]
fn targets_are_compared_as_text() {
    let (list, _) = of(&[given("etc/hosts")], HostMount::default(), Features::default()).expect("valid");
    let hosts = targets(&list).into_iter().filter(|target| target.ends_with("etc/hosts"));
    assert_eq!(hosts.collect::<Vec<_>>(), ["etc/hosts", "/etc/hosts"]);
    let mut root = String::new();
    let request = Request {
        mounts: &[],
        gathered: &[],
        volumes: &[("/v".into(), "/proc".into())],
        files: &PodFiles::default(),
        readonly_rootfs: false,
        privileged: true,
        cgroup_writable: false,
        own_cgroup_namespace: true,
        features: Features::default(),
        host_sys: false,
        host: &Host { cgroup_mount_options: vec!["nsdelegate".into()], ..Host::default() },
    };
    let list = of_container(request, defaults(), &mut root).expect("valid");
    assert_eq!(list.iter().filter(|mount| mount.destination == "/proc").count(), 1);
    let shm = list.iter().find(|mount| mount.destination == SHM).expect("its own");
    assert_eq!(shm.kind, "tmpfs");
    let cgroup = list.iter().find(|mount| mount.kind == "cgroup").expect("there");
    assert_eq!(cgroup.options, ["nosuid", "noexec", "nodev", "relatime", "rw"]);
}

#[test]
fn the_hosts_cgroup_options_are_repeated_in_its_namespace() {
    let (list, _) = of(&[], HostMount::default(), Features::default()).expect("valid");
    let cgroup = list.iter().find(|mount| mount.kind == "cgroup").expect("there");
    assert_eq!(cgroup.options.last().map(String::as_str), Some("nsdelegate"));
}

#[test]
fn mounts_are_ordered_by_depth_and_then_as_given() {
    let mounts = [given("/a/b/c"), given("/z"), given("/a"), given("/a/b")];
    let (list, _) = of(&mounts, HostMount::default(), Features::default()).expect("valid");
    let order: Vec<_> =
        targets(&list).into_iter().filter(|target| target.starts_with(['a', 'z', '/'])).collect();
    let position = |target: &str| order.iter().position(|name| *name == target);
    assert!(position("/z") < position("/a") && position("/a") < position("/a/b"));
    assert!(position("/a/b") < position("/etc/hostname"));
    assert!(position("/a/b") < position("/a/b/c"));
}

#[test]
fn propagation_needs_the_hosts_mount_and_raises_the_roots() {
    let mut mount = given("/a");
    mount.propagation = MountPropagation::PropagationBidirectional as i32;
    assert!(of(std::slice::from_ref(&mount), HostMount::default(), Features::default()).is_err());
    let shared = HostMount { shared: true, ..HostMount::default() };
    let (list, root) = of(std::slice::from_ref(&mount), shared, Features::default()).expect("shared");
    assert_eq!(root, "rshared");
    assert!(list.iter().any(|mount| mount.options == ["rbind", "rshared", "rw"]));
    mount.propagation = MountPropagation::PropagationHostToContainer as i32;
    let slave = HostMount { slave: true, ..HostMount::default() };
    assert!(of(&[mount], slave, Features::default()).is_ok_and(|(_, root)| root == "rslave"));
}

#[test]
fn recursive_read_only_is_honoured_or_refused() {
    let ask = |readonly: bool, propagation: MountPropagation, able: bool| {
        let mount = cri::Mount {
            readonly,
            recursive_read_only: true,
            propagation: propagation as i32,
            ..given("/a")
        };
        let host = HostMount { shared: true, ..HostMount::default() };
        of(&[mount], host, Features { recursive_read_only: able, ..Features::default() })
    };
    let private = MountPropagation::PropagationPrivate;
    assert!(
        ask(true, private, true)
            .is_ok_and(|(list, _)| list.iter().any(|mount| mount.options.contains(&"rro".into())))
    );
    let error = ask(true, private, false).expect_err("not able");
    assert!(error.message().starts_with("RROUnsupported"));
    assert!(ask(false, private, true).is_err());
    assert!(ask(true, MountPropagation::PropagationHostToContainer, true).is_err());
}

/// OCI-35.
#[test]
fn mount_options_go_on_top() {
    let options = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let bind = cri::Mount { mount_options: options(&["noexec", "nodev", "noexec"]), ..given("/a") };
    let image = cri::Mount {
        container_path: "/i".into(),
        image: Some(cri::ImageSpec { image: "sha256:1".into(), ..Default::default() }),
        readonly: true,
        mount_options: options(&["nosuid"]),
        ..Default::default()
    };
    let mounts = [bind, image];
    check(&mounts, Features::default()).expect("they are known");
    let (list, _) = of(&mounts, HostMount::default(), Features::default()).expect("valid");
    let of = |target: &str| {
        let found = list.iter().find(|mount| mount.destination == target).expect("mounted");
        found.options.join(",")
    };
    assert_eq!(
        (of("/a").as_str(), of("/i").as_str()),
        ("rbind,rprivate,rw,noexec,nodev", "rbind,rprivate,ro,nosuid")
    );
}

#[test]
fn what_is_not_built_is_refused() {
    let bad = [
        cri::Mount { container_path: String::new(), ..given("/a") },
        cri::Mount { host_path: "relative".into(), ..given("/a") },
        cri::Mount { host_path: String::new(), ..given("/a") },
        cri::Mount { image_sub_path: "sub".into(), ..given("/a") },
        cri::Mount { mount_options: vec!["nodev".into(), "exec".into()], ..given("/a") },
    ];
    for mount in bad {
        assert!(check(std::slice::from_ref(&mount), Features::default()).is_err(), "{mount:?}");
    }
    let relabel = cri::Mount { selinux_relabel: true, ..given("/a") };
    assert!(check(std::slice::from_ref(&relabel), Features::default()).is_ok());
}

const MAPPING: cri::IdMapping = cri::IdMapping { host_id: 100_000, container_id: 0, length: 65536 };

/// OCI-34.
#[test]
fn id_mappings_become_those_of_the_bind_mount_or_are_refused() {
    let able = Features { id_mapped_mounts: true, ..Features::default() };
    let mapped = cri::Mount { uid_mappings: vec![MAPPING], gid_mappings: vec![MAPPING; 2], ..given("/a") };
    check(std::slice::from_ref(&mapped), able).expect("nothing is wrong with it");
    let (list, _) = of(std::slice::from_ref(&mapped), HostMount::default(), able).expect("valid");
    let mount = list.iter().find(|mount| mount.destination == "/a").expect("it is there");
    let json = serde_json::to_value(mount).expect("JSON");
    assert_eq!(
        json["uidMappings"],
        serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}])
    );
    assert_eq!(json["gidMappings"].as_array().map(Vec::len), Some(2));
    assert_eq!(mount.options, ["rbind", "rprivate", "rw"]);
    assert!(list.iter().filter(|mount| !mount.uid_mappings.is_empty()).count() == 1, "OCI-36");

    let kind = |mount: &cri::Mount, features| {
        check(std::slice::from_ref(mount), features).map_err(|error| error.kind()).err()
    };
    assert_eq!(kind(&mapped, Features::default()), Some(Kind::FailedPrecondition));
    let empty = cri::IdMapping { length: 0, ..MAPPING };
    for wrong in [
        cri::Mount { uid_mappings: vec![], ..mapped.clone() },
        cri::Mount { gid_mappings: vec![], ..mapped.clone() },
        cri::Mount { gid_mappings: vec![MAPPING, empty], ..mapped.clone() },
    ] {
        assert_eq!(kind(&wrong, able), Some(Kind::InvalidArgument), "{wrong:?}");
    }
}

/// SBX-28.
#[test]
fn the_hosts_sys_takes_the_place_of_a_fresh_one_unless_a_mount_has_it() {
    let list = of_pause(true, true, Path::new("/shm"), Path::new("/resolv.conf"));
    let sys: Vec<_> = list.iter().filter(|mount| mount.destination == "/sys").collect();
    assert_eq!(sys.len(), 1);
    assert_eq!((sys[0].kind.as_str(), sys[0].source.as_str()), ("bind", "/sys"));
    assert_eq!(sys[0].options, ["rbind", "rro", "rslave", "nosuid", "nodev", "noexec"]);
    let ask = |mounts: &[cri::Mount]| {
        let gathered = vec![HostMount { source: "/host".into(), ..HostMount::default() }; mounts.len()];
        let request = Request {
            mounts,
            gathered: &gathered,
            volumes: &[],
            files: &PodFiles::default(),
            readonly_rootfs: false,
            privileged: false,
            cgroup_writable: false,
            own_cgroup_namespace: true,
            features: Features::default(),
            host_sys: true,
            host: &Host::default(),
        };
        let list = of_container(request, defaults(), &mut String::new()).expect("valid");
        let sys = list.into_iter().filter(|mount| mount.destination.starts_with("/sys"));
        sys.map(|mount| (mount.destination, mount.source)).collect::<Vec<_>>()
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let cgroup = pair("/sys/fs/cgroup", "cgroup");
    assert_eq!(ask(&[]), [pair("/sys", "/sys"), cgroup.clone()]);
    assert_eq!(ask(&[given("/sys")]), [cgroup, pair("/sys", "/host")]);
}

/// OCI-37, ERR-09, ERR-13.
#[test]
fn an_image_is_mounted_read_only_and_private_or_not_at_all() {
    let good = cri::Mount {
        container_path: "/a".into(),
        image: Some(cri::ImageSpec { image: "sha256:1".into(), ..Default::default() }),
        image_sub_path: "sub".into(),
        readonly: true,
        ..Default::default()
    };
    check(std::slice::from_ref(&good), Features::default()).expect("nothing is wrong with it");
    let shared = MountPropagation::PropagationBidirectional as i32;
    let bad = [
        cri::Mount { host_path: "/host".into(), ..good.clone() },
        cri::Mount { readonly: false, ..good.clone() },
        cri::Mount { propagation: shared, ..good.clone() },
        cri::Mount { propagation: 77, ..good.clone() },
        cri::Mount { image: Some(cri::ImageSpec::default()), ..good.clone() },
    ];
    for mount in bad {
        let error = check(std::slice::from_ref(&mount), Features::default()).expect_err("wrong");
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        assert!(error.message().starts_with("ImageVolumeMountFailed: mount at \"/a\": "), "{error}");
    }
    let two = vec![MAPPING; 2];
    let mapped = cri::Mount { uid_mappings: two.clone(), gid_mappings: two, ..good.clone() };
    let error = check(&[mapped], Features::default()).expect_err("one is possible");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.message().starts_with("ImageVolumeMountFailed: "), "{error}");

    let host = HostMount { source: "/state/image/sub".into(), ..HostMount::default() };
    let (list, _) = of(&[good], host, Features::default()).expect("valid");
    let mount = list.iter().find(|mount| mount.destination == "/a").expect("it is there");
    assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("bind", "/state/image/sub"));
    assert_eq!(mount.options, ["rbind", "rprivate", "ro"]);
}
