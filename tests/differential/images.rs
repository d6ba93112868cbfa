//! Images of several kinds: with users, volumes, commands, or without.

use serde_json::{Value, json};

use crate::harness::Registry;
use crate::harness::images::{Image, Layer};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/sh\nguest:x:1000:1001::/:\n\
    # comment:x:7:7::/:\n\nshort:x:9\nweb:x:44:44::/:\nlast:x:2000:2001::/home:/bin/sh";
const GROUP: &str = "root:x:0:\nwheel:x:10:root,web\nstaff:x:50:web,guest\nweb:x:34:web\n#hash:x:77:web\n\
    shared:x:60:root,web,guest,last\nempty:x:61:\n";

/// The name of each, and what it is.
pub(crate) fn all() -> Vec<(&'static str, Image)> {
    let users = Layer::default()
        .folder("etc", 0o755)
        .file("etc/passwd", 0o644, PASSWD.as_bytes())
        .file("etc/group", 0o644, GROUP.as_bytes())
        .folder("data", 0o750)
        .file("data/file", 0o640, b"of the image");
    let base = Image::busybox().layer(users);
    let user = |user: &str| base.clone().with("User", json!(user));
    let mut images = vec![
        ("plain", Image::busybox()),
        ("rich", rich(base.clone())),
        ("web", user("web")),
        ("number", user("1000:1001")),
        ("name-group", user("guest:staff")),
        ("number-group", user("33:shared")),
        ("only-number", user("33")),
        ("unknown-number", user("4711")),
        ("only-group", user(":60")),
        ("no-group", user("web:")),
        ("plus", user("+33")),
        ("unknown-user", user("nobody-here")),
        ("unknown-group", user("web:nope")),
        ("three-parts", user("a:b:c")),
        ("negative", user("-1")),
        ("too-large", user("99999999999")),
        ("too-large-group", user("33:2147483648")),
    ];
    images.push(("none", base.clone().with("Cmd", Value::Null)));
    images.push(("empty-entrypoint", base.clone().with("Entrypoint", json!([""]))));
    images.push(("entrypoint", base.clone().with("Entrypoint", json!(["/bin/echo", "e"]))));
    let linked = Layer::default()
        .folder("real", 0o755)
        .file("real/passwd", 0o644, PASSWD.as_bytes())
        .file("real/group", 0o644, GROUP.as_bytes())
        .symbolic_link("etc/passwd", "/real/passwd")
        .symbolic_link("etc/group", "../real/group");
    images.push(("linked", Image::busybox().layer(linked).with("User", json!("web"))));
    for (name, user) in [("no-passwd", "33"), ("no-passwd-name", "web")] {
        let bare = Layer::default().file("etc/.wh.passwd", 0o644, b"").file("etc/.wh.group", 0o644, b"");
        images.push((name, Image::busybox().layer(bare).with("User", json!(user))));
    }
    for (name, signal) in [("signal", "SIGUSR1"), ("signal-number", "15"), ("signal-real-time", "SIGRTMIN+3")]
    {
        images.push((name, base.clone().with("StopSignal", json!(signal))));
    }
    images
}

/// One with everything.
fn rich(base: Image) -> Image {
    let labels = json!({
        "maker": "someone", "app": "of the image", "empty": "", "long": "x".repeat(5000),
        "containerd.io/gc.root": "now", "io.cri-containerd.kind": "sandbox",
    });
    base.with("User", json!("guest"))
        .with(
            "Env",
            json!(["PATH=/image/bin:/bin", "A=image", "A=again", "EMPTY=", "HOSTNAME=image", "NO", "B=1"]),
        )
        .with("Entrypoint", json!(["/bin/sh", "-c"]))
        .with("Cmd", json!(["sleep 1000"]))
        .with("WorkingDir", json!("/data"))
        .with("Volumes", json!({"/data": {}, "rel/./volume": {}, "/data/deep/": {}, "/run/x": {}}))
        .with("Labels", labels)
        .with("StopSignal", json!("SIGTERM"))
}

/// Puts all into the registry; gives their references.
pub(crate) fn push(registry: &Registry) -> Vec<String> {
    all().iter().map(|(name, image)| registry.push(&format!("{name}:1"), image)).collect()
}
