//! The scripts and their arguments.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::ConfigError;
use tower_llm_redis::{Arg, Redis, Script, StoreError};

use super::settler::{Job, Settler};
use crate::{
    meter::Kind,
    shared::backend::{
        Claim, LeaseHolder, Leasing, Settlement, Store, StoreUnavailable, StoredStatus, Taking,
        Terms, Verdict,
    },
    shared::lease::{Back, Grant},
};

static TAKE: Script = Script::new(concat!(
    include_str!("meters.lua"),
    include_str!("take.lua")
));
static LEASE: Script = Script::new(concat!(
    include_str!("meters.lua"),
    include_str!("lease.lua")
));
static SETTLE: Script = Script::new(concat!(
    include_str!("meters.lua"),
    include_str!("settle.lua")
));

/// Limits in Redis.
pub(crate) struct RedisStore {
    scripts: Scripts,
    settler: Settler,
    /// Distinguishes the ids of this process from those of others.
    next_id: AtomicU64,
    /// Held by each settlement that is on its way.
    settling: Arc<()>,
}

/// The scripts of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Scripts {
    redis: Redis,
    /// The prefix of all keys: the hash tag.
    prefix: Arc<str>,
    process: u64,
    hold_for: Duration,
}

impl RedisStore {
    pub(crate) fn start(redis: Redis, name: &str, hold_for: Duration) -> Result<Self, ConfigError> {
        let scripts = Scripts {
            redis,
            prefix: format!("{{tower-llm:{name}}}:limit:").into(),
            // The hasher has random keys, so its output is random.
            process: RandomState::new().hash_one(name),
            hold_for,
        };
        Ok(Self {
            settler: Settler::start(scripts.clone())?,
            scripts,
            next_id: AtomicU64::new(0),
            settling: Arc::new(()),
        })
    }
}

impl Store for RedisStore {
    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn take(&self, id: u64, claims: Arc<[Claim]>) -> Taking {
        let scripts = self.scripts.clone();
        Box::pin(async move { Ok(scripts.take(id, &claims).await?) })
    }

    fn settle(&self, mut settlement: Settlement) {
        settlement.on_its_way = Some(Arc::clone(&self.settling));
        self.settler.send(Job::Settle(settlement));
    }

    fn is_settling(&self) -> bool {
        Arc::strong_count(&self.settling) > 1
    }

    fn lease(&self, terms: Arc<[Terms]>) -> Leasing {
        let scripts = self.scripts.clone();
        Box::pin(async move { Ok(scripts.lease(&terms).await?) })
    }

    fn drop_request(&self, leasing: Leasing, terms: Arc<[Terms]>) {
        self.settler.await_dropped(leasing, terms);
    }

    fn adjust(&self, terms: Vec<Terms>) {
        if !terms.iter().all(Terms::is_empty) {
            self.settler.send(Job::Adjust(terms));
        }
    }

    fn clear_at(&self, key: Weak<dyn LeaseHolder>, at: Instant) -> bool {
        self.settler.send(Job::ClearAt(key, at))
    }

    fn unsettled(&self) -> u64 {
        self.settler.unsettled()
    }
}

impl Scripts {
    async fn take(&self, id: u64, claims: &[Claim]) -> Result<Verdict<StoredStatus>, StoreError> {
        let amounts = claims.iter().flat_map(|claim| [claim.room, claim.amount]);
        let args = self.args(id, claims.iter(), amounts);
        let reply = self
            .redis
            .run(&TAKE, self.keys(claims.iter()), args)
            .await?;
        Ok(verdict(&reply.into_integers()?, |remaining, full_in| {
            StoredStatus {
                remaining: remaining.try_into().unwrap_or_default(),
                full_in: from_micros(full_in),
            }
        }))
    }

    pub(super) async fn lease(&self, terms: &[Terms]) -> Result<Verdict<Grant>, StoreError> {
        let amounts = terms.iter().flat_map(|terms| {
            let Back { amount, epoch, .. } = terms.back;
            [terms.claim.room, terms.want, amount, epoch, terms.charge]
        });
        let claims = terms.iter().map(|terms| &terms.claim);
        let args = self.args(0, claims.clone(), amounts);
        let reply = self.redis.run(&LEASE, self.keys(claims), args).await?;
        Ok(verdict(&reply.into_integers()?, |amount, epoch| Grant {
            amount: amount.try_into().unwrap_or_default(),
            epoch: epoch.try_into().unwrap_or_default(),
        }))
    }

    /// Settles calls; `again` if that may have been done already. Returns the number of calls of which it is not known
    /// whether they are settled.
    pub(super) async fn settle(
        &self,
        settlements: &[Settlement],
        again: bool,
    ) -> Result<u64, StoreError> {
        let now = Instant::now();
        let mut args = vec![micros(self.hold_for).into()];
        for settlement in settlements {
            let Settlement {
                id,
                since,
                claims,
                used,
                ..
            } = settlement;
            // A reservation that is not held and cannot have expired was settled before.
            let may_run_out = now.saturating_duration_since(*since) >= self.hold_for / 2;
            args.push(self.id(*id).into());
            args.push((u32::from(again) + u32::from(again && may_run_out)).into());
            args.push(u64::try_from(claims.len()).unwrap_or_default().into());
            args.extend(claims.iter().flat_map(limit).map(Arg::from));
            let amounts = claims.iter().zip(used);
            let amounts = amounts.flat_map(|(claim, used)| [claim.amount, *used]);
            args.extend(amounts.map(Arg::from));
        }
        let claims = settlements.iter().flat_map(|of_call| &*of_call.claims);
        let reply = self.redis.run(&SETTLE, self.keys(claims), args).await?;
        Ok(reply.into_integer()?.try_into().unwrap_or_default())
    }

    fn keys<'a>(&self, claims: impl Iterator<Item = &'a Claim>) -> Vec<String> {
        let prefix = &self.prefix;
        let keys = claims.flat_map(|claim| {
            let key = format!("{prefix}{}", claim.key);
            // Not after the key, which may contain anything.
            let holds = format!("{prefix}holds:{}", claim.key);
            let epochs = format!("{prefix}epochs:{}", claim.key);
            [key, holds, epochs]
        });
        keys.collect()
    }

    fn args<'a>(
        &self,
        id: u64,
        claims: impl Iterator<Item = &'a Claim>,
        amounts: impl Iterator<Item = u64>,
    ) -> Vec<Arg> {
        let mut args = vec![self.id(id).into(), micros(self.hold_for).into()];
        for claim in claims {
            args.extend(limit(claim).map(Arg::from));
        }
        args.extend(amounts.map(Arg::from));
        args
    }

    /// An id that is unique across processes.
    fn id(&self, id: u64) -> String {
        format!("{:016x}-{id}", self.process)
    }
}

/// The fields of one limit, as `meters.lua` reads them.
fn limit(claim: &Claim) -> [u64; 7] {
    let Claim {
        kind,
        rate,
        now,
        returns,
        ..
    } = claim;
    let kind = match kind {
        Kind::Bucket => 0,
        Kind::Window | Kind::Wide => 1,
        Kind::Day => 2,
    };
    let left_nanos = now.today.ends_nanos.saturating_sub(now.nanos);
    [
        kind,
        rate.amount,
        rate.capacity,
        rate.period_nanos.div_ceil(1_000),
        now.today.number.into(),
        left_nanos.div_ceil(1_000),
        u64::from(*returns),
    ]
}

/// Reads the reply of a script: a code, and then pairs of numbers.
fn verdict<T>(reply: &[i64], read: impl Fn(i64, i64) -> T) -> Verdict<T> {
    match *reply {
        [1, ref limits @ ..] => {
            let pairs = limits.chunks_exact(2);
            Verdict::Granted(pairs.map(|pair| read(pair[0], pair[1])).collect())
        }
        [0, limit, wait] => Verdict::Blocked {
            limit: limit.try_into().unwrap_or_default(),
            wait: from_micros(wait),
        },
        // Never admitted: another process has a lower limit than this one.
        _ => Verdict::Blocked {
            limit: reply
                .get(1)
                .map_or(0, |&limit| limit.try_into().unwrap_or_default()),
            wait: Duration::MAX,
        },
    }
}

impl From<StoreError> for StoreUnavailable {
    fn from(error: StoreError) -> Self {
        Self {
            may_have_run: error.may_have_run(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn from_micros(micros: i64) -> Duration {
    Duration::from_micros(micros.try_into().unwrap_or_default())
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("scripts", &self.scripts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tower_llm_testkit::redis::RedisServer;

    use super::*;
    use crate::meter::{Now, Rate, Today};

    impl Scripts {
        pub(crate) fn of(redis: Redis) -> Self {
            Self {
                redis,
                prefix: "{test}:".into(),
                process: 7,
                hold_for: Duration::from_secs(900),
            }
        }
    }

    struct Fixture {
        scripts: Scripts,
        server: RedisServer,
    }

    impl Fixture {
        async fn start() -> Self {
            let server = RedisServer::start().await.unwrap();
            let redis = Redis::builder(server.url()).connect().await.unwrap();
            let scripts = Scripts::of(redis);
            Self { scripts, server }
        }

        async fn takes(&self, id: u64, claim: &Claim) -> bool {
            let claims = std::slice::from_ref(claim);
            let verdict = self.scripts.take(id, claims).await.unwrap();
            matches!(verdict, Verdict::Granted(_))
        }

        async fn settle(&self, id: u64, claim: &Claim, used: u64) {
            self.settle_once(id, claim, used, false).await;
        }

        async fn settle_once(&self, id: u64, claim: &Claim, used: u64, again: bool) -> u64 {
            let settlement = Settlement {
                id,
                since: Instant::now(),
                claims: [claim.clone()].into(),
                used: vec![used],
                on_its_way: None,
            };
            self.scripts.settle(&[settlement], again).await.unwrap()
        }
    }

    fn claim(kind: Kind, limit: u64, amount: u64) -> Claim {
        Claim {
            key: "key".to_owned(),
            kind,
            rate: Rate::new(limit, limit, Duration::from_secs(1)),
            now: Now {
                nanos: 0,
                today: Today::default(),
            },
            room: amount.max(1),
            amount,
            returns: true,
        }
    }

    fn on_day(number: u32, left: Duration, claim: Claim) -> Claim {
        let ends_nanos = u64::try_from(left.as_nanos()).unwrap();
        let today = Today { number, ends_nanos };
        let now = Now { nanos: 0, today };
        Claim { now, ..claim }
    }

    #[tokio::test]
    async fn a_call_that_ends_after_midnight_does_not_change_the_new_day() {
        let fixture = Fixture::start().await;
        let day = Duration::from_secs(86_400);
        let before = on_day(100, Duration::from_millis(900), claim(Kind::Day, 10, 1));
        let after = on_day(101, day, claim(Kind::Day, 10, 10));
        assert!(fixture.takes(1, &before).await);
        assert!(fixture.takes(2, &after).await);
        fixture.settle(1, &before, 1).await;
        let left = fixture.server.command(&["PTTL", "{test}:key"]).await;
        let left: i64 = left
            .unwrap()
            .trim_start_matches(':')
            .trim()
            .parse()
            .unwrap();
        assert!(left > 86_000_000, "{left} ms of the day are left");
        assert!(!fixture.takes(3, &after).await);
        assert!(!fixture.takes(4, &before).await, "by a clock that is late");
    }

    #[tokio::test]
    async fn a_reservation_by_a_late_clock_of_a_dead_process_is_refunded() {
        let mut fixture = Fixture::start().await;
        fixture.scripts.hold_for = Duration::from_micros(1);
        let late = on_day(100, Duration::ZERO, claim(Kind::Day, 10, 9));
        let right = on_day(101, Duration::from_secs(86_400), claim(Kind::Day, 10, 1));
        assert!(fixture.takes(1, &right).await);
        assert!(fixture.takes(2, &late).await);
        assert!(
            fixture
                .takes(
                    3,
                    &Claim {
                        room: 10,
                        amount: 10,
                        ..right
                    }
                )
                .await
        );
    }

    #[tokio::test]
    async fn a_settlement_that_arrives_after_its_retry_changes_nothing() {
        let fixture = Fixture::start().await;
        for kind in [Kind::Bucket, Kind::Wide, Kind::Day] {
            let mut claim = on_day(1, Duration::from_secs(86_400), claim(kind, 10, 6));
            claim.key = format!("{kind:?}");
            claim.rate = Rate::new(10, 10, Duration::from_secs(86_400));
            assert!(fixture.takes(1, &claim).await);
            // The server was frozen, and reads the second connection first.
            fixture.settle_once(1, &claim, 4, true).await;
            fixture.settle_once(1, &claim, 4, false).await;
            fixture.settle_once(1, &claim, 4, true).await;
            assert!(fixture.takes(2, &claim).await, "{kind:?}: 4 of 10 are used");
        }
    }

    #[tokio::test]
    async fn an_expired_reservation_is_of_unknown_state_if_there_was_something_to_charge() {
        let mut fixture = Fixture::start().await;
        fixture.scripts.hold_for = Duration::from_micros(1);
        for kind in [Kind::Bucket, Kind::Wide, Kind::Day] {
            let mut claim = on_day(1, Duration::from_secs(86_400), claim(kind, 10, 2));
            claim.key = format!("{kind:?}");
            for (id, used, unknown) in [(1, 0, 0), (2, 1, 1)] {
                assert!(fixture.takes(id, &claim).await);
                // Expires old reservations, and takes nothing.
                claim.amount = 0;
                assert!(fixture.takes(9, &claim).await);
                claim.amount = 2;
                assert_eq!(fixture.settle_once(id, &claim, used, true).await, unknown);
            }
        }
    }

    #[tokio::test]
    async fn calls_of_one_key_are_settled_together_as_if_each_were_alone() {
        let fixture = Fixture::start().await;
        let key = |name: &str| Claim {
            key: name.to_owned(),
            rate: Rate::new(100, 100, Duration::from_secs(86_400)),
            ..claim(Kind::Wide, 100, 30)
        };
        let both: Arc<[Claim]> = [key("one"), key("other")].into();
        let one: Arc<[Claim]> = [key("one")].into();
        let mut settlements = Vec::new();
        for (id, claims, used) in [
            (1, &both, vec![10, 40]),
            (2, &one, vec![0]),
            (3, &one, vec![20]),
        ] {
            fixture.scripts.take(id, claims).await.unwrap();
            let claims = Arc::clone(claims);
            settlements.push(Settlement {
                id,
                since: Instant::now(),
                claims,
                used,
                on_its_way: None,
            });
        }
        fixture.scripts.settle(&settlements, false).await.unwrap();
        for (name, left) in [("one", 70), ("other", 60)] {
            let all = Claim {
                room: left,
                amount: left,
                ..key(name)
            };
            let more = Claim {
                room: 1,
                amount: 1,
                ..key(name)
            };
            assert!(fixture.takes(4, &all).await, "{left} of {name}");
            assert!(!fixture.takes(5, &more).await, "{left} of {name}");
        }
    }
}
