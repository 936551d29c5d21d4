//! Users and groups of an image: a `User` by name or number to credentials (image-spec
//! `config.md`), from the bytes of its own `/etc/passwd` and `/etc/group`.

use super::error::{Error, Result};

/// Most supplementary groups of one process: what Linux allows (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// The home of who has none.
const NO_HOME: &str = "/";

/// The account files of a rootfs; empty where it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// `/etc/passwd` (passwd(5)). Lines that are none are passed over.
    pub passwd: Vec<u8>,
    /// `/etc/group` (group(5)). Lines that are none are passed over.
    pub group: Vec<u8>,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups: those that list the user, when no group was asked for.
    pub additional_gids: Vec<u32>,
    /// Home directory, `/` where the image knows none.
    pub home: String,
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl Accounts {
    /// `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid`; empty: 0. A number need
    /// not be in the files, a name must be. With a group there are no supplementary groups.
    ///
    /// # Errors
    /// [`Error::Document`] for a name that the image does not know, [`Error::Limit`] for more than
    /// 65,536 supplementary groups.
    pub fn resolve(&self, wanted: &str) -> Result<Credentials> {
        let (user, group) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
            None => (wanted, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        // A number is a number, also where somebody is called by one.
        let known = match id(user.as_bytes()) {
            Some(uid) => self.users().find(|u| u.uid == uid),
            None => self.users().find(|u| u.name == user.as_bytes()),
        };
        let (uid, own_gid, home) = match &known {
            Some(known) => (known.uid, known.gid, known.home),
            None => match id(user.as_bytes()) {
                Some(uid) => (uid, 0, NO_HOME.as_bytes()),
                None => return Err(unknown("user", user, "/etc/passwd")),
            },
        };
        let (gid, additional_gids) = match (group, &known) {
            (Some(group), _) => (self.gid(group)?, Vec::new()),
            (None, Some(known)) => (own_gid, self.groups_of(known)?),
            (None, None) => (own_gid, Vec::new()),
        };
        let home = std::str::from_utf8(home).ok().filter(|h| h.starts_with('/'));
        Ok(Credentials { uid, gid, additional_gids, home: home.unwrap_or(NO_HOME).to_owned() })
    }

    fn gid(&self, group: &str) -> Result<u32> {
        let named = || self.groups().find(|g| g.name == group.as_bytes()).map(|g| g.gid);
        id(group.as_bytes()).or_else(named).ok_or_else(|| unknown("group", group, "/etc/group"))
    }

    /// The groups that list `user`, ascending, without its own.
    fn groups_of(&self, user: &User) -> Result<Vec<u32>> {
        let lists = |group: &Group| group.members.split(|b| *b == b',').any(|m| m == user.name);
        let mut gids: Vec<u32> = self.groups().filter(lists).map(|g| g.gid).collect();
        gids.sort_unstable();
        gids.dedup();
        gids.retain(|gid| *gid != user.gid);
        if gids.len() > GROUPS_MAX {
            let what = "number of groups of one user".to_owned();
            return Err(Error::Limit { what, limit: GROUPS_MAX as u64 });
        }
        Ok(gids)
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
            let home = fields.nth(1).unwrap_or_default();
            Some(User { name, uid, gid, home }).filter(|user| !user.name.is_empty())
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(|b| *b == b':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let gid = id(fields.next()?)?;
            let members = fields.next().unwrap_or_default();
            Some(Group { name, gid, members }).filter(|group| !group.name.is_empty())
        })
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.starts_with(b"#"))
}

/// A user or group number: decimal digits; all ones means "nobody" to the kernel, and is none.
fn id(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok())?.filter(|id| *id != u32::MAX)
}

fn unknown(what: &str, name: &str, file: &str) -> Error {
    let reason = format!("no such {what} in the image's {file}; a number needs no entry there");
    Error::document(format!("{what} {name:?}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\n\
            cnb:x:1000:1001::/home/cnb:/bin/sh\n42:x:7:8::/seven:\nrelative:x:9:9::home:\n";
        let group = b"root:x:0:\nadm:x:4:cnb,other\nstaff:x:50:other,cnb\ncnb:x:1001:cnb\n\
            half\nlikecnb:x:60:cnbx\n";
        Accounts { passwd: passwd.to_vec(), group: group.to_vec() }
    }

    fn resolved(user: &str) -> (u32, u32, Vec<u32>, String) {
        let c = accounts().resolve(user).expect("known");
        (c.uid, c.gid, c.additional_gids, c.home)
    }

    #[test]
    fn every_form_of_a_user_is_resolved() {
        let cnb = "/home/cnb".to_owned();
        assert_eq!(resolved("cnb"), (1000, 1001, vec![4, 50], cnb.clone()));
        assert_eq!(resolved("1000"), (1000, 1001, vec![4, 50], cnb.clone()));
        assert_eq!(resolved("cnb:staff"), (1000, 50, vec![], cnb.clone()));
        assert_eq!(resolved("cnb:77"), (1000, 77, vec![], cnb.clone()));
        assert_eq!(resolved("1000:staff"), (1000, 50, vec![], cnb.clone()));
        assert_eq!(resolved("cnb:"), (1000, 1001, vec![4, 50], cnb));
        assert_eq!(resolved("555"), (555, 0, vec![], "/".to_owned()));
        assert_eq!(resolved("555:556"), (555, 556, vec![], "/".to_owned()));
        assert_eq!(resolved(""), (0, 0, vec![], "/root".to_owned()));
        assert_eq!(resolved(":staff"), (0, 50, vec![], "/root".to_owned()));
    }

    #[test]
    fn a_number_is_a_number_even_where_somebody_is_called_by_it() {
        assert_eq!(resolved("42"), (42, 0, vec![], "/".to_owned()));
    }

    #[test]
    fn a_home_that_is_not_absolute_is_none() {
        assert_eq!(resolved("relative").3, "/");
    }

    #[test]
    fn without_account_files_only_numbers_are_known() {
        let none = Accounts::default();
        assert_eq!(none.resolve("").expect("root").uid, 0);
        assert_eq!(none.resolve("12:13").expect("numbers").gid, 13);
        for unknown in ["cnb", "0:wheel", "-1", "+5", "4294967295", "99999999999"] {
            let error = none.resolve(unknown).expect_err("no such user").to_string();
            assert!(error.contains("no such"), "{unknown}: {error}");
        }
    }
}
