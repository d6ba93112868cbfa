//! Limits of a container.
//!
//! | CRI | OCI | rule |
//! |---|---|---|
//! | `cpu_shares`, `cpu_quota`, `cpu_period`, `cpuset_*` | `resources.cpu.*`; 0 and empty mean not set | OCI-43 |
//! | `memory_limit_in_bytes` | `resources.memory.limit` | OCI-43 |
//! | `memory_swap_limit_in_bytes`, else the memory limit | `resources.memory.swap`, where the controller exists | OCI-44 |
//! | `hugepage_limits` | `resources.hugepageLimits`, where the controller exists | OCI-43 |
//! | `unified` | `resources.unified` | OCI-43 |
//! | `oom_score_adj` | `process.oomScoreAdj`, kept at or above the server's own where restricted | OCI-10 |
//! | `cgroup_parent` of the pod | `cgroupsPath` in the notation of its driver; without one below `/NAMESPACE` | SBX-32, COX-16 |

use super::oci::{Cpu, HugepageLimit, Memory, Resources};
use super::{Host, paths};
use crate::config::CgroupDriver;
use crate::error::{Result, invalid};
use crate::proto::cri::LinuxContainerResources;

/// The prefix of scopes under systemd: cAdvisor and node tools look for it (COX-16).
const SCOPE_PREFIX: &str = "cri-containerd";
/// What the kernel takes.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// The cgroup of a container below its pod's parent.
#[must_use]
pub fn cgroups_path(parent: &str, id: &str) -> String {
    let base = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if base.ends_with(".slice") {
        // systemd knows a slice by its own name; its parents are in that name.
        return format!("{base}:{SCOPE_PREFIX}:{id}");
    }
    paths::join(parent, id)
}

/// The cgroup of a container whose pod names no parent: one of containerd's namespace.
/// Under systemd that would have to be a slice, and the runtime's own choice is left.
#[must_use]
pub fn default_cgroups_path(driver: CgroupDriver, namespace: &str, id: &str) -> String {
    match driver {
        CgroupDriver::Systemd => String::new(),
        CgroupDriver::Cgroupfs => paths::join(&format!("/{namespace}"), id),
    }
}

/// Lays `from` over `to`: what is zero in `from` keeps its former value (OCI-43, RES-03).
///
/// # Errors
/// InvalidArgument for negative values that have no meaning; FailedPrecondition for huge
/// pages without a controller when that is not tolerated.
pub fn apply(
    from: &LinuxContainerResources,
    to: &mut Resources,
    host: &Host,
    tolerate_missing_hugetlb: bool,
) -> Result<()> {
    let positive = |name: &str, value: i64| match value {
        0 => Ok(None),
        value => u64::try_from(value).map(Some).map_err(|_| invalid(format!("{name} {value} is negative"))),
    };
    let (shares, period) =
        (positive("cpu_shares", from.cpu_shares)?, positive("cpu_period", from.cpu_period)?);
    let cpu = to.cpu.get_or_insert_with(Cpu::default);
    cpu.shares = shares.or(cpu.shares);
    cpu.period = period.or(cpu.period);
    if from.cpu_quota != 0 {
        cpu.quota = Some(from.cpu_quota);
    }
    if !from.cpuset_cpus.is_empty() {
        cpu.cpus.clone_from(&from.cpuset_cpus);
    }
    if !from.cpuset_mems.is_empty() {
        cpu.mems.clone_from(&from.cpuset_mems);
    }
    let memory = to.memory.get_or_insert_with(Memory::default);
    if from.memory_limit_in_bytes != 0 {
        memory.limit = Some(from.memory_limit_in_bytes);
        if host.swap_controller && from.memory_swap_limit_in_bytes == 0 {
            memory.swap = memory.limit;
        }
    }
    if from.memory_swap_limit_in_bytes != 0 && host.swap_controller {
        memory.swap = Some(from.memory_swap_limit_in_bytes);
    }
    if !from.hugepage_limits.is_empty() {
        if host.hugetlb_controller {
            // What was there of the same sizes is replaced; the request itself stays as it is.
            let asked = |size: &String| from.hugepage_limits.iter().any(|limit| limit.page_size == *size);
            to.hugepage_limits.retain(|old| !asked(&old.page_size));
            to.hugepage_limits.extend(
                from.hugepage_limits
                    .iter()
                    .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit }),
            );
        } else if !tolerate_missing_hugetlb && from.hugepage_limits.iter().any(|limit| limit.limit != 0) {
            return Err(crate::error::precondition(
                "huge page limits are asked for, but the host has no hugetlb controller",
            ));
        }
    }
    for (key, value) in &from.unified {
        to.unified.insert(key.clone(), value.clone());
    }
    Ok(())
}

/// The limits that status reports for a spec: what was last applied (CTR-27).
#[must_use]
pub fn reported(resources: &Resources, oom_score_adj: Option<i32>) -> LinuxContainerResources {
    let number = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or(0);
    let cpu = resources.cpu.clone().unwrap_or_default();
    let memory = resources.memory.clone().unwrap_or_default();
    LinuxContainerResources {
        cpu_period: number(cpu.period),
        cpu_quota: cpu.quota.unwrap_or(0),
        cpu_shares: number(cpu.shares),
        memory_limit_in_bytes: memory.limit.unwrap_or(0),
        oom_score_adj: i64::from(oom_score_adj.unwrap_or(0)),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|limit| crate::proto::cri::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: memory.swap.unwrap_or(0),
    }
}

/// An OOM score adjustment as this server may ask for it.
///
/// # Errors
/// InvalidArgument for one that the kernel does not know.
pub fn oom_score_adj(wanted: i64, host: &Host) -> Result<i32> {
    let lowest = if host.restrict_oom_score_adj { i64::from(host.oom_score_adj) } else { i64::MIN };
    let adjusted = wanted.max(lowest);
    let known = i32::try_from(adjusted).ok().filter(|value| OOM_SCORE_ADJ.contains(value));
    known.ok_or_else(|| invalid(format!("oom_score_adj {wanted} is not from -1000 to 1000")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_follow_the_drivers_notation() {
        for (parent, want) in [
            ("/", "/id"),
            ("a", "a/id"),
            ("/a//../b/./c", "/b/c/id"),
            ("/kubepods/burstable/podx", "/kubepods/burstable/podx/id"),
            ("/kubepods/burstable/podx/", "/kubepods/burstable/podx/id"),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice",
                "kubepods-burstable-podx.slice:cri-containerd:id",
            ),
            ("system.slice", "system.slice:cri-containerd:id"),
        ] {
            assert_eq!(cgroups_path(parent, "id"), want, "{parent}");
        }
        assert_eq!(default_cgroups_path(CgroupDriver::Cgroupfs, "k8s.io", "id"), "/k8s.io/id");
        assert_eq!(default_cgroups_path(CgroupDriver::Systemd, "k8s.io", "id"), "");
    }

    #[test]
    fn zero_keeps_what_was_there() {
        let host = Host { swap_controller: true, ..Host::default() };
        let mut to = Resources::default();
        let first = LinuxContainerResources {
            cpu_shares: 102,
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        apply(&first, &mut to, &host, true).expect("valid");
        assert_eq!(to.memory.as_ref().and_then(|memory| memory.swap), Some(1 << 20));
        let second = LinuxContainerResources { cpu_period: 50_000, ..Default::default() };
        apply(&second, &mut to, &host, true).expect("valid");
        let cpu = to.cpu.expect("set");
        assert_eq!((cpu.shares, cpu.quota, cpu.period), (Some(102), Some(-1), Some(50_000)));
    }

    #[test]
    fn huge_pages_of_one_size_replace_former_ones() {
        let limits = |list: &[(&str, u64)]| {
            let limit = |(size, limit): &(&str, u64)| crate::proto::cri::HugepageLimit {
                page_size: (*size).into(),
                limit: *limit,
            };
            LinuxContainerResources {
                hugepage_limits: list.iter().map(limit).collect(),
                ..LinuxContainerResources::default()
            }
        };
        let host = Host { hugetlb_controller: true, ..Host::default() };
        let mut to = Resources::default();
        apply(&limits(&[("2MB", 1), ("1GB", 2), ("2MB", 3)]), &mut to, &host, true).expect("valid");
        apply(&limits(&[("2MB", 4)]), &mut to, &host, true).expect("valid");
        let sizes: Vec<_> =
            to.hugepage_limits.iter().map(|limit| (limit.page_size.as_str(), limit.limit)).collect();
        assert_eq!(sizes, [("1GB", 2), ("2MB", 4)]);
    }

    #[test]
    fn negative_shares_are_refused() {
        let bad = LinuxContainerResources { cpu_shares: -3, ..Default::default() };
        let error = apply(&bad, &mut Resources::default(), &Host::default(), true).expect_err("negative");
        assert_eq!(error.message(), "cpu_shares -3 is negative");
    }

    /// As if the host had no controller, and without a word (OCI-43).
    #[test]
    fn huge_page_limits_can_be_switched_off() {
        let asked = LinuxContainerResources {
            hugepage_limits: vec![crate::proto::cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 1 << 21,
            }],
            ..Default::default()
        };
        let limits = |controller: bool, tolerate: bool| {
            let host = Host { hugetlb_controller: controller, ..Host::default() };
            let mut to = Resources::default();
            apply(&asked, &mut to, &host, tolerate).map(|()| to.hugepage_limits.len())
        };
        let off = crate::config::file::ContainerSection {
            tolerate_missing_hugetlb_controller: false,
            disable_hugetlb_controller: true,
            ..Default::default()
        };
        assert_eq!(limits(true, off.tolerates_missing_hugetlb()), Ok(1));
        assert_eq!(limits(false, off.tolerates_missing_hugetlb()), Ok(0));
        assert!(limits(false, false).is_err());
    }

    #[test]
    fn oom_scores_are_kept_above_the_servers_own_where_restricted() {
        let free = Host { oom_score_adj: 100, ..Host::default() };
        let bound = Host { restrict_oom_score_adj: true, ..free.clone() };
        assert_eq!(
            (oom_score_adj(-998, &free), oom_score_adj(-5000, &bound), oom_score_adj(500, &bound)),
            (Ok(-998), Ok(100), Ok(500))
        );
        assert!(oom_score_adj(i64::MAX, &free).is_err() && oom_score_adj(-1001, &free).is_err());
    }
}
