//! Recognises who reads everything: files are read soon after the directory they are in was listed.
//!
//! Only files that were not pushed with their directory can tell. So in some directories one is
//! left out on purpose, and when those are no longer read, the scan is over.

use std::collections::VecDeque;

use crate::layout::tree::NodeId;

/// Listed directories that are looked back on.
const REMEMBERED: usize = 16;

/// So many files must have been read in them: a program that starts lists a directory, too, and
/// reads a few files of it.
const READ_MIN: u32 = 8;

/// One of so many files that could have been read must have been. Not all: whoever goes into a
/// directory before reading on has files of all the directories above left to read.
const READ_OF: u32 = 4;

/// Of so many directories that are pushed, one has a file left out.
const LEFT_OUT_EVERY: u32 = 4;

/// What was listed last, and what of it was read.
#[derive(Debug, Default)]
pub struct Scan {
    listed: VecDeque<Listed>,
    pushed: u32,
}

#[derive(Debug)]
struct Listed {
    directory: NodeId,
    /// Files that were not pushed.
    left: u32,
    /// Of these, those that were read since.
    read: u32,
}

impl Scan {
    /// Somebody began to read a file of `directory`.
    pub fn read(&mut self, directory: NodeId) {
        // The newest first: it is nearly always that.
        let found = self.listed.iter_mut().rev().find(|l| l.directory == directory);
        if let Some(listed) = found {
            listed.read = listed.left.min(listed.read + 1);
        }
    }

    /// All of `directory` was listed, and `left` of its small files were not pushed.
    pub fn listed(&mut self, directory: NodeId, left: u32) {
        if left == 0 {
            return;
        }
        if self.listed.len() == REMEMBERED {
            self.listed.pop_front();
        }
        self.listed.push_back(Listed { directory, left, read: 0 });
    }

    /// Files are read wherever directories are listed.
    pub fn is_scan(&self) -> bool {
        let sum = |of: fn(&Listed) -> u32| self.listed.iter().map(of).sum::<u32>();
        let (left, read) = (sum(|l| l.left), sum(|l| l.read));
        read >= READ_MIN && read >= left / READ_OF
    }

    /// A directory is pushed: whether to leave a file out.
    pub fn leaves_one_out(&mut self) -> bool {
        self.pushed = self.pushed.wrapping_add(1);
        self.pushed.is_multiple_of(LEFT_OUT_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists `directories` of ten files each, and reads the first `read` of each.
    fn walk(scan: &mut Scan, directories: std::ops::Range<u32>, read: u32) {
        for directory in directories {
            scan.listed(NodeId(directory), 10);
            (0..read).for_each(|_| scan.read(NodeId(directory)));
        }
    }

    #[test]
    fn reading_all_that_is_listed_is_a_scan_and_listing_alone_is_none() {
        let mut scan = Scan::default();
        walk(&mut scan, 0..100, 0);
        assert!(!scan.is_scan());
        walk(&mut scan, 100..110, 10);
        assert!(scan.is_scan());
    }

    #[test]
    fn a_program_that_reads_a_few_files_of_what_it_lists_is_no_scan() {
        let mut scan = Scan::default();
        walk(&mut scan, 0..4, 2);
        assert!(!scan.is_scan(), "2 of 10 are fewer than a quarter");
        walk(&mut scan, 4..40, 2);
        assert!(!scan.is_scan());
    }

    #[test]
    fn a_scan_of_pushed_directories_lasts_as_long_as_what_is_left_out_is_read() {
        let mut scan = Scan::default();
        walk(&mut scan, 0..16, 10);
        let mut pushed = 0;
        for directory in 100..400 {
            assert!(scan.is_scan());
            let left = u32::from(scan.leaves_one_out());
            scan.listed(NodeId(directory), left);
            scan.read(NodeId(directory));
            pushed += 1 - left;
        }
        assert_eq!(pushed, 225);
        let until = (400..800).take_while(|directory| {
            let left = u32::from(scan.leaves_one_out());
            scan.listed(NodeId(*directory), left);
            scan.is_scan()
        });
        assert!(until.count() <= 64, "nobody reads any more");
    }

    #[test]
    fn files_above_that_are_read_later_do_not_end_a_scan() {
        let mut scan = Scan::default();
        walk(&mut scan, 0..8, 10);
        // Down a path: nothing of it is read before its end.
        walk(&mut scan, 100..104, 0);
        assert!(scan.is_scan());
        (100..104).for_each(|directory| scan.read(NodeId(directory)));
        scan.read(NodeId(7777));
        assert!(scan.is_scan());
    }
}
