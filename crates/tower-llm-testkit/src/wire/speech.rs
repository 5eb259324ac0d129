//! What a simulated model says: whole sentences, one word a token.

/// Each begins with the space that parts it from the one before. For every length of 1 to 15 words there is at least one.
const SENTENCES: [&str; 30] = [
    " Yes.",
    " Indeed.",
    " It does.",
    " Mills turn.",
    " The river runs.",
    " Water finds a way.",
    " It runs past old mills.",
    " The river runs past seven mills.",
    " Each of the wheels turns all day.",
    " The river runs past seven old water mills.",
    " It rises in the hills above the town.",
    " Every mill on the river has its own wheel.",
    " In spring the water is high and very cold.",
    " The town sends its flour down the river by barge.",
    " Boats come up from the harbor when the tide allows.",
    " The oldest of the mills still grinds wheat in the autumn.",
    " A narrow bridge of stone crosses it where the road bends.",
    " After the last mill the valley opens and the water slows down.",
    " The miller opens the gate at dawn and closes it at dusk.",
    " On quiet nights the sound of the wheels carries across the wide fields.",
    " People from the town walk along the bank on warm summer evenings.",
    " When the snow melts in the hills, the river carries twice as much.",
    " At the second mill there is a weir, and trout rest below it.",
    " A path of flat stones follows the bank from one mill to another.",
    " Where the two arms meet again, the current is strong enough to move stones.",
    " The last mill stands near the sea, and salt has turned its walls white.",
    " The river runs past seven old mills, and each wheel turns at its own pace.",
    " The first of them is very old, and its beams are of dark oak.",
    " For three hundred years the mills have made flour, paper and cloth for the town.",
    " Some of the wheels are made of oak, and others were cast in iron later.",
];

/// The longest sentence, in words.
const LONGEST: u64 = 15;

/// Sentences shorter than this only end an answer.
const SHORTEST_WITHIN: u64 = 8;

/// Whole sentences of exactly `tokens` words; which they are depends on `seed`.
pub(super) fn words(seed: usize, tokens: u64) -> impl Iterator<Item = &'static str> {
    let mut left = tokens;
    let mut turn = seed;
    let sentences = std::iter::from_fn(move || {
        let sentence = if left == 0 {
            return None;
        } else if left <= LONGEST {
            nth_where(turn, |length| length == left)
        } else {
            // At least a word is left for the last sentence.
            nth_where(turn, |length| length >= SHORTEST_WITHIN)
        };
        turn = turn.wrapping_add(1);
        left -= length(sentence);
        Some(sentence)
    });
    let mut words = sentences.flat_map(split);
    let first = words.next().map(str::trim_start);
    first.into_iter().chain(words)
}

/// One of the sentences of a fitting length; another for each `turn`.
fn nth_where(turn: usize, fits: impl Fn(u64) -> bool) -> &'static str {
    let fitting = || SENTENCES.iter().filter(|sentence| fits(length(sentence)));
    let count = fitting().count();
    let chosen = fitting().nth(turn % count.max(1));
    chosen.expect("there is a sentence of every length up to the longest")
}

fn length(sentence: &str) -> u64 {
    sentence.matches(' ').count() as u64
}

/// The words of a sentence, each with the space before it.
fn split(sentence: &'static str) -> impl Iterator<Item = &'static str> {
    let starts = sentence.match_indices(' ').map(|(at, _)| at);
    let ends = sentence.match_indices(' ').skip(1).map(|(at, _)| at);
    let ends = ends.chain([sentence.len()]);
    starts.zip(ends).map(|(start, end)| &sentence[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_sentence_of_every_length() {
        for tokens in 1..=LONGEST {
            let found = SENTENCES.iter().any(|sentence| length(sentence) == tokens);
            assert!(found, "{tokens}");
        }
        let longest = SENTENCES.iter().map(|sentence| length(sentence)).max();
        assert_eq!(longest, Some(LONGEST));
    }

    #[test]
    fn any_number_of_tokens_is_whole_sentences_from_their_beginning() {
        for seed in 0..SENTENCES.len() {
            for tokens in (0..=2 * LONGEST).chain([200]) {
                let words: Vec<&str> = words(seed, tokens).collect();
                assert_eq!(words.len() as u64, tokens);
                let text = words.concat();
                if tokens == 0 {
                    continue;
                }
                assert!(text.ends_with('.'), "{text}");
                for sentence in text.trim_end_matches('.').split(". ") {
                    let known = SENTENCES
                        .iter()
                        .any(|known| known.trim().trim_end_matches('.') == sentence);
                    assert!(known, "{sentence}");
                }
            }
        }
    }

    #[test]
    fn different_seeds_say_different_things() {
        let text = |seed| words(seed, 20).collect::<String>();
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
    }
}
