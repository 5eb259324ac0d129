//! Rendezvous hashing: each key has an order of targets of its own, and keeps it when other targets come and go.

use tower_llm_core::Key;

use super::set::Set;

/// A target as rendezvous hashing sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entrant {
    /// The [digest] of its name.
    pub(crate) name: u64,
    pub(crate) weight: u32,
}

/// The digest of a key; `None` if all its parts are empty.
pub(crate) fn key_digest(key: &Key) -> Option<u64> {
    let parts = key.parts();
    let is_empty = parts.iter().all(|part| part.is_empty());
    (!is_empty).then(|| {
        // A byte that UTF-8 never has tells the parts apart.
        let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
        digest(bytes)
    })
}

/// FNV-1a: the same in all processes and in all versions, so that all of them send a key to the same target.
pub(crate) fn digest(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The best target for a key that is not in `skip`.
pub(crate) fn best(
    key: u64,
    entrants: impl IntoIterator<Item = Entrant>,
    skip: &Set,
) -> Option<usize> {
    let entrants = entrants.into_iter().enumerate();
    let scores = entrants
        .filter(|(index, _)| !skip.contains(*index))
        .map(|(index, entrant)| (index, score(key, entrant)));
    scores
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(index, _)| index)
}

/// The highest score wins with a probability in proportion to its weight.
fn score(key: u64, entrant: Entrant) -> f64 {
    let hash = mix(key ^ mix(entrant.name));
    // From 0 to 1, both excluded.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(entrant.weight) / uniform.ln()
}

/// The finalizer of SplitMix64: every bit of the input changes half of the output.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrants(weights: &[u32]) -> Vec<Entrant> {
        let names = (0..).map(|index: usize| digest(format!("target-{index}").into_bytes()));
        let entrants = names.zip(weights);
        entrants
            .map(|(name, &weight)| Entrant { name, weight })
            .collect()
    }

    fn key(number: u64) -> u64 {
        key_digest(&Key::new(number.to_string())).unwrap()
    }

    #[test]
    fn keys_spread_by_weight() {
        let entrants = entrants(&[1, 1, 2]);
        let mut counts = [0_u32; 3];
        for number in 0..40_000 {
            counts[best(key(number), entrants.iter().copied(), &Set::default()).unwrap()] += 1;
        }
        for (count, expected) in counts.into_iter().zip([10_000_u32, 10_000, 20_000]) {
            assert!(count.abs_diff(expected) < 500, "{counts:?}");
        }
    }

    #[test]
    fn only_the_keys_of_a_target_that_leaves_move() {
        let all = entrants(&[1, 3, 1, 1]);
        let mut gone = Set::default();
        gone.insert(1);
        for number in 0..2_000 {
            let before = best(key(number), all.iter().copied(), &Set::default()).unwrap();
            let after = best(key(number), all.iter().copied(), &gone).unwrap();
            assert_ne!(after, 1);
            assert!(before == 1 || before == after);
        }
    }

    #[test]
    fn parts_of_keys_do_not_run_into_each_other() {
        assert_ne!(
            key_digest(&Key::pair("ab", "c")),
            key_digest(&Key::pair("a", "bc"))
        );
        assert_eq!(key_digest(&Key::new("")), None);
    }
}
