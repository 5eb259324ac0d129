//! Choices by what the targets of a group are worth now.

use super::{
    load::Rank,
    pick::{Asked, Candidate, weights},
    set::Set,
    standing::Standing,
};

/// The lowest rank; a random one of several.
pub(crate) fn least<T: PartialOrd>(
    group: &[Candidate],
    skip: &Set,
    rank: impl Fn(&Candidate) -> T,
) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    let mut ties = 1;
    for (index, candidate) in group.iter().enumerate() {
        if skip.contains(index) {
            continue;
        }
        let rank = rank(candidate);
        let is_better = match &best {
            None => true,
            Some((_, best)) if rank == *best => {
                ties += 1;
                fastrand::usize(..ties) == 0
            }
            Some((_, best)) => {
                let is_better = rank < *best;
                if is_better {
                    ties = 1;
                }
                is_better
            }
        };
        if is_better {
            best = Some((index, rank));
        }
    }
    best.map(|(index, _)| index)
}

/// Two random targets of those that stand well, of which the one with the lower cost is picked. If none does, the one that
/// comes back first.
pub(crate) fn better_of_two(group: &[Candidate], skip: &Set, asked: &Asked) -> Option<usize> {
    let mut two = [None; 2];
    let mut seen = 0;
    for (index, candidate) in group.iter().enumerate() {
        if skip.contains(index) || candidate.load.standing(asked.now) != Standing::Good {
            continue;
        }
        // Reservoir sampling: after `seen` targets, each of them is one of the two with the same probability.
        let slot = match seen {
            0 | 1 => seen,
            _ => fastrand::usize(..=seen),
        };
        if let Some(slot) = two.get_mut(slot) {
            *slot = Some(index);
        }
        seen += 1;
    }
    let cost = |index: usize| group[index].load.cost(asked.streamed, asked.now);
    match two {
        [Some(one), Some(other)] => {
            let (of_one, of_other) = (cost(one), cost(other));
            let takes_one = of_one < of_other || (of_one == of_other && fastrand::bool());
            Some(if takes_one { one } else { other })
        }
        [Some(only), None] | [None, Some(only)] => Some(only),
        [None, None] => least(group, skip, |candidate| {
            let load = &candidate.load;
            Rank(
                load.standing(asked.now),
                load.cost(asked.streamed, asked.now),
            )
        }),
    }
}

/// A random target, with a probability in proportion to its weight.
pub(crate) fn weighted_random(group: &[Candidate], skip: &Set) -> Option<usize> {
    let rest = || {
        weights(group)
            .enumerate()
            .filter(|(index, _)| !skip.contains(*index))
    };
    let total: u64 = rest().map(|(_, weight)| u64::from(weight)).sum();
    if total == 0 {
        return None;
    }
    let mut left = fastrand::u64(..total);
    rest().find_map(|(index, weight)| {
        let weight = u64::from(weight);
        if left < weight {
            return Some(index);
        }
        left -= weight;
        None
    })
}
