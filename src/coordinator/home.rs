//! The core's way with scratch on a node's own disk: which node a scan's tasks run on, and what follows when it is lost.
//!
//! Same contract as [`super::core`]. A job whose plan leaves scratch is given a home, one host, when node scratch is set
//! and nothing is lost by it: there is only one host, or there are as many jobs as hosts, so that the others have work.
//! All its tasks then run there, while somebody there may work. When the last worker there is gone, so is the scratch: the
//! claim goes back and the job starts anew. Nothing depends on this for a right result: a task that does not find
//! scratch makes it again from the scan.

use super::core::Core;
use super::event::{JobNo, Time};
use super::job::Phase;
use crate::technique::plan::Plan;
use crate::transport::WorkerId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

impl Core {
    /// The host for a job that was just planned; `None`: any worker, and shared scratch.
    pub(super) fn home_for(&self, plan: &Plan) -> Option<String> {
        if !plan.scratch || self.limits.scratch.is_none() {
            return None;
        }
        let mut hosts: BTreeMap<&str, (usize, Reverse<usize>)> = BTreeMap::new();
        for (_, worker) in self.workers.iter().filter(|(_, w)| !w.drained) {
            hosts.entry(&worker.host).or_default().1.0 += 1;
        }
        let active = self.jobs.values().filter(|j| j.is_active()).count();
        if hosts.len() > active.max(1) {
            return None;
        }
        for home in self.jobs.values().filter_map(|j| j.home.as_deref()) {
            if let Some((homes, _)) = hosts.get_mut(home) {
                *homes += 1;
            }
        }
        // The one that is home to fewest jobs, with most workers.
        hosts.into_iter().min_by_key(|(_, load)| *load).map(|(host, _)| host.to_owned())
    }

    /// Workers that are not at the job's home, while somebody there may work.
    pub(super) fn away(&self, no: JobNo) -> BTreeSet<WorkerId> {
        let Some(home) = self.jobs.get(&no).and_then(|j| j.home.as_deref()) else { return BTreeSet::new() };
        if !self.inhabited(home) {
            return BTreeSet::new();
        }
        self.workers.iter().filter(|(_, w)| w.host != home).map(|(id, _)| id).collect()
    }

    fn inhabited(&self, host: &str) -> bool {
        self.workers.iter().any(|(_, w)| w.host == host && !w.drained)
    }

    /// Jobs whose home is lost start anew when scratch went with it; the others go on anywhere.
    pub(super) fn leave_lost_homes(&mut self, now: Time) {
        let lost = |(_, job): &(&JobNo, &super::job::Job)| job.home.as_deref().is_some_and(|h| !self.inhabited(h));
        let lost: Vec<JobNo> = self.jobs.iter().filter(lost).map(|(no, _)| *no).collect();
        for no in lost {
            let Some(job) = self.jobs.get_mut(&no) else { continue };
            job.home = None;
            let needed = matches!(job.phase, Phase::Working { .. });
            if needed && job.records.iter().any(|r| r.output.scratch.as_ref().is_some_and(|s| s.local)) {
                self.give_back(now, no);
            }
        }
    }
}
