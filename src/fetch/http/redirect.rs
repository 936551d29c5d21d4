//! Where a redirect leads, and whether it may be followed. Pure.

use reqwest::Url;
use reqwest::header::HeaderValue;

use super::super::{Error, ErrorKind, Result};
use super::redacted;

/// More hops than any registry needs: most send one.
const REDIRECTS_MAX: usize = 10;

/// The address that follows `visited` (in order; the last one answered with `location`).
///
/// # Errors
/// [`ErrorKind::Protocol`] for a loop, too many hops, an address that is none, or one that leaves
/// HTTPS.
pub fn next(visited: &[Url], location: &HeaderValue) -> Result<Url> {
    let Some(from) = visited.last() else {
        return Err(Error::new(ErrorKind::Protocol, "a redirect from nowhere"));
    };
    let next = resolve("redirect", from, location)?;
    if visited.contains(&next) {
        return Err(wrong("redirect", from, "it leads back to where it came from"));
    }
    if visited.len() > REDIRECTS_MAX {
        return Err(wrong("redirect", from, &format!("more than {REDIRECTS_MAX} redirects")));
    }
    Ok(next)
}

/// The address that `from` gave in a header, absolute or relative; `what` names it in errors.
///
/// # Errors
/// [`ErrorKind::Protocol`] for an address that is none, or one that leaves HTTPS.
pub fn resolve(what: &str, from: &Url, location: &HeaderValue) -> Result<Url> {
    let location = location.to_str().map_err(|_| wrong(what, from, "it is not ASCII"))?;
    let mut next = from.join(location).map_err(|_| wrong(what, from, "it is not a URL"))?;
    next.set_fragment(None);
    if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
        return Err(wrong(what, from, "it leads to something that is not HTTP"));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(wrong(what, from, &format!("it leaves HTTPS for {}", redacted(&next))));
    }
    // A user in a Location would become credentials that nobody gave us.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    Ok(next)
}

fn wrong(what: &str, from: &Url, reason: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{what} from {}: {reason}", redacted(from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    fn follow(visited: &[&str], location: &'static str) -> Result<Url> {
        let visited: Vec<Url> = visited.iter().map(|v| url(v)).collect();
        next(&visited, &HeaderValue::from_static(location))
    }

    #[test]
    fn a_location_is_absolute_or_relative_to_the_last_hop() {
        let hops = ["https://a.example/v2/", "https://b.example/x/y"];
        assert_eq!(follow(&hops, "z").expect("a hop"), url("https://b.example/x/z"));
        assert_eq!(follow(&hops, "//c.example/").expect("a hop"), url("https://c.example/"));
        let with_user = follow(&hops, "https://ann:pw@c.example/#f").expect("a hop");
        assert_eq!(with_user, url("https://c.example/"));
    }

    #[test]
    fn loops_and_long_chains_end() {
        let hops = ["https://a.example/1", "https://a.example/2"];
        assert_eq!(follow(&hops, "/1").expect_err("a loop").kind, ErrorKind::Protocol);
        assert_eq!(follow(&hops, "/2#f").expect_err("a loop").kind, ErrorKind::Protocol);
        let many: Vec<String> = (0..=10).map(|i| format!("https://a.example/{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(follow(&many[..10], "/next").is_ok());
        assert!(follow(&many, "/next").is_err());
    }

    #[test]
    fn https_is_never_left() {
        assert!(follow(&["https://a.example/"], "http://a.example/").is_err());
        assert!(follow(&["http://a.example/"], "https://a.example/").is_ok());
        assert!(follow(&["https://a.example/"], "file:///etc/passwd").is_err());
    }
}
