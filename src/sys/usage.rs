//! What a process uses: descriptors, memory, time of the processor.

/// Ticks a second of the times in /proc: a constant of the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Open file descriptors.
    pub open_fds: u64,
    /// Their limit.
    pub max_fds: u64,
    /// Memory in RAM.
    pub resident_bytes: u64,
    /// Time of the processor in user and system mode.
    pub cpu_seconds: f64,
    /// When it was started, in seconds since the epoch.
    pub start_time_s: f64,
}

/// What the process `pid` uses; none when it is gone.
#[must_use]
pub fn of(pid: u32) -> Option<Usage> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let status = read("status")?;
    let resident_kib: u64 = field(&status, "VmRSS:")?;
    // The name, in parentheses, may have anything in it.
    let stat = read("stat")?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let boot: f64 = field(&std::fs::read_to_string("/proc/stat").ok()?, "btime")?;
    Some(Usage {
        open_fds: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        max_fds: field(&read("limits")?, "Max open files")?,
        resident_bytes: resident_kib.saturating_mul(1024),
        // Fields 14, 15 and 22 of proc(5); the first of these is the third.
        cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
        start_time_s: boot + ticks(19)? / TICKS_PER_SECOND,
    })
}

/// The first number behind `name` at the beginning of a line.
fn field<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_and_one_that_is_gone_nothing() {
        let usage = of(std::process::id()).expect("it is there");
        assert!(usage.open_fds > 2 && usage.max_fds >= usage.open_fds, "{usage:?}");
        assert!(usage.resident_bytes > 1 << 20 && usage.cpu_seconds >= 0.0, "{usage:?}");
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!(usage.start_time_s > now - 86400.0 && usage.start_time_s < now + 2.0, "{usage:?}");
        assert_eq!(of(u32::MAX), None);
    }
}
