//! The one way to randomness: an `Rng` that a test can seed.
//!
//! The system source is the kernel's; nothing here keeps a state worth stealing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Debug)]
pub struct Rng(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Seeded(Arc<Stream>),
}

/// SHA-256 in counter mode: not for secrets, but the same everywhere for one seed.
#[derive(Debug)]
struct Stream {
    seed: u64,
    block: AtomicU64,
}

const ALPHANUMERIC: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const LOWERCASE: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";

impl Rng {
    pub fn system() -> Self {
        Self(Source::System)
    }

    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Stream { seed, block: AtomicU64::new(0) })))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the rng")]
    #[expect(clippy::panic, reason = "without the kernel's randomness no secret can be made: better to stop")]
    pub fn fill(&self, bytes: &mut [u8]) {
        match &self.0 {
            Source::System => {
                if let Err(cause) = getrandom::fill(bytes) {
                    panic!("the kernel gives no randomness: {cause}");
                }
            }
            Source::Seeded(stream) => stream.fill(bytes),
        }
    }

    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    pub fn u64(&self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// Evenly below `bound` (0 when `bound` is 0).
    pub fn below(&self, bound: u64) -> u64 {
        // The bias of the widening multiplication is below 2^-64 * bound: nothing for jitter and identifiers.
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// `length` letters and digits: 5.95 bits each.
    pub fn alphanumeric(&self, length: usize) -> String {
        self.pick(length, ALPHANUMERIC)
    }

    /// `length` small letters: for what people read out aloud.
    pub fn lowercase(&self, length: usize) -> String {
        self.pick(length, LOWERCASE)
    }

    fn pick(&self, length: usize, alphabet: &[u8]) -> String {
        // Bytes at or above the largest multiple of the alphabet are thrown away, so that no letter is favoured.
        let limit = 256 - 256 % alphabet.len();
        let mut text = String::with_capacity(length);
        let mut pool = [0u8; 64];
        while text.len() < length {
            self.fill(&mut pool);
            let fit = pool.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < limit);
            let letters = fit.filter_map(|byte| alphabet.get(byte % alphabet.len()));
            text.extend(letters.take(length - text.len()).map(|letter| char::from(*letter)));
        }
        text
    }
}

impl Stream {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let block = self.block.fetch_add(1, Ordering::Relaxed);
            let mut input = [0; 16];
            input[..8].copy_from_slice(&self.seed.to_le_bytes());
            input[8..].copy_from_slice(&block.to_le_bytes());
            let digest = ring::digest::digest(&ring::digest::SHA256, &input);
            chunk.copy_from_slice(&digest.as_ref()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_one_stream() {
        let (a, b, c) = (Rng::seeded(7), Rng::seeded(7), Rng::seeded(8));
        let (a, b, c) = (a.alphanumeric(100), b.alphanumeric(100), c.alphanumeric(100));
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(a.len(), 100);
    }

    #[test]
    fn every_letter_turns_up_about_as_often() {
        let text = Rng::seeded(1).alphanumeric(62_000);
        for letter in ALPHANUMERIC {
            let count = text.bytes().filter(|byte| byte == letter).count();
            assert!((800..1200).contains(&count), "{}: {count}", char::from(*letter));
        }
    }

    #[test]
    fn below_stays_below() {
        let rng = Rng::system();
        assert!((0..1000).all(|_| rng.below(10) < 10));
        assert_eq!(rng.below(0), 0);
    }
}
