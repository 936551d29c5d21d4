//! The next page that a `Link` header names (RFC 8288; distribution-spec, "Listing Referrers").
//! Pure.

/// The target of the first link whose relation is `next`, as it stands: absolute or relative.
pub fn next_page(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let parameters = &after[..end_of_link(after)];
        if split_outside_quotes(parameters, ';').into_iter().any(is_next) {
            return Some(target);
        }
        rest = &after[parameters.len()..];
    }
}

/// `rel=next`, `rel="next"`, or one of several relations in quotes.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return false };
    let relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel") && { relations }.any(|r| r.eq_ignore_ascii_case("next"))
}

/// Where the comma is that separates links, or the end.
fn end_of_link(text: &str) -> usize {
    split_outside_quotes(text, ',').first().map_or(0, |first| first.len())
}

fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut is_quoted = false;
    text.split(|c| {
        is_quoted ^= c == '"';
        c == separator && !is_quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        for (header, page) in [
            (r#"</v2/a/referrers/d?n=2&last=x>; rel="next""#, Some("/v2/a/referrers/d?n=2&last=x")),
            ("<next>;rel=next", Some("next")),
            (r#"<a,b;c>; title="x, <y>; rel=next"; REL="Prev Next""#, Some("a,b;c")),
            (r#"<first>; rel="prev", <second>; rel="next""#, Some("second")),
            (r#"<first>; rel="prev""#, None),
            (r#"<first>; title="rel=next""#, None),
            ("<first", None),
            ("", None),
        ] {
            assert_eq!(next_page(header), page, "{header}");
        }
    }
}
