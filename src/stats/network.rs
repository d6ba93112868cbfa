//! The interfaces of a pod, all but `lo`, counted from inside (STA-14).
//!
//! `/proc/PID/net/dev` of the pause process shows them without entering the namespace, if
//! that process is still the pod's: its namespace must be the pinned one. Where it is not
//! (a VM runtime's process is elsewhere, an id was given to another process), the
//! namespace is entered, by a thread of its own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::value;
use crate::error::Result;
use crate::flow;
use crate::proto::cri;
use crate::state::container::now;
use crate::sys::netns;

/// The interface that a pod's figures are about, if it has it (CNI-08).
const DEFAULT_INTERFACE: &str = "eth0";

/// What the interfaces in the namespace pinned at `path` have carried; `pid` is that of the
/// pause process.
///
/// # Errors
/// NotFound when the namespace is gone.
pub(super) async fn usage(path: &Path, pid: u32) -> Result<cri::NetworkUsage> {
    let timestamp = now();
    let interfaces: Vec<_> = interfaces(path, pid).await?.iter().map(Interface::usage).collect();
    let default = interfaces.iter().find(|interface| interface.name == DEFAULT_INTERFACE);
    let default_interface = default.or(interfaces.first()).cloned();
    Ok(cri::NetworkUsage { timestamp, default_interface, interfaces })
}

/// The interfaces in the namespace pinned at `path`, without `lo`.
///
/// # Errors
/// NotFound when the namespace is gone.
pub(super) async fn interfaces(path: &Path, pid: u32) -> Result<Vec<Interface>> {
    let pinned = path.to_owned();
    let from_outside = flow::blocking(move || Ok(of_process(&pinned, pid))).await?;
    let table = match from_outside {
        Some(table) => table,
        None => netns::within(path, || Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?)).await?,
    };
    Ok(parse(&table))
}

/// The table as the process sees it, if it is in that namespace.
fn of_process(pinned: &Path, pid: u32) -> Option<String> {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let own = format!("/proc/{pid}/ns/net");
    (identity(pinned)? == identity(Path::new(&own))?).then_some(())?;
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    // Once more: else another process may have got the id in between.
    (identity(pinned)? == identity(Path::new(&own))?).then_some(table)
}

/// What an interface has carried. A counter that the kernel does not have is not there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Traffic,
    pub(super) sent: Traffic,
}

/// What went one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Traffic {
    pub(super) bytes: Option<u64>,
    pub(super) packets: Option<u64>,
    pub(super) errors: Option<u64>,
    pub(super) dropped: Option<u64>,
}

impl Interface {
    fn usage(&self) -> cri::NetworkInterfaceUsage {
        cri::NetworkInterfaceUsage {
            name: self.name.clone(),
            rx_bytes: self.received.bytes.and_then(value),
            rx_errors: self.received.errors.and_then(value),
            tx_bytes: self.sent.bytes.and_then(value),
            tx_errors: self.sent.errors.and_then(value),
        }
    }
}

/// Lines `name: 16 numbers`, of which the first eight were received; two lines of heading.
fn parse(table: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> =
            counters.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0)).collect();
        let traffic = |first: usize| {
            let counter = |index: usize| counters.get(first + index).copied();
            Traffic { bytes: counter(0), packets: counter(1), errors: counter(2), dropped: counter(3) }
        };
        Some(Interface { name: name.trim().to_owned(), received: traffic(0), sent: traffic(8) })
    };
    table.lines().skip(2).filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
 tunl0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  eth0:    1234      12    3    4    0     0          0         0     5678      34    6    7    0     0       0          0
";

    #[test]
    fn all_but_lo_are_listed() {
        let interfaces = parse(TABLE);
        let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["tunl0", "eth0"]);
        let packets = |traffic: Traffic| (traffic.packets, traffic.dropped);
        assert_eq!(packets(interfaces[1].received), (Some(12), Some(4)));
        assert_eq!(packets(interfaces[1].sent), (Some(34), Some(7)));
        let eth0 = interfaces[1].usage();
        assert_eq!((eth0.rx_bytes, eth0.rx_errors), (value(1234), value(3)));
        assert_eq!((eth0.tx_bytes, eth0.tx_errors), (value(5678), value(6)));
        assert!(parse("").is_empty());
    }

    #[test]
    fn a_process_counts_only_in_the_pinned_namespace() {
        let own = Path::new("/proc/self/ns/net");
        assert!(of_process(own, std::process::id()).is_some());
        assert!(of_process(Path::new("/proc/self/ns/mnt"), std::process::id()).is_none());
        assert!(of_process(own, 0).is_none());
    }
}
