//! A connection to a port of a pod, from inside the pod's network namespace (STM-32).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Result};
use crate::sys;

/// How long a local connection may take to be accepted.
const LIMIT: Duration = Duration::from_secs(30);

/// Connects to `port` of localhost in the network namespace at `netns`, without one in
/// the host's: to 127.0.0.1, and to ::1 where nobody listens there. No program of the
/// container or the host takes part (STM-35).
///
/// # Errors
/// NotFound when the namespace is gone; the system's, of the address tried first.
pub async fn connect(netns: Option<&Path>, port: u16) -> Result<tokio::net::TcpStream> {
    let stream = match netns {
        Some(path) => sys::netns::within(path, move || dial(port)).await?,
        None => crate::flow::blocking(move || dial(port)).await?,
    };
    tokio::net::TcpStream::from_std(stream).context(|| "take over a connection")
}

fn dial(port: u16) -> Result<TcpStream> {
    let first = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let second = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&first, LIMIT)
        .or_else(|error| TcpStream::connect_timeout(&second, LIMIT).map_err(|_| error))
        .context(|| format!("connect to port {port} of localhost"))?;
    // What a client sends is passed on as it comes: it shall not wait for more.
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_nonblocking(true))
        .context(|| "prepare a connection")?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_families_are_tried() {
        for address in
            [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]
        {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else {
                assert!(address.is_ipv6(), "no IPv4");
                continue;
            };
            let port = listener.local_addr().expect("bound").port();
            let (accepted, connected) = tokio::join!(listener.accept(), connect(None, port));
            let (_, peer) = accepted.expect("accepted");
            assert_eq!(connected.expect("connected").local_addr().expect("bound"), peer);
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_named() {
        let error = connect(None, 1).await.expect_err("nobody listens on port 1");
        assert_eq!(error.message(), "connect to port 1 of localhost: Connection refused");
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_is_an_error() {
        assert!(
            connect(Some(Path::new("/run/none-there")), 1).await.is_err_and(|error| error.is_not_found())
        );
    }
}
