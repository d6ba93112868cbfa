//! What a pod gives all its containers: hostname, hosts, resolv.conf, /dev/shm, sysctls.

use longshore::proto::cri::DnsConfig;

use super::is_plugin_before;
use crate::harness::Node;

/// SBX-16, OCI-02, OCI-36.
#[tokio::test]
async fn the_hostname_is_that_of_the_pod() {
    let node = Node::start().await;
    let pod = node.pod("host").hostname("ship").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    assert_eq!(container.sh("hostname; cat /etc/hostname; echo $HOSTNAME").await, "ship\nship\nship");
    node.remove_all().await;
    node.finish().await;
}

/// SBX-17, SBX-18.
#[tokio::test]
async fn resolv_conf_is_made_from_the_dns_config() {
    let node = Node::start().await;
    let text = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let full = DnsConfig {
        servers: text(&["10.0.0.10", "10.0.0.11"]),
        searches: text(&["a.test", "b.test"]),
        options: text(&["ndots:5", "rotate"]),
    };
    let some = DnsConfig { servers: text(&["10.0.0.10"]), ..Default::default() };
    let host = std::fs::read_to_string("/etc/resolv.conf").expect("the host's resolv.conf");
    for (dns, expected) in [
        (
            Some(full),
            "search a.test b.test\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5 rotate",
        ),
        (Some(some), "nameserver 10.0.0.10"),
        (Some(DnsConfig::default()), if is_plugin_before(&node, 1, 7) { host.trim_end() } else { "" }),
        (None, host.trim_end()),
    ] {
        let pod = node.pod("dns").config(|config| config.dns_config = dns).run().await.expect("a pod");
        let container = pod.container("c").forever().run().await.expect("a container");
        assert_eq!(container.sh("cat /etc/resolv.conf").await, expected);
        pod.remove().await.expect("removed");
    }
    node.finish().await;
}

/// SBX-19.
#[tokio::test]
async fn hosts_is_the_hosts_own_unless_something_is_mounted_there() {
    let node = Node::start().await;
    let pod = node.pod("hosts").run().await.expect("a pod");
    let plain = pod.container("plain").forever().run().await.expect("a container");
    let host = std::fs::read_to_string("/etc/hosts").expect("the host's hosts");
    assert_eq!(plain.sh("cat /etc/hosts").await, host.trim_end());
    let file = node.place().path("hosts");
    std::fs::write(&file, "127.0.0.1 mine\n").expect("a file");
    let mounted = pod.container("mounted").forever().mount(&file, "/etc/hosts").run().await;
    assert_eq!(mounted.expect("a container").sh("cat /etc/hosts").await, "127.0.0.1 mine");
    node.remove_all().await;
    node.finish().await;
}

/// SBX-20.
#[tokio::test]
async fn dev_shm_is_a_tmpfs_of_64_mib_that_the_pod_shares() {
    let node = Node::start().await;
    let pod = node.pod("shm").run().await.expect("a pod");
    let writer = pod.container("writer").forever().run().await.expect("a container");
    let reader = pod.container("reader").forever().run().await.expect("a container");
    writer.sh("echo shared > /dev/shm/note").await;
    assert_eq!(reader.sh("cat /dev/shm/note").await, "shared");
    assert_eq!(reader.sh("stat -c %a /dev/shm").await, "1777");
    let mount = reader.sh("grep ' /dev/shm ' /proc/mounts").await;
    let fields: Vec<&str> = mount.split(' ').collect();
    assert_eq!(fields[2], "tmpfs", "{mount}");
    let options: Vec<&str> = fields[3].split(',').collect();
    for option in ["rw", "nosuid", "nodev", "noexec", "size=65536k"] {
        assert!(options.contains(&option), "{option} is not in {mount}");
    }
    node.remove_all().await;
    node.finish().await;
}

/// SBX-30, SBX-31.
#[tokio::test]
async fn sysctls_are_set_in_the_pod() {
    let node = Node::start().await;
    let pod =
        node.pod("sysctl").sysctl("kernel.shm_rmid_forced", "1").sysctl("net.ipv4.ip_default_ttl", "77");
    let container =
        pod.run().await.expect("a pod").container("c").forever().run().await.expect("a container");
    assert_eq!(container.sh("cat /proc/sys/kernel/shm_rmid_forced").await, "1");
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ip_default_ttl").await, "77");
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "0");
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ping_group_range").await, "0\t2147483647");
    let own =
        node.pod("own").sysctl("net.ipv4.ip_unprivileged_port_start", "1000").run().await.expect("a pod");
    let container = own.container("c").forever().run().await.expect("a container");
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "1000");
    node.remove_all().await;
    node.finish().await;
}
