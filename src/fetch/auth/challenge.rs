//! What a 401 says it wants: the `WWW-Authenticate` header (RFC 9110, 11.6.1). Pure.

/// One challenge: a scheme and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `bearer`, `basic`: in lower case.
    pub scheme: String,
    /// Names in lower case, values without quotes, in order.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name (lower case).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header. It may hold several, separated by the same commas that separate
/// parameters. What cannot be read ends the list.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = split_token(rest);
        if word.is_empty() {
            return challenges;
        }
        let value = after.trim_start().strip_prefix('=');
        match (value, challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = split_value(value.trim_start()) else {
                    return challenges;
                };
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                let scheme = word.to_ascii_lowercase();
                challenges.push(Challenge { scheme, parameters: Vec::new() });
                rest = skip_token68(after);
            }
        }
    }
}

/// A token (RFC 9110, 5.6.2) and what follows.
fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// A token or a quoted string, without its quotes and escapes, and what follows.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Unquoted URLs are wrong and common, so a bare value ends only at a separator.
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

/// Skips the one value without a name that schemes such as Negotiate have instead of parameters.
fn skip_token68(text: &str) -> &str {
    let trimmed = text.trim_start();
    let end = trimmed.find([',', ' ', '\t']).unwrap_or(trimmed.len());
    let word = trimmed[..end].trim_end_matches('=');
    let is_token68 = !word.contains('=') && !word.contains('"');
    let ends_here = trimmed[end..].trim_start().is_empty() || trimmed[end..].starts_with(',');
    let is_name = trimmed[end..].trim_start().starts_with('=');
    if is_token68 && ends_here && !is_name && !word.is_empty() { &trimmed[end..] } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let owned = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        Challenge { scheme: scheme.to_owned(), parameters: parameters.iter().map(owned).collect() }
    }

    #[test]
    fn schemes_and_names_are_lower_cased_and_values_unquoted() {
        for (header, expected) in [
            (r#"Basic realm="a, b""#, vec![challenge("basic", &[("realm", "a, b")])]),
            (
                r#"BEARER Realm="https://a.example/token",service=s,Scope="repository:a/b:pull""#,
                vec![challenge(
                    "bearer",
                    &[
                        ("realm", "https://a.example/token"),
                        ("service", "s"),
                        ("scope", "repository:a/b:pull"),
                    ],
                )],
            ),
            (
                r#"Negotiate YWJj==, Bearer realm = "x\"y" , Basic realm=z"#,
                vec![
                    challenge("negotiate", &[]),
                    challenge("bearer", &[("realm", "x\"y")]),
                    challenge("basic", &[("realm", "z")]),
                ],
            ),
            ("Bearer realm=https://a.example/t,service=s", {
                vec![challenge("bearer", &[("realm", "https://a.example/t"), ("service", "s")])]
            }),
            ("Negotiate, Basic", vec![challenge("negotiate", &[]), challenge("basic", &[])]),
        ] {
            assert_eq!(parse_challenges(header), expected, "{header}");
        }
    }

    #[test]
    fn nonsense_gives_what_was_readable_before_it() {
        assert_eq!(parse_challenges(""), []);
        assert_eq!(parse_challenges("="), []);
        assert_eq!(parse_challenges("realm=\"x\""), []);
        let cut = parse_challenges("Bearer service=\"s\",realm=\"https://a");
        assert_eq!(cut, [challenge("bearer", &[("service", "s")])]);
        assert_eq!(parse_challenges("Bearer \"\\"), [challenge("bearer", &[])]);
    }
}
