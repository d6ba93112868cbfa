//! Where longshore does otherwise than containerd's plugin, on purpose.

use crate::harness::{Node, Server};

/// The largest answer that the kubelet takes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// EXE-03: what is beyond is thrown away, the process does not block, and the answer is one
/// that the kubelet takes, also with both streams full.
#[tokio::test]
async fn much_output_of_exec_sync_is_cut_so_that_it_fits() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("much").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    let one = container.exec(["/bin/sh", "-c", "head -c 20000000 /dev/zero; echo done >&2"]).await;
    let one = one.expect("it runs");
    assert_eq!((one.exit_code, one.stderr.as_slice()), (0, &b"done\n"[..]));
    assert!((ANSWER_BYTES_MAX / 2..ANSWER_BYTES_MAX).contains(&one.stdout.len()), "{}", one.stdout.len());
    let script = "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 6";
    let both = container.exec(["/bin/sh", "-c", script]).await.expect("it runs");
    assert_eq!(both.exit_code, 6);
    assert!(!both.stdout.is_empty() && !both.stderr.is_empty());
    assert!(both.stdout.len() + both.stderr.len() < ANSWER_BYTES_MAX);
    node.remove_all().await;
    node.finish().await;
}
