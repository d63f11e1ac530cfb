//! What executors need of other rooms: manifests of arrivals, sealing of bundles.

use crate::arrivals::manifest::{self, ManifestEntry};
use crate::publish;
use crate::technique::{Fault, TaskContext, TaskOutput};
use crate::worker::Services;

/// The services of a pilot's executors.
pub struct PilotServices;

/// Packs a manifest's entries for a Verify task.
pub fn pack(entries: &[ManifestEntry]) -> Vec<u8> {
    // Strings, numbers and enums always serialise.
    serde_json::to_vec(entries).unwrap_or_default()
}

impl Services for PilotServices {
    fn verify(&self, ctx: &TaskContext) -> Result<(), Fault> {
        let entries: Vec<ManifestEntry> = serde_json::from_slice(&ctx.task.params)
            .map_err(|e| Fault::Task(format!("the manifest did not travel well: {e}")))?;
        manifest::verify(&ctx.job.scan.root, &entries)
    }

    fn seal(&self, ctx: &TaskContext, output: TaskOutput) -> Result<TaskOutput, Fault> {
        publish::seal(ctx, output)
    }
}
