//! A client's streams, connected to a container's.

use longshore::proto::cri::AttachRequest;

use super::{Client, STDERR, STDIN, STDOUT};
use crate::harness::{Container, Node, Server, wait_until};

async fn attach(container: &Container, stdin: bool) -> Client {
    let tty = container.config.tty;
    let request =
        AttachRequest { container_id: container.id.clone(), stdin, tty, stdout: true, stderr: !tty };
    let url = container.cri.runtime().attach(request).await.expect("a URL").into_inner().url;
    Client::open(&url).await
}

/// EXE-14, EXE-15, LOG-17.
#[tokio::test]
async fn all_clients_see_the_output_and_the_first_input_is_the_only_one() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("attach").run().await.expect("a pod");
    let shell = pod.container("c").stdin().config(|config| config.stdin_once = true);
    let container = shell.command(["/bin/sh"]).run().await.expect("a container");
    let mut first = attach(&container, true).await;
    first.send(STDIN, "echo one\n").await;
    first.sees(STDOUT, "one\n").await;
    let mut second = attach(&container, false).await;
    // Until it sees something it may not be attached yet.
    first.send(STDIN, "until [ -e /tmp/go ]; do echo again; sleep 1; done\n").await;
    second.sees(STDOUT, "again\n").await;
    container.sh("touch /tmp/go").await;
    first.send(STDIN, "echo two; echo oops >&2\n").await;
    for client in [&mut first, &mut second] {
        client.sees(STDOUT, "two\n").await;
        client.sees(STDERR, "oops\n").await;
    }
    assert!(!second.text(STDOUT).contains("one"), "it came later");
    first.close(STDIN).await;
    let status = container.wait_exited().await;
    assert_eq!(status.exit_code, 0);
    for client in [first, second] {
        assert!(client.end().await.is_success());
    }
    assert!(container.log().await.contains("stderr F oops"));
    node.remove_all().await;
    node.finish().await;
}

/// EXE-15, EXE-16, EXE-13.
#[tokio::test]
async fn an_input_that_is_not_once_waits_for_the_next_client() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("again").run().await.expect("a pod");
    let container = pod.container("c").stdin().command(["/bin/sh"]).run().await.expect("a container");
    for word in ["first", "second"] {
        let mut client = attach(&container, true).await;
        client.send(STDIN, format!("echo {word}\n")).await;
        client.sees(STDOUT, word).await;
        client.close(STDIN).await;
        // As containerd's plugin does.
        assert!(client.end().await.is_success());
    }
    let mut gone = attach(&container, true).await;
    gone.send(STDIN, "echo gone\n").await;
    gone.sees(STDOUT, "gone").await;
    drop(gone);
    let mut last = attach(&container, true).await;
    last.send(STDIN, "echo last; exit 5\n").await;
    last.sees(STDOUT, "last").await;
    assert_eq!(container.wait_exited().await.exit_code, 5);
    assert!(last.end().await.is_success());

    let script = "until [ -e /tmp/go ]; do echo here; sleep 1; done; echo went";
    let without = pod.container("without").sh(script).run().await.expect("a container");
    let mut client = attach(&without, true).await;
    client.send(STDIN, "nobody reads this\n").await;
    client.sees(STDOUT, "here").await;
    without.sh("touch /tmp/go").await;
    client.sees(STDOUT, "went").await;
    assert!(client.end().await.is_success());
    node.remove_all().await;
    node.finish().await;
}

/// CTR-10, STM-20.
#[tokio::test]
async fn a_terminal_is_resized_and_stays_when_its_client_goes() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("terminal").run().await.expect("a pod");
    let shell = pod.container("c").stdin().tty().config(|config| config.stdin_once = true);
    let container = shell.command(["/bin/sh"]).run().await.expect("a container");
    let mut client = attach(&container, true).await;
    client.resize(101, 33).await;
    client.send(STDIN, "until [ \"$(stty size)\" = \"33 101\" ]; do :; done; echo si''zed\n").await;
    client.sees(STDOUT, "sized").await;
    drop(client);
    let mut client = attach(&container, true).await;
    client.send(STDIN, "echo sti''ll here; exit 4\n").await;
    client.sees(STDOUT, "still here").await;
    assert_eq!(container.wait_exited().await.exit_code, 4);
    assert!(client.end().await.is_success());
    node.remove_all().await;
    node.finish().await;
}

/// STM-08, REC-14: the container does not notice.
#[tokio::test]
async fn a_server_that_ends_detaches_and_the_next_one_attaches_again() {
    let node = Node::with(Server::Longshore).start().await;
    let pod = node.pod("restart").run().await.expect("a pod");
    let shell = pod.container("c").stdin().config(|config| config.stdin_once = true);
    let container = shell.command(["/bin/sh"]).run().await.expect("a container");
    let mut client = attach(&container, true).await;
    client.send(STDIN, "echo before\n").await;
    client.sees(STDOUT, "before").await;
    let ((), end) = tokio::join!(node.longshore().terminate(), client.end());
    assert!(end.failure().contains("the server is stopping"), "{}", end.failure());
    node.longshore().start().await;
    let mut client = attach(&container, true).await;
    client.send(STDIN, "echo after\n").await;
    client.sees(STDOUT, "after").await;
    client.close(STDIN).await;
    assert_eq!(container.wait_exited().await.exit_code, 0);
    assert!(client.end().await.is_success());
    wait_until("the log is whole", async || container.log_entries().await.len() == 2).await;
    node.remove_all().await;
    node.finish().await;
}
