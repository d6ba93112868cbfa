use super::super::reading::{Cpu, Memory, Swap};
use super::*;
use crate::proto::cri::PsiData;

const V1_TABLE: &[u8] = b"\
25 24 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
27 25 0:24 /part /somewhere rw - cgroup cgroup rw,memory
28 25 0:24 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
29 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
30 25 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";
const V2_TABLE: &[u8] = b"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const ID: &str = "0123abcd";

fn v1() -> Hierarchies {
    Hierarchies::of(mountinfo::parse_cgroups(V1_TABLE)).expect("hierarchies")
}

fn v2() -> Hierarchies {
    Hierarchies::of(mountinfo::parse_cgroups(V2_TABLE)).expect("a hierarchy")
}

fn folders(cpuacct: Option<&str>, memory: Option<&str>) -> Cgroup {
    // Of one hierarchy, as usual.
    let cpu = cpuacct.map(Into::into);
    Cgroup::V1(V1 { cpuacct: cpu.clone(), cpu, memory: memory.map(Into::into), ..V1::default() })
}

#[test]
fn version_1_counts_where_its_controllers_are() {
    let table = format!(
        "12:pids:/pod/{ID}\n5:memory:/pod/{ID}\n4:cpu,cpuacct:/other/{ID}\n1:name=systemd:/x\n0::/\n"
    );
    assert_eq!(
        v1().of_container(&table, ID),
        Some(folders(
            Some("/sys/fs/cgroup/cpu,cpuacct/other/0123abcd"),
            Some("/sys/fs/cgroup/memory/pod/0123abcd")
        ))
    );
    assert_eq!(Hierarchies::of(Vec::new()), None);
}

#[test]
fn a_container_is_found_with_both_drivers_and_wherever_its_process_moved() {
    for (path, found) in [
        ("/kubepods/podx/0123abcd", Some("/kubepods/podx/0123abcd")),
        ("/kubepods/podx/0123abcd/init.scope", Some("/kubepods/podx/0123abcd")),
        (
            "/a.slice/a-b.slice/cri-containerd-0123abcd.scope",
            Some("/a.slice/a-b.slice/cri-containerd-0123abcd.scope"),
        ),
        ("/system.slice/runc-0123abcd.scope", Some("/system.slice/runc-0123abcd.scope")),
        ("/system.slice/sshd.service", None),
        ("/../../0123abcd", None),
        ("/", None),
    ] {
        let want = found.map(|path| Cgroup::V2(format!("/sys/fs/cgroup{path}").into()));
        assert_eq!(v2().of_container(&format!("0::{path}\n"), ID), want, "{path}");
    }
    assert_eq!(v1().of_container("5:memory:/x\n", ID), None);
    assert_eq!(v1().of_container("", ID), None);
}

#[test]
fn a_pod_is_where_its_parent_says() {
    for (parent, path) in [
        ("/kubepods/burstable/podx", "/kubepods/burstable/podx"),
        ("kubepods/podx", "/kubepods/podx"),
        ("/a.slice/a-b.slice/a-b-podx.slice", "/a.slice/a-b.slice/a-b-podx.slice"),
        ("a-b-podx.slice", "/a.slice/a-b.slice/a-b-podx.slice"),
        ("-.slice", "/"),
    ] {
        let want = Cgroup::V2(format!("/sys/fs/cgroup{path}").into());
        assert_eq!(v2().of_pod(parent), Some(want), "{parent}");
    }
    let want = folders(Some("/sys/fs/cgroup/cpu,cpuacct/p"), Some("/sys/fs/cgroup/memory/p"));
    assert_eq!(v1().of_pod("/p"), Some(want));
    assert_eq!((v2().of_pod("/../../etc"), v2().of_pod("a/../..")), (None, None), "no folder elsewhere");
}

#[test]
fn paths_begin_at_the_root_of_the_mount() {
    let table = b"30 23 0:26 /outer /mnt/c\\040g rw - cgroup2 cgroup2 rw\n";
    let inner = Hierarchies::of(mountinfo::parse_cgroups(table)).expect("a hierarchy");
    let table = format!("0::/outer/pod/{ID}\n");
    assert_eq!(inner.of_container(&table, ID), Some(Cgroup::V2("/mnt/c g/pod/0123abcd".into())));
    assert_eq!(inner.of_container(&format!("0::/pod/{ID}\n"), ID), None);
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("a file");
    }
}

#[test]
fn version_2_files_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    write(
        folder.path(),
        &[
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n"),
            ("cpu.pressure", "some avg10=0.50 avg60=0.10 avg300=0.02 total=1234\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            (
                "memory.stat",
                "anon 200\nfile 700\ninactive_anon 9\ninactive_file 300\npgfault 11\npgmajfault 2\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
            ("memory.swap.current", "40\n"),
            ("memory.swap.max", "100\n"),
            ("pids.current", "3\n"),
        ],
    );
    let cgroup = Cgroup::V2(folder.path().to_owned());
    let reading = cgroup.read();
    let cpu = reading.cpu.expect("cpu");
    assert_eq!((cpu.usage_ns, cgroup.cpu_ns()), (1_500_000, Some(1_500_000)));
    let psi = cpu.psi.expect("pressure");
    let some = PsiData { total: 1_234_000, avg10: 0.5, avg60: 0.1, avg300: 0.02 };
    assert_eq!((psi.some, psi.full), (Some(some), None));
    let memory = reading.memory.expect("memory");
    assert_eq!(
        (memory.usage, memory.inactive_file, memory.rss, memory.page_faults, memory.major_page_faults),
        (1000, 300, 200, 11, 2)
    );
    assert_eq!(memory.limit, None);
    assert_eq!(memory.psi.and_then(|psi| psi.full), Some(PsiData::default()));
    assert_eq!(reading.swap, Some(Swap { usage: 40, limit: Some(100) }));
    assert_eq!((reading.io, reading.pids), (None, Some(3)));
}

#[test]
fn version_1_files_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_owned();
    write(
        folder.path(),
        &[
            ("cpuacct.usage", "1234567\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "4096\n"),
            ("memory.memsw.limit_in_bytes", "6144\n"),
            (
                "memory.stat",
                "rss 1\ninactive_file 2\npgfault 3\ntotal_rss 100\ntotal_swap 50\ntotal_inactive_file 400\ntotal_pgfault 7\ntotal_pgmajfault 1\n",
            ),
            ("pids.current", "2\n"),
        ],
    );
    let all = V1 {
        cpuacct: Some(path.clone()),
        memory: Some(path.clone()),
        pids: Some(path.clone()),
        ..V1::default()
    };
    let cgroup = Cgroup::V1(all);
    let reading = cgroup.read();
    assert_eq!(reading.cpu, Some(Cpu { usage_ns: 1_234_567, psi: None }));
    assert_eq!(cgroup.cpu_ns(), Some(1_234_567));
    let memory = Memory {
        usage: 1000,
        inactive_file: 400,
        rss: 100,
        page_faults: 7,
        major_page_faults: 1,
        limit: Some(4096),
        psi: None,
    };
    assert_eq!(reading.memory, Some(memory));
    assert_eq!(reading.swap, Some(Swap { usage: 50, limit: Some(2048) }));
    assert_eq!(reading.pids, Some(2));

    // Without swap accounting and limits.
    std::fs::remove_file(path.join("memory.memsw.limit_in_bytes")).expect("removed");
    write(&path, &[("memory.stat", "total_rss 100\n"), ("memory.limit_in_bytes", "9223372036854771712\n")]);
    let reading = cgroup.read();
    assert_eq!((reading.swap, reading.memory.map(|memory| memory.limit)), (None, Some(None)));
}

#[test]
fn what_is_gone_reads_as_nothing() {
    let folder = Path::new("/sys/fs/cgroup/there/is/none");
    assert!(Cgroup::V2(folder.into()).read().is_empty());
    let gone = V1 { cpuacct: Some(folder.into()), memory: Some(folder.into()), ..V1::default() };
    assert!(Cgroup::V1(gone).read().is_empty());
}
