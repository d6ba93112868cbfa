//! The detail that only metrics show: who used the cpu, where memory went, which disks were
//! used (STA-18 … STA-20).
//!
//! | | version 1 | version 2 |
//! |---|---|---|
//! | cpu of users and the kernel | `cpuacct.usage_user`, `cpuacct.usage_sys` | `user_usec`, `system_usec` of `cpu.stat` |
//! | throttling | `cpu.stat` | `cpu.stat` |
//! | memory by kind | the `total_` lines of `memory.stat` | `memory.stat` |
//! | kernel memory | `memory.kmem.usage_in_bytes` | `kernel` of `memory.stat`; before 5.18 its parts |
//! | highest use | `memory.max_usage_in_bytes` | `memory.peak`, from 5.19 on |
//! | limit was hit | `memory.failcnt` | `max` of `memory.events` |
//! | OOM kills | `oom_kill` of `memory.oom_control` | `oom_kill` of `memory.events` |
//! | reservation | `memory.soft_limit_in_bytes` | `memory.low` |
//! | disks | `blkio.throttle.io_service_bytes_recursive`, `io_serviced` | `io.stat` |
//! | huge pages | `hugetlb.SIZE.usage_in_bytes`, `max_usage_in_bytes` | `hugetlb.SIZE.current` |
//! | highest count of threads | `pids.max` | `pids.max` |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::reading::limit;
use super::{Cgroup, V1, entry, number, text};

/// How many cgroups of one container are looked through for processes.
const FOLDERS_MAX: usize = 1000;
/// Parts of version 2's kernel memory, where the kernel does not give the sum.
const KERNEL_PARTS: [&str; 6] = ["kernel_stack", "pagetables", "sec_pagetables", "percpu", "vmalloc", "slab"];

/// What a cgroup uses, in detail. What its kernel does not tell is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::stats) struct Details {
    pub(in crate::stats) user_ns: Option<u64>,
    pub(in crate::stats) system_ns: Option<u64>,
    pub(in crate::stats) throttling: Option<Throttling>,
    pub(in crate::stats) memory: Option<Memory>,
    pub(in crate::stats) disks: Vec<DeviceIo>,
    pub(in crate::stats) huge_pages: Vec<HugePages>,
    /// The most threads that it may have; 0 for no limit.
    pub(in crate::stats) threads_max: Option<u64>,
    /// Its processes, with those of cgroups below.
    pub(in crate::stats) processes: Vec<u32>,
}

/// What a cpu quota has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::stats) struct Throttling {
    pub(in crate::stats) periods: u64,
    pub(in crate::stats) throttled_periods: u64,
    pub(in crate::stats) throttled_ns: u64,
}

/// Memory by kind, in bytes, and what happened to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::stats) struct Memory {
    pub(in crate::stats) cache: u64,
    pub(in crate::stats) mapped_file: u64,
    pub(in crate::stats) active_file: u64,
    pub(in crate::stats) kernel: Option<u64>,
    pub(in crate::stats) max_usage: Option<u64>,
    pub(in crate::stats) limit_hits: Option<u64>,
    pub(in crate::stats) oom_kills: Option<u64>,
    pub(in crate::stats) reservation: Option<u64>,
    /// Faults and major faults of its own processes; version 2 counts those below as well.
    pub(in crate::stats) own_faults: (u64, u64),
}

/// What went to and from one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::stats) struct DeviceIo {
    pub(in crate::stats) major: u32,
    pub(in crate::stats) minor: u32,
    /// Bytes by operation, as the kernel names them.
    pub(in crate::stats) bytes: BTreeMap<String, u64>,
    /// How many operations.
    pub(in crate::stats) operations: BTreeMap<String, u64>,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::stats) struct HugePages {
    /// As the kernel names it: `2MB`.
    pub(in crate::stats) size: String,
    pub(in crate::stats) usage: u64,
    pub(in crate::stats) max_usage: Option<u64>,
}

impl Cgroup {
    /// What it uses in detail.
    pub(in crate::stats) fn details(&self) -> Details {
        match self {
            Cgroup::V1(folders) => of_v1(folders),
            Cgroup::V2(folder) => of_v2(folder),
        }
    }
}

fn of_v1(folders: &V1<PathBuf>) -> Details {
    let cpuacct = |file| number(folders.cpuacct.as_deref()?, file);
    let any = folders.pids.as_deref().or(folders.memory.as_deref()).or(folders.cpuacct.as_deref());
    Details {
        user_ns: cpuacct("cpuacct.usage_user"),
        system_ns: cpuacct("cpuacct.usage_sys"),
        throttling: folders.cpu.as_deref().and_then(|folder| throttling(&text(folder, "cpu.stat")?)),
        memory: folders.memory.as_deref().and_then(memory_v1),
        disks: folders.blkio.as_deref().map(disks_v1).unwrap_or_default(),
        huge_pages: folders
            .hugetlb
            .as_deref()
            .map(|folder| huge_pages(folder, ".usage_in_bytes"))
            .unwrap_or_default(),
        threads_max: folders.pids.as_deref().and_then(threads_max),
        processes: any.map(processes).unwrap_or_default(),
    }
}

fn of_v2(folder: &Path) -> Details {
    let cpu = text(folder, "cpu.stat").unwrap_or_default();
    let in_ns = |key| entry(&cpu, key).map(|microseconds| microseconds.saturating_mul(1000));
    Details {
        user_ns: in_ns("user_usec"),
        system_ns: in_ns("system_usec"),
        throttling: throttling(&cpu),
        memory: memory_v2(folder),
        disks: text(folder, "io.stat").as_deref().map(disks_v2).unwrap_or_default(),
        huge_pages: huge_pages(folder, ".current"),
        threads_max: threads_max(folder),
        processes: processes(folder),
    }
}

fn throttling(stat: &str) -> Option<Throttling> {
    let in_ns = || entry(stat, "throttled_usec").map(|microseconds| microseconds.saturating_mul(1000));
    Some(Throttling {
        periods: entry(stat, "nr_periods")?,
        throttled_periods: entry(stat, "nr_throttled")?,
        throttled_ns: entry(stat, "throttled_time").or_else(in_ns)?,
    })
}

fn memory_v1(folder: &Path) -> Option<Memory> {
    let stat = text(folder, "memory.stat")?;
    let count = |key: &str| entry(&stat, key).unwrap_or(0);
    Some(Memory {
        cache: count("total_cache"),
        mapped_file: count("total_mapped_file"),
        active_file: count("total_active_file"),
        kernel: number(folder, "memory.kmem.usage_in_bytes"),
        max_usage: number(folder, "memory.max_usage_in_bytes"),
        limit_hits: number(folder, "memory.failcnt"),
        oom_kills: text(folder, "memory.oom_control").and_then(|control| entry(&control, "oom_kill")),
        reservation: number(folder, "memory.soft_limit_in_bytes").and_then(limit),
        own_faults: (count("pgfault"), count("pgmajfault")),
    })
}

fn memory_v2(folder: &Path) -> Option<Memory> {
    let stat = text(folder, "memory.stat")?;
    let count = |key: &str| entry(&stat, key).unwrap_or(0);
    let events = text(folder, "memory.events").unwrap_or_default();
    let parts = || KERNEL_PARTS.iter().filter_map(|part| entry(&stat, part)).reduce(u64::saturating_add);
    Some(Memory {
        cache: count("file"),
        mapped_file: count("file_mapped"),
        active_file: count("active_file"),
        kernel: entry(&stat, "kernel").or_else(parts),
        max_usage: number(folder, "memory.peak"),
        limit_hits: entry(&events, "max"),
        oom_kills: entry(&events, "oom_kill"),
        reservation: number(folder, "memory.low").filter(|bytes| *bytes > 0),
        own_faults: (count("pgfault"), count("pgmajfault")),
    })
}

/// Lines `major:minor Operation number`; one of totals at the end.
fn disks_v1(folder: &Path) -> Vec<DeviceIo> {
    let mut disks = BTreeMap::new();
    let mut take = |file: &str, table: fn(&mut DeviceIo) -> &mut BTreeMap<String, u64>| {
        for line in text(folder, file).unwrap_or_default().lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(device), Some(operation), Some(number)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if let (Some(disk), Ok(number)) = (device_of(&mut disks, device), number.parse()) {
                table(disk).insert(operation.to_owned(), number);
            }
        }
    };
    take("blkio.throttle.io_service_bytes_recursive", |disk| &mut disk.bytes);
    take("blkio.throttle.io_serviced_recursive", |disk| &mut disk.operations);
    disks.into_values().collect()
}

/// Lines `major:minor key=number…`.
fn disks_v2(table: &str) -> Vec<DeviceIo> {
    let mut disks = BTreeMap::new();
    for line in table.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(disk) = fields.next().and_then(|device| device_of(&mut disks, device)) else { continue };
        for (key, number) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(number) = number.parse() else { continue };
            let (table, operation) = match key {
                "rbytes" => (&mut disk.bytes, "Read"),
                "wbytes" => (&mut disk.bytes, "Write"),
                "dbytes" => (&mut disk.bytes, "Discard"),
                "rios" => (&mut disk.operations, "Read"),
                "wios" => (&mut disk.operations, "Write"),
                "dios" => (&mut disk.operations, "Discard"),
                _ => continue,
            };
            table.insert(operation.to_owned(), number);
        }
    }
    disks.into_values().collect()
}

fn device_of<'a>(disks: &'a mut BTreeMap<(u32, u32), DeviceIo>, name: &str) -> Option<&'a mut DeviceIo> {
    let (major, minor) = name.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(disks.entry((major, minor)).or_insert_with(|| DeviceIo { major, minor, ..DeviceIo::default() }))
}

/// Files `hugetlb.SIZE` and `suffix`, one for each size that the kernel has.
fn huge_pages(folder: &Path, suffix: &str) -> Vec<HugePages> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of_file = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        // There is another count of reserved pages, `hugetlb.SIZE.rsvd.…`.
        (!size.contains('.')).then_some(())?;
        let max_usage = number(folder, &format!("hugetlb.{size}.max_usage_in_bytes"));
        Some(HugePages { usage: number(folder, &name)?, size: size.to_owned(), max_usage })
    };
    let mut found: Vec<HugePages> =
        names.filter_map(|entry| of_file(entry.file_name().into_string().ok()?)).collect();
    found.sort_by(|a, b| a.size.cmp(&b.size));
    found
}

/// `max` is no limit.
fn threads_max(folder: &Path) -> Option<u64> {
    let limit = text(folder, "pids.max")?;
    if limit.trim() == "max" { Some(0) } else { limit.trim().parse().ok() }
}

/// The processes in a cgroup and below.
fn processes(folder: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    let mut looked_at = 0;
    while let Some(next) = open.pop() {
        looked_at += 1;
        let list = text(&next, "cgroup.procs").unwrap_or_default();
        found.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        if looked_at + open.len() < FOLDERS_MAX {
            let entries = std::fs::read_dir(&next).into_iter().flatten().flatten();
            let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            open.extend(folders.map(|entry| entry.path()));
        }
    }
    // A process may move while the folders are read.
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        folder
    }

    fn table(entries: &[(&str, u64)]) -> BTreeMap<String, u64> {
        entries.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    #[test]
    fn version_1_files_are_read_in_detail() {
        let folder = folder(&[
            ("cpuacct.usage_user", "1000\n"),
            ("cpuacct.usage_sys", "500\n"),
            ("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 7000\nnr_bursts 0\n"),
            (
                "memory.stat",
                "cache 1\npgfault 3\npgmajfault 2\ntotal_cache 10\ntotal_mapped_file 20\ntotal_active_file 30\n\
                 total_pgfault 40\n",
            ),
            ("memory.kmem.usage_in_bytes", "50\n"),
            ("memory.max_usage_in_bytes", "60\n"),
            ("memory.failcnt", "7\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "254:0 Read 4096\n254:0 Write 8192\n254:0 Total 12288\nTotal 12288\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 2\nbroken\n"),
            ("hugetlb.2MB.usage_in_bytes", "4096\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "8192\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "9\n"),
            ("pids.max", "max\n"),
            ("cgroup.procs", "7\n3\n"),
        ]);
        std::fs::create_dir(folder.path().join("below")).expect("a folder");
        std::fs::write(folder.path().join("below/cgroup.procs"), "5\n7\n").expect("a file");
        let path = Some(folder.path().to_owned());
        let all = V1 {
            cpuacct: path.clone(),
            cpu: path.clone(),
            memory: path.clone(),
            pids: path.clone(),
            blkio: path.clone(),
            hugetlb: path,
        };
        let want = Details {
            user_ns: Some(1000),
            system_ns: Some(500),
            throttling: Some(Throttling { periods: 9, throttled_periods: 4, throttled_ns: 7000 }),
            memory: Some(Memory {
                cache: 10,
                mapped_file: 20,
                active_file: 30,
                kernel: Some(50),
                max_usage: Some(60),
                limit_hits: Some(7),
                oom_kills: Some(2),
                reservation: None,
                own_faults: (3, 2),
            }),
            disks: vec![DeviceIo {
                major: 254,
                minor: 0,
                bytes: table(&[("Read", 4096), ("Total", 12288), ("Write", 8192)]),
                operations: table(&[("Read", 1), ("Write", 2)]),
            }],
            huge_pages: vec![HugePages { size: "2MB".into(), usage: 4096, max_usage: Some(8192) }],
            threads_max: Some(0),
            processes: vec![3, 5, 7],
        };
        assert_eq!(Cgroup::V1(all).details(), want);
    }

    #[test]
    fn version_2_files_are_read_in_detail() {
        let folder = folder(&[
            (
                "cpu.stat",
                "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
            ),
            ("memory.stat", "file 10\nfile_mapped 20\nactive_file 30\nkernel_stack 4\nslab 5\npgfault 6\n"),
            ("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n"),
            ("memory.low", "0\n"),
            ("memory.peak", "60\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \nnone\n"),
            ("hugetlb.1GB.current", "0\n"),
            ("pids.max", "100\n"),
        ]);
        let details = Cgroup::V2(folder.path().to_owned()).details();
        assert_eq!((details.user_ns, details.system_ns), (Some(5000), Some(4000)));
        let throttling = Throttling { periods: 3, throttled_periods: 2, throttled_ns: 1000 };
        assert_eq!(details.throttling, Some(throttling));
        let memory = Memory {
            cache: 10,
            mapped_file: 20,
            active_file: 30,
            kernel: Some(9),
            max_usage: Some(60),
            limit_hits: Some(7),
            oom_kills: Some(2),
            reservation: None,
            own_faults: (6, 0),
        };
        assert_eq!(details.memory, Some(memory));
        let (idle, used) = (&details.disks[0], &details.disks[1]);
        assert_eq!((idle.major, idle.minor, idle.bytes.is_empty()), (8, 16, true));
        assert_eq!(used.bytes, table(&[("Discard", 5), ("Read", 1), ("Write", 2)]));
        assert_eq!(used.operations, table(&[("Discard", 6), ("Read", 3), ("Write", 4)]));
        assert_eq!(details.threads_max, Some(100));
        let pages = HugePages { size: "1GB".into(), usage: 0, max_usage: None };
        assert_eq!(details.huge_pages, [pages]);
    }

    #[test]
    fn what_is_gone_has_no_details() {
        let folder = Path::new("/sys/fs/cgroup/there/is/none");
        assert_eq!(Cgroup::V2(folder.into()).details(), Details::default());
        assert_eq!(Cgroup::V1(V1::default()).details(), Details::default());
    }
}
