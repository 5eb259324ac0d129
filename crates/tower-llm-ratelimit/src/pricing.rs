//! What a call is charged: an estimate before it is sent, and its actual use when it has ended.

use tower_llm_core::{Call, Completion, Failure, Operation, Outcome, Provider, Usage};

use crate::Unit;

/// An amount of each [`Unit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts([u64; 5]);

/// How many tokens a call reserves before it is sent.
///
/// For a call that names no maximum of output tokens, the expected output is reserved: the 95th percentile of the output
/// lengths observed for its provider and model (see [`output_percentile`](crate::RateLimitBuilder::output_percentile)), or
/// 1,024 before enough calls were observed. Embeddings and token counting produce no output. If only the expected output
/// exceeds a limit, the call reserves the whole limit instead of being refused, and is charged the rest when it has ended.
///
/// [`Limit::input_tokens`](crate::Limit::input_tokens) always reserves the estimated input.
///
/// A response that is watched by [`Unary`](tower_llm_core::Unary) reports no usage. A call is then charged what it reserves,
/// and reserves no expected output: its input, and the maximum if it names one.
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
    /// As the call's provider does; [`InputAndMaximum`](Self::InputAndMaximum) for providers not named here.
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

/// The estimate of a call, for when its actual use is not reported.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    pub(crate) reserved: Amounts,
    input: u64,
    counts: Counts,
    /// Whether it produces no output: embeddings.
    produces_no_output: bool,
}

/// Which tokens of a call count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Counts {
    #[default]
    All,
    /// All but the input from the provider's prompt cache.
    NotCached,
    /// None, whatever the response reports: token counting, and reading or changing what is stored.
    None,
}

/// An estimate as it is kept while the call is sent: nearly every one fits into few bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompactEstimate {
    /// Input, output, all tokens, and cost.
    amounts: [u32; 4],
    counts: Counts,
    is_exact: bool,
}

/// Maximum use that is accepted for one call: ten times what any model takes or gives. A larger report would block its key
/// for years.
const MAX_USED: u64 = 100_000_000;

// === impl Amounts ===

impl Amounts {
    pub(crate) const NONE: Self = Self([0; 5]);
    const REQUEST: Self = Self([1, 0, 0, 0, 0]);

    /// The amounts of one request.
    fn new(input: u64, output: u64, tokens: u64, cost: u64) -> Self {
        Self([1, input, output, tokens, cost])
    }

    pub(crate) fn of(&self, unit: Unit) -> u64 {
        self.0[unit.index()]
    }

    pub(crate) fn cap(&mut self, unit: Unit, most: u64) {
        let amount = &mut self.0[unit.index()];
        *amount = most.min(*amount);
    }

    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|unit| {
            self.0[unit].saturating_add(other.0[unit])
        }))
    }

    /// With the tokens of another call, for one request.
    fn with_tokens_of(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|unit| {
            match [Unit::Requests, Unit::Cost]
                .map(Unit::index)
                .contains(&unit)
            {
                true => self.0[unit].max(other.0[unit]),
                false => self.0[unit].saturating_add(other.0[unit]),
            }
        }))
    }

    fn max(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|unit| self.0[unit].max(other.0[unit])))
    }
}

// === impl Estimate ===

impl Estimate {
    /// How much of a unit must be available for the call; `None` if it uses none of it, however little is available.
    ///
    /// A call that reserves nothing, because it is charged when it has ended, still waits until debts are paid off.
    pub(crate) fn needed(&self, unit: Unit) -> Option<u64> {
        let uses_none = match unit {
            Unit::InputTokens | Unit::Tokens => self.counts == Counts::None,
            Unit::OutputTokens => self.counts == Counts::None || self.produces_no_output,
            Unit::Requests | Unit::Cost => false,
        };
        (!uses_none).then(|| self.reserved.of(unit).max(1))
    }
}

// === impl CompactEstimate ===

impl CompactEstimate {
    #[inline]
    pub(crate) fn new(estimate: &Estimate) -> Self {
        let [requests, amounts @ ..] = estimate.reserved.0;
        let all_bits = amounts.iter().fold(0, |bits, amount| bits | amount);
        let fits = all_bits <= u32::MAX.into();
        Self {
            #[expect(clippy::cast_possible_truncation, reason = "not read unless they fit")]
            amounts: amounts.map(|amount| amount as u32),
            counts: estimate.counts,
            is_exact: fits && requests == 1 && estimate.input == amounts[0],
        }
    }

    /// Whether [`expand`](Self::expand) returns the estimate as it was; but not whether the call produces no output, which
    /// matters only until it is admitted.
    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    pub(crate) fn expand(&self) -> Estimate {
        let [input, output, tokens, cost] = self.amounts.map(u64::from);
        Estimate {
            reserved: Amounts::new(input, output, tokens, cost),
            input,
            counts: self.counts,
            produces_no_output: false,
        }
    }
}

// === impl Pricing ===

impl Pricing {
    /// What `call` reserves. `expected` is called for its expected output if that matters; `None` if its usage will not be
    /// reported, so that a guess would never be set right.
    pub(crate) fn estimate(
        &self,
        call: Option<&Call>,
        expected: Option<impl FnOnce() -> u64>,
    ) -> Estimate {
        let Some(call) = call else {
            return Estimate {
                reserved: Amounts::new(0, 0, 0, 1),
                counts: Counts::all_or_not_cached(self.count_cached_input.unwrap_or(true)),
                ..Estimate::default()
            };
        };
        if [Operation::COUNT_TOKENS, Operation::RETRIEVE].contains(call.operation()) {
            return Estimate {
                reserved: Amounts::new(0, 0, 0, call.cost()),
                counts: Counts::None,
                ..Estimate::default()
            };
        }
        let input = call.input_tokens();
        let maximum = call.max_output_tokens();
        let reserve = self.reserve.of(call.provider());
        let expected = expected.filter(|_| generates(call));
        let output = match (reserve, maximum, expected) {
            (Reserve::Input, ..) => 0,
            (Reserve::InputAndExpected, _, Some(expected)) => {
                expected().min(maximum.unwrap_or(u64::MAX))
            }
            (_, Some(maximum), _) => maximum,
            (_, None, Some(expected)) => expected(),
            (_, None, None) => 0,
        };
        let tokens = match reserve {
            Reserve::LargerOfInputAndMaximum => input.max(output),
            _ => input.saturating_add(output),
        };
        Estimate {
            reserved: Amounts::new(input, output, tokens, call.cost()),
            input,
            counts: Counts::all_or_not_cached(
                self.count_cached_input
                    .unwrap_or_else(|| *call.provider() != Provider::ANTHROPIC),
            ),
            produces_no_output: *call.operation() == Operation::EMBEDDINGS,
        }
    }

    /// What `call` needs at least: the maximum that it names if that is reserved, and its input, unless that may be cached
    /// and cost nothing.
    pub(crate) fn needed(&self, call: Option<&Call>) -> Amounts {
        let estimate = self.estimate(call, Some(|| 0));
        if estimate.counts != Counts::NotCached {
            return estimate.reserved;
        }
        let (output, cost) = (
            estimate.reserved.of(Unit::OutputTokens),
            estimate.reserved.of(Unit::Cost),
        );
        Amounts::new(0, output, output, cost)
    }

    /// What a call with this completion is charged; see the table of [`Outcome`].
    pub(crate) fn settle(&self, estimate: &Estimate, completion: &Completion) -> Amounts {
        let own = self.settle_own(estimate, completion);
        match completion.extra_usage {
            Some(extra) => own.with_tokens_of(&self.used(estimate, &extra)),
            None => own,
        }
    }

    fn settle_own(&self, estimate: &Estimate, completion: &Completion) -> Amounts {
        match completion.outcome {
            Outcome::Exhausted | Outcome::Overloaded { .. } | Outcome::Refused => Amounts::NONE,
            Outcome::Throttled { .. } | Outcome::ClientError => Amounts::REQUEST,
            // Its tokens are paid for by the call that a cache answers it from.
            _ if completion.served.is_some() => Amounts::REQUEST,
            _ if estimate.counts == Counts::None => estimate.reserved,
            Outcome::Success => match self.seen(estimate, completion) {
                Some(used) => used,
                // No report of its use, as for a response that is not HTTP.
                None => estimate.reserved,
            },
            _ => self.settle_cut_short(estimate, completion),
        }
    }

    fn settle_cut_short(&self, estimate: &Estimate, completion: &Completion) -> Amounts {
        let seen = self.seen(estimate, completion).unwrap_or_else(|| {
            if was_at_work(completion) {
                self.used(estimate, &Usage::new(estimate.input, 0))
            } else {
                Amounts::REQUEST
            }
        });
        match self.cut_short {
            CutShort::ChargeSeen => seen,
            CutShort::KeepReserved => seen.max(&estimate.reserved),
            CutShort::Refund => Amounts::REQUEST,
        }
    }

    /// What the provider reported or, without a report, the output that was seen.
    fn seen(&self, estimate: &Estimate, completion: &Completion) -> Option<Amounts> {
        let ended_well = completion.outcome == Outcome::Success;
        // A provider that reports usage has done so once the finish reason has arrived.
        let has_finished = completion.finish.is_some();
        match completion.usage {
            Some(usage) if ended_well || has_finished && usage.output > 0 => {
                Some(self.used(estimate, &usage))
            }
            // A report at the beginning of a stream contains its input, and little of its output.
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

    fn used(&self, estimate: &Estimate, usage: &Usage) -> Amounts {
        let mut input = usage.input.min(MAX_USED);
        if estimate.counts == Counts::NotCached {
            input = input.saturating_sub(usage.cached_input);
        }
        let output = usage.output.min(MAX_USED);
        let output = output.saturating_mul(self.output_weight.into());
        let cost = estimate.reserved.of(Unit::Cost);
        Amounts::new(input, output, input.saturating_add(output), cost)
    }
}

impl Counts {
    fn all_or_not_cached(all: bool) -> Self {
        if all { Self::All } else { Self::NotCached }
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

/// Whether a call that names no maximum produces output.
fn generates(call: &Call) -> bool {
    let operation = call.operation();
    operation.is_inference() && *operation != Operation::EMBEDDINGS
}

/// Whether the provider probably had the input and worked on it.
fn was_at_work(completion: &Completion) -> bool {
    match completion.status {
        Some(status) => (200..300).contains(&status),
        // A connection that failed before a response has most likely carried no request.
        None => completion.outcome != Outcome::Failed(Failure::Transport),
    }
}

#[cfg(test)]
pub(crate) mod tests;
