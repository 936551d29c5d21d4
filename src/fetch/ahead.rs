//! When to read ahead, and how far: by spans in the order of the tar, whatever files they are of.

use std::ops::Range;

/// So many spans in a row, one behind the other, are a scan. Programs that start read a few
/// neighbours, too, a library of 4 MB for one; what is read ahead for them is fetched for nothing.
const SCAN_AFTER: u32 = 4;

/// The most spans ahead of a reader: some 8 MiB decoded, a quarter of what is kept in memory, so
/// that scans of several layers do not push out what others will need.
const SPANS_MAX: usize = 8;

/// How one layer is read.
#[derive(Debug, Default)]
pub struct Ahead {
    /// Behind the last span that was read.
    at: usize,
    /// How many spans were read one behind the other.
    in_a_row: u32,
    /// Behind the last span that was asked for ahead.
    asked: usize,
    /// Some of those that were read one behind the other were not here.
    fetches: bool,
}

impl Ahead {
    /// A reader needs the spans `wanted` of `count`: which to get in addition. Nothing, unless the
    /// layer is scanned; then the distance doubles with each span.
    pub fn touch(&mut self, wanted: Range<usize>, count: usize) -> Range<usize> {
        if wanted.is_empty() {
            return 0..0;
        }
        // A scan comes back to the span that it is in, and a file may begin in the one before it.
        let goes_on = wanted.start <= self.at && wanted.end + 1 >= self.at;
        if goes_on {
            self.in_a_row += wanted.end.saturating_sub(self.at) as u32;
            self.at = self.at.max(wanted.end);
        } else {
            *self = Ahead { at: wanted.end, asked: wanted.end, ..Ahead::default() };
        }
        if self.in_a_row < SCAN_AFTER {
            return 0..0;
        }
        let distance = SPANS_MAX.min(1 << (self.in_a_row - SCAN_AFTER).min(16));
        let from = self.asked.max(self.at);
        let to = count.min(self.at + distance);
        // In pieces of half the distance: a request for each span would be one too many.
        if from + distance / 2 > to && to < count || from >= to {
            return 0..0;
        }
        self.asked = to;
        from..to
    }

    /// A reader found something that was not here.
    pub fn note_fetch(&mut self) {
        self.fetches = true;
    }

    /// What is not here is to be fetched ahead, too. Where a reader found all that it needed, the
    /// rest may well be what nobody needs: files of this layer that later layers remove.
    pub fn fetches(&self) -> bool {
        self.fetches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_far_ahead_and_asks_for_each_span_once() {
        let mut ahead = Ahead::default();
        let mut asked = Vec::new();
        for i in 0..100 {
            // Files in tar order: several reads a span.
            for _ in 0..3 {
                let next = ahead.touch(i..i + 1, 100);
                assert!(next.is_empty() || next.start > i, "{next:?} at {i}");
                asked.extend(next);
            }
        }
        assert_eq!(asked, (4..100).collect::<Vec<_>>());
    }

    #[test]
    fn the_distance_grows_to_its_limit_and_is_asked_for_in_large_pieces() {
        let mut ahead = Ahead::default();
        let asked: Vec<_> =
            (0..40).map(|i| ahead.touch(i..i + 1, 1000)).filter(|r| !r.is_empty()).collect();
        assert_eq!(asked[..3], [4..5, 5..7, 7..10]);
        assert!(asked[3..].iter().all(|range| range.len() >= SPANS_MAX / 2), "{asked:?}");
        assert!(asked.iter().all(|range| range.len() <= SPANS_MAX));
    }

    #[test]
    fn who_finds_everything_has_nothing_fetched_ahead() {
        let mut ahead = Ahead::default();
        let touched = |ahead: &mut Ahead, i| ahead.touch(i..i + 1, 100).len();
        assert!((0..9).map(|i| touched(&mut ahead, i)).sum::<usize>() > 0);
        assert!(!ahead.fetches());
        ahead.note_fetch();
        assert!((9..20).map(|i| touched(&mut ahead, i)).sum::<usize>() > 0);
        assert!(ahead.fetches());
        touched(&mut ahead, 50);
        assert!(!ahead.fetches(), "it has left");
    }

    #[test]
    fn reading_here_and_there_gets_nothing_in_addition() {
        let mut ahead = Ahead::default();
        for i in [50, 7, 90, 8, 51, 30, 29, 70, 70, 70, 20] {
            assert_eq!(ahead.touch(i..i + 1, 100), 0..0, "{i}");
        }
        assert_eq!(ahead.touch(0..0, 100), 0..0);
    }

    #[test]
    fn neighbours_of_a_start_are_no_scan_and_one_long_read_is() {
        let mut ahead = Ahead::default();
        assert!((10..14).all(|i| ahead.touch(i..i + 1, 100).is_empty()));
        assert_eq!(ahead.touch(14..15, 100), 15..16);
        assert_eq!(ahead.touch(60..61, 100), 0..0, "it has left");
        let mut ahead = Ahead::default();
        assert_eq!(ahead.touch(0..6, 7), 6..7, "and not beyond the end");
    }
}
