//! The scripts, and what they are asked.

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
use tower_llm_core::{ConfigError, Keyed};
use tower_llm_redis::{Arg, Redis, Script, StoreError};

use super::settler::{Job, Settler};
use crate::{
    cell::Cell,
    lease::{Back, Grant},
    meter::Kind,
    store::{Away, Claim, Leasing, Settlement, Stands, Store, Taking, Terms, Verdict},
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
    /// Tells this process' ids from those of others.
    next_id: AtomicU64,
}

/// The scripts of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Scripts {
    redis: Redis,
    /// What all keys begin with: the hash tag.
    prefix: Arc<str>,
    process: u64,
    hold_micros: u64,
}

impl RedisStore {
    pub(crate) fn start(redis: Redis, name: &str, hold_for: Duration) -> Result<Self, ConfigError> {
        let scripts = Scripts {
            redis,
            prefix: format!("{{tower-llm:{name}}}:limit:").into(),
            // The hasher's keys are random: so is what it makes of anything.
            process: RandomState::new().hash_one(name),
            hold_micros: micros(hold_for),
        };
        Ok(Self {
            settler: Settler::start(scripts.clone())?,
            scripts,
            next_id: AtomicU64::new(0),
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

    fn settle(&self, settlement: Settlement) {
        self.settler.send(Job::Settle(settlement));
    }

    fn lease(&self, terms: Arc<[Terms]>) -> Leasing {
        let scripts = self.scripts.clone();
        Box::pin(async move { Ok(scripts.lease(&terms).await?) })
    }

    fn forsake(&self, leasing: Leasing, terms: Arc<[Terms]>) {
        self.settler.send(Job::Forsaken(leasing, terms));
    }

    fn adjust(&self, terms: Vec<Terms>) {
        self.settler.send(Job::Adjust(terms));
    }

    fn clear_at(&self, cell: Weak<Keyed<Cell>>, at: Instant) {
        self.settler.send(Job::ClearAt(cell, at));
    }
}

impl Scripts {
    async fn take(&self, id: u64, claims: &[Claim]) -> Result<Verdict<Stands>, StoreError> {
        let amounts = claims.iter().flat_map(|claim| [claim.room, claim.amount]);
        let args = self.args(id, claims.iter(), amounts);
        let reply = self
            .redis
            .run(&TAKE, self.keys(claims.iter()), args)
            .await?;
        Ok(verdict(&reply.into_integers()?, |remaining, full_in| {
            Stands {
                remaining: remaining.try_into().unwrap_or_default(),
                full_in: from_micros(full_in),
            }
        }))
    }

    pub(super) async fn lease(&self, terms: &[Terms]) -> Result<Verdict<Grant>, StoreError> {
        let amounts = terms.iter().flat_map(|terms| {
            let Back { amount, mark, .. } = terms.back;
            [terms.claim.room, terms.want, amount, mark, terms.charge]
        });
        let claims = terms.iter().map(|terms| &terms.claim);
        let args = self.args(0, claims.clone(), amounts);
        let reply = self.redis.run(&LEASE, self.keys(claims), args).await?;
        Ok(verdict(&reply.into_integers()?, |amount, mark| Grant {
            amount: amount.try_into().unwrap_or_default(),
            mark: mark.try_into().unwrap_or_default(),
        }))
    }

    /// Settles a call; `again` if that may have been done already.
    pub(super) async fn settle(
        &self,
        settlement: &Settlement,
        again: bool,
    ) -> Result<(), StoreError> {
        let Settlement { id, claims, used } = settlement;
        let amounts = claims
            .iter()
            .zip(used)
            .flat_map(|(claim, used)| [claim.amount, *used])
            .chain([u64::from(again)]);
        let args = self.args(*id, claims.iter(), amounts);
        self.redis
            .run(&SETTLE, self.keys(claims.iter()), args)
            .await
            .map(drop)
    }

    fn keys<'a>(&self, claims: impl Iterator<Item = &'a Claim>) -> Vec<String> {
        let prefix = &self.prefix;
        let keys = claims.flat_map(|claim| {
            let key = format!("{prefix}{}", claim.key);
            // Not behind the key, which may be of anything: of a model named so, for one.
            let holds = format!("{prefix}holds:{}", claim.key);
            let marks = format!("{prefix}marks:{}", claim.key);
            [key, holds, marks]
        });
        keys.collect()
    }

    fn args<'a>(
        &self,
        id: u64,
        claims: impl Iterator<Item = &'a Claim>,
        amounts: impl Iterator<Item = u64>,
    ) -> Vec<Arg> {
        let id = format!("{:016x}-{id}", self.process);
        let mut args = vec![id.into(), self.hold_micros.into()];
        for claim in claims {
            args.extend(limit(claim).map(Arg::from));
        }
        args.extend(amounts.map(Arg::from));
        args
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

/// What a script has answered: a number that says which, and then numbers in pairs.
fn verdict<T>(reply: &[i64], read: impl Fn(i64, i64) -> T) -> Verdict<T> {
    match *reply {
        [1, ref limits @ ..] => {
            let pairs = limits.chunks_exact(2);
            Verdict::Granted(pairs.map(|pair| read(pair[0], pair[1])).collect())
        }
        [0, limit, wait] => Verdict::Denied {
            limit: limit.try_into().unwrap_or_default(),
            wait: from_micros(wait),
        },
        // Never: another process has set the limit lower than this one knows.
        _ => Verdict::Denied {
            limit: reply
                .get(1)
                .map_or(0, |&limit| limit.try_into().unwrap_or_default()),
            wait: Duration::MAX,
        },
    }
}

impl From<StoreError> for Away {
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
    use crate::{calendar::Today, limit::Rate, meter::Now};

    struct Fixture {
        scripts: Scripts,
        server: RedisServer,
    }

    impl Fixture {
        async fn start() -> Self {
            let server = RedisServer::start().await.unwrap();
            let redis = Redis::builder(server.url()).connect().await.unwrap();
            let scripts = Scripts {
                redis,
                prefix: "{test}:".into(),
                process: 7,
                hold_micros: 900_000_000,
            };
            Self { scripts, server }
        }

        async fn takes(&self, id: u64, claim: &Claim) -> bool {
            let claims = std::slice::from_ref(claim);
            let verdict = self.scripts.take(id, claims).await.unwrap();
            matches!(verdict, Verdict::Granted(_))
        }

        async fn settle(&self, id: u64, claim: &Claim, used: u64) {
            let settlement = Settlement {
                id,
                claims: [claim.clone()].into(),
                used: vec![used],
            };
            self.scripts.settle(&settlement, false).await.unwrap();
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
    async fn who_ends_after_midnight_does_not_end_the_new_day() {
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
    async fn a_debt_however_large_is_told_as_a_time() {
        let fixture = Fixture::start().await;
        for kind in [Kind::Bucket, Kind::Wide, Kind::Day] {
            let mut claim = claim(kind, 1, 1);
            claim.key = format!("{kind:?}");
            claim.rate = Rate::new(1, 1, Duration::from_secs(31 * 86_400));
            assert!(fixture.takes(1, &claim).await);
            fixture.settle(1, &claim, 1 << 52).await;
            let claims = std::slice::from_ref(&claim);
            let verdict = fixture.scripts.take(2, claims).await.unwrap();
            let Verdict::Denied { wait, .. } = verdict else {
                panic!("{kind:?}: {verdict:?}");
            };
            assert!(!wait.is_zero() || kind == Kind::Day, "{kind:?}");
        }
    }
}
