//! Carries small messages between the coordinator and its workers: in one process, or over MPI.

pub mod wire;

/// A worker (an executor) as the coordinator knows it. Over MPI it is the rank; embedded, the executor's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct WorkerId(pub u32);

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The coordinator's end.
///
/// Contract: [`Transport::send`] queues and never blocks; [`Transport::exchange`] moves what is queued and
/// returns what came, without waiting; [`Transport::idle`] is the only call that waits. Messages between one
/// worker and the coordinator keep their order.
pub trait Transport {
    /// Queues a message.
    fn send(&mut self, worker: WorkerId, message: wire::ToWorker);
    /// Sends what is queued and appends what arrived to `inbox`; true when anything moved.
    fn exchange(&mut self, inbox: &mut Vec<(WorkerId, wire::FromWorker)>) -> bool;
    /// Waits until something may have arrived, `wake` has a message, or `longest` has passed; backs off by
    /// itself the longer nothing happens.
    fn idle(&mut self, wake: &crossbeam::channel::Receiver<()>, longest: std::time::Duration);
    /// Says goodbye: `Shutdown` to every worker, waits a bounded time for their `Bye`, and (MPI) finalizes.
    fn close(self: Box<Self>);
}
