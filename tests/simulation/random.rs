//! Chance that a seed decides: xorshift64*.

/// A sequence of numbers; the same seed gives the same.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Neighbouring seeds give unrelated sequences.
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D | 1);
        (0..4).for_each(|_| {
            random.next();
        });
        random
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A size below `n`.
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times; never where `n` is 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    /// A sequence of its own, so that what one part asks for does not change what another gets.
    pub fn fork(&mut self) -> Random {
        Random::new(self.next())
    }

    /// Octets, any.
    pub fn octets(&mut self, size: usize) -> Vec<u8> {
        let mut octets = Vec::with_capacity(size + 8);
        while octets.len() < size {
            octets.extend_from_slice(&self.next().to_le_bytes());
        }
        octets.truncate(size);
        octets
    }
}
