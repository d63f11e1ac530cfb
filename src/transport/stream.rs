//! Frames over a byte stream: a rank and its executor.
//!
//! Contract: a read takes whatever has come, up to `READ` bytes, and many frames are written at once, so that a
//! message costs a fraction of a system call. A frame may come in any number of pieces.

use super::frame::{self, FrameError, Message};
use std::collections::VecDeque;
use std::io::{self, Read};

/// Bytes one read may take.
const READ: usize = 256 * 1024;

/// Puts frames together again.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold something.
    filled: usize,
}

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it carried.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl FrameReader {
    /// One read; appends the messages that are complete by then. False at the end of the stream.
    ///
    /// # Errors
    /// As the stream says, a timeout for one; or what came is no frame.
    pub fn read<M: Message>(&mut self, stream: &mut impl Read, inbox: &mut Vec<M>) -> Result<bool, ReadError> {
        let room = self.filled + READ;
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        let got = stream.read(self.buffer.get_mut(self.filled..).unwrap_or_default())?;
        if got == 0 {
            return Ok(false);
        }
        self.filled += got;
        let mut at = 0;
        loop {
            let rest = self.buffer.get(at..self.filled).unwrap_or_default();
            let Some(whole) = frame::length(rest)?.and_then(|n| rest.get(..n)) else { break };
            frame::unpack(whole, inbox)?;
            at += whole.len();
        }
        if at > 0 {
            self.buffer.copy_within(at..self.filled, 0);
        }
        self.filled -= at;
        Ok(true)
    }
}

/// Empties `queue` into frames, appended to `bytes`. A message that cannot be sent goes to `refused`.
pub fn write_frames<M: Message>(queue: &mut VecDeque<M>, bytes: &mut Vec<u8>, mut refused: impl FnMut(M, FrameError)) {
    while let Some(packed) = frame::pack(queue) {
        match packed {
            Ok(frame) => bytes.extend_from_slice(&frame),
            Err((message, error)) => refused(message, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::wire::ToWorker;

    /// Gives a few bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buffer.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn frames_survive_any_cutting() {
        let messages: Vec<ToWorker> = (0..2000).map(|attempt| ToWorker::Cancel { attempt }).collect();
        let mut bytes = Vec::new();
        write_frames(&mut messages.iter().cloned().collect(), &mut bytes, |_, e| panic!("{e}"));
        for piece in [1, 7, 4096, usize::MAX] {
            let (mut reader, mut drip, mut inbox) = (FrameReader::default(), Drip(&bytes, piece), Vec::new());
            while reader.read::<ToWorker>(&mut drip, &mut inbox).unwrap() {}
            assert_eq!(inbox, messages);
        }
        let mut reader = FrameReader::default();
        let outcome = reader.read::<ToWorker>(&mut Drip(&[0; 100], 100), &mut Vec::new());
        assert!(matches!(outcome, Err(ReadError::Frame(FrameError::Magic(_)))));
    }
}
