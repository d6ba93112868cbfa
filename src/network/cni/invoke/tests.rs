use super::*;
use crate::error::Kind;
use std::os::unix::fs::PermissionsExt;

struct Scripts(tempfile::TempDir);

impl Scripts {
    fn new(script: &str) -> Scripts {
        let directory = tempfile::tempdir().expect("a folder");
        let path = directory.path().join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("executable");
        Scripts(directory)
    }

    async fn call(&self, limit: Duration) -> Result<String, Failure> {
        let endpoint = Endpoint { container: "abc".to_owned(), ..Endpoint::default() };
        let call = Call {
            verb: Verb::Add,
            plugin: "script",
            network: "net",
            endpoint: &endpoint,
            input: b"{\"input\":1}".to_vec(),
            limit,
        };
        let plugins = Plugins::new(&["/nonexistent".into(), self.0.path().to_owned()]);
        plugins.call(call).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn error(&self) -> String {
        let failure = self.call(LONG).await.expect_err("it fails");
        failure.into_error("script").to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn input_and_output_pass() {
    let scripts = Scripts::new("read -r line; echo \"$CNI_COMMAND $CNI_CONTAINERID $line\"; echo noise >&2");
    assert_eq!(scripts.call(LONG).await.expect("runs"), "ADD abc {\"input\":1}\n");
    let silent = Scripts::new("exec 0<&- 1>&- 2>&-; true");
    assert_eq!(silent.call(LONG).await.expect("runs"), "");
}

#[tokio::test]
async fn json_errors_give_code_message_and_details() {
    let scripts =
        Scripts::new(r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"bad net","details":"why"}'; exit 1"#);
    assert_eq!(scripts.error().await, "plugin \"script\": bad net; why (CNI error 7)");
    let scripts = Scripts::new(r#"echo '{"code":"x","msg":"m"}'; exit 1"#);
    assert_eq!(scripts.error().await, "plugin \"script\": m");
}

#[tokio::test]
async fn other_errors_give_the_text_there_is() {
    let cases = [
        ("echo panic: oh >&2; exit 2", "plugin \"script\": exit status: 2: panic: oh"),
        ("echo not json; exit 1", "plugin \"script\": exit status: 1: not json"),
        ("exit 3", "plugin \"script\": exit status: 3 and no message"),
        ("kill -9 $$", "plugin \"script\": signal: 9 (SIGKILL) and no message"),
        ("echo '{}'; exit 1", "plugin \"script\": exit status: 1: {}"),
    ];
    for (script, want) in cases {
        assert_eq!(Scripts::new(script).error().await, want, "{script}");
    }
}

#[tokio::test]
async fn a_missing_binary_is_named_with_the_directories() {
    let scripts = Scripts::new("");
    std::fs::remove_file(scripts.file("script")).expect("removed");
    let error = scripts.error().await;
    assert!(error.contains("\"script\"") && error.contains("/nonexistent"), "{error}");
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_is_not_waited_for() {
    // The child ends only when its FIFO is opened, long after the call.
    let scripts = Scripts::new("cd ${0%/*}; mkfifo gate; (read -r line < gate; echo late) & echo early");
    assert_eq!(scripts.call(LONG).await.expect("returns"), "early\n");
    std::fs::write(scripts.file("gate"), "go\n").expect("the child ends");
}

/// A script that writes its and its child's id and waits for ever; with a FIFO
/// `ready` it says there that it does.
fn hanging() -> Scripts {
    Scripts::new("cd ${0%/*}; sleep 1000 & echo $$ $! > pids; [ ! -p ready ] || echo > ready; wait")
}

fn assert_killed(scripts: &Scripts) {
    // Killed before it could write them is killed as well.
    let pids = std::fs::read_to_string(scripts.file("pids")).unwrap_or_default();
    for pid in pids.split_whitespace() {
        // The child is init's to reap: its name vanishes with its memory.
        let end = Instant::now() + Duration::from_secs(20);
        while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < end, "process {pid} still runs");
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn at_the_limit_the_whole_group_is_killed() {
    let scripts = hanging();
    let failure = scripts.call(Duration::from_secs(1)).await.expect_err("killed");
    let error = failure.into_error("script");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(error.message().contains("\"script\" did not end within 1 s"), "{error}");
    assert_killed(&scripts);
}

#[tokio::test]
async fn a_dropped_call_kills_the_whole_group() {
    let scripts = hanging();
    let ready = scripts.file("ready");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &ready, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    tokio::select! {
        _ = scripts.call(LONG) => panic!("it waits for ever"),
        _ = tokio::task::spawn_blocking(move || std::fs::read(ready)) => {}
    }
    assert_killed(&scripts);
}

#[tokio::test]
async fn output_is_bounded_and_never_blocks_the_plugin() {
    let many = STDOUT_BYTES_MAX / 1024 + 64;
    let scripts = Scripts::new(&format!("dd if=/dev/zero bs=1024 count={many} 2>/dev/null"));
    assert!(scripts.error().await.contains("more than 4194304 bytes"));
    let scripts = Scripts::new(&format!("dd if=/dev/zero bs=1024 count={many} 2>/dev/null >&2; echo fine"));
    assert_eq!(scripts.call(LONG).await.expect("fine"), "fine\n");
    // Input that nobody reads, larger than a pipe holds.
    let endpoint = Endpoint::default();
    let scripts = Scripts::new("echo fine");
    let call = Call {
        verb: Verb::Del,
        plugin: "script",
        network: "net",
        endpoint: &endpoint,
        input: vec![b' '; 1 << 20],
        limit: LONG,
    };
    Plugins::new(&[scripts.0.path().to_owned()]).call(call).await.expect("runs");
}

#[tokio::test]
async fn a_binary_that_is_being_written_is_tried_again() {
    let scripts = Scripts::new("echo fine");
    let writer = std::fs::OpenOptions::new().append(true).open(scripts.file("script")).expect("open");
    let (result, ()) = tokio::join!(scripts.call(LONG), async {
        // At least one attempt fails before the writer is gone.
        tokio::time::sleep(BUSY_PAUSE / 4).await;
        drop(writer);
    });
    assert_eq!(result.expect("runs in the end"), "fine\n");
}
