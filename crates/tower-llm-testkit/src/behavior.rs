//! What the simulated provider does with one request.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Fault, fixtures::Fixture};

/// How the provider answers one request: how fast, how much, cut how, and what goes wrong.
///
/// The defaults are an answer at once: 10 input tokens, 5 output tokens, no waits, one HTTP frame
/// per event, no fault.
#[derive(Clone, Debug)]
pub struct Behavior {
    pub(crate) head_delay: Duration,
    pub(crate) first_token: Duration,
    pub(crate) gap: Duration,
    pub(crate) input_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) cache_write_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) reasoning_tokens: u64,
    pub(crate) role_frame: bool,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) cut: Cut,
    pub(crate) line_ending: LineEnding,
    pub(crate) headers: HeaderMap,
    pub(crate) fault: Option<Fault>,
    pub(crate) replay: Option<Fixture>,
}

/// How the bytes of a body are cut into HTTP body frames.
///
/// A frame is sent when the last event that has a byte in it is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cut {
    /// One frame per event of a stream; a body that is not streamed is one frame.
    #[default]
    Events,
    /// A frame every so many bytes; zero is taken as one.
    Every(usize),
    /// A cut before each of these byte offsets of the body; offsets outside of it are ignored.
    At(Vec<usize>),
    /// The whole body in one frame.
    Whole,
}

/// How the lines of an event stream end.
///
/// Complete: the third ending the standard allows, a lone CR, is sent by nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineEnding {
    /// `\n`, as the providers do.
    #[default]
    Lf,
    /// `\r\n`, as some proxies and compatible servers do.
    CrLf,
}

impl Behavior {
    /// An answer at once, without faults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            head_delay: Duration::ZERO,
            first_token: Duration::ZERO,
            gap: Duration::ZERO,
            input_tokens: 10,
            cached_tokens: 0,
            cache_write_tokens: 0,
            output_tokens: 5,
            reasoning_tokens: 0,
            role_frame: true,
            keep_alive: None,
            cut: Cut::Events,
            line_ending: LineEnding::Lf,
            headers: HeaderMap::new(),
            fault: None,
            replay: None,
        }
    }

    /// Answers any request with `fixture`: its status, headers and bytes.
    ///
    /// Of the other settings only the waits before the head, the cut and the headers have an
    /// effect.
    #[must_use]
    pub fn replay(fixture: &Fixture) -> Self {
        Self {
            replay: Some(*fixture),
            ..Self::new()
        }
    }

    /// Sets the wait before the response head; none unless set.
    #[must_use]
    pub fn head_delay(mut self, delay: Duration) -> Self {
        self.head_delay = delay;
        self
    }

    /// Sets the wait from the head to the first content token; none unless set.
    ///
    /// An answer that is not streamed waits before its head instead: this and all gaps together.
    #[must_use]
    pub fn first_token(mut self, delay: Duration) -> Self {
        self.first_token = delay;
        self
    }

    /// Sets the wait between two content tokens; none unless set.
    #[must_use]
    pub fn gap(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }

    /// Sets all input tokens, cached ones and cache writes included; 10 unless set.
    #[must_use]
    pub fn input_tokens(mut self, tokens: u64) -> Self {
        self.input_tokens = tokens;
        self
    }

    /// Sets how many of the input tokens came from the provider's prompt cache; at most all of
    /// them.
    #[must_use]
    pub fn cached_input_tokens(mut self, tokens: u64) -> Self {
        self.cached_tokens = tokens;
        self
    }

    /// Sets how many of the input tokens were written to the provider's prompt cache (Anthropic,
    /// OpenAI); at most what is not read from it.
    #[must_use]
    pub fn cache_write_tokens(mut self, tokens: u64) -> Self {
        self.cache_write_tokens = tokens;
        self
    }

    /// Sets all output tokens, reasoning included; 5 unless set.
    ///
    /// The request's own maximum (`max_tokens` and its kin) cuts it down, as a provider does; the
    /// finish reason tells.
    #[must_use]
    pub fn output_tokens(mut self, tokens: u64) -> Self {
        self.output_tokens = tokens;
        self
    }

    /// Sets how many of the output tokens are reasoning: counted, but not part of the text; at most
    /// all of them.
    #[must_use]
    pub fn reasoning_tokens(mut self, tokens: u64) -> Self {
        self.reasoning_tokens = tokens;
        self
    }

    /// Says whether a chat stream opens with a frame that holds a role and empty content, sent with
    /// the head; it does unless set.
    #[must_use]
    pub fn role_frame(mut self, sent: bool) -> Self {
        self.role_frame = sent;
        self
    }

    /// Sends a keep-alive every `period` until the first token: `: ping`, or Anthropic's `event:
    /// ping`.
    ///
    /// Zero sends none.
    #[must_use]
    pub fn keep_alive(mut self, period: Duration) -> Self {
        self.keep_alive = (!period.is_zero()).then_some(period);
        self
    }

    /// Sets how the body is cut into HTTP frames; [`Cut::Events`] unless set.
    #[must_use]
    pub fn cut(mut self, cut: Cut) -> Self {
        self.cut = cut;
        self
    }

    /// Sets how the lines of an event stream end; [`LineEnding::Lf`] unless set.
    #[must_use]
    pub fn line_ending(mut self, ending: LineEnding) -> Self {
        self.line_ending = ending;
        self
    }

    /// Adds a response header, in place of the provider's own of that name.
    ///
    /// # Panics
    ///
    /// If the name or the value is not a legal header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a legal header name");
        let value = HeaderValue::try_from(value).expect("a legal header value");
        self.headers.insert(name, value);
        self
    }

    /// Sets what goes wrong; nothing unless set.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// This behaviour as changed by the `x-sim-*` headers of a request; see
    /// [`SimulatedProvider`](crate::SimulatedProvider).
    ///
    /// Headers that can't be read are ignored.
    #[must_use]
    pub fn overridden_by(&self, headers: &HeaderMap) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let number = |name| text(name).and_then(|value| value.trim().parse::<u64>().ok());
        let mut changed = self.clone();
        if let Some(ms) = number("x-sim-head-ms") {
            changed.head_delay = Duration::from_millis(ms);
        }
        if let Some(ms) = number("x-sim-first-token-ms") {
            changed.first_token = Duration::from_millis(ms);
        }
        if let Some(ms) = number("x-sim-gap-ms") {
            changed.gap = Duration::from_millis(ms);
        }
        if let Some(tokens) = number("x-sim-input-tokens") {
            changed.input_tokens = tokens;
        }
        if let Some(tokens) = number("x-sim-output-tokens") {
            changed.output_tokens = tokens;
        }
        if let Some(name) = text("x-sim-fault") {
            let after =
                number("x-sim-fault-after").map_or(2, |n| usize::try_from(n).unwrap_or(usize::MAX));
            changed.fault = Fault::named(name.trim(), after).or(changed.fault);
        }
        changed
    }
}

impl Default for Behavior {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Fault> for Behavior {
    fn from(fault: Fault) -> Self {
        Self::new().fault(fault)
    }
}
