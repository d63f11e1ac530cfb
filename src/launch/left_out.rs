//! Places for ranks that get no work: one GPU of a host is bad, its others are not.
//!
//! Launchers start as many ranks on each host as on any other. So a rank is started at every place; one whose place is
//! left out starts no executor, touches no GPU and takes no task.
//!
//! Contract: a place is a host and the number of the rank on it. The list travels in [`VARIABLE`].

use crate::site::hosts;
use std::collections::BTreeSet;

/// The variable that tells ranks, as `host:number,host:number`.
pub const VARIABLE: &str = "BEAMPILOT_LEFT_OUT";

/// Places that get no work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut(BTreeSet<(String, usize)>);

impl LeftOut {
    /// Adds a place; true when it is new.
    pub fn add(&mut self, host: &str, place: usize) -> bool {
        self.0.insert((host.to_owned(), place))
    }

    /// Is that place left out?
    pub fn has(&self, host: &str, place: usize) -> bool {
        self.0.iter().any(|(h, p)| *p == place && hosts::same(h, host))
    }

    /// How many places of a host are.
    pub fn of_host(&self, host: &str) -> usize {
        self.0.iter().filter(|(h, _)| hosts::same(h, host)).count()
    }

    /// The variable's text; `None` when nothing is left out.
    pub fn text(&self) -> Option<String> {
        let places: Vec<String> = self.0.iter().map(|(host, place)| format!("{host}:{place}")).collect();
        (!places.is_empty()).then(|| places.join(","))
    }

    /// What the variable says; words it does not understand are ignored, so that the worst they cost is a bad GPU.
    pub fn parse(text: &str) -> Self {
        let place = |word: &str| {
            let (host, place) = word.rsplit_once(':')?;
            Some((host.to_owned(), place.parse().ok()?))
        };
        Self(text.split(',').filter_map(place).collect())
    }

    /// Is this process's place left out?
    pub fn has_us() -> bool {
        let Ok(text) = std::env::var(VARIABLE) else { return false };
        let place = crate::transport::launch::local_rank();
        place.is_some_and(|place| Self::parse(&text).has(&crate::store::claims::host_name(), place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_travel_as_text() {
        let mut left_out = LeftOut::default();
        assert_eq!(left_out.text(), None);
        assert!(left_out.add("b", 3) && left_out.add("a.hsn", 0) && !left_out.add("b", 3));
        assert_eq!(left_out.text().unwrap(), "a.hsn:0,b:3");
        assert_eq!(LeftOut::parse("a.hsn:0,b:3"), left_out);
        assert!(left_out.has("b", 3) && !left_out.has("b", 0) && !left_out.has("c", 3));
        assert_eq!((left_out.of_host("b"), left_out.of_host("c")), (1, 0));
        assert_eq!(LeftOut::parse("nonsense,x:,:"), LeftOut::default());
    }
}
