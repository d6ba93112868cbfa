//! Values that nobody else may see are marked, and go through real calls, with everything
//! switched on that tells of calls: the log at its lowest level, metrics, traces, the admin
//! socket, verbose answers. None of it shows up in what longshore writes or sends, but where
//! it belongs: in containerd's record of the container, and in the answer to who asked.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use longshore::proto::cri::{AttachRequest, AuthConfig, ExecRequest, PullImageRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::harness::collector::Collector;
use crate::harness::images::BUSYBOX;
use crate::harness::{Longshore, Node, Server, procfs, wait_until};

/// What every marked value has in it.
const MARK: &str = "x7secretq";

/// What a Unix socket answers to `question`.
async fn ask(socket: &Path, question: &str) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).await.expect("it listens");
    stream.write_all(question.as_bytes()).await.expect("it is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer, and then the end");
    answer
}

fn has_mark(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes())
}

/// All files below a folder, the pods' own excepted, which are not longshore's.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let folders = procfs::folders_below(folder).into_iter().chain([folder.to_owned()]);
    let files = folders.flat_map(|folder| {
        procfs::names(&folder).into_iter().map(move |name| folder.join(name)).collect::<Vec<_>>()
    });
    files.filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_file())).collect()
}

#[tokio::test]
async fn nothing_secret_shows_up_where_it_does_not_belong() {
    let (collector, traces) = Collector::start(1.0).await;
    let lines = "[log]\nlevel = \"trace\"\n[metrics]\naddress = \"unix://{folder}/m.sock\"\n\
                 [page]\naddress = \"unix://{folder}/p.sock\"\n";
    let node = Node::with(Server::Longshore).config(lines).config(&traces).start().await;
    let mut errors = Vec::new();

    // Credentials in every form, with a pull that works and with one that does not.
    let marked = |what: &str| format!("{MARK}-{what}");
    let encoded = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(format!("user:{}", marked("encoded")))
    };
    for auth in [
        AuthConfig { username: "user".into(), password: marked("password"), ..Default::default() },
        AuthConfig { auth: encoded.clone(), ..Default::default() },
        AuthConfig { identity_token: marked("identity"), ..Default::default() },
        AuthConfig { registry_token: marked("registry"), ..Default::default() },
        // No base64, and no user in it.
        AuthConfig { auth: format!("!{}", marked("broken")), ..Default::default() },
    ] {
        for image in [BUSYBOX, "registry.test/not-there:1"] {
            let request = PullImageRequest {
                image: Some(longshore::proto::cri::ImageSpec { image: image.into(), ..Default::default() }),
                auth: Some(auth.clone()),
                ..Default::default()
            };
            errors.extend(node.images().pull_image(request).await.err());
        }
    }

    // Environment, output, input of commands.
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("c").env("TOKEN", &marked("environment")).stdin();
    let container = container.forever().run().await.expect("it runs");
    assert_eq!(container.sh("echo $TOKEN").await, marked("environment"));
    let failing = container.exec(["sh", "-c", "echo $TOKEN >&2; exit 3"]).await.expect("an answer");
    assert_eq!(failing.exit_code, 3);
    let limit = container.exec_timeout(["sh", "-c", "echo $TOKEN; sleep 100"], 1).await;
    errors.push(limit.expect_err("it takes too long"));
    node.container_status(&container.id, true).await.expect("a verbose status");
    node.pod_status(&pod.id, true).await.expect("a verbose status");
    // A request that is refused is told with its environment, if it is told.
    let refused = pod.container("bad").env("TOKEN", &marked("refused")).env("NUL", "a\0b");
    errors.push(refused.create().await.expect_err("no environment"));
    let refused = pod.container("bad").env("TOKEN", &marked("failed")).command(["/no/such/program"]);
    errors.push(refused.run().await.expect_err("no program"));
    // Their URLs are as good as keys.
    let exec = ExecRequest {
        container_id: container.id.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    let attach = AttachRequest { container_id: container.id.clone(), stdout: true, ..Default::default() };
    let urls = [
        node.runtime().exec(exec).await.expect("a URL").into_inner().url,
        node.runtime().attach(attach).await.expect("a URL").into_inner().url,
    ];
    let tokens = urls.map(|url| url.rsplit('/').next().expect("a token").to_owned());

    let mut shown = Vec::new();
    for path in ["/", "/v1/ps", "/v1/calls", "/v1/trace?after=0", &format!("/v1/spec/{}", container.id)] {
        let question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = ask(&node.place().path("p.sock"), &question).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}: {}", String::from_utf8_lossy(&answer));
        shown.push((format!("the page's {path}"), answer));
    }

    // A restart reads all of it again.
    node.longshore().terminate().await;
    node.longshore().start().await;
    let (root, state) = node.longshore().folders();
    wait_until("traces", async || !collector.messages().is_empty()).await;
    let metrics = ask(&node.place().path("m.sock"), "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await;
    assert!(metrics.len() > 1000);
    let doctor = std::process::Command::new(Longshore::program())
        .args(["doctor", "--json", "--config"])
        .arg(node.longshore().config_file())
        .output()
        .expect("it runs");
    let mut places = vec![
        ("the log".to_owned(), node.longshore().log().into_bytes()),
        ("metrics".to_owned(), metrics),
        ("traces".to_owned(), collector.messages().concat()),
        ("doctor".to_owned(), [doctor.stdout, doctor.stderr].concat()),
        ("errors".to_owned(), format!("{errors:?}").into_bytes()),
    ];
    places.extend(shown);
    for folder in [&root, &state] {
        for file in files_below(folder) {
            let content = std::fs::read(&file).expect("a file");
            places.push((file.display().to_string(), content));
        }
    }
    assert!(places.len() > 8, "files were read");
    for (place, content) in &places {
        assert!(!has_mark(content), "a marked value is in {place}");
        let text = String::from_utf8_lossy(content);
        assert!(!text.contains(&encoded), "encoded credentials are in {place}");
        for token in &tokens {
            assert!(token.len() < 6 || !text.contains(token.as_str()), "the token of a stream is in {place}");
        }
    }
    // Who else is on the machine has no business there.
    for folder in [&root, &state] {
        let found = std::fs::metadata(folder).expect("a folder");
        assert_eq!(found.uid(), 0);
        assert_eq!(found.permissions().mode() & 0o022, 0, "others may write to {}", folder.display());
    }
    node.remove_all().await;
    node.finish().await;
}
