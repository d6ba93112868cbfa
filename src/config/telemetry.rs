//! Where the server's own metrics and the page are served, its traces sent, and its calls
//! recorded.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{Problem, file, problem};

/// Where something is served that is only looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// On a Unix socket.
    Unix(PathBuf),
    /// At an address of this host.
    Tcp(SocketAddr),
}

/// Reads the address at `key`; empty means nowhere.
pub(super) fn listen_address(key: &str, text: &str) -> Result<Option<ListenAddress>, Problem> {
    let wrong = |why: &str| Err(problem(key, format!("{text:?} {why}")));
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(path) = text.strip_prefix("unix://") {
        if !Path::new(path).is_absolute() {
            return wrong("must have an absolute path behind unix://");
        }
        return Ok(Some(ListenAddress::Unix(path.into())));
    }
    // No names, which somebody else may change, and no address that is left out: that of all
    // interfaces has to be meant.
    match text.parse() {
        Ok(address) => Ok(Some(ListenAddress::Tcp(address))),
        Err(_) => wrong("must be unix:// and a path, or an IP address and a port, as 127.0.0.1:9464"),
    }
}

/// Reads `page.address`: the page has no password, and is for this host alone.
pub(super) fn page_address(text: &str) -> Result<Option<ListenAddress>, Problem> {
    let address = listen_address("page.address", text)?;
    match &address {
        Some(ListenAddress::Tcp(tcp)) if !tcp.ip().is_loopback() => Err(problem(
            "page.address",
            format!("{text:?} must be a Unix socket or an address of this host alone"),
        )),
        _ => Ok(address),
    }
}

/// `[traces]`, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct TracesConfig {
    /// The collector: `http://HOST:PORT`.
    pub endpoint: String,
    /// The share of the calls without a trace that begin one which is kept, 0 to 1.
    pub sampling_ratio: f64,
}

/// Reads `[traces]`; without a collector there are none.
pub(super) fn traces(section: &file::Traces) -> Result<Option<TracesConfig>, Problem> {
    let file::Traces { endpoint, sampling_ratio } = section.clone();
    if !(0.0..=1.0).contains(&sampling_ratio) {
        return Err(problem("traces.sampling_ratio", "must be 0 to 1"));
    }
    if endpoint.is_empty() {
        return Ok(None);
    }
    let address = endpoint.parse::<http::Uri>().ok();
    let is_http = address.is_some_and(|it| it.scheme_str() == Some("http") && it.authority().is_some());
    if !is_http {
        return Err(problem(
            "traces.endpoint",
            format!("{endpoint:?} must be http:// with a host and a port"),
        ));
    }
    Ok(Some(TracesConfig { endpoint, sampling_ratio }))
}

/// The least and the most memory of the recorder: less holds no call, more is a mistake.
const TRACE_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 30;

/// Reads `[trace]`: the memory of the recorder, where there is one.
pub(super) fn trace(section: &file::Trace) -> Result<Option<usize>, Problem> {
    if !TRACE_BYTES.contains(&section.bytes_max) {
        let (least, most) = (TRACE_BYTES.start(), TRACE_BYTES.end());
        return Err(problem("trace.bytes_max", format!("must be {least} to {most}")));
    }
    Ok(section.enabled.then_some(section.bytes_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_need_a_collector_and_a_share() {
        let read = |endpoint: &str, sampling_ratio: f64| {
            traces(&file::Traces { endpoint: endpoint.into(), sampling_ratio }).map_err(|wrong| wrong.key)
        };
        assert_eq!(read("", 1.0).expect("none"), None);
        let config = TracesConfig { endpoint: "http://c:4317".into(), sampling_ratio: 0.5 };
        assert_eq!(read("http://c:4317", 0.5).expect("valid"), Some(config));
        for (endpoint, ratio, key) in [
            ("https://c:4317", 1.0, "traces.endpoint"),
            ("c:4317", 1.0, "traces.endpoint"),
            ("/run/c.sock", 1.0, "traces.endpoint"),
            ("", 1.5, "traces.sampling_ratio"),
            ("", f64::NAN, "traces.sampling_ratio"),
        ] {
            assert_eq!(read(endpoint, ratio).expect_err(endpoint), key);
        }
    }

    #[test]
    fn the_recorder_has_a_bound() {
        let read = |enabled, bytes_max| trace(&file::Trace { enabled, bytes_max }).map_err(|wrong| wrong.key);
        assert_eq!(read(true, 1 << 20), Ok(Some(1 << 20)));
        assert_eq!(read(false, 1 << 20), Ok(None));
        assert_eq!(read(true, 0), Err("trace.bytes_max".to_owned()));
        assert_eq!(read(true, usize::MAX), Err("trace.bytes_max".to_owned()));
    }

    #[test]
    fn the_page_is_for_this_host() {
        for text in ["", "unix:///run/p.sock", "127.0.0.1:8080", "[::1]:8080"] {
            assert!(page_address(text).is_ok(), "{text:?}");
        }
        for text in ["0.0.0.0:8080", "192.0.2.1:8080", "[::]:8080", "p.sock"] {
            assert_eq!(page_address(text).expect_err(text).key, "page.address");
        }
    }

    #[test]
    fn addresses_are_sockets_or_ip_addresses_with_a_port() {
        let read = |text: &str| listen_address("metrics.address", text).expect(text);
        assert_eq!(read(""), None);
        assert_eq!(read("unix:///run/m.sock"), Some(ListenAddress::Unix("/run/m.sock".into())));
        for text in ["127.0.0.1:9464", "[::1]:9464", "0.0.0.0:0"] {
            assert_eq!(read(text), Some(ListenAddress::Tcp(text.parse().expect("an address"))));
        }
        for text in [
            "unix://m.sock",
            "/run/m.sock",
            ":9464",
            "localhost:9464",
            "127.0.0.1",
            "9464",
            "http://127.0.0.1:1",
        ] {
            assert!(listen_address("metrics.address", text).is_err(), "{text:?}");
        }
    }
}
