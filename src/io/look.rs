//! What a keeper says of itself, for who only looks: none is started, and nothing of it is
//! changed. It speaks to keepers of every version.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::link::Link;
use super::protocol::{Hello, KeptIo, List, PROTOCOL, Request};
use super::{daemon, succession};
use crate::error::{Result, internal, unavailable};
use crate::flow::{blocking, limited};

/// A keeper that answers.
#[derive(Clone, Debug)]
pub struct LookedAt {
    /// Its process.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// The version of what it speaks, and of what we do.
    pub protocol: (u32, u32),
    /// Whether its program is the file that this process was started from; `None` if it
    /// does not tell.
    pub is_this_program: Option<bool>,
    /// The containers that it has.
    pub containers: Vec<KeptIo>,
}

/// Asks the keeper of the folder `state`; `None` where there is none.
///
/// # Errors
/// There is one, and it does not answer within `limit`.
pub async fn look(state: &Path, limit: Duration) -> Result<Option<LookedAt>> {
    let socket = state.join("keeper.sock");
    limited(limit, "the log keeper", async {
        let Ok(stream) = blocking(move || daemon::connect(&socket)).await else { return Ok(None) };
        let link = Link::new(stream)?;
        let hello = Request::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
        let hello: Hello = ask(&link, &hello).await?;
        let List { containers } = ask(&link, &Request::List).await?;
        let own = succession::identity_of(Path::new("/proc/self/exe"));
        Ok(Some(LookedAt {
            pid: hello.pid,
            version: hello.version,
            protocol: (hello.protocol, PROTOCOL),
            is_this_program: hello.program.map(|program| Some(program) == own),
            containers,
        }))
    })
    .await
}

async fn ask<T: DeserializeOwned>(link: &Link, request: &Request) -> Result<T> {
    let answer = link.ask(request).await?.unwrap_or_else(|| Err(unavailable("the log keeper hung up")))?;
    serde_json::from_value(answer).map_err(|error| internal(format!("the log keeper's answer: {error}")))
}
