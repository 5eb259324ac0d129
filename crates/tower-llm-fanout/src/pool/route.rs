//! The branches of a call to a pool: each goes to a target that the call has not tried.

use std::{borrow::Cow, fmt, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{Availability, BoxError, Call, Described, HttpBody, Watch};
use tower_service::Service;

use super::{
    Pool, Routed,
    error::InTheWay,
    members::Members,
    pick::Asked,
    rendezvous::key_digest,
    target::{Member, Seen},
};
use crate::{Branches, Copies, Replay, Split, split::number};

/// Sends each branch of a call to another target of a [`Pool`].
///
/// Branches do not queue at their targets: where one would, the next target is tried. If the pool has one target, its calls
/// queue there as its layers say, and the branches of a call go there one after another.
pub struct Route<S, W = HttpBody> {
    pool: Pool<S>,
    copies: Copies<W>,
}

/// The branches of one call.
pub struct RouteBranches<S, Req, W> {
    pool: Pool<S>,
    /// `None` once the last branch has it.
    request: Option<Req>,
    watch: W,
    reports_usage: bool,
    /// How many branches may still be sent.
    attempts: usize,
    /// How many targets of the pool were not tried, when the last branch was made.
    untried: usize,
    /// Whether another target is tried for a branch that was not sent.
    moves: bool,
    /// The number of the next candidate, if they are compared.
    candidate: Option<u32>,
    /// Where the branches went. The last one is apart: a call with one branch allocates nothing.
    last: Option<Arc<Member<S>>>,
    before: Vec<Arc<Member<S>>>,
    /// The pool had one target.
    is_only: bool,
    key: Key,
    /// Of the first branch: those of later ones are told by the branch before.
    in_the_way: InTheWay,
}

/// The digest of the call's key, for a policy that reads it.
#[derive(Clone, Copy, Debug)]
enum Key {
    Unread,
    Read(Option<u64>),
}

/// A request as one target would see it.
struct Looked<'a, Req> {
    request: Option<&'a Req>,
    call: Option<&'a Call>,
}

// === impl Route ===

impl<S, W> Route<S, W> {
    /// Sends to the targets of `pool` what would be copies for one service.
    pub(crate) const fn new(pool: Pool<S>, copies: Copies<W>) -> Self {
        Self { pool, copies }
    }
}

impl<S, W, Req> Split<Req> for Route<S, W>
where
    S: Service<Req> + Clone,
    Req: Described,
    W: Replay<Req> + Watch<S::Response>,
{
    type Branch = Routed<S, Req>;
    type Branches = RouteBranches<S, Req, W>;

    fn split(&self, request: Req) -> Self::Branches {
        let copies = &self.copies;
        RouteBranches {
            pool: self.pool.clone(),
            attempts: copies.branches_of(&request),
            untried: usize::MAX,
            moves: copies.most > 1,
            request: Some(request),
            watch: copies.replay.clone(),
            reports_usage: copies.replay.reports_usage(),
            candidate: copies.candidates.then_some(0),
            last: None,
            before: Vec::new(),
            is_only: false,
            key: Key::Unread,
            in_the_way: InTheWay::default(),
        }
    }
}

// === impl RouteBranches ===

impl<S, Req, W> Branches for RouteBranches<S, Req, W>
where
    Req: Described,
    W: Replay<Req>,
{
    type Branch = Routed<S, Req>;

    fn next(&mut self) -> Option<Routed<S, Req>> {
        if self.left() == 0 {
            return None;
        }
        let (members, now) = (self.pool.members(), Instant::now());
        self.is_only = members.only().is_some();
        let (to, call) = match members.only() {
            Some(only) => self.send_to(only),
            None => self.pick(&members, now)?,
        };
        self.before.extend(self.last.replace(Arc::clone(&to)));
        self.attempts -= 1;
        if !self.is_only {
            // Targets that are added later do not count: their number only falls.
            let untried = members.iter().filter(|member| !self.was_tried(member));
            self.untried = self.untried.min(untried.count());
        }
        let mut request = self.take_request()?;
        if let Some(call) = call {
            request.set_call(call);
        }
        number(&mut request, &mut self.candidate);
        Some(Routed::new(request, to, now))
    }

    fn left(&self) -> usize {
        match self.request {
            Some(_) => self.attempts.min(self.untried),
            None => 0,
        }
    }

    fn available(&mut self) -> usize {
        if self.is_only || self.left() == 0 {
            return self.left();
        }
        let members = self.pool.members();
        let call = self.call();
        let untried = members.iter().filter(|member| !self.was_tried(member));
        let available = untried
            .filter(|member| self.look(member, call.as_ref()).1.availability == Availability::Now);
        available.count().min(self.left())
    }

    fn may_follow(&self) -> bool {
        self.left() > 0 || self.moves() && self.request.is_some()
    }

    /// A target that is the only one would be asked again at once.
    fn unsent(&mut self) {
        if self.moves() {
            self.attempts += 1;
        }
    }

    fn repeats(&self) -> bool {
        self.is_only
    }

    fn target(&self) -> Option<Arc<str>> {
        self.last.as_ref().map(|last| Arc::clone(&last.name))
    }

    fn refusal(&mut self) -> BoxError {
        self.in_the_way.into_error().into()
    }
}

impl<S, Req: Described, W: Replay<Req>> RouteBranches<S, Req, W> {
    fn send_to(&self, only: &Arc<Member<S>>) -> (Arc<Member<S>>, Option<Call>) {
        let call = self.request.as_ref().and_then(Described::call);
        let described = call.and_then(|call| only.describe(&call));
        (Arc::clone(only), described)
    }

    /// Picks among several targets. The call that is sent there does not queue: there were others to choose.
    fn pick(
        &mut self,
        members: &Members<S>,
        now: Instant,
    ) -> Option<(Arc<Member<S>>, Option<Call>)> {
        let key = self.key();
        let call = self.call();
        let asked = Asked {
            streamed: call.as_ref().is_some_and(Call::streamed),
            key,
            now,
        };
        let mut in_the_way = InTheWay::default();
        let admits = |member: &Arc<Member<S>>| {
            let (call, seen) = self.look(member, call.as_ref());
            if seen.availability == Availability::Now {
                return Some(call);
            }
            in_the_way.add(seen);
            None
        };
        let was_tried = |member: &Arc<Member<S>>| self.was_tried(member);
        let picked = members.pick(self.pool.policy(), &asked, was_tried, admits);
        let picked = picked.map(|(member, call)| (Arc::clone(member), call));
        self.in_the_way = in_the_way;
        picked
    }

    /// Whether another target is tried for a branch that is not sent.
    fn moves(&self) -> bool {
        self.moves && !self.is_only && self.untried > 0
    }

    /// The description of the call, as one that does not queue.
    fn call(&self) -> Option<Call> {
        let call = self.request.as_ref().and_then(Described::call);
        call.map(|call| call.into_owned().without_queueing())
    }

    /// The call as a target would see it, and whether it would admit that at once.
    fn look(&self, member: &Member<S>, call: Option<&Call>) -> (Option<Call>, Seen) {
        let described = call.and_then(|call| member.describe(call));
        let described = described.map(Call::without_queueing);
        let call = described.or_else(|| call.cloned());
        let looked = Looked {
            request: self.request.as_ref(),
            call: call.as_ref(),
        };
        let seen = member.look(&looked, self.reports_usage);
        (call, seen)
    }

    /// The digest of the call's key, which is read once.
    fn key(&mut self) -> Option<u64> {
        let (Key::Unread, Some(request)) = (self.key, &self.request) else {
            return match self.key {
                Key::Read(key) => key,
                Key::Unread => None,
            };
        };
        let key_by = self.pool.policy().key_by();
        let key = key_by.and_then(|key_by| key_digest(&key_by.key(request)));
        self.key = Key::Read(key);
        key
    }

    fn was_tried(&self, member: &Arc<Member<S>>) -> bool {
        let mut tried = self.last.iter().chain(&self.before);
        tried.any(|tried| Arc::ptr_eq(tried, member))
    }

    /// The request, or a copy of it if another branch may follow: if this one is not sent, too.
    fn take_request(&mut self) -> Option<Req> {
        if self.left() > 0 || self.moves() {
            let request = self.request.as_ref()?;
            if let Some(copy) = self.watch.replay(request) {
                return Some(copy);
            }
            // It can be sent once.
        }
        self.request.take()
    }
}

impl<Req: Described> Described for Looked<'_, Req> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.request?.header(name)
    }
}

impl<S, W: Clone> Clone for Route<S, W> {
    fn clone(&self) -> Self {
        Self::new(self.pool.clone(), self.copies.clone())
    }
}

impl<S, W> fmt::Debug for Route<S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("pool", &self.pool)
            .field("most", &self.copies.most)
            .finish_non_exhaustive()
    }
}

impl<S, Req, W> fmt::Debug for RouteBranches<S, Req, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the request: its headers hold credentials.
        f.debug_struct("RouteBranches")
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}
