//! The targets of a pool at one moment.
//!
//! A change makes new members, so that a call picks from what does not change under it.

use std::sync::Arc;

use super::{
    pick::{Asked, Candidate, Pick},
    set::Set,
    target::Member,
    turns::Turns,
};

/// The targets of a pool, by priority.
pub(crate) struct Members<S> {
    groups: Box<[Group<S>]>,
    len: usize,
}

/// The targets of one priority.
struct Group<S> {
    priority: u32,
    // Apart from the members, so that a policy knows nothing of services.
    candidates: Box<[Candidate]>,
    members: Box<[Arc<Member<S>>]>,
    turns: Turns,
}

/// One target, and where it stands.
pub(crate) struct Slot<S> {
    pub(crate) priority: u32,
    pub(crate) candidate: Candidate,
    pub(crate) member: Arc<Member<S>>,
}

impl<S> Members<S> {
    /// `slots` in the order in which they were added. Turns go on where `before` left off.
    pub(crate) fn new(mut slots: Vec<Slot<S>>, before: Option<&Self>) -> Self {
        let len = slots.len();
        // Stable: the order of addition stays within a group.
        slots.sort_by_key(|slot| slot.priority);
        let groups = slots.chunk_by(|one, other| one.priority == other.priority);
        let groups = groups.map(|slots| Group::new(slots, before)).collect();
        Self { groups, len }
    }

    /// All targets, by priority.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot<S>> {
        self.groups.iter().flat_map(|group| {
            let slots = group.candidates.iter().zip(&group.members);
            slots.map(|(candidate, member)| Slot {
                priority: group.priority,
                candidate: candidate.clone(),
                member: Arc::clone(member),
            })
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Member<S>>> {
        self.groups.iter().flat_map(|group| &group.members)
    }

    /// The only target.
    pub(crate) fn only(&self) -> Option<&Arc<Member<S>>> {
        match &*self.groups {
            [group] if self.len == 1 => group.members.first(),
            _ => None,
        }
    }

    /// The best target that was not tried and that `admits` the call, with what that returns. It is asked for the favourite
    /// first, and for another only if that does not admit the call.
    pub(crate) fn pick<T>(
        &self,
        pick: &Pick,
        asked: &Asked,
        was_tried: impl Fn(&Arc<Member<S>>) -> bool,
        mut admits: impl FnMut(&Arc<Member<S>>) -> Option<T>,
    ) -> Option<(&Arc<Member<S>>, T)> {
        self.groups.iter().find_map(|group| {
            let mut skip = Set::default();
            for (index, member) in group.members.iter().enumerate() {
                if was_tried(member) {
                    skip.insert(index);
                }
            }
            loop {
                let index = pick.pick(&group.candidates, &group.turns, &skip, asked)?;
                let member = &group.members[index];
                if let Some(admitted) = admits(member) {
                    return Some((member, admitted));
                }
                pick.take_back(index, &group.candidates, &group.turns, &skip);
                skip.insert(index);
            }
        })
    }
}

impl<S> Group<S> {
    /// `slots` of one priority, of which there is at least one.
    fn new(slots: &[Slot<S>], before: Option<&Members<S>>) -> Self {
        let priority = slots[0].priority;
        let before = before.and_then(|before| {
            let mut groups = before.groups.iter();
            groups.find(|group| group.priority == priority)
        });
        let turns = before.map_or_else(Turns::default, |before| {
            let was_at = |slot: &Slot<S>| {
                let mut members = before.members.iter();
                members.position(|member| Arc::ptr_eq(member, &slot.member))
            };
            before.turns.continuing(slots.iter().map(was_at))
        });
        Self {
            priority,
            candidates: slots.iter().map(|slot| slot.candidate.clone()).collect(),
            members: slots.iter().map(|slot| Arc::clone(&slot.member)).collect(),
            turns,
        }
    }
}
