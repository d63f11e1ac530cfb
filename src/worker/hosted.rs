//! Where an executor lives: in threads of its rank, or in a process of its own. To the rank it is the same.

use super::child::Proxy;
use super::executor::{Executor, ExecutorConfig};
use super::keeper::Keeper;
use crate::transport::WorkerId;
use crate::transport::wire::{FromWorker, ToWorker};
use crossbeam::channel::Sender;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How executors are hosted.
#[derive(Clone)]
pub enum Hosting {
    /// In threads of this process: a crash takes the rank along.
    Threads,
    /// In a process of its own, started by this keeper.
    Processes(Arc<Keeper>),
}

/// A running executor.
pub enum Hosted {
    /// In this process.
    Threads(Executor),
    /// In its own.
    Process(Proxy),
    /// Nowhere: this rank takes no tasks.
    Nowhere(WorkerId),
}

impl From<Executor> for Hosted {
    fn from(executor: Executor) -> Self {
        Self::Threads(executor)
    }
}

impl Hosted {
    /// Starts an executor as its configuration says. Its `Hello` comes on `out`.
    ///
    /// # Errors
    /// A thread or a process could not be started.
    pub fn spawn(config: ExecutorConfig, out: Sender<(WorkerId, FromWorker)>) -> io::Result<Self> {
        match config.hosting.clone() {
            Hosting::Threads => Executor::spawn(config, out).map(Self::Threads),
            Hosting::Processes(keeper) => Proxy::spawn(&config, keeper, out).map(Self::Process),
        }
    }

    /// No executor at all; it says goodbye instead of hello.
    pub fn nowhere(id: WorkerId, out: &Sender<(WorkerId, FromWorker)>) -> Self {
        // The receiver is gone only when the process is ending.
        let _ = out.send((id, FromWorker::Bye));
        Self::Nowhere(id)
    }

    /// Its name to the coordinator.
    pub fn id(&self) -> WorkerId {
        match self {
            Self::Threads(e) => e.id(),
            Self::Process(p) => p.id(),
            Self::Nowhere(id) => *id,
        }
    }

    /// Takes messages, in order. Never blocks.
    pub fn deliver(&self, messages: impl IntoIterator<Item = ToWorker>) {
        match self {
            Self::Threads(e) => e.deliver(messages),
            Self::Process(p) => p.deliver(messages),
            Self::Nowhere(_) => {}
        }
    }

    /// Ends it; false when it did not end in time and is left behind.
    pub fn join(self, longest: Duration) -> bool {
        match self {
            Self::Threads(e) => e.join(longest),
            Self::Process(p) => p.join(longest),
            Self::Nowhere(_) => true,
        }
    }
}
