//! The default seccomp profile (RuntimeDefault), made for a container.
//!
//! | given | effect | rule |
//! |---|---|---|
//! | always | everything is refused with EPERM but the calls listed here | OCI-18 |
//! | capabilities | calls that only they make harmless are added | OCI-18 |
//! | architecture | its own calls, and its 32-bit sub-architectures | OCI-18 |
//! | kernel ≥ 4.8 | ptrace: since then it cannot be used to get around a filter | OCI-18 |
//! | no CAP_SYS_ADMIN | `clone` without namespace flags only; `clone3` says ENOSYS, so that libc falls back | |
//!
//! The names are the kernel's; the OCI runtime passes over those that the node's
//! libseccomp does not know.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Result, invalid};
use crate::proto::is_zero;

/// Allowed for every container.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 \
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 \
    dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 \
    fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 \
    fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 \
    futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 \
    geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp \
    getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit \
    get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday \
    getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 \
    ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr lstat lstat64 madvise membarrier memfd_create memfd_secret mincore mkdir \
    mkdirat mknod mknodat mlock mlock2 mlockall map_shadow_stack mmap mmap2 mprotect mq_getsetattr \
    mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl \
    pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr \
    sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid \
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit \
    set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr \
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask \
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink \
    symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete \
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create \
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
    truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 \
    utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Allowed with a capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Allowed from Linux 4.8 on.
const PTRACE: &str = "process_vm_readv process_vm_writev ptrace";

/// Namespace flags of `clone`: all CLONE_NEW* that need privileges.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const ENOSYS: u32 = 38;
/// Address families of `socket`: everything but 38 (AF_ALG) and 40 (AF_VSOCK).
const SOCKET_FAMILIES: [(&str, u64); 3] = [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)];
/// `personality` values that change nothing dangerous.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a container with the capabilities `bounding` (names with `CAP_`), on
/// `arch` (as Rust names it) with the kernel version `kernel`.
#[must_use]
pub fn default_profile(bounding: &[String], arch: &str, kernel: (u32, u32)) -> Value {
    let has = |name: &str| bounding.iter().any(|capability| capability == name);
    let mut rules = vec![allow(ALWAYS)];
    for (operator, value) in SOCKET_FAMILIES {
        rules.push(allow_if("socket", 0, operator, value));
    }
    for value in PERSONALITIES {
        rules.push(allow_if("personality", 0, "SCMP_CMP_EQ", value));
    }
    if kernel >= (4, 8) {
        rules.push(allow(PTRACE));
    }
    let (architectures, own) = architecture(arch);
    if !own.is_empty() {
        rules.push(allow(own));
    }
    let calls_with = |capability: &String| WITH_CAPABILITY.iter().find(|(name, _)| name == capability);
    rules.extend(bounding.iter().filter_map(calls_with).map(|(_, calls)| allow(calls)));
    if !has("CAP_SYS_ADMIN") {
        // On s390 the flags are the second argument.
        let index = u32::from(arch == "s390x");
        rules.push(allow_if("clone", index, "SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES));
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": architectures,
        "syscalls": rules,
    })
}

/// The architectures of the filter, and calls of this one alone.
fn architecture(arch: &str) -> (&'static [&'static str], &'static str) {
    const ARM: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";
    match arch {
        "x86_64" => (&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "arch_prctl modify_ldt"),
        "x86" => (&[], "modify_ldt"),
        "aarch64" => (&["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"], ARM),
        "arm" => (&[], ARM),
        "powerpc64" => (&[], "sync_file_range2 swapcontext"),
        "riscv64" => (&["SCMP_ARCH_RISCV64"], "riscv_flush_icache riscv_hwprobe"),
        "loongarch64" => (&["SCMP_ARCH_LOONGARCH64"], ""),
        "mips64" => (&["SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32"], ""),
        "s390x" => (
            &["SCMP_ARCH_S390", "SCMP_ARCH_S390X"],
            "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
        ),
        _ => (&[], ""),
    }
}

/// A profile of the node, as it stands in a spec: what the OCI runtime spec knows of it.
///
/// # Errors
/// InvalidArgument for what is no profile.
pub fn node_profile(text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let profile: Profile = serde_json::from_value(known_keys(value, PROFILE_KEYS))
        .map_err(|error| invalid(error.to_string()))?;
    if profile.default_action.is_empty() {
        return Err(invalid("it has no defaultAction"));
    }
    serde_json::to_value(profile).map_err(|error| invalid(error.to_string()))
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    listener_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    listener_metadata: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    syscalls: Vec<Rule>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Argument>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Argument {
    index: u64,
    value: u64,
    #[serde(skip_serializing_if = "is_zero")]
    value_two: u64,
    op: String,
}

const PROFILE_KEYS: &[&str] = &[
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "listenerPath",
    "listenerMetadata",
    "syscalls",
    "names",
    "action",
    "errnoRet",
    "args",
    "index",
    "value",
    "valueTwo",
    "op",
];

/// Keys in any case, as programs in Go read them, and no `null`, which is nothing to them.
fn known_keys(value: Value, keys: &[&str]) -> Value {
    match value {
        Value::Object(map) => {
            let known = |key: String| {
                keys.iter()
                    .find(|known| known.eq_ignore_ascii_case(&key))
                    .map_or(key, |known| (*known).to_owned())
            };
            let (exact, other): (Vec<_>, Vec<_>) = map
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .partition(|(key, _)| keys.contains(&key.as_str()));
            // A key that is written right goes before one that is not.
            other.into_iter().chain(exact).map(|(key, value)| (known(key), known_keys(value, keys))).collect()
        }
        Value::Array(list) => list.into_iter().map(|value| known_keys(value, keys)).collect(),
        other => other,
    }
}

fn allow(calls: &str) -> Value {
    json!({ "names": calls.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW" })
}

/// A masked comparison is with 0, which is what an absent second value means.
fn allow_if(call: &str, index: u32, operator: &str, value: u64) -> Value {
    let argument = json!({ "index": index, "op": operator, "value": value });
    json!({ "names": [call], "action": "SCMP_ACT_ALLOW", "args": [argument] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value, call: &str) -> usize {
        let rules = profile["syscalls"].as_array().expect("rules");
        rules
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
            .filter(|rule| {
                rule["names"].as_array().is_some_and(|names| names.iter().any(|name| name == call))
            })
            .count()
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = default_profile(&["CAP_CHOWN".into()], "x86_64", (6, 1));
        let admin = default_profile(&["CAP_SYS_ADMIN".into()], "x86_64", (6, 1));
        for call in ["mount", "bpf", "setns", "reboot", "io_uring_setup", "keyctl", "add_key", "kexec_load"] {
            assert_eq!(allowed(&plain, call), 0, "{call}");
        }
        assert_eq!(
            (allowed(&admin, "mount"), allowed(&admin, "clone3"), allowed(&plain, "clone3")),
            (1, 1, 0)
        );
        assert_eq!(allowed(&default_profile(&[], "x86_64", (4, 7)), "ptrace"), 0);
    }

    #[test]
    fn a_profile_of_the_node_is_read_as_the_runtime_spec_has_it() {
        let text = r#"{"DefaultAction":"SCMP_ACT_ERRNO","archMap":[{}],"architectures":null,"comment":"x",
            "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":2,"op":"SCMP_CMP_EQ"}],
            "includes":{}},{"names":["write"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"args":[]}]}"#;
        let want = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]},
                {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ],
        });
        assert_eq!(node_profile(text), Ok(want));
        for bad in
            ["", "[]", "null", "{}", "{\"defaultAction\":1}", "{\"defaultAction\":\"x\",\"syscalls\":{}}"]
        {
            assert!(node_profile(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_name_stands_twice_in_the_base_list() {
        let mut names: Vec<_> = ALWAYS.split_whitespace().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
