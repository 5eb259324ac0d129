//! When a token is used, fetched and refused: no lock, no clock, no request.

use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::accounts::{Account, NoAccessToken, TokenError};

/// A token is fetched again so long before it expires, or after half its life.
const REFRESH_BEFORE: Duration = Duration::from_secs(300);

/// The life of a token whose server does not tell it.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);

/// A token that lives longer is fetched again anyway.
const MAX_LIFE: Duration = Duration::from_secs(86_400);

/// The pause after the first failure, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Time between two tokens that are given up because the provider refused one.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// A token in the cache.
#[derive(Clone, Debug)]
pub(crate) struct HeldToken {
    /// Marked as sensitive, so that it is not shown.
    header: HeaderValue,
    number: u64,
    refresh_at: Instant,
    expires_at: Instant,
}

/// Why there is no token, and when the next is fetched.
#[derive(Clone, Debug)]
pub(crate) struct Denied {
    error: TokenError,
    retry_after: Duration,
}

#[derive(Debug, Default)]
pub(super) struct State {
    token: Option<HeldToken>,
    /// Tokens so far.
    tokens: u64,
    failure: Option<Failure>,
    refused_at: Option<Instant>,
}

/// The last fetch failed.
#[derive(Debug)]
struct Failure {
    error: TokenError,
    /// How many failed, one after the other.
    number: u32,
    retry_at: Instant,
}

/// What a call does.
#[derive(Debug)]
pub(super) enum Next {
    Use(HeldToken),
    UseAndRefresh(HeldToken),
    Refresh,
    Refused(Denied),
}

impl HeldToken {
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }
}

impl Denied {
    pub(super) fn new(error: TokenError, retry_after: Duration) -> Self {
        Self { error, retry_after }
    }

    /// The error of a call to `account`.
    pub(crate) fn of(self, account: &Account) -> NoAccessToken {
        NoAccessToken::new(account.name(), self.error, self.retry_after)
    }
}

impl State {
    pub(super) fn next(&self, now: Instant) -> Next {
        let pause = self
            .failure
            .as_ref()
            .filter(|failure| now < failure.retry_at);
        let token = self.token.as_ref().filter(|token| now < token.expires_at);
        match (token, pause) {
            (Some(token), None) if now >= token.refresh_at => Next::UseAndRefresh(token.clone()),
            (Some(token), _) => Next::Use(token.clone()),
            (None, Some(failure)) => Next::Refused(Denied {
                error: failure.error.clone(),
                retry_after: failure.retry_at - now,
            }),
            (None, None) => Next::Refresh,
        }
    }

    /// A fetch that was `started_at` gave a token: its life counts from then, since the server made it later.
    pub(super) fn refreshed(
        &mut self,
        header: HeaderValue,
        started_at: Instant,
        expires_in: Option<Duration>,
    ) -> HeldToken {
        let life = expires_in.unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
        let expires_at = started_at + life;
        self.tokens += 1;
        self.failure = None;
        let token = HeldToken {
            header,
            number: self.tokens,
            refresh_at: expires_at - REFRESH_BEFORE.min(life / 2),
            expires_at,
        };
        self.token.insert(token).clone()
    }

    pub(super) fn failed(&mut self, error: TokenError, now: Instant) -> Denied {
        let number = self.failure.as_ref().map_or(0, |failure| failure.number) + 1;
        let (first, longest) = PAUSE;
        let doubled = first.saturating_mul(2_u32.saturating_pow(number - 1));
        let pause = doubled.min(longest);
        self.failure = Some(Failure {
            error: error.clone(),
            number,
            retry_at: now + pause,
        });
        Denied::new(error, pause)
    }

    /// The provider refused `token`. Of many calls with the same one, the first counts.
    pub(super) fn refuse(&mut self, token: &HeldToken, now: Instant) {
        let is_held = self
            .token
            .as_ref()
            .is_some_and(|held| held.number == token.number);
        let is_soon = |refused_at: Instant| now < refused_at + REFUSED_PAUSE;
        if is_held && !self.refused_at.is_some_and(is_soon) {
            self.token = None;
            self.refused_at = Some(now);
        }
    }
}
