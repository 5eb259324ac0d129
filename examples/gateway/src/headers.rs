//! What a proxy may not pass on.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Writes the name of a single coding as the code that decodes it compares it: names have no case, gzip has two, and a list may
/// name `identity`, which is no coding, beside it. Where that is all, there is none.
pub(crate) fn name_coding(headers: &mut HeaderMap) {
    let codings = tokens(headers, header::CONTENT_ENCODING)
        .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
    // Two are left as they are: the code that decodes takes one.
    let known = match *codings.take(2).collect::<Vec<_>>() {
        [] => None,
        [name] => match name.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => Some("gzip"),
            b"deflate" => Some("deflate"),
            b"br" => Some("br"),
            b"zstd" => Some("zstd"),
            _ => return,
        },
        _ => return,
    };
    match known {
        Some(name) => {
            let name = HeaderValue::from_static(name);
            headers.insert(header::CONTENT_ENCODING, name);
        }
        None => drop(headers.remove(header::CONTENT_ENCODING)),
    }
}

/// Whether a request asks for another protocol on its connection, such as WebSocket, and cannot be answered in HTTP.
///
/// An offer to go on in another version of HTTP, or with TLS, comes with a whole request and may be ignored: Java's own client
/// makes one with its first request to every server.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let is_upgrade =
        tokens(headers, header::CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let may_be_ignored = |protocol: &[u8]| {
        let name = protocol.split(|&byte| byte == b'/').next();
        let name = name.unwrap_or_default();
        ["h2c", "http", "tls", ""]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    };
    headers.contains_key(header::SEC_WEBSOCKET_KEY)
        || is_upgrade && tokens(headers, header::UPGRADE).any(|protocol| !may_be_ignored(protocol))
}

/// The elements of a list that may be spread over several headers.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(name).into_iter();
    values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use tower_llm_stack::accounts::remove_hop_by_hop;

    use super::*;

    #[test]
    fn what_connection_names_goes_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("connection", "x-yours"),
            ("x-mine", "1"),
            ("x-yours", "2"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-kept", "3"),
            ("x-kept", "4"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get_all("x-kept").iter().count(), 2);
    }

    #[test]
    fn a_websocket_is_an_upgrade_and_an_offer_of_http_2_is_not() {
        for (connection, upgrade, expected) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "WebSocket/13", true),
            ("upgrade", "h2c, websocket", true),
            ("upgrade", "spdy/3.1", true),
            // Java's client.
            ("Upgrade, HTTP2-Settings", "h2c", false),
            ("upgrade", "HTTP/2.0, H2C", false),
            ("upgrade", "TLS/1.0, HTTP/1.1", false),
            ("upgrade", "", false),
            // Without the option of the connection it asks for nothing.
            ("keep-alive", "websocket", false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::CONNECTION, connection), (header::UPGRADE, upgrade)] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            assert_eq!(wants_upgrade(&headers), expected, "{connection}; {upgrade}");
        }
        assert!(!wants_upgrade(&HeaderMap::new()));
        // A handshake whose `upgrade` a proxy has removed.
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("x"));
        assert!(wants_upgrade(&headers));
    }

    #[test]
    fn the_name_of_a_coding_is_read_without_case_and_others_are_left_alone() {
        for (values, expected) in [
            (&["GZIP"][..], &["gzip"][..]),
            (&["x-gzip"], &["gzip"]),
            (&[" Br "], &["br"]),
            (&["Deflate"], &["deflate"]),
            (&["ZSTD"], &["zstd"]),
            (&["gzip, identity"], &["gzip"]),
            (&["Identity,GZip,"], &["gzip"]),
            (&["identity", "br"], &["br"]),
            (&["identity"], &[]),
            (&["identity, identity", ""], &[]),
            (&["GZIP, br"], &["GZIP, br"]),
            (&["gzip, identity, gzip"], &["gzip, identity, gzip"]),
            (&["compress, identity"], &["compress, identity"]),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            name_coding(&mut headers);
            let left = headers.get_all(header::CONTENT_ENCODING);
            let left: Vec<_> = left.iter().collect();
            assert_eq!(left, expected, "{values:?}");
        }
    }
}
