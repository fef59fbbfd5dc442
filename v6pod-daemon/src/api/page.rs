//! `GET /`: the status page, for people who would rather look.
//!
//! It asks this same API by a script, with the rights of whoever looks at it, so it shows nothing that he
//! may not see. What containers are called is hostile. Guarantees, which the browser enforces by
//! [`POLICY`]: nothing runs but the page's own script and nothing dresses it but its own style sheet, both
//! known by their hash; text is never made into markup (Trusted Types, without any policy that could make
//! it); nothing is loaded from or told to anywhere else; and no other page can frame it.

use axum::http::HeaderValue;
use axum::http::header::{self, HeaderName};
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("page.html");

/// The hashes are of all that stands between the tags. A test says when they have to change, and to what.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-UFWyrRZxGETqrt23xIL8QrPfgMf5Gakl0K8KiBnZpg4='; \
    style-src 'sha256-gzvVjZJyb139O6exqy/CNyQJb9nJ1d7pO8e1YhkBeRc='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// `GET /`
#[cfg_attr(test, utoipa::path(get, path = "/", responses((status = 200, description = "A status page, which shows what the caller may see", body = String, content_type = "text/html"))))]
pub(crate) async fn page() -> Response {
    let headers: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // Not one of another version of the daemon.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // A page that opens it gets no hold of its window.
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;

    /// RFC 4648, section 4.
    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |chunk: &[u8]| {
            let word = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
            let bits = word(0) << 16 | word(1) << 8 | word(2);
            let digit = |i: u32| char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
            let used = chunk.len() as u32 + 1;
            (0..4).map(|i| if i < used { digit(i) } else { '=' }).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    /// What stands in the page's only element of this name.
    fn inside(tag: &str) -> &'static str {
        let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap();
        let (text, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
        assert!(!rest.contains(&format!("<{tag}")), "one {tag} alone has its hash in the policy");
        text
    }

    #[test]
    fn the_policy_has_the_hashes_of_the_pages_own_script_and_style() {
        for (tag, directive) in [("script", "script-src"), ("style", "style-src")] {
            let hash = base64(digest(&SHA256, inside(tag).as_bytes()).as_ref());
            let own = format!("{directive} 'sha256-{hash}';");
            assert!(POLICY.contains(&own), "stale: the policy has to say {own}");
        }
        assert!(!POLICY.contains("unsafe"), "{POLICY}");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let shown =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        assert_eq!(shown.map(|(text, _)| base64(text.as_bytes())), shown.map(|(_, is)| is));
    }

    #[test]
    fn the_page_is_one_file_and_has_no_handlers_nor_styles_in_attributes() {
        // What the policy would refuse, before a browser does. A namespace is a name and is not loaded.
        let text = PAGE.replace("http://www.w3.org/2000/svg", "");
        for outside in
            ["http:", "https:", "src=", "@import", "url(", " style=", " onclick=", " onload="]
        {
            assert!(!text.contains(outside), "{outside}");
        }
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!text.contains(sink), "{sink}");
        }
    }
}
