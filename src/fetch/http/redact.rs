//! URLs for messages: what is secret in them is not shown.

use reqwest::Url;

/// Query parameters that help and are no secret. Signed addresses keep theirs in all the others.
const SHOWN_PARAMETERS: [&str; 5] = ["scope", "service", "n", "digest", "artifactType"];

/// A URL that somebody can still read in a message.
const URL_CHARS_MAX: usize = 300;

/// `url` without user, password, fragment and the values of unknown query parameters.
pub fn redacted(url: &Url) -> String {
    let mut shown = url.clone();
    // Neither can fail for http and https, the only schemes that get here.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_fragment(None);
    if url.query().is_some() {
        shown.query_pairs_mut().clear().extend_pairs(url.query_pairs().map(|(name, value)| {
            let is_shown = SHOWN_PARAMETERS.contains(&&*name);
            (name, if is_shown { value } else { "REDACTED".into() })
        }));
    }
    let text = shown.to_string();
    match text.char_indices().nth(URL_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_password_and_signatures_are_not_shown() {
        let url = "https://ann:pw@h.example/v2/?X-Amz-Signature=abc&scope=repository:a:pull#frag";
        let shown = redacted(&url.parse().expect("a URL"));
        assert_eq!(
            shown,
            "https://h.example/v2/?X-Amz-Signature=REDACTED&scope=repository%3Aa%3Apull"
        );
    }

    #[test]
    fn a_long_address_is_cut() {
        let url = format!("https://h.example/{}", "a".repeat(5000));
        assert!(redacted(&url.parse().expect("a URL")).len() < 400);
    }
}
