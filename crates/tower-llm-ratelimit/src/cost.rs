//! What a call is charged: an estimate before it is sent, and what it used when it has ended.

use tower_llm_core::{Call, Completion, Failure, Operation, Outcome, Provider, Usage};

use crate::Unit;

/// Amounts by [`Unit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost([u64; 4]);

/// How many tokens a call reserves before it is sent.
///
/// For a call that names no maximum of output tokens, the expected output is reserved: the 95th percentile of the output
/// lengths observed for its provider and model (see [`output_percentile`](crate::RateLimitBuilder::output_percentile)), or
/// 1,024 before enough calls were observed. Embeddings and token counting produce no output. If only the expected output
/// exceeds a limit, the call reserves the whole limit instead of being refused, and is charged the rest when it has ended.
///
/// [`Limit::input_tokens`](crate::Limit::input_tokens) always reserves the estimated input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reserve {
    /// The estimated input plus the named maximum, as Azure and Bedrock do. Never too little, if the estimate of the input
    /// holds.
    #[default]
    InputAndMaximum,
    /// The larger of the estimated input and the named maximum, as `OpenAI` does.
    LargerOfInputAndMaximum,
    /// The estimated input plus the expected output, even if the call names a larger maximum. Suits Anthropic, which counts
    /// output as it is produced.
    InputAndExpected,
    /// Only the estimated input, as Gemini does. Output is charged when the call has ended.
    Input,
    /// Whichever of these the call's provider does; [`InputAndMaximum`](Self::InputAndMaximum) for providers not named here.
    LikeProvider,
}

/// How many tokens a call is charged that ends early: it failed midway, stalled, or was dropped by its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CutShort {
    /// The usage reported so far or, without a report, the estimated input plus the output seen.
    #[default]
    ChargeSeen,
    /// The reservation, or what was seen if that is more.
    KeepReserved,
    /// Nothing.
    Refund,
}

/// How a call is charged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pricing {
    pub(crate) reserve: Reserve,
    pub(crate) cut_short: CutShort,
    /// `None`: as the provider does.
    pub(crate) count_cached_input: Option<bool>,
    pub(crate) output_weight: u32,
}

/// What was estimated of a call, for when nothing better comes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    pub(crate) reserved: Cost,
    input: u64,
    /// Whether it costs no tokens whatever the response says.
    free: bool,
    counts_cached_input: bool,
}

/// The most that is believed of what one call has used: ten times what any model takes or gives. Who reports more would
/// have the key it counts for closed for years.
const MAX_USED: u64 = 100_000_000;

// === impl Cost ===

impl Cost {
    pub(crate) const NONE: Self = Self([0; 4]);
    const REQUEST: Self = Self([1, 0, 0, 0]);

    fn new(requests: u64, input: u64, output: u64, tokens: u64) -> Self {
        Self([requests, input, output, tokens])
    }

    pub(crate) fn of(&self, unit: Unit) -> u64 {
        self.0[unit.index()]
    }

    pub(crate) fn cap(&mut self, unit: Unit, most: u64) {
        let amount = &mut self.0[unit.index()];
        *amount = most.min(*amount);
    }

    fn max(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|unit| self.0[unit].max(other.0[unit])))
    }
}

// === impl Pricing ===

impl Pricing {
    /// What `call` reserves; `expected` is asked for the output to expect of it, if that matters.
    pub(crate) fn estimate(&self, call: Option<&Call>, expected: impl FnOnce() -> u64) -> Estimate {
        let Some(call) = call else {
            return Estimate {
                reserved: Cost::REQUEST,
                counts_cached_input: self.count_cached_input.unwrap_or(true),
                ..Estimate::default()
            };
        };
        if *call.operation() == Operation::COUNT_TOKENS {
            return Estimate {
                reserved: Cost::REQUEST,
                free: true,
                ..Estimate::default()
            };
        }
        let input = call.input_tokens();
        let maximum = call.max_output_tokens();
        let reserve = self.reserve.of(call.provider());
        let output = match (reserve, maximum) {
            (Reserve::Input, _) => 0,
            (Reserve::InputAndExpected, _) if generates(call) => {
                expected().min(maximum.unwrap_or(u64::MAX))
            }
            (_, Some(maximum)) => maximum,
            (_, None) if generates(call) => expected(),
            (_, None) => 0,
        };
        let tokens = match reserve {
            Reserve::LargerOfInputAndMaximum => input.max(output),
            _ => input.saturating_add(output),
        };
        Estimate {
            reserved: Cost::new(1, input, output, tokens),
            input,
            free: false,
            counts_cached_input: self
                .count_cached_input
                .unwrap_or(*call.provider() != Provider::ANTHROPIC),
        }
    }

    /// What `call` needs, whatever it comes to produce: the maximum that it names if that is reserved, and its input, unless
    /// that may turn out to be cached and to cost nothing.
    pub(crate) fn needed(&self, call: Option<&Call>) -> Cost {
        let estimate = self.estimate(call, || 0);
        if estimate.counts_cached_input {
            return estimate.reserved;
        }
        let output = estimate.reserved.of(Unit::OutputTokens);
        Cost::new(1, 0, output, output)
    }

    /// What a call has cost that has ended so; see the table of [`Outcome`].
    pub(crate) fn settle(&self, estimate: &Estimate, completion: &Completion) -> Cost {
        match completion.outcome {
            Outcome::Exhausted | Outcome::Overloaded { .. } | Outcome::Refused => Cost::NONE,
            _ if estimate.free => Cost::REQUEST,
            Outcome::Throttled { .. } | Outcome::ClientError => Cost::REQUEST,
            Outcome::Success => match self.seen(estimate, completion) {
                Some(used) => used,
                // Nobody said what it used, as for a type that is no HTTP response.
                None => estimate.reserved,
            },
            _ => self.settle_cut_short(estimate, completion),
        }
    }

    fn settle_cut_short(&self, estimate: &Estimate, completion: &Completion) -> Cost {
        let seen = self.seen(estimate, completion).unwrap_or_else(|| {
            if was_at_work(completion) {
                self.used(estimate, &Usage::new(estimate.input, 0))
            } else {
                Cost::REQUEST
            }
        });
        match self.cut_short {
            CutShort::ChargeSeen => seen,
            CutShort::KeepReserved => seen.max(&estimate.reserved),
            CutShort::Refund => Cost::REQUEST,
        }
    }

    /// What the provider reported or, where it did not, the output that came.
    fn seen(&self, estimate: &Estimate, completion: &Completion) -> Option<Cost> {
        let ended_well = completion.outcome == Outcome::Success;
        // Once the model has said why it stopped, so has its provider how much there was, if it does so at all.
        let has_finished = completion.finish.is_some();
        match completion.usage {
            Some(usage) if ended_well || has_finished && usage.output > 0 => {
                Some(self.used(estimate, &usage))
            }
            // What is reported at the beginning of a stream knows its input, and little of its output.
            Some(mut usage) => {
                usage.output = usage.output.max(completion.output_seen);
                Some(self.used(estimate, &usage))
            }
            None if completion.output_seen > 0 => {
                let usage = Usage::new(estimate.input, completion.output_seen);
                Some(self.used(estimate, &usage))
            }
            None => None,
        }
    }

    fn used(&self, estimate: &Estimate, usage: &Usage) -> Cost {
        let mut input = usage.input.min(MAX_USED);
        if !estimate.counts_cached_input {
            input = input.saturating_sub(usage.cached_input);
        }
        let output = usage.output.min(MAX_USED);
        let output = output.saturating_mul(self.output_weight.into());
        Cost::new(1, input, output, input.saturating_add(output))
    }
}

impl Reserve {
    fn of(self, provider: &Provider) -> Self {
        if self != Self::LikeProvider {
            return self;
        }
        if *provider == Provider::OPENAI {
            Self::LargerOfInputAndMaximum
        } else if *provider == Provider::ANTHROPIC {
            Self::InputAndExpected
        } else if *provider == Provider::GEMINI {
            Self::Input
        } else {
            Self::InputAndMaximum
        }
    }
}

/// Whether a call that names no maximum produces output all the same.
fn generates(call: &Call) -> bool {
    let operation = call.operation();
    *operation != Operation::EMBEDDINGS
        && *operation != Operation::COUNT_TOKENS
        && *operation != Operation::RETRIEVE
        && *operation != Operation::OTHER
}

/// Whether the provider had the input and was at work on it, for all that is known.
fn was_at_work(completion: &Completion) -> bool {
    match completion.status {
        Some(status) => (200..300).contains(&status),
        // A connection that failed before a response came has most likely carried no request.
        None => completion.outcome != Outcome::Failed(Failure::Transport),
    }
}

#[cfg(test)]
pub(crate) mod tests;
