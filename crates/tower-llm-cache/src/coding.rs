//! The content codings of answers, such as `gzip`: which a caller reads, and that the cache reads none.

use http::{HeaderMap, HeaderValue, header};

/// Whether a body with these headers was read. What is compressed was not: its verdict is a guess.
pub(crate) fn is_readable(headers: &HeaderMap) -> bool {
    codings(headers).next().is_none()
}

/// The content codings of a body, but for `identity`, which is none.
fn codings(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    values
        // A value that is no text names no coding that a caller would know.
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
}

/// The content codings that a caller accepts, by its `accept-encoding`: a bit for each of [`CODINGS`], and one for all others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accepted(u8);

/// The registered codings that are in use.
const CODINGS: [&str; 5] = ["gzip", "br", "zstd", "deflate", "compress"];

impl Accepted {
    /// Makes of a caller's request one whose answer has no coding; returns what the caller accepts.
    ///
    /// Without `accept-encoding`, a server may choose any coding (RFC 9110, section 12.5.3), and clients ask for those that
    /// they can decode themselves. So the header is set and not removed.
    pub(crate) fn replace(headers: &mut HeaderMap) -> Self {
        let identity = HeaderValue::from_static("identity");
        let asked = headers.insert(header::ACCEPT_ENCODING, identity);
        let asked = asked.as_ref().and_then(|asked| asked.to_str().ok());
        Self::read(asked.unwrap_or_default())
    }

    /// A caller that names no coding decodes none.
    fn read(asked: &str) -> Self {
        let (mut named, mut accepted, mut accepts_others) = (0, 0, false);
        for item in asked.split(',') {
            let (name, weight) = item.split_once(';').unwrap_or((item, ""));
            let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
            let is_accepted = weight.parse::<f32>().is_ok_and(|weight| weight > 0.0);
            match name.trim() {
                "*" => accepts_others = is_accepted,
                name if is_known(name) => {
                    named |= bit(name);
                    accepted |= if is_accepted { bit(name) } else { 0 };
                }
                _ => {}
            }
        }
        Self(if accepts_others {
            accepted | !named
        } else {
            accepted
        })
    }

    /// Whether the caller can read a body with these headers.
    pub(crate) fn reads(self, headers: &HeaderMap) -> bool {
        codings(headers).all(|coding| self.0 & bit(coding) != 0)
    }
}

fn is_known(coding: &str) -> bool {
    bit(coding) != 1 << CODINGS.len()
}

fn bit(coding: &str) -> u8 {
    // Of old, `x-gzip` is `gzip`.
    let plain = coding.strip_prefix("x-").unwrap_or(coding);
    let mut known = CODINGS.iter();
    let at = known.position(|known| known.eq_ignore_ascii_case(plain));
    1 << at.unwrap_or(CODINGS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_reads_the_codings_that_it_accepts() {
        for (accepted, coding, reads) in [
            (None, None, true),
            (None, Some("identity"), true),
            (None, Some("gzip"), false),
            (Some("gzip"), None, true),
            (Some("gzip, deflate, br"), Some("br"), true),
            (Some("gzip"), Some("br"), false),
            (Some("GZIP"), Some("x-gzip"), true),
            (Some("gzip;q=0"), Some("gzip"), false),
            (Some("gzip; q=0.000, *"), Some("gzip"), false),
            (Some("gzip;q=0.5"), Some("gzip"), true),
            (Some("gzip;q=x"), Some("gzip"), false),
            (Some("*"), Some("zstd"), true),
            (Some("*;q=0"), Some("zstd"), false),
            (Some("gzip, br"), Some("gzip, br"), true),
            (Some("gzip"), Some("gzip, br"), false),
            (Some("identity"), Some("gzip"), false),
            (Some(""), Some("gzip"), false),
        ] {
            let mut request = HeaderMap::new();
            if let Some(accepted) = accepted {
                request.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            }
            let mut response = HeaderMap::new();
            if let Some(coding) = coding {
                response.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
            }
            let accepts = Accepted::replace(&mut request);
            assert_eq!(request[header::ACCEPT_ENCODING], "identity");
            assert_eq!(accepts.reads(&response), reads, "{accepted:?} {coding:?}");
        }
    }
}
