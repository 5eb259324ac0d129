//! A `tracing` span for each call and attempt, with the attribute names of the OpenTelemetry conventions for generative AI.

use tower_llm_core::{Call, Completion, Outcome, Served};
use tracing::{Span, field::Empty};

use crate::{
    AlertEvent, Change,
    kinds::{self, OUTCOMES},
    record::finish,
    rows::Labels,
    used::Used,
};

/// The span of a call, from its start to its end.
#[derive(Debug)]
pub(crate) struct CallSpan(Span);

macro_rules! span {
    ($name:literal, $labels:ident, $call:ident) => {{
        let model = $call.and_then(Call::model);
        tracing::info_span!(
            $name,
            otel.kind = "client",
            gen_ai.operation.name =
                $call.map_or(&*$labels.operation, |call| call.operation().as_str()),
            gen_ai.provider.name =
                $call.map_or(&*$labels.provider, |call| call.provider().as_str()),
            gen_ai.request.model = model,
            gen_ai.request.max_tokens = $call.and_then(Call::max_output_tokens),
            gen_ai.response.finish_reasons = Empty,
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            gen_ai.usage.cache_read.input_tokens = Empty,
            http.response.status_code = Empty,
            error.r#type = Empty,
            llm.outcome = Empty,
            llm.refused_by = Empty,
            llm.cache = Empty,
            llm.cost_usd = Empty,
        )
    }};
}

impl CallSpan {
    pub(crate) fn new(labels: &Labels, call: Option<&Call>) -> Self {
        Self(span!("llm_call", labels, call))
    }

    pub(crate) fn of_attempt(labels: &Labels, call: Option<&Call>) -> Self {
        Self(span!("llm_attempt", labels, call))
    }

    /// `used` is `None` if that is not known yet.
    pub(crate) fn end(&mut self, completion: &Completion, used: Option<&Used>) {
        let span = &self.0;
        if span.is_disabled() {
            return;
        }
        let outcome = OUTCOMES[kinds::outcome(completion.outcome)];
        span.record("llm.outcome", outcome);
        if completion.outcome != Outcome::Success {
            span.record("error.type", outcome);
        }
        if let Some(status) = completion.status {
            span.record("http.response.status_code", status);
        }
        if let Some(layer) = completion.refused_by {
            span.record("llm.refused_by", layer);
        }
        if let Some(reason) = completion.finish {
            span.record("gen_ai.response.finish_reasons", finish(reason));
        }
        if let Some(served) = completion.served {
            let hit = served == Served::Hit;
            span.record("llm.cache", if hit { "hit" } else { "follower" });
        }
        if let Some(used) = used {
            // Those of the answer, whether they were paid for or not.
            let usage = used.paid.plus(&used.saved);
            span.record("gen_ai.usage.input_tokens", usage.input);
            span.record("gen_ai.usage.output_tokens", usage.output);
            span.record("gen_ai.usage.cache_read.input_tokens", usage.cached_input);
            if let Some(cost) = used.cost {
                span.record("llm.cost_usd", cost.as_dollars());
            }
        }
        // The end of the call, and not of its guard.
        self.0 = Span::none();
    }
}

/// Logs an alert that was raised or resolved.
pub(crate) fn alert(event: &AlertEvent) {
    let AlertEvent { change, alert } = event;
    let (name, bound, value) = (&*alert.name, alert.bound, alert.value);
    let row = alert.subject.as_ref();
    let (provider, model) = (row.map(|row| &*row.provider), row.map(|row| &*row.model));
    match change {
        Change::Raised => tracing::warn!(name, bound, value, provider, model, "alert raised"),
        Change::Resolved => tracing::info!(name, bound, value, provider, model, "alert resolved"),
    }
}
