//! Several targets, of which each branch of a call goes to one.
//!
//! A target is a service with layers of its own: its circuit breaker, its rate limit, its bulkhead, its credential. Before a
//! call is sent, the pool asks the target that its policy picks whether these would admit the call, and looks at another one
//! only if they would not. An open circuit or a limit that is used up so costs neither an attempt nor a wait.
//!
//! Changes make a new list of targets; a call picks from the list of the moment, and holds its target to its end. Taking the
//! list costs a read lock and a reference count. No lock is held while code of a target or a closure runs.

mod choose;
mod dispatch;
mod error;
mod ewma;
mod load;
mod members;
mod pick;
mod rendezvous;
mod route;
mod set;
mod smooth;
mod standing;
mod stats;
mod target;
mod turns;

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use tokio::time::Instant;
use tower_llm_core::ConfigError;

use self::members::{Members, Slot};
pub use self::{
    dispatch::{Dispatch, Routed},
    error::NoTarget,
    load::LoadGuard,
    pick::Pick,
    route::{Route, RouteBranches},
    stats::TargetStats,
    target::Target,
};
use crate::sync::RwLock;

/// A set of [targets](Target) that calls are spread over, and a handle on it: clones share it, and it can be changed while
/// calls run.
///
/// [`FanoutLayer::across`](crate::FanoutLayer::across) makes the service. Each branch of a call goes to a target that the
/// call has not tried, so that a retry goes elsewhere; with one target, to that one.
///
/// # If a target refuses
///
/// A target may refuse a call that it would have admitted a moment before. Nothing was sent then, so it uses up no attempt: the
/// next target is tried, each at most once, also for a call that may be sent only once.
///
/// # If no target can
///
/// A call that no target would admit at once is refused at once, with [`NoTarget`] and the time until the first one could. A
/// branch does not queue at a target either, even if it is the last one that was not tried: what all targets together
/// cannot take is the caller's to wait for, or to give up. In a pool of one target, calls go there in any case and queue as its
/// layers say.
///
/// ```
/// use tower::{Service, ServiceExt, service_fn};
/// use tower_llm_core::{Availability, Call, Described, Refusal, Unary};
/// use tower_llm_fanout::{FanoutLayer, NoTarget, Pick, Pool, Target};
///
/// # #[derive(Clone)]
/// # struct Prompt;
/// # impl Described for Prompt {
/// #     fn call(&self) -> Option<std::borrow::Cow<'_, Call>> {
/// #         None
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_llm_core::BoxError> {
/// let dead = |_: Prompt| async { Err::<&str, _>(std::io::Error::other("connection refused")) };
/// let live = |_: Prompt| async { Ok::<_, std::io::Error>("answer") };
/// let pool = Pool::builder()
///     .pick(Pick::in_order())
///     .target(Target::new("a", tower::util::BoxCloneSyncService::new(service_fn(dead))))
///     .target(Target::new("b", tower::util::BoxCloneSyncService::new(service_fn(live))))
///     .build()?;
/// let model = FanoutLayer::failover(2).watch(Unary).build()?.across(&pool);
/// assert_eq!(model.clone().oneshot(Prompt).await?, "answer");
/// assert_eq!(pool.stats()[0].failures, 1);
///
/// // Nothing is sent if no target can take the call.
/// pool.remove("a");
/// pool.remove("b");
/// let refused = model.oneshot(Prompt).await.unwrap_err();
/// assert!(refused.is::<NoTarget>() && Refusal::find(&*refused).is_some());
/// # Ok(())
/// # }
/// ```
pub struct Pool<S>(Arc<Shared<S>>);

struct Shared<S> {
    pick: Pick,
    // A std lock: it is held to read or replace the list, and never while other code runs.
    members: RwLock<Arc<Members<S>>>,
}

/// Chooses the targets of a [`Pool`] and how it picks among them.
#[must_use = "a builder does nothing until it is built"]
pub struct PoolBuilder<S> {
    pick: Pick,
    targets: Vec<Target<S>>,
}

// === impl Pool ===

impl<S> Pool<S> {
    /// Starts a pool that picks by [`Pick::round_robin`].
    pub const fn builder() -> PoolBuilder<S> {
        PoolBuilder {
            pick: Pick::round_robin(),
            targets: Vec::new(),
        }
    }

    /// Adds a target. Calls that are made from now on may go there.
    ///
    /// # Errors
    ///
    /// If the pool has a target of that name, the weight is zero, or the price is not a number of zero or more.
    pub fn add(&self, target: Target<S>) -> Result<(), ConfigError> {
        target.check()?;
        self.change(|slots| {
            let mut names = slots.iter().map(|slot| &slot.member.name);
            if names.any(|name| name == target.name()) {
                return Err(duplicate(target.name()));
            }
            slots.push(target.into_slot());
            Ok(())
        })
    }

    /// Takes a target out; returns whether there was one of that name. Calls in flight go on.
    #[expect(
        clippy::must_use_candidate,
        reason = "it is called for what it changes"
    )]
    pub fn remove(&self, name: &str) -> bool {
        self.change(|slots| {
            let position = slots.iter().position(|slot| *slot.member.name == *name);
            position.map(|position| slots.remove(position))
        })
        .is_some()
    }

    /// Changes the weight of a target; returns whether there is one of that name.
    ///
    /// # Errors
    ///
    /// If the weight is zero: [remove](Self::remove) the target instead.
    pub fn set_weight(&self, name: &str, weight: u32) -> Result<bool, ConfigError> {
        target::check_weight(weight)?;
        let set = self.change(|slots| {
            let mut slots = slots.iter_mut();
            let slot = slots.find(|slot| *slot.member.name == *name)?;
            slot.candidate.entrant.weight = weight;
            Some(())
        });
        Ok(set.is_some())
    }

    /// Changes the priority of a target; returns whether there is one of that name.
    #[expect(
        clippy::must_use_candidate,
        reason = "it is called for what it changes"
    )]
    pub fn set_priority(&self, name: &str, priority: u32) -> bool {
        let set = self.change(|slots| {
            let mut slots = slots.iter_mut();
            slots.find(|slot| *slot.member.name == *name)?.priority = priority;
            Some(())
        });
        set.is_some()
    }

    /// What its targets have done and how they stand, by priority and in the order in which they were added.
    #[must_use]
    pub fn stats(&self) -> Vec<TargetStats> {
        let slots: Vec<_> = self.members().slots().collect();
        stats::of(&slots, Instant::now())
    }

    pub(crate) fn members(&self) -> Arc<Members<S>> {
        let members = self.0.members.read();
        Arc::clone(&members.unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn policy(&self) -> &Pick {
        &self.0.pick
    }

    /// Changes the list of targets.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Slot<S>>) -> T) -> T {
        let mut members = self
            .0
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut slots = members.slots().collect();
        let changed = change(&mut slots);
        let before = Arc::clone(&members);
        *members = Arc::new(Members::new(slots, Some(&before)));
        drop(members);
        // A target that was taken out is dropped here, without the lock.
        drop(before);
        changed
    }
}

fn duplicate(name: &str) -> ConfigError {
    ConfigError::new("target", name, "the pool has another target of that name")
}

// === impl PoolBuilder ===

impl<S> PoolBuilder<S> {
    /// Sets how a target is picked.
    pub fn pick(mut self, pick: Pick) -> Self {
        self.pick = pick;
        self
    }

    /// Adds a target.
    pub fn target(mut self, target: Target<S>) -> Self {
        self.targets.push(target);
        self
    }

    /// Adds targets.
    pub fn targets(mut self, targets: impl IntoIterator<Item = Target<S>>) -> Self {
        self.targets.extend(targets);
        self
    }

    /// Builds the pool.
    ///
    /// # Errors
    ///
    /// If there is no target, two have the same name, a weight is zero, or a price is not a number of zero or more.
    pub fn build(self) -> Result<Pool<S>, ConfigError> {
        ConfigError::check_nonzero("targets", self.targets.len())?;
        let pool = Pool(Arc::new(Shared {
            pick: self.pick,
            members: RwLock::new(Arc::new(Members::new(Vec::new(), None))),
        }));
        self.targets
            .into_iter()
            .try_for_each(|target| pool.add(target))?;
        Ok(pool)
    }
}

impl<S> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members();
        let names: Vec<_> = members.iter().map(|member| &member.name).collect();
        f.debug_struct("Pool")
            .field("pick", &self.0.pick)
            .field("targets", &names)
            .finish()
    }
}

impl<S> fmt::Debug for PoolBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("pick", &self.pick)
            .field("targets", &self.targets)
            .finish()
    }
}

/// What the models of [`loom`](crate::loom) look at.
#[cfg(all(test, fanout_loom))]
pub(crate) mod model {
    use super::{Arc, Instant, Pool, pick::Asked, target::Member};

    pub(crate) use super::{load::Load, set::Set, standing::Standing, turns::Turns};

    /// The target that a call goes to now.
    pub(crate) fn pick<S>(pool: &Pool<S>, now: Instant) -> Option<Arc<Member<S>>> {
        let asked = Asked {
            streamed: false,
            key: None,
            now,
        };
        let members = pool.members();
        let picked = members.pick(pool.policy(), &asked, |_| false, |_| Some(()));
        picked.map(|(member, ())| Arc::clone(member))
    }
}
