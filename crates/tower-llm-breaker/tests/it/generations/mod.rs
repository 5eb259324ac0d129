//! From open to closed: results of calls admitted earlier, probes, of which none may be lost, and the ramp.

mod first_token;
mod late;
mod lost;
mod probes;
mod ramp;

use std::{
    collections::VecDeque,
    future::{Future, pending},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use crate::support::{
    CONTENT, DONE, ERROR, FAILED, MINUTE, MS, PATIENCE, ROLE, Request, SECOND, Says, Scripted,
    Staged, Tested, WELL, ask, ask_of, builder, counts, model, open, stats, streaming,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
    time::{Instant, advance, timeout},
};
use tokio_test::{assert_ready_err, assert_ready_ok};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_breaker::{BreakerBuilder, BreakerLayer, CircuitId, Force, Reason, State};
use tower_llm_core::{BoxError, Call, KeyBy, Operation, Provider};
use tower_llm_testkit::mock::start;

const NEUTRAL: Says = Says::Status(400);
const OPEN_FOR: Duration = Duration::from_secs(30);

/// Opened by one failure, for 30 s each time.
fn touchy() -> BreakerBuilder {
    builder()
        .failure_threshold(1)
        .open_for(OPEN_FOR)
        .advanced(|set| set.open_factor(1.0))
}

async fn half_open(staged: &mut Staged) {
    staged.tell(FAILED);
    advance(OPEN_FOR).await;
    assert_eq!(staged.state(), State::HalfOpen);
}

/// A half-open circuit: the next call is its probe.
async fn probing<R>(
    layer: &BreakerLayer,
    inner: R,
) -> tower_llm_breaker::Breaker<R, tower_llm_core::HttpBody> {
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    layer.layer(inner)
}
