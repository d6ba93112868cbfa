//! Container output: FIFOs, the keeper, CRI log files, and the captures of ExecSync.
//!
//! ```text
//!  container ──▶ shim ──FIFO──▶ keeper: source ─▶ line ─▶ output ─▶ log_file ──▶ 0.log
//!                        ▲         ▲
//!       held open by     │         │ JSON lines over a socket:
//!       the server, too  │         │ add, reopen, wait_drained, remove …
//!                        └─ server: client
//!
//!  keeper: source ─▶ attachment ──frames──▶ server: attached ─▶ session   (attach)
//!
//!  exec process ─▶ shim ──FIFO──▶ server: capture ─▶ the answer to ExecSync
//!  exec process ◀▶ shim ◀─FIFO─▶  server: pipe ◀▶ session                 (exec)
//! ```
//!
//! A shim blocks, and with it the container, when nobody reads its FIFO. Therefore the
//! output of containers is read by a process of its own, the keeper, which stays when the
//! server is restarted, upgraded or killed. The output of ExecSync, which is lost with its
//! caller in any case, is read by the server itself.
//!
//! # Which file does what
//!
//! | file | what | runs in |
//! |---|---|---|
//! | [`fifo`] | makes, opens and removes FIFOs | both |
//! | `client` | [`Keeper`]: the server's calls; starts and replaces the process | server |
//! | `look` | what a keeper says of itself, for who only looks | command line |
//! | `link` | one connection to a keeper: requests out, answers to whom they belong | server |
//! | [`capture`] | the output of an exec process, up to a limit | server |
//! | [`pipe`] | pieces out of a FIFO and into one | server |
//! | `attached` | output that comes from the keeper, input that goes to a container | server |
//! | [`session`] | a client's streams, between transport and process | server |
//! | `protocol` | what the two say to each other | both |
//! | `frame` | what follows on a connection that is attached, pure | both |
//! | [`keeper`] | the process: one thread that waits for clients, signals and ends | keeper |
//! | `daemon` | session, cgroup, lock and socket of the process | keeper |
//! | `place` | these, made or taken over from the program before | keeper |
//! | `succession` | what a keeper leaves to the program that it becomes | both |
//! | `connection` | a client, and the bounds of what it may send | keeper |
//! | `lanes` | requests that touch files, in order for each container | keeper |
//! | `engine` | the epoll and the workers that move the bytes | keeper |
//! | `source` | one FIFO and its turns | keeper |
//! | `attachment` | who sees output as it comes, and the bound of what is kept for him | keeper |
//! | `gate` | one worker at a time for each container | keeper |
//! | `rest` | streams that are left alone for a millisecond, or longer | keeper |
//! | `throttle` | how fast a stream may be read, where there is a limit, pure | keeper |
//! | `line` | bytes to entries of the CRI log format, pure | keeper |
//! | `output` | what both streams of a container share: log file, time, losses | keeper |
//! | `log_file` | appends whole entries; what if the disk is full | keeper |
//! | `totals` | what has become of all output | keeper |
//!
//! # A burst, from the FIFO into the file
//!
//! epoll gives a readable FIFO to one worker (`engine`), which enters the container's gate
//! and reads up to 256 KiB into its own memory, behind the unfinished line that was kept
//! (`source`). The lines are copied into a second page with time, stream and tag in front
//! (`line`), and the page is appended with one write (`output`, `log_file`). Nothing is
//! allocated for a line, and the clock is read once a burst. Then the FIFO is armed again;
//! or it rests for a millisecond, if it talks without pause in small pieces. Who is attached
//! gets what was read as it is, before the lines are made; whether somebody is costs a branch.
//!
//! # The keeper's life
//!
//! 1. The server's first call finds nobody at `<state>/keeper.sock` and starts
//!    `longshore keeper`. It takes the lock beside the socket, leaves the server's session
//!    and cgroup, listens, says so on its standard output, and waits for the server.
//! 2. StartContainer adds a container before its task is made: FIFOs are open and the log
//!    file exists when the shim comes. The kubelet's rotation reopens it. The exit waits
//!    until it has drained, for a limited time, since a child of the container may hold a
//!    stream for ever; then it is removed.
//! 3. The server goes, for whatever reason: the keeper goes on. The next server adds what
//!    runs, which changes nothing where the keeper knows it. If that server is another
//!    program, after an upgrade, it lets the keeper become that program, too (`succession`).
//! 4. The keeper goes, by a bug or by somebody's hand: the server starts another one and
//!    adds everything again. FIFOs keep what is in them meanwhile, since the server holds
//!    an end of each. What the keeper had in hand is lost: the burst that it was writing,
//!    and unfinished lines.
//! 5. Nobody is connected and no stream is open: after a second the keeper ends.
//!
//! # What has a bound
//!
//! | what | bound |
//! |---|---|
//! | an unfinished line | the container's entry limit, at most [`LINE_BYTES_CAP`] |
//! | a worker's memory | a read, its entries and lines without limit: less than 3 MiB |
//! | descriptors of a container | two FIFOs, a log file, the input's writing end |
//! | large pipes | 128 of 1 MiB, the kernel's memory |
//! | a client | connections, requests, bytes of each, unread answers: `connection`, [`keeper`] |
//! | an attachment | 4 MiB that are not taken, then it is cut off; 64 at a time |
//! | a capture | its caller's limit for each stream |

mod attached;
mod attachment;
pub mod capture;
mod client;
mod connection;
mod daemon;
mod engine;
pub mod fifo;
mod frame;
mod gate;
pub mod keeper;
mod lanes;
mod line;
mod link;
mod log_file;
mod look;
mod output;
pub mod pipe;
mod place;
mod protocol;
mod rest;
pub mod session;
mod source;
mod succession;
mod throttle;
mod totals;

pub use attached::{Attached, ContainerInput, InputEnd};
pub use client::{Keeper, KeeperOptions};
pub use line::LINE_BYTES_CAP;
pub use look::{LookedAt, look};
pub use protocol::{ContainerIo, KeptIo};
pub use totals::Totals;
