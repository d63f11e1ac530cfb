//! What a program says, bounded: the beginning and the end are kept, and how much was left out between them.

use std::collections::VecDeque;
use std::io::{self, Read};

/// Output of one stream.
#[derive(Debug, Default)]
pub(super) struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    head_max: usize,
    tail_max: usize,
    total: u64,
}

/// Bytes read at once. A pipe holds 64 KiB; most programs say a line or nothing.
const BLOCK: usize = 16 * 1024;

impl Capture {
    /// Keeps that much of the beginning and of the end.
    pub(super) fn new(head_max: usize, tail_max: usize) -> Self {
        Self { head_max, tail_max, ..Self::default() }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(self.tail_max);
        self.tail.drain(..over);
    }

    /// Takes what is there now, at most a few blocks; false at the end of the stream.
    pub(super) fn drain(&mut self, from: &mut impl Read) -> io::Result<bool> {
        let mut block = [0u8; BLOCK];
        for _ in 0..64 {
            match from.read(&mut block) {
                Ok(0) => return Ok(false),
                Ok(n) => self.put(block.get(..n).unwrap_or(&[])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Everything that was said; `None` when some of it was left out.
    pub(super) fn whole(&self) -> Option<Vec<u8>> {
        (self.total == (self.head.len() + self.tail.len()) as u64)
            .then(|| self.head.iter().chain(&self.tail).copied().collect())
    }

    /// For a log file.
    pub(super) fn log(&self) -> Vec<u8> {
        let left_out = self.total - (self.head.len() + self.tail.len()) as u64;
        let mut out = self.head.clone();
        if left_out > 0 {
            out.extend_from_slice(format!("\n[... {left_out} bytes left out ...]\n").as_bytes());
        }
        out.extend(&self.tail);
        out
    }

    /// The last lines, on one line of printable text, for a reason that people read.
    pub(super) fn last_lines(&self, lines: usize, most: usize) -> String {
        let bytes: Vec<u8> = self.head.iter().chain(&self.tail).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        let shown = all[all.len().saturating_sub(lines)..].join(" | ");
        let shown: String = shown.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let skip = shown.chars().count().saturating_sub(most);
        let cut: String = shown.chars().skip(skip).collect();
        if skip > 0 { format!("…{cut}") } else { cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_and_end_are_kept() {
        let mut c = Capture::new(4, 4);
        assert!(c.is_empty());
        c.put(b"0123");
        assert_eq!(c.whole().unwrap(), b"0123");
        c.put(b"45");
        assert_eq!(c.log(), b"012345");
        c.put(&[b'x'; 1000]);
        c.put(b"cdef");
        assert!(c.whole().is_none());
        assert_eq!(String::from_utf8(c.log()).unwrap(), "0123\n[... 1002 bytes left out ...]\ncdef");
    }

    #[test]
    fn the_last_lines_are_printable() {
        let mut c = Capture::new(100, 100);
        c.put(b"a\nb\n\x1b[31mred\n\n");
        assert_eq!(c.last_lines(2, 100), "b |  [31mred");
        assert_eq!(c.last_lines(9, 3), "…red");
    }
}
