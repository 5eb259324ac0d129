//! What every store does, stated once: each statement holds for a server, for a Cluster, and for the store in memory that
//! other tests use in their place.

use std::{slice, sync::Arc, time::Duration};

use tokio::time::sleep;
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::{RedisCluster, RedisServer};

use super::{
    backend::{Claim, Holding, Store, StoredStatus, Terms, Verdict},
    lease::{Back, Grant},
    memory::MemoryStore,
    redis::RedisStore,
};
use crate::{
    meter::{Kind, Now, Rate, Today, nanos},
    tier::Tier,
};

const DAY: Duration = Duration::from_secs(86_400);
const KINDS: [Kind; 3] = [Kind::Bucket, Kind::Wide, Kind::Day];

/// A store, and the statement that it is tested for.
struct Subject {
    store: Arc<dyn Store>,
    statement: &'static str,
}

/// Each statement as a part of one test for each store.
macro_rules! statements {
    ($($statement:ident),* $(,)?) => {
        async fn check(store: Arc<dyn Store>) {
            $(
                let statement = stringify!($statement);
                println!("{statement}");
                $statement(&Subject { store: Arc::clone(&store), statement }).await;
            )*
        }
    };
}

statements!(
    all_limits_are_taken_or_none,
    the_longest_wait_and_its_limit_are_reported,
    more_than_the_capacity_is_never_granted,
    a_call_that_uses_nothing_of_a_limit_is_granted_in_debt,
    what_a_call_did_not_use_is_available_again,
    use_beyond_the_claim_is_charged,
    what_remains_is_reported,
    a_claim_that_was_not_granted_is_settled_without_effect,
    a_debt_of_any_size_is_reported_as_a_time,
    a_charge_by_a_late_clock_is_refunded_to_its_day,
    a_lease_is_what_is_needed_or_half_of_what_is_left,
    the_rest_of_a_lease_is_available_again,
    a_blocked_lease_still_takes_back_and_charges,
);

#[tokio::test]
async fn in_memory() {
    check(Arc::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn on_one_server() {
    let server = RedisServer::start().await.unwrap();
    check(in_redis(server.url()).await).await;
}

#[tokio::test]
async fn on_a_cluster_of_three_nodes() {
    let cluster = RedisCluster::start(3).await.unwrap();
    check(in_redis(cluster.url()).await).await;
}

async fn in_redis(url: String) -> Arc<dyn Store> {
    let patience = Duration::from_secs(8);
    let redis = Redis::builder(url).command_timeout(patience).connect();
    let redis = redis.await.expect("the server was started for this test");
    Arc::new(RedisStore::start(redis, "conformance", DAY).expect("the settings are valid"))
}

// === statements ===

async fn all_limits_are_taken_or_none(subject: &Subject) {
    for kind in KINDS {
        let both = |one, other| {
            let one = subject.claim("one", kind, 10, one);
            [one, subject.claim("other", kind, 10, other)]
        };
        subject.take(&both(6, 6)).await;
        assert_eq!(subject.blocked(&both(4, 5)).await.0, 1, "{kind:?}");
        subject.take(&both(4, 4)).await;
        assert_eq!(subject.blocked(&both(1, 0)).await.0, 0, "{kind:?}");
    }
}

async fn the_longest_wait_and_its_limit_are_reported(subject: &Subject) {
    let of_period = |name, seconds, amount| {
        let mut claim = subject.claim(name, Kind::Bucket, 10, amount);
        claim.rate = Rate::new(10, 10, Duration::from_secs(seconds));
        claim
    };
    let all = |amount| {
        [("short", 1_000), ("long", 3_000), ("middle", 2_000)]
            .map(|(name, seconds)| of_period(name, seconds, amount))
    };
    subject.take(&all(10)).await;
    let (limit, wait) = subject.blocked(&all(10)).await;
    assert_eq!(limit, 1);
    let expected = Duration::from_secs(2_990)..=Duration::from_secs(3_001);
    assert!(expected.contains(&wait), "{wait:?}");
}

async fn more_than_the_capacity_is_never_granted(subject: &Subject) {
    for kind in KINDS {
        let claims = [1, 11].map(|amount| {
            let name = format!("limit of {amount}");
            subject.claim(&name, kind, 10, amount)
        });
        assert_eq!(
            subject.blocked(&claims).await,
            (1, Duration::MAX),
            "{kind:?}"
        );
    }
}

async fn a_call_that_uses_nothing_of_a_limit_is_granted_in_debt(subject: &Subject) {
    for kind in KINDS {
        let claim = |amount| subject.claim("key", kind, 10, amount);
        let held = subject.hold(&[claim(10)]).await;
        subject.settle(held, &[15]).await;
        let none = Claim {
            room: 0,
            ..claim(0)
        };
        subject.take(&[none]).await;
        // A call that is charged when it has ended waits until the debt is paid off.
        subject.blocked(&[claim(0)]).await;
    }
}

async fn what_a_call_did_not_use_is_available_again(subject: &Subject) {
    for kind in KINDS {
        let claim = |amount| subject.claim("key", kind, 10, amount);
        let held = subject.hold(&[claim(9)]).await;
        subject.settle(held, &[2]).await;
        subject.exactly_left(&claim(8)).await;
    }
}

async fn use_beyond_the_claim_is_charged(subject: &Subject) {
    for kind in KINDS {
        let claim = |amount| subject.claim("key", kind, 10, amount);
        let held = subject.hold(&[claim(3)]).await;
        subject.settle(held, &[7]).await;
        subject.exactly_left(&claim(3)).await;
    }
}

async fn what_remains_is_reported(subject: &Subject) {
    for kind in KINDS {
        let claims = [subject.claim("key", kind, 10, 4)];
        let mut holding = subject.holding(&claims);
        let Ok(Verdict::Granted(statuses)) = holding.take().await else {
            panic!("nothing else was taken");
        };
        let [StoredStatus { remaining, full_in }] = statuses[..] else {
            panic!("one limit: {statuses:?}");
        };
        assert_eq!(remaining, 6, "{kind:?}");
        assert!(
            full_in > Duration::from_secs(3_600) && full_in <= 2 * DAY,
            "{full_in:?}"
        );
        holding.stored = statuses;
        subject.settle(holding, &[4]).await;
    }
}

async fn a_claim_that_was_not_granted_is_settled_without_effect(subject: &Subject) {
    for kind in KINDS {
        let claim = |amount| subject.claim("key", kind, 10, amount);
        subject.take(&[claim(5)]).await;
        let holding = subject.holding(&[claim(6)]);
        assert!(matches!(holding.take().await, Ok(Verdict::Blocked { .. })));
        subject.settle(holding, &[0]).await;
        subject.exactly_left(&claim(5)).await;
    }
}

async fn a_debt_of_any_size_is_reported_as_a_time(subject: &Subject) {
    for kind in KINDS {
        let mut claim = subject.claim("key", kind, 1, 1);
        claim.rate = Rate::new(1, 1, 31 * DAY);
        let held = subject.hold(slice::from_ref(&claim)).await;
        subject.settle(held, &[1 << 52]).await;
        let (_, wait) = subject.blocked(&[claim]).await;
        assert!(!wait.is_zero(), "{kind:?}");
    }
}

async fn a_charge_by_a_late_clock_is_refunded_to_its_day(subject: &Subject) {
    for used in [0, 4] {
        let on = |number, left, amount| {
            let mut claim = subject.claim(&format!("used {used}"), Kind::Day, 10, amount);
            let ends_nanos = nanos(left);
            claim.now.today = Today { number, ends_nanos };
            claim
        };
        let late = |amount| on(100, Duration::ZERO, amount);
        let right = |amount| on(101, DAY, amount);
        subject.take(&[right(1)]).await;
        let held = subject.hold(&[late(9)]).await;
        subject.blocked(&[right(1)]).await;
        subject.settle(held, &[used]).await;
        subject.exactly_left(&right(9 - used)).await;
    }
}

async fn a_lease_is_what_is_needed_or_half_of_what_is_left(subject: &Subject) {
    for kind in KINDS {
        let key = format!("{kind:?}");
        let claim = |room| subject.claim(&key, kind, 100, room);
        assert_eq!(subject.lease(claim(10), 30, NONE).await.amount, 30);
        assert_eq!(
            subject.lease(claim(10), 60, NONE).await.amount,
            35,
            "{kind:?}"
        );
        assert_eq!(
            subject.lease(claim(30), 40, NONE).await.amount,
            30,
            "{kind:?}"
        );
        subject.exactly_left(&claim(5)).await;
    }
}

async fn the_rest_of_a_lease_is_available_again(subject: &Subject) {
    for kind in KINDS {
        let claim = |room| subject.claim("key", kind, 100, room);
        let Grant { amount, epoch } = subject.lease(claim(10), 40, NONE).await;
        assert_eq!(amount, 40);
        let (amount, tier) = (25, Tier::NONE);
        let back = Back {
            amount,
            epoch,
            tier,
        };
        assert_eq!(subject.lease(claim(1), 0, back).await.amount, 1);
        subject.exactly_left(&claim(100 - 15 - 1)).await;
    }
}

async fn a_blocked_lease_still_takes_back_and_charges(subject: &Subject) {
    for kind in KINDS {
        let claim = |room| subject.claim("key", kind, 100, room);
        let Grant { epoch, .. } = subject.lease(claim(90), 0, NONE).await;
        let (amount, tier) = (30, Tier::NONE);
        let terms = Terms {
            claim: claim(60),
            want: 0,
            back: Back {
                amount,
                epoch,
                tier,
            },
            charge: 20,
        };
        let verdict = subject.store.lease([terms].into()).await;
        assert!(matches!(verdict, Ok(Verdict::Blocked { limit: 0, .. })));
        subject.exactly_left(&claim(100 - 90 + 30 - 20)).await;
    }
}

// === helpers ===

const NONE: Back = Back {
    amount: 0,
    epoch: 0,
    tier: Tier::NONE,
};

impl Subject {
    /// A claim on a limit of so much per day, of a key that no other statement uses.
    fn claim(&self, name: &str, kind: Kind, limit: u64, amount: u64) -> Claim {
        let today = Today {
            number: 100,
            ends_nanos: nanos(DAY),
        };
        Claim {
            key: format!("{}:{name}:{kind:?}", self.statement),
            kind,
            rate: Rate::new(limit, limit, DAY),
            now: Now { nanos: 0, today },
            room: amount.max(1),
            amount,
            returns: true,
        }
    }

    fn holding(&self, claims: &[Claim]) -> Holding {
        Holding::new(Arc::clone(&self.store), claims.into())
    }

    /// Takes the claims, which are granted, until they are settled.
    async fn hold(&self, claims: &[Claim]) -> Holding {
        let holding = self.holding(claims);
        let verdict = holding.take().await;
        assert!(matches!(verdict, Ok(Verdict::Granted(_))), "{verdict:?}");
        holding
    }

    /// The same for calls that never end.
    async fn take(&self, claims: &[Claim]) {
        self.hold(claims).await.release();
    }

    /// Which limit blocks the claims, and for how long.
    async fn blocked(&self, claims: &[Claim]) -> (usize, Duration) {
        let mut holding = self.holding(claims);
        let verdict = holding.take().await;
        holding.release();
        match verdict {
            Ok(Verdict::Blocked { limit, wait }) => (limit, wait),
            other => panic!("{other:?}"),
        }
    }

    /// Settles, and waits until the store has.
    async fn settle(&self, holding: Holding, used: &[u64]) {
        holding.settle(used.iter().copied());
        while self.store.is_settling() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn lease(&self, claim: Claim, want: u64, back: Back) -> Grant {
        let charge = 0;
        let terms = Terms {
            claim,
            want,
            back,
            charge,
        };
        match self.store.lease([terms].into()).await {
            Ok(Verdict::Granted(grants)) => grants[0],
            other => panic!("{other:?}"),
        }
    }

    /// Asserts that exactly what `claim` claims is left.
    async fn exactly_left(&self, claim: &Claim) {
        let more = Claim {
            room: claim.amount + 1,
            ..claim.clone()
        };
        if more.room <= claim.rate.capacity {
            self.blocked(&[more]).await;
        }
        self.take(slice::from_ref(claim)).await;
    }
}
