//! Which responses are compressed for callers.

use http::{Response, header};
use hyper::body::Body;
use tower_http::compression::predicate::{Predicate, SizeAbove};

/// Compresses texts and JSON, if anything.
///
/// A stream is never compressed: the encoder waits for more before it writes anything, and tokens are to leave as they come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compress {
    pub(crate) enabled: bool,
}

/// In the extensions of a response that was asked for as a stream, whatever its content type says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streamed;

impl Predicate for Compress {
    fn should_compress<B: Body>(&self, response: &Response<B>) -> bool {
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
        let is_text =
            content_type.starts_with("text/") || content_type.starts_with("application/json");
        self.enabled
            && is_text
            && !content_type.starts_with("text/event-stream")
            && response.extensions().get::<Streamed>().is_none()
            && SizeAbove::default().should_compress(response)
    }
}
