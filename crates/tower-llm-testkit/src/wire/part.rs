//! The pieces a body is made of, before it is timed and cut.

/// One event of a stream, or the whole of a body that is not streamed.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// With `\n` as the line ending.
    pub(crate) text: String,
    /// Output tokens that are sent once its last byte is.
    pub(crate) tokens: u64,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Before the first token; sent with the head.
    Opening,
    /// Carries output; timed.
    Content,
    /// After the last token, sent with it, and says nothing about the end.
    Closing,
    /// Tells that the answer is complete.
    Terminal,
}

impl Part {
    pub(crate) fn opening(text: String) -> Self {
        Self {
            text,
            tokens: 0,
            kind: Kind::Opening,
        }
    }

    pub(crate) fn content(text: String, tokens: u64) -> Self {
        Self {
            text,
            tokens,
            kind: Kind::Content,
        }
    }

    pub(crate) fn closing(text: String) -> Self {
        Self {
            text,
            tokens: 0,
            kind: Kind::Closing,
        }
    }

    pub(crate) fn terminal(text: String) -> Self {
        Self {
            text,
            tokens: 0,
            kind: Kind::Terminal,
        }
    }

    /// The same, once sent, completes this many tokens.
    pub(crate) fn carrying(self, tokens: u64) -> Self {
        Self { tokens, ..self }
    }
}

/// A nameless server-sent event.
pub(crate) fn data(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// A named server-sent event.
pub(crate) fn event(name: &str, json: &str) -> String {
    format!("event: {name}\ndata: {json}\n\n")
}
