//! Which job's task goes next: urgent above all, then streams by weight, within a stream previews first and
//! then the stream's order; what is past its deadline only when nothing else waits.
//!
//! Weights are kept by virtual time: a stream's clock advances by expected seconds / weight for each task it
//! is given, and the stream furthest behind goes next. A stream that had nothing to do does not save up: it
//! resumes at the present. Previews count like everything else, so a flood of them starves nobody.

use super::event::{JobNo, Time};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Within a stream, which of two scans goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The one that must be published first.
    #[default]
    Deadline,
    /// The one that came last: what people at the beamline look at.
    Newest,
}

/// Importance of a waiting job; smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A person asked.
    Urgent,
    /// Its next task is a probe, a plan or a preview.
    Preview,
    /// Ordinary.
    Normal,
    /// Past its deadline.
    Background,
}

/// Position of a job among those of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Class.
    pub class: Class,
    /// By deadline ascending, or by arrival descending.
    pub rank: u64,
    /// Tie-break, and the job itself.
    pub job: JobNo,
}

impl Place {
    /// The place of a job in a stream of that order.
    pub fn new(class: Class, order: Order, deadline: Time, last_byte: Time, job: JobNo) -> Self {
        let rank = match order {
            Order::Deadline => deadline.0,
            Order::Newest => u64::MAX - last_byte.0,
        };
        Self { class, rank, job }
    }
}

/// Virtual time that `==` and `<` order totally.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Clock(f64);

#[derive(Debug, Clone)]
struct Line {
    weight: f64,
    clock: Clock,
    waiting: BTreeSet<Place>,
    /// A person holds the stream: nothing of it goes next.
    held: bool,
}

/// Jobs with something ready, by stream.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    lines: Vec<Line>,
    /// Virtual time of the last stream served.
    present: f64,
}

impl Queue {
    /// A queue for streams of these weights; a stream's index is its position.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let line =
            |w: u32| Line { weight: f64::from(w.max(1)), clock: Clock(0.0), waiting: BTreeSet::new(), held: false };
        Self { lines: weights.into_iter().map(line).collect(), present: 0.0 }
    }

    /// Holds a stream, or lets it go on.
    pub fn hold(&mut self, stream: usize, held: bool) {
        let present = self.present;
        if let Some(line) = self.lines.get_mut(stream) {
            line.held = held;
            // What was held saves nothing up.
            line.clock.0 = line.clock.0.max(present);
        }
    }

    /// Changes a stream's weight.
    pub fn set_weight(&mut self, stream: usize, weight: u32) {
        if let Some(line) = self.lines.get_mut(stream) {
            line.weight = f64::from(weight.max(1));
        }
    }

    /// Puts a job in line.
    pub fn insert(&mut self, stream: usize, place: Place) {
        let present = self.present;
        if let Some(line) = self.lines.get_mut(stream) {
            if line.waiting.is_empty() {
                line.clock.0 = line.clock.0.max(present);
            }
            line.waiting.insert(place);
        }
    }

    /// Takes a job out of line; true when it was there.
    pub fn remove(&mut self, stream: usize, place: &Place) -> bool {
        self.lines.get_mut(stream).is_some_and(|line| line.waiting.remove(place))
    }

    /// The job that goes next, with its stream.
    pub fn next(&self) -> Option<(usize, Place)> {
        let free = || self.lines.iter().enumerate().filter(|(_, l)| !l.held);
        let heads = || free().filter_map(|(i, l)| Some((i, l, *l.waiting.first()?)));
        let urgent = heads().filter(|(_, _, p)| p.class == Class::Urgent).min_by_key(|(_, _, p)| *p);
        if let Some((stream, _, place)) = urgent {
            return Some((stream, place));
        }
        let by_clock = |a: &(usize, &Line, Place), b: &(usize, &Line, Place)| {
            let late = |p: &Place| p.class == Class::Background;
            late(&a.2).cmp(&late(&b.2)).then(a.1.clock.0.total_cmp(&b.1.clock.0)).then(a.0.cmp(&b.0))
        };
        let best = heads().min_by(by_clock)?;
        Some((best.0, best.2))
    }

    /// Charges a stream for work it was given, in expected seconds (negative: given back).
    pub fn charge(&mut self, stream: usize, seconds: f64) {
        if let Some(line) = self.lines.get_mut(stream) {
            if seconds > 0.0 {
                self.present = self.present.max(line.clock.0);
            }
            line.clock.0 += seconds / line.weight;
        }
    }

    /// Jobs in line.
    pub fn len(&self) -> usize {
        self.lines.iter().map(|l| l.waiting.len()).sum()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|l| l.waiting.is_empty())
    }

    /// Everyone in line, stream by stream.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Place)> {
        self.lines.iter().enumerate().flat_map(|(i, l)| l.waiting.iter().map(move |p| (i, p)))
    }
}

impl PartialOrd for Clock {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.0.total_cmp(&other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(class: Class, rank: u64, job: u64) -> Place {
        Place { class, rank, job: JobNo(job) }
    }

    /// Serves `rounds` tasks of one second each, every stream always having work; returns how many each got.
    fn served(weights: &[u32], rounds: usize) -> Vec<usize> {
        let mut queue = Queue::new(weights.iter().copied());
        (0..weights.len()).for_each(|s| queue.insert(s, place(Class::Normal, 0, s as u64)));
        let mut counts = vec![0; weights.len()];
        for _ in 0..rounds {
            let (stream, _) = queue.next().unwrap();
            counts[stream] += 1;
            queue.charge(stream, 1.0);
        }
        counts
    }

    #[test]
    fn streams_share_by_weight() {
        assert_eq!(served(&[1, 1], 100), [50, 50]);
        assert_eq!(served(&[3, 1], 100), [75, 25]);
        assert_eq!(served(&[1, 2, 7], 100), [10, 20, 70]);
    }

    #[test]
    fn a_flood_of_previews_does_not_starve_another_stream() {
        let mut queue = Queue::new([1, 1]);
        (0..1000).for_each(|j| queue.insert(0, place(Class::Preview, j, j)));
        queue.insert(1, place(Class::Normal, 0, 5000));
        let mut turns = [0; 2];
        for _ in 0..10 {
            let (stream, _) = queue.next().unwrap();
            turns[stream] += 1;
            queue.charge(stream, 1.0);
        }
        assert_eq!(turns, [5, 5]);
    }

    #[test]
    fn urgent_goes_first_and_background_last() {
        let mut queue = Queue::new([1, 1]);
        queue.insert(0, place(Class::Background, 0, 1));
        queue.insert(1, place(Class::Normal, 9, 2));
        queue.charge(1, 1e6);
        assert_eq!(queue.next().unwrap().1.job, JobNo(2), "late work waits although its stream is behind");
        queue.insert(1, place(Class::Urgent, 99, 3));
        assert_eq!(queue.next().unwrap().1.job, JobNo(3));
    }

    #[test]
    fn an_idle_stream_saves_nothing_up() {
        let mut queue = Queue::new([1, 1]);
        queue.insert(0, place(Class::Normal, 0, 1));
        for _ in 0..100 {
            queue.charge(0, 1.0);
        }
        queue.insert(1, place(Class::Normal, 0, 2));
        let mut second = 0;
        for _ in 0..20 {
            let (stream, _) = queue.next().unwrap();
            second += usize::from(stream == 1);
            queue.charge(stream, 1.0);
        }
        assert!((10..=11).contains(&second), "the newcomer got {second} of 20");
    }

    #[test]
    fn order_within_a_stream() {
        let at = |order, last_byte: u64, job| {
            Place::new(Class::Normal, order, Time(last_byte + 100), Time(last_byte), JobNo(job))
        };
        assert!(at(Order::Deadline, 1, 1) < at(Order::Deadline, 2, 2));
        assert!(at(Order::Newest, 2, 2) < at(Order::Newest, 1, 1));
    }
}
