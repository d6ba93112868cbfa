//! The page, as a browser shows it and as strangers get it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::{Node, Server, fetched, patient, wait_for};

/// A value that nobody may read in the page.
const SECRET: &str = "x9secretq";
/// As much time as the page believes to have passed: it looks once a second.
const PAGE_MS: u32 = 3000;
/// A browser that has not answered by then hangs.
const LIMIT: Duration = Duration::from_secs(60);

async fn node() -> (Node, String) {
    let node = Node::with(Server::Longshore).config("[page]\naddress = \"127.0.0.1:0\"\n").start().await;
    let log = node.longshore().log();
    let line = log.lines().find(|line| line.contains("serving page")).expect("it is served");
    let address = line.split_once("address=").expect("its address").1.trim().to_owned();
    (node, address)
}

/// The whole answer to a GET for `path`, asked for as `host`.
async fn get(address: &str, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer, and then the end");
    String::from_utf8(answer).expect("text")
}

/// What the page has become in a browser, as markup; it must have had nothing to complain of.
async fn browsed(node: &Node, address: &str, view: &str) -> String {
    let profile = node.place().path("browser");
    let url = format!("http://{address}/{view}");
    let mut browser = Command::new(fetched("chromium", &[]).unwrap_or_else(|error| panic!("{error}")));
    browser
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--virtual-time-budget={PAGE_MS}"))
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(&url)
        .env("HOME", &profile)
        .kill_on_drop(true);
    let shown = tokio::time::timeout(patient(LIMIT), browser.output()).await.expect("the browser answers");
    let shown = shown.expect("chromium starts");
    let said = String::from_utf8_lossy(&shown.stderr);
    assert!(shown.status.success(), "{url}: {said}");
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(complaints.is_empty(), "{url}: {complaints:#?}");
    let dom = String::from_utf8(shown.stdout).expect("text");
    assert!(dom.contains(">live<"), "{url}: it has looked: {dom}");
    dom
}

fn assert_shows(dom: &str, parts: &[&str]) {
    let main = dom.split_once("<main").expect("the content").1;
    for part in parts {
        assert!(main.contains(part), "no {part:?} in\n{main}");
    }
}

#[tokio::test]
async fn a_browser_shows_what_there_is_and_what_went_on() {
    let (node, address) = node().await;
    let pod = node.pod("web").run().await.expect("a pod");
    let container =
        pod.container("app").sh("sleep 1000").env("PASSWORD", SECRET).run().await.expect("it runs");
    // An error whose text would be markup.
    node.pod_status("<b>none</b>", false).await.expect_err("there is none");

    let pods = browsed(&node, &address, "").await;
    assert_shows(&pods, &["default/web", ">app<", ">READY<", ">RUNNING<", "1 of 1 running"]);
    assert!(pods.contains("href=\"#pods\" aria-current=\"page\""), "{pods}");

    let calls = browsed(&node, &address, "#calls").await;
    assert_shows(&calls, &["RunPodSandbox", "CreateContainer", "StartContainer", "default/web app"]);
    assert!(!calls.contains("ListPodSandbox"), "what only looks is left out");
    let id = |method: &str| {
        let (before, _) = calls.split_once(&format!(">{method}</a>")).expect("the call");
        let (_, link) = before.rsplit_once("#call=").expect("its link");
        link.split('"').next().expect("its id").to_owned()
    };

    let call = browsed(&node, &address, &format!("#call={}", id("RunPodSandbox"))).await;
    assert_shows(
        &call,
        &["cni ADD", "containerd Tasks.Create", ">netns<", "class=\"lane\"", "<summary>stdin"],
    );
    // A bar for each step, placed by its time.
    assert!(call.matches("style=\"left: ").count() > 10, "{call}");

    assert_shows(&browsed(&node, &address, "#stages").await, &["containerd Tasks.Create", "Median"]);
    let errors = browsed(&node, &address, "#errors").await;
    assert_shows(&errors, &["PodSandboxStatus", "NotFound", "&lt;b&gt;none&lt;/b&gt;"]);

    let spec = browsed(&node, &address, &format!("#spec={}", container.id)).await;
    assert_shows(
        &spec,
        &["\"sleep 1000\"", "container: command", "PASSWORD=&lt;masked&gt;", ">capabilities<"],
    );

    for dom in [&pods, &calls, &call, &errors, &spec] {
        assert!(!dom.contains(SECRET));
        // Who does not see it is told what each table and column is.
        assert_eq!(dom.matches("<table").count(), dom.matches("<caption").count());
        assert!(dom.matches("<th ").count() == dom.matches(" scope=").count(), "{dom}");
    }
    let nothing = browsed(&node, &address, "#spec=nothing").await;
    assert_shows(&nothing, &["no container", "nothing"]);
    node.remove_all().await;
    node.finish().await;
}

#[tokio::test]
async fn strangers_get_nothing() {
    let (node, address) = node().await;
    let pod = node.pod("web").run().await.expect("a pod");
    let container = pod.container("app").forever().env("PASSWORD", SECRET).run().await.expect("it runs");
    let page = get(&address, "localhost", "/").await.to_ascii_lowercase();
    assert!(page.starts_with("http/1.1 200"), "{page}");
    let head = page.split_once("\r\n\r\n").expect("a head").0;
    for part in ["default-src 'none'", "frame-ancestors 'none'", "nosniff", "no-referrer", "no-store"] {
        assert!(head.contains(part), "no {part} in {head}");
    }
    assert!(!head.contains("access-control"), "{head}");
    // A name of a site that was made to point here.
    for path in ["/", "/v1/ps", "/v1/trace?after=0"] {
        let refused = get(&address, "rebound.test", path).await;
        assert!(refused.starts_with("HTTP/1.1 403") && !refused.contains("web"), "{refused}");
    }
    // What a stranger writes into the path is an id, and nothing else.
    for id in ["../ps", "..%2f..%2fetc%2fpasswd", "%00", ""] {
        let answer = get(&address, &address, &format!("/v1/spec/{id}")).await;
        assert!(answer.starts_with("HTTP/1.1 502") || answer.starts_with("HTTP/1.1 404"), "{id}: {answer}");
    }
    let spec = wait_for("the spec", async || {
        let answer = get(&address, &address, &format!("/v1/spec/{}", container.id)).await;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    })
    .await;
    assert!(spec.contains("PASSWORD=<masked>") && !spec.contains(SECRET), "{spec}");
    node.remove_all().await;
    node.finish().await;
}
