//! What a request over loopback TCP must look like.
//!
//! A web page can make a browser on this machine send requests here (DNS rebinding, cross-site
//! forms; CVE-2020-15257 is of this family). Such a request names the page's host, or bears
//! `Origin`, or says `Sec-Fetch-Site`. None of these comes from curl, a shim or a CLI.

use axum::http::{HeaderMap, Uri, header};
use v6pod_proto::Code;

use super::problem::Failure;

/// Refuses what a browser was talked into.
pub(crate) fn check(headers: &HeaderMap, uri: &Uri) -> Result<(), Failure> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|value| value.to_str().ok());
    let named = host.is_some_and(is_loopback) && hosts.next().is_none();
    let absolute = uri.authority().is_none_or(|authority| is_loopback(authority.as_str()));
    if !named || !absolute {
        return Err(Failure::new(
            Code::Forbidden,
            "over TCP the request's Host must be localhost, 127.0.0.1 or [::1]",
        ));
    }
    let same_site = headers
        .get_all("sec-fetch-site")
        .iter()
        .all(|value| matches!(value.as_bytes(), b"none" | b"same-origin"));
    if headers.contains_key(header::ORIGIN) || !same_site {
        return Err(Failure::new(Code::Forbidden, "requests of web pages are not served"));
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || is_port(port) => name,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || matches!(name, "127.0.0.1" | "::1")
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(k, v): &(&str, &str)| -> (HeaderName, HeaderValue) {
            (k.parse().unwrap(), v.parse().unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    fn passes(pairs: &[(&str, &str)]) -> bool {
        check(&headers(pairs), &Uri::from_static("/api/status")).is_ok()
    }

    #[test]
    fn attack_23_only_loopback_names_are_served() {
        for good in ["localhost", "LocalHost:6781", "127.0.0.1:6781", "[::1]:6781", "[::1]"] {
            assert!(passes(&[("host", good)]), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:6781",
            "localhost:80@evil",
            "::1",
            "[::1",
            "[::1]x",
            "",
            "127.0.0.2",
        ] {
            assert!(!passes(&[("host", bad)]), "{bad}");
        }
        assert!(!passes(&[]));
        assert!(!passes(&[("host", "localhost"), ("host", "evil.example")]));
        let absolute = Uri::from_static("http://evil.example/api/status");
        assert!(check(&headers(&[("host", "localhost")]), &absolute).is_err());
    }

    #[test]
    fn attack_23_web_pages_are_not_served() {
        let host = ("host", "localhost:6781");
        assert!(!passes(&[host, ("origin", "http://localhost:6781")]));
        assert!(!passes(&[host, ("origin", "null")]));
        assert!(!passes(&[host, ("sec-fetch-site", "cross-site")]));
        assert!(!passes(&[host, ("sec-fetch-site", "same-site")]));
        // A person who types the address into the bar.
        assert!(passes(&[host, ("sec-fetch-site", "none")]));
        // What the status page asks.
        assert!(passes(&[host, ("sec-fetch-site", "same-origin")]));
    }
}
