//! What a proxy may not pass on.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers that belong to one connection, by RFC 9110 section 7.6.1 and long habit.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Removes what belongs to the connection a message came on, and what its `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Writes the name of a single coding as the code that decodes it compares it: names have no case, and gzip has two.
pub(crate) fn name_coding(headers: &mut HeaderMap) {
    let name = headers.get(header::CONTENT_ENCODING);
    let Some(name) = name.and_then(|name| name.to_str().ok()) else {
        return;
    };
    let name = match name.trim().to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => "gzip",
        "deflate" => "deflate",
        "br" => "br",
        "zstd" => "zstd",
        _ => return,
    };
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
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
        for (name, expected) in [
            ("GZIP", "gzip"),
            ("x-gzip", "gzip"),
            (" Br ", "br"),
            ("Deflate", "deflate"),
            ("ZSTD", "zstd"),
            ("identity", "identity"),
            ("GZIP, br", "GZIP, br"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
            name_coding(&mut headers);
            assert_eq!(headers[header::CONTENT_ENCODING], expected);
        }
    }
}
