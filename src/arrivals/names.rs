//! Names are untrusted: which are refused, and how a refused one is shown.
//!
//! Contract: whatever [`refusal`] lets pass is UTF-8 without control characters and safe to print; what it
//! refuses is shown by [`display`], which is always one line of printable text.

/// Longest text [`display`] gives; a longer name is cut.
const SHOWN: usize = 240;

/// Characters that do not show, or that change how what follows shows.
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Why a name cannot be a scan's, if so.
pub fn refusal(name: &[u8]) -> Option<&'static str> {
    match std::str::from_utf8(name) {
        Err(_) => Some("its name is not UTF-8 text; rename it, with letters, digits, - and _"),
        Ok(text) if text.chars().any(deceives) => {
            Some("its name has control or invisible characters; rename it, with letters, digits, - and _")
        }
        Ok(_) => None,
    }
}

/// The name on one line, whatever it is: what cannot be shown becomes `\xNN` or `\u{…}`.
pub fn display(name: &[u8]) -> String {
    let mut out = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if deceives(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    if out.len() > SHOWN {
        let cut = (0..=SHOWN).rev().find(|&i| out.is_char_boundary(i)).unwrap_or(0);
        out.truncate(cut);
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_shown_on_one_line() {
        for (name, want) in [
            (&b"scan 1.h5"[..], "scan 1.h5"),
            (b"a\nb", "a\\nb"),
            (b"a\xffb", "a\\xffb"),
            ("µm".as_bytes(), "µm"),
            ("a\u{202e}5h.b".as_bytes(), "a\\u{202e}5h.b"),
        ] {
            assert_eq!(display(name), want);
        }
        assert!(refusal(b"scan 1.h5").is_none() && refusal("µm".as_bytes()).is_none());
        assert!(
            refusal(b"a\x1b[2J").is_some() && refusal(b"\xff").is_some() && refusal("\u{202e}".as_bytes()).is_some()
        );
    }

    proptest! {
        #[test]
        fn anything_is_shown_on_one_short_line(name in proptest::collection::vec(any::<u8>(), 0..400)) {
            let shown = display(&name);
            prop_assert!(shown.len() <= SHOWN + 3);
            prop_assert!(!shown.chars().any(deceives));
        }
    }
}
