//! Limits: what the kubelet makes of requests and limits.
//!
//! | given | CRI |
//! |---|---|
//! | no request, no limit | class BestEffort, OOM score 1000 |
//! | limits of cpu and memory for all, as requested | class Guaranteed, −997 |
//! | else | class Burstable, 1000 less the share of the node's memory that is requested, 3 to 999 |
//! | cpu request, else limit | `cpu_shares`: 1024 for a cpu, 2 at least |
//! | cpu limit | `cpu_quota` of a period of 100 ms, 1 ms at least |
//! | memory limit, `hugepages-…` | `memory_limit_in_bytes`, `hugepage_limits` |

use serde_json::Value;

use super::Around;
use crate::config::CgroupDriver;
use crate::error::{Result, invalid};
use crate::proto::cri::{HugepageLimit, LinuxContainerResources};

const PERIOD_US: i64 = 100_000;
const QUOTA_MIN_US: i64 = 1000;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;

/// The class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// A quantity of Kubernetes, in thousandths.
fn quantity(value: &Value) -> Result<i128> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let wrong = || invalid(format!("{text:?} is no quantity"));
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (factor, divisor): (i128, i128) = match unit {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        unit => {
            let exponent = unit.strip_prefix(['e', 'E']).and_then(|power| power.parse::<u32>().ok());
            (
                10_i128
                    .checked_pow(exponent.filter(|power| *power < 20).ok_or_else(wrong)?)
                    .ok_or_else(wrong)?,
                1,
            )
        }
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if part.len() > 9 || part.contains(['+', '-']) || (whole.is_empty() && part.is_empty()) {
        return Err(wrong());
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let billionths: i128 =
        if part.is_empty() { 0 } else { format!("{part:0<9}").parse().map_err(|_| wrong())? };
    let all = whole.checked_mul(1_000_000_000).and_then(|whole| whole.checked_add(billionths));
    let scaled = all.and_then(|all| all.checked_mul(factor)).ok_or_else(wrong)?;
    // Rounded up, as Kubernetes does it.
    let unit = 1_000_000 * divisor;
    Ok(scaled.div_euclid(unit) + i128::from(scaled.rem_euclid(unit) != 0))
}

/// Requests and limits of cpu (thousandths) and memory (bytes).
#[derive(Clone, Copy, Debug, Default)]
struct Amounts {
    cpu_request: Option<i64>,
    cpu_limit: Option<i64>,
    memory_request: Option<i64>,
    memory_limit: Option<i64>,
}

impl Amounts {
    /// Of a container or pod, whose requests are its limits where it has none.
    fn of(given: &Value) -> Result<Amounts> {
        let read = |kind: &str, name: &str| -> Result<Option<i128>> {
            given["resources"][kind].get(name).map(quantity).transpose()
        };
        let cpu = |value: Option<i128>| value.and_then(|value| i64::try_from(value).ok());
        let bytes = |value: Option<i128>| value.and_then(|value| i64::try_from(value / 1000).ok());
        let (cpu_limit, memory_limit) = (cpu(read("limits", "cpu")?), bytes(read("limits", "memory")?));
        Ok(Amounts {
            cpu_request: cpu(read("requests", "cpu")?).or(cpu_limit),
            cpu_limit,
            memory_request: bytes(read("requests", "memory")?).or(memory_limit),
            memory_limit,
        })
    }

    fn is_empty(&self) -> bool {
        let all = [self.cpu_request, self.cpu_limit, self.memory_request, self.memory_limit];
        all.into_iter().flatten().all(|value| value == 0)
    }

    fn is_guaranteed(&self) -> bool {
        let same = |limit: Option<i64>, request: Option<i64>| {
            limit.is_some_and(|value| value > 0) && limit == request
        };
        same(self.cpu_limit, self.cpu_request) && same(self.memory_limit, self.memory_request)
    }
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|place| spec[place].as_array().into_iter().flatten())
}

/// The class of a pod.
///
/// # Errors
/// InvalidArgument for a quantity that is none.
pub(super) fn class(spec: &Value) -> Result<Class> {
    let own = Amounts::of(spec)?;
    let mut all = Vec::new();
    if own.is_empty() {
        for container in containers(spec) {
            all.push(Amounts::of(container)?);
        }
    } else {
        all.push(own);
    }
    Ok(match () {
        () if all.iter().all(Amounts::is_empty) => Class::BestEffort,
        () if all.iter().all(Amounts::is_guaranteed) => Class::Guaranteed,
        () => Class::Burstable,
    })
}

/// The cgroup of a pod, in the notation of the driver.
pub(super) fn cgroup_parent(class: Class, uid: &str, driver: CgroupDriver) -> String {
    let word = match class {
        Class::Guaranteed => "",
        Class::Burstable => "burstable",
        Class::BestEffort => "besteffort",
    };
    match (driver, word) {
        (CgroupDriver::Cgroupfs, "") => format!("/kubepods/pod{uid}"),
        (CgroupDriver::Cgroupfs, word) => format!("/kubepods/{word}/pod{uid}"),
        // A dash in the name of a slice is a step in its path.
        (CgroupDriver::Systemd, "") => format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_")),
        (CgroupDriver::Systemd, word) => {
            let uid = uid.replace('-', "_");
            format!("/kubepods.slice/kubepods-{word}.slice/kubepods-{word}-pod{uid}.slice")
        }
    }
}

/// The limits of a container.
///
/// # Errors
/// InvalidArgument for a quantity that is none.
pub(super) fn of_container(spec: &Value, given: &Value, around: &Around) -> Result<LinuxContainerResources> {
    let amounts = Amounts::of(given)?;
    let mut limits = of(&amounts);
    limits.oom_score_adj = oom_score(class(spec)?, &amounts, spec, around);
    for (name, value) in given["resources"]["limits"].as_object().into_iter().flatten() {
        let Some(size) = name.strip_prefix("hugepages-") else { continue };
        limits.hugepage_limits.push(HugepageLimit {
            page_size: size.replace("Ki", "KB").replace("Mi", "MB").replace("Gi", "GB"),
            limit: u64::try_from(quantity(value)? / 1000).unwrap_or(0),
        });
    }
    if around.cgroup_v2 {
        limits.unified.insert("memory.oom.group".into(), "1".into());
    }
    Ok(limits)
}

/// What the containers of a pod need together; more than that is the need of one of those that
/// run before.
///
/// # Errors
/// InvalidArgument for a quantity that is none.
pub(super) fn of_pod(spec: &Value, _around: &Around) -> Result<LinuxContainerResources> {
    let own = Amounts::of(spec)?;
    if !own.is_empty() {
        return Ok(of(&own));
    }
    let mut sum = Amounts::default();
    let add = |to: &mut Option<i64>, value: Option<i64>| {
        if let Some(value) = value {
            *to = Some(to.unwrap_or(0).saturating_add(value));
        }
    };
    for container in spec["containers"].as_array().into_iter().flatten() {
        let one = Amounts::of(container)?;
        add(&mut sum.cpu_request, one.cpu_request);
        add(&mut sum.cpu_limit, one.cpu_limit);
        add(&mut sum.memory_limit, one.memory_limit);
    }
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let one = Amounts::of(container)?;
        sum.cpu_request = sum.cpu_request.max(one.cpu_request);
        sum.cpu_limit = sum.cpu_limit.max(one.cpu_limit);
        sum.memory_limit = sum.memory_limit.max(one.memory_limit);
    }
    Ok(of(&sum))
}

/// What the pod itself needs (`overhead`).
///
/// # Errors
/// InvalidArgument for a quantity that is none.
pub(super) fn overhead(spec: &Value) -> Result<LinuxContainerResources> {
    let given = serde_json::json!({ "resources": { "limits": spec["overhead"] } });
    Ok(if spec["overhead"].is_object() {
        of(&Amounts::of(&given)?)
    } else {
        LinuxContainerResources::default()
    })
}

fn of(amounts: &Amounts) -> LinuxContainerResources {
    let request = amounts.cpu_request.filter(|request| *request > 0).or(amounts.cpu_limit).unwrap_or(0);
    let shares = request.saturating_mul(1024) / 1000;
    let limit = amounts.cpu_limit.unwrap_or(0);
    LinuxContainerResources {
        cpu_shares: shares.clamp(SHARES_MIN, SHARES_MAX),
        cpu_period: PERIOD_US,
        cpu_quota: if limit == 0 { 0 } else { (limit.saturating_mul(PERIOD_US) / 1000).max(QUOTA_MIN_US) },
        memory_limit_in_bytes: amounts.memory_limit.unwrap_or(0),
        ..LinuxContainerResources::default()
    }
}

fn oom_score(class: Class, amounts: &Amounts, spec: &Value, around: &Around) -> i64 {
    let critical = ["system-node-critical"];
    if spec["priorityClassName"].as_str().is_some_and(|name| critical.contains(&name)) {
        return -997;
    }
    match class {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let request = i128::from(amounts.memory_request.unwrap_or(0));
            let share = 1000 * request / i128::from(around.memory_bytes.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const AROUND: Around = Around { driver: CgroupDriver::Cgroupfs, cgroup_v2: false, memory_bytes: 1 << 30 };

    #[test]
    fn quantities_are_thousandths() {
        for (text, want) in [
            (json!("100m"), 100),
            (json!("1"), 1000),
            (json!(2), 2000),
            (json!("0.5"), 500),
            (json!(".25"), 250),
            (json!("1Ki"), 1_024_000),
            (json!("1.5Gi"), 1_610_612_736_000),
            (json!("1e3"), 1_000_000),
            (json!("1n"), 1),
        ] {
            assert_eq!(quantity(&text), Ok(want), "{text}");
        }
        for text in ["", "x", "1x", "1.2.3", "--1", "1e99"] {
            assert!(quantity(&json!(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn the_class_decides_cgroup_and_oom_score() {
        let pod = |resources: Value| json!({ "containers": [{ "name": "c", "resources": resources }] });
        let guaranteed = json!({ "limits": { "cpu": "1", "memory": "64Mi" } });
        let half = json!({ "requests": { "memory": "512Mi" } });
        for (resources, want, parent, score) in [
            (guaranteed, Class::Guaranteed, "/kubepods/podU-1", -997),
            (half, Class::Burstable, "/kubepods/burstable/podU-1", 500),
            (json!({}), Class::BestEffort, "/kubepods/besteffort/podU-1", 1000),
        ] {
            let spec = pod(resources);
            let class = class(&spec).expect("a class");
            assert_eq!((class, cgroup_parent(class, "U-1", CgroupDriver::Cgroupfs).as_str()), (want, parent));
            let limits = of_container(&spec, &spec["containers"][0], &AROUND).expect("limits");
            assert_eq!(limits.oom_score_adj, score);
        }
        assert_eq!(
            cgroup_parent(Class::Burstable, "U-1", CgroupDriver::Systemd),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_1.slice"
        );
    }

    #[test]
    fn cpu_becomes_shares_and_a_quota() {
        for (resources, shares, quota) in [
            (json!({ "requests": { "cpu": "250m" }, "limits": { "cpu": "1.5" } }), 256, 150_000),
            (json!({ "limits": { "cpu": "5m" } }), 5, 1000),
            (json!({}), 2, 0),
        ] {
            let limits = of(&Amounts::of(&json!({ "resources": resources })).expect("amounts"));
            assert_eq!((limits.cpu_shares, limits.cpu_quota, limits.cpu_period), (shares, quota, 100_000));
        }
    }
}
