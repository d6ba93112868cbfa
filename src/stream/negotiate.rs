//! What a client and this server speak with one another: decided from the request's
//! headers, before anything runs.
//!
//! | header | meaning | rule |
//! |---|---|---|
//! | `Connection`, `Upgrade` | SPDY/3.1 or WebSocket; anything else is answered 400 | STM-06, STM-07 |
//! | `X-Stream-Protocol-Version` | SPDY: the client's protocols, best first | STM-09, STM-10 |
//! | `Sec-WebSocket-Protocol` | WebSocket: the same | STM-22, STM-34 |

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The header of SPDY clients.
static PROTOCOLS: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What a refused SPDY client is told.
static ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Forwarding of ports over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same, inside WebSocket messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What runs over a connection after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// SPDY streams.
    Spdy,
    /// SPDY frames within binary WebSocket messages.
    SpdyInWebSocket,
    /// WebSocket messages with a channel number.
    WebSocket {
        /// Digits and base64 instead of bytes.
        is_base64: bool,
    },
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    /// What carries the streams.
    pub(super) transport: Transport,
    /// The version of the channel protocol, 1 to 5; 1 where a client names none.
    pub(super) version: u8,
}

/// What a URL is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// exec or attach.
    RemoteCommand,
    /// port-forward.
    PortForward,
}

/// A protocol by name.
struct Protocol {
    name: &'static str,
    agreement: Agreement,
}

const fn protocol(name: &'static str, transport: Transport, version: u8) -> Protocol {
    Protocol { name, agreement: Agreement { transport, version } }
}

const BINARY: Transport = Transport::WebSocket { is_base64: false };
const BASE64: Transport = Transport::WebSocket { is_base64: true };

const SPDY_COMMAND: [Protocol; 4] = [
    protocol("v4.channel.k8s.io", Transport::Spdy, 4),
    protocol("v3.channel.k8s.io", Transport::Spdy, 3),
    protocol("v2.channel.k8s.io", Transport::Spdy, 2),
    protocol("channel.k8s.io", Transport::Spdy, 1),
];
const SPDY_FORWARD: [Protocol; 1] = [protocol(PORT_FORWARD, Transport::Spdy, 1)];
const WEBSOCKET_COMMAND: [Protocol; 5] = [
    protocol("v5.channel.k8s.io", BINARY, 5),
    protocol("v4.channel.k8s.io", BINARY, 4),
    protocol("v4.base64.channel.k8s.io", BASE64, 4),
    protocol("channel.k8s.io", BINARY, 1),
    protocol("base64.channel.k8s.io", BASE64, 1),
];
const WEBSOCKET_FORWARD: [Protocol; 3] = [
    protocol(TUNNEL, Transport::SpdyInWebSocket, 1),
    protocol("v4.channel.k8s.io", BINARY, 4),
    protocol("v4.base64.channel.k8s.io", BASE64, 4),
];

/// The answer of a client with which there is no agreement.
pub(super) type Refusal = Box<Response<String>>;

/// Agrees with a client, and gives the answer that it gets.
///
/// # Errors
/// The answer of a client with which there is no agreement.
pub(super) fn agree(headers: &HeaderMap, purpose: Purpose) -> Result<(Agreement, Response<()>), Refusal> {
    let upgrades = |to: &str| {
        tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
            && tokens(headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case(to))
    };
    if upgrades("websocket") {
        return websocket(headers, purpose);
    }
    if upgrades("SPDY/3.1") {
        return spdy(headers, purpose);
    }
    Err(refusal(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is required"))
}

fn spdy(headers: &HeaderMap, purpose: Purpose) -> Result<(Agreement, Response<()>), Refusal> {
    let known: &[Protocol] = match purpose {
        Purpose::RemoteCommand => &SPDY_COMMAND,
        Purpose::PortForward => &SPDY_FORWARD,
    };
    let mut asked = tokens(headers, &PROTOCOLS).peekable();
    if asked.peek().is_none() {
        let words = "the header X-Stream-Protocol-Version is required";
        return Err(refusal(StatusCode::BAD_REQUEST, words));
    }
    // The client's order counts.
    let Some(found) = asked.find_map(|name| known.iter().find(|protocol| protocol.name == name)) else {
        let mut response = refusal(StatusCode::FORBIDDEN, "none of the client's protocols is known here");
        for protocol in known {
            response.headers_mut().append(&ACCEPTED, HeaderValue::from_static(protocol.name));
        }
        return Err(response);
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(&PROTOCOLS, HeaderValue::from_static(found.name));
    Ok((found.agreement, response))
}

fn websocket(headers: &HeaderMap, purpose: Purpose) -> Result<(Agreement, Response<()>), Refusal> {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(refusal(StatusCode::BAD_REQUEST, "the header Sec-WebSocket-Key is required"));
    };
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut response = refusal(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is spoken here");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(response);
    }
    let mut response = switching("websocket");
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let Ok(accept) = accept else {
        return Err(refusal(StatusCode::BAD_REQUEST, "the header Sec-WebSocket-Key is wrong"));
    };
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    let known: &[Protocol] = match purpose {
        Purpose::RemoteCommand => &WEBSOCKET_COMMAND,
        Purpose::PortForward => &WEBSOCKET_FORWARD,
    };
    let mut asked = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    if asked.peek().is_none() {
        return Ok((Agreement { transport: BINARY, version: 1 }, response));
    }
    let Some(found) = asked.find_map(|name| known.iter().find(|protocol| protocol.name == name)) else {
        return Err(refusal(StatusCode::FORBIDDEN, "none of the client's protocols is known here"));
    };
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(found.name));
    Ok((found.agreement, response))
}

/// The items of a header that is a list, over all its lines.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn switching(to: &'static str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

fn refusal(status: StatusCode, words: &str) -> Refusal {
    let mut response = Response::new(format!("{words}\n"));
    *response.status_mut() = status;
    Box::new(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().expect("a value"))
        };
        list.iter().map(pair).collect()
    }

    fn status(list: &[(&'static str, &str)], purpose: Purpose) -> Result<(Agreement, String), u16> {
        agree(&headers(list), purpose).map_err(|response| response.status().as_u16()).map(
            |(agreement, response)| {
                assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
                let name =
                    response.headers().get(&PROTOCOLS).or(response.headers().get(SEC_WEBSOCKET_PROTOCOL));
                (agreement, name.map(|name| name.to_str().expect("text").to_owned()).unwrap_or_default())
            },
        )
    }

    const SPDY: [(&str, &str); 2] = [("connection", "keep-alive, UPGRADE"), ("upgrade", "spdy/3.1")];

    /// STM-09, STM-10.
    #[test]
    fn the_first_protocol_of_the_client_that_is_known_wins() {
        let command = |protocols: &[&str]| {
            let mut list = SPDY.to_vec();
            list.extend(protocols.iter().map(|name| ("x-stream-protocol-version", *name)));
            status(&list, Purpose::RemoteCommand)
        };
        let spdy = |version| Agreement { transport: Transport::Spdy, version };
        assert_eq!(
            command(&["v5.channel.k8s.io", "v4.channel.k8s.io"]),
            Ok((spdy(4), "v4.channel.k8s.io".into()))
        );
        assert_eq!(
            command(&["v2.channel.k8s.io,v4.channel.k8s.io"]),
            Ok((spdy(2), "v2.channel.k8s.io".into()))
        );
        assert_eq!(command(&[]), Err(400));
        assert_eq!(command(&[""]), Err(400));
        assert_eq!(command(&["v9"]), Err(403));
        let refused =
            agree(&headers(&[SPDY[0], SPDY[1], ("x-stream-protocol-version", "v9")]), Purpose::PortForward);
        let accepted = refused.expect_err("unknown").headers()[&ACCEPTED].clone();
        assert_eq!(accepted, PORT_FORWARD);
    }

    /// STM-06.
    #[test]
    fn without_an_upgrade_there_is_nothing_to_do() {
        for list in [&[] as &[_], &[SPDY[1]], &[SPDY[0]], &[SPDY[0], ("upgrade", "h2c")]] {
            assert_eq!(status(list, Purpose::RemoteCommand), Err(400));
        }
    }

    /// STM-22, STM-34. The key and its answer are those of RFC 6455.
    #[test]
    fn websockets_agree_by_their_own_headers() {
        let list = |protocol: &'static str| {
            let mut list = vec![
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            if !protocol.is_empty() {
                list.push(("sec-websocket-protocol", protocol));
            }
            list
        };
        let (_, response) = agree(&headers(&list("")), Purpose::RemoteCommand).expect("no protocol is fine");
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let of = |protocol, purpose| status(&list(protocol), purpose).map(|(agreement, _)| agreement);
        let agreed = |transport, version| Ok(Agreement { transport, version });
        let (command, forward) = (Purpose::RemoteCommand, Purpose::PortForward);
        assert_eq!(of("", command), agreed(BINARY, 1));
        assert_eq!(of("v5.channel.k8s.io", command), agreed(BINARY, 5));
        assert_eq!(of("base64.channel.k8s.io", command), agreed(BASE64, 1));
        assert_eq!(of(TUNNEL, command), Err(403));
        assert_eq!(of(TUNNEL, forward), agreed(Transport::SpdyInWebSocket, 1));
        assert_eq!(of("v4.base64.channel.k8s.io", forward), agreed(BASE64, 4));
        assert_eq!(status(&list("")[..3], command), Err(400));
        let mut old = list("");
        old[2].1 = "8";
        assert_eq!(status(&old, command), Err(426));
    }
}
