//! People beside the pilots: requests from a login node, through the inbox that will run, and edits of the campaign.
//!
//! Contract: a request is written by a process of its own, call by call, and tried again until it is there. Every pilot
//! looks with [`Inbox`], unchanged. Until everything heals people ask for anything; then what is held is resumed, and
//! each request must get its answer.

use super::faults::{Phase, Schedule};
use super::fibre::{Ask, EPOCH_MS, SimFs, ask};
use super::tree::Client;
use super::world::{Ev, Out, Purpose, S, SimScan, World};
use crate::arrivals::ArrivalCommand;
use crate::campaign::Campaign;
use crate::coordinator::event::Event;
use crate::coordinator::job::recipe_digits;
use crate::coordinator::pilot::edits::follow;
use crate::coordinator::pilot::specs;
use crate::store::Layout;
use crate::store::requests::{self, ACCEPTED, DONE, Fold, REFUSED, Request};
use crate::technique;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{LazyLock, PoisonError};

/// The campaign, and as it is edited in some shifts: another recipe for one stream, other weights, another order.
pub static CAMPAIGNS: LazyLock<[Campaign; 2]> = LazyLock::new(|| [campaign("auto", 1, 3), campaign("310.5", 2, 1)]);

fn campaign(center: &str, s: u32, t: u32) -> Campaign {
    let stream = |name: &str, weight: u32, order: &str, center: &str| {
        let center = if center == "auto" { "\"auto\"" } else { center };
        format!(
            "[[stream]]\nname = \"{name}\"\nwatch = \"/watch/{name}\"\npattern = \"*.h5\"\ntechnique = \"tomography\"\n\
             output = \"/out\"\ndeadline = \"10m\"\norder = \"{order}\"\nweight = {weight}\n\
             [stream.recipe]\ncenter = {center}\n"
        )
    };
    let order = if center == "auto" { "deadline" } else { "newest" };
    let streams = stream("s", s, "deadline", "auto") + &stream("t", t, order, center);
    let text = format!("[campaign]\nname = \"shift\"\nstate = \"/state\"\n{streams}");
    Campaign::parse(&text, Path::new("/campaign.toml")).unwrap_or_else(|e| panic!("{e}"))
}

/// A request of a shift.
#[derive(Debug, Clone)]
pub struct Wish {
    pub id: String,
    pub request: Request,
    /// It is in the inbox.
    pub there: bool,
}

/// Recipes that somebody asked for.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Last digits of keys that any scan may have.
    any: BTreeSet<String>,
    /// Last digits of keys of one scan.
    one: BTreeMap<String, (String, String)>,
    /// Recipe entries for "from now on", by stream.
    standing: Vec<(String, serde_json::Map<String, serde_json::Value>)>,
}

impl Wanted {
    pub fn allows(&self, digits: &str, stream: &str, scan: &str) -> bool {
        self.any.contains(digits) || self.one.get(digits).is_some_and(|(s, n)| s == stream && n == scan)
    }
}

fn entries(center: f64) -> serde_json::Map<String, serde_json::Value> {
    [("center".to_owned(), center.into())].into_iter().collect()
}

/// Draws what people ask for, and when.
pub fn draw(rng: &mut ChaCha8Rng, schedule: &Schedule) -> Vec<(u64, Request)> {
    let mut all = Vec::new();
    let mut reprocessed = BTreeSet::new();
    if rng.random_bool(0.4) {
        return all;
    }
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(5 * S..schedule.heal);
        let n = rng.random_range(0..schedule.scans);
        let (stream, scan) = (SimScan::stream(n).to_owned(), SimScan::name(n));
        let later = at + rng.random_range(S..40 * S);
        match rng.random_range(0..10) {
            0 | 1 => {
                all.push((at, Request::Hold { stream: stream.clone() }));
                all.push((later, Request::Resume { stream }));
            }
            2 => all.push((at, Request::Urgent { stream, scan })),
            3 => all.push((at, Request::Skip { stream, scan })),
            4 => {
                all.push((at, Request::Skip { stream: stream.clone(), scan: scan.clone() }));
                all.push((later, Request::Release { stream, scan }));
            }
            5 | 6 => all.push((at, Request::Release { stream, scan })),
            7 => all.push((at, Request::Reprocess { stream, scan: None, recipe: entries(300.5) })),
            // One a scan: a second one takes the place of the first.
            _ if !reprocessed.insert(n) => {}
            8 => all.push((at, Request::Reprocess { stream, scan: Some(scan), recipe: entries(-1e9) })),
            _ => all.push((at, Request::Reprocess { stream, scan: Some(scan), recipe: entries(301.5) })),
        }
    }
    all
}

impl World {
    /// A person asks.
    pub fn ask_for(&mut self, request: Request) {
        let n = self.wishes.len();
        let id = format!("{:013}-{n:08x}", EPOCH_MS + self.now / 1000);
        let (stream, scan) = request.about();
        if let Request::Reprocess { recipe, .. } = &request {
            match scan {
                Some(scan) => {
                    let digits = recipe_digits("tomography", "", &id);
                    self.wanted.one.insert(digits, (stream.to_owned(), scan.to_owned()));
                }
                None => {
                    self.wanted.standing.push((stream.to_owned(), recipe.clone()));
                    self.want();
                }
            }
        }
        self.wishes.push(Wish { id: id.clone(), request: request.clone(), there: false });
        let proc = self.spawn_proc(1002);
        let fs = SimFs::new(self.tree.clone(), Client { node: 1002, beamline: false }, &format!("p{proc}"));
        let layout = Layout { state: "/state".into() };
        self.spawn(proc, Purpose::Wish(n, proc), Phase::Asking, move || {
            while requests::submit_as(&fs, &layout, &id, "visitor", &request).is_err() {
                ask(Ask::Sleep(S));
            }
            Out::Nothing
        });
    }

    pub fn asked(&mut self, n: usize, proc: usize) {
        self.wishes[n].there = true;
        self.die(proc);
    }

    /// Somebody saves another campaign file.
    pub fn edit(&mut self) {
        self.editions.push((EPOCH_MS + self.now / 1000, &CAMPAIGNS[1]));
        self.want();
    }

    /// What the campaign's editions, and requests for all scans from now on, make of recipes.
    pub fn want(&mut self) {
        for (_, campaign) in &self.editions {
            for stream in &campaign.streams {
                let technique = technique::registry(&stream.technique).expect("a technique of this build");
                let standing = self.wanted.standing.iter().filter(|(s, _)| *s == stream.name).map(|(_, r)| r.clone());
                for over in standing.chain([serde_json::Map::new()]).collect::<Vec<_>>() {
                    let table = requests::merge(&stream.recipe, &over).expect("plain entries");
                    let Ok(recipe) = technique.recipe(&table) else { continue };
                    self.wanted.any.insert(recipe_digits(&stream.technique, &recipe.to_string(), ""));
                }
            }
        }
    }

    /// Keys' last digits of a stream as the first edition has it.
    pub fn first_digits(stream: &str) -> &'static str {
        static DIGITS: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
            let specs = specs(&CAMPAIGNS[0]).expect("a valid campaign");
            specs.into_iter().map(|s| (s.name, recipe_digits(&s.technique, &s.recipe, ""))).collect()
        });
        DIGITS.get(stream).map_or("", String::as_str)
    }

    // ---- the pilots' side ---------------------------------------------------------------------------------

    /// A pilot looks into its inbox, and at the campaign file.
    pub fn look_into_inbox(&mut self, p: usize) {
        if self.pilots[p].finishing {
            return;
        }
        self.after(2 * S, Ev::Inbox(p));
        if std::mem::replace(&mut self.pilots[p].looking, true) {
            return;
        }
        let newest = self.editions.len() - 1;
        let edited = (self.pilots[p].edition < newest).then(|| self.editions[newest]);
        self.pilots[p].edition = newest;
        let (inbox, proc) = (self.pilots[p].inbox.clone(), self.pilots[p].proc);
        self.spawn(proc, Purpose::Inbox(p), Phase::Asking, move || {
            let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.look(false);
            if let Some((since_ms, campaign)) = edited {
                follow(&mut inbox, campaign, since_ms);
            }
            Out::Nothing
        });
    }

    /// What the inbox posted reaches core and arrivals, in this order.
    pub fn deliver(&mut self, p: usize) {
        for event in self.pilots[p].letters.take() {
            self.after(50, Ev::ToCore(p, Box::new(event)));
        }
        let commands: Vec<ArrivalCommand> = self.pilots[p].commands.try_iter().collect();
        for command in commands {
            if let ArrivalCommand::Again { name, .. } = command
                && let Some(scan) = self.scans.iter().position(|s| s.name == name)
            {
                self.after(100, Ev::Again(p, scan));
            }
        }
    }

    pub fn again(&mut self, p: usize, scan: usize) {
        self.pilots[p].known.remove(&scan);
        self.after(2 * S, Ev::Poll(p, scan));
    }

    // ---- convergence --------------------------------------------------------------------------------------

    /// What everybody's requests together say; those that were refused say nothing.
    pub fn fold(&self) -> Fold {
        let refused = |w: &Wish| self.outcome(w).is_some_and(|o| o.outcome == REFUSED);
        let mut there: Vec<&Wish> = self.wishes.iter().filter(|w| w.there && !refused(w)).collect();
        there.sort_by(|a, b| a.id.cmp(&b.id));
        Fold::of(there.into_iter().map(|w| &w.request))
    }

    fn outcome(&self, wish: &Wish) -> Option<requests::Outcome> {
        let path = format!("/state/requests/{}.outcome.json", wish.id);
        let bytes = self.fs_tree().read(path.as_ref()).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Everything heals: what is held goes on.
    pub fn resume_all(&mut self) {
        let held: BTreeSet<&str> = ["s", "t"].into();
        let holds = self.wishes.iter().any(|w| matches!(w.request, Request::Hold { .. }));
        for stream in held.into_iter().filter(|_| holds) {
            self.ask_for(Request::Resume { stream: stream.to_owned() });
        }
    }

    /// Requests without the answer they deserve.
    pub fn unanswered(&self, fold: &Fold) -> String {
        let mut left = String::new();
        for wish in &self.wishes {
            let outcome = self.outcome(wish);
            let tree = self.fs_tree();
            let (stream, scan) = wish.request.about();
            let at = (stream.to_owned(), scan.unwrap_or_default().to_owned());
            let fine = match outcome {
                None => false,
                Some(o) if o.outcome == ACCEPTED => match wish.request {
                    // Its end is found by a wall clock, and clocks are wrong here.
                    Request::Urgent { .. } => true,
                    _ => fold.skipped.contains(&at),
                },
                Some(o) if o.outcome == DONE && o.text.starts_with("published") => {
                    let digits = recipe_digits("tomography", "", &wish.id);
                    let one = matches!(wish.request, Request::Reprocess { .. });
                    !one || tree.published.keys().any(|k| k.ends_with(&digits))
                }
                Some(_) => true,
            };
            if !fine {
                left += &format!(" request {} ({})", wish.id, wish.request.line());
            }
        }
        left
    }

    /// Notes what a pilot's core is told, before it acts on it.
    pub fn note_wish(&mut self, p: usize, event: &Event) {
        let pilot = &mut self.pilots[p];
        match event {
            Event::Hold { stream } => _ = pilot.told_held.insert(stream.clone()),
            Event::Resume { stream } => _ = pilot.told_held.remove(stream),
            Event::Skip { stream, name } => _ = pilot.told_skipped.insert((stream.clone(), name.clone())),
            Event::Release { stream, name, .. } | Event::Recipe { stream, name: Some(name), .. } => {
                pilot.told_skipped.remove(&(stream.clone(), name.clone()));
            }
            Event::Campaign { since_ms, .. } => pilot.told_edit = Some(*since_ms),
            _ => {}
        }
    }
}
