//! Frames: several messages behind one versioned header.
//!
//! Contract
//! - Layout, little-endian: magic `BPLT` (4), wire version (2), direction (1), zero (1), number of messages (4),
//!   bytes of payload (4), CRC-32 of the payload (4), payload: the messages in bincode 2's standard
//!   configuration, one after the other. The header never changes its first six bytes, so that any two
//!   versions can tell each other apart.
//! - Whatever bytes come in, [`unpack`] returns messages or a [`FrameError`]; it never panics, and never
//!   allocates more than [`MAX_PAYLOAD`] for one message.
//! - [`pack`] takes messages from a queue in order until the frame holds [`TARGET`] bytes. That keeps ordinary
//!   frames below every eager limit we met (Open MPI's shared memory: 4 KiB); a single large message makes
//!   a single large frame, which senders must be ready to see complete late.
//!
//! A no-op round, measured by the tests: `Run` 20 bytes and `Done` 35 bytes, plus a header of 20 a frame.

use super::wire::{FromWorker, ToWorker};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"BPLT";
/// Version of header and messages. Raise it with any change to [`super::wire`] or to what travels in it.
pub const VERSION: u16 = 2;
/// Bytes of the header.
pub const HEADER: usize = 20;
/// A frame is closed once its payload holds this many bytes.
pub const TARGET: usize = 3 * 1024;
/// Largest payload, and so the largest single message. A plan of 100 000 tasks takes about 10 MiB.
pub const MAX_PAYLOAD: usize = 256 * 1024 * 1024;

/// What travels in frames of one direction.
pub trait Message: Serialize + DeserializeOwned {
    /// Tells the directions apart in the header.
    const DIRECTION: u8;
}

impl Message for ToWorker {
    const DIRECTION: u8 = 1;
}

impl Message for FromWorker {
    const DIRECTION: u8 = 2;
}

/// Bytes that are not a frame we can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its header, or than the header says.
    #[error("frame of {got} bytes is cut short: {want} expected")]
    Short {
        /// Bytes that came.
        got: usize,
        /// Bytes a whole frame would have.
        want: usize,
    },
    /// Something else talks on this channel.
    #[error("not a beampilot frame: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// Another version of beampilot.
    #[error("wire version {got}, this build speaks {VERSION}; run the same beampilot executable on every rank")]
    Version {
        /// The other side's version.
        got: u16,
    },
    /// A worker's message where the coordinator's was expected, or the other way round.
    #[error("frame of direction {got} where {want} was expected")]
    Direction {
        /// What the header says.
        got: u8,
        /// What this end reads.
        want: u8,
    },
    /// Damaged on the way.
    #[error("frame is damaged: CRC-32 {got:08x}, header says {want:08x}")]
    Checksum {
        /// Of the payload that came.
        got: u32,
        /// From the header.
        want: u32,
    },
    /// More than [`MAX_PAYLOAD`].
    #[error("message of {bytes} bytes exceeds the limit of {MAX_PAYLOAD}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The payload is whole but says nothing we understand.
    #[error("frame cannot be decoded: {0}")]
    Payload(String),
}

/// Takes messages from the front of `queue` into one frame. `None` when the queue is empty.
///
/// # Errors
/// The message at the front is too large or cannot be encoded; it was taken from the queue and is handed
/// back. Messages before it are not lost: they travel in a frame of their own first.
#[allow(clippy::result_large_err)] // Rare, and the message is what the caller needs.
pub fn pack<M: Message>(queue: &mut VecDeque<M>) -> Option<Result<Vec<u8>, (M, FrameError)>> {
    let first_guess = HEADER + 64 * queue.len().min(TARGET / 64);
    let mut frame = Vec::with_capacity(first_guess);
    frame.resize(HEADER, 0);
    let mut count = 0u32;
    while frame.len() < HEADER + TARGET {
        let Some(message) = queue.pop_front() else { break };
        let before = frame.len();
        let error = match bincode::serde::encode_into_std_write(&message, &mut frame, bincode::config::standard()) {
            Ok(bytes) if bytes > MAX_PAYLOAD => FrameError::TooLarge { bytes },
            // A large message that would push earlier ones past the limit waits for the next frame.
            Ok(_) if frame.len() - HEADER > MAX_PAYLOAD => {
                frame.truncate(before);
                queue.push_front(message);
                break;
            }
            Ok(_) => {
                count += 1;
                continue;
            }
            Err(e) => FrameError::Payload(e.to_string()),
        };
        if count == 0 {
            return Some(Err((message, error)));
        }
        frame.truncate(before);
        queue.push_front(message);
        break;
    }
    if count == 0 {
        return None;
    }
    let payload = frame.get(HEADER..).unwrap_or_default();
    let (bytes, crc) = (payload.len() as u32, crc32fast::hash(payload));
    let mut header = [0u8; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6] = M::DIRECTION;
    header[8..12].copy_from_slice(&count.to_le_bytes());
    header[12..16].copy_from_slice(&bytes.to_le_bytes());
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    frame[..HEADER].copy_from_slice(&header);
    Some(Ok(frame))
}

/// Length of the frame that these bytes begin with; `None` while its header is not complete.
///
/// # Errors
/// The bytes are not a frame of this version.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let magic = [header[0], header[1], header[2], header[3]];
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let got = u16::from_le_bytes([header[4], header[5]]);
    if got != VERSION {
        return Err(FrameError::Version { got });
    }
    let payload = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    if payload > MAX_PAYLOAD { Err(FrameError::TooLarge { bytes: payload }) } else { Ok(Some(HEADER + payload)) }
}

/// Appends a frame's messages to `inbox`; all of them or none.
///
/// # Errors
/// The bytes are not a frame of this version and direction.
pub fn unpack<M: Message>(frame: &[u8], inbox: &mut Vec<M>) -> Result<(), FrameError> {
    let short = |want| FrameError::Short { got: frame.len(), want };
    let (header, payload) = frame.split_first_chunk::<HEADER>().ok_or(short(HEADER))?;
    let u32_at = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
    let magic = [header[0], header[1], header[2], header[3]];
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let got = u16::from_le_bytes([header[4], header[5]]);
    if got != VERSION {
        return Err(FrameError::Version { got });
    }
    if header[6] != M::DIRECTION {
        return Err(FrameError::Direction { got: header[6], want: M::DIRECTION });
    }
    let (count, bytes, want) = (u32_at(8), u32_at(12) as usize, u32_at(16));
    if bytes > MAX_PAYLOAD {
        return Err(FrameError::TooLarge { bytes });
    }
    if payload.len() < bytes {
        return Err(short(HEADER + bytes));
    }
    if payload.len() > bytes {
        return Err(FrameError::Payload(format!("{} bytes follow the payload", payload.len() - bytes)));
    }
    let got = crc32fast::hash(payload);
    if got != want {
        return Err(FrameError::Checksum { got, want });
    }
    let kept = inbox.len();
    let outcome = decode(payload, count, inbox);
    if outcome.is_err() {
        inbox.truncate(kept);
    }
    outcome
}

fn decode<M: Message>(mut payload: &[u8], count: u32, inbox: &mut Vec<M>) -> Result<(), FrameError> {
    let config = bincode::config::standard().with_limit::<MAX_PAYLOAD>();
    for _ in 0..count {
        let (message, used) = bincode::serde::decode_from_slice::<M, _>(payload, config)
            .map_err(|e| FrameError::Payload(e.to_string()))?;
        inbox.push(message);
        payload = payload.get(used..).unwrap_or_default();
    }
    if payload.is_empty() {
        Ok(())
    } else {
        Err(FrameError::Payload(format!("{} bytes follow the last message", payload.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::plan::{Fault, TaskKind, TaskOutput, TaskSpec};
    use proptest::prelude::*;

    fn noop(attempt: u64) -> ToWorker {
        let task = TaskSpec { label: "n".into(), kind: TaskKind::Noop, params: Vec::new(), cost: 1.0, bytes_in: 0 };
        ToWorker::Run { attempt, job: 1, task }
    }

    fn one<M: Message>(message: M) -> Vec<u8> {
        pack(&mut VecDeque::from([message])).unwrap().map_err(|(_, e)| e).unwrap()
    }

    #[test]
    fn a_noop_costs_what_the_contract_says() {
        let run = one(noop(100_000)).len() - HEADER;
        let done = one(FromWorker::Done { attempt: 100_000, result: Ok(TaskOutput::default()) }).len() - HEADER;
        assert_eq!((run, done), (20, 35), "update the contract at the top of this file");
    }

    #[test]
    fn an_empty_queue_makes_no_frame() {
        assert!(pack::<ToWorker>(&mut VecDeque::new()).is_none());
    }

    #[test]
    fn frames_close_near_the_target_and_keep_order() {
        let mut queue: VecDeque<_> = (0..1000).map(noop).collect();
        let want: Vec<_> = queue.iter().cloned().collect();
        let mut got: Vec<ToWorker> = Vec::new();
        let mut frames = 0;
        while let Some(frame) = pack(&mut queue) {
            let frame = frame.map_err(|(_, e)| e).unwrap();
            assert!(frame.len() <= HEADER + TARGET + 64);
            unpack(&frame, &mut got).unwrap();
            frames += 1;
        }
        assert_eq!(got, want);
        assert!(frames < 10, "{frames} frames");
    }

    #[test]
    fn an_oversized_message_comes_back_after_what_was_before_it() {
        let big = FromWorker::Done { attempt: 2, result: Err(Fault::Task("x".repeat(MAX_PAYLOAD + 1))) };
        let mut queue = VecDeque::from([FromWorker::Bye, big, FromWorker::Bye]);
        assert!(pack(&mut queue).unwrap().is_ok());
        let (message, error) = pack(&mut queue).unwrap().unwrap_err();
        assert!(matches!(message, FromWorker::Done { attempt: 2, .. }));
        assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
        assert!(pack(&mut queue).unwrap().is_ok());
        assert!(pack(&mut queue).is_none());
    }

    #[test]
    fn other_versions_and_directions_are_named() {
        let mut frame = one(ToWorker::Shutdown);
        let mut inbox: Vec<FromWorker> = Vec::new();
        assert_eq!(unpack(&frame, &mut inbox), Err(FrameError::Direction { got: 1, want: 2 }));
        frame[4] = 9;
        let error = unpack::<ToWorker>(&frame, &mut Vec::new()).unwrap_err();
        assert_eq!(error, FrameError::Version { got: 9 });
        assert!(error.to_string().contains("same beampilot executable"));
        frame[0] = b'X';
        assert!(matches!(unpack::<ToWorker>(&frame, &mut Vec::new()), Err(FrameError::Magic(_))));
    }

    fn task() -> impl Strategy<Value = TaskSpec> {
        (".{0,20}", prop::collection::vec(any::<u8>(), 0..200), any::<f32>(), any::<u64>()).prop_map(
            |(label, params, cost, bytes_in)| {
                // NaN compares unequal to itself; the wire carries it, this test cannot see it.
                let cost = if cost.is_nan() { 0.0 } else { f64::from(cost) };
                TaskSpec { label, kind: TaskKind::Stage, params, cost, bytes_in }
            },
        )
    }

    fn message() -> impl Strategy<Value = ToWorker> {
        prop_oneof![
            any::<u64>().prop_map(|attempt| ToWorker::Cancel { attempt }),
            any::<u64>().prop_map(|job| ToWorker::Forget { job }),
            ".{0,40}".prop_map(|pilot| ToWorker::Welcome { pilot }),
            (any::<u64>(), any::<u64>(), task()).prop_map(|(attempt, job, task)| ToWorker::Run { attempt, job, task }),
            Just(ToWorker::Shutdown),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive(messages in prop::collection::vec(message(), 0..60)) {
            let mut queue = VecDeque::from(messages.clone());
            let mut got: Vec<ToWorker> = Vec::new();
            while let Some(frame) = pack(&mut queue) {
                unpack(&frame.map_err(|(_, e)| e).unwrap(), &mut got).unwrap();
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(unpack::<ToWorker>(&bytes, &mut Vec::new()).is_err());
        }

        /// Any single changed byte is noticed; a cut frame too.
        #[test]
        fn damage_is_noticed(message in message(), at in any::<prop::sample::Index>(), flip in 1u8..=255) {
            let mut frame = one(message);
            let mut inbox: Vec<ToWorker> = Vec::new();
            let at = at.index(frame.len());
            prop_assert!(unpack(&frame[..at], &mut inbox).is_err());
            frame[at] ^= flip;
            // Byte 7 is reserved and not looked at.
            prop_assert!(at == 7 || unpack(&frame, &mut inbox).is_err());
        }

        /// A payload of noise with a valid header reaches bincode: it must refuse it, not panic or balloon.
        #[test]
        fn noise_behind_a_good_header_never_panics(payload in prop::collection::vec(any::<u8>(), 0..400), count in 0u32..9) {
            let mut frame = one(ToWorker::Shutdown);
            frame.truncate(HEADER);
            frame[8..12].copy_from_slice(&count.to_le_bytes());
            frame[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            frame[16..20].copy_from_slice(&crc32fast::hash(&payload).to_le_bytes());
            frame.extend(&payload);
            let mut inbox: Vec<ToWorker> = vec![ToWorker::Shutdown];
            if unpack(&frame, &mut inbox).is_err() {
                prop_assert_eq!(inbox.len(), 1);
            }
        }
    }
}
