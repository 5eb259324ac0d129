//! Permits of several keys, with all settings, against a slow and obvious model.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::Wake,
};

use proptest::{collection::vec, option, prelude::*};
use tower_llm_core::Caller;

use super::*;
use crate::Priority;

const KEYS: usize = 3;
const PRIORITIES: [Priority; 3] = [Priority::Interactive, Priority::Normal, Priority::Batch];

#[derive(Clone, Debug)]
enum Step {
    TryAcquire(usize, u32),
    Join(usize, Wanted),
    /// Polls the ticket of that index, among those that are held.
    Poll(usize),
    /// Drops it.
    Leave(usize),
    /// Gives back the permit of that index, among those that are held.
    Release(usize),
    SetLimit(usize, usize),
    SetGlobalLimit(usize),
}

fn wanted(weights: u32) -> impl Strategy<Value = Wanted> {
    let tenant = (0..3_usize, option::of(0..3_usize)).prop_map(|(priority, caller)| Tenant {
        priority: PRIORITIES[priority],
        caller: caller.map(|caller| Caller::named(["a", "b", "c"][caller])),
    });
    let most = prop_oneof![0..4_usize, Just(usize::MAX)];
    (1..=weights, tenant, most).prop_map(|(weight, tenant, max_waiting)| Wanted {
        weight,
        tenant,
        max_waiting,
    })
}

fn step(weights: u32) -> impl Strategy<Value = Step> {
    let key = || 0..KEYS;
    prop_oneof![
        3 => (key(), 1..=weights).prop_map(|(key, weight)| Step::TryAcquire(key, weight)),
        6 => (key(), wanted(weights)).prop_map(|(key, wanted)| Step::Join(key, wanted)),
        4 => (0..8_usize).prop_map(Step::Poll),
        2 => (0..8_usize).prop_map(Step::Leave),
        6 => (0..8_usize).prop_map(Step::Release),
        1 => (key(), 1..7_usize).prop_map(|(key, limit)| Step::SetLimit(key, limit)),
        1 => (1..9_usize).prop_map(Step::SetGlobalLimit),
    ]
}

#[derive(Clone, Debug)]
struct Waiting {
    ticket: u64,
    key: usize,
    wanted: Wanted,
}

/// A limit and how much of it is in use.
#[derive(Clone, Copy, Debug)]
struct Count {
    limit: usize,
    calls: usize,
    weight: u64,
}

impl Count {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            calls: 0,
            weight: 0,
        }
    }

    fn has_room(&self, weight: u32) -> bool {
        self.weight == 0 || self.weight + u64::from(weight) <= self.limit as u64
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.weight as usize)
    }

    fn add(&mut self, weight: u32) {
        self.calls += 1;
        self.weight += u64::from(weight);
    }

    fn remove(&mut self, weight: u32) {
        self.calls -= 1;
        self.weight -= u64::from(weight);
    }
}

struct Model {
    keys: [Count; KEYS],
    all: Option<Count>,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    /// Served calls that have not been polled since, and the heads that they have overtaken.
    given: Vec<(Waiting, Overtaken)>,
    /// Evicted calls that have not been polled since.
    evicted: Vec<u64>,
    held: Vec<Held>,
    /// The order of callers in each key, and over all: a served caller goes to the end.
    rings: [Vec<Tenant>; KEYS],
    ring: Vec<Tenant>,
    /// The head of each key.
    heads: [Option<Head>; KEYS],
    last_head: usize,
}

/// Permits that a call holds.
#[derive(Clone, Debug)]
struct Held {
    key: usize,
    weight: u32,
    overtook: Overtook,
    overtaken: Overtaken,
}

/// The heads that a call has overtaken: their keys and numbers.
type Overtaken = Vec<(usize, usize)>;

/// The first call of a key, and the calls that have overtaken it since it is that.
#[derive(Clone, Debug)]
struct Head {
    ticket: u64,
    number: usize,
    batch_weight: u32,
    batch_in_flight: usize,
}

impl Model {
    /// Whether a call waits in the queue of `key`: that of all keys, or its own.
    fn has_waiting(&self, key: usize) -> bool {
        self.waiting
            .iter()
            .any(|waiting| self.all.is_some() || waiting.key == key)
    }

    fn has_room(&self, key: usize, weight: u32) -> bool {
        self.keys[key].has_room(weight) && self.all.is_none_or(|all| all.has_room(weight))
    }

    fn take(&mut self, key: usize, weight: u32) {
        self.keys[key].add(weight);
        if let Some(all) = &mut self.all {
            all.add(weight);
        }
    }

    fn give_back(&mut self, key: usize, weight: u32, overtaken: Overtaken) {
        self.keys[key].remove(weight);
        if let Some(all) = &mut self.all {
            all.remove(weight);
        }
        self.ended(overtaken);
        self.serve();
    }

    fn join(&mut self, waiting: Waiting) {
        let tenant = &waiting.wanted.tenant;
        for ring in [&mut self.rings[waiting.key], &mut self.ring] {
            if !ring.contains(tenant) {
                ring.push(tenant.clone());
            }
        }
        self.waiting.push(waiting);
        self.refresh_heads();
    }

    /// A call leaves unserved.
    fn leave(&mut self, ticket: u64) -> Option<Waiting> {
        let at = self.waiting.iter().position(|of| of.ticket == ticket)?;
        let Waiting { key, wanted, .. } = self.waiting[at].clone();
        if self.heads[key]
            .as_ref()
            .is_some_and(|of| of.ticket == ticket)
        {
            self.end_turn(key, &wanted.tenant);
        }
        self.remove(ticket)
    }

    fn end_turn(&mut self, key: usize, tenant: &Tenant) {
        for ring in [&mut self.rings[key], &mut self.ring] {
            ring.retain(|of| of != tenant);
            ring.push(tenant.clone());
        }
    }

    fn refresh_heads(&mut self) {
        for key in 0..KEYS {
            let first = self.in_order(key).first().map(|of| of.ticket);
            if self.heads[key].as_ref().map(|of| of.ticket) != first {
                self.last_head += 1;
                self.heads[key] = first.map(|ticket| Head {
                    ticket,
                    number: self.last_head,
                    batch_weight: 0,
                    batch_in_flight: 0,
                });
            }
        }
    }

    /// The calls that wait in `key`, in the order they are served.
    fn in_order(&self, key: usize) -> Vec<Waiting> {
        let of_key = self.waiting.iter().filter(|of| of.key == key);
        let mut calls: Vec<_> = of_key.cloned().collect();
        calls.sort_by_key(|of| {
            let tenant = &of.wanted.tenant;
            let comes = self.rings[key].iter().position(|of| of == tenant);
            (tenant.priority, comes, of.ticket)
        });
        calls
    }

    fn remove(&mut self, ticket: u64) -> Option<Waiting> {
        let at = self.waiting.iter().position(|of| of.ticket == ticket)?;
        let gone = self.waiting.remove(at);
        let tenant = &gone.wanted.tenant;
        let theirs = |of: &&Waiting| of.wanted.tenant == *tenant;
        let in_key = |of: &Waiting| of.key == gone.key;
        if !self.waiting.iter().filter(theirs).any(in_key) {
            self.rings[gone.key].retain(|of| of != tenant);
        }
        if !self.waiting.iter().any(|of| of.wanted.tenant == *tenant) {
            self.ring.retain(|of| of != tenant);
        }
        self.refresh_heads();
        Some(gone)
    }

    /// The head of each key, in the order they are served.
    fn heads(&self) -> Vec<Waiting> {
        let mut heads: Vec<_> = (0..KEYS)
            .filter_map(|key| self.in_order(key).first().cloned())
            .collect();
        heads.sort_by_key(|of| {
            let tenant = &of.wanted.tenant;
            let comes = self.ring.iter().position(|of| of == tenant);
            (tenant.priority, comes, of.ticket)
        });
        heads
    }

    fn serve(&mut self) {
        loop {
            // Without a limit over all, each key has a queue of its own.
            let heads = self.heads();
            let queues = match self.all {
                Some(_) => vec![heads],
                None => heads.into_iter().map(|head| vec![head]).collect(),
            };
            let next = queues.iter().find_map(|heads| self.next(heads));
            let Some((next, overtakes)) = next else {
                return;
            };
            self.grant(next, overtakes);
        }
    }

    fn grant(&mut self, next: Waiting, overtakes: Vec<usize>) {
        let Waiting { key, wanted, .. } = &next;
        self.take(*key, wanted.weight);
        let mut overtaken = Vec::new();
        for of in overtakes {
            let head = self.heads[of].as_mut().expect("it has one");
            head.batch_weight += wanted.weight;
            head.batch_in_flight += 1;
            overtaken.push((of, head.number));
        }
        let first = &self.in_order(*key)[0];
        if first.ticket == next.ticket || first.wanted.tenant != wanted.tenant {
            self.end_turn(*key, &wanted.tenant);
        }
        let next = self.remove(next.ticket).expect("it waits");
        self.given.push((next, overtaken));
    }

    /// The next call to be served, and the keys whose heads it overtakes.
    fn next(&self, heads: &[Waiting]) -> Option<(Waiting, Vec<usize>)> {
        let mut first: Option<usize> = None;
        for head in heads {
            let (key, weight) = (head.key, head.wanted.weight);
            if !first.is_none_or(|first| self.may_overtake(first, weight)) {
                continue;
            }
            let in_key = self.keys[key].has_room(weight);
            let in_all = self.all.is_none_or(|all| all.has_room(weight));
            if in_key && in_all {
                return Some((head.clone(), first.into_iter().collect()));
            }
            let free = self.all.map_or(usize::MAX, |all| all.free());
            let free = free.min(self.keys[key].free());
            let lighter = self.in_order(key).into_iter().find(|of| {
                let weight = of.wanted.weight;
                let mut overtaken = first.into_iter().chain([key]);
                weight as usize <= free && overtaken.all(|of| self.may_overtake(of, weight))
            });
            if let Some(lighter) = lighter {
                return Some((lighter, first.into_iter().chain([key]).collect()));
            }
            if in_key {
                first = first.or(Some(key));
            }
        }
        None
    }

    /// Whether the head of `key` may be overtaken by a call of `weight`.
    fn may_overtake(&self, key: usize, weight: u32) -> bool {
        let head = self.heads[key].as_ref().expect("it has one");
        let of_head = self.in_order(key)[0].wanted.weight;
        let limit = self.all.unwrap_or(self.keys[key]).limit;
        weight < of_head && head.batch_weight + weight <= of_head.min(limit as u32)
    }

    /// A call that has overtaken heads has ended.
    fn ended(&mut self, overtaken: Overtaken) {
        for (key, number) in overtaken {
            if let Some(head) = &mut self.heads[key]
                && head.number == number
            {
                head.batch_in_flight -= 1;
                if head.batch_in_flight == 0 {
                    head.batch_weight = 0;
                }
            }
        }
    }

    /// The newest call of the caller with most calls, if `tenant` has fewer than average.
    fn to_evict(&self, key: usize, tenant: &Tenant) -> Option<u64> {
        let of_class = || {
            self.rings[key]
                .iter()
                .filter(|of| of.priority == tenant.priority)
        };
        let calls_of = |tenant: &Tenant| {
            let theirs = move |of: &&Waiting| of.key == key && of.wanted.tenant == *tenant;
            self.waiting
                .iter()
                .filter(theirs)
                .map(|of| of.ticket)
                .collect::<Vec<_>>()
        };
        let all: usize = of_class().map(|of| calls_of(of).len()).sum();
        let average = all as f64 / of_class().count() as f64;
        if calls_of(tenant).len() as f64 >= average {
            return None;
        }
        let most = of_class().max_by_key(|of| calls_of(of).len())?;
        calls_of(most).into_iter().max()
    }

    fn waiting_of(&self, key: usize) -> ByPriority {
        PRIORITIES.map(|priority| {
            let same = |of: &&Waiting| of.key == key && of.wanted.tenant.priority == priority;
            self.waiting.iter().filter(same).count()
        })
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Queues number their tickets apart.
fn unique(key: usize, ticket: u64) -> u64 {
    ticket * KEYS as u64 + key as u64
}

fn of_queue(ticket: u64) -> u64 {
    ticket / KEYS as u64
}

struct Ticket {
    waiting: Waiting,
    wakes: Arc<Wakes>,
}

struct Run {
    permits: Vec<SharedPermits>,
    all: Option<Arc<GlobalPermits>>,
    tickets: Vec<Ticket>,
    model: Model,
}

impl Run {
    fn new(limits: [usize; KEYS], global: Option<usize>) -> Self {
        let all = global.map(|limit| Arc::new(GlobalPermits::new(limit)));
        let permits = limits.map(|limit| match &all {
            None => Permits::new(limit),
            Some(all) => Permits::within(limit, Arc::clone(all)),
        });
        Self {
            permits: permits.map(|of| Arc::new(Keyed::keyless(of))).into(),
            all,
            tickets: vec![],
            model: Model {
                keys: limits.map(Count::new),
                all: global.map(Count::new),
                waiting: vec![],
                given: vec![],
                evicted: vec![],
                held: vec![],
                rings: Default::default(),
                ring: vec![],
                heads: Default::default(),
                last_head: 0,
            },
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::TryAcquire(key, weight) => {
                let model = &mut self.model;
                let free = model.has_room(key, weight) && !model.has_waiting(key);
                prop_assert_eq!(self.permits[key].try_acquire(weight), free);
                if free {
                    model.take(key, weight);
                    model.held.push(Held {
                        key,
                        weight,
                        overtook: Overtook::default(),
                        overtaken: vec![],
                    });
                }
            }
            Step::Join(key, wanted) => self.join(key, wanted)?,
            Step::Poll(i) if i < self.tickets.len() => self.poll(i)?,
            Step::Leave(i) if i < self.tickets.len() => self.leave(i)?,
            Step::Release(i) if i < self.model.held.len() => {
                let held = self.model.held.remove(i);
                self.permits[held.key].release(held.weight, held.overtook);
                self.model.give_back(held.key, held.weight, held.overtaken);
            }
            Step::SetLimit(key, limit) => {
                self.permits[key].set_limit(limit);
                self.model.keys[key].limit = limit;
                self.model.serve();
            }
            Step::SetGlobalLimit(limit) => {
                if let (Some(all), Some(model)) = (&self.all, &mut self.model.all) {
                    all.set_limit(limit);
                    model.limit = limit;
                    self.model.serve();
                }
            }
            Step::Poll(_) | Step::Leave(_) | Step::Release(_) => {}
        }
        self.compare()
    }

    fn join(&mut self, key: usize, wanted: Wanted) -> Result<(), TestCaseError> {
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let most = wanted.max_waiting;
        let joined = Permits::join(&self.permits[key], &wanted, &waker);
        // The model's tickets need only be distinct, except those that were granted.
        let ticket = match joined {
            Joined::Waiting(ticket) => unique(key, ticket),
            _ => u64::MAX,
        };
        let model = &mut self.model;
        let waiting = Waiting {
            ticket,
            key,
            wanted,
        };
        model.join(waiting.clone());
        model.serve();
        let given = model.given.iter().position(|(of, _)| of.ticket == u64::MAX);
        let priority = waiting.wanted.tenant.priority;
        if let Some(given) = given {
            let (_, overtaken) = model.given.remove(given);
            let Joined::Admitted(overtook) = joined else {
                return Err(TestCaseError::fail(format!("{joined:?}")));
            };
            prop_assert_eq!(overtook.is_some(), !overtaken.is_empty());
            model.held.push(Held {
                key,
                weight: waiting.wanted.weight,
                overtook,
                overtaken,
            });
        } else if model.waiting_of(key)[priority.index()] > most
            && let Some(gone) = model.to_evict(key, &waiting.wanted.tenant)
        {
            prop_assert!(matches!(joined, Joined::Waiting(_)), "{:?}", joined);
            model.leave(gone);
            model.evicted.push(gone);
            self.tickets.push(Ticket { waiting, wakes });
        } else if model.waiting_of(key)[priority.index()] > most {
            prop_assert!(matches!(joined, Joined::Full(_)), "{:?}", joined);
            if model.all.is_none() {
                prop_assert_eq!(joined, Joined::Full(LimitOf::Key));
            }
            model.leave(ticket);
        } else {
            prop_assert!(matches!(joined, Joined::Waiting(_)), "{:?}", joined);
            self.tickets.push(Ticket { waiting, wakes });
        }
        Ok(())
    }

    fn poll(&mut self, i: usize) -> Result<(), TestCaseError> {
        let Ticket { waiting, wakes } = &self.tickets[i];
        let Waiting {
            ticket,
            key,
            wanted,
        } = waiting.clone();
        let waker = Waker::from(Arc::clone(wakes));
        let polled = self.permits[key].poll_ticket(&wanted.tenant, of_queue(ticket), &waker);
        let given = self
            .model
            .given
            .iter()
            .position(|(of, _)| of.ticket == ticket);
        let evicted = self.model.evicted.iter().position(|of| *of == ticket);
        if let Some(evicted) = evicted {
            prop_assert_eq!(polled, Poll::Ready(Err(Evicted)));
            self.model.evicted.remove(evicted);
            self.tickets.remove(i);
            return Ok(());
        }
        prop_assert_eq!(polled.is_ready(), given.is_some());
        if let (Some(given), Poll::Ready(Ok(overtook))) = (given, polled) {
            let (_, overtaken) = self.model.given.remove(given);
            prop_assert_eq!(overtook.is_some(), !overtaken.is_empty());
            self.model.held.push(Held {
                key,
                weight: wanted.weight,
                overtook,
                overtaken,
            });
            self.tickets.remove(i);
        }
        Ok(())
    }

    fn leave(&mut self, i: usize) -> Result<(), TestCaseError> {
        let Waiting {
            ticket,
            key,
            wanted,
        } = self.tickets.remove(i).waiting;
        let waited = self.model.leave(ticket).is_some();
        self.permits[key].leave(&wanted, of_queue(ticket));
        let model = &mut self.model;
        if let Some(gone) = model.evicted.iter().position(|of| *of == ticket) {
            model.evicted.remove(gone);
        } else if waited {
            model.serve();
        } else {
            let given = model.given.iter().position(|(of, _)| of.ticket == ticket);
            let (_, overtaken) = model.given.remove(given.expect("it was served"));
            model.give_back(key, wanted.weight, overtaken);
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let model = &self.model;
        for (key, permits) in self.permits.iter().enumerate() {
            let count = model.keys[key];
            prop_assert_eq!(permits.in_use(), (count.calls, count.weight), "key {}", key);
            prop_assert_eq!(permits.waiting(), model.waiting_of(key), "key {}", key);
        }
        if let (Some(all), Some(count)) = (&self.all, model.all) {
            prop_assert_eq!(all.in_use(), (count.calls, count.weight));
            prop_assert_eq!(all.waiting(), model.waiting.len());
        }
        for Ticket { waiting, wakes } in &self.tickets {
            let is_given = model
                .given
                .iter()
                .any(|(of, _)| of.ticket == waiting.ticket);
            let is_evicted = model.evicted.contains(&waiting.ticket);
            prop_assert_eq!(
                wakes.0.load(Relaxed),
                usize::from(is_given || is_evicted),
                "{:?}",
                waiting
            );
        }
        Ok(())
    }

    /// All calls end, and no state remains.
    fn finish(mut self) -> Result<(), TestCaseError> {
        while !self.tickets.is_empty() {
            self.step(Step::Leave(self.tickets.len() - 1))?;
        }
        while !self.model.held.is_empty() {
            self.step(Step::Release(0))?;
        }
        for permits in &self.permits {
            prop_assert_eq!(permits.in_use(), (0, 0));
            prop_assert!(permits.try_acquire(1), "it stayed closed");
            permits.release(1, Overtook::default());
            // No key of the queue holds them.
            prop_assert_eq!(Arc::strong_count(permits), 1);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn permits_of_several_keys_do_as_the_model_does(
        limits in [1..5_usize, 1..5, 1..5],
        global in option::of(1..8_usize),
        steps in prop_oneof![vec(step(1), 0..150), vec(step(4), 0..150)],
    ) {
        let mut run = Run::new(limits, global);
        for step in steps {
            run.step(step)?;
        }
        run.finish()?;
    }
}

/// A head that waits for its key may be overtaken by more calls once the limit of all keys is raised.
#[test]
fn a_raised_limit_of_all_keys_lets_more_calls_overtake() {
    let wanted = |weight, priority, max_waiting| Wanted {
        weight,
        tenant: Tenant {
            priority,
            caller: None,
        },
        max_waiting,
    };
    let mut run = Run::new([1, 1, 1], Some(4));
    for step in [
        Step::TryAcquire(1, 1),
        Step::Join(1, wanted(1, Priority::Normal, 1)),
        Step::Join(1, wanted(1, Priority::Normal, 2)),
        Step::Join(1, wanted(4, Priority::Interactive, 1)),
        Step::SetGlobalLimit(3),
        Step::Join(1, wanted(2, Priority::Interactive, 2)),
        Step::Join(2, wanted(1, Priority::Interactive, 0)),
        Step::Release(0),
        Step::SetLimit(1, 4),
        Step::Leave(0),
        Step::SetGlobalLimit(4),
    ] {
        run.step(step).unwrap();
    }
    run.finish().unwrap();
}
