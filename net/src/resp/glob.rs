//! Patterns of keys.

/// Redis' patterns: `*`, `?`, `[a-z]`, `[^a]`, a backslash before a literal byte.
pub(super) fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
            continue;
        }
        match match_one(&pattern[p..], text[t]) {
            Some(len) => (p, t) = (p + len, t + 1),
            None => match star {
                Some((at, matched)) => {
                    star = Some((at, matched + 1));
                    (p, t) = (at + 1, matched + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Bytes of the pattern that one byte matches.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => match_class(rest, byte).and_then(|(is_in, len)| is_in.then_some(len + 1)),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether a byte is in the class that begins behind `[`, and the length of the class with its `]`.
fn match_class(class: &[u8], byte: u8) -> Option<(bool, usize)> {
    let is_negated = class.first() == Some(&b'^');
    let (mut at, mut is_in) = (usize::from(is_negated), false);
    loop {
        match &class[at.min(class.len())..] {
            [] => return None,
            [b']', ..] => return Some((is_in != is_negated, at + 1)),
            [b'\\', literal, ..] => {
                is_in |= *literal == byte;
                at += 2;
            }
            [from, b'-', to, ..] if *to != b']' => {
                is_in |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                is_in |= *literal == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_glob_stars_marks_and_classes() {
        let matches = |pattern: &str, text: &str| matches_glob(pattern.as_bytes(), text.as_bytes());
        assert!(matches("a*c?", "abbbcd") && matches("*", "") && matches("", ""));
        assert!(!matches("a?", "a") && !matches("abc", "abd") && !matches("abc", "abcd"));
        assert!(matches("h[ae]llo", "hello") && !matches("h[ae]llo", "hillo"));
        assert!(matches("h[^e]llo", "hallo") && !matches("h[^e]llo", "hello"));
        assert!(matches("h[a-b]llo", "hbllo") && matches("h[b-a]llo", "hallo") && !matches("h[a-b]llo", "hcllo"));
        assert!(matches(r"a\*b", "a*b") && !matches(r"a\*b", "axb") && matches(r"[\]]", "]"));
        assert!(!matches("[a", "a") && !matches("[", "[") && !matches("\\", "\\x"));
        assert!(!matches(&"*a".repeat(50), &"b".repeat(10_000)), "ends soon");
    }
}
