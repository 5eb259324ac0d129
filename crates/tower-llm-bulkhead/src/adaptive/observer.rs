//! Tells an adaptive limit how a call goes.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{Call, Completion};

use super::{Adaptive, Sign, silence::Silence};
use crate::permits::SharedPermits;

/// Follows one call. Boxed, because most limits do not adapt.
#[derive(Debug)]
pub(crate) struct Observer {
    // Held beyond the release of the permits.
    permits: SharedPermits,
    /// For a stream without a token so far, if the limit follows that.
    silence: Option<Silence>,
}

impl Observer {
    /// For `call`, if the limit of `permits` adapts.
    pub(crate) fn of(permits: &SharedPermits, call: Option<&Call>) -> Option<Box<Self>> {
        let rules = permits.rules()?;
        Some(Box::new(Self {
            permits: Arc::clone(permits),
            silence: rules.silence_of(call),
        }))
    }

    pub(crate) fn response_headers(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.response_headers(Instant::now());
        }
    }

    pub(crate) fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(silence) = &mut self.silence
            && let Poll::Ready(now) = silence.poll(cx)
        {
            self.silence = None;
            self.report(now, |_| Some(Sign::Bad));
        }
    }

    pub(crate) fn first_token(&mut self, at: Instant) {
        if let Some(silence) = self.silence.take() {
            let after = silence.seen(at);
            self.report(at, |rules| rules.first_token(after));
        }
    }

    pub(crate) fn end(&self, completion: &Completion) {
        let now = completion.ended_at.unwrap_or_else(Instant::now);
        let silent_for = self.silence.as_ref().map(|silence| silence.seen(now));
        self.report(now, |rules| rules.end(completion, silent_for));
    }

    fn report(&self, now: Instant, sign: impl FnOnce(&Adaptive) -> Option<Sign>) {
        if let Some(sign) = self.permits.rules().and_then(sign) {
            self.permits.observe(sign, now);
        }
    }
}
