//! How the simulated provider answers one request.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Fault, fixtures::Fixture};

/// How the provider answers one request: its speed, its length, its frames and its fault.
///
/// By default it answers at once: 10 input tokens, 5 output tokens, no delays, one HTTP frame per
/// event, no fault.
#[derive(Clone, Debug)]
pub struct Behavior {
    pub(crate) head_delay: Duration,
    pub(crate) first_token: Duration,
    pub(crate) gap: Duration,
    pub(crate) input_tokens: InputTokens,
    pub(crate) cached_tokens: u64,
    pub(crate) cache_write_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) reasoning_tokens: u64,
    pub(crate) role_frame: bool,
    pub(crate) is_strict: bool,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) cut: Cut,
    pub(crate) line_ending: LineEnding,
    pub(crate) headers: HeaderMap,
    pub(crate) fault: Option<Fault>,
    pub(crate) replay: Option<Fixture>,
}

/// Where the number of input tokens comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputTokens {
    Fixed(u64),
    /// Counted in the request.
    Counted,
}

/// How the bytes of a body are cut into HTTP body frames.
///
/// A frame is sent when the last event with a byte in it is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cut {
    /// One frame per event of a stream; a body that is not streamed is one frame.
    #[default]
    Events,
    /// Frames of this many bytes; zero counts as one.
    Every(usize),
    /// A cut before each of these byte offsets of the body; offsets outside the body are ignored.
    At(Vec<usize>),
    /// The whole body in one frame.
    Whole,
}

/// How the lines of an event stream end.
///
/// Complete: no provider sends the third ending that the standard allows, a lone CR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineEnding {
    /// `\n`, as the providers send.
    #[default]
    Lf,
    /// `\r\n`, as some proxies and compatible servers send.
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
            input_tokens: InputTokens::Fixed(10),
            cached_tokens: 0,
            cache_write_tokens: 0,
            output_tokens: 5,
            reasoning_tokens: 0,
            role_frame: true,
            is_strict: false,
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
    /// Of the other settings, only the header delay, the cut and the headers have an effect.
    #[must_use]
    pub fn replay(fixture: &Fixture) -> Self {
        Self {
            replay: Some(*fixture),
            ..Self::new()
        }
    }

    /// Sets the delay before the response headers; none unless set.
    #[must_use]
    pub fn head_delay(mut self, delay: Duration) -> Self {
        self.head_delay = delay;
        self
    }

    /// Sets the delay from the headers to the first content token; none unless set.
    ///
    /// An answer that is not streamed is delayed before its headers: by this and all gaps together.
    #[must_use]
    pub fn first_token(mut self, delay: Duration) -> Self {
        self.first_token = delay;
        self
    }

    /// Sets the delay between two content tokens; none unless set.
    #[must_use]
    pub fn gap(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }

    /// Sets the number of input tokens, including cached ones and cache writes; 10 unless set.
    #[must_use]
    pub fn input_tokens(mut self, tokens: u64) -> Self {
        self.input_tokens = InputTokens::Fixed(tokens);
        self
    }

    /// Counts the input tokens in the text of each request, at four bytes each, instead of a fixed number.
    #[must_use]
    pub fn counted_input_tokens(mut self) -> Self {
        self.input_tokens = InputTokens::Counted;
        self
    }

    /// Sets how many of the input tokens come from the provider's prompt cache, at most all of them.
    #[must_use]
    pub fn cached_input_tokens(mut self, tokens: u64) -> Self {
        self.cached_tokens = tokens;
        self
    }

    /// Sets how many of the input tokens are written to the provider's prompt cache (Anthropic,
    /// OpenAI), at most those that are not read from it.
    #[must_use]
    pub fn cache_write_tokens(mut self, tokens: u64) -> Self {
        self.cache_write_tokens = tokens;
        self
    }

    /// Sets the number of output tokens, including reasoning; 5 unless set.
    ///
    /// The request's own maximum, such as `max_tokens`, cuts the answer off; its finish reason says so.
    #[must_use]
    pub fn output_tokens(mut self, tokens: u64) -> Self {
        self.output_tokens = tokens;
        self
    }

    /// Sets how many of the output tokens are reasoning, at most all of them: they count, and are not
    /// part of the text.
    #[must_use]
    pub fn reasoning_tokens(mut self, tokens: u64) -> Self {
        self.reasoning_tokens = tokens;
        self
    }

    /// Answers a request without a model, messages or input with the provider's 400; without this, any JSON
    /// is answered.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.is_strict = true;
        self
    }

    /// Sets whether a chat stream starts with a frame that has a role and empty content, sent with the
    /// headers; it does unless set.
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

    /// Sets a response header, replacing the provider's own of that name.
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

    /// Sets the fault; none unless set.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// This behaviour as changed by the `x-sim-*` headers of a request; see
    /// [`SimulatedProvider`](crate::SimulatedProvider).
    ///
    /// Headers with invalid values are ignored.
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
            changed.input_tokens = InputTokens::Fixed(tokens);
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
