//! What a plan program prints: one item a line, or one JSON object a line.
//!
//! Contract: bounded in number and size; text that cannot be an argument is refused. A line that begins with `{` is
//! an object with `item` (text) and, if some take longer than others, `cost` (a number above 0, 1 = ordinary).

use crate::technique::Fault;
use serde::{Deserialize, Serialize};

/// Bytes of one item: arguments are bounded, and every task carries its own.
const ITEM_MAX: usize = 4096;
/// Bytes of everything that a plan prints.
pub(super) const PRINTED_MAX: usize = 16 << 20;

/// One task's worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    pub item: String,
    #[serde(default = "ordinary")]
    pub cost: f64,
}

fn ordinary() -> f64 {
    1.0
}

/// The items in the order printed; empty lines do not count.
pub(super) fn parse(printed: &[u8], most: usize) -> Result<Vec<Item>, Fault> {
    let bad = |text: String| Err(Fault::Input(format!("the plan program printed {text}")));
    let Ok(text) = std::str::from_utf8(printed) else { return bad("items that are not UTF-8 text".to_owned()) };
    let mut items = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let n = n + 1;
        if line.len() > ITEM_MAX {
            return bad(format!("an item of {} bytes in line {n}; at most {ITEM_MAX} fit", line.len()));
        }
        let item = if line.starts_with('{') {
            match serde_json::from_str::<Item>(line) {
                Ok(item) => item,
                Err(e) => {
                    return bad(format!("line {n}, which is no item ({e}); print {{\"item\": \"…\", \"cost\": 1}}"));
                }
            }
        } else {
            Item { item: line.to_owned(), cost: ordinary() }
        };
        if item.item.is_empty() || item.item.chars().any(char::is_control) {
            return bad(format!("an item in line {n} that is empty or has control characters"));
        }
        if !(item.cost > 0.0 && item.cost <= 1e6) {
            return bad(format!("a cost of {} in line {n}; print a number above 0, up to 1e6", item.cost));
        }
        if items.len() == most {
            return bad(format!("more than {most} items; let one item do more, or raise max_items in the recipe"));
        }
        items.push(item);
    }
    if items.is_empty() {
        return bad("no items; exit with a code of exit.reject when there is nothing to do for a scan".to_owned());
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_objects_are_items() {
        let got = parse(b"a b\n\n{\"item\": \"c\", \"cost\": 2}\nd", 3).unwrap();
        let want = [("a b", 1.0), ("c", 2.0), ("d", 1.0)].map(|(i, cost)| Item { item: i.to_owned(), cost });
        assert_eq!(got, want);
    }

    #[test]
    fn what_is_no_item_is_refused() {
        for (text, words) in [
            (&b""[..], "no items"),
            (b"a\nb\nc\nd\n", "more than 3 items"),
            (b"{\"item\": 3}", "line 1, which is no item"),
            (b"{\"item\": \"a\", \"cost\": -1}", "a cost of -1"),
            (b"a\tb", "control characters"),
            (b"\xff", "UTF-8"),
            (&[b'a'; 5000], "5000 bytes"),
        ] {
            let fault = parse(text, 3).unwrap_err();
            assert!(matches!(fault, Fault::Input(ref t) if t.contains(words)), "{fault}");
        }
    }
}
