//! Registries as containerd's older configuration has them: mirrors with endpoints, and
//! settings of hosts (IMG-27).

use std::path::PathBuf;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::credentials::Secret;
use super::super::trust::{ClientPair, Trust};
use super::{Endpoint, is_loopback, pem, port};
use crate::config::{ImportedHost, ImportedRegistries};
use crate::error::{Context, Result, invalid};
use crate::proto::cri;

/// The servers for `domain`; none if nothing is said of them there, or in the folders of a
/// `config_path` alone.
///
/// # Errors
/// InvalidArgument for what cannot be followed.
pub(super) fn endpoints(imported: &ImportedRegistries, domain: &str) -> Result<Option<Vec<Endpoint>>> {
    if *imported == ImportedRegistries::default() || !imported.config_dirs.is_empty() {
        return Ok(None);
    }
    let what = || format!("the registries of containerd's configuration: {domain}");
    let headers = headers(imported).context(what)?;
    let mirrors = imported.mirrors.get(domain).or_else(|| imported.mirrors.get("*"));
    let mut list = Vec::new();
    for url in mirrors.into_iter().flatten() {
        list.push(endpoint(imported, url, &headers).context(what)?);
    }
    // The registry itself comes last, unless it was named.
    let upstream = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    if !list.iter().any(|endpoint| endpoint.authority == domain) {
        list.push(endpoint(imported, upstream, &headers).context(what)?);
    }
    Ok(Some(list))
}

/// Gives `endpoint`, which stands elsewhere, the credentials and headers that stand there.
///
/// # Errors
/// InvalidArgument for what cannot be followed.
pub(super) fn complete(imported: &ImportedRegistries, mut endpoint: Endpoint) -> Result<Endpoint> {
    let what = || format!("the registries of containerd's configuration: {}", endpoint.authority);
    let (headers, secret) = (headers(imported).context(what)?, known_secret(imported, &endpoint.authority)?);
    for (name, value) in &headers {
        endpoint.headers.append(name, value.clone());
    }
    endpoint.secret = secret;
    Ok(endpoint)
}

/// Who asks the host `authority` where a pull does not say it.
///
/// # Errors
/// InvalidArgument for what is no credentials.
pub(super) fn known_secret(imported: &ImportedRegistries, authority: &str) -> Result<Option<Secret>> {
    let secret = imported.hosts.get(authority).map(secret).transpose();
    secret
        .map(Option::flatten)
        .context(|| format!("the registries of containerd's configuration: {authority}"))
}

fn endpoint(imported: &ImportedRegistries, url: &str, headers: &HeaderMap) -> Result<Endpoint> {
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("{}://{url}", if is_loopback(url) { "http" } else { "https" })
    };
    let uri: http::Uri = url.parse().map_err(|_| invalid(format!("{url:?} is not a URL")))?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(invalid(format!("{url:?} is neither http nor https")));
    };
    if authority.as_str().contains('@') {
        return Err(invalid("a URL may not hold credentials"));
    }
    let host = imported.hosts.get(authority.as_str());
    let trust = host.map(trust).transpose()?.unwrap_or_default();
    let falls_back = scheme == "http" && trust != Trust::default() && port(authority.as_str()) != Some(80);
    let scheme = if falls_back { "https" } else { scheme };
    let path = uri.path().trim_end_matches('/');
    Ok(Endpoint {
        origin: format!("{scheme}://{authority}"),
        authority: authority.to_string(),
        root: if path.is_empty() { "/v2".to_owned() } else { path.to_owned() },
        resolves: true,
        pulls: true,
        falls_back,
        headers: headers.clone(),
        secret: host.map(secret).transpose()?.flatten(),
        trust: Arc::new(trust),
    })
}

fn trust(host: &ImportedHost) -> Result<Trust> {
    let file = |path: &Option<PathBuf>| path.as_deref().map(pem).transpose();
    let authorities = file(&host.ca_file)?.into_iter().collect();
    let client = match (file(&host.cert_file)?, file(&host.key_file)?) {
        (Some(certificate), Some(key)) => vec![ClientPair { certificate, key }],
        (None, None) => Vec::new(),
        _ => return Err(invalid("cert_file and key_file come together")),
    };
    Ok(Trust { skip_verify: host.skip_verify, authorities, client, connect_limit: None })
}

fn secret(host: &ImportedHost) -> Result<Option<Secret>> {
    let auth = cri::AuthConfig {
        username: host.username.clone(),
        password: host.password.clone(),
        auth: host.auth.clone(),
        identity_token: host.identity_token.clone(),
        ..Default::default()
    };
    Secret::of(&auth)
}

fn headers(imported: &ImportedRegistries) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, values) in &imported.headers {
        let parsed: HeaderName =
            name.parse().map_err(|_| invalid(format!("{name:?} is not the name of a header")))?;
        for value in values {
            // The value stays out of the error: it may be a secret.
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| invalid(format!("the value of header {name:?} cannot be sent")))?;
            value.set_sensitive(true);
            headers.append(parsed.clone(), value);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported() -> ImportedRegistries {
        let host = |host: ImportedHost| host;
        ImportedRegistries {
            mirrors: [
                (
                    "docker.io".to_owned(),
                    vec!["https://m.example/api".to_owned(), "n.example:5000".to_owned()],
                ),
                ("r.io".to_owned(), vec!["http://r.io".to_owned()]),
                ("*".to_owned(), vec!["http://127.0.0.1:5000".to_owned()]),
            ]
            .into(),
            hosts: [
                (
                    "m.example".to_owned(),
                    host(ImportedHost {
                        username: "u".into(),
                        password: "hunter2".into(),
                        ..Default::default()
                    }),
                ),
                ("127.0.0.1:5000".to_owned(), host(ImportedHost { skip_verify: true, ..Default::default() })),
            ]
            .into(),
            headers: [("X-Key".to_owned(), vec!["v".to_owned()])].into(),
            ..Default::default()
        }
    }

    #[test]
    fn mirrors_come_in_order_and_the_registry_itself_last() {
        let of = |domain: &str| endpoints(&imported(), domain).expect("valid").expect("said");
        let places = |domain: &str| {
            let list = of(domain).into_iter().map(|endpoint| format!("{}{}", endpoint.origin, endpoint.root));
            list.collect::<Vec<_>>()
        };
        assert_eq!(
            places("docker.io"),
            ["https://m.example/api", "https://n.example:5000/v2", "https://registry-1.docker.io/v2"]
        );
        assert_eq!(places("r.io"), ["http://r.io/v2"]);
        assert_eq!(places("x.io"), ["https://127.0.0.1:5000/v2", "https://x.io/v2"]);
        assert!(of("x.io")[0].falls_back && of("x.io")[0].trust.skip_verify);
        assert!(of("docker.io")[0].secret.is_some() && of("docker.io")[1].secret.is_none());
        assert_eq!(of("r.io")[0].headers["x-key"], "v");
        assert!(!format!("{:?}", of("docker.io")).contains("hunter2"));
        assert_eq!(endpoints(&ImportedRegistries::default(), "r.io").expect("valid"), None);
    }

    /// A `config_path` says where the servers are, and these keys who asks them.
    #[test]
    fn servers_of_folders_get_credentials_and_headers() {
        let imported = ImportedRegistries { config_dirs: vec!["/c".into()], ..imported() };
        assert_eq!(endpoints(&imported, "r.io").expect("valid"), None);
        let complete =
            |domain: &str| complete(&imported, Endpoint::upstream(domain, Trust::default())).expect("valid");
        let known = complete("m.example");
        assert!(known.secret.is_some() && known.headers["x-key"] == "v");
        assert!(complete("r.io").secret.is_none());
        // Not as the older keys have it, which say plain http.
        let loopback = complete("127.0.0.1:5000");
        assert_eq!((loopback.origin.as_str(), loopback.falls_back), ("https://127.0.0.1:5000", true));
    }

    #[test]
    fn mistakes_are_told() {
        for url in ["ftp://x", "https://u:p@x", "a b"] {
            let wrong = ImportedRegistries {
                mirrors: [("r.io".to_owned(), vec![url.to_owned()])].into(),
                ..Default::default()
            };
            let error = endpoints(&wrong, "r.io").expect_err(url);
            assert!(
                error.message().starts_with("the registries of containerd's configuration: r.io"),
                "{error}"
            );
        }
    }
}
