//! When to read ahead, and how far: by spans in the order of the tar, whatever files they are of.

use std::collections::VecDeque;
use std::ops::Range;

/// So many steps from a span to the next one are a scan. Programs that start read a few
/// neighbours, too, a library of 4 MB for one; what is fetched ahead for them is fetched for nothing.
const SCAN_AFTER: u32 = 4;

/// So many are worth decoding the next one, if it is here: that costs but a processor.
const DECODE_AFTER: u32 = 1;

/// The most spans ahead of a reader: some 8 MiB decoded, half of what is kept in memory, so
/// that scans of several layers do not push out what others will need.
const SPANS_MAX: usize = 8;

/// Places of a layer where somebody goes on. A walk of directories comes back to where it left a
/// file's neighbours for a directory that is elsewhere in the tar; and there are several readers.
const TRAILS_MAX: usize = 8;

/// What to get ahead of a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The spans.
    pub spans: Range<usize>,
    /// What is not here is to be fetched. Where a reader found all that it needed, the rest may well
    /// be what nobody needs: files of this layer that later layers remove.
    pub fetches: bool,
}

/// How one layer is read.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The one that was used last is the first.
    trails: VecDeque<Trail>,
}

/// Spans that were read one behind the other.
#[derive(Debug)]
struct Trail {
    /// Behind the last span that was read.
    at: usize,
    /// Steps from one to the next.
    in_a_row: u32,
    /// Behind the last span that was asked for ahead.
    asked: usize,
    /// Some of those that were read were not here.
    fetches: bool,
}

impl Ahead {
    /// A reader needs the spans `wanted` of `count`: which to get in addition, if it goes on where
    /// it or another one was. The distance doubles with each span.
    pub fn touch(&mut self, wanted: Range<usize>, count: usize) -> Option<Next> {
        if wanted.is_empty() {
            return None;
        }
        let trail = self.trail(&wanted);
        trail.in_a_row += wanted.end.saturating_sub(trail.at) as u32;
        trail.at = trail.at.max(wanted.end);
        trail.next(count)
    }

    /// Where the reader of `wanted` goes on, which is then the trail that was used last.
    fn trail(&mut self, wanted: &Range<usize>) -> &mut Trail {
        // A scan comes back to the span that it is in, and a file may begin in the one before it.
        let goes_on = |t: &Trail| wanted.start <= t.at && wanted.end + 1 >= t.at;
        let found = self.trails.iter().position(goes_on).and_then(|i| self.trails.remove(i));
        let in_a_row = wanted.len() as u32 - 1;
        let new = Trail { at: wanted.end, in_a_row, asked: wanted.end, fetches: false };
        self.trails.truncate(TRAILS_MAX - 1);
        self.trails.push_front(found.unwrap_or(new));
        &mut self.trails[0]
    }

    /// Whoever was here last goes from span to span, and will need all of each.
    pub fn goes_on(&self) -> bool {
        self.trails.front().is_some_and(|trail| trail.in_a_row >= DECODE_AFTER)
    }

    /// A reader found that span `i` was not here.
    pub fn note_fetch(&mut self, i: usize) {
        if let Some(trail) = self.trails.iter_mut().find(|t| i < t.at && i + SPANS_MAX >= t.at) {
            trail.fetches = true;
        }
    }
}

impl Trail {
    fn next(&mut self, count: usize) -> Option<Next> {
        let fetches = self.fetches && self.in_a_row >= SCAN_AFTER;
        let after = if self.fetches { SCAN_AFTER } else { DECODE_AFTER };
        let beyond = self.in_a_row.checked_sub(after)?;
        let distance = SPANS_MAX.min(1 << beyond.min(16));
        let from = self.asked.max(self.at);
        let to = count.min(self.at + distance);
        // In pieces of half the distance: a request for each span would be one too many.
        let is_small = fetches && from + distance / 2 > to && to < count;
        if is_small || from >= to {
            return None;
        }
        self.asked = to;
        Some(Next { spans: from..to, fetches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the spans, one after the other; none of them is here. Gives what was asked for.
    fn scan(ahead: &mut Ahead, spans: Range<usize>, count: usize) -> Vec<Range<usize>> {
        let read = |i| {
            let next = ahead.touch(i..i + 1, count);
            ahead.note_fetch(i);
            next.inspect(|next| assert!(next.spans.start > i, "{next:?} at {i}"))
        };
        spans.filter_map(read).map(|next| next.spans).collect()
    }

    #[test]
    fn a_scan_is_far_ahead_and_asks_for_each_span_once() {
        for is_here in [true, false] {
            let mut ahead = Ahead::default();
            let mut asked = Vec::new();
            for i in 0..100 {
                // Files in tar order: several reads a span.
                for _ in 0..3 {
                    let next = ahead.touch(i..i + 1, 100);
                    assert!(
                        next.as_ref().is_none_or(|n| n.spans.start > i && n.fetches != is_here)
                    );
                    asked.extend(next.into_iter().flat_map(|next| next.spans));
                }
                if !is_here {
                    ahead.note_fetch(i);
                }
            }
            let first = if is_here { 2 } else { 5 };
            assert_eq!(asked, (first..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_fetched_is_asked_for_in_large_pieces() {
        let asked = scan(&mut Ahead::default(), 0..40, 1000);
        assert_eq!(asked[..3], [5..6, 6..8, 8..11]);
        assert!(asked[3..].iter().all(|range| range.len() >= SPANS_MAX / 2), "{asked:?}");
        assert!(asked.iter().all(|range| range.len() <= SPANS_MAX));
    }

    #[test]
    fn who_finds_everything_has_nothing_fetched_ahead() {
        let mut ahead = Ahead::default();
        let fetched = |ahead: &mut Ahead, i| ahead.touch(i..i + 1, 100).map(|next| next.fetches);
        assert!((0..9).filter_map(|i| fetched(&mut ahead, i)).all(|fetches| !fetches));
        ahead.note_fetch(8);
        assert!((9..20).filter_map(|i| fetched(&mut ahead, i)).all(|fetches| fetches));
        assert!((50..60).filter_map(|i| fetched(&mut ahead, i)).all(|fetches| !fetches));
    }

    #[test]
    fn reading_here_and_there_gets_nothing_in_addition() {
        let mut ahead = Ahead::default();
        for i in [50, 7, 90, 11, 54, 30, 33, 70, 70, 70, 20] {
            assert_eq!(ahead.touch(i..i + 1, 100), None, "{i}");
        }
        assert_eq!(ahead.touch(0..0, 100), None);
    }

    #[test]
    fn who_goes_on_is_told_from_who_reads_here_and_there() {
        let mut ahead = Ahead::default();
        assert!(!ahead.goes_on(), "nobody was here");
        for (i, goes_on) in [(5, false), (5, false), (6, true), (50, false), (7, true), (50, false)]
        {
            ahead.touch(i..i + 1, 100);
            assert_eq!(ahead.goes_on(), goes_on, "{i}");
        }
    }

    #[test]
    fn neighbours_of_a_start_are_no_scan_and_one_long_read_is() {
        let mut ahead = Ahead::default();
        assert!(scan(&mut ahead, 10..14, 100).is_empty());
        assert_eq!(scan(&mut ahead, 14..15, 100).first(), Some(&(15..16)));
        assert!(scan(&mut ahead, 60..61, 100).is_empty(), "it has left");
        let long = Next { spans: 6..7, fetches: false };
        assert_eq!(Ahead::default().touch(0..6, 7), Some(long), "and not beyond the end");
    }

    #[test]
    fn a_walk_that_comes_back_goes_on_where_it_was() {
        let mut ahead = Ahead::default();
        scan(&mut ahead, 0..20, 1000);
        for elsewhere in 1..TRAILS_MAX {
            scan(&mut ahead, elsewhere * 100..elsewhere * 100 + 2, 1000);
        }
        assert!(!scan(&mut ahead, 20..26, 1000).is_empty(), "as far ahead as before");
        for elsewhere in 1..=TRAILS_MAX {
            scan(&mut ahead, 30 + elsewhere * 100..32 + elsewhere * 100, 1000);
        }
        assert!(scan(&mut ahead, 26..28, 1000).is_empty(), "forgotten");
    }
}
