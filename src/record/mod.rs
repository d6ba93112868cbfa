//! A node's traffic over the CRI: kept in a file, and played again.
//!
//! ```text
//! kubelet ─▶ proxy ─▶ server          file ─▶ plan ─▶ target
//!             │ tap                                    │ ids
//!             └─▶ writer ─▶ file                       └─▶ compare ─▶ report
//! ```
//! The file's form is in [`format`], what is masked in [`codec`]. docs/record.md is the manual.

mod codec;
mod format;
mod proxy;
pub mod replay;
pub mod shadow;
mod tap;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use format::Keep;
use writer::Recorder;

use crate::check::server;
use crate::sys::socket;

/// How long the server may take to say what it is.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// What is recorded, and where.
#[derive(Clone, Debug)]
pub struct Request {
    /// The socket for the client.
    pub listen: PathBuf,
    /// That of the server.
    pub server: PathBuf,
    /// The file, which must not be there yet.
    pub file: PathBuf,
    /// What is written although it may be secret.
    pub keep: Keep,
    /// The largest file.
    pub bytes_max: u64,
}

/// Passes calls on and records them, until SIGINT or SIGTERM; a second one waits for no call.
///
/// # Errors
/// A socket or file that cannot be made; at the end, what the disk said.
pub async fn record(request: Request) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let runtime = who(&request.server).await;
    // Before the file, which a second try would find there.
    let listener = socket::bind(&request.listen, 0o660).await?;
    let server = runtime.clone().unwrap_or_default();
    let begun = Recorder::begin(&request.file, server, request.keep, request.bytes_max);
    let (recorder, writing) = begun.inspect_err(|_| _ = std::fs::remove_file(&request.listen))?;
    let runtime = runtime.unwrap_or_else(|| "nobody yet".to_owned());
    println!("recording {} ({runtime}) at unix://{}", request.server.display(), request.listen.display());

    let (stop, now) = (CancellationToken::new(), CancellationToken::new());
    let serving = proxy::serve(listener, request.server.clone(), recorder.clone(), stop.clone(), now.clone());
    let mut serving = tokio::spawn(serving);
    let ending = async {
        let mut asked = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        asked().await;
        let _ = std::fs::remove_file(&request.listen);
        stop.cancel();
        asked().await;
        now.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = &mut serving => served.context("the proxy")?,
        () = ending => {}
    }
    let end = tokio::task::spawn_blocking(move || {
        recorder.finish();
        writing.wait()
    });
    let end = end.await??;
    let seconds = Duration::from_micros(end.at_us).as_secs_f64();
    let lost = if end.lost == 0 { String::new() } else { format!(", {} lost", end.lost) };
    println!("{} calls in {seconds:.1} s{lost}: {}", end.calls, request.file.display());
    Ok(())
}

/// Name and version of the server, if it answers.
async fn who(socket: &Path) -> Option<String> {
    let asked = tokio::time::timeout(ASK_LIMIT, server::ask(socket)).await.ok()?;
    asked.ok().map(|answer| answer.runtime)
}
