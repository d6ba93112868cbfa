//! The files of a pod: hostname, hosts, resolv.conf, shm.

use std::os::unix::fs::chown;
use std::path::Path;

use crate::error::{Context, Result, invalid, precondition};
use crate::flow::{Disk, on_disk};
use crate::ids::PodId;
use crate::points;
use crate::proto::cri::{DnsConfig, PodSandboxConfig};
use crate::state::Paths;
use crate::sys;
use crate::sys::userns::IdMaps;
use crate::trace;

/// What decides the files of a pod.
#[derive(Clone, Debug)]
pub(super) struct PodFilesRequest {
    pub(super) id: PodId,
    pub(super) paths: Paths,
    pub(super) node_name: String,
    pub(super) host_ipc: bool,
    pub(super) shm_bytes: u64,
    /// The mappings of the user namespace.
    pub(super) maps: Option<IdMaps>,
}

/// Makes the folders and files of a pod, and mounts its shm (SBX-16 … SBX-20). In a user
/// namespace all is its root's: on disk, since not every file system can be id-mapped.
///
/// # Errors
/// Those of the file system.
pub(super) async fn make(request: PodFilesRequest, config: std::sync::Arc<PodSandboxConfig>) -> Result<()> {
    on_disk(Disk::Root, move || {
        let PodFilesRequest { id, paths, node_name, host_ipc, shm_bytes, maps } = request;
        let owner = maps.and_then(|maps| maps.to_host(0, 0));
        let (root, state) = (paths.pod_root(&id), paths.pod_state(&id));
        for folder in [&root, &state] {
            let _step = trace::file("make a folder", folder);
            points::before("make a folder of a pod")?;
            std::fs::create_dir_all(folder).context(|| format!("folder {folder:?}"))?;
        }
        let write = |name: &str, text: &[u8]| {
            let path = root.join(name);
            let what = || format!("file {path:?}");
            let _step = trace::file("write", &path);
            points::before(&format!("write {name}"))?;
            std::fs::write(&path, text).context(what)?;
            match owner {
                Some((uid, gid)) => chown(&path, Some(uid), Some(gid)).context(what),
                None => Ok(()),
            }
        };
        let hostname = if config.hostname.is_empty() { &node_name } else { &config.hostname };
        write("hostname", format!("{hostname}\n").as_bytes())?;
        write("hosts", &host_file("/etc/hosts")?)?;
        match &config.dns_config {
            Some(dns) => write("resolv.conf", resolv_conf(dns).as_bytes())?,
            None => write("resolv.conf", &host_file("/etc/resolv.conf")?)?,
        }
        if host_ipc {
            if !Path::new("/dev/shm").is_dir() {
                return Err(precondition("the host has no /dev/shm for a pod with host IPC"));
            }
            return Ok(());
        }
        let shm = state.join("shm");
        std::fs::create_dir_all(&shm).context(|| format!("folder {shm:?}"))?;
        let owner = owner.map(|(uid, gid)| format!(",uid={uid},gid={gid}")).unwrap_or_default();
        sys::mount::tmpfs(&shm, &format!("mode=1777,size={shm_bytes}{owner}"))
            .context(|| format!("mount {shm:?} as tmpfs"))
    })
    .await
}

/// Refuses a hostname or DNS config that would be further lines of the pod's files.
///
/// # Errors
/// InvalidArgument, with the text.
pub(super) fn check(config: &PodSandboxConfig) -> Result<()> {
    let dns = config.dns_config.iter();
    let dns = dns.flat_map(|dns| dns.servers.iter().chain(&dns.searches).chain(&dns.options));
    match dns.chain([&config.hostname]).find(|text| text.contains(['\n', '\r', '\0'])) {
        Some(text) => Err(invalid(format!("{text:?} has a line break: hostname and DNS config have none"))),
        None => Ok(()),
    }
}

/// A file of the host; a missing one is empty.
fn host_file(path: &str) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.context(|| format!("read {path:?}")),
    }
}

/// The text of resolv.conf; parts without entries are left out (SBX-17).
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_search_servers_and_options_in_this_order() {
        let list = |items: &[&str]| items.iter().map(ToString::to_string).collect();
        let dns = DnsConfig {
            servers: list(&["10.0.0.1", "10.0.0.2"]),
            searches: list(&["a", "b"]),
            options: list(&["ndots:5", "x"]),
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5 x\n"
        );
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }

    #[test]
    fn a_text_is_no_second_line() {
        let dns = |dns: DnsConfig| check(&PodSandboxConfig { dns_config: Some(dns), ..Default::default() });
        let bad = || vec!["good".to_owned(), "1.1.1.1\nnameserver 6.6.6.6".to_owned()];
        dns(DnsConfig { servers: vec!["::1".into()], ..Default::default() }).expect("fine");
        for config in [
            DnsConfig { servers: bad(), ..Default::default() },
            DnsConfig { searches: bad(), ..Default::default() },
            DnsConfig { options: bad(), ..Default::default() },
        ] {
            dns(config).expect_err("two lines");
        }
        check(&PodSandboxConfig { hostname: "a\nb".into(), ..Default::default() }).expect_err("two lines");
    }
}
