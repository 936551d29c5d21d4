//! Chance with a seed that is printed: a test that fails can be run again as it was.

/// A source of numbers that look random.
#[derive(Debug, Clone)]
pub struct Chance {
    seed: u64,
    state: u64,
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

impl Chance {
    /// From `LAYOUTFS_SEED`, else from the clock; prints which.
    pub fn new() -> Self {
        let given = std::env::var("LAYOUTFS_SEED").ok().map(|seed| seed.parse().expect("a number"));
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970");
        let seed = given.unwrap_or(clock.as_nanos() as u64);
        eprintln!("LAYOUTFS_SEED={seed}");
        Self::of(seed)
    }

    /// From a seed.
    pub fn of(seed: u64) -> Self {
        Chance { seed, state: seed }
    }

    /// What to set `LAYOUTFS_SEED` to for the same numbers.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number (splitmix64).
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to less than `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }
}
