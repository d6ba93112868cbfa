//! The proxies of the environment, read once at the start.

use std::fmt;

/// What the environment says about proxies, as every Go program understands it. A URL
/// can hold credentials: it is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `HTTP_PROXY`: for plain requests.
    pub http: String,
    /// `HTTPS_PROXY`: for TLS.
    pub https: String,
    /// `NO_PROXY`: hosts, domains and address ranges that are asked directly.
    pub none: String,
}

impl Proxies {
    pub(super) fn of_environment() -> Proxies {
        let variable = |names: [&str; 2]| {
            let set = names.iter().filter_map(|name| std::env::var(name).ok());
            set.into_iter().find(|value| !value.is_empty()).unwrap_or_default()
        };
        Proxies {
            http: variable(["HTTP_PROXY", "http_proxy"]),
            https: variable(["HTTPS_PROXY", "https_proxy"]),
            none: variable(["NO_PROXY", "no_proxy"]),
        }
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| if text.is_empty() { "" } else { "<masked>" };
        f.debug_struct("Proxies")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("none", &self.none)
            .finish()
    }
}
