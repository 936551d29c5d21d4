//! From what went wrong with a request to an error that a user can act on.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use serde::Deserialize;

use super::super::{Error, ErrorKind};

/// The most of a registry's own words that goes into a message.
const EXCERPT_CHARS_MAX: usize = 200;

/// How often sources of errors may nest before we stop asking.
const SOURCES_MAX: usize = 16;

/// Longer than any server means: beyond it Retry-After is nonsense.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// No byte came in time.
pub fn deadline_passed(what: &str, stall: Duration) -> Error {
    Error::new(ErrorKind::DeadlinePassed, format!("{what}: no byte arrived within {stall:?}"))
}

/// Bytes came, and too few of them to wait for the rest.
pub fn too_slow(what: &str, bytes: u64, stall: Duration) -> Error {
    let text = format!("{what}: only {bytes} bytes arrived while {stall:?} were waited for more");
    Error::new(ErrorKind::DeadlinePassed, text)
}

/// The connection failed, or the answer was not HTTP.
pub fn transport(what: &str, error: &reqwest::Error) -> Error {
    match tls_error(error) {
        // Trying again does not make it trusted.
        Some(rustls::Error::InvalidCertificate(reason)) => {
            return Error::new(
                ErrorKind::Protocol,
                format!(
                    "{what}: the server's certificate is not trusted: {reason}; add its authority \
                     to the system's (or name a file with it in SSL_CERT_FILE), or pass --insecure"
                ),
            );
        }
        Some(tls) => return Error::new(ErrorKind::Network, format!("{what}: TLS: {tls}")),
        None => {}
    }
    let reason = innermost(error);
    let doing = if error.is_connect() { "cannot connect: " } else { "" };
    Error::new(ErrorKind::Network, format!("{what}: {doing}{reason}"))
}

/// The server answered with a status that is not what we need.
pub fn status(
    what: &str,
    status: StatusCode,
    retry_after: Option<Duration>,
    body: &[u8],
    hint: &str,
) -> Error {
    let kind = match status.as_u16() {
        401 | 403 => ErrorKind::Authentication,
        404 => ErrorKind::NotFound,
        408 | 429 | 500..=599 => ErrorKind::Network,
        _ => ErrorKind::Protocol,
    };
    let mut message = format!("{what}: {status}");
    if let Some(words) = registry_words(body) {
        message = format!("{message}: {words}");
    }
    if !hint.is_empty() {
        message = format!("{message}; {hint}");
    }
    Error { retry_after, ..Error::new(kind, message) }
}

/// How long the `Retry-After` header asks us to wait: seconds or an HTTP date (RFC 9110, 10.2.3).
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    let wait = match header.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let moment = httpdate::parse_http_date(header).ok()?;
            moment.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The code and message of the distribution-spec's error document ("Error Codes").
fn registry_words(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_slice(body).ok()?;
    let first = document.errors.into_iter().next()?;
    let words = match (first.code.is_empty(), first.message.is_empty()) {
        (true, true) => return None,
        (false, true) => first.code,
        (true, false) => first.message,
        (false, false) => format!("{}: {}", first.code, first.message),
    };
    // The server's text must not drive the user's terminal.
    Some(words.chars().filter(|c| !c.is_control()).take(EXCERPT_CHARS_MAX).collect())
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    for _ in 0..SOURCES_MAX {
        match at.source() {
            Some(source) => at = source,
            None => break,
        }
    }
    // The library's own text would hold the whole URL, so only its cause is shown.
    match at.downcast_ref::<reqwest::Error>() {
        Some(_) => "the request failed".to_owned(),
        None => at.to_string(),
    }
}

/// What TLS did not like. It hides behind an `io::Error`, whose source skips it.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut at = Some(error);
    for _ in 0..SOURCES_MAX {
        let error = at?;
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        at = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u16, body: &str) -> Error {
        let code = StatusCode::from_u16(code).expect("a status");
        status("GET https://h.example/", code, None, body.as_bytes(), "a hint")
    }

    #[test]
    fn each_status_has_its_kind() {
        for (code, kind) in [
            (401, ErrorKind::Authentication),
            (403, ErrorKind::Authentication),
            (404, ErrorKind::NotFound),
            (408, ErrorKind::Network),
            (429, ErrorKind::Network),
            (500, ErrorKind::Network),
            (503, ErrorKind::Network),
            (400, ErrorKind::Protocol),
            (416, ErrorKind::Protocol),
        ] {
            assert_eq!(of(code, "").kind, kind, "{code}");
        }
    }

    #[test]
    fn the_registrys_own_words_are_in_the_message() {
        let body =
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest \u001b unknown"}]}"#;
        assert_eq!(
            of(404, body).to_string(),
            "GET https://h.example/: 404 Not Found: MANIFEST_UNKNOWN: manifest  unknown; a hint"
        );
        for body in ["", "<html>", "{}", r#"{"errors":[]}"#, r#"{"errors":[{}]}"#] {
            assert_eq!(of(404, body).to_string(), "GET https://h.example/: 404 Not Found; a hint");
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(9000));
        assert!(of(404, &long).to_string().len() < 300);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (header, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999999", Some(86_400)),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(header, now), seconds.map(Duration::from_secs), "{header}");
        }
    }
}
