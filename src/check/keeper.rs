//! The keeper: whether there is one, of which program, what it has, and whether it outlives
//! the service.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LIMIT;
use super::finding::{Finding, counted, some_of};
use crate::config::Config;
use crate::error::Result;
use crate::flow;
use crate::io::{self, LookedAt};

const SUBJECT: &str = "keeper";
/// Where service units are, the first found counts.
const UNITS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// The largest unit file that is read.
const UNIT_BYTES_MAX: u64 = 1 << 16;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// What it says; `None` where there is none.
    keeper: Option<LookedAt>,
    rss_kib: u64,
    cgroup: String,
    unit: Option<Unit>,
}

/// The service that it belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    name: String,
    /// The last `KillMode=` of its files; `None` if none of them says it.
    kill_mode: Option<String>,
    /// Whether it is the server's.
    is_the_servers: bool,
}

pub(super) async fn gather(config: Arc<Config>) -> Result<Facts> {
    let keeper = io::look(&config.file.state, LIMIT).await?;
    let Some(keeper) = keeper else { return Ok(Facts::default()) };
    flow::blocking(move || {
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", keeper.pid)).unwrap_or_default();
        let status = read("status");
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        let cgroup = cgroup_in(&read("cgroup"));
        let unit = unit_of(&cgroup).map(read_unit);
        Ok(Facts { keeper: Some(keeper), rss_kib: rss.unwrap_or(0), cgroup, unit })
    })
    .await
}

/// The cgroup by which systemd knows a process.
fn cgroup_in(table: &str) -> String {
    let of = |controllers: &str| {
        table.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == controllers).then(|| fields.next()).flatten()
        })
    };
    let named = of("name=systemd").filter(|path| *path != "/");
    named.or_else(|| of("")).unwrap_or_default().to_owned()
}

/// The innermost service of a cgroup's path.
fn unit_of(cgroup: &str) -> Option<String> {
    let parts = cgroup.rsplit('/');
    parts.map(str::to_owned).find(|part| part.ends_with(".service"))
}

/// Reads the files of a unit, those of its folders of additions last.
fn read_unit(name: String) -> Unit {
    let main = UNITS.iter().map(|folder| Path::new(folder).join(&name)).find(|path| path.is_file());
    let mut files: Vec<PathBuf> = main.into_iter().collect();
    for folder in UNITS.iter().rev() {
        let folder = Path::new(folder).join(format!("{name}.d"));
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut more: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        more.retain(|path| path.extension().is_some_and(|end| end == "conf"));
        more.sort();
        files.extend(more);
    }
    let is_small = |path: &&PathBuf| std::fs::metadata(path).is_ok_and(|found| found.len() <= UNIT_BYTES_MAX);
    let texts = files.iter().filter(is_small).filter_map(|path| std::fs::read_to_string(path).ok());
    let texts: Vec<String> = texts.collect();
    Unit {
        name,
        kill_mode: texts.iter().filter_map(|text| kill_mode_in(text)).next_back(),
        is_the_servers: texts.iter().any(|text| text.contains("longshore serve")),
    }
}

fn kill_mode_in(text: &str) -> Option<String> {
    let lines =
        text.lines().filter_map(|line| line.trim().strip_prefix("KillMode")?.trim_start().strip_prefix('='));
    lines.map(|value| value.trim().to_owned()).next_back()
}

pub(super) fn compare(facts: &Facts, server_runs: bool) -> Vec<Finding> {
    let Some(keeper) = &facts.keeper else {
        let what = "none runs; the server starts one with the first container";
        return vec![Finding::ok(SUBJECT, what)];
    };
    vec![program(keeper, facts, server_runs), holdings(keeper), unit(facts)]
}

fn program(keeper: &LookedAt, facts: &Facts, server_runs: bool) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let (theirs, ours) = keeper.protocol;
    let what = format!(
        "process {}, version {}, protocol {theirs}, {} MiB in memory",
        keeper.pid,
        keeper.version,
        facts.rss_kib / 1024
    );
    let later = if server_runs {
        "it goes on as the server's program at the server's next start, without a gap in the logs"
    } else {
        "the server's next start lets it go on as its own program, without a gap in the logs"
    };
    if theirs > ours {
        return Finding::note(SUBJECT, format!("{what}: newer than this program's {ours}"), later);
    }
    match (keeper.version == own, keeper.is_this_program) {
        (true, Some(true)) => Finding::ok(SUBJECT, format!("{what}, the same program as this one")),
        (true, _) => Finding::note(
            SUBJECT,
            format!("{what}: of the same version, but another file than this program"),
            later,
        ),
        (false, _) => Finding::note(SUBJECT, format!("{what}; this program is {own}"), later),
    }
}

fn holdings(keeper: &LookedAt) -> Finding {
    let open = keeper.containers.iter().filter(|io| !io.is_drained).count();
    let what = format!("has {}, {open} with open output", counted(keeper.containers.len(), "container"));
    let losers: Vec<_> = keeper.containers.iter().filter(|io| io.lost_entries > 0).collect();
    if losers.is_empty() {
        return Finding::ok(SUBJECT, format!("{what}; nothing is lost"));
    }
    let entries: u64 = losers.iter().map(|io| io.lost_entries).sum();
    let bytes: u64 = losers.iter().map(|io| io.lost_bytes).sum();
    let names: Vec<String> = losers.iter().map(|io| io.id.clone()).collect();
    let why = losers.iter().rev().find_map(|io| io.last_error.as_deref()).unwrap_or("unknown");
    Finding::problem(
        SUBJECT,
        format!("{what}; {entries} log entries ({bytes} bytes) are lost, of {}: {why}", some_of(&names)),
        "is the disk of the logs full or read-only? What is lost does not come back",
    )
}

fn unit(facts: &Facts) -> Finding {
    let Some(unit) = &facts.unit else {
        let cgroup = if facts.cgroup.is_empty() { "/" } else { &facts.cgroup };
        return Finding::ok(SUBJECT, format!("cgroup {cgroup}, of no service"));
    };
    let place = format!("cgroup {}, of {}", facts.cgroup, unit.name);
    match unit.kill_mode.as_deref() {
        Some("process" | "none") => {
            Finding::ok(SUBJECT, format!("{place}: it outlives a stop of the service (KillMode=process)"))
        }
        _ if !unit.is_the_servers => Finding::note(
            SUBJECT,
            format!("{place}, which is not the server's"),
            "a stop of that service may kill it; the server's own has KillMode=process",
        ),
        other => Finding::problem(
            SUBJECT,
            format!(
                "{place}, which has KillMode={}: a stop of the service kills it",
                other.unwrap_or("control-group")
            ),
            "KillMode=process in [Service], as in deploy/longshore.service; then `systemctl daemon-reload`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::io::KeptIo;

    fn facts(containers: Vec<KeptIo>, kill_mode: Option<&str>) -> Facts {
        let keeper = LookedAt {
            pid: 7,
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: (2, 2),
            is_this_program: Some(true),
            containers,
        };
        let unit = Unit {
            name: "longshore.service".into(),
            kill_mode: kill_mode.map(str::to_owned),
            is_the_servers: true,
        };
        Facts { keeper: Some(keeper), rss_kib: 3000, cgroup: "/x".into(), unit: Some(unit) }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        compare(facts, true).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn losses_and_a_service_that_kills_it_are_problems() {
        use Verdict::{Note, Ok, Problem};
        assert_eq!(compare(&Facts::default(), true)[0].verdict, Ok);
        assert_eq!(verdicts(&facts(Vec::new(), Some("process"))), [Ok, Ok, Ok]);
        let lost = KeptIo {
            id: "c1".into(),
            lost_entries: 3,
            lost_bytes: 40,
            last_error: Some("no space".into()),
            ..KeptIo::default()
        };
        let found = compare(&facts(vec![lost], None), true);
        assert_eq!((found[1].verdict, found[2].verdict), (Problem, Problem));
        assert!(found[1].what.contains("3 log entries (40 bytes)") && found[1].what.contains("no space"));
        let mut old = facts(Vec::new(), Some("process"));
        if let Some(keeper) = &mut old.keeper {
            (keeper.version, keeper.is_this_program) = ("0.0.1".into(), None);
        }
        assert_eq!(verdicts(&old), [Note, Ok, Ok]);
        old.unit = None;
        assert_eq!(verdicts(&old), [Note, Ok, Ok]);
    }

    #[test]
    fn its_service_is_found_by_its_cgroup() {
        assert_eq!(
            cgroup_in("0::/system.slice/longshore.service/keeper\n"),
            "/system.slice/longshore.service/keeper"
        );
        assert_eq!(cgroup_in("3:cpu:/a\n1:name=systemd:/b.service\n0::/\n"), "/b.service");
        assert_eq!(unit_of("/system.slice/longshore.service/keeper").as_deref(), Some("longshore.service"));
        assert_eq!(unit_of("/user.slice/session-1.scope"), None);
        let text = "[Service]\nKillMode=mixed\n# KillMode=none\n KillMode = process\n";
        assert_eq!(kill_mode_in(text).as_deref(), Some("process"));
        assert_eq!(kill_mode_in("[Service]\n"), None);
    }
}
