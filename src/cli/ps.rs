//! `longshore ps` and `longshore top`

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::images;
use crate::admin::{self, Overview};
use crate::config::{Config, Overrides};
use crate::sys::terminal;
use crate::trace::{short, time};

/// The longest text of a cell; what is longer is cut.
const CELL_MAX: usize = 60;

/// Pods, containers and pulls, and what each call that runs waits for.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// As ps, again and again; the calls first, of which the oldest are on top.
#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0)]
    delay: f64,
    /// So many looks, then the end.
    #[arg(short, value_name = "COUNT")]
    number: Option<usize>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// The server's configuration file, for its state folder.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's state folder.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
}

impl Place {
    fn socket(&self) -> anyhow::Result<PathBuf> {
        let overrides = Overrides { state: self.state.clone(), ..Overrides::default() };
        let config = Config::load(self.config.as_deref(), &overrides)?;
        Ok(admin::socket(&config.file.state))
    }
}

async fn look(socket: &Path) -> anyhow::Result<Overview> {
    admin::client::get(socket, "/v1/ps").await
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let overview = runtime.block_on(look(&arguments.place.socket()?))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&overview)?);
    } else {
        print!("{}", text(&overview));
    }
    Ok(())
}

pub(super) fn top(arguments: TopArguments) -> anyhow::Result<()> {
    let socket = arguments.place.socket()?;
    let delay = Duration::try_from_secs_f64(arguments.delay)?.max(Duration::from_millis(100));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let is_terminal = std::io::stdout().is_terminal();
    // Before the screen is taken: without a server there is nothing to show.
    let first = runtime.block_on(look(&socket))?;
    let screen = is_terminal.then(Screen::take);
    let shown = runtime.block_on(async {
        let mut overview = Ok(first);
        for count in 1.. {
            // A server that restarts comes back.
            let frame = match &overview {
                Ok(overview) => text(overview),
                Err(error) => format!("{error:#}\n"),
            };
            show(&frame, is_terminal)?;
            if arguments.number.is_some_and(|number| count >= number) {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = tokio::signal::ctrl_c() => break,
            }
            overview = look(&socket).await;
        }
        Ok(())
    });
    drop(screen);
    shown
}

/// A terminal's other screen, until it is dropped.
struct Screen;

impl Screen {
    fn take() -> Screen {
        print!("\x1b[?1049h\x1b[?25l");
        Screen
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("\x1b[?25h\x1b[?1049l");
        let _ = std::io::stdout().flush();
    }
}

/// Shows one look: on a terminal in place of the last one, as far as it has room.
fn show(frame: &str, is_terminal: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if is_terminal {
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        let mut screen = String::from("\x1b[H");
        for (row, line) in frame.lines().take(usize::from(rows)).enumerate() {
            let end = if row + 1 == usize::from(rows) { "" } else { "\r\n" };
            screen.extend(line.chars().take(usize::from(columns)));
            screen.push_str("\x1b[K");
            screen.push_str(end);
        }
        screen.push_str("\x1b[J");
        out.write_all(screen.as_bytes())?;
    } else {
        out.write_all(frame.as_bytes())?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Everything, as tables.
fn text(overview: &Overview) -> String {
    let mut text = String::new();
    match &overview.calls {
        None => text.push_str("calls are not recorded ([trace] enabled is false)\n"),
        Some(calls) => {
            let rows = calls.iter().map(|call| {
                let waits = match call.stage.as_str() {
                    "" => String::new(),
                    stage => format!("{}, {}", short(stage), time(call.stage_us)),
                };
                let gone = if call.is_client_gone { " (client gone)" } else { "" };
                [time(call.age_us), call.method.clone(), short(&call.object), call.id.clone(), waits + gone]
            });
            table(&mut text, ["AGE", "CALL", "OBJECT", "TRACE", "WAITS FOR"], rows);
        }
    }
    if !overview.pulls.is_empty() {
        text.push('\n');
        text.push_str(&images::table(&overview.pulls, false));
    }
    text.push('\n');
    let rows = overview.pods.iter().map(|pod| {
        let containers = format!("{}/{}", pod.running, pod.containers);
        [
            pod.name.clone(),
            short(&pod.id),
            pod.state.clone(),
            age(pod.age_us),
            containers,
            pod.addresses.join(","),
        ]
    });
    table(&mut text, ["POD", "ID", "STATE", "AGE", "RUNNING", "ADDRESS"], rows);
    text.push('\n');
    let rows = overview.containers.iter().map(|it| {
        let pid = if it.pid == 0 { String::new() } else { it.pid.to_string() };
        let name = format!("{} {}", it.pod, it.name);
        [name, short(&it.id), it.state.clone(), age(it.age_us), it.attempt.to_string(), pid, it.end.clone()]
    });
    table(&mut text, ["CONTAINER", "ID", "STATE", "AGE", "ATTEMPT", "PID", "END"], rows);
    text
}

/// An age as kubectl shows it.
fn age(us: u64) -> String {
    let seconds = us / 1_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Columns as wide as what is in them.
fn table<const N: usize>(text: &mut String, head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let cut = |cell: &str| -> String {
        if cell.chars().count() <= CELL_MAX {
            return cell.to_owned();
        }
        cell.chars().take(CELL_MAX - 1).chain(['…']).collect()
    };
    let mut all = vec![head.map(str::to_owned)];
    // The last column has the room that is left.
    all.extend(rows.map(|row| {
        let mut place = 0;
        row.map(|cell| {
            place += 1;
            if place == N { cell } else { cut(&cell) }
        })
    }));
    let widths: [usize; N] =
        std::array::from_fn(|column| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{CallLine, ContainerLine, PodLine};

    #[test]
    fn everything_has_its_table() {
        let overview = Overview {
            calls: Some(vec![CallLine {
                id: "00000a".into(),
                method: "RunPodSandbox".into(),
                object: "default/web-0".into(),
                age_us: 2_510_000,
                stage: "cni ADD bridge network=pods".into(),
                stage_us: 2_430_000,
                is_client_gone: true,
            }]),
            pods: vec![PodLine {
                name: "default/db".into(),
                id: "0a".repeat(32),
                state: "READY".into(),
                age_us: 7_300_000_000,
                running: 1,
                containers: 2,
                addresses: vec!["10.0.0.7".into()],
            }],
            containers: vec![ContainerLine {
                pod: "default/db".into(),
                pod_id: "0a".repeat(32),
                name: "init".into(),
                id: "0b".repeat(32),
                state: "EXITED".into(),
                age_us: 5_000_000,
                attempt: 3,
                pid: 0,
                end: "1 Error".into(),
            }],
            pulls: Vec::new(),
        };
        let want = "\
AGE     CALL           OBJECT         TRACE   WAITS FOR
2.51 s  RunPodSandbox  default/web-0  00000a  cni ADD bridge network=pods, 2.43 s (client gone)

POD         ID             STATE  AGE  RUNNING  ADDRESS
default/db  0a0a0a0a0a0a0  READY  2h   1/2      10.0.0.7

CONTAINER        ID             STATE   AGE  ATTEMPT  PID  END
default/db init  0b0b0b0b0b0b0  EXITED  5s   3             1 Error
";
        assert_eq!(text(&overview), want);
        assert!(text(&Overview::default()).starts_with("calls are not recorded"));
    }

    #[test]
    fn ages_are_those_of_kubectl() {
        for (seconds, want) in [(0, "0s"), (119, "119s"), (600, "10m"), (86_400, "24h"), (864_000, "10d")] {
            assert_eq!(age(seconds * 1_000_000), want);
        }
    }
}
