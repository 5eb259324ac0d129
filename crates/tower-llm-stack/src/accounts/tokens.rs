//! Access tokens that expire: cached, and refreshed once for all calls.

mod state;

use std::{
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{FutureExt, future::Shared};
use http::{HeaderValue, Request, Response};
use http_body::Body;
use tokio::time::{Instant, timeout};
use tower_llm_core::{BoxError, RequestBody};
use tower_service::Service;

pub(super) use self::state::{Denied, HeldToken};
use self::state::{Next, State};
use super::{ClientCredentials, TokenError, credential::bearer, oauth};
use crate::Secret;

/// For the authorization server to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The access tokens of an account. Clones share them.
///
/// The first call fetches a token and all others wait for the same one. Five minutes before it expires, or after half its
/// life if that is shorter, one call begins to fetch the next; all calls go on with the old one meanwhile. A call that leaves
/// does not disturb a fetch, which is a task of its own.
///
/// If a fetch fails, the calls that waited for it fail with [`NoAccessToken`](super::NoAccessToken). The next fetch begins
/// with the first call after a pause of 1 s, which doubles with each failure up to 30 s. Calls within the pause fail at once,
/// unless the old token is still valid. Such a call was never sent, so it counts as refused: it costs nothing, and opens no
/// circuit.
///
/// A provider that answers 401 makes the token invalid, once a minute at most: if it refuses each new token, fetching more
/// does not help.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

/// An access token, as the authorization server gave it.
#[derive(Clone, Debug)]
pub struct Token {
    token: Secret,
    expires_in: Option<Duration>,
}

struct Inner {
    source: Source,
    // A std mutex, not tokio's: it is held for a few comparisons and never across an await.
    cache: Mutex<Cache>,
}

type Source = Box<dyn Fn() -> Fetching + Send + Sync>;

type Fetching = Pin<Box<dyn Future<Output = Result<Token, TokenError>> + Send>>;

/// A fetch, and what came of it.
pub(super) type Refresh = Shared<Pin<Box<dyn Future<Output = Result<HeldToken, Denied>> + Send>>>;

#[derive(Default)]
struct Cache {
    state: State,
    /// The one fetch in flight.
    refresh: Option<Refresh>,
}

/// How a call gets its token.
pub(super) enum Access {
    Token(HeldToken),
    Wait(Refresh),
    Refused(Denied),
}

// === impl Token ===

impl Token {
    /// Creates a token that expires in this time after it was asked for; in 5 minutes if the server does not say.
    #[must_use]
    pub fn new(token: Secret, expires_in: Option<Duration>) -> Self {
        Self { token, expires_in }
    }
}

// === impl Tokens ===

impl Tokens {
    /// Creates tokens from any source, such as a metadata server or a signed assertion. `source` is called for each fetch, at
    /// most one at a time, and has 10 s.
    pub fn new<F, Fut>(source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Token, BoxError>> + Send + 'static,
    {
        Self::of(Box::new(move || {
            let fetching = source();
            Box::pin(async { fetching.await.map_err(TokenError::source_failed) })
        }))
    }

    /// Creates the tokens of OAuth client credentials, which are sent with `client`.
    pub fn client_credentials<S, B, R>(client: S, credentials: ClientCredentials) -> Self
    where
        S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Send + 'static,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        let credentials = Arc::new(credentials);
        Self::of(Box::new(move || {
            Box::pin(oauth::fetch(client.clone(), Arc::clone(&credentials)))
        }))
    }

    fn of(source: Source) -> Self {
        let cache = Mutex::default();
        Self(Arc::new(Inner { source, cache }))
    }

    /// The token for a call now, or the fetch to wait for. Begins one if it is time to.
    pub(super) fn access(&self) -> Access {
        let now = Instant::now();
        let mut cache = self.0.lock();
        match cache.state.next(now) {
            Next::Use(token) => Access::Token(token),
            Next::UseAndRefresh(token) => {
                // A task drives it; this call does not wait.
                drop(self.refresh(&mut cache, now));
                Access::Token(token)
            }
            Next::Refresh => Access::Wait(self.refresh(&mut cache, now)),
            Next::Refused(denied) => Access::Refused(denied),
        }
    }

    /// Notes that the provider refused a token.
    pub(super) fn refuse(&self, token: &HeldToken) {
        self.0.lock().state.refuse(token, Instant::now());
    }

    /// The fetch in flight, or a new one.
    fn refresh(&self, cache: &mut Cache, now: Instant) -> Refresh {
        if let Some(refresh) = &cache.refresh {
            return refresh.clone();
        }
        // It must not hold what holds it.
        let inner = Arc::downgrade(&self.0);
        let refresh = refresh(inner, now).boxed().shared();
        // The calls that wait may all leave.
        tokio::spawn(refresh.clone());
        cache.refresh = Some(refresh.clone());
        refresh
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Cache> {
        // No user code runs while it is locked.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn refresh(inner: Weak<Inner>, started_at: Instant) -> Result<HeldToken, Denied> {
    let fetched = fetch(&inner).await;
    let now = Instant::now();
    let Some(inner) = inner.upgrade() else {
        return Err(Denied::new(TokenError::cancelled(), Duration::ZERO));
    };
    let mut cache = inner.lock();
    cache.refresh = None;
    match fetched {
        Ok((token, expires_in)) => Ok(cache.state.refreshed(token, started_at, expires_in)),
        Err(error) => Err(cache.state.failed(error, now)),
    }
}

async fn fetch(inner: &Weak<Inner>) -> Result<(HeaderValue, Option<Duration>), TokenError> {
    let fetching = async {
        let source = inner.upgrade().map(|inner| (inner.source)());
        source.ok_or_else(TokenError::cancelled)?.await
    };
    // A source that panics must not end all calls that wait for it.
    let fetching = AssertUnwindSafe(fetching).catch_unwind();
    let fetched = timeout(FETCH_TIMEOUT, fetching).await;
    let Ok(fetched) = fetched else {
        return Err(TokenError::timed_out(FETCH_TIMEOUT));
    };
    let token = fetched.unwrap_or_else(|_| Err(TokenError::panicked()))?;
    let header = bearer(&token.token).map_err(|_| TokenError::malformed())?;
    Ok((header, token.expires_in))
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}
