//! What the end of a call means for a circuit: good, bad, or nothing.

use std::time::Duration;

use tower_llm_core::{Completion, Failure, Outcome, Subject};

use crate::Scope;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    Neutral,
    /// The provider's rate limit, with a time to wait if it names one.
    Throttled {
        retry_after: Option<Duration>,
    },
    /// Money or quota is used up for a long time.
    Exhausted,
    /// The provider refused the credential.
    Credential,
}

/// What else is known of a call, and of the circuit it has passed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    /// The owner of the call's credential is known; if not, callers with different credentials share the circuit.
    pub(crate) has_account: bool,
    /// An inner rate limit acts on the provider's 429.
    pub(crate) ignores_throttled: bool,
    pub(crate) is_slow: bool,
    pub(crate) is_probe: bool,
}

/// Whether circuits of that scope count how calls of a model end.
pub(crate) fn is_of_model(scope: Scope) -> bool {
    matches!(scope, Scope::ProviderAndModel | Scope::Key)
}

/// Nothing, unless it concerns the scope of the circuit.
pub(crate) fn of(scope: Scope, completion: &Completion, facts: Facts) -> Verdict {
    use Verdict::{Credential, Exhausted, Failure as Failed, Neutral, Success, Throttled};
    let fault = Failed { retry_after: None };
    let was_answered = completion.status.is_some();
    let refused_as = refused_credential(completion);
    let is_forbidden = completion.status == Some(403);
    let is_of_one_model = completion.subject == Some(Subject::Model);
    let is_probe = facts.is_probe;
    match (completion.outcome, scope) {
        // A cache's answer shows nothing about the provider.
        _ if completion.served.is_some() => Neutral,
        // A slow probe has failed. One whose caller disconnects has failed too: if callers abandon all slow probes, the circuit would
        // never decide.
        (
            Outcome::Success
            | Outcome::Abandoned
            | Outcome::Superseded
            | Outcome::Failed(Failure::Slow),
            Scope::ProviderAndModel | Scope::Key,
        ) if facts.is_slow && is_probe => fault,
        (Outcome::Success, _) => Success,

        // It showed signs of life: it was slow, which is counted separately.
        (Outcome::Failed(Failure::Slow), Scope::Provider) => Success,
        (Outcome::Failed(Failure::Slow), _) => Neutral,

        // If a response breaks off, the connection to the provider had worked.
        (Outcome::Failed(Failure::Panic), Scope::Provider) => fault,
        (Outcome::Failed(Failure::Panic), Scope::ProviderAndModel) => Neutral,
        (Outcome::Failed(Failure::Transport), Scope::Provider) if !was_answered => fault,
        (Outcome::Failed(Failure::Transport), Scope::ProviderAndModel) if !was_answered => Neutral,
        (Outcome::Failed(_), Scope::ProviderAndModel | Scope::Key) => fault,

        (Outcome::Overloaded { retry_after }, Scope::ProviderAndModel | Scope::Key) => {
            Failed { retry_after }
        }

        (Outcome::Throttled { retry_after }, Scope::AccountAndModel | Scope::Key) => Throttled {
            // Without a time it opens no circuit and is neither success nor failure.
            retry_after: retry_after.filter(|_| !facts.ignores_throttled),
        },
        (Outcome::Exhausted, Scope::AccountAndModel) if is_of_one_model => Exhausted,
        (Outcome::Exhausted, Scope::Account) if !is_of_one_model => Exhausted,
        (Outcome::Exhausted, Scope::Key) => Exhausted,
        (Outcome::ClientError, _) if facts.has_account && refused_as == Some(scope) => Credential,

        // Whatever the answer, the provider was reached.
        (Outcome::Failed(_), Scope::Provider) if was_answered => Success,
        (
            Outcome::Overloaded { .. } | Outcome::Throttled { .. } | Outcome::Exhausted,
            Scope::Provider,
        ) => Success,
        // A client error means nothing, except as a probe of what it shows to work: the connection to the provider, or an
        // account whose credential was accepted. A rate limit also comes after that check.
        (Outcome::ClientError, Scope::Provider) if is_probe && was_answered => Success,
        (Outcome::ClientError, Scope::Account)
            if is_probe && was_answered && !is_forbidden && refused_as.is_none() =>
        {
            Success
        }
        (Outcome::Throttled { .. } | Outcome::Exhausted, Scope::Account) if is_probe => Success,
        _ => Neutral,
    }
}

/// The scope for which the provider refuses the credential, if it does: the account, or with a 403 the model that the call
/// asked for.
fn refused_credential(completion: &Completion) -> Option<Scope> {
    match (completion.subject, completion.status) {
        (Some(Subject::Credential), Some(403)) => Some(Scope::AccountAndModel),
        (Some(Subject::Credential), _) | (None, Some(401)) => Some(Scope::Account),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Option<Duration> = Some(Duration::from_secs(7));
    const SCOPES: [Scope; 5] = [
        Scope::Provider,
        Scope::ProviderAndModel,
        Scope::Account,
        Scope::AccountAndModel,
        Scope::Key,
    ];

    fn of_each(completion: &Completion, facts: Facts) -> [Verdict; 5] {
        SCOPES.map(|scope| of(scope, completion, facts))
    }

    fn end(outcome: Outcome, status: u16, subject: Option<Subject>) -> Completion {
        let mut end = Completion::new(outcome);
        end.status = (status > 0).then_some(status);
        end.subject = subject;
        end
    }

    /// A letter for each of [`SCOPES`]: (S)uccess, (F)ailure, (n)othing, (T)hrottled, (E)xhausted, (C)redential.
    fn letters(verdicts: [Verdict; 5]) -> String {
        let letter = |verdict| match verdict {
            Verdict::Success => 'S',
            Verdict::Failure { .. } => 'F',
            Verdict::Neutral => 'n',
            Verdict::Throttled { .. } => 'T',
            Verdict::Exhausted => 'E',
            Verdict::Credential => 'C',
        };
        verdicts.map(letter).iter().collect()
    }

    #[test]
    fn each_end_counts_in_the_circuits_of_what_it_concerns() {
        use Outcome::{
            Abandoned, ClientError, Exhausted, Failed, Overloaded, Refused, Success, Superseded,
            Throttled,
        };
        let throttled = Throttled { retry_after: TIME };
        let overloaded = Overloaded { retry_after: TIME };
        let credential = Some(Subject::Credential);
        // What any call counts, and what a probe does.
        let rows = [
            (end(Success, 200, None), "SSSSS", "SSSSS"),
            (end(Failed(Failure::Status), 500, None), "SFnnF", "SFnnF"),
            (end(Failed(Failure::InBand), 200, None), "SFnnF", "SFnnF"),
            (end(Failed(Failure::Stalled), 200, None), "SFnnF", "SFnnF"),
            (end(Failed(Failure::Truncated), 200, None), "SFnnF", "SFnnF"),
            (end(Failed(Failure::Timeout), 0, None), "nFnnF", "nFnnF"),
            (end(Failed(Failure::Slow), 200, None), "Snnnn", "Snnnn"),
            (end(Failed(Failure::Panic), 0, None), "FnnnF", "FnnnF"),
            (end(Failed(Failure::Transport), 0, None), "FnnnF", "FnnnF"),
            (end(Failed(Failure::Transport), 200, None), "SFnnF", "SFnnF"),
            (end(overloaded, 529, None), "SFnnF", "SFnnF"),
            (end(throttled, 429, None), "SnnTT", "SnSTT"),
            (end(Exhausted, 402, None), "SnEnE", "SnEnE"),
            (
                end(Exhausted, 429, Some(Subject::Account)),
                "SnEnE",
                "SnEnE",
            ),
            (end(Exhausted, 429, Some(Subject::Model)), "SnnEE", "SnSEE"),
            (end(ClientError, 400, None), "nnnnn", "SnSnn"),
            (end(ClientError, 401, None), "nnCnn", "SnCnn"),
            (end(ClientError, 400, credential), "nnCnn", "SnCnn"),
            (end(ClientError, 403, credential), "nnnCn", "SnnCn"),
            (end(ClientError, 403, None), "nnnnn", "Snnnn"),
            (end(Refused, 0, None), "nnnnn", "nnnnn"),
            (end(Abandoned, 200, None), "nnnnn", "nnnnn"),
            (end(Superseded, 200, None), "nnnnn", "nnnnn"),
        ];
        for (completion, of_call, of_probe) in rows {
            for (is_probe, expected) in [(false, of_call), (true, of_probe)] {
                let facts = Facts {
                    has_account: true,
                    is_probe,
                    ..Facts::default()
                };
                let verdicts = of_each(&completion, facts);
                assert_eq!(letters(verdicts), expected, "{completion:?}, {is_probe}");
                let unknown = Facts {
                    has_account: false,
                    ..facts
                };
                let expected = expected.replace('C', "n");
                let verdicts = of_each(&completion, unknown);
                assert_eq!(letters(verdicts), expected, "{completion:?}, {is_probe}");
            }
        }
    }

    #[test]
    fn a_named_time_is_passed_on_unless_a_rate_limit_acts_on_it() {
        let overloaded = end(Outcome::Overloaded { retry_after: TIME }, 503, None);
        let throttled = end(Outcome::Throttled { retry_after: TIME }, 429, None);
        for (ignores_throttled, retry_after) in [(false, TIME), (true, None)] {
            let facts = Facts {
                ignores_throttled,
                ..Facts::default()
            };
            let failure = Verdict::Failure { retry_after: TIME };
            assert_eq!(of_each(&overloaded, facts)[1], failure);
            let verdict = Verdict::Throttled { retry_after };
            assert_eq!(of_each(&throttled, facts)[3..], [verdict; 2]);
        }
    }

    #[test]
    fn a_slow_probe_has_failed_for_the_model_and_a_slow_call_has_not() {
        let rows = [
            (Outcome::Success, "SFSSF", "SSSSS"),
            (Outcome::Abandoned, "nFnnF", "nnnnn"),
            (Outcome::Superseded, "nFnnF", "nnnnn"),
            (Outcome::Failed(Failure::Slow), "SFnnF", "Snnnn"),
            (Outcome::Refused, "nnnnn", "nnnnn"),
        ];
        for (outcome, of_probe, of_call) in rows {
            for (is_probe, expected) in [(true, of_probe), (false, of_call)] {
                let facts = Facts {
                    is_slow: true,
                    is_probe,
                    ..Facts::default()
                };
                let verdicts = of_each(&end(outcome, 0, None), facts);
                assert_eq!(letters(verdicts), expected, "{outcome:?}, {is_probe}");
            }
        }
    }

    #[test]
    fn an_answer_of_a_cache_shows_nothing() {
        let mut hit = end(Outcome::Success, 200, None);
        hit.served = Some(tower_llm_core::Served::Hit);
        assert_eq!(letters(of_each(&hit, Facts::default())), "nnnnn");
    }
}
