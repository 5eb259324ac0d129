//! The numbers of a usage object.

use crate::Usage;

/// A number in a usage object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// Input and output together.
    Total,
    /// All input, cached too.
    TotalInput,
    /// Input beside what the cache counters say.
    PlainInput,
    ToolInput,
    CacheRead,
    CacheWrite,
    CachedPart,
    CacheWritePart,
    Output,
    /// Output beside the thoughts.
    Candidates,
    Thoughts,
    ReasoningPart,
    BilledInput,
    BilledOutput,
}

const COUNTERS: usize = Counter::BilledOutput as usize + 1;

/// What a provider has counted, each by the best value it reported.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters([Option<u64>; COUNTERS]);

impl Counters {
    /// Takes a value that is reported. Reports are cumulative, so the largest is the best: some providers end a stream
    /// with zeros, and others repeat a part of what they had reported.
    pub(super) fn report(&mut self, counter: Counter, value: u64) {
        let slot = &mut self.0[counter as usize];
        *slot = (*slot).max(Some(value));
    }

    /// Adds a value to those of the same kind.
    pub(super) fn add(&mut self, counter: Counter, value: u64) {
        let slot = &mut self.0[counter as usize];
        *slot = Some(slot.unwrap_or(0).saturating_add(value));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    fn of(&self, counter: Counter) -> Option<u64> {
        self.0[counter as usize]
    }

    fn or_zero(&self, counter: Counter) -> u64 {
        self.of(counter).unwrap_or(0)
    }

    /// The usage, counted the same for every provider; `None` if nothing was reported.
    ///
    /// `output_seen` is an estimate of the output that passed: it shares out a total that comes without its parts.
    pub(super) fn usage(&self, output_seen: u64) -> Option<Usage> {
        use Counter as C;
        if self.is_empty() {
            return None;
        }
        let input = self.input();
        let output = self.output();
        let total = self.or_zero(C::Total);
        let (input, output) = match (input, output) {
            (Some(input), output) => {
                // A total above its parts contains output that the parts leave out, mostly reasoning.
                let output = output.unwrap_or(0);
                (input, output.max(total.saturating_sub(input)))
            }
            (None, Some(output)) => (total.saturating_sub(output), output),
            (None, None) => {
                let output = output_seen.min(total);
                (total - output, output)
            }
        };
        let part = |counter, or| self.of(counter).unwrap_or(self.or_zero(or));
        Some(Usage {
            input,
            output,
            cached_input: part(C::CachedPart, C::CacheRead).min(input),
            cache_write: part(C::CacheWritePart, C::CacheWrite).min(input),
            reasoning: part(C::ReasoningPart, C::Thoughts).min(output),
        })
    }

    fn input(&self) -> Option<u64> {
        use Counter as C;
        let input = self
            .of(C::TotalInput)
            .or(self.of(C::PlainInput))
            .or(self.of(C::BilledInput));
        // A provider that reports all input has counted the cache in it.
        let beside = match self.of(C::TotalInput) {
            Some(_) => &[C::ToolInput][..],
            None => &[C::CacheRead, C::CacheWrite],
        };
        if input.is_none() && beside.iter().all(|&counter| self.of(counter).is_none()) {
            return None;
        }
        let beside = beside.iter().map(|&counter| self.or_zero(counter));
        Some(beside.fold(input.unwrap_or(0), u64::saturating_add))
    }

    fn output(&self) -> Option<u64> {
        use Counter as C;
        let visible = self
            .of(C::Output)
            .or(self.of(C::Candidates))
            .or(self.of(C::BilledOutput));
        if visible.is_none()
            && self.of(C::Thoughts).is_none()
            && self.of(C::ReasoningPart).is_none()
        {
            return None;
        }
        let visible = visible.unwrap_or(0);
        let reasoning = self.or_zero(C::ReasoningPart);
        // More reasoning than output: the output does not include it.
        let beside = if reasoning > visible { reasoning } else { 0 };
        let output = visible.saturating_add(self.or_zero(C::Thoughts));
        Some(output.saturating_add(beside))
    }
}

/// The larger of two usages, number by number.
pub(super) fn larger(one: Usage, other: Usage) -> Usage {
    Usage {
        input: one.input.max(other.input),
        output: one.output.max(other.output),
        cached_input: one.cached_input.max(other.cached_input),
        cache_write: one.cache_write.max(other.cache_write),
        reasoning: one.reasoning.max(other.reasoning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Counter as C;

    fn usage(reports: &[(Counter, u64)]) -> Option<Usage> {
        let mut counters = Counters::default();
        for &(counter, value) in reports {
            counters.report(counter, value);
        }
        counters.usage(7)
    }

    fn tokens(reports: &[(Counter, u64)]) -> (u64, u64) {
        let usage = usage(reports).unwrap();
        (usage.input, usage.output)
    }

    #[test]
    fn a_smaller_report_undoes_nothing_and_a_zero_stands_where_nothing_else_came() {
        assert_eq!(
            tokens(&[(C::TotalInput, 9), (C::Output, 3), (C::Output, 0)]),
            (9, 3)
        );
        assert_eq!(tokens(&[(C::TotalInput, 9), (C::Output, 0)]), (9, 0));
        assert_eq!(
            tokens(&[(C::PlainInput, 500), (C::PlainInput, 3), (C::Output, 20)]),
            (500, 20)
        );
        assert_eq!(usage(&[]), None);
    }

    #[test]
    fn a_total_above_its_parts_is_output_that_they_forgot() {
        let parts = [(C::TotalInput, 9), (C::Output, 3)];
        assert_eq!(tokens(&[parts[0], parts[1], (C::Total, 12)]), (9, 3));
        assert_eq!(tokens(&[parts[0], parts[1], (C::Total, 112)]), (9, 103));
        assert_eq!(tokens(&[parts[0], parts[1], (C::Total, 5)]), (9, 3));
        assert_eq!(tokens(&[parts[0], (C::Total, 20)]), (9, 11));
        assert_eq!(tokens(&[parts[1], (C::Total, 20)]), (17, 3));
    }

    #[test]
    fn a_total_alone_is_shared_out_by_the_output_that_was_seen() {
        assert_eq!(tokens(&[(C::Total, 20)]), (13, 7));
        assert_eq!(tokens(&[(C::Total, 5)]), (0, 5));
    }

    #[test]
    fn more_reasoning_than_output_stands_beside_it() {
        let input = (C::TotalInput, 9);
        assert_eq!(
            tokens(&[input, (C::Output, 300), (C::ReasoningPart, 256)]),
            (9, 300)
        );
        assert_eq!(
            tokens(&[input, (C::Output, 44), (C::ReasoningPart, 256)]),
            (9, 300)
        );
        // Said twice, it is counted once.
        let both = [
            input,
            (C::Output, 44),
            (C::ReasoningPart, 256),
            (C::Total, 309),
        ];
        assert_eq!(tokens(&both), (9, 300));
    }
}
