use tower_llm_core::Call;

/// What a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Weigh {
    /// Calls: each takes one permit.
    #[default]
    Calls,
    /// Tokens: a call takes as many permits as it has input tokens plus output tokens that it may generate, and at least one.
    ///
    /// For self-hosted servers, whose memory is limited in tokens. A request without a [`Call`] weighs one. A call heavier
    /// than the whole limit is admitted when nothing else runs.
    Tokens {
        /// Output tokens of a call that names no maximum.
        default_output: u64,
    },
}

impl Weigh {
    /// The weight of `call`: at least one, at most the largest limit.
    pub(crate) fn weight(self, call: Option<&Call>) -> u32 {
        let (Self::Tokens { default_output }, Some(call)) = (self, call) else {
            return 1;
        };
        let output = call.max_output_tokens().unwrap_or(default_output);
        let tokens = call.input_tokens().saturating_add(output).max(1);
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use tower_llm_core::{Operation, Provider};

    use super::*;

    #[test]
    fn a_call_weighs_its_input_and_the_most_it_may_put_out() {
        let call = || Call::builder(Provider::OPENAI, Operation::CHAT);
        let tokens = Weigh::Tokens {
            default_output: 500,
        };
        for (call, weight) in [
            (call().input_tokens(1_000).max_output_tokens(50), 1_050),
            (call().input_tokens(1_000), 1_500),
            (call().max_output_tokens(0), 1),
            (call().input_tokens(u64::MAX), u32::MAX),
            (call().input_tokens(1).max_output_tokens(u64::MAX), u32::MAX),
        ] {
            let call = call.build();
            assert_eq!(tokens.weight(Some(&call)), weight, "{call:?}");
            assert_eq!(Weigh::Calls.weight(Some(&call)), 1);
        }
        assert_eq!(tokens.weight(None), 1);
    }
}
