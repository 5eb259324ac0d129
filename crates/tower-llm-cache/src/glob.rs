//! Patterns of keys.

/// A pattern: `*` stands for any characters, `?` for one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glob<'a>(&'a [u8]);

impl<'a> Glob<'a> {
    pub(crate) fn new(pattern: &'a str) -> Self {
        Self(pattern.as_bytes())
    }

    /// Whether all of `text` matches, in time that is at most the product of the lengths.
    pub(crate) fn matches(self, text: &str) -> bool {
        let (pattern, text) = (self.0, text.as_bytes());
        let (mut at, mut next) = (0, 0);
        // The last star, and the text that it stands for so far.
        let mut star = None;
        while next < text.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, next));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == text[next] => {
                    at += 1;
                    next += 1;
                }
                _ => {
                    let Some((star_at, taken)) = star else {
                        return false;
                    };
                    star = Some((star_at, taken + 1));
                    at = star_at + 1;
                    next = taken + 1;
                }
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_as_in_a_shell() {
        let cases = [
            (
                "ai:completion:claude*",
                "ai:completion:claude-sonnet:00ff",
                true,
            ),
            ("ai:completion:claude*", "ai:embedding:claude:00ff", false),
            ("*:gpt-?:*", "ai:completion:gpt-5:00", true),
            ("*:gpt-?:*", "ai:completion:gpt-5.4:00", false),
            ("*a*b*", "xxaxxaxb", true),
            ("*a*b", "xxaxxbxa", false),
            ("", "", true),
            ("", "a", false),
            ("**", "", true),
            ("?", "", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                Glob::new(pattern).matches(text),
                expected,
                "{pattern} {text}"
            );
        }
    }
}
