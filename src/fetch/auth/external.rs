//! Credentials from a program: `docker-credential-NAME get`, the server's name on its stdin
//! (docker-credential-helpers, "Development").

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::super::{Deadline, Error, ErrorKind, Result};
use super::Credential;

/// A program that asks a person something nobody sees would wait for ever.
const PROGRAM_MAX: Duration = Duration::from_secs(30);

/// The largest answer: a user and a token.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The user name that says that the secret is an identity token.
const IDENTITY_USER: &str = "<token>";

/// How programs say that they do not have it; anything else they say is trouble.
const NOT_FOUND: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the program `docker-credential-{name}`, found in the directories of `path`, for the
/// credential of `server`. `None` when it has none. What it prints is secret and is in no error.
///
/// # Errors
/// [`ErrorKind::Authentication`] when it is missing, fails, or takes too long.
pub async fn ask(
    name: &str,
    server: &str,
    path: &OsStr,
    deadline: Deadline,
) -> Result<Option<Credential>> {
    let program = format!("docker-credential-{name}");
    let trouble = |reason: String| {
        Error::new(ErrorKind::Authentication, format!("{program} for {server}: {reason}"))
    };
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(trouble("not the name of a program".to_owned()));
    }
    let Some(found) = find(&program, path) else {
        return Err(trouble("there is no such program in PATH".to_owned()));
    };
    let limit = deadline.at().min(std::time::Instant::now() + PROGRAM_MAX);
    match tokio::time::timeout_at(limit.into(), run(&found, server)).await {
        Err(_) => Err(trouble("it did not answer in time".to_owned())),
        Ok(Err(error)) => Err(trouble(format!("cannot run it: {error}"))),
        Ok(Ok((status, output))) if status.success() => parse(&output).map(Some).ok_or_else(|| {
            trouble("its answer is not JSON with a user name and a secret".to_owned())
        }),
        Ok(Ok((_, output))) if String::from_utf8_lossy(&output).contains(NOT_FOUND) => Ok(None),
        Ok(Ok((status, _))) => Err(trouble(format!("it failed: {status}"))),
    }
}

/// The program in the first directory that has it. Relative directories would depend on where we
/// were started, and are passed over.
fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    let directories = std::env::split_paths(path).filter(|directory| directory.is_absolute());
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

async fn run(program: &Path, server: &str) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input may still answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}

fn parse(output: &[u8]) -> Option<Credential> {
    let Answer { username, secret } = serde_json::from_slice(output).ok()?;
    Some(match username.as_str() {
        IDENTITY_USER => Credential::Identity(secret),
        _ => Credential::Login { username, password: secret },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_token_means_an_identity_token() {
        let login = br#"{"ServerURL":"s","Username":"ann","Secret":"pw"}"#;
        let expected = Credential::Login { username: "ann".to_owned(), password: "pw".to_owned() };
        assert_eq!(parse(login), Some(expected));
        let token = br#"{"Username":"<token>","Secret":"it"}"#;
        assert_eq!(parse(token), Some(Credential::Identity("it".to_owned())));
        assert_eq!(parse(b"{}"), None);
        assert_eq!(parse(b""), None);
    }
}
