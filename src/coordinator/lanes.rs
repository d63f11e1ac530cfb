//! The I/O pool: threads that carry out disk orders. Orders about one key run on one thread in the order given, so that
//! a release is done before the next claim of that key is tried. Other keys do not wait, up to the number of lanes.

use super::disk::Disk;
use super::driver::Mailbox;
use super::event::{Action, Event, PublishOutcome};
use crossbeam::channel::{Sender, unbounded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Work = Box<dyn FnOnce() + Send>;

/// Since when each lane has been in its present order, `Host::mono` in milliseconds plus one; 0 between orders.
#[derive(Clone)]
pub struct Busy(Arc<[AtomicU64; DiskPool::LANES]>);

impl Busy {
    /// How long the order that hangs longest has been under way.
    pub fn longest(&self, now: Duration) -> Duration {
        let since = self.0.iter().map(|b| b.load(Ordering::Relaxed)).filter(|ms| *ms > 0).min();
        since.map_or(Duration::ZERO, |ms| now.saturating_sub(Duration::from_millis(ms - 1)))
    }
}

/// Threads that carry out disk orders; orders of one key stay in order.
pub struct DiskPool {
    disk: Arc<Disk>,
    lanes: Vec<Sender<Work>>,
    mailbox: Mailbox,
    busy: Busy,
}

impl DiskPool {
    /// Lanes of the pool: enough that one hanging call does not stop the rest.
    pub const LANES: usize = 4;

    /// Starts the threads.
    pub fn spawn(disk: Arc<Disk>, mailbox: Mailbox) -> io::Result<Self> {
        let mut lanes = Vec::new();
        let busy = Busy(Arc::new(std::array::from_fn(|_| AtomicU64::new(0))));
        for n in 0..Self::LANES {
            let (tx, rx) = unbounded::<Work>();
            let lane = std::thread::Builder::new().name(format!("disk-{n}"));
            let (busy, host) = (busy.clone(), disk.host.clone());
            lane.spawn(move || {
                for work in rx {
                    let ms = u64::try_from(host.mono().as_millis()).unwrap_or(u64::MAX - 1);
                    busy.0[n].store(ms + 1, Ordering::Relaxed);
                    work();
                    busy.0[n].store(0, Ordering::Relaxed);
                }
            })?;
            lanes.push(tx);
        }
        Ok(Self { disk, lanes, mailbox, busy })
    }

    /// A look at how long orders take.
    pub fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// Runs `work` on the lane of `key`.
    pub fn run(&self, key: &str, work: impl FnOnce(&Disk, &Mailbox) + Send + 'static) {
        let lane = crc32fast::hash(key.as_bytes()) as usize % self.lanes.len();
        let (disk, mailbox) = (self.disk.clone(), self.mailbox.clone());
        // The lanes live as long as the pool.
        let _ = self.lanes[lane].send(Box::new(move || work(&disk, &mailbox)));
    }
}

/// Views over many bundles, after one more of them; a view that cannot be made is no reason to stop.
fn live(bundle: &std::path::Path) {
    let Some(results) = bundle.parent() else { return };
    for technique in crate::technique::all() {
        if let Err(fault) = technique.live(results, bundle) {
            tracing::warn!("{}: the live view is not up to date: {fault}", results.display());
        }
    }
}

/// Who carries out orders for the disk: the pool, or a stand-in that answers at once.
pub trait DiskOrders {
    /// Carries out an order, or gives it back when it is none for the disk.
    fn perform(&self, action: Action) -> Option<Action>;
    /// Hands a claim over: its writers are reaped, its parts stay.
    fn hand_over(&self, key: String, generation: u32);
    /// Removes what nobody will go on with, when nothing is left to do.
    fn sweep(&self);
    /// Waits until every order given so far is done, at most `longest`; false when that was not enough.
    fn flush(&self, longest: std::time::Duration) -> bool;
}

impl DiskOrders for DiskPool {
    fn perform(&self, action: Action) -> Option<Action> {
        match action {
            Action::Claim { job, key, scan } => self.run(&key.clone(), move |disk, mail| {
                let outcome = disk.claim(&key, &scan);
                mail.post(Event::Claimed { job, outcome });
            }),
            Action::Publish { job, key, scan, generation, staging, timeline, items } => {
                self.run(&key.clone(), move |disk, mail| {
                    let outcome = disk.publish(&key, &scan, generation, &staging, timeline, items);
                    let bundle =
                        if let PublishOutcome::Done { bundle } = &outcome { Some(bundle.clone()) } else { None };
                    mail.post(Event::Published { job, outcome });
                    if let Some(bundle) = bundle {
                        live(&bundle);
                    }
                });
            }
            Action::Quarantine { job, key, stream, name, version, own_version, generation, reason, .. } => {
                self.run(&key.clone(), move |disk, mail| {
                    let versions = (version, own_version);
                    let outcome = disk.quarantine(&key, &stream, &name, versions, generation, &reason);
                    mail.post(Event::Quarantined { job, outcome });
                });
            }
            Action::SavePlan { key, staging, plan } => {
                self.run(&key.clone(), move |disk, _| disk.save_plan(&key, &staging, &plan));
            }
            Action::Release { key, generation, staging } => {
                self.run(&key.clone(), move |disk, mail| {
                    let result = disk.release(&key, generation, &staging);
                    mail.post(Event::GivenBack { key, result });
                });
            }
            Action::ProbeStorage => self.run("", |disk, mail| {
                mail.post(Event::StorageProbed { result: disk.probe() });
            }),
            other => return Some(other),
        }
        None
    }

    fn sweep(&self) {
        self.run("sweep", |disk, _| disk.sweep(true));
    }

    fn hand_over(&self, key: String, generation: u32) {
        self.run(&key.clone(), move |disk, _| disk.hand_over(&key, generation));
    }

    fn flush(&self, longest: std::time::Duration) -> bool {
        let (tx, rx) = unbounded();
        for lane in &self.lanes {
            let tx = tx.clone();
            let _ = lane.send(Box::new(move || {
                let _ = tx.send(());
            }));
        }
        let end = std::time::Instant::now() + longest;
        (0..self.lanes.len()).all(|_| rx.recv_deadline(end).is_ok())
    }
}
