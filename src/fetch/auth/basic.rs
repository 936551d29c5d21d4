//! User and password, in a header and back (RFC 7617).

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use reqwest::header::HeaderValue;

/// Writes padding, and reads with or without: not every tool that writes `auth` pads it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `Basic ...`, marked so that nothing logs it.
pub fn header(username: &str, password: &str) -> HeaderValue {
    let value = format!("Basic {}", BASE64.encode(format!("{username}:{password}")));
    let mut header = HeaderValue::from_str(&value).expect("base64 is a header value");
    header.set_sensitive(true);
    header
}

/// The user and password of base64 text; `None` when it is not that.
pub fn decode(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64.decode(encoded.trim()).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    // Old docker versions padded with NUL.
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_survive_the_header() {
        let header = header("ann", "p:w ä");
        assert!(header.is_sensitive());
        let value = std::str::from_utf8(header.as_bytes()).expect("text");
        let encoded = value.strip_prefix("Basic ").expect("the scheme");
        assert_eq!(decode(encoded), Some(("ann".to_owned(), "p:w ä".to_owned())));
        assert_eq!(decode("YTpi"), Some(("a".to_owned(), "b".to_owned())));
        assert_eq!(decode("YTpiYw"), Some(("a".to_owned(), "bc".to_owned())));
        for not_a_login in ["", "YQ==", "%", "gICA"] {
            assert_eq!(decode(not_a_login), None, "{not_a_login}");
        }
    }
}
