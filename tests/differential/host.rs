//! What requests name, made on the host; and both servers' configuration of the handlers.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_change};
use serde_json::json;

use crate::harness::{CgroupDriver, Place};
use crate::world::World;

impl World {
    /// Makes them. The shared mount goes with the place.
    pub(crate) fn make(place: &Place, images: Vec<String>, has_options: bool) -> World {
        let folder = place.path("host");
        let world =
            World { folder: folder.clone(), images, cgroup: format!("/{}", place.name()), has_options };
        for name in ["folder/inner", "shared", "devices/pts", "profiles"] {
            std::fs::create_dir_all(folder.join(name)).expect("a folder");
        }
        std::fs::write(folder.join("file"), "of the host").expect("a file");
        for (name, to) in [
            ("link", "folder"),
            ("dangling", "nowhere"),
            ("null", "/dev/null"),
            ("devices/zero", "/dev/zero"),
        ] {
            symlink(to, folder.join(name)).expect("a link");
        }
        let fifo = |name: &str| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, folder.join(name), mode).expect("a FIFO");
        };
        fifo("fifo");
        fifo("devices/fifo");
        let shared = folder.join("shared");
        let tmpfs = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &shared, "tmpfs", tmpfs, None).expect("a mount");
        mount_change(&shared, MountPropagationFlags::SHARED).expect("a shared mount");
        world.profiles();
        std::fs::write(world.base_spec(), base_spec().to_string()).expect("a file");
        world
    }

    /// Takes down what is mounted.
    pub(crate) fn end(&self) {
        let shared = self.folder.join("shared");
        rustix::mount::unmount(shared, rustix::mount::UnmountFlags::DETACH).expect("it is unmounted");
    }

    fn profiles(&self) {
        let allow = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "archMap": [], "comment": "x",
            "syscalls": [{ "names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "includes": {} }],
        });
        for (name, text) in
            [("good.json", allow.to_string()), ("broken.json", "{".into()), ("list.json", "[]".into())]
        {
            std::fs::write(self.folder.join("profiles").join(name), text).expect("a file");
        }
    }

    pub(crate) fn base_spec(&self) -> PathBuf {
        self.folder.join("base.json")
    }

    /// Keys of the handler `base`. The plugin knows writable cgroups on v2 alone.
    fn base_handler(&self) -> String {
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let writable = if is_v2 { "cgroup_writable = true\n" } else { "" };
        format!("base_runtime_spec = {:?}\n{writable}", self.base_spec())
    }

    /// Lines of longshore's configuration.
    pub(crate) fn longshore(&self, pause: &str) -> String {
        let handler = |name: &str, lines: &str| {
            format!(
                "[runtime.handlers.{name}]\n{lines}\n[runtime.handlers.{name}.options]\nRoot = \"{{folder}}/runc\"\n"
            )
        };
        let base = self.base_handler();
        let options = "[container]\ndevice_ownership_from_security_context = true\n\
            unset_seccomp_profile = \"RuntimeDefault\"\nignore_image_volumes = true\n";
        [
            format!("[sandbox]\nimage = {pause:?}\n"),
            if self.has_options { options.to_owned() } else { String::new() },
            handler("base", &base),
            handler("open", &self.open_handler()),
            handler("untrusted", ""),
        ]
        .concat()
    }

    /// Lines of the configuration of containerd's plugin.
    pub(crate) fn plugin(&self) -> (String, String) {
        let systemd = CgroupDriver::from_env() == CgroupDriver::Systemd;
        let handler = |name: &str, lines: &str| {
            let table = format!("plugins.\"{{runtime}}\".containerd.runtimes.{name}");
            format!(
                "[{table}]\nruntime_type = \"io.containerd.runc.v2\"\n{lines}\n\
                 [{table}.options]\nRoot = \"{{folder}}/runc\"\nSystemdCgroup = {systemd}\n"
            )
        };
        let base = self.base_handler();
        let open = handler("open", &self.open_handler());
        let tables = [handler("base", &base), open, handler("untrusted", "")].concat();
        let mut keys = "disable_hugetlb_controller = false\n".to_owned();
        if self.has_options {
            keys += "device_ownership_from_security_context = true\n\
                unset_seccomp_profile = \"runtime/default\"\nignore_image_defined_volumes = true\n";
        }
        (keys, tables)
    }

    fn open_handler(&self) -> String {
        let all = if self.has_options {
            "privileged_without_host_devices_all_devices_allowed = true\n"
        } else {
            ""
        };
        format!("{OPEN}\n{all}")
    }
}

/// The same in both configurations.
const OPEN: &str = "privileged_without_host_devices = true\n\
    pod_annotations = [\"io.example.*\", \"exact\", \"io.[a-c]x/?\"]\n\
    container_annotations = [\"io.example/*\", \"io.kubernetes.*\"]";

/// A base spec that says something everywhere.
fn base_spec() -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 7, "gid": 8, "additionalGids": [9], "umask": 18 },
            "args": null,
            "env": ["PATH=/base", "BASE=1", "A=base"],
            "cwd": "/base",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024 }],
            "oomScoreAdj": 17,
            "noNewPrivileges": true,
        },
        "root": { "path": "elsewhere", "readonly": true },
        "hostname": "",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"] },
            { "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] },
            { "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "ro"] },
        ],
        "annotations": { "base": "yes", "io.kubernetes.cri.container-type": "base" },
        "linux": {
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw" }],
                "pids": { "limit": 500 },
                "cpu": { "shares": 77 },
            },
            "cgroupsPath": "/ignored",
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "network" }, { "type": "uts" }],
            "maskedPaths": ["/proc/base"],
            "readonlyPaths": ["/proc/base"],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_ERRNO" }] },
        },
    })
}
